"""Masks of protocols from elsewhere are checked before they are kept; figures and exports meet the model where it is."""
import copy
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gsdnet import SyntheticConversations, baselines, figures
from gsdnet.conversation import AddSpectrum, Conversation, conversation_weights
from gsdnet.missing import BurstMissing, MaskKit, MixedMissing, PerModalityMissing, Protocol, RandomMissing, SpeakerMissing, draw_mask
from gsdnet.sharing import Deterministic, export_onnx, export_program, tensors


class Own(Protocol):
    "A protocol that makes its mask by a function of what was recorded and a generator."
    def __init__(self, law): self.law = law
    def draw(self, available, dialogue, generator, speaker=None): return self.law(available, generator)


def everything(n, m): return torch.ones(n, m, dtype=torch.bool)


def toy(n=90, **changes):
    "What a kit looks at of a data set; the first utterance has no audio."
    available = everything(n, 3)
    available[0, 1] = False
    return SimpleNamespace(**dict(split=torch.arange(n) // (n // 3), dialogue=torch.arange(n) // 10, speaker=torch.arange(n) % 2, available=available,
                                  modalities=("text", "audio", "visual"), hash="0" * 16) | changes)


BROKEN = {
    "nothing": (lambda a, g: None, TypeError, "Own.draw gave NoneType.*return the mask"),
    "numbers": (lambda a, g: a.float(), ValueError, "mask of Own.draw is torch.float32"),
    "another shape": (lambda a, g: a.T, ValueError, r"of shape \[3, \d+\], expected bool of shape \[\d+, 3\]"),
    "what was never recorded": (lambda a, g: torch.ones_like(a), ValueError, "shows 1 entries that were never recorded"),
    "nothing left": (lambda a, g: a & (torch.arange(len(a)) != 2)[:, None], ValueError, r"leaves 1 of \d+ utterances with nothing observed"),
    "what it was given, changed": (lambda a, g: a.fill_(True), ValueError, "never recorded"),
    "other randomness": (lambda a, g: a & torch.cat([everything(len(a), 1), torch.rand(len(a), 2) < .5], 1), ValueError, "draw from `generator` alone"),
}


@pytest.mark.parametrize("law, error, words", BROKEN.values(), ids=BROKEN)
def test_a_protocol_that_breaks_its_promises_is_refused(law, error, words):
    data = toy()
    with pytest.raises(error, match=words): draw_mask(data.available, Own(law), data.dialogue, seed=0)
    with pytest.raises(error, match=words): MaskKit.draw(data, (0.3,), (0,), lambda rate: Own(law))
    assert int((~data.available).sum()) == 1 # what was recorded is as it was


def test_what_is_kept_is_checked_for_every_seed():
    def late(available, generator): return available if generator.initial_seed() % 2 else torch.ones_like(available)
    with pytest.raises(ValueError, match="never recorded"): MaskKit.draw(toy(), (0.3,), range(8), lambda rate: Own(late))


def test_arrays_are_masks_too():
    data = toy()
    mask = draw_mask(data.available, Own(lambda a, g: a.numpy() & ~np.eye(len(a), 3, dtype=bool)), seed=0)
    assert isinstance(mask, Tensor) and mask.equal(data.available & ~torch.eye(90, 3).bool())
    kit = MaskKit.draw(data, (0.3,), (0,), lambda rate: Own(lambda a, g: a.numpy()))
    assert kit.observed(0.3, 0).equal(data.available)


def test_an_utterance_without_anything_has_nothing_to_keep():
    available = everything(4, 2)
    available[1] = False
    assert draw_mask(available, Own(lambda a, g: a), seed=0).equal(available)


@pytest.mark.parametrize("protocol", [lambda rate: MixedMissing(), lambda rate: SpeakerMissing(), RandomMissing, BurstMissing])
def test_a_kit_goes_by_the_rate_and_not_by_its_type(protocol):
    kits = [MaskKit.draw(toy(), rates, seeds, protocol) for rates, seeds in (([0., .3], [0, 1]), ([0, np.float32(.3)], np.arange(2)), (torch.tensor([0, .3]), torch.arange(2)))]
    assert len({kit.hash for kit in kits}) == 1 and all(kit.rates == (0.0, 0.3) for kit in kits)


def test_a_kit_draws_for_a_float_what_it_always_drew():
    "Published results go by these bits: of rates that are floats, to the last digit, and whole seeds."
    draw = lambda *rates, protocol=RandomMissing: MaskKit.draw(toy(), rates, (0, 1), protocol).hash
    assert draw(0.0, 0.3, 0.5) == "e7baf893dc1612b4"
    assert draw(1 / 3, protocol=lambda rate: PerModalityMissing((rate, rate / 2, 0))) == "45a6b0830733cb07"
    assert draw(1 / 3, protocol=lambda rate: SpeakerMissing()) == "7aab800e0880b675" != draw(round(1 / 3, 6), protocol=lambda rate: SpeakerMissing())


def test_kits_of_nothing_and_kits_that_say_a_thing_twice():
    for rates, seeds in (((), (0,)), ((0.3,), ()), (iter(()), iter(()))):
        with pytest.raises(ValueError, match="expected at least one of each"): MaskKit.draw(toy(), rates, seeds)
    with pytest.raises(ValueError, match="first six decimals"): MaskKit.draw(toy(), (0.3, 0.3 + 1e-9), (0,))
    assert MaskKit.draw(toy(), (0.3, 0.3, 0), (0, 0)).rates == (0.0, 0.3)


