"""Nothing is lost: killed at any moment, a training goes on bit for bit; damaged, half-written and foreign checkpoints, a full disk, signals."""
import builtins
import errno
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from gsdnet import checkpoint, cli
from gsdnet.architectures import MODELS
from gsdnet.checkpoint import Checkpoints
from gsdnet.data import SyntheticConversations, save_dataset
from gsdnet.trainer import Interrupted, TrainConfig, Trainer, fit

torch.set_num_threads(1) # as the processes that are killed
SMALL = dict(width=16, denoiser_width=16, hidden=16, latent=8, n_samples=2)
CONFIG = TrainConfig(epochs=3, batch_size=2, choose_from=0.7, checkpoint_every=2)
DATA = dict(n_dialogues=10, length=(2, 5), seed=3)
CLOCK = ("seconds_per_epoch", "utterances_per_second")
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
PROGRAM = [sys.executable, "-c", "import sys; from gsdnet.cli import main; sys.exit(main())"]
# a process that has imported everything forks the ones that are killed
ZYGOTE = multiprocessing.get_context("forkserver")
ZYGOTE.set_forkserver_preload(["gsdnet.trainer", "gsdnet.cli", "gsdnet.architectures", "pytest"])


def train(run=None, resume=False, config=CONFIG, data=DATA, model="gsdnet", **options):
    "One training of all in this file."
    return fit(SyntheticConversations(**data).dataset(), model=lambda d: MODELS[model](d, **SMALL), config=config, progress=False, run=run,
               resume=resume, **{"missing_rate": .4, **options})


def finish(run, resume=False, death=None):
    "A training in a process of its own, which may be told at which byte of its writing it dies."
    torch.set_num_threads(1)
    if death is not None: die_writing(*death)
    model = train(run, resume)
    model.save_pretrained(run)
    history = {k: v for k, v in model.history.items() if k not in CLOCK}
    checkpoint.write_whole(Path(run) / "history.json", json.dumps(history))


def die_writing(number, share):
    "Die in the n-th file that is written: at a share of its bytes, or (2) before its rename, or (3) after it."
    count, move = iter(range(10 ** 6)), os.replace

    class Deadly(io.FileIO):
        def write(self, data):
            if next(count) < number: return super().write(data)
            if share <= 1: super().write(data[:int(share * len(data))])
            else: super().write(data)
            if share < 2: os.kill(os.getpid(), signal.SIGKILL)
            os.replace = (lambda a, b: os.kill(os.getpid(), signal.SIGKILL)) if share == 2 else (
                lambda a, b: (move(a, b), os.kill(os.getpid(), signal.SIGKILL)))
    checkpoint.open = lambda path, mode: Deadly(path, mode)


def process(*arguments):
    child = ZYGOTE.Process(target=finish, args=arguments)
    child.start()
    return child


def same(a, b):
    "Two runs left the same weights, bit for bit, and the same history."
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert (a / "history.json").read_text() == (b / "history.json").read_text()
    rows = [[{k: v for k, v in row.items() if "second" not in k} for row in log(run) if "epoch" in row] for run in (a, b)]
    assert rows[0] == rows[1]


def log(run): return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def weights(model): return torch.cat([x.flatten().double() for x in model.state_dict().values()])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    "The training that nobody stopped, and the seconds between its first and its last write."
    run = tmp_path_factory.mktemp("whole") / "run"
    process(str(tmp_path_factory.mktemp("warm") / "run")).join()
    begin = time.time()
    child = process(str(run))
    while not (run / "log.jsonl").exists(): time.sleep(.002)
    first = time.time() - begin
    child.join()
    assert child.exitcode == 0
    return run, first, time.time() - begin


def killed(run, wait=None, death=None):
    "Start a training and kill it after some seconds, or in its own writing."
    child = process(str(run), False, death)
    if wait is not None:
        child.join(wait)
        child.kill()
    child.join(60)
    return child.exitcode


def resumed(run, whole):
    child = process(str(run), True)
    child.join(60)
    assert child.exitcode == 0
    same(run, whole)


MOMENTS = [float(x) for x in np.random.default_rng(7).uniform(size=12)]


@pytest.mark.parametrize("share", MOMENTS, ids=lambda x: f"{x:.2f}")
def test_killed_at_a_random_moment(whole, tmp_path, share):
    run, first, seconds = whole
    killed(tmp_path / "run", wait=first * .5 + share * (seconds - first * .5))
    resumed(tmp_path / "run", run)


@pytest.mark.parametrize("number, share", [(0, .5), (2, 0.), (4, .3), (5, .9), (6, .5), (9, 2), (13, 3), (16, 1.), (20, .7), (22, 2)])
def test_killed_in_a_write(whole, tmp_path, number, share):
    assert killed(tmp_path / "run", death=(number, share)) == -signal.SIGKILL
    resumed(tmp_path / "run", whole[0])
    assert not list((tmp_path / "run/checkpoints").glob("*.tmp")) and len(Checkpoints(tmp_path / "run/checkpoints").steps) == 2


