"What may be compared and what is refused: pairs of other splits, ties, tables with several settings, protocols without a label to judge by."
import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from gsdnet.architectures import MODELS
from gsdnet.benchmark import Benchmark, compare, fair_table, paired, paired_difference, plan, plot_rates, read_results
from gsdnet.data import ConversationDataset, SyntheticConversations
from gsdnet.missing import FixedMissing, Protocol, RandomMissing
from gsdnet.sharing import result_table
from gsdnet.trainer import TrainConfig, fit

WEIGHT, THREE = {"a": .6, "b": .7}, ("text", "audio", "visual")


def data(seed=0, n=30):
    "Dialogues of one length, dealt to the splits by a seed."
    whole = SyntheticConversations(n_dialogues=n, length=(6, 6), seed=1).dataset()
    part = np.random.default_rng(seed).permutation([0] * (n - 12) + [1] * 6 + [2] * 6)
    return whole.with_split(torch.as_tensor(part[np.unique(whole.dialogue, return_inverse=True)[1]]))


def rows(name, dataset, out, **options):
    "The rows that a benchmark would write, with made-up scores."
    grid = Benchmark((dataset,), {name: MODELS["bigru"]}, out, config=TrainConfig(epochs=1), **{"rates": (0.,), "seeds": 2, **options})
    return pd.DataFrame([dict(dataset=dataset.name, fold=t.fold, seed=t.seed, model=name, weighted_f1=WEIGHT[name] + .01 * t.seed, realised_rate=row["rate"],
                              **{k: t.facts[k] for k in ("data_hash", "config_hash", "commit", "validation")}, **row) for t in plan(grid) for row in t.wanted.values()])


@pytest.mark.parametrize("protocols", [RandomMissing, FixedMissing(("text",), THREE)])
def test_other_test_dialogues_are_no_pairs(tmp_path, protocols):
    "Masks that hide nothing, or always the same, have the same digits for any dialogues."
    one, same, other = (rows(name, data(seed), tmp_path / f"{name}{seed}", protocols=protocols) for name, seed in (("a", 0), ("b", 0), ("b", 1)))
    assert set(one["test_mask"]) == set(other["test_mask"]) and len(paired(pd.concat([one, same]), "a", "b"))
    for call in (compare, fair_table):
        with pytest.raises(ValueError, match="differ in split_hash in 2 of 2 pairs"): call(pd.concat([one, other]), "b", *["a"] * (call is compare))


def test_other_training_dialogues_are_no_pairs(tmp_path):
    folds = dict(folds=3, seeds=1)
    one, other = rows("a", data(), tmp_path / "a", validation="group", **folds), rows("b", data(), tmp_path / "b", validation="dialogue", **folds)
    both = pd.concat([one, other])
    with pytest.raises(ValueError, match="differ in split_hash"): paired(both, "a", "b")
    with pytest.raises(ValueError, match="differ in validation"): paired(both.drop(columns="split_hash"), "a", "b") # older files
    with pytest.raises(ValueError, match="differ in validation"): paired(pd.concat([one, other.drop(columns="split_hash")]), "a", "b")
    assert len(paired(both.drop(columns=["split_hash", "validation"]), "a", "b")) == 3


def test_patterns_that_tie_count_as_ties():
    "Whole numbers of right answers, as shares that rounding has moved apart."
    rng, signs = np.random.default_rng(0), {n: np.array(list(itertools.product((-1, 1), repeat=n))) for n in (5, 6, 7)}
    for _ in range(150):
        n, rates, size = int(rng.integers(5, 8)), int(rng.integers(1, 5)), int(rng.integers(50, 2000))
        right = rng.integers(-2, 5, (n, rates))
        level = ((.7 + right / size) - .7).mean(1)
        exact = (abs(signs[n] @ right.sum(1)) >= abs(right.sum())).mean()
        for scale in (1, 100): assert paired_difference(scale * level)["p"] == pytest.approx(exact, abs=1e-9), right
    assert paired_difference([1e-17, -3e-17, 2e-17])["p"] == 1


