"""Masks drawn for any data: exact rates, something left of every utterance, repeatable, and safe on disk."""
import io
import subprocess
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gsdnet.missing import (BurstMissing, FixedMissing, MaskKit, MixedMissing, PerModalityMissing, RandomMissing, draw_mask,
                            reachable_rate, realised_rate, whole_dialogues)

quick = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def recorded(draw, m=None):
    "What was recorded, and of which dialogue: something of most utterances, perhaps nothing of some."
    m = m or draw(st.integers(1, 5))
    n = draw(st.integers(1, 60))
    available = torch.from_numpy(draw(arrays(bool, (n, m), elements=st.booleans(), fill=st.just(True))))
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=20))
    dialogue = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    dialogue = torch.cat([dialogue, torch.full((n,), len(sizes))])[:n]
    return available, dialogue


def largest(available): return 1 - int(available.any(1).sum()) / max(int(available.sum()), 1)


def lawful(observed, available):
    "Hides recorded entries only, and leaves something of every utterance that has something."
    return not (observed & ~available).any() and torch.equal(observed.any(1), available.any(1))


@quick
@given(recorded(), st.floats(0, 1), st.integers(0, 2**40), st.integers(1, 9))
def test_random_and_burst_rates_are_exact(data, share, seed, length):
    available, dialogue = data
    rate = share * max(largest(available), 0)
    for protocol in (RandomMissing(rate), BurstMissing(rate, length)):
        observed = draw_mask(available, protocol, dialogue, seed=seed)
        assert lawful(observed, available)
        assert int((available & ~observed).sum()) == round(rate * int(available.sum()))
        assert torch.equal(observed, draw_mask(available, protocol, dialogue, seed=seed))


@quick
@given(recorded(), st.integers(0, 2**40), st.none() | st.floats(0, 1))
def test_mixed_stays_within_what_each_dialogue_can_lose(data, seed, top):
    available, dialogue = data
    observed = draw_mask(available, MixedMissing(top), dialogue, seed=seed)
    assert lawful(observed, available)
    for d in dialogue.unique():
        rows = dialogue == d
        most = largest(available[rows]) if available[rows].any() else 0
        entries = int(available[rows].sum())
        assert int((available & ~observed)[rows].sum()) <= round(min(most, 1 if top is None else top) * entries)


@quick
@given(recorded(m=3), st.integers(0, 2**40), st.lists(st.sampled_from("abc"), unique=True, max_size=2))
def test_fixed_hides_the_named(data, seed, missing):
    available, dialogue = data
    observed = draw_mask(available, FixedMissing(tuple(missing), tuple("abc")), dialogue, seed=seed)
    gone = torch.tensor([c in missing for c in "abc"])
    rest = (available & ~gone).any(1)
    assert lawful(observed, available)
    assert torch.equal(observed[rest], (available & ~gone)[rest])
    assert (observed[~rest & available.any(1)].sum(1) == 1).all()


@quick
@given(recorded(), st.integers(0, 2**40))
def test_per_modality_counts_are_exact_wherever_they_can_be(data, seed):
    "The counts of any lawful mask can be drawn again: feasible counts are never refused."
    available, dialogue = data
    model = draw_mask(available, RandomMissing(largest(available) if available.any() else 0.0), dialogue, seed=seed)
    hide = (available & ~model).sum(0)
    rates = tuple((hide / available.sum(0).clamp(min=1)).double().tolist())
    observed = draw_mask(available, PerModalityMissing(rates), dialogue, seed=seed + 1)
    assert lawful(observed, available)
    assert torch.equal((available & ~observed).sum(0), hide)


def test_per_modality_refuses_what_no_mask_can_give():
    available = torch.tensor([[1, 1], [0, 1], [0, 1], [1, 0]]).bool()
    with pytest.raises(ValueError, match="unreachable.*5 recorded entries at most 1"):
        draw_mask(available, PerModalityMissing((0.5, 0.34)), seed=0)
    with pytest.raises(ValueError, match="2 numbers within"):
        draw_mask(available, PerModalityMissing((0.5,)), seed=0)


