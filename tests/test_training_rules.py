"Rules of the method that the loss, the denoiser and the trainer keep: what is learned from what, what is measured where, which weights are kept."
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from gsdnet.baselines import Masked
from gsdnet.conversation import AddSpectrum, Conversation, ConversationBatch
from gsdnet.data import SPLITS, SyntheticConversations, never_recorded
from gsdnet.denoiser import EigenvalueDenoiser
from gsdnet.diffusion import SpectralDiffusion
from gsdnet.missing import RandomMissing
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.trainer import TrainConfig, Trainer, fit, random_masks

SMALL = dict(width=8, denoiser_width=8, denoiser_blocks=1, hidden=8, latent=8, n_samples=2)
BRIEF = TrainConfig(epochs=3, batch_size=4, choose_from=1.)


def seeded(): return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def random_state():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(scope="module")
def data(): return SyntheticConversations(n_dialogues=15, length=(3, 6), seed=3).dataset()


def small(data, **options):
    model = GSDNet(GSDConfig.of(data, **SMALL | options))
    model.fit_standardization(data.train)
    return model.train()


def spied(monkeypatch, owner, name):
    "The arguments and the answers of all calls of a method, which goes on working."
    calls, method = [], getattr(owner, name)

    def spy(*args, **named):
        out = method(*args, **named)
        calls.append((args, out))
        return out
    monkeypatch.setattr(owner, name, spy)
    return calls


def some_loss(model, data, **masks):
    "The training loss of four dialogues, with masks by random or as they are given."
    talks = [model.transform(c) for c in data.train[:4]]
    draw = lambda: [torch.rand(c.present.shape, generator=g) < .6 for c in talks]
    g = seeded()
    shown, second = masks.get("shown") or draw(), masks.get("second") or draw()
    batch = ConversationBatch.collate(talks, shown, targets=True)
    return batch, model.loss(batch, nn.utils.rnn.pad_sequence(second, True), seeded())


# The loss


def test_the_diffusion_learns_latents_without_dropout(data, monkeypatch):
    model = small(data, encoder_dropout=.5)
    calls = spied(monkeypatch, model.diffusion, "loss")
    batch, _ = some_loss(model, data)
    complete = batch.complete()
    x = model.standardized(complete)
    for training in (True, False):
        model.train(training)
        a, b = model.clean(complete, x), model.clean(complete, x)
        assert torch.equal(a, b) and not a.requires_grad
        assert {part.training for part in model.modules()} == {training}
    learned = calls[0][0][0]
    assert torch.equal(a, model.encode(complete, x)) # of evaluation mode
    assert torch.equal(learned, a.flatten(-2)) and not learned.requires_grad


def test_the_teacher_learns_nothing_from_its_students(data):
    "Audio is hidden in both masked views: by the divergence only the complete view could reach its encoder."
    model = small(data)
    deaf = [torch.tensor([True, False, True]).expand(c.num_nodes, -1) for c in data.train[:4]]
    _, terms = some_loss(model, data, shown=deaf, second=deaf)
    reached = {(term, name): sum(float(g.abs().sum()) for g in torch.autograd.grad(terms[term], list(model.encoders[name].parameters()), retain_graph=True))
               for term in ("distill", "complete") for name in ("text", "audio")}
    assert reached["distill", "audio"] == 0 and min(reached[k] for k in reached if k != ("distill", "audio")) > 0


@pytest.mark.parametrize("share", [0., .2, .9])
def test_what_was_recovered_is_withheld_from_a_share_of_dialogues(data, share):
    "From whole dialogues; of the others all that is hidden is shown, in the first view alone."
    model, n = small(data, path_drop=share), 500
    talk = model.transform(data.train[0])
    hide = torch.arange(talk.present.numel()).view_as(talk.present) % 4 > 0
    batch = ConversationBatch.collate([talk] * n, [hide] * n, targets=True)
    seen = []
    model.fusion.recovered.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    model.loss(batch, batch.observed, seeded())
    told = seen[0].unflatten(-1, (3, -1)).ne(0).any(-1) # [B, N, V, M]
    assert not told[:, :, 1:].any()
    helped = told[:, :, 0].flatten(1).any(1)
    assert torch.equal(told[helped, :, 0], ~batch.observed[helped])
    assert 1 - float(helped.float().mean()) == pytest.approx(share, abs=5 * (share * (1 - share) / n) ** .5)


