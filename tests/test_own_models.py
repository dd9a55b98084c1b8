"Models from elsewhere: told apart by the benchmark, saved whole, refused early; every metric in the table; states handed on."
import copy
import json
import pickle
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from gsdnet import benchmark as grid
from gsdnet import sharing
from gsdnet.architectures import MODELS, IMDerCompact
from gsdnet.baselines import Masked
from gsdnet.data import ConversationDataset, SyntheticConversations
from gsdnet.fusion import Context
from gsdnet.missing import RandomMissing, draw_mask
from gsdnet.model import GSDConfig, GSDNet, Recogniser
from gsdnet.trainer import TrainConfig

TALKS = SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset()
TINY = dict(width=8, hidden=8, latent=8, denoiser_width=8, denoiser_blocks=1)
HIDE = draw_mask(TALKS.available, RandomMissing(0.5), TALKS.dialogue, seed=0)


class Mine(Masked):
    "Answers that an argument of its own scales; the shapes of its weights do not depend on it."
    def __init__(self, config, heads=2, *, act=nn.Identity, sizes=(1, 2)):
        super().__init__(config)
        self.heads, self.act = heads, act()

    def make_context(self): return Context(self.config.width)

    def outputs(self, batch, *, seed=0, **options): return self.act(self.heads * super().outputs(batch))


class Wider(Masked):
    "The shapes of its weights depend on what it reads from its class."
    n = 1

    def make_context(self):
        self.more = nn.Linear(self.config.width, self.n)
        return Context(self.config.width)


def mine(*args, **named): return lambda d: Mine(GSDConfig.of(d, **TINY), *args, **named)


def small(out, models, **options):
    return grid.Benchmark(out=out, models=models, **dict(datasets=(TALKS,), rates=(0.,), seeds=1, config=TrainConfig(epochs=1)) | options)


def test_a_model_made_with_something_else_is_another_model(tmp_path):
    first = grid.run(small(tmp_path, {"mine": mine(heads=2)}))
    other = grid.run(small(tmp_path, {"mine": mine(heads=8)}))
    assert len(list(tmp_path.glob("records/*.json"))) == 2 and set(first["config_hash"]).isdisjoint(other["config_hash"])
    assert first["nll"].item() != other["nll"].item()
    again = grid.run(small(tmp_path, {"mine": mine(2)})) # by place as by name, and by default
    pd.testing.assert_frame_equal(again, first)
    assert grid.identity_of(mine()(TALKS)) == grid.identity_of(mine(2)(TALKS))


@dataclass
class Law:
    "Something that JSON cannot hold."
    rate: float
    table: np.ndarray


def test_what_is_noticed_of_what_json_cannot_hold(monkeypatch):
    of = lambda x: grid.fingerprint(grid.identity_of(mine(sizes=x)(TALKS)))
    assert of(np.zeros(3)) == of(np.zeros(3)) != of(np.ones(3)) and of(torch.zeros(3)) != of(torch.ones(3))
    assert of(Law(1, np.zeros(2))) == of(Law(1, np.zeros(2))) != of(Law(1, np.ones(2))) and of(Law(1, np.zeros(2))) != of(Law(2, np.zeros(2)))
    assert of(nn.ReLU) != of(nn.GELU) and of([nn.ReLU]) != of([nn.GELU]) and of(object()) == of(object())
    assert of((1, 2)) == of([1, 2]) != of([1, np.int64(3)]) == of([1, 3])
    before = grid.identity_of(Wider(GSDConfig.of(TALKS, **TINY)))
    monkeypatch.setattr(Wider, "n", 2)
    assert grid.identity_of(Wider(GSDConfig.of(TALKS, **TINY))) != before


def test_the_identity_of_the_packages_models_is_class_and_configuration():
    "Records of published tables are found again."
    for name, make in {**MODELS, "compact": lambda d: IMDerCompact(GSDConfig.of(d, denoiser_width=32))}.items():
        with torch.device("meta"): net = make(TALKS)
        assert grid.identity_of(net) == {"class": type(net).__name__, **net.config.settings()}, name
        assert net.writable() == {} == net.made_with == net.made_with_others, name
    assert grid.fingerprint(grid.identity_of(MODELS["gsdnet"](TALKS))) == "1971e2b4f479dc1d" and grid.fingerprint(grid.identity_of(MODELS["gcnet_like"](TALKS))) == "0c9266b0fc24b117"


