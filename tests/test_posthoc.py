"""A recovery added to a finished recogniser: what it reads, what it leaves alone, and that it goes wherever a model goes."""
import pickle

import numpy as np
import pytest
import torch

from gsdnet import sharing
from gsdnet.baselines import trained_parameters, zero_fill
from gsdnet.benchmark import identity_of
from gsdnet.data import ConversationDataset, SyntheticConversations
from gsdnet.missing import FixedMissing, RandomMissing, draw_mask
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.posthoc import AddedRecovery, add_recovery
from gsdnet.trainer import TrainConfig, fit

torch.set_num_threads(1)
SMALL = dict(latent=8, hidden=8, width=8, denoiser_width=8, n_samples=3)
TWO = TrainConfig(epochs=2)


def twin(data): return zero_fill(data, **SMALL)


@pytest.fixture(scope="module", params=["classification", "regression"])
def data(request): return SyntheticConversations(n_dialogues=16, length=(3, 7), with_score=request.param == "regression").dataset()


@pytest.fixture(scope="module")
def given(data): return fit(data, model=twin, missing_rate=0., config=TWO, progress=False)


@pytest.fixture(scope="module")
def helped(data, given): return fit(data, model=add_recovery(given), config=TWO, progress=False)


def bare(data):
    "The same conversations without labels, scores and classes."
    return ConversationDataset({name: x for name, x in data.arrays().items() if name not in ("label", "score")}, data.modalities, title=data.title)


def answers(model, data, mask=None):
    found = model.predict(data.test, mask)
    return found.score if found.probabilities is None else found.probabilities


def test_the_recogniser_stays_bit_for_bit_and_the_diffusion_moves(data, given, helped):
    before, after = given.state_dict(), helped.state_dict()
    same = {name: torch.equal(x, after[name]) for name, x in before.items()}
    assert all(same[name] for name in same if not name.startswith("diffusion.")) and not all(same.values())
    assert trained_parameters(helped) == sum(p.numel() for p in helped.diffusion.parameters()) == helped.history["parameters"]
    assert given.config.recover is False and helped.recovers and not given.recovers


def test_without_labels_the_last_epoch_counts_and_the_calibration_stays(data, given):
    made = fit(bare(data), model=add_recovery(given), config=TWO, progress=False)
    assert made.history["epoch"] == 2 and np.isnan(made.history["valid_score"])
    assert (made.temperature, made.slope, made.residual) == (given.temperature, given.slope, given.residual)
    assert np.array_equal(answers(made, data), answers(given, data)) # nothing is missing
    with pytest.raises(ValueError, match="nothing is labelled"): fit(bare(data), model=lambda _: twin(data), config=TWO, progress=False)


def test_labels_of_the_training_split_are_not_read(data, given):
    arrays, made = data.arrays(), []
    for turn in (lambda x: x, np.roll):
        changed = {name: np.where(arrays["split"] == 0, turn(arrays[name], *([1] if turn is np.roll else [])), arrays[name]) for name in ("label", "score") if name in arrays}
        other = ConversationDataset(arrays | changed, data.modalities, label_names=data.label_names, task=data.task, title=data.title)
        made.append(fit(other, model=add_recovery(given), config=TWO, progress=False))
    a, b = (m.state_dict() for m in made)
    assert all(torch.equal(x, b[name]) for name, x in a.items()) and made[0].temperature == made[1].temperature


def test_data_with_other_classes_or_channels_are_refused(data, given):
    names = [f"other {name}" for name in data.label_names]
    if data.task == "classification":
        renamed = ConversationDataset(data.arrays(), data.modalities, label_names=names)
        with pytest.raises(ValueError, match="made for other data"): fit(renamed, model=add_recovery(given), config=TWO, progress=False)
    narrow = data.with_modalities(list(data.modalities[:2]))
    with pytest.raises(ValueError, match="channels of visual 4, the data have None"): fit(bare(narrow), model=add_recovery(given), config=TWO, progress=False)


@pytest.mark.parametrize("protocol", [RandomMissing(.5), FixedMissing(("text",), ("text", "audio", "visual"))])
def test_hidden_entries_change_no_bit_nor_do_neighbours_in_a_batch(data, helped, protocol):
    mask, arrays = draw_mask(data.available, protocol, data.dialogue, data.speaker, seed=0), data.arrays()
    spoiled = arrays | {m: np.where(mask[:, [i]], arrays[m], np.float32(1e3)) for i, m in enumerate(data.modalities)}
    other = ConversationDataset(spoiled, data.modalities, label_names=data.label_names, task=data.task, title=data.title)
    assert np.array_equal(answers(helped, data, mask), answers(helped, other, mask))
    alone = np.concatenate([(lambda p: p.score if p.probabilities is None else p.probabilities)(helped.predict([talk], mask)) for talk in data.test])
    np.testing.assert_allclose(alone, answers(helped, data, mask), atol=1e-5)


def without(data, modality, splits):
    "The same conversations, of which some splits never had a modality."
    arrays = data.arrays()
    return ConversationDataset(arrays | {f"{modality}_present": (~np.isin(arrays["split"], splits)).astype(np.uint8)}, data.modalities, label_names=data.label_names, task=data.task, title=data.title)