def test_recovery_practises_on_another_mask_than_recognition(data, monkeypatch):
    model = small(data)
    calls, learned, drawn = spied(monkeypatch, model, "loss"), spied(monkeypatch, model.diffusion, "loss"), spied(monkeypatch, model.diffusion, "recover")
    trainer = Trainer(model, data, [], RandomMissing(.4), config=BRIEF)
    trainer.step(trainer.train_set)
    (batch, second, _), _ = calls[0]
    valid, first = batch.valid[..., None], batch.observed
    for mask in (first, second): assert int((~mask & valid).sum()) == pytest.approx(.4 * 3 * int(valid.sum()), abs=1)
    both, one = (~first & ~second & valid).sum(), ((first ^ second) & valid).sum() # drawn apart: .16 and .48 of the entries
    assert both > 0 and one > both
    (_, observed, target, _, _), _ = learned[0]
    assert torch.equal(observed, second) and torch.equal(target, ~second & valid)
    assert torch.equal(drawn[0][0][1], first)


# The diffusion


def graphs(*lengths, dims=(4, 4, 4)):
    "Dialogues of random features, alike where equally long, and their batch."
    g = seeded()
    made = {n: AddSpectrum()(Conversation.build({name: torch.randn(n, d, generator=g) for name, d in zip("abc", dims)}, speaker=torch.arange(n) % 2)) for n in {*lengths}}
    batch = ConversationBatch.collate([made[n] for n in lengths])
    return torch.cat(list(batch.features.values()), -1), batch.observed, batch.graph


def test_where_nothing_is_hidden_no_eigenvalue_is_corrected():
    "The correction is in proportion to the share that is hidden."
    x, _, graph = graphs(6)
    head = EigenvalueDenoiser(3, width=8)
    level, estimate, states = torch.randn(1, 6, 3), torch.randn(1, 6, 3), torch.randn(1, 6, 8)

    def correction(share): return head(level, 0 * level, estimate, torch.tensor([share]), states, torch.zeros(8), graph) - estimate
    nn.init.normal_(head.outputs[-1].weight)
    nn.init.ones_(head.outputs[-1].bias)
    known = correction([1., .5, 0.])
    assert not known[..., 0].any() and known[..., 1:].all()
    nn.init.zeros_(head.outputs[-1].weight) # what the network says is then the same of every share
    half = correction([.5, .5, .5])
    assert_close(correction([.9, .5, 0.]) / half, torch.tensor([.2, 1., 2.]).expand_as(half))


def test_three_training_times_in_ten_are_the_last(monkeypatch):
    "From there, where nothing but noise is left, the first step of every sampler starts; the others are spread evenly."
    n, model = 2000, SpectralDiffusion(dict(a=2, b=2), width=4, n_blocks=1)
    x, observed, graph = graphs(*[1] * n, dims=(2, 2))
    calls = spied(monkeypatch, model, "estimate")
    only_a = torch.tensor([True, False]).expand_as(observed)
    for _ in range(2): model.loss(x, only_a, ~only_a, graph, torch.Generator().manual_seed(len(calls)))
    t = torch.cat([args[2] for args, _ in calls])
    assert len(t) == 2 * n and float((t == 1).float().mean()) == pytest.approx(.3, abs=4 * (.21 / len(t)) ** .5)
    assert_close(t[t < 1].quantile(torch.tensor([.1, .5, .9])), torch.tensor([.1, .5, .9]), atol=.05, rtol=0)


