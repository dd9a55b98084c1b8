"""Several processes train what one would: a real `torchrun` of two over gloo, with shares that do not come out even."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gsdnet.architectures import MODELS
from gsdnet.data import SyntheticConversations, save_dataset
from gsdnet.trainer import TrainConfig, fit

STILL = dict(width=16, latent=8, hidden=16, denoiser_width=16, n_samples=2, encoder_dropout=0, dropout=0, path_drop=0)
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--"]
TRAIN = """
import json, sys
from accelerate import PartialState
from gsdnet.architectures import MODELS
from gsdnet.cli import main
from gsdnet.data import SyntheticConversations
from gsdnet.trainer import TrainConfig, fit
out, jobs, command = sys.argv[1], *map(json.loads, sys.argv[2:])
for i, job in enumerate(jobs):
    data = SyntheticConversations(**job["data"]).dataset()
    model = fit(data, model=lambda d: MODELS[job["model"]](d, **job["architecture"]), missing_rate=job["rate"],
                config=TrainConfig(**job["training"]), run=f"{out}/{i}", progress=False)
    model.save_pretrained(f"{out}/{i}/rank{PartialState().process_index}")
sys.exit(main(command))
"""


def job(model="gsdnet", rate="mixed", data=(), **training):
    "Five dialogues in batches of three, which two processes share 2 + 1 and 1 + 1."
    data = {**dict(n_dialogues=8, length=(2, 7), seed=4), **dict(data)}
    architecture = STILL if model in ("gsdnet", "zero_fill") else dict(width=16, encoder_dropout=0, dropout=0)
    return dict(model=model, rate=rate, data=data, architecture=architecture, training={**dict(epochs=3, batch_size=3, choose_from=0.7), **training})


JOBS = [job(), job(accumulate=2), job("zero_fill", 0.4), job("bigru"), job(data={"with_score": True}), job(batch_size=2, checkpoint_every=1),  # 2, 2, 1: a process without a share
        job(data={"length": (1, 1)}, rate=0.0)]


def alone(job, **training):
    "The same job in this process."
    data = SyntheticConversations(**job["data"]).dataset()
    return data, fit(data, model=lambda d: MODELS[job["model"]](d, **job["architecture"]), missing_rate=job["rate"],
                     config=TrainConfig(**{**job["training"], **training}), progress=False)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    "The folder that two processes leave: the jobs, and a training by the program."
    out = tmp_path_factory.mktemp("together")
    save_dataset(SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset(), out / "talks")
    done = subprocess.run([*TORCHRUN, write(out / "train.py", TRAIN), str(out), json.dumps(JOBS), json.dumps(command(out, "whole"))],
                          capture_output=True, text=True, env=ENV, timeout=300)
    assert done.returncode == 0 and done.stdout.count("kept in") == 1, done.stderr[-3000:]
    return out


def command(out, run):
    "The words of a training by the program."
    return ["train", str(out / "talks"), "--training.epochs", "4", "--training.batch_size", "4", "--architecture.latent", "8", "--run", str(out / run)]


def write(path, text):
    path.write_text(text)
    return str(path)


def numbers(row): return {k: -9.0 if v is None else v for k, v in row.items()}


def near(row): return pytest.approx(numbers(row), rel=1e-4, abs=1e-6)


def log(folder): return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("i", range(len(JOBS)), ids=lambda i: f"{JOBS[i]['model']}-{i}")
def test_two_processes_equal_one(together, i):
    data, model = alone(JOBS[i], accumulate=1, checkpoint_every=None)
    rows, mine = log(together / str(i)), model.history["log"]
    assert len(rows) == len(mine) == 3
    for row, one in zip(rows, mine):
        assert numbers({k: row[k] for k in one}) == near(one)
        assert row["utterances"] == sum(c.num_nodes for c in data.train)
    ranks = [load_file(together / f"{i}/rank{rank}/model.safetensors") for rank in (0, 1)]
    for name, x in model.state_dict().items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        # single-step signs of near-zero gradients may differ: AdamW moves by at most the rate in each of 6 steps
        torch.testing.assert_close(ranks[0][name], x, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("accumulate", [2, 3, 7])
def test_a_batch_in_parts_equals_the_whole(accumulate):
    (data, whole), (_, parts) = alone(JOBS[0]), alone(JOBS[0], accumulate=accumulate)
    for a, b in zip(whole.history["log"], parts.history["log"]): assert numbers(a) == near(b)
    for a, b in zip(whole.parameters(), parts.parameters()): torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_a_term_that_is_unknown_is_refused_in_shares():
    data = SyntheticConversations(**JOBS[0]["data"]).dataset()

    def strange(dataset):
        model = MODELS["bigru"](dataset, width=16)
        terms = model.loss
        model.loss = lambda *inputs: {"odd": terms(*inputs)["masked"]}
        return model
    fit(data, model=strange, config=TrainConfig(epochs=1), progress=False)
    with pytest.raises(ValueError, match="odd.*loss_counts"): fit(data, model=strange, config=TrainConfig(epochs=1, accumulate=2), progress=False)


@pytest.mark.slow
def test_the_command_in_two_processes_and_a_signal(together, tmp_path):
    "`torchrun` of the program: one writes; a stopped run goes on, its rows those of a run that never stopped."
    script = write(tmp_path / "program.py", "import faulthandler, sys\nfaulthandler.enable()\nfrom gsdnet.cli import main\nsys.exit(main())\n")
    plug = write(tmp_path / "plug.py", "import sys, os, signal\nfrom gsdnet.trainer import Trainer\nfrom gsdnet.cli import main\nwhole = Trainer.step\n"
                 "def step(self, talks):\n    if self.step_count == 4 and os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGTERM)\n"
                 "    return whole(self, talks)\nTrainer.step = step\nsys.exit(main())\n")
    stopped = subprocess.run([*TORCHRUN, plug, *command(together, "cut")], capture_output=True, text=True, env=ENV, timeout=300)
    assert stopped.returncode != 0 and "stopped by SIGTERM after step 5" in stopped.stderr, stopped.stderr[-3000:]
    assert "checkpoint of step 5" in stopped.stderr
    again = subprocess.run([*TORCHRUN, script, *command(together, "cut"), "--resume"], capture_output=True, text=True, env=ENV, timeout=300)
    assert again.returncode == 0 and "goes on after step 5" in again.stderr, again.stderr[-3000:]
    a, b = (load_file(together / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [row for row in log(together / "cut") if "epoch" in row]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4] and np.allclose([r["loss"] for r in rows], [r["loss"] for r in log(together / "whole")])
