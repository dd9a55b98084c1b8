"Protocols on their way through the grid, data with entries never recorded, and the paired statistics, by properties and oracles."
import hashlib
import importlib.util
import itertools
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gsdnet import benchmark as grid
from gsdnet.baselines import bigru, zero_fill
from gsdnet.data import ConversationDataset, SyntheticConversations, never_recorded
from gsdnet.missing import FixedMissing, MaskKit, PerModalityMissing, RandomMissing, SpeakerMissing, draw_mask, realised_rate
from gsdnet.trainer import TrainConfig

ROOT = Path(__file__).parents[1]
TALKS = SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset()
ASKED = (RandomMissing, SpeakerMissing(), FixedMissing(("audio",), TALKS.modalities), PerModalityMissing((.6, .2, .1)))


def small(out, **options):
    "A grid of one-epoch trainings under four protocols."
    return grid.Benchmark(out=Path(out), **dict(datasets=(TALKS,), models={"bigru": bigru}, rates=(0., .5), seeds=2, protocols=ASKED, config=TrainConfig(epochs=1)) | options)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), m=st.integers(1, 4), talks=st.integers(1, 5), voices=st.integers(1, 3))
def test_one_speaker_loses_one_modality(seed, n, m, talks, voices):
    g = torch.Generator().manual_seed(seed)
    available = torch.rand(n, m, generator=g) < .8
    dialogue, speaker = torch.randint(talks, (n,), generator=g), torch.randint(voices, (n,), generator=g)
    observed = draw_mask(available, SpeakerMissing(), dialogue, speaker, seed=seed)
    assert not (observed & ~available).any() and torch.equal(observed.any(1), available.any(1))
    for d in dialogue.unique():
        hidden = (available & ~observed)[dialogue == d]
        assert len(hidden.any(0).nonzero()) <= 1 and len(speaker[dialogue == d][hidden.any(1)].unique()) <= 1
        whole = available[dialogue == d] & (available[dialogue == d].sum(1, keepdim=True) > 1)
        for s, c in itertools.product(range(voices), range(m)):
            mine = speaker[dialogue == d] == s
            if hidden[mine, c].any(): assert torch.equal(hidden[mine, c], whole[mine, c])
    assert torch.equal(observed, draw_mask(available, SpeakerMissing(), dialogue, speaker, seed=seed))


def test_the_nominal_rate_of_speakers_is_the_mean_over_all_draws():
    g = torch.Generator().manual_seed(0)
    available, dialogue = torch.rand(12, 3, generator=g) < .7, torch.arange(12) // 6
    speaker = torch.randint(2, (12,), generator=g)
    total = 0.
    for d in (0, 1):
        for s, m in itertools.product((0, 1), range(3)):
            rows = (dialogue == d) & (speaker == s) & available[:, m] & (available.sum(1) > 1)
            total += int(rows.sum()) / 6 / int(available.sum())
    assert SpeakerMissing().nominal(available, dialogue, speaker) == pytest.approx(total)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), rate=st.floats(0, .66), garbage=st.floats(-1e6, 1e6, width=32))
def test_what_was_never_recorded_cannot_be_found(seed, rate, garbage):
    holes = never_recorded(TALKS, rate, seed=seed)
    filled = {m: np.where(holes.available[:, [i]].numpy(), x, np.float32(garbage)) for i, m in enumerate(TALKS.modalities) for x in [TALKS.arrays()[m]]}
    other = ConversationDataset(TALKS.arrays() | filled, TALKS.modalities, label_names=TALKS.label_names, name=TALKS.name, title=TALKS.title)
    again = never_recorded(other, rate, seed=seed)
    assert again.hash == holes.hash and all(x.tobytes() == again.arrays()[k].tobytes() for k, x in holes.arrays().items())
    for part in (0, 1):
        rows = TALKS.split == part
        assert int((~holes.available[rows]).sum()) == round(min(rate, 2 / 3) * 3 * int(rows.sum()))
    assert holes.available.any(1).all() and holes.available[TALKS.split == 2].all()


@pytest.mark.slow
def test_several_protocols_one_training_and_a_protocol_asked_for_later(tmp_path):
    frame = grid.run(small(tmp_path))
    assert len(list(tmp_path.glob("records/*.json"))) == 2 and len(frame) == 2 * 5 and set(grid.COLUMNS) - set(frame.columns) == {"mae", "corr", "ccc", "acc7"}
    assert len(list(tmp_path.glob("masks*.npz"))) == 4 and frame.groupby(["protocol", "rate"])["test_mask"].nunique().max() == 2
    kits = {MaskKit.load(p).protocol: MaskKit.load(p) for p in tmp_path.glob("masks*.npz")}
    test = TALKS.split == 2
    for row in frame.itertuples():
        kit = kits[row.protocol.split("/")[0]]
        assert kit.hash == row.mask_hash and row.realised_rate == pytest.approx(realised_rate(kit.observed(row.rate, row.seed)[test]))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("records/*.json")}
    pd.testing.assert_frame_equal(grid.run(small(tmp_path)), frame)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("records/*.json")} == before
    alone, clock = grid.run(small(tmp_path / "alone", protocols=ASKED[:1])), ["seconds_per_epoch", "utterances_per_second"]
    later = grid.run(small(tmp_path / "alone")).drop(columns=clock)
    pd.testing.assert_frame_equal(later, frame.drop(columns=clock))
    assert len(alone) == 4 and len(list((tmp_path / "alone/records").glob("*.json"))) == 2
    fewer = grid.run(small(tmp_path / "alone", protocols=ASKED[:1])) # the records know more than is asked for
    pd.testing.assert_frame_equal(fewer, alone)
    assert len(pd.read_csv(tmp_path / "alone/results.csv")) == len(frame)