def test_eigenvalues_count_where_all_features_are_known(monkeypatch):
    "Neither those of a modality that was not recorded throughout, nor those of one without a hole; in the loss as in what is measured."
    model = SpectralDiffusion(dict(a=4, b=4, c=4), width=8, n_blocks=1)
    x, known, graph = graphs(4, 6)
    target = torch.zeros_like(known)
    target[0, 1, :2] = target[1, 2, 1:] = True # holes: of the first dialogue in a and b, of the second in b and c
    known[0, 3, 1] = known[1, 4, 2] = False # never recorded: something of the first's b and of the second's c
    x = x * known.repeat_interleave(4, -1)
    calls = spied(monkeypatch, model, "estimate")
    loss = model.loss(x, known & ~target, target, graph, seeded())["eigenvalue"].detach()
    square = lambda: (calls[-1][1][2] - model.offsets(x, graph)).detach().square()
    first, second = square()[0, :4, 0], square()[1, :6, 1]
    assert loss > 0 and float(loss) == pytest.approx(float(torch.cat([first, second]).mean()), rel=1e-5)
    model.measure([(x, known & ~target, target, graph)])
    first, second = square()[0, :4, 0], square()[1, :6, 1]
    assert_close(model.error_levels, torch.stack([first.mean().sqrt(), second.mean().sqrt(), torch.zeros(())]))


def measured(levels, response=(0., 0., 0.)):
    "A diffusion with an error by hand: orthogonal axes of the channels of a, power along the spectrum, deviation of eigenvalue offsets."
    model = SpectralDiffusion(dict(a=4, b=2), width=8, n_blocks=1)
    model.error_channels[:4, :4] = torch.linalg.qr(torch.randn(4, 4))[0] * torch.tensor([2., 1., .5, .25])
    model.error_response[0] = torch.tensor(response)
    model.error_levels.fill_(levels)
    x, observed, graph = graphs(6, dims=(4, 2))
    observed[..., 0] = False
    return model, lambda s=4000: model.recover(x, observed, graph, n_steps=1, n_samples=s, generator=seeded()), graph