@pytest.mark.parametrize("names", [("observed_r5_s0", "observed_r50_s0"), ("observed_r5_s1", "observed_r5_s01"), ("observed_r3_s0", "observed_r3000001_s0")])
def test_a_file_with_two_masks_of_one_rate_and_seed(tmp_path, names):
    file = tmp_path / "masks.npz"
    np.savez(file, split=np.zeros(4, np.int8), modalities=np.array(["a", "b"]), **dict(zip(names, (np.ones((4, 2), bool), np.eye(4, 2, dtype=bool) | [True, False]))))
    with pytest.raises(ValueError, match=f"(?s)`{min(names)}`.*`{max(names)}`.*rate 0.[35] and seed [01]"): MaskKit.load(file)


def test_a_protocol_for_judging_needs_one_rate():
    data = toy()
    for protocol in (MixedMissing(), MixedMissing(0.3), Own(lambda a, g: a)):
        with pytest.raises(ValueError, match=f"{type(protocol).__name__} has no single rate.*for judging needs one"): protocol.nominal(data.available, data.dialogue)
    assert RandomMissing(0.3).nominal(data.available, data.dialogue) == 0.3


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_a_graph_does_not_go_by_the_type_of_its_speakers(dtype):
    speaker = torch.tensor([0, 1, 0, 2, 2, 1])
    talk = Conversation.build({"text": torch.zeros(6, 2)}, speaker=speaker)
    talk.speaker = speaker.to(dtype)
    found = AddSpectrum()(talk)
    assert found.weights.shape == (6, 6) and found.weights.equal(conversation_weights(speaker).float())
    assert "weights" not in talk and AddSpectrum().forward(talk) is talk and "weights" in talk # only a call copies


@pytest.fixture(scope="module")
def small():
    "A data set, a model of it, and the same model where no number can be read, as on another device."
    data = SyntheticConversations(n_dialogues=12, length=(4, 9), seed=2).dataset()
    model = baselines.gsdnet(data, latent=8, hidden=16, width=16, denoiser_width=8).eval()
    model.fit_standardization(data.train)
    return data, model, copy.deepcopy(model).to("meta")


class Far(Tensor):
    "A tensor that NumPy cannot read before it is copied to the CPU, as one on another device."
    def __array__(self, *args, **options): raise TypeError("use Tensor.cpu() first")
    def numpy(self, *args, **options): return self.__array__()
    def tolist(self): return self.__array__()
    def cpu(self): return self.as_subclass(Tensor)


def test_paths_and_arguments_are_where_the_model_is(small, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext()) # has no such device
    data, model, away = small
    talk = model.transform(data.test[0])
    times, paths = figures.eigenvalue_paths(away, talk)
    assert paths.is_meta and len(times) == len(paths) and paths.shape == figures.eigenvalue_paths(model, talk)[1].shape
    arguments = tensors(away, data.test[0], data.available)
    assert all(x.is_meta for x in (*arguments[0].values(), *arguments[1:]))
    with torch.no_grad(): assert Deterministic(away)(*arguments).is_meta
    assert not any(x.is_meta for x in tensors(model, data.test[0])[1:])


def test_figures_copy_to_the_cpu_before_they_draw(small, monkeypatch):
    data, model, _ = small
    talk = model.transform(data.test[0])
    here = figures.plot_responses(model, values=talk.eigenvalues)
    drawn = figures.filter_responses
    monkeypatch.setattr(figures, "filter_responses", lambda *args: drawn(*args).as_subclass(Far))
    there = figures.plot_responses(model, values=talk.eigenvalues.as_subclass(Far))
    for a, b in zip(here.lines, there.lines, strict=True): assert np.array_equal(a.get_xydata(), b.get_xydata())
    times, paths = figures.eigenvalue_paths(model, talk)
    here, there = figures.plot_paths(times, paths), figures.plot_paths(times.as_subclass(Far), paths.as_subclass(Far))
    for a, b in zip(here.lines, there.lines, strict=True): assert np.array_equal(a.get_xydata(), b.get_xydata())
    figures.plt.close("all")


@pytest.mark.parametrize("exporter", [torch.export, torch.onnx], ids=["program", "onnx"])
def test_what_is_exported_is_a_copy_on_the_cpu(small, monkeypatch, tmp_path, exporter):
    "What stands elsewhere has no numbers here, so the copy's are made up; tracing reads none, and is looked into where it begins."
    if exporter is torch.onnx: pytest.importorskip("onnxscript")
    data, _, away = small
    class Begun(Exception): pass
    def begin(module, arguments, **options): raise Begun(module, arguments)
    monkeypatch.setattr(nn.Module, "cpu", lambda self: self.to_empty(device="cpu"))
    monkeypatch.setattr(exporter, "export", begin)
    with pytest.raises(Begun) as found: export_program(away, data.train[0]) if exporter is torch.export else export_onnx(away, data.train[0], tmp_path / "model.onnx")
    module, (features, *others) = found.value.args
    assert {x.device.type for x in (*module.state_dict().values(), *features.values(), *others)} == {"cpu"}
    assert all(x.is_meta for x in away.state_dict().values())


@pytest.mark.parametrize("make", [baselines.adjacency_noise, baselines.knn_fill, baselines.iterative_fill, baselines.bigru])
def test_models_that_cannot_be_exported_are_refused(small, make, tmp_path):
    data, model = small[0], make(small[0])
    for export in (export_program, lambda *args: export_onnx(*args, tmp_path / "model.onnx")):
        with pytest.raises(TypeError, match=f"got a {type(model).__name__}, expected a GSDNet.*AdjacencyNoise, KNNFill, IterativeFill cannot be"): export(model, data.train[0])
