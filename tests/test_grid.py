"A grid whose workers are killed: no row is lost, none is doubled, here and on a Dask cluster."
import os
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gsdnet.baselines import bigru
from gsdnet.benchmark import Benchmark, run
from gsdnet.data import SyntheticConversations
from gsdnet.trainer import TrainConfig

CLOCK = ["seconds_per_epoch", "utterances_per_second"]
TALKS = dict(n_dialogues=15, length=(3, 6), seed=3)


def grid(out, model=bigru, **options):
    "Six trainings of an epoch, each judged at two rates."
    return Benchmark((SyntheticConversations(**TALKS).dataset(),), {"bigru": model}, Path(out), rates=(0., .5), seeds=6,
                     config=TrainConfig(epochs=1), **options)


class Deadly:
    "The bi-GRU, but a worker that starts a training when two are finished is killed as by the system, the first `times` times."
    def __init__(self, out, times=1): self.out, self.times, self.parent = Path(out), times, os.getpid()

    def __call__(self, dataset):
        dead = len(list(self.out.glob("dead-*")))
        if os.getpid() != self.parent and dead < self.times and len(list(self.out.glob("records/*.json"))) >= 2:
            (self.out / f"dead-{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return bigru(dataset)


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    "The table of a run in this process."
    return run(grid(tmp_path_factory.mktemp("serial")))


def same(frame, serial, out, dead=1):
    "Every row once, as in the serial run; the file says the same; workers did die."
    steady = [c for c in serial.columns if c not in CLOCK]
    assert len(list(Path(out).glob("dead-*"))) == dead and frame.attrs["failures"] == []
    assert len(frame) == 12 and not frame.duplicated(["seed", "rate"]).any() and np.isfinite(frame[CLOCK]).all(axis=None)
    pd.testing.assert_frame_equal(frame[steady], serial[steady], rtol=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv(Path(out) / "results.csv")[["seed", "rate"]], serial[["seed", "rate"]])
    assert not list(Path(out).glob("records/*.error.txt"))


@pytest.mark.slow
def test_a_killed_process_is_replaced(serial, tmp_path, capsys):
    same(run(grid(tmp_path, Deadly(tmp_path), jobs=2)), serial, tmp_path)
    assert "started again" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_that_always_kills_its_process_is_named_and_the_rest_kept(tmp_path):
    frame = run(grid(tmp_path, Deadly(tmp_path, times=99), jobs=2))
    assert frame.attrs["failures"] and all("killed" in why for _, why in frame.attrs["failures"])
    assert len(frame) + 2 * len(frame.attrs["failures"]) == 12 and len(frame) >= 4
    assert run(grid(tmp_path, jobs=1))["seed"].nunique() == 6


@pytest.mark.slow
def test_a_dask_cluster_loses_a_worker_but_no_row(serial, tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason="pip install 'gsdnet[cluster]'")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        before = {w.pid for w in cluster.workers.values()}
        same(run(grid(tmp_path, Deadly(tmp_path), cluster=cluster.scheduler_address)), serial, tmp_path)
    assert len(before) == 2 and {int(p.name.split("-")[1]) for p in tmp_path.glob("dead-*")} <= before


@pytest.mark.slow
def test_a_cluster_of_its_own_by_one_option(serial, tmp_path):
    pytest.importorskip("dask.distributed", reason="pip install 'gsdnet[cluster]'")
    same(run(grid(tmp_path, jobs=2, cluster="local")), serial, tmp_path, dead=0)


def test_workers_with_several_threads_are_refused(tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason="pip install 'gsdnet[cluster]'")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(ValueError, match="nthreads 1"): run(grid(tmp_path, cluster=cluster.scheduler_address))


def test_without_dask_the_option_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dask.distributed", None)
    with pytest.raises(ValueError, match=r"gsdnet\[cluster\]"): run(grid(tmp_path, cluster="local"))