def test_sampled_spectra_spread_as_their_error_does():
    "One step leaves the estimate and its error: of eigenvalues that of `error_levels`, in units of the spread; none of a modality without a hole, and none in a single sample."
    model, recovered, _ = measured(.6)
    found = recovered().spectra[:, 0]
    assert_close(found.std(0), model.spread * torch.tensor([.6, 0.]).expand(6, 2), rtol=.08, atol=1e-6)
    model.error_levels.mul_(2)
    assert_close(recovered().spectra[:, 0] - found.mean(0), 2 * (found - found.mean(0)), rtol=1e-3, atol=1e-5)
    assert_close(recovered(1).spectra[0, 0], found.mean(0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("levels", [0., .6])
def test_samples_spread_as_the_error_does_whatever_is_known_of_eigenvalues(levels):
    "Where no modality of a dialogue is known throughout, no error of eigenvalues can be measured; samples of features spread all the same."
    model, recovered, graph = measured(levels)
    covariance = model.error_channels[:4, :4] @ model.error_channels[:4, :4].T
    found = recovered().values[:, 0, :, :4]
    assert_close(torch.stack([x.T.cov() for x in found.unbind(1)]).mean(0), covariance, atol=.1, rtol=0)
    model.error_response[0] = torch.tensor([.1, .9, 0.])
    power = .1 + .9 * graph.spectrum.values[0]
    along = torch.einsum("nk,snd->skd", graph.spectrum.vectors[0], recovered().values[:, 0, :, :4]).var(0).sum(-1)
    assert power.max() > 2 * power.min()
    assert_close(along, power / power.mean() * covariance.trace(), rtol=.1, atol=0)


def test_samples_spread_where_no_modality_was_recorded_throughout():
    talks = never_recorded(SyntheticConversations(n_dialogues=15, length=(14, 18), modalities=("text", "audio"), dims=(8, 6), noise=.3, seed=3).dataset(), .3, seed=0)
    assert not any(c.present.all(0).any() for c in talks.valid)
    model = small(talks).eval()
    masks = random_masks(talks, "mixed", 0)
    model.measure(talks.valid, masks)
    assert model.diffusion.error_channels.any() and not model.diffusion.error_levels.any()
    (_, batch), = model.batches(talks.valid, masks[-1], batch_size=3)
    spread = model.recover(batch, n_steps=1, n_samples=64, generator=seeded()).std.square().unflatten(-1, (2, -1))
    variance = model.diffusion.error_channels.square().sum(1).view(2, -1)
    for m in (0, 1):
        hidden = ~batch.observed[..., m] & batch.valid
        assert float(spread[:, :, m][hidden].mean()) == pytest.approx(float(variance[m].mean()), rel=.5)


# The trainer


def test_a_large_gradient_of_one_group_shortens_no_other(data):
    "The denoiser's gradient is made large and that of the rest small, and the other way round: one is cut to the norm that is allowed, the other is left as it is."
    for large in (True, False):
        model = small(data)
        own = {id(p) for p in model.diffusion.parameters()}
        parts = [[p for p in model.parameters() if (id(p) in own) == mine] for mine in (large, not large)]
        trainer, before = Trainer(model, data, [], RandomMissing(.4), config=replace(BRIEF, clip=1.)), {}
        whole = trainer.whole

        def scaled(*batch):
            terms = whole(*batch)
            for part, wanted in zip(parts, (1e3, .1)):
                norm = torch.stack([p.grad.norm() for p in part]).norm()
                for p in part: p.grad.mul_(wanted / norm)
            before.update({p: p.grad.clone() for part in parts for p in part})
            return terms
        trainer.whole = scaled
        out = trainer.step(trainer.train_set[:4])
        assert sorted(float(out[f"norm_{i}"]) for i in (0, 1)) == pytest.approx([.1, 1e3], rel=1e-4)
        for p in parts[0]: assert_close(p.grad, before[p] / 1e3, rtol=1e-4, atol=1e-9)
        assert all(torch.equal(p.grad, before[p]) for p in parts[1])


@pytest.mark.parametrize("split", ["valid", "train"])
def test_the_error_is_measured_on_validation_conversations(data, monkeypatch, split):
    "On training ones only where there are no others; under masks of the same utterances."
    seen = []
    monkeypatch.setattr(GSDNet, "measure", lambda self, talks, masks: seen.append((talks, masks)))
    parts = np.asarray(data.split)
    used = data if split == "valid" else data.with_split(np.where(parts == SPLITS["valid"], SPLITS["test"], parts).astype(parts.dtype))
    fit(used, model=small, config=replace(BRIEF, epochs=1), progress=False)
    (talks, masks), = seen
    rows = np.asarray(used.split) == SPLITS[split]
    assert set(torch.cat([c.rows for c in talks]).tolist()) == set(np.flatnonzero(rows))
    hidden = np.stack([np.asarray(used.available) & ~np.asarray(mask) for mask in masks]).any((0, 2))
    assert hidden[rows].any() and not hidden[~rows].any()


class Normed(Masked):
    "A yardstick of one's own whose layer counts what it has seen."
    def make_context(self): return Norm(self.config.width)


class Norm(nn.BatchNorm1d):
    def forward(self, h, valid): return super().forward(h.flatten(0, 1)).view_as(h)


def state(model): return {name: x.clone() for name, x in model.state_dict().items()}


@pytest.fixture
def trained(data, monkeypatch):
    "A training of three epochs whose scores are given: the model, and of each epoch the averaged and the trained weights."
    def train(*scores):
        kept, validate, left = [], Trainer.validate, iter(scores)

        def scored(self):
            validate(self)
            kept.append((state(self.averaged), state(self.model)))
            return next(left)
        monkeypatch.setattr(Trainer, "validate", scored)
        return fit(data, model=lambda d: Normed(GSDConfig.of(d, width=8)), config=BRIEF, progress=False), kept
    return train


@pytest.mark.parametrize("scores, epoch", [((.5, .5, .4), 1), ((.1, .5, .5), 2), ((.5, .5, .6), 3)])
def test_of_epochs_with_level_scores_the_earlier_is_kept(trained, scores, epoch):
    model, kept = trained(*scores)
    assert (model.history["epoch"], model.history["valid_score"]) == (epoch, max(scores))
    same = [all(torch.equal(p, averaged[name]) for name, p in model.named_parameters()) for averaged, _ in kept]
    assert same == [i + 1 == epoch for i in range(3)]


def test_averaged_weights_go_with_the_buffers_of_the_trained_model(data, trained):
    model, kept = trained(.1, .5, .4)
    assert int(model.context.num_batches_tracked) == 2 * -(-len(data.train) // BRIEF.batch_size) and model.context.running_mean.any()
    for averaged, current in kept:
        for name, x in model.named_buffers(): assert torch.equal(averaged[name], current[name]), name
    assert all(torch.equal(x, kept[1][1][name]) for name, x in model.named_buffers())