def test_a_difference_of_just_the_tie_is_one(tmp_path):
    a, b = (rows(name, data(), tmp_path / name, seeds=6) for name in "ab")
    right = np.arange(600, 606)
    found = fair_table(pd.concat([a.assign(weighted_f1=right / 1000), b.assign(weighted_f1=(right + 1) / 1000)]), "b", ["a"]).iloc[0] # one of a thousand: .1 points
    assert (found["wins"], found["ties"], found["losses"], found["folds_ahead"]) == (0, 6, 0, "0/1")


def test_settings_are_not_averaged(tmp_path):
    one = rows("a", data(), tmp_path / "a").assign(accuracy=.5)
    both = pd.concat([one, one.assign(config_hash="other")])
    both.to_csv(tmp_path / "results.csv", index=False)
    with pytest.raises(ValueError, match="share a cell .* with different config_hash"): result_table(tmp_path / "results.csv", "a")
    one.to_csv(tmp_path / "one.csv", index=False)
    assert result_table(tmp_path / "one.csv", "a")["trainings"].tolist() == [2]


def test_hashes_and_names_stay_words(tmp_path):
    one = rows("a", data(), tmp_path / "a").assign(mask_hash="3738386156e41412", commit="0123456789012345", model="null", fold="1")
    one.to_csv(tmp_path / "results.csv", index=False)
    back = read_results(tmp_path / "results.csv")
    assert back[["mask_hash", "commit", "model", "fold"]].iloc[0].tolist() == ["3738386156e41412", "0123456789012345", "null", "1"] and back["weighted_f1"].dtype == float


def test_a_curve_is_of_one_protocol(tmp_path):
    one = rows("a", data(), tmp_path / "a", rates=(0., .3), protocols=(RandomMissing, FixedMissing(("text",), THREE)))
    with pytest.raises(ValueError, match="rows of 2 protocols .*select it"): plot_rates(one)
    plot_rates(one[one["protocol"] == "random/mixed"])
    plt.close("all")


class Named(FixedMissing):
    name = "tv/radio"


def test_a_protocol_that_tables_would_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'tv/radio', expected a name without '/'"): rows("a", data(), tmp_path, protocols=(RandomMissing, Named(("text",), THREE)))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_test_split_that_cannot_be_judged_is_refused_before_anything_trains(tmp_path, task):
    arrays, whole = data().arrays(), data()
    score = np.where(whole.split == 2, np.nan, 1.).astype(np.float32)
    arrays |= {"score": score} if task == "regression" else {"label": np.where(arrays["split"] == 2, -1, arrays["label"])}
    blind = ConversationDataset(arrays, whole.modalities, label_names=whole.label_names, task=task, name="blind")
    with pytest.raises(ValueError, match="no (label|score) in its test split"): plan(Benchmark((blind,), {"a": MODELS["bigru"]}, tmp_path, rates=(0.,)))


class Everything(Protocol):
    "A protocol that does not know of holes."
    def draw(self, available, dialogue, generator, speaker=None): return torch.ones_like(available)
    def nominal(self, *about): return 0.


def test_a_protocol_is_checked_before_it_trains():
    whole, holes = data(), data().arrays()
    holes["text_present"] = np.arange(len(holes["text"])) % 2 == 0
    holed = ConversationDataset(holes, whole.modalities, label_names=whole.label_names)
    with pytest.raises(ValueError, match="never recorded"): fit(holed, missing_rate=Everything(), config=TrainConfig(epochs=1), progress=False)


def test_an_answer_cannot_read_a_label():
    "Even of a network that asks its batch for it."
    whole, seen = data(), []
    model = fit(whole, model=lambda d: MODELS["bigru"](d, width=8), config=TrainConfig(epochs=1), progress=False)
    outputs = model.outputs

    def peeking(batch, *more, **named):
        seen.append(batch.y)
        return outputs(batch, *more, **named)
    model.outputs = peeking
    model.predict(whole.test)
    assert seen and all((y == -1).all() for y in seen)
