"""Answers and shared models as a user meets them: columns, JSON, unlabelled data, other features, files that are no weights."""
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from gsdnet import cli
from gsdnet.data import ConversationDataset, SyntheticConversations, save_dataset
from gsdnet.missing import MaskKit
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.sharing import from_pretrained
from gsdnet.trainer import TrainConfig, fit

TINY = {"latent": 8, "hidden": 8, "width": 8, "denoiser_width": 8, "n_samples": 3}
MADE = {"text": "a sentence model, version 1"}


def said(folder, features):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"features": features}))


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    "A small data set in a folder that says where its text comes from."
    folder = save_dataset(SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset(), tmp_path_factory.mktemp("data") / "talks")
    said(folder, MADE)
    return folder


@pytest.fixture(scope="module")
def kept(talks, tmp_path_factory):
    "A model trained by the program."
    run = tmp_path_factory.mktemp("runs") / "kept"
    tiny = [word for name, value in TINY.items() for word in (f"--architecture.{name}", str(value))]
    assert cli.main(["train", str(talks), "--run", str(run), "--training.epochs", "1", *tiny]) == 0
    return run


def test_a_line_says_class_probabilities_doubt_and_what_was_recovered(kept, talks, tmp_path, capsys):
    from gsdnet.data import load_dataset
    kit = MaskKit.draw(load_dataset(talks), [0.5], [0])
    kit.save(tmp_path / "kit.npz")
    words = ["predict", str(kept), str(talks), "--masks", str(tmp_path / "kit.npz"), "--rate", "0.5", "--out", str(tmp_path / "answers.csv")]
    assert cli.main([*words, "--json"]) == 0
    stated, lines = pd.DataFrame(json.loads(capsys.readouterr().out)), pd.read_csv(tmp_path / "answers.csv")
    pd.testing.assert_frame_equal(stated, lines, atol=2e-6, check_dtype=False)
    names = cli.read_run(kept).config.label_names
    assert list(lines.columns) == ["conversation", "position", "row", "label", *(f"p_{n}" for n in names), "uncertainty", "expected_entropy",
                                   "mutual_information", "recovered_text", "recovered_audio", "recovered_visual"]
    assert (lines["label"] == np.array(names)[lines.filter(like="p_").to_numpy().argmax(1)]).all()
    hidden = ~kit.observed(0.5, 0).numpy()[lines["row"]]
    assert (lines.filter(like="recovered_").to_numpy(bool) == hidden).all() and hidden.any()
    assert cli.main([*words, "--n_samples", "1"]) == 0
    assert not pd.read_csv(tmp_path / "answers.csv")["mutual_information"].any()


def test_unlabelled_conversations_need_no_classes(kept, talks, tmp_path, capsys):
    arrays = dict(np.load(talks / "data.npz"))
    for name, label in (("unlabelled", np.full_like(arrays["label"], -1)), ("others", np.zeros_like(arrays["label"]))):
        dataset = ConversationDataset(arrays | {"label": label}, label_names=["one", "two"], title="talks")
        save_dataset(dataset, tmp_path / name)
    out = str(tmp_path / "answers.csv")
    assert cli.main(["predict", str(kept), str(tmp_path / "unlabelled"), "--out", out]) == 0
    assert len(pd.read_csv(out)) == len(arrays["label"])
    assert cli.main(["predict", str(kept), str(tmp_path / "others"), "--out", out]) == 2
    assert cli.main(["evaluate", str(kept), str(tmp_path / "unlabelled")]) == 2
    assert "expected the model's" in capsys.readouterr().err


def test_features_of_another_make_are_refused_with_both_descriptions(kept, talks, tmp_path, capsys):
    shutil.copytree(talks, tmp_path / "newer")
    said(tmp_path / "newer", {"text": "a sentence model, version 2"})
    for words in (["evaluate", str(kept), str(tmp_path / "newer")], ["predict", str(kept), str(tmp_path / "newer"), "--json"]):
        assert cli.main(words) == 2
        error = capsys.readouterr().err
        assert "version 1" in error and "version 2" in error and "Traceback" not in error
    said(tmp_path / "newer", {})
    assert cli.main(["evaluate", str(kept), str(tmp_path / "newer")]) == 0


def test_a_trained_run_has_a_card(kept):
    text = (kept / "README.md").read_text()
    assert text.startswith("---\n") and "library_name: gsdnet" in text and "a sentence model, version 1" in text and "data_hash" in text


@pytest.mark.parametrize("weights", [pickle.dumps({"a": 1}), b"", b"\x00" * 100, (2**62).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_is_refused_unread(kept, weights, tmp_path, talks, capsys):
    shutil.copytree(kept, tmp_path / "run")
    (tmp_path / "run/model.safetensors").write_bytes(weights)
    assert cli.main(["evaluate", str(tmp_path / "run"), str(talks)]) == 2
    assert "model.safetensors is damaged or no safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan")])
def test_a_temperature_that_is_none_is_refused(kept, temperature, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    config = json.loads((kept / "config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps(config | {"temperature": temperature}))
    with pytest.raises(ValueError, match="temperature"): from_pretrained(tmp_path / "run")


def test_a_model_kept_before_there_was_a_temperature_is_read(kept, tmp_path):
    shutil.copytree(kept, tmp_path / "run")
    config = json.loads((kept / "config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("temperature", "residual")}))
    (tmp_path / "run/features.json").unlink()
    assert from_pretrained(tmp_path / "run").temperature == 1.0


def test_a_score_has_a_deviation_and_an_interval(tmp_path):
    data = SyntheticConversations(n_dialogues=15, length=(3, 6), with_score=True).dataset()
    save_dataset(data, tmp_path / "data")
    model = fit(data, model=lambda d: GSDNet(GSDConfig.of(d, **TINY)), config=TrainConfig(epochs=1), progress=False)
    model.save_pretrained(tmp_path / "run")
    assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "data"), "--out", str(tmp_path / "answers.csv")]) == 0
    lines = pd.read_csv(tmp_path / "answers.csv")
    assert ((lines["low"] < lines["score"]) & (lines["score"] < lines["high"])).all()
    assert lines["deviation"].min() >= model.residual - 1e-6 > 0 and torch.isfinite(torch.tensor(lines["deviation"].to_numpy())).all()
