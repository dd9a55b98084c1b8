"""What no prediction may depend on, seen from outside: another process, other company, garbage where nothing may be read."""
import subprocess
import sys

import numpy as np
import pytest
import torch

from gsdnet.architectures import MODELS, IMDerLike
from gsdnet.data import SyntheticConversations, load_dataset, save_dataset
from gsdnet.missing import RandomMissing, draw_mask
from gsdnet.model import GSDNet
from gsdnet.trainer import TrainConfig, fit

SMALL = dict(width=16, denoiser_width=16, hidden=16, latent=8, n_steps=2)
ANSWER = """
import sys, numpy as np
from gsdnet.data import load_dataset
from gsdnet.model import GSDNet
run, data, out = sys.argv[1:]
kit = np.load(data + "/observed.npy")
np.save(out, GSDNet.from_pretrained(run).predict(load_dataset(data).test[::-1], kit, batch_size=2).probabilities)
"""


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=30).dataset()


@pytest.fixture(scope="module")
def observed(data): return np.asarray(draw_mask(data.available, RandomMissing(0.5), data.dialogue, seed=0))


def trained(data, name="gsdnet", **options):
    return fit(data, model=lambda d: MODELS[name](d, **SMALL), config=TrainConfig(epochs=2, choose_from=0, **options), progress=False)


def test_another_process_repeats_an_answer_exactly(data, observed, tmp_path):
    save_dataset(data, tmp_path / "data")
    np.save(tmp_path / "data" / "observed.npy", observed)
    trained(data).save_pretrained(tmp_path / "run")
    subprocess.run([sys.executable, "-c", ANSWER, tmp_path / "run", tmp_path / "data", tmp_path / "there.npy"], check=True)
    stored = load_dataset(tmp_path / "data")
    here = GSDNet.from_pretrained(tmp_path / "run").predict(stored.test[::-1], observed, batch_size=2).probabilities
    assert np.array_equal(here, np.load(tmp_path / "there.npy"))


# differ from another in a number or a path that their pages test
SAME = {"rank_4", "rank_8", "rank_16", "wide_twin", "mean_fill", "spectrum_observed", "spectrum_recovered", "imder_few"}


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SAME])
def test_garbage_in_a_data_set_changes_no_bit(data, observed, name, monkeypatch):
    "Hidden features of validation and test, labels of test, labels of validation where only the last epoch may be chosen."
    monkeypatch.setattr(IMDerLike, "positions", 8)
    arrays = data.arrays()
    hidden = ~observed & (np.asarray(data.split) == 2)[:, None]
    for m, modality in enumerate(data.modalities):
        arrays[modality] = np.where(hidden[:, m:m + 1], -1e5, arrays[modality])
    arrays["label"] = np.where(np.asarray(data.split) > 0, (arrays["label"] + 1) % data.n_classes, arrays["label"])
    dirty = type(data)(arrays, data.modalities, label_names=data.label_names, name=data.name, title=data.title)
    models = [trained(d, name) for d in (data, dirty)]
    for model in models: model.temperature = 1.0 # the other thing that labels of validation decide
    assert np.array_equal(*(model.predict(d.test, observed).probabilities for model, d in zip(models, (data, dirty))))


def test_garbage_in_padding_changes_no_bit(data, observed):
    model = trained(data)
    (_, batch), = model.batches(data.test, observed, batch_size=32)
    clean = model.outputs(batch)
    pad = ~batch.valid
    assert pad.any()
    for name in batch.features: batch.features[name][pad] = 1e5
    batch.y[pad] = 2
    assert torch.equal(model.outputs(batch)[:, batch.valid], clean[:, batch.valid])


@pytest.mark.parametrize("lengths", [(1, 1), (1, 400), (400, 400)])
@pytest.mark.parametrize("speakers", [(1, 1), (9, 9)])
def test_any_length_and_any_number_of_speakers(lengths, speakers):
    n = 6 if lengths[1] > 1 else 12
    data = SyntheticConversations(n_dialogues=n, length=lengths, n_speakers=speakers).dataset()
    model = trained(data)
    observed = draw_mask(data.available, RandomMissing(0.3), data.dialogue, seed=0)
    assert np.isfinite(model.predict(data.test, observed).probabilities).all()


def test_modality_absent_from_a_whole_split(data):
    arrays = data.arrays()
    arrays["audio_present"] = (np.asarray(data.split) != 2).astype(np.uint8)
    deaf = type(data)(arrays, data.modalities, label_names=data.label_names, name="deaf", title="deaf")
    model = trained(deaf)
    assert np.isfinite(model.predict(deaf.test).probabilities).all()


def test_entries_never_recorded_in_training(data):
    "No utterance of the training split is complete: the denoiser learns from what exists."
    arrays = data.arrays()
    gone = np.random.default_rng(0).integers(0, 3, len(arrays["label"]))
    for m, modality in enumerate(data.modalities): arrays[f"{modality}_present"] = (gone != m).astype(np.uint8)
    model = trained(type(data)(arrays, data.modalities, label_names=data.label_names, name="gone", title="gone"))
    log = model.history["log"][-1]
    assert np.isfinite(log["feature"]) and log["feature"] > 0
