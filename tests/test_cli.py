"The command line as a user meets it: five commands, refusals, a killed benchmark, data of other shapes."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from gsdnet import architectures, cli
from gsdnet.data import ConversationDataset, SyntheticConversations, load_dataset, save_dataset
from gsdnet.missing import MaskKit
from gsdnet.model import Recogniser
from gsdnet.sharing import from_pretrained

COLUMNS = ("dataset,protocol,rate,realised_rate,fold,seed,model,accuracy,weighted_f1,recovery_mse,recovery_cosine,epoch,epochs,"
           "seconds_per_epoch,utterances_per_second,parameters,mask_hash,data_hash,config_hash,commit,validation,test_mask,macro_f1,uar,nll,ece,split_hash").split(",")
CLOCK = ["seconds_per_epoch", "utterances_per_second"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PROGRAM = [sys.executable, "-c", "import sys; from gsdnet.cli import main; sys.exit(main())"]


def rows_of(folder):
    return pd.read_csv(Path(folder) / "results.csv", keep_default_na=True)


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    "A small data set in a folder."
    dataset = SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset()
    return save_dataset(dataset, tmp_path_factory.mktemp("data") / "talks")


@pytest.fixture(scope="module")
def kept(talks, tmp_path_factory):
    "A model trained by the program."
    run = tmp_path_factory.mktemp("runs") / "kept"
    assert cli.main(["train", str(talks), "--run", str(run), "--training.epochs", "1", "--architecture.latent", "16", "--seed", "2"]) == 0
    return run


def test_help_needs_no_torch():
    code = ("import sys\nfrom gsdnet.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
            "slow = {'torch', 'torch_geometric', 'matplotlib', 'sklearn', 'pandas'} & set(sys.modules)\nassert not slow, slow")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ["benchmark", "train", "evaluate", "predict", "info"])


def test_console_script_is_installed():
    script = Path(sys.executable).with_name("gsdnet")
    if not script.exists(): pytest.skip("the package was put on the path without installing it")
    done = subprocess.run([script, "info"], capture_output=True, text=True, env=ENV)
    assert done.returncode == 0 and "torch" in done.stdout and "gsdnet" in done.stdout


def test_train_keeps_a_model_and_its_record(kept, talks, capsys):
    record = json.loads((kept / "run.json").read_text())
    assert record["seed"] == 2 and record["history"]["epochs"] == 1 and record["missing_rate"] == "mixed"
    assert cli.read_run(kept).config.latent == 16
    assert cli.main(["train", str(talks), "--run", str(kept)]) == 2 and "holds a model already" in capsys.readouterr().err


def test_evaluate_and_predict_in_another_process(kept, talks, tmp_path, capsys):
    judge = ["evaluate", str(kept), str(talks), "--rates", "0,0.5", "--seeds", "2", "--json"]
    answer = ["predict", str(kept), str(talks), "--out"]
    code = f"from gsdnet.cli import main\nassert main({judge}) == 0\nassert main({[*answer, str(tmp_path / 'there.csv')]}) == 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout[:done.stdout.rindex("]") + 1])
    assert [(r["rate"], r["seed"]) for r in rows] == [(0, 0), (0, 1), (.5, 0), (.5, 1)]
    assert all(0 <= r["weighted_f1"] <= 1 for r in rows) and rows[0]["recovery_mse"] is None and rows[2]["recovery_mse"] > 0
    assert cli.main(judge) == 0
    here = json.loads(capsys.readouterr().out)
    for mine, theirs in zip(here, rows):
        assert {k: v for k, v in mine.items() if k not in CLOCK} == pytest.approx({k: v for k, v in theirs.items() if k not in CLOCK})
    assert cli.main([*answer, str(tmp_path / "here.csv")]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "here.csv"), pd.read_csv(tmp_path / "there.csv"), atol=2e-6)


def test_predict_writes_a_line_per_utterance(kept, talks, tmp_path):
    assert cli.main(["predict", str(kept), str(talks), "--out", str(tmp_path / "answers.csv")]) == 0
    answers, data = pd.read_csv(tmp_path / "answers.csv"), np.load(talks / "data.npz")
    assert sorted(answers["row"]) == list(range(len(data["label"])))
    assert abs(answers.filter(like="p_").sum(axis=1) - 1).max() < 1e-5
    assert (data["position"][answers["row"]] == answers["position"]).all()


