"Data of one's own: scores on any scale, arrays that may be absent, folders that keep their keys, kits of any seeds, a device by name."
import json

import numpy as np
import pandas as pd
import pytest
import torch

from gsdnet import cli
from gsdnet.audit import audit
from gsdnet.data import ConversationDataset, SyntheticConversations, load_dataset, save_dataset
from gsdnet.metrics import sentiment_metrics
from gsdnet.missing import MaskKit
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.sharing import save_pretrained

TINY = dict(latent=8, hidden=8, width=8, denoiser_width=8, denoiser_blocks=1, n_samples=2)


def without(arrays, *names): return {k: x for k, x in arrays.items() if k not in names}


@pytest.fixture(scope="module")
def arrays(): return SyntheticConversations(n_dialogues=10, length=(2, 4), dims=(3, 2, 2), with_score=True).dataset().arrays()


@pytest.fixture(scope="module")
def talks(arrays): return ConversationDataset(without(arrays, "score"), label_names=list("abcd"), name="talks")


@pytest.fixture(scope="module")
def run(talks, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "kept"
    save_pretrained(GSDNet(GSDConfig.of(talks, **TINY)).eval(), folder)
    save_dataset(talks, folder.parent / "talks")
    return folder


def done(capsys, *words):
    "What a command prints, after checking that it succeeds."
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words):
    "The line on stderr of a command that is refused."
    assert cli.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_figures_by_sign_and_grade_need_a_scale_around_zero():
    rng = np.random.default_rng(0)
    score, answer = rng.uniform(-2, 2, 50), rng.uniform(-2, 2, 50)
    around, moved = sentiment_metrics(score, answer), sentiment_metrics(score + 3, answer + 3)
    assert not any(np.isnan(x) for x in around.values()) and [k for k, x in moved.items() if np.isnan(x)] == ["acc7", "accuracy", "weighted_f1"]
    for name in ("mae", "corr", "ccc"): assert moved[name] == pytest.approx(around[name])
    low = sentiment_metrics(-np.array([1., 2., 0.]), np.array([1., -1., 0.])) # one sign, within three
    assert np.isnan(low["accuracy"]) and low["acc7"] == pytest.approx(1 / 3)


def test_concordance_is_correlation_less_what_is_off():
    rng = np.random.default_rng(1)
    score, answer = rng.normal(size=200), rng.normal(size=200)
    scale = score.std() / answer.std()
    alike = (answer - answer.mean()) * scale + score.mean() # equal mean and spread
    assert sentiment_metrics(score, alike)["ccc"] == pytest.approx(sentiment_metrics(score, alike)["corr"])
    for other in (answer + 1, 2 * answer, answer - 3): assert abs(sentiment_metrics(score, other)["ccc"]) < abs(sentiment_metrics(score, other)["corr"])