@pytest.mark.slow
def test_holes_in_training_change_the_data_and_not_the_test(tmp_path):
    whole = grid.run(small(tmp_path / "a", seeds=1))
    holes = grid.run(small(tmp_path / "b", seeds=1, never_recorded=.6, models={"bigru": bigru, "zero_fill": zero_fill}))
    assert set(holes["protocol"].str.partition("/")[2]) == {"mixed/0.6 never recorded"} and not holes.attrs["failures"]
    assert set(holes["test_mask"]) == set(whole["test_mask"]) and not set(holes["data_hash"]) & set(whole["data_hash"])
    assert set(grid.fair_table(holes, "zero_fill")["against"]) == {"bigru"}


def test_validation_of_folds_by_group_or_by_dialogue(tmp_path):
    grouped = ConversationDataset(TALKS.arrays() | {"group": (TALKS.dialogue % 5).numpy()}, TALKS.modalities, label_names=TALKS.label_names)
    of = lambda talks: {int(grouped.group[c.rows[0]]) for c in talks}
    for how, sizes in (("group", (9, 3)), ("dialogue", (10, 2))):
        planned = grid.plan(small(tmp_path / how, datasets=(grouped,), folds=5, seeds=1, validation=how))
        assert len(planned) == 5 and {(len(t.dataset.train), len(t.dataset.valid)) for t in planned} == {sizes}
        assert {tuple(of(t.dataset.test)) for t in planned} == {(i,) for i in range(5)}
        apart = [not of(t.dataset.valid) & of(t.dataset.train) for t in planned]
        assert all(apart) if how == "group" else not any(apart)
    with pytest.raises(ValueError, match="'group'"): small(tmp_path, validation="session")


def test_a_kit_and_protocols_drawn_on_its_split(tmp_path):
    kit = MaskKit.draw(TALKS, (0., .5), (0, 1))
    planned = grid.plan(small(tmp_path, kit=kit, protocols=(kit, SpeakerMissing())))
    assert [v.protocol for v in planned[0].views] == ["random", "speaker"] and planned[0].kit is kit and len(list(tmp_path.glob("*.npz"))) == 1
    with pytest.raises(ValueError, match="two protocols are called 'random'"): grid.plan(small(tmp_path, kit=kit, protocols=(kit, RandomMissing)))


@settings(max_examples=30, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    sets = [c for n in range(1, len(p) + 1) for c in itertools.combinations(range(len(p)), n)]
    closed = [max(min(1, len(c) * min(p[j] for j in c)) for c in sets if i in c) for i in range(len(p))]
    np.testing.assert_allclose(grid.holm(p), closed)


def test_many_normal_pairs_agree_with_the_t_test():
    delta = np.random.default_rng(5).normal(.3, 1, 60)
    found, t = grid.paired_difference(delta), stats.ttest_1samp(delta, 0)
    low, high = t.confidence_interval()
    # a p-value of 9999 random patterns has a standard error below .005; percentile intervals are narrower by about sqrt(59/60) and 2.00/1.96
    assert abs(found["p"] - t.pvalue) < .02 and abs(found["low"] - low) < .05 and abs(found["high"] - high) < .05


def script():
    "The experiments' script as a module."
    spec = importlib.util.spec_from_file_location("results_script", ROOT / "benchmarks/results.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_an_experiment_is_run_written_and_noted(tmp_path, monkeypatch, capsys):
    made = script()
    tiny = replace(made.EXPERIMENTS[0], models="bigru,zero_fill", seeds=1, epochs=1)
    monkeypatch.setattr(made, "EXPERIMENTS", (tiny,))
    monkeypatch.setattr("sys.argv", ["results.py", "--out", str(tmp_path / "scores"), "--runs", str(tmp_path / "runs")])
    assert made.main() == 0
    frame = pd.read_csv(tmp_path / "scores/synthetic_fair.csv")
    assert frame["protocol"].nunique() == 10 and len(frame) == 2 * (4 + 3 + 1 + 6 + 1)
    commands = pd.read_csv(tmp_path / "scores/commands.csv").set_index("experiment")["command"]
    assert commands["synthetic_fair"] == tiny.command and "--epochs 1" in tiny.command
    capsys.readouterr()
    assert made.main() == 0 and pd.read_csv(tmp_path / "scores/synthetic_fair.csv").equals(frame)


def test_every_experiment_is_named_once_and_can_be_read(tmp_path, monkeypatch):
    made = script()
    assert len({e.name for e in made.EXPERIMENTS}) == len(made.EXPERIMENTS)
    for experiment in made.EXPERIMENTS:
        if experiment.data == "synthetic": assert experiment.grid(None, tmp_path, 1).never_recorded == (experiment.never_recorded or 0)
    monkeypatch.setattr("sys.argv", ["results.py", "--only", "nothing"])
    with pytest.raises(SystemExit): made.main()


def test_the_results_page_was_made_from_the_files_that_are_there():
    page = (ROOT / "nbs/31_results.ipynb").read_text(encoding="utf-8")
    files = [p for p in (ROOT / "results").glob("*.csv") if {"weighted_f1", "mask_hash", "rate"} <= set(pd.read_csv(p, nrows=0).columns)]
    stale = [p.name for p in files if hashlib.sha256(p.read_bytes()).hexdigest()[:12] not in page]
    assert files and not stale, f"run tools/run_notebooks.py --path nbs/31_results.ipynb: the page shows other figures than {stale}"