# of those that are one class, one will do, and `rank_4` for what the configuration carries along
@pytest.mark.parametrize("name", sorted(set(architectures.MODELS) - {"rank_8", "rank_16", "imder_few", "wide_twin", "spectrum_observed", "spectrum_recovered"}))
def test_every_model_is_kept_and_read_back(name, talks, tmp_path):
    assert cli.main(["train", str(talks), "--run", str(tmp_path / "run"), "--model", name, "--training.epochs", "1",
                     "--architecture.n_steps", "2", "--architecture.denoiser_width", "8"]) == 0
    model = cli.read_run(tmp_path / "run")
    assert isinstance(model, Recogniser) and not model.training


def test_a_yaml_file_sets_any_option(talks, tmp_path):
    (tmp_path / "run.yaml").write_text("seed: 5\ntraining: {epochs: 1, lr: 0.01}\narchitecture: {latent: 8}\nmodel: zero_fill\n")
    assert cli.main(["train", str(talks), "--config", str(tmp_path / "run.yaml"), "--run", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run/run.json").read_text())["seed"] == 5
    assert cli.read_run(tmp_path / "run").config.latent == 8


@pytest.mark.parametrize("written, means", [
    ("models: [gsdnet, zero_fill]", {"models": "gsdnet,zero_fill"}), ("rates: [0, 0.3, 1e-1]", {"rates": "0,0.3,0.1"}), ("rates: 0.5", {"rates": "0.5"}),
    ("rates: 0,0.5", {"rates": "0,0.5"}), ("seeds: 4", {"seeds": 4}), ("seeds: [5, 6]", {"seeds": "5,6"}), ("seeds: '5,6'", {"seeds": "5,6"}),
    ("protocols: ['burst:4', random]", {"protocols": "burst:4,random"}), ("modalities: null", {"modalities": None}), ("data: [talks, synthetic]\nmodalities:\n- a\n- b", {"modalities": "a,b"}),
])
def test_lists_in_yaml_mean_what_they_mean_on_a_command_line(written, means, tmp_path):
    (tmp_path / "run.yaml").write_text(written + "\n")
    options = cli.parser("benchmark").parse_args(["benchmark", *([] if "data:" in written else ["talks"]), "--out", "runs", "--config", str(tmp_path / "run.yaml")]).benchmark
    assert {name: options[name] for name in means} == means


def test_a_mapping_in_yaml_means_pairs_and_a_rate_needs_no_quotes(tmp_path):
    (tmp_path / "run.yaml").write_text("columns: {transcript: said, speaker: who}\n")
    options = cli.parser("predict").parse_args(["predict", "run", "talks.csv", "--config", str(tmp_path / "run.yaml")]).predict
    assert cli.pairs(options.columns) == {"transcript": "said", "speaker": "who"}
    (tmp_path / "run.yaml").write_text("missing_rate: 0.3\n")
    assert cli.parser("train").parse_args(["train", "talks", "--run", "run", "--config", str(tmp_path / "run.yaml")]).train.missing_rate == "0.3"


@pytest.mark.parametrize("written", ["rates: [[0], 0.3]", "models: [true]", "models: ['gsdnet,zero_fill', bigru]", "modalities: [null]"])
def test_what_is_no_list_of_names_is_refused(written, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(written + "\n")
    with pytest.raises(SystemExit) as stop: cli.main(["benchmark", "talks", "--out", "runs", "--config", str(tmp_path / "run.yaml")])
    assert stop.value.code == 2 and "without a comma" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    ("benchmark nowhere --out OUT", "data.npz is missing"),
    ("benchmark TALKS --models gsdnet,grandmother --out OUT", "grandmother"),
    ("benchmark TALKS --rates 0.9 --out OUT", "unreachable"),
    ("benchmark TALKS --rates 0,,1 --out OUT", "numbers"),
    ("benchmark TALKS --modalities text,smell --out OUT", "smell"),
    ("benchmark TALKS --seeds 0 --out OUT", "seeds"),
    ("benchmark TALKS --seeds many --out OUT", "which, such as 5,6,7"),
    ("benchmark TALKS --folds 99 --out OUT", "folds"),
    ("benchmark TALKS --masks nowhere.npz --out OUT", "nowhere.npz"),
    ("benchmark TALKS TALKS --out OUT", "distinct names"),
    ("train TALKS --run OUT --missing_rate often", "numbers"),
    ("train TALKS --run OUT --missing_rate 0.3,0.5", "one number"),
    ("train TALKS --run OUT --training.epochs 0", "epochs"),
    ("train TALKS --run OUT --beside nowhere", "config.json"),
    ("train TALKS --run OUT --beside nowhere --model bigru", "finished model's"),
    ("train TALKS --run OUT --beside OUT", "another folder"),
    ("evaluate TALKS TALKS", "config.json"),
    ("predict nowhere TALKS --out OUT", "config.json"),
])
def test_refusals_are_one_line(words, said, talks, tmp_path, capsys):
    words = [str({"TALKS": talks, "OUT": tmp_path / "out"}.get(w, w)) for w in words.split()]
    try: code = cli.main(words)
    except SystemExit as stop: code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and said in error and "Traceback" not in error


@pytest.mark.parametrize("words", ["", "dance", "benchmark", "benchmark TALKS --out OUT --sedes 3",
                                   "train TALKS", "evaluate RUN", "train TALKS --run OUT --resume true"])
def test_wrong_options_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop: cli.main(words.split())
    assert stop.value.code == 2 and "error:" in capsys.readouterr().err


def test_benchmark_with_a_kit(talks, tmp_path, capsys):
    from gsdnet.data import load_dataset
    kit = MaskKit.draw(load_dataset(talks, ["audio", "text"]), [0, .25, .5], [0, 1])
    kit.save(tmp_path / "kit.npz")
    words = ["benchmark", str(talks), "--masks", str(tmp_path / "kit.npz"), "--models", "zero_fill", "--rates", "0.25,0.5", "--seeds", "2",
             "--epochs", "1", "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    frame = rows_of(tmp_path / "out")
    assert list(frame.columns) == COLUMNS and len(frame) == 4 and not frame[[c for c in COLUMNS if "recovery" not in c]].isna().any(axis=None)
    assert set(frame["mask_hash"]) == {kit.hash} and set(frame["dataset"]) == {"talks"} and "zero_fill" in capsys.readouterr().out
    assert abs(frame["realised_rate"] - frame["rate"]).max() < .05 and (tmp_path / "out/missing_rate.png").stat().st_size > 1000
    record = json.loads(next((tmp_path / "out/records").glob("*.json")).read_text())
    assert {"config", "data_hash", "mask_hash", "seed", "commit", "versions", "wall_seconds", "validation"} <= set(record)
    assert record["config"]["modalities"] == ["audio", "text"]
    words[words.index("2")] = "3"
    assert cli.main(words) == 2 and "seed 2" in capsys.readouterr().err


def test_json_wherever_results_are_printed(kept, talks, tmp_path, capsys):
    assert cli.main(["train", str(talks), "--run", str(kept), "--seed", "2", "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((kept / "run.json").read_text())
    assert cli.main(["train", str(talks), "--run", str(tmp_path / "run"), "--model", "zero_fill", "--training.epochs", "1", "--architecture.latent", "8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "run/run.json").read_text())
    assert cli.main(["benchmark", str(talks), "--models", "bigru", "--rates", "0", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 1 and list(rows[0]) == COLUMNS and rows[0]["model"] == "bigru" and (tmp_path / "out/missing_rate.png").exists()


def test_one_failing_cell_ends_in_exit_code_1(talks, tmp_path, capsys, monkeypatch):
    def broken(dataset): raise RuntimeError("not for these")
    monkeypatch.setitem(architectures.MODELS, "broken", broken)
    code = cli.main(["benchmark", str(talks), "--models", "broken,bigru", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert code == 1 and "broken" in said.err and "bigru" in said.out and set(rows_of(tmp_path)["model"]) == {"bigru"}


def test_folds_leave_whole_dialogues_out(talks, tmp_path):
    words = ["--models", "bigru", "--rates", "0", "--seeds", "1", "--epochs", "1", "--folds", "3", "--out", str(tmp_path)]
    assert cli.main(["benchmark", str(talks), *words]) == 0
    frame = rows_of(tmp_path)
    assert len(frame) == frame["fold"].nunique() == 3 and len(list(tmp_path.glob("masks-*.npz"))) == 3


def test_one_training_per_rate(talks, tmp_path):
    words = ["--models", "bigru", "--rates", "0,0.5", "--seeds", "1", "--epochs", "1", "--missing_rate", "per_rate", "--out", str(tmp_path)]
    assert cli.main(["benchmark", str(talks), *words]) == 0
    assert len(list((tmp_path / "records").glob("*.json"))) == len(rows_of(tmp_path)) == 2
    assert set(rows_of(tmp_path)["protocol"]) == {"random/per_rate"}


@pytest.mark.slow
def test_a_killed_benchmark_goes_on_with_what_is_missing(talks, tmp_path):
    words = ["benchmark", str(talks), "--models", "gsdnet,bigru", "--rates", "0,0.5", "--seeds", "4", "--epochs", "2", "--out"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*PROGRAM, *words, str(killed)], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = lambda: {p.name: p.stat().st_mtime_ns for p in (killed / "records").glob("*.json")}
    try:
        end = time.time() + 200
        while len(records()) < 2 and time.time() < end and process.poll() is None: time.sleep(.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    for leftover in killed.rglob("*.tmp"): os.utime(leftover, (0, 0)) # of a file being written when it was killed; swept when it is an hour old
    finished = records()
    assert 2 <= len(finished) < 8
    assert len(rows_of(killed)) <= 2 * len(finished) and not rows_of(killed).duplicated(["model", "seed", "rate"]).any()
    assert cli.main([*words, str(killed)]) == 0 and cli.main([*words, str(whole)]) == 0
    assert {name: stamp for name, stamp in records().items() if name in finished} == finished
    frame = rows_of(killed)
    assert len(frame) == 16 and not frame.duplicated(["model", "seed", "rate"]).any() and not list(killed.rglob("*.tmp"))
    pd.testing.assert_frame_equal(frame.drop(columns=CLOCK), rows_of(whole).drop(columns=CLOCK))


@pytest.mark.slow
def test_several_processes_give_the_same_rows(talks, tmp_path):
    words = ["benchmark", str(talks), "--models", "bigru", "--rates", "0,0.5", "--seeds", "2", "--epochs", "1"]
    assert cli.main([*words, "--out", str(tmp_path / "one")]) == 0 and cli.main([*words, "--jobs", "2", "--out", str(tmp_path / "two")]) == 0
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    steady = [c for c in COLUMNS if c not in CLOCK]
    pd.testing.assert_frame_equal(one[steady], two[steady], rtol=1e-5)


SHAPES = {
    "one modality, one speaker, two classes": dict(modalities=("text",), dims=(5,), length=(1, 5), n_speakers=(1, 1), n_classes=2),
    "two modalities, 1 to 400 utterances": dict(modalities=("a", "b"), dims=(3, 4), length=(1, 400), n_speakers=(1, 9), n_classes=3, n_dialogues=6),
    "three modalities, a score": dict(with_score=True),
    "five modalities, nine speakers, seven classes": dict(modalities=tuple("abcde"), dims=(2, 1, 3, 2, 4), n_speakers=(9, 9), n_classes=7),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_benchmark_on_data_of_other_shapes(shape, tmp_path):
    options = {"n_dialogues": 10, "length": (1, 6), "noise": .5, **SHAPES[shape]}
    dataset = SyntheticConversations(**options).dataset()
    if shape.startswith("two"):  # the ends of the range for certain
        sizes = [c.num_nodes for c in dataset]
        dataset = _with_lengths(dataset, {int(np.argmin(sizes)): 1})
    save_dataset(dataset, tmp_path / "data")
    assert cli.main(["benchmark", str(tmp_path / "data"), "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "out")]) == 0
    frame = rows_of(tmp_path / "out")
    assert set(frame["model"]) == {"gsdnet", "zero_fill", "bigru"}
    assert set(frame["rate"]) == ({0} if len(dataset.modalities) == 1 else {0, .3, .5})
    assert ("mae" in frame) == (dataset.task == "regression")
    steady = frame[["accuracy", "weighted_f1"] if dataset.task == "classification" else ["mae"]]
    assert np.isfinite(steady.to_numpy()).all()
    gsd = frame[(frame["model"] == "gsdnet") & (frame["rate"] > 0)]
    assert np.isfinite(gsd[["recovery_mse", "recovery_cosine"]].to_numpy()).all()


def _with_lengths(dataset, wanted):
    "The data set with some dialogues cut to a number of utterances."
    keep = torch.ones(dataset.n_utterances, dtype=torch.bool)
    for i, n in wanted.items(): keep[dataset[i].rows[n:]] = False
    arrays = {k: x[keep.numpy()] for k, x in dataset.arrays().items()}
    return ConversationDataset(arrays, dataset.modalities, label_names=dataset.label_names, name="cut")


def test_a_modality_absent_from_the_whole_split_and_no_validation(tmp_path):
    dataset = SyntheticConversations(n_dialogues=10, length=(2, 5)).dataset()
    arrays = dataset.arrays()
    arrays["visual_present"] = (arrays["split"] != 2).astype(np.uint8)
    arrays["split"] = np.where(arrays["split"] == 1, 0, arrays["split"])
    save_dataset(ConversationDataset(arrays, dataset.modalities, label_names=dataset.label_names), tmp_path / "data")
    words = ["--models", "gsdnet", "--rates", "0,0.3", "--seeds", "1", "--epochs", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["benchmark", str(tmp_path / "data"), *words]) == 0
    record = json.loads(next((tmp_path / "out/records").glob("*.json")).read_text())
    assert "cut by seed" in record["validation"] and record["valid_dialogues"] >= 1


def test_a_recovery_is_trained_beside_a_finished_model_without_labels(talks, tmp_path, capsys):
    data = load_dataset(talks)
    bare = data.arrays()
    bare.pop("label")
    save_dataset(ConversationDataset(bare, data.modalities), tmp_path / "bare")
    run = lambda *words: cli.main(["train", *map(str, words), "--training.epochs", "1"])
    assert run(talks, "--run", tmp_path / "given", "--model", "zero_fill", "--missing_rate", "0", "--architecture.latent", "8") == 0
    assert run(tmp_path / "bare", "--run", tmp_path / "helped", "--beside", tmp_path / "given") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2].startswith("added_recovery: epoch 1 of 1, kept in") and out[3].endswith("validation: none, as nothing is labelled")
    record = json.loads((tmp_path / "helped/run.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert record["model"] == "added_recovery" and record["history"]["valid_score"] is None
    given, helped = (from_pretrained(tmp_path / name) for name in ("given", "helped"))
    assert helped.temperature == given.temperature and helped.made_with["recogniser"] == json.loads((tmp_path / "given/config.json").read_text())["weights"]
    assert np.array_equal(given.predict(data.test).probabilities, helped.predict(data.test).probabilities)
    assert run(talks, "--run", tmp_path / "judged", "--beside", tmp_path / "given") == 0 # with labels: validated and calibrated
    assert json.loads((tmp_path / "judged/run.json").read_text())["history"]["valid_score"] > 0
    assert json.loads((tmp_path / "judged/run.json").read_text())["validation"] == "as given"
    assert run(tmp_path / "bare", "--run", tmp_path / "helped", "--beside", tmp_path / "." / "given", "--resume") == 0 # by whatever path
    assert run(talks, "--run", tmp_path / "other", "--model", "zero_fill", "--architecture.latent", "8") == 0
    capsys.readouterr()
    assert run(tmp_path / "bare", "--run", tmp_path / "helped", "--beside", tmp_path / "other", "--resume") == 2 and "recogniser" in capsys.readouterr().err
    (tmp_path / "given/run.json").unlink()
    shutil.rmtree(tmp_path / "given/checkpoints", ignore_errors=True) # as it comes from another place
    assert run(talks, "--run", tmp_path / "given", "--resume") == 2 and "holds a model already" in capsys.readouterr().err