def test_a_benchmark_on_scores_of_one_sign_ends_well(arrays, tmp_path, capsys):
    valence = without(arrays, "label") | {"score": (arrays["score"] / 1.5 + 3).astype(np.float32)}
    save_dataset(ConversationDataset(valence), tmp_path / "valence")
    printed = done(capsys, "benchmark", tmp_path / "valence", "--models", "zero_fill", "--rates", "0,0.3", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out/results.csv")
    assert "mae by missing rate" in printed and "weighted_f1" not in printed and rows["weighted_f1"].isna().all() and rows["mae"].notna().all()
    assert (tmp_path / "out/missing_rate.png").stat().st_size > 0
    record, = (tmp_path / "out/records").glob("*.json")
    row = json.loads(record.read_text())["rows"][0]
    assert row["weighted_f1"] is None and row["acc7"] is None and -1 <= row["ccc"] <= 1


def test_labels_and_speakers_may_be_absent(arrays, tmp_path):
    plain = ConversationDataset(without(arrays, "label", "speaker"), name="plain")
    said = ConversationDataset(arrays | {"label": np.full(len(arrays["label"]), -1), "speaker": np.zeros(len(arrays["label"]), int)})
    assert plain.hash == said.hash and (plain.y == -1).all() and not plain.speaker.any() and plain.task == "regression"
    bare = without(arrays, "label", "score")
    assert ConversationDataset(bare).label_names == () and ConversationDataset(bare, label_names=["a", "b"]).n_classes == 2
    for label in (None, np.full(len(arrays["label"]), -1)): # nothing is labelled: nothing needs a name
        folder = save_dataset(ConversationDataset(bare if label is None else bare | {"label": label}), tmp_path / "bare")
        (folder / "meta.json").write_text("{}")
        assert load_dataset(folder).label_names == ()
    with pytest.raises(ValueError, match="`label_names` is missing and 1 utterances are labelled"):
        ConversationDataset(bare | {"label": np.where(np.arange(len(arrays["label"])) == 3, 2, -1)})
    with pytest.raises(ValueError, match="`split` is missing.*2 throughout"): ConversationDataset(without(bare, "split"))


def test_what_nothing_labels_is_answered_and_not_learnt(arrays, run, tmp_path, capsys):
    "The same answers as with labels, and refusals of a training and a judgement."
    folder = save_dataset(ConversationDataset(without(arrays, "label", "score")), tmp_path / "bare")
    (folder / "meta.json").write_text("{}")
    for data, out in ((folder, "bare.csv"), (run.parent / "talks", "labelled.csv")): done(capsys, "predict", run, data, "--out", tmp_path / out)
    assert (tmp_path / "bare.csv").read_bytes() == (tmp_path / "labelled.csv").read_bytes()
    assert "none of the" in (said := refused(capsys, "evaluate", run, folder)) and "use predict" in said
    assert "nothing is labelled" in refused(capsys, "train", folder, "--run", tmp_path / "none", "--training.epochs", 1)


def test_an_audit_counts_scores_as_labels(arrays, tmp_path):
    scored = save_dataset(ConversationDataset(without(arrays, "label")), tmp_path / "scored")
    for stored in (without(arrays, "label"), arrays | {"label": np.full(len(arrays["label"]), -1)}):
        np.savez(scored / "data.npz", **stored)
        found = audit(scored)
        assert not [f for f in found.findings if f.check in ("refused", "splits", "classes", "labels")], str(found)
        assert set(found.counts["splits"]["train"]["classes"]) == {"scored"}
    hole = without(arrays, "label") | {"score": np.where(arrays["split"] == 0, np.nan, arrays["score"]).astype(np.float32)}
    np.savez(scored / "data.npz", **hole)
    assert ("error", "train has no labelled utterances") in {(f.severity, f.text) for f in audit(scored).findings}
    np.savez(scored / "data.npz", **arrays | {"label": arrays["label"].astype(float)}) # what cannot be read is not called unlabelled
    assert {f.check for f in audit(scored).findings if f.severity == "error"} == {"refused"}


def test_a_folder_keeps_the_keys_and_the_answers(arrays, tmp_path):
    torch.manual_seed(0)
    for title in (None, "titled"):
        made = ConversationDataset(without(arrays, "score"), label_names=list("abcd"), name="meldlike", title=title)
        back = load_dataset(save_dataset(made, tmp_path / "one"))
        again = load_dataset(save_dataset(back, tmp_path / "two"))
        model = GSDNet(GSDConfig.of(made, **TINY)).eval()
        seen = MaskKit.draw(made, (.5,), (0,)).observed(.5, 0)
        found = [model.predict(list(d), seen.numpy()) for d in (made, back, again)]
        assert [c.key for c in made] == [c.key for c in back] == [c.key for c in again] and made.hash == back.hash == again.hash
        assert made[0].key == ("titled/0" if title else "0") and again.title == title
        assert all(np.array_equal(found[0].probabilities, other.probabilities) for other in found[1:])
    (tmp_path / "one/meta.json").write_text(json.dumps({"name": "older", "label_names": list("abcd")})) # a folder with a name, as ever
    assert load_dataset(tmp_path / "one")[0].key == "older/0"


def test_a_kit_is_judged_by_its_own_seeds(talks, run, tmp_path, capsys):
    kit = MaskKit.draw(talks, (0., .3), (5, 7, 9)).save(tmp_path / "kit.npz")
    words = ("evaluate", run, run.parent / "talks", "--masks", kit, "--json")
    seeds = lambda *more: sorted({row["seed"] for row in json.loads(done(capsys, *words, *more))})
    assert seeds() == [5] and seeds("--seeds", 2) == [5, 7] and seeds("--seeds", "7,9") == [7, 9]
    for more in ("4", "1,5"): assert "5,7,9" in refused(capsys, *words, "--seeds", more)
    assert "at least 1" in refused(capsys, *words, "--seeds", 0) and "expected how many" in refused(capsys, *words, "--seeds", "few")
    drawn = json.loads(done(capsys, *words[:3], "--rates", "0.3", "--seeds", "1,2", "--json"))
    assert [row["seed"] for row in drawn] == [1, 2]


def test_a_device_is_named(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.device_named("auto") == "cpu" == cli.device_named("cpu")
    out, data = tmp_path / "a.csv", run.parent / "talks"
    for name in ("cuda", "cuda:0", "tpu"):
        for words in (("evaluate", run, data), ("predict", run, data, "--out", out)):
            assert f"got --device {name}, expected auto, cpu:" in refused(capsys, *words, "--device", name)
    assert not out.exists()
    done(capsys, "predict", run, data, "--device", "cpu", "--out", out)
    done(capsys, "predict", run, data, "--out", tmp_path / "b.csv")
    assert out.read_bytes() == (tmp_path / "b.csv").read_bytes()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [cli.device_named(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda:0", "cuda", "cuda:1", "cpu"]
    assert "expected auto, cpu, cuda:0, cuda:1" in refused(capsys, "evaluate", run, data, "--device", "cuda:2")