def test_an_own_model_comes_back_as_it_was(tmp_path):
    net = Mine(GSDConfig.of(TALKS, **TINY), heads=np.int64(4)).eval()
    net.save_pretrained(tmp_path)
    back = Mine.from_pretrained(tmp_path)
    assert back.heads == 4 and back.made_with == {"heads": 4, "sizes": [1, 2]}
    assert np.array_equal(back.predict(TALKS.test, HIDE).probabilities, net.predict(TALKS.test, HIDE).probabilities)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))): assert twin.made_with == net.made_with and twin.heads == 4
    meta = json.loads((tmp_path / "config.json").read_text())
    for bad in ([4], {"legs": 4}, {"config": 4}):
        (tmp_path / "config.json").write_text(json.dumps(meta | {"made_with": bad}))
        with pytest.raises(ValueError, match="tampered|describes no model"): Mine.from_pretrained(tmp_path)
    del meta["made_with"] # written before 0.2
    (tmp_path / "config.json").write_text(json.dumps(meta))
    assert Mine.from_pretrained(tmp_path).heads == 2


def test_the_packages_models_are_written_as_they_were(tmp_path):
    GSDNet(GSDConfig.of(TALKS, **TINY)).save_pretrained(tmp_path)
    meta = json.loads((tmp_path / "config.json").read_text())
    assert set(meta) == {"class", "weights", "temperature", "slope", "residual", *GSDConfig.__dataclass_fields__}
    (tmp_path / "config.json").write_text(json.dumps(meta | {"made_with": {"heads": 2}}))
    with pytest.raises(ValueError, match="describes no model"): GSDNet.from_pretrained(tmp_path)


class Turned(Mine):
    "Takes its configuration last."
    def __init__(self, heads, config): super().__init__(config, heads)


def test_what_cannot_be_kept_is_not_written(tmp_path):
    config = GSDConfig.of(TALKS, **TINY)
    for net, words in ((Mine(config, act=nn.Tanh), "act=.*Tanh.*can hold"), (Mine(config, sizes={1: 2}), "sizes"), (Turned(3, config), "takes the configuration first")):
        with pytest.raises(ValueError, match=words): net.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    Mine(config).save_pretrained(tmp_path / "yes")
    with pytest.raises(ValueError, match=r"of class 'Mine'.*Mine\.from_pretrained\(folder\)"): sharing.from_pretrained(tmp_path / "yes")


def no_options(dataset): return MODELS["bigru"](dataset)


class Deaf(Recogniser):
    "Cannot be trained."
    def outputs(self, batch, *, seed=0, **options): return batch.observed.float()[None]


@pytest.mark.parametrize("models, tuned, words", [
    ({"plain": no_options}, {"width": 16}, "'plain' .* tuned settings width .*'width'"),
    ({"plain": lambda d: MODELS["bigru"](d)}, {"width": 16, "lr": 1e-3}, "tuned settings width"),
    ({"bigru": MODELS["bigru"]}, {"widht": 16}, "does not know.* widht"),
    ({"none": lambda d: None}, {}, "'none' makes a NoneType, which lacks config, fit_standardization, loss, predict"),
    ({"layer": lambda d: nn.Linear(2, 2)}, {}, "makes a Linear, which lacks .*27_extending"),
    ({"deaf": lambda d: Deaf(GSDConfig.of(d))}, {}, "makes a Deaf, which lacks loss"),
    ({"made": GSDNet(GSDConfig.of(TALKS, **TINY))}, {}, "is a GSDNet, expected a function"),
    ({"nothing": lambda: None}, {}, "cannot be called with a data set"),
])
def test_what_cannot_be_trained_is_refused_before_anything_is(models, tuned, words, tmp_path):
    with pytest.raises(ValueError, match=words): grid.run(small(tmp_path, {"bigru": MODELS["bigru"], **models}, tuned={name: tuned for name in models}))
    assert not (tmp_path / "records").exists()


def test_settings_of_training_alone_need_no_options(tmp_path):
    planned, = grid.plan(small(tmp_path, {"plain": no_options}, tuned={"plain": {"lr": 1e-3}}))
    assert planned.config.lr == 1e-3 and planned.facts["config"]["class"] == "MaskedGRU"


def test_a_function_that_fails_on_one_data_set_fails_there_alone(tmp_path):
    other = SyntheticConversations(n_dialogues=12, length=(3, 6), n_classes=3, seed=1).dataset()
    other = ConversationDataset(other.arrays(), other.modalities, label_names=other.label_names, name="other")
    def picky(d):
        if d.name == "other": raise TypeError("got an unexpected keyword by chance")
        return MODELS["bigru"](d, **TINY)
    frame = grid.run(small(tmp_path, {"picky": picky}, datasets=(TALKS, other)))
    assert set(frame["dataset"]) == {TALKS.name} and len(frame.attrs["failures"]) == 1 and "by chance" in frame.attrs["failures"][0][1]


