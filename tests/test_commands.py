"""The commands that README and pages tell their reader to type.

A command on a page stands in a `%%sh` cell, which `nbdev_test` runs with the page, or in a fenced `sh` block, which is run here in a
folder of its own. What is only named, in a line of prose, has to be understood by the parser.
"""
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gsdnet import cli

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "nbs").glob("*.ipynb"))
TUTORIALS = [p for p in PAGES if re.match("2[4-8]_", p.name)]
FENCE = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
NAMED = re.compile(r"`(gsdnet [a-z]+ [^`]+)`")
RUNNER = """
import json
from execnb.shell import CaptureShell
shell = CaptureShell()
for step in json.load(open("steps.json")):
    shell.run(step)
    if shell.exc: raise SystemExit(f"{step}\\n{type(shell.exc).__name__}: {shell.exc}")
"""
SHORT = {"benchmark": "--epochs 1 --seeds 1", "train": "--training.epochs 1"} # the last of two values of an option counts


def cells(page, kind):
    return [c.source for c in nbformat.read(page, as_version=4).cells if c.cell_type == kind]


def commands(script):
    "The calls of gsdnet in a script, as words: without comments, without what follows a pipe, and OUTPUT for that of another command."
    plain = re.sub(r'"\$\(.*\)"', "OUTPUT", re.sub(r"\\\n\s*", "", script))
    return [shlex.split(call, comments=True) for call in re.findall(r"(?:^|&& )(gsdnet [^|&;>\n]*)", plain, re.M)]


def told(page):
    "All calls that a page tells its reader."
    if page.suffix == ".md": return [c for block in FENCE.findall(page.read_text(encoding="utf-8")) for c in commands(block)]
    prose = "\n".join(cells(page, "markdown"))
    named = [call for call in NAMED.findall(FENCE.sub("", prose)) if "..." not in call]
    scripts = [*FENCE.findall(prose), *(c for c in cells(page, "code") if c.startswith("%%sh")), *named]
    return [call for script in scripts for call in commands(script)]


CALLS = sorted({(page.name, shlex.join(call)) for page in [ROOT / "README.md", *PAGES] for call in told(page)})


def run(script, folder):
    "Run a script as a reader would: a shell, in a folder, with the program on the path; its output."
    program = folder / ".program"
    program.mkdir(exist_ok=True)
    (program / "gsdnet").write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; from gsdnet.cli import main; sys.exit(main())" "$@"\n')
    (program / "gsdnet").chmod(0o755)
    path = os.pathsep.join([str(program), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(["sh", "-e", "-c", script], cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_commands_are_found():
    "The page of the command line, the tutorials and README are full of them: if not, the search is wrong."
    found = [page for page, _ in CALLS]
    assert found.count("README.md") >= 4 and found.count("24_quickstart.ipynb") >= 4 and found.count("25_own_conversations.ipynb") >= 5
    script = 'gsdnet audit a && gsdnet evaluate b \\\n  c | grep d\ngsdnet info --json "$(x; y)" # z'
    assert commands(script) == ["gsdnet audit a".split(), "gsdnet evaluate b c".split(), "gsdnet info --json OUTPUT".split()]


@pytest.mark.parametrize("page, call", CALLS)
def test_every_command_on_a_page_is_understood(page, call):
    words = shlex.split(call)[1:]
    assert words[0] in cli.COMMANDS, f"{page}: {call}"
    try: cli.parser(words[0]).parse_args(words)
    except SystemExit as stop: assert not stop.code, f"{page}: {call}"


@pytest.mark.slow
def test_readme_by_its_own_words(tmp_path, monkeypatch):
    "README's commands, one after the other in an empty folder, with one epoch and one seed; the tutorials' run in a shell."
    script = "".join(FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    lines = [shlex.split(line, comments=True) for line in script.splitlines()]
    assert {line[0] for line in lines} == {"make", "gsdnet"}
    calls = [line for line in lines if line[0] == "gsdnet"]
    monkeypatch.chdir(tmp_path)
    for call in calls: assert cli.main([*call[1:], *SHORT.get(call[1], "").split()]) == 0, call
    assert set(pd.read_csv(tmp_path / "runs/demo/results.csv")["model"]) == {"gsdnet", "zero_fill", "bigru"}
    answers = pd.read_csv(tmp_path / "answers.csv")
    assert abs(answers.filter(like="p_").sum(axis=1) - 1).max() < 1e-5 and (tmp_path / "runs/mine/run.json").exists()


def test_make_run_is_the_benchmark_of_the_readme():
    "What `make run` would do, without doing it, is the line that README shows, on two processes."
    make = subprocess.run(["make", "-n", "--no-print-directory", "run"], cwd=ROOT, capture_output=True, text=True)
    assert make.returncode == 0, make.stderr
    made = shlex.split(make.stdout.splitlines()[-1])
    shown = next(call for call in told(ROOT / "README.md") if call[1] == "benchmark")
    jobs = made.index("--jobs")
    assert Path(made[0]).name == "gsdnet" and [*made[1:jobs], *made[jobs + 2:]] == shown[1:]


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in TUTORIALS if FENCE.search("\n".join(cells(p, "markdown")))], ids=lambda p: p.stem)
def test_tutorial_by_its_own_words(page, tmp_path):
    "The fenced commands of a tutorial at the place where they stand: after the cells before them, in the page's folder."
    pytest.importorskip("execnb")
    fences = FENCE.findall("\n".join(cells(page, "markdown")))
    for name in re.findall(r"import (\w+)", "".join(fences)):
        if not importlib.util.find_spec(name): pytest.skip(f"{name} is not installed, which a command of this page needs")
    if "--text" in "".join(fences): pytest.importorskip("sentence_transformers", reason="pip install 'gsdnet[features]'")
    steps = []
    for cell in nbformat.read(page, as_version=4).cells:
        if cell.cell_type == "markdown": steps += [f"%%sh\n{block}" for block in FENCE.findall(cell.source)]
        elif cell.cell_type == "code" and "#| eval: false" not in cell.source: steps.append(cell.source)
    while steps[-1].removeprefix("%%sh\n") not in fences: steps.pop()
    (tmp_path / "steps.json").write_text(json.dumps(steps))
    (tmp_path / "page.py").write_text(RUNNER)
    run(f"{shlex.quote(sys.executable)} page.py", tmp_path)