@quick
@given(recorded(), st.floats(0, 1))
def test_reachable_rates(data, rate):
    available, _ = data
    limit = largest(available) if available.any() else 0.0
    if rate <= limit: assert reachable_rate(rate, available) == rate
    else:
        try: assert reachable_rate(rate, available) == pytest.approx(limit)
        except ValueError as e: assert "unreachable" in str(e) and f"{limit:.4f}" in str(e) or "[0, 1)" in str(e)


@pytest.mark.parametrize("m, nominal, real", [(3, 0.7, 2 / 3), (3, 0.67, 2 / 3), (2, 0.5, 0.5), (5, 0.8, 0.8), (4, 0.7, 0.7), (1, 0.0, 0.0)])
def test_nominal_rates_that_name_the_largest(m, nominal, real):
    available = torch.ones(30, m, dtype=torch.bool)
    assert reachable_rate(nominal, available) == pytest.approx(real)
    assert realised_rate(draw_mask(available, RandomMissing(nominal), seed=0)) == pytest.approx(real)


@pytest.mark.parametrize("m, nominal", [(1, 0.1), (2, 0.6), (3, 0.68), (3, 0.8), (5, 0.9), (2, 1.0), (2, -0.1), (2, float("nan"))])
def test_unreachable_rates(m, nominal):
    with pytest.raises(ValueError, match="unreachable|within"):
        draw_mask(torch.ones(30, m, dtype=torch.bool), RandomMissing(nominal), seed=0)


def test_seeds_differ_and_modalities_are_treated_alike():
    available = torch.ones(200, 4, dtype=torch.bool)
    masks = torch.stack([draw_mask(available, RandomMissing(0.6), seed=s) for s in range(200)])
    assert len({m.numpy().tobytes() for m in masks}) == 200
    share = (~masks).double().mean((0, 1))
    assert (share - 0.6).abs().max() < 4 * (0.24 / (200 * 200)) ** 0.5


@st.composite
def toy(draw):
    "What a kit looks at of a data set, its rows in any order."
    m = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    dialogue = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    parts = torch.tensor(draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes))))
    shuffle = torch.tensor(draw(st.permutations(range(len(dialogue)))))
    dialogue = dialogue[shuffle]
    return SimpleNamespace(dialogue=dialogue, split=parts[dialogue], available=torch.ones(len(dialogue), m, dtype=torch.bool),
                           order=torch.argsort(dialogue, stable=True), modalities=tuple("abcd"[:m]), hash="f" * 16)


@quick
@given(toy(), st.integers(0, 1000))
def test_kits_are_exact_per_split_and_survive_a_file(tmp_path_factory, data, seed):
    m = len(data.modalities)
    rates = [r for r in (0.0, 0.25, 0.5) if r <= 1 - 1 / m]
    kit = MaskKit.draw(data, rates, (seed, seed + 1))
    for part in data.split.unique():
        rows = data.split == part
        for rate in rates:
            assert int((~kit.observed(rate, seed))[rows].sum()) == round(rate * int(rows.sum()) * m)
    file = tmp_path_factory.mktemp("kit") / "masks.npz"
    again = MaskKit.load(kit.save(file))
    again.check(data)
    assert again.hash == kit.hash and again.masks.keys() == kit.masks.keys() and again.data_hash == "f" * 16
    assert all(torch.equal(again.masks[k], kit.masks[k]) for k in kit.masks)
    with np.load(file) as arrays: np.savez(file, **arrays)   # without compression
    assert MaskKit.load(file).hash == kit.hash
    if len(rates) > 1:
        flipped = {k: v.clone() for k, v in kit.masks.items()}
        flipped[0.25, seed] = kit.masks[0.25, seed].roll(1, 0)
        changed = MaskKit(kit.split, kit.modalities, flipped)
        assert (changed.hash == kit.hash) == torch.equal(flipped[0.25, seed], kit.masks[0.25, seed])