def test_every_metric_reaches_the_table(tmp_path):
    frame = grid.run(small(tmp_path, {"bigru": MODELS["bigru"], "mine": mine()}, seeds=3))
    record = json.loads(next(tmp_path.glob("records/*bigru*.json")).read_text())["rows"][0]
    row = frame[(frame["model"] == "bigru") & (frame["seed"] == record["seed"])].iloc[0]
    for metric in ("macro_f1", "uar", "nll", "ece"): assert row[metric] == pytest.approx(record[metric])
    assert "macro_f1 in percent" in grid.table(frame, "macro_f1") and "nll by" in grid.table(frame, "nll")
    delta = frame.pivot(index="seed", columns="model", values="uar")
    assert grid.compare(frame, "bigru", "mine", metric="uar").iloc[0]["difference"] == pytest.approx((delta["mine"] - delta["bigru"]).mean())
    assert grid.fair_table(frame, "mine", metric="uar").iloc[0]["difference"] == pytest.approx(100 * (delta["mine"] - delta["bigru"]).mean())
    nll = frame.pivot(index="seed", columns="model", values="nll")
    assert grid.fair_table(frame, "mine", metric="nll").iloc[0]["wins"] == (nll["bigru"] - nll["mine"] > .005).sum()
    for call in (partial(grid.table, frame), partial(grid.compare, frame, "bigru", "mine"), partial(grid.fair_table, frame, "mine"), partial(grid.plot_rates, frame)):
        with pytest.raises(ValueError, match="metric 'mae'.*expected one of accuracy, weighted_f1, macro_f1, uar"): call(metric="mae")
    old = frame.drop(columns=["macro_f1", "uar", "nll", "ece"]) # a table of before 0.2
    pd.testing.assert_frame_equal(grid.compare(old, "bigru", "mine"), grid.compare(frame, "bigru", "mine"))


def test_scores_of_one_sign_are_compared_by_their_error(tmp_path):
    data = SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3, with_score=True).dataset()
    frame = grid.run(small(tmp_path, {"bigru": MODELS["bigru"], "mine": mine()}, datasets=(data,), seeds=2))
    assert {"mae", "ccc"} <= set(frame) and "uar" not in frame and frame["ccc"].notna().all()
    none = frame.assign(weighted_f1=np.nan, accuracy=np.nan)
    assert "weighted_f1 in percent" in grid.table(frame) and "mae by missing rate" in grid.table(none)
    pd.testing.assert_frame_equal(grid.compare(none, "bigru", "mine"), grid.compare(frame, "bigru", "mine", metric="mae"))
    pd.testing.assert_frame_equal(grid.fair_table(none, "mine"), grid.fair_table(frame, "mine", metric="mae", tie=.005))
    assert grid.plot_rates(none).get_ylabel() == "mae"
    mixed = pd.concat([none, frame.assign(dataset="other")])
    assert grid.table(mixed).count("mae by") == 1 == grid.table(mixed).count("weighted_f1 in percent")
    with pytest.raises(ValueError, match="no weighted_f1 of data set 'synthetic'"): grid.fair_table(mixed, "mine")
    part = frame.assign(weighted_f1=frame["weighted_f1"].where(frame["seed"] == 0))
    with pytest.raises(ValueError, match="empty in some rows of 'bigru', 'mine'"): grid.compare(part, "bigru", "mine")


@pytest.mark.parametrize("name", ["gsdnet", "zero_fill", "mean_fill", "regression"])
def test_states_are_those_that_the_head_answers_from(name):
    torch.manual_seed(0)
    net = MODELS[name](TALKS, **TINY, unimodal_answers=False, n_samples=3)
    net.fit_standardization(TALKS.train)
    before = net.training
    states = net.embed(TALKS.test, HIDE)
    assert net.training == before and not net.fusion.head._forward_pre_hooks
    net.eval()
    rows = net.predict(TALKS.test, HIDE).rows
    assert states.shape == (len(rows), 2 * TINY["width"]) and states.dtype == np.float32
    np.testing.assert_allclose(net.embed(TALKS.test, HIDE, batch_size=1), states, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([net.embed([talk], HIDE) for talk in TALKS.test]), states, atol=1e-5)
    back = net.embed(TALKS.test[::-1], HIDE)
    np.testing.assert_allclose(back[np.argsort(net.predict(TALKS.test[::-1]).rows)], states[np.argsort(rows)], atol=1e-5)
    single = GSDNet if name == "gsdnet" else None
    if single: assert not np.array_equal(net.embed(TALKS.test, HIDE, seed=1), states) # its head is linear: the mean state gives the mean logit
    with torch.no_grad():
        logits = [net.outputs(batch).mean(0)[batch.valid] for _, batch in net.batches(TALKS.test, HIDE, batch_size=len(TALKS.test))]
        torch.testing.assert_close(net.fusion.head(torch.from_numpy(states)).sum(0), torch.cat(logits).sum(0), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="no conversations"): net.embed([])


def test_long_conversations_are_embedded_in_pieces():
    net = GSDNet(replace(GSDConfig.of(TALKS, **TINY), max_length=4, margin=1)).eval()
    assert len(net.embed(TALKS.test, HIDE)) == sum(talk.num_nodes for talk in TALKS.test)
