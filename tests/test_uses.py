"""The script behind "How a recovery is used": its models answer from what is observed alone, and each does what its name says."""
import sys
from pathlib import Path

import pytest
import torch

from gsdnet.conversation import ConversationBatch
from gsdnet.data import SyntheticConversations
from gsdnet.diffusion import Recovery
from gsdnet.missing import RandomMissing, draw_mask
from gsdnet.model import GSDConfig, keyed_generators

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import uses  # noqa: E402

torch.set_num_threads(1)
SMALL = dict(latent=8, hidden=8, width=8, denoiser_width=8, n_samples=3)


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=12, length=(4, 7)).dataset()


@pytest.fixture(params=list(uses.TRAININGS))
def net(request, data):
    torch.manual_seed(0)
    made = uses.TRAININGS[request.param](GSDConfig.of(data, recover=request.param != "twin", **SMALL))
    torch.nn.init.normal_(made.fusion.recovered.weight) # zero at the start of a training
    made.fit_standardization(data.train)
    return made.eval()


def batch_of(net, data, mask, garbage=0.):
    "Four dialogues, with something else where nothing is seen."
    talks = [net.transform(c) for c in data.train[:4]]
    made = ConversationBatch.collate(talks, [mask[c.rows] for c in talks], targets=True)
    for m, x in enumerate(made.features.values()): x[~made.observed[..., m]] += garbage
    return net.align(made)


def test_hidden_entries_change_no_bit_and_nothing_missing_is_answered_as_it_is(net, data):
    mask = draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=0)
    a, b = (net.outputs(batch_of(net, data, mask, g)) for g in (0., 7.))
    assert torch.equal(a, b) and a.isfinite().all()
    whole = batch_of(net, data, data.available)
    torch.testing.assert_close(net.outputs(whole)[0], net.fuse(net.encode(whole), whole.observed, whole)[0])


def test_a_training_step_reaches_what_the_name_says(net, data):
    mask = torch.as_tensor(draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=1))
    batch = batch_of(net, data, mask)
    sum(net.train().loss(batch, batch.observed, torch.Generator().manual_seed(0)).values()).backward()
    moved = lambda part: any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())
    assert moved(net.fusion.alone) and moved(net.encoders) and moved(net.diffusion) == net.config.recover
    if isinstance(net, uses.AtOnce): assert moved(net.attend) and moved(net.gate)
    assert moved(net.fusion.recovered) == (net.config.recover and not isinstance(net, uses.TrainedAsRecorded))


def test_a_posterior_at_once_does_not_depend_on_the_order_of_its_samples(data):
    net = uses.AtOnce(GSDConfig.of(data, **SMALL)).eval()
    batch = batch_of(net, data, draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=0))
    z = net.encode(batch)
    r = net.recover(batch, generator=torch.Generator().manual_seed(0))
    turned = Recovery(r.values.flip(0) + 0, r.spectra.flip(0), r.known)
    for a, b in zip(net.recovered(z, batch.observed, batch, r), net.recovered(z, batch.observed, batch, turned)): torch.testing.assert_close(a, b)
    assert len(net.outputs(batch)) == 1


def test_a_denoiser_that_is_told_the_class_recovers_by_it(data):
    net = uses.ToldTheClass(GSDConfig.of(data, **SMALL)).eval()
    batch = batch_of(net, data, draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=0))
    before = net.recover(batch, generator=torch.Generator().manual_seed(0))
    assert before.values.shape[-1] == 8 * len(net.modalities) and before.spectra.shape[-1] == len(net.modalities)
    with torch.no_grad(): net.fusion.head.bias[0] += 20 # another answer from the same features
    after = net.recover(batch, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before.values[:, before.known], after.values[:, after.known]) and not torch.equal(before.values, after.values)


def test_shown_as_recorded_passes_for_it(data):
    net = uses.ShownAsObserved(GSDConfig.of(data, **SMALL)).eval()
    batch = batch_of(net, data, draw_mask(data.available, RandomMissing(.5), data.dialogue, seed=0))
    z, whole = net.encode(batch), batch.observed | batch.valid[..., None]
    r = net.recover(batch, generator=keyed_generators(batch.keys, 0), z=z)
    net.mean = True
    torch.testing.assert_close(net.outputs(batch)[0], net.fuse(r.mean.unflatten(-1, z.shape[-2:]), whole, batch)[0])
