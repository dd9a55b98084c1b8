"""Options of the command line: every one has its help, a configuration file sets it, a misspelt one is told the nearest."""
import argparse
import json
import os
import subprocess
import sys

import pytest

import gsdnet
from gsdnet import cli

COMMANDS = sorted(cli.COMMANDS)


def options_of(command):
    "The options of one command as its parser has them."
    top = cli.parser(command)
    chosen = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    return chosen.choices[command]._actions


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_line_of_help(command):
    shown = [a for a in options_of(command) if a.help != argparse.SUPPRESS]
    bare = [a.option_strings or a.dest for a in shown if not (a.help or "").strip()]
    assert len(shown) >= 2 and not bare
    assert {"--config", "--help"} <= {word for a in shown for word in a.option_strings}


def test_help_says_what_a_command_does(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop: cli.main([command, "--help"])
        assert stop.value.code == 0 and cli.COMMANDS[command].__doc__.split("\n")[0] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words, meant", [
    ("benchmark x --out o --sedes 3", "--seeds"), ("train x --run r --training.epochz 3", "--training.epochs"), ("train x --run r --architecture.latnet=3", "--architecture.latent"),
    ("evaluate r x --jsno", "--json"), ("predict r x --outt o", "--out"), ("audit x --stritc", "--strict"), ("convert x --out o --overwite", "--overwrite"),
    ("trian x", "train"), ("benchmrak x", "benchmark"), ("aduit x", "audit"), ("evaluate r x --split tset", "test"), ("convert x --out o --layout mmgc", "mmgcn"),
    ("benchmark x --out o --task clasification", "classification"), ("completion bahs", "bash"),
])
def test_a_misspelt_word_is_told_the_nearest(words, meant, capsys):
    with pytest.raises(SystemExit) as stop: cli.main(words.split())
    assert stop.value.code == 2 and f"did you mean {meant}?" in capsys.readouterr().err


def test_choices_hold_in_a_configuration_file_too(tmp_path, capsys):
    (tmp_path / "wrong.yaml").write_text("split: tset\n")
    with pytest.raises(SystemExit) as stop: cli.main(["evaluate", "r", "x", "--config", str(tmp_path / "wrong.yaml")])
    assert stop.value.code == 2 and "'train', 'valid', 'test'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop: cli.main("predict r x --print_config".split())
    (tmp_path / "same.yaml").write_text(capsys.readouterr().out)
    assert cli.parser("predict").parse_args(["predict", "--config", str(tmp_path / "same.yaml")]).predict.split is None


@pytest.mark.parametrize("command, flag", [("audit", "strict"), ("features", "overwrite"), ("convert", "overwrite"), ("train", "resume"), *((c, "json") for c in COMMANDS if c != "completion")])
def test_yes_and_no_are_flags(command, flag):
    found = next(a for a in options_of(command) if a.dest == flag)
    assert found.nargs == 0 and found.default is False


def test_exit_codes_are_told(capsys):
    with pytest.raises(SystemExit): cli.main(["--help"])
    assert cli.CODES in " ".join(capsys.readouterr().out.split())


def test_a_word_like_no_other_is_told_nothing(capsys):
    with pytest.raises(SystemExit): cli.main("audit x --zzzzzzzz".split())
    assert "did you mean" not in capsys.readouterr().err


def test_configuration_file_and_back(tmp_path, capsys):
    "What `--print_config` writes, `--config` reads; options that follow it win."
    with pytest.raises(SystemExit) as stop: cli.main("train talks --run r --seed 7 --training.epochs 3 --print_config".split())
    text = capsys.readouterr().out
    assert stop.value.code in (0, None) and "seed: 7" in text and "epochs: 3" in text
    (tmp_path / "run.yaml").write_text(text)
    options = cli.parser("train").parse_args(["train", "talks", "--config", str(tmp_path / "run.yaml"), "--seed", "8"]).train
    assert options.training.epochs == 3 and options.seed == 8 and options.run == "r"
    (tmp_path / "few.yaml").write_text("rates: 0,0.5\nseeds: 2\n")
    few = cli.parser("evaluate").parse_args(["evaluate", "r", "talks", "--config", str(tmp_path / "few.yaml")]).evaluate
    assert few.rates == "0,0.5" and few.seeds == 2
    (tmp_path / "wrong.yaml").write_text("sedes: 2\n")
    with pytest.raises(SystemExit) as stop: cli.main(["evaluate", "r", "talks", "--config", str(tmp_path / "wrong.yaml")])
    assert stop.value.code == 2 and "sedes" in capsys.readouterr().err


def test_info_for_machines(capsys):
    assert cli.main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"gsdnet", "torch", "device", "models"} <= found.keys()
    assert cli.main(["info"]) == 0 and all(f"{name:16s} " in capsys.readouterr().out for name in ["gsdnet"])