@pytest.mark.slow
def test_the_command_is_killed_and_resumed(tmp_path, capsys):
    talks = save_dataset(SyntheticConversations(**DATA).dataset(), tmp_path / "talks")
    words = ["train", str(talks), "--training.epochs", "6", "--training.batch_size", "2", "--architecture.latent", "8", "--architecture.width", "16"]
    assert cli.main([*words, "--run", str(tmp_path / "whole")]) == 0
    child = subprocess.Popen([*PROGRAM, *words, "--run", str(tmp_path / "cut")], env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 200
    while len(list((tmp_path / "cut").glob("checkpoints/*.sha256"))) < 2 and time.time() < end and child.poll() is None: time.sleep(.002)
    child.kill()
    child.wait()
    assert cli.main([*words, "--run", str(tmp_path / "cut")]) == 2 and "--resume" in capsys.readouterr().err
    again = subprocess.run([*PROGRAM, *words, "--run", str(tmp_path / "cut"), "--resume"], capture_output=True, text=True, env=ENV, timeout=300)
    assert again.returncode == 0 and "goes on after step" in again.stderr, again.stderr
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    histories = [json.loads((tmp_path / name / "run.json").read_text())["history"] for name in ("whole", "cut")]
    assert [{k: v for k, v in h.items() if k not in CLOCK} for h in histories][0] == {k: v for k, v in histories[1].items() if k not in CLOCK}


def test_resume_on_the_command_line(tmp_path, capsys):
    talks = str(save_dataset(SyntheticConversations(**DATA).dataset(), tmp_path / "talks"))
    words = ["train", talks, "--run", str(tmp_path / "run"), "--training.epochs", "1", "--model", "zero_fill"]
    assert cli.main([*words, "--resume"]) == 0 and "starts anew" in capsys.readouterr().err
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert cli.main([*words, "--resume"]) == 0 and "is finished" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before
    assert cli.main(words) == 2 and "holds a model already" in capsys.readouterr().err
    (tmp_path / "run/run.json").unlink()  # killed between the last epoch and the record
    assert cli.main([*words, "--resume"]) == 0 and "kept in" in capsys.readouterr().out


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    "A run whose plug was pulled in its eighth step of nine: checkpoints of steps 4 and 6 stand."
    step = Trainer.step

    def plug(self, talks):
        if self.step_count == 7: raise RuntimeError("the plug")
        return step(self, talks)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", plug)
        with pytest.raises(RuntimeError, match="the plug"): train(tmp_path / "run")
    assert Checkpoints(tmp_path / "run/checkpoints").steps == [6, 4]
    return tmp_path / "run"


@pytest.fixture(scope="module")
def uninterrupted(): return train()


@pytest.mark.parametrize("part", ["safetensors", "json", "sha256"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "empty"])
def test_a_damaged_checkpoint_is_left_out_and_said(stopped, uninterrupted, capsys, part, damage):
    path = stopped / f"checkpoints/step-00000006.{part}"
    data = bytearray(path.read_bytes())
    if damage == "flipped": data[len(data) // 3] ^= 4
    if damage == "missing": path.unlink()
    else: path.write_bytes(data[:{"truncated": len(data) // 2, "flipped": len(data), "empty": 0}[damage]])
    model = train(stopped, resume=True)
    said = capsys.readouterr().err
    assert "checkpoint of step 6 is left out: step-00000006" in said and "goes on after step 4" in said
    assert any("step 6 is left out" in line.get("note", "") for line in log(stopped))
    assert torch.equal(weights(model), weights(uninterrupted))


def test_all_damaged_starts_anew_and_says_so(stopped, uninterrupted, capsys):
    for path in stopped.rglob("*.sha256"): path.write_text("")
    assert torch.equal(weights(train(stopped, resume=True)), weights(uninterrupted))
    assert "starts anew" in capsys.readouterr().err


@pytest.mark.parametrize("change, said", [
    (dict(config=replace(CONFIG, lr=.1)), "training.lr is 0.1, was 0.0015"),
    (dict(data={**DATA, "seed": 5}), "data is"), (dict(seed=3), "seed is 3, was 0"), (dict(missing_rate=.2), "protocol is"),
    (dict(model="zero_fill"), "architecture.recover is False, was True"), (dict(model="bigru"), "model is 'MaskedGRU', was 'GSDNet'"),
])
def test_a_checkpoint_of_something_else_is_refused(stopped, change, said):
    before = sorted(p.name for p in stopped.rglob("*"))
    with pytest.raises(ValueError, match="other data or settings") as error: train(stopped, resume=True, **change)
    assert said in str(error.value) and sorted(p.name for p in stopped.rglob("*")) == before


def test_a_run_is_not_overwritten_and_resume_needs_a_folder(stopped):
    with pytest.raises(ValueError, match="come to step 6.*--resume"): train(stopped)
    with pytest.raises(ValueError, match="run=folder"): train(resume=True)
    (stopped / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be used"): train(stopped / "file")


def test_settings_that_shape_nothing_may_change(stopped, uninterrupted):
    model = train(stopped, resume=True, config=replace(CONFIG, checkpoint_every=None))
    assert torch.equal(weights(model), weights(uninterrupted))


class Full:
    "A disk that fills up after so many bytes, and is emptied after so many refusals."
    def __init__(self, room, refusals): self.room, self.refusals, self.refused = room, refusals, 0

    def __call__(self, path, mode):
        disk, file = self, builtins.open(path, mode)
        write = file.write

        class Wrapped:
            def __getattr__(self, name): return getattr(file, name)
            def __enter__(self): return self
            def __exit__(self, *why): file.close()

            def write(self, data):
                if disk.room < len(data) and disk.refused < disk.refusals:
                    write(data[:max(0, disk.room)])
                    disk.refused += 1
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.room -= len(data)
                return write(data)
        return Wrapped()


@pytest.mark.parametrize("seed", range(6))
def test_a_full_disk_is_survived(tmp_path, uninterrupted, monkeypatch, capsys, seed):
    draw = random.Random(seed)
    disk = Full(draw.randrange(400_000), draw.choice([1, 2, 5, 1000]))
    monkeypatch.setattr(checkpoint, "open", disk, raising=False)
    assert torch.equal(weights(train(tmp_path / "run")), weights(uninterrupted))
    said = capsys.readouterr().err
    assert disk.refused and "No space left" in said
    kept = Checkpoints(tmp_path / "run/checkpoints")
    assert not list(tmp_path.rglob("*.tmp"))
    if disk.refusals > 5:  # what was written before the disk was full is whole
        assert all(kept.read(step) for step in kept.steps if kept.path(step, "sha256").exists())
    monkeypatch.undo()
    assert torch.equal(weights(train(tmp_path / "run", resume=True)), weights(uninterrupted))


def test_a_disk_that_is_truly_full(tmp_path, uninterrupted, capsys):
    "The operating system itself refuses to let a file grow."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try: model = train(tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
    assert torch.equal(weights(model), weights(uninterrupted)) and "File too large" in capsys.readouterr().err
    assert not Checkpoints(tmp_path / "run/checkpoints").newest()[0] and not list(tmp_path.rglob("*.tmp"))


def test_a_folder_that_becomes_read_only(tmp_path, uninterrupted, monkeypatch, capsys):
    def refuse(path, mode):
        if ".probe" in str(path): return open(path, mode) # it could be written when training began
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    assert torch.equal(weights(train(tmp_path / "run")), weights(uninterrupted))
    assert "Read-only file system" in capsys.readouterr().err


def test_a_folder_that_is_read_only_is_found_out_before_training(tmp_path, monkeypatch):
    def refuse(path, mode): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(checkpoint, "open", refuse, raising=False)
    with pytest.raises(ValueError, match="cannot be used .*Read-only.*choose another"): train(tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_step_be_finished(tmp_path, uninterrupted, monkeypatch, number):
    step, handlers = Trainer.step, [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]

    def interrupted(self, talks):
        if self.step_count == 4: os.kill(os.getpid(), number)
        return step(self, talks)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(Interrupted, match="after step 5 of 9.*checkpoint of step 5.*--resume") as stop: train(tmp_path / "run")
    assert stop.value.signal == number and [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert torch.equal(weights(train(tmp_path / "run", resume=True)), weights(uninterrupted))


def test_the_command_says_how_a_stopped_run_goes_on(tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def interrupted(self, talks):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, talks)
    monkeypatch.setattr(Trainer, "step", interrupted)
    assert cli.main(["train", "synthetic", "--run", str(tmp_path / "run"), "--model", "bigru"]) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step 1 of" in capsys.readouterr().err


def test_a_benchmark_that_is_told_to_end_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    before, step, seen = signal.getsignal(signal.SIGTERM), Trainer.step, []

    def interrupted(self, talks):
        seen.append(self)
        if len({id(trainer) for trainer in seen}) == 2: os.kill(os.getpid(), signal.SIGTERM)
        return step(self, talks)
    command = ["benchmark", "synthetic", "--models", "bigru", "--seeds", "2", "--rates", "0.3", "--epochs", "1", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        assert cli.main(command) == 128 + signal.SIGTERM
    assert "the same command goes on" in capsys.readouterr().err and signal.getsignal(signal.SIGTERM) is before
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert cli.main(command) == 0 and len(pd.read_csv(tmp_path / "results.csv")) == 2
    assert kept and all(path.stat().st_mtime_ns == when for path, when in kept.items())


def test_nothing_that_is_kept_is_a_pickle(stopped):
    found = [p for p in stopped.rglob("*") if p.is_file()]
    assert {p.suffix for p in found} == {".safetensors", ".json", ".sha256", ".jsonl"}
    for path in found:
        if path.suffix == ".safetensors": assert load_file(path)
        if path.suffix == ".json": json.loads(path.read_text())
    assert subprocess.run(["sha256sum", "--check", "--quiet", "step-00000006.sha256"], cwd=stopped / "checkpoints").returncode == 0
    shutil.rmtree(stopped)


def test_memory_of_the_caller_is_left_alone(tmp_path):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    train(tmp_path / "run", config=replace(CONFIG, epochs=1))
    train(tmp_path / "run", config=replace(CONFIG, epochs=1), resume=True)
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