def test_a_kit_is_the_same_in_another_process():
    "Its hash too, which goes by names: the seed of Python's own hashes is another one there."
    code = ("import torch; from types import SimpleNamespace as S; from gsdnet.missing import MaskKit; "
            "print(MaskKit.draw(S(split=torch.arange(90) // 30, dialogue=torch.arange(90) // 10, available=torch.ones(90, 3).bool(), modalities=('a', 'b', 'c')), (.3, .7), (0, 1)).hash)")
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1", "PATH": ""}).stdout
    with redirect_stdout(io.StringIO()) as here: exec(code, {})
    assert there == here.getvalue() and len(there.strip()) == 16


@quick
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
def test_whole_dialogues(pairs):
    dialogue, split = torch.tensor(pairs).T
    cut = len(set(pairs)) > len({d for d, _ in pairs})
    if not cut: return whole_dialogues(split, dialogue)
    with pytest.raises(ValueError, match="cut by the split"): whole_dialogues(split, dialogue)


def kit_arrays(**changes):
    "The arrays of a good kit for four utterances, some replaced, or left out where None."
    good = dict(split=np.array([0, 0, 1, 2], np.int8), modalities=np.array(["a", "b"]), observed_r5_s0=np.array([[1, 0], [0, 1], [1, 1], [1, 0]], bool))
    return {k: x for k, x in (good | changes).items() if x is not None}


@pytest.mark.parametrize("changes, words", [
    (dict(split=None), "`split` is missing"),
    (dict(modalities=None), "`modalities` is missing"),
    (dict(observed_r5_s0=None), "no mask in it"),
    (dict(observed_r5_s0=np.ones((4, 2))), "observed_r5_s0 is torch.float64"),
    (dict(observed_r5_s0=np.ones((4, 3), bool)), "expected bool of shape \\[4, 2\\]"),
    (dict(observed_r5_s0=np.ones((3, 2), bool)), "expected bool of shape \\[4, 2\\]"),
    (dict(observed_r5_s0=np.zeros((4, 2), bool)), "4 of 4 utterances with nothing observed"),
    (dict(observed_half=np.ones((4, 2), bool)), "`observed_half` is named like no mask"),
    (dict(split=np.array([0, 0, 1, 7], np.int8)), "split is"),
    (dict(split=np.zeros((4, 1), np.int8)), "split is"),
    (dict(modalities=np.array(["a", "a"])), "distinct names"),
    (dict(modalities=np.array([1, 2])), "array of strings"),
    (dict(modalities=np.array(["a", "b"], dtype=object)), "`modalities` holds pickled objects"),
])
def test_broken_kits(tmp_path, changes, words):
    np.savez(tmp_path / "masks.npz", **kit_arrays(**changes))
    with pytest.raises(ValueError, match=words): MaskKit.load(tmp_path / "masks.npz")


def test_a_kit_for_other_data(tmp_path):
    np.savez(tmp_path / "masks.npz", **kit_arrays())
    kit = MaskKit.load(tmp_path / "masks.npz")
    good = dict(modalities=("a", "b"), dialogue=torch.tensor([0, 0, 1, 2]), available=torch.ones(4, 2, dtype=torch.bool), hash="0" * 16)
    kit.check(SimpleNamespace(**good))
    for change, words in [(dict(modalities=("a", "c")), "load it with the kit's modalities"), (dict(dialogue=torch.tensor([0, 0, 0, 1])), "cut by the split"),
                          (dict(dialogue=torch.zeros(5)), "made for other data"), (dict(available=torch.tensor([[0, 1]] * 4).bool()), "never recorded")]:
        with pytest.raises(ValueError, match=words): kit.check(SimpleNamespace(**good | change))
    kit.data_hash = "1" * 16
    with pytest.raises(ValueError, match="hash 1111111111111111"): kit.check(SimpleNamespace(**good))