@pytest.mark.parametrize("raised, code", [(None, 0), (ValueError("no"), 2), (FileNotFoundError("no"), 2), (KeyboardInterrupt(), 130)])
def test_exit_codes(raised, code, monkeypatch):
    def audit(data: str) -> int:
        """Look.

        Parameters
        ----------
        data
            Folder.
        """
        if raised: raise raised
        return 0
    monkeypatch.setitem(cli.COMMANDS, "audit", audit)
    assert cli.main(["audit", "x"]) == code


def test_names_are_completed_by_argcomplete_too(tmp_path):
    pytest.importorskip("argcomplete")
    for line, wanted in (("gsdnet au", {"audit"}), ("gsdnet ", set(COMMANDS))):
        out = tmp_path / "out"
        env = {**os.environ, "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(out), "COMP_LINE": line, "COMP_POINT": str(len(line))}
        subprocess.run([sys.executable, "-c", "import sys; sys.argv = ['gsdnet']; from gsdnet.cli import main; main()"], env=env, timeout=120)
        assert wanted <= {word.strip() for word in out.read_text().split()}


@pytest.fixture(scope="module")
def bash(tmp_path_factory):
    "An interactive bash that has read the script; `gsdnet` shows its words."
    pexpect, script = pytest.importorskip("pexpect"), tmp_path_factory.mktemp("shell") / "gsdnet.bash"
    done = subprocess.run([sys.executable, "-c", "import sys; from gsdnet.cli import main; sys.exit(main(['completion', 'bash']))"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    script.write_text(done.stdout)
    shell = pexpect.spawn("bash --norc --noprofile -i", encoding="utf8", timeout=60, dimensions=(40, 250))
    shell.sendline(f"source {script}; gsdnet() {{ echo \"GOT $*.\"; }}; cd {script.parent}; echo re''ady")
    shell.expect("ready\r\n")
    yield shell
    shell.close(force=True)


@pytest.mark.parametrize("typed, got", [
    ("bench", "benchmark"), ("inf", "info"), ("train talks --mode", "train talks --model"), ("train talks --model imder_f", "train talks --model imder_few"),
    ("train talks --training.wei", "train talks --training.weight_decay"), ("train talks --training.deterministic f", "train talks --training.deterministic false"),
    ("train talks --training.precision b", "train talks --training.precision bf16"), ("train talks --architecture.spectrum_from st", "train talks --architecture.spectrum_from structure"),
    ("evaluate run talks --split va", "evaluate run talks --split valid"), ("benchmark talks --models gsdnet,wide", "benchmark talks --models gsdnet,wide_twin"),
    ("benchmark talks --models gs", "benchmark talks --models gsdnet"), ("benchmark talks --protocols random,sp", "benchmark talks --protocols random,speaker"),
    ("benchmark talks --validation di", "benchmark talks --validation dialogue"), ("features calls --audio Com", "features calls --audio ComParE_2016"),
    ("convert files --layout mms", "convert files --layout mmsa"), ("audit talks --str", "audit talks --strict"), ("predict gsd", "predict gsdnet.bash"),
    ("predict run talks --masks gsd", "predict run talks --masks gsdnet.bash"), ("completion z", "completion zsh")])
def test_tab_in_a_real_shell(bash, typed, got):
    bash.send(f"gsdnet {typed}\t")
    bash.sendline("")
    bash.expect(r"GOT (.*?)\.\r\n")
    assert bash.match[1] == got


def test_completion_for_zsh_names_models_and_choices(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef gsdnet") and "(train valid test)" in script and "wide_twin" in script and "_files" in script


def test_help_shows_no_object_of_the_program(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit): cli.main([command, "--help"])
        assert "<function" not in (said := capsys.readouterr().out) and " object at 0x" not in said


def test_files_of_settings_and_what_follows_them(tmp_path):
    for name, line in {"how": "epochs: 1\nlr: 0.002\n", "shape": "width: 16\nlatent: 8\n"}.items(): (tmp_path / f"{name}.yaml").write_text(line)
    files = f"--training {tmp_path}/how.yaml --architecture {tmp_path}/shape.yaml --training.lr 0.001"
    assert cli.main(["train", "synthetic", "--run", str(tmp_path / "run"), *files.split()]) == 0
    run, shape = (json.loads((tmp_path / "run" / f"{name}.json").read_text()) for name in ("run", "config"))
    assert (shape["width"], shape["latent"]) == (16, 8) and '"lr": 0.001' in json.dumps(run) and '"epochs": 1' in json.dumps(run)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop: cli.main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"gsdnet {gsdnet.__version__}\n"
