"What training is given: kits of other splits, modalities that nobody recorded, masks that hide nothing, own models of the wrong form, no test split."
import numpy as np
import pytest
import torch

from gsdnet import ConversationDataset, GSDNet, MaskKit, SyntheticConversations, TrainConfig, cli, fit, save_dataset
from gsdnet.baselines import MaskedGRU
from gsdnet.benchmark import Benchmark, run
from gsdnet.data import folds, from_frame
from gsdnet.missing import SpeakerMissing
from gsdnet.model import GSDConfig
from gsdnet.trainer import hiding_masks

TALKS = SyntheticConversations(n_dialogues=15, length=(4, 7), dims=(4, 3, 2), seed=3).dataset()
ONE = TrainConfig(epochs=1)
small = lambda data: GSDNet(GSDConfig.of(data, width=8, latent=4))


def test_a_kit_whose_test_split_would_be_trained_on_is_refused():
    split = torch.as_tensor(TALKS.split).clone()
    swapped = torch.where(split == 0, 2, torch.where(split == 2, 0, split))
    kit = MaskKit.draw(TALKS.with_split(swapped), (0., .3), (0,))
    with pytest.raises(ValueError, match=r"test split has 9 of the 9 training dialogues.*dataset.use\(kit\)"): fit(TALKS, model=small, kit=kit, config=ONE, progress=False)
    assert fit(TALKS.use(kit), model=small, kit=kit, config=ONE, progress=False).history["epoch"] == 1


def test_folds_under_a_kit_have_splits_of_their_own(tmp_path):
    kit = MaskKit.draw(TALKS, (0., .3), (0,))
    frame = run(Benchmark((TALKS,), {"small": small}, tmp_path, kit=kit, seeds=1, folds=3, config=ONE))
    assert frame["fold"].nunique() == 3 and not frame.attrs["failures"] and len(list(folds(TALKS, 3))) == 3


def test_a_modality_that_training_never_saw_counts_as_missing():
    arrays = TALKS.arrays()
    name = TALKS.modalities[-1]
    arrays[f"{name}_present"] = (arrays["split"] == 2).astype(np.uint8)
    data = ConversationDataset(arrays, TALKS.modalities, label_names=TALKS.label_names, name="late")
    with pytest.warns(UserWarning, match=f"'{name}' is recorded in no training utterance"): model = fit(data, model=small, config=ONE, progress=False)
    shifted = ConversationDataset(arrays | {name: 50 * arrays[name] + 200}, TALKS.modalities, label_names=TALKS.label_names, name="late")
    without = data.available.clone()
    without[:, -1] = False
    seen, other, hidden = (model.predict(d.test, mask, seed=0).probabilities for d, mask in ((data, None), (shifted, None), (data, without)))
    assert np.array_equal(seen, other) and np.allclose(seen, hidden, atol=1e-6) and np.isfinite(seen).all()


def test_recovery_is_measured_where_validation_hides_nothing():
    all_seen = [TALKS.available.numpy()]
    masks = hiding_masks(TALKS, all_seen, "mixed", 0)
    rows = TALKS.split.numpy() == 1
    assert any((TALKS.available.numpy() & ~mask)[rows].any() for mask in masks)
    some = [MaskKit.draw(TALKS, (.3,), (0,)).observed(.3, 0).numpy()]
    assert hiding_masks(TALKS, some, "mixed", 0) is some
    model = fit(TALKS, model=small, kit=MaskKit.draw(TALKS, (0.,), (0,)), config=ONE, progress=False)
    assert model.diffusion.error_channels.any()


def test_training_under_a_protocol():
    drawn = []

    class Spied(SpeakerMissing):
        def draw(self, *given):
            drawn.append(super().draw(*given))
            return drawn[-1]
    fit(TALKS, model=small, missing_rate=Spied(), config=ONE, progress=False)
    assert drawn and all(mask.any(1).all() and not mask.all() for mask in drawn)


@pytest.mark.parametrize("changed, words", [({"loss": lambda self, *a, **k: torch.zeros(())}, "`loss` of Own gives a Tensor"),
                                            ({"outputs": lambda self, batch, **k: torch.zeros(*batch.valid.shape, 4)}, r"`outputs` of Own gives \[.*samples, dialogues, utterances, classes")])
def test_own_models_of_the_wrong_form_are_told(changed, words):
    own = type("Own", (MaskedGRU,), changed)
    with pytest.raises(ValueError, match=words): fit(TALKS, model=lambda data: own(GSDConfig.of(data, width=8)), config=ONE, progress=False)


def test_a_data_set_without_test_split_is_trained_on(tmp_path, capsys):
    split = torch.as_tensor(TALKS.split).clone()
    folder = save_dataset(TALKS.with_split(torch.where(split == 2, 0, split)), tmp_path / "notest")
    assert cli.main(["train", str(folder), "--model", "bigru", "--run", str(tmp_path / "run"), "--training.epochs", "1"]) == 0
    assert "reads text (4), audio (3), visual (2); validation: as given" in capsys.readouterr().out
    assert cli.main(["benchmark", str(folder), "--models", "bigru", "--epochs", "1", "--out", str(tmp_path / "grid")]) == 2
    assert "has no test split" in capsys.readouterr().err


def test_a_benchmark_of_one_data_set_without_brackets():
    with pytest.raises(ValueError, match="expected a tuple of data sets"): Benchmark(TALKS, {"small": small}, "nowhere")


def test_many_samples_make_smaller_batches():
    model, mask = small(TALKS).eval(), MaskKit.draw(TALKS, (.3,), (0,)).observed(.3, 0)
    sizes = {samples: [batch.valid.numel() for _, batch in model.batches(TALKS.conversations, mask, samples=samples)] for samples in (1, 256)}
    assert max(sizes[256]) < max(sizes[1])


def test_a_table_with_gaps():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"talk": ["a"] * 3, "score": [1.5, None, -2.0], "x": [1.0, None, 3.0], "y": [0.0, 1.0, 2.0], "z": [1.0, 1.0, 1.0]}, dtype=object)
    data = from_frame(table, {"text": ["x", "y"], "audio": ["z"]}, dialogue="talk", score="score")
    assert data.available.tolist() == [[True, True], [False, True], [True, True]] and torch.isnan(data.score).tolist() == [False, True, False]