@pytest.mark.filterwarnings("ignore:modality 'visual' is recorded in no training utterance")
def test_a_modality_that_the_recogniser_never_learned_is_not_shown(data):
    blind = without(data, "visual", (0, 1))
    given = fit(blind, model=twin, missing_rate=0., config=TWO, progress=False)
    helped = fit(bare(blind), model=add_recovery(given), config=TWO, progress=False) # calibrated as before
    np.testing.assert_allclose(answers(helped, data), answers(given, data), atol=1e-6) # complete, as far as the recogniser can see
    mask = np.ones((len(data.y), 3), bool)
    mask[::2, 0] = False
    gone = mask & (np.array(data.modalities) != "visual")
    assert not np.allclose(answers(helped, data, mask), answers(given, data, mask), atol=1e-3)
    np.testing.assert_allclose(answers(helped, data, gone), answers(helped, data, mask), atol=1e-6)


def test_what_cannot_be_learned_is_refused(data, given):
    train = lambda what=data, model=given, config=TWO, **how: fit(what, model=add_recovery(model), config=config, progress=False, **how)
    with pytest.raises(ValueError, match="visual was never recorded"): train(without(data, "visual", (0, 1)))
    with pytest.raises(ValueError, match="nothing is hidden"): train(missing_rate=0.)
    with pytest.raises(ValueError, match="nothing is hidden"): train(missing_rate=RandomMissing(0.))
    one = data.with_modalities(["text"])
    with pytest.raises(ValueError, match="two modalities"): train(one, fit(one, model=twin, config=TrainConfig(epochs=1), progress=False))
    if data.task == "classification":
        with pytest.raises(ValueError, match="class_weights"): train(bare(data), config=TrainConfig(epochs=1, class_weights="balanced"))
    with pytest.raises(ValueError, match="patience"): train(bare(data), config=TrainConfig(epochs=2, patience=1))


def test_labels_of_another_kind_are_no_labels(data, given):
    asked = data.task
    scored = SyntheticConversations(n_dialogues=16, length=(3, 7), with_score=True).dataset()
    other = {"regression": SyntheticConversations(n_dialogues=16, length=(3, 7)).dataset(), # classes beside a recogniser of scores
             "classification": ConversationDataset({k: x for k, x in scored.arrays().items() if k != "label"}, scored.modalities, task="regression")}[asked] # and scores beside one of classes
    made = fit(other, model=add_recovery(given), config=TWO, progress=False)
    assert other.task != asked and np.isnan(made.history["valid_score"]) and (made.temperature, made.slope) == (given.temperature, given.slope)


def test_it_travels_as_a_function_and_is_told_from_another(data, given):
    again = pickle.loads(pickle.dumps(add_recovery(given)))(data)
    assert again.made_with == add_recovery(given)(data).made_with and all(torch.equal(x, again.state_dict()[name]) for name, x in given.state_dict().items() if "diffusion" not in name)
    other = fit(data, model=twin, missing_rate=0., seed=1, config=TrainConfig(epochs=1), progress=False)
    a, b = (identity_of(add_recovery(m)(data)) for m in (given, other))
    assert a != b and "made_with" not in identity_of(given)


def test_it_is_kept_carded_embedded_and_exported(data, given, helped, tmp_path):
    mask = draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=0)
    sharing.save_pretrained(helped, tmp_path)
    again = sharing.from_pretrained(tmp_path)
    assert type(again) is AddedRecovery and again.made_with == helped.made_with and np.array_equal(answers(again, data, mask), answers(helped, data, mask))
    talk = max(data.test, key=lambda t: t.num_nodes)
    program = sharing.export_program(helped, talk).module()
    ask = lambda model, module: module(*sharing.tensors(model, talk, mask))[0].detach().numpy()
    found, twins = ask(helped, program), ask(given, sharing.Deterministic(given))
    np.testing.assert_allclose(found, ask(helped, sharing.Deterministic(helped)), atol=1e-5)
    assert abs(found - twins).max() > 1e-4 # what is recovered is shown, in the exported path too
    assert helped.embed([talk], mask).shape == (talk.num_nodes, 2 * SMALL["width"])


def test_a_run_goes_on_beside_its_own_recogniser_only(data, given, tmp_path):
    fit(data, model=add_recovery(given), config=TWO, progress=False, run=tmp_path)
    other = fit(data, model=twin, missing_rate=0., seed=1, config=TrainConfig(epochs=1), progress=False)
    with pytest.raises(ValueError, match="recogniser is"): fit(data, model=add_recovery(other), config=TWO, progress=False, run=tmp_path, resume=True)


def test_again_and_beside_what_recovers_already(data, helped):
    fresh = add_recovery(helped)(data)
    assert not torch.equal(next(fresh.diffusion.parameters()), next(helped.diffusion.parameters()))
    own = GSDNet(GSDConfig.of(data, **SMALL))
    assert isinstance(add_recovery(own)(data), AddedRecovery)

    class Mine(GSDNet): "A class of one's own may fuse in its own way."
    with pytest.raises(ValueError, match="got a Mine, expected a GSDNet"): add_recovery(Mine(own.config))
