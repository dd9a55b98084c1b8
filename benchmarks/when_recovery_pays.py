"""When recovery pays: GSDNet, its twin and the best recovery there can be, on synthetic conversations whose law is known.

    python benchmarks/when_recovery_pays.py --jobs 2            the whole grid; rows that are there are not made again
    python benchmarks/when_recovery_pays.py --list              what there is to train
    python benchmarks/when_recovery_pays.py --only labels=6     one setting

A task is one training, judged under every protocol of PROTOCOLS on the same TEST dialogues; its rows go to `synthetic_when.csv` together. A seed
is another law, other conversations, other masks and other weights at once, the same for all models. What the rows of a model are:

    zero_fill, gsdnet       the twin and GSDNet; with _plain: without distillation
    best                    GSDNet whose denoiser is replaced by the law: true posterior draws in training and test, fused as GSDNet fuses them
    gsdnet_shown            the finished twin, and a denoiser trained beside it: what is recovered is shown to the twin as if it had been recorded
    gsdnet_mean_shown       the same, but the mean of the samples is shown, and not each of them
    best_mean_shown, best_samples_shown   the same with the law's posterior mean, or eight draws, in the place of the denoiser's
    zeros_shown             a control: zeros, which are the mean of all features, shown as if recorded
    optimum, everything ... task `known`, which trains nothing: what the law itself answers
"""
import argparse
import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from compare import as_made, known_tasks
from gsdnet.benchmark import commit
from gsdnet.conversation import AddSpectrum, ConversationBatch
from gsdnet.data import ConversationDataset, SyntheticConversations, never_recorded
from gsdnet.diffusion import Recovery, SpectralDiffusion
from gsdnet.metrics import classification_metrics
from gsdnet.missing import BurstMissing, FixedMissing, MixedMissing, RandomMissing, draw_mask
from gsdnet.model import GSDConfig, GSDNet, keyed_generators
from gsdnet.posthoc import AddedRecovery
from gsdnet.trainer import TrainConfig, Trainer, own_randomness, random_masks

MOST, TEST, SEEDS = 384, 200, 12
MODALITIES = ("text", "audio", "visual")
PROTOCOLS = {"random 0": RandomMissing(0.), "random 0.3": RandomMissing(.3), "random 0.5": RandomMissing(.5), "random 0.667": RandomMissing(2 / 3),
             "burst 0.5": BurstMissing(.5, 5), "no text": FixedMissing(("text",), MODALITIES), "visual alone": FixedMissing(("text", "audio"), MODALITIES)}


@dataclass(frozen=True)
class Setting:
    "What a training is given; the defaults are the base from which one thing at a time is changed."
    dialogues: int = 96           # for training, MOST at most
    labels: int | None = None     # of them that keep their labels; all if not given
    max_rate: float | None = None # largest missing rate in the recogniser's training; None: up to one modality left
    correlation: float = .5       # share of the signal that modalities have in common though it is no emotion
    gone: float = 0.              # share of the training entries that nobody recorded
    steps: int = 120              # of training, about where the twin is best


NET = dict(latent=32, hidden=64, width=64, denoiser_width=48, encoder_dropout=.1, dropout=.1)
USUAL = ("zero_fill", "gsdnet", "best")
UNDISTILLED = (*USUAL, "zero_fill_plain", "gsdnet_plain")
# name of a setting: what it is, and what is trained in it
GRID = {
    "base": (Setting(), ("known", *UNDISTILLED)),
    "dialogues=24": (Setting(dialogues=24), UNDISTILLED),
    "dialogues=384": (Setting(dialogues=384, steps=240), USUAL),
    "labels=24": (Setting(labels=24), UNDISTILLED),
    "labels=6": (Setting(labels=6), UNDISTILLED),
    "dialogues=384, labels=24": (Setting(dialogues=384, labels=24, steps=240), UNDISTILLED),
    "max_rate=0.1": (Setting(max_rate=.1), USUAL),
    "max_rate=0": (Setting(max_rate=0.), ("zero_fill",)),
    "correlation=0": (Setting(correlation=0.), ("known", *USUAL)),
    "correlation=0.9": (Setting(correlation=.9), ("known", *USUAL)),
    "gone=0.3": (Setting(gone=.3), USUAL),
    "gone=0.5": (Setting(gone=.5), USUAL),
    "labels=24, max_rate=0.1": (Setting(labels=24, max_rate=.1), USUAL),
    "dialogues=384, labels=6": (Setting(dialogues=384, labels=6, steps=240), USUAL),
    "dialogues=384, labels=24, max_rate=0.1": (Setting(dialogues=384, labels=24, max_rate=.1, steps=240), USUAL),
}
COLUMNS = ["setting", "seed", "task", "model", "protocol", "weighted_f1", "nll", "recovery_mse", "least_mse", "commit"]


def conversations(setting, seed):
    "The law of a seed, and its training and test dialogues with what the setting takes away; a larger training set holds the smaller ones."
    law = SyntheticConversations(n_dialogues=MOST + TEST, length=(6, 12), correlation=setting.correlation, seed=seed)
    whole = law.dataset()
    kept, test = (whole.dialogue < setting.dialogues) | (whole.dialogue >= MOST), whole.dialogue >= MOST
    known = test | (whole.dialogue < (setting.dialogues if setting.labels is None else setting.labels))
    arrays = whole.arrays() | {"label": torch.where(known, whole.y, -1).numpy(), "split": torch.where(test, 2, 0).numpy()}
    data = ConversationDataset({name: a[kept.numpy()] for name, a in arrays.items()}, whole.modalities, label_names=whole.label_names,
                               name=whole.name, title=whole.title)
    return law, never_recorded(data, setting.gone, seed=seed) if setting.gone else data


def masks(data, seed):
    "What is seen of the test dialogues under each protocol, by its name, the same whatever training lost."
    everything = torch.ones_like(data.available)
    return {name: data.available & draw_mask(everything, p, data.dialogue, data.speaker, seed=seed) for name, p in PROTOCOLS.items()}


class Law:
    """The closed form for batches. With s = (affect, common factor) an utterance's features are C s + noise: given what is seen, all s of a dialogue are
    Gaussian with precision (prior precision + sum of seen c c' / noise), a matrix of 5 rows for each utterance and not of 18."""
    def __init__(self, law):
        self.law, (B, G, self.own) = law, law.loadings
        self.q, self.C = B.shape[1], torch.cat([B, G], 1)
        self.widths = torch.tensor(law.dims)
        self.inverse = cache(lambda speaker: torch.linalg.inv(law.state_covariance(torch.tensor(speaker))))

    def prior(self, speaker, valid):
        "Precision of s before anything is seen, `[B, N·p, N·p]`."
        b, n, p = *valid.shape, self.C.shape[1]
        P = torch.eye(n, dtype=torch.float64).repeat(b, 1, 1)
        for i, k in enumerate(valid.sum(1).tolist()): P[i, :k, :k] = self.inverse(tuple(speaker[i, :k].tolist()))
        affect = (torch.arange(p) < self.q).double()
        K = P[:, :, None, :, None] * affect.diag()[:, None] + torch.eye(n).double()[:, None, :, None] * (1 - affect).diag()[:, None]
        return K.reshape(b, n * p, n * p)

    def latent(self, batch):
        "Mean `[B, N, p]` of s given what a batch shows, and the Cholesky factor of its precision."
        b, n, p = *batch.valid.shape, self.C.shape[1]
        x = torch.cat([batch.features[m] for m in batch.modalities], -1).double()
        weight = batch.observed.repeat_interleave(self.widths, -1) / self.own
        seen = torch.einsum("bnd,dp,dq->bnpq", weight, self.C, self.C)
        places = torch.diag_embed(seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 4, 2) # a block for each utterance
        L = torch.linalg.cholesky(self.prior(batch.speaker, batch.valid) + places.reshape(b, n * p, n * p))
        return torch.cholesky_solve(((weight * x) @ self.C).reshape(b, -1, 1), L).view(b, n, p), L

    def features(self, batch, n_samples=0, generator=None):
        "Draws of all features given what a batch shows, `[S, B, N, D]`; their mean where no draws are asked for."
        mean, L = self.latent(batch)
        if not n_samples: return (mean @ self.C.T)[None]
        size = self.C.shape[1], len(self.C)
        sources = generator if isinstance(generator, list) else [generator] * len(mean)
        z = mean.new_zeros(n_samples, *mean.shape[:2], sum(size))
        for i, (k, g) in enumerate(zip(batch.lengths, sources)): z[:, i, :k] = torch.randn(n_samples, k, sum(size), generator=g, dtype=torch.float64)
        z, e = z.split(size, -1)
        s = mean + torch.linalg.solve_triangular(L.mT, z.flatten(2)[..., None], upper=True).view_as(z)
        return s @ self.C.T + self.own.sqrt() * e

    @cache
    def noise(self, *shape):
        "Standard normal numbers, the same for every call."
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def answers(self, batch, n=400):
        "Class probabilities `[U, C]` of a batch's utterances given what it shows: the ideal recogniser."
        mean, L = self.latent(batch)
        b, utterances, p = mean.shape
        places = torch.arange(utterances)
        cov = torch.cholesky_inverse(L).view(b, utterances, p, utterances, p)[:, places, :, places].movedim(0, 1)
        mean, cov = mean[batch.valid][:, :self.q], cov[batch.valid][:, :self.q, :self.q]
        spread, corners = torch.linalg.cholesky(cov).float(), self.law.prototypes.float()
        z, xi = self.noise(self.q + self.law.n_classes, n, len(mean)).split([self.q, self.law.n_classes])
        votes = (corners @ mean.float().T)[:, None] + torch.einsum("cp,upq,qsu->csu", corners, spread, z) + self.law.label_noise * xi
        won = (votes == votes.amax(0)).double().mean(1).T # the share of draws that a class wins; in single precision two may tie
        return won / won.sum(-1, keepdim=True)


class KnownLaw(SpectralDiffusion):
    "In the place of the denoiser: nothing is learned, and latents of draws from the true posterior are handed on."
    def loss(self, x0, observed, target, graph, generator=None): return {"feature": x0.new_zeros(()), "eigenvalue": x0.new_zeros(())}

    def recover(self, x, observed, graph, **options):
        shown = self.columns(observed)
        values = torch.where(shown, x, self.draws)
        return Recovery(values, graph.spectrum.values[..., None] + self.spread * self.offsets(values.movedim(0, 2), graph).movedim(2, 0), shown)


class Best(GSDNet):
    "GSDNet with the best recovery there can be: features from their true posterior, then encoded as any others."
    def __init__(self, config, law, mean=False):
        super().__init__(config)
        self.law, self.mean = Law(law), mean

    def process(self, dims, **options): return KnownLaw(dims, **options)

    def measure(self, conversations, masks): "Nothing is to be found out of a law that is known."

    @torch.no_grad()
    def draw(self, batch, n_samples, generator):
        "Leave encoded draws `[S, B, N, D]` with the diffusion."
        x = self.law.features(batch, 0 if self.mean else n_samples, generator).float().split(list(self.config.dims.values()), -1)
        training = self.encoders.training
        self.encoders.eval()
        z = [self.encoders[m]((a - getattr(self, f"mean_{m}")) / getattr(self, f"std_{m}")) for m, a in zip(self.modalities, x)]
        self.encoders.train(training)
        self.diffusion.draws = torch.cat(z, -1) * batch.valid[..., None]

    def recover(self, batch, n_steps=None, n_samples=None, generator=None, z=None):
        self.draw(batch, n_samples or self.config.n_samples, generator)
        return super().recover(batch, n_steps, n_samples, generator, z)

    def loss(self, batch, recovery_observed, generator=None):
        self.draw(batch, 1, generator)
        return super().loss(batch, recovery_observed, generator)


class ShownAsObserved(AddedRecovery):
    "A recogniser as it is, shown what was recovered as if it had been recorded; the denoiser alone is trained, and needs no label."
    mean = False # show the mean of the samples, or one after the other and average the answers

    def outputs(self, batch, *, seed=0, n_steps=None, n_samples=None):
        if not self.mean: return super().outputs(batch, seed=seed, n_steps=n_steps, n_samples=n_samples)
        z = self.encode(batch)
        recovery = self.recover(batch, n_steps, n_samples, keyed_generators(batch.keys, seed), z)
        return self.fuse(recovery.mean.unflatten(-1, z.shape[-2:]), batch.observed | batch.valid[..., None], batch)


class BestShownAsObserved(ShownAsObserved, Best):
    "The same with the best recovery there can be."
    def __init__(self, config, law, mean=False): Best.__init__(self, config, law, mean)


class ZerosShownAsObserved(GSDNet):
    "A control: zeros, which are the mean of all features, in the place of what is missing, as if recorded."
    def outputs(self, batch, *, seed=0, n_steps=None, n_samples=None):
        whole = replace(batch, observed=batch.observed | batch.valid[..., None])
        return self.fuse(self.encode(whole), whole.observed, whole)


def untrained(name, data, law):
    "The model of a task."
    config = GSDConfig.of(data, **NET, recover=not name.startswith("zero_fill"), distill_weight=0. if name.endswith("_plain") else .5)
    if name == "best": return Best(config, law)
    return GSDNet(config)


def trained(net, data, epochs, seed, max_rate=None):
    "A model after its training, and the law of its recovery's error; the weights of the last epoch count."
    net = Trainer(net, data, [], MixedMissing(max_rate), config=TrainConfig(epochs=epochs, choose_from=0), seed=seed).fit(progress=False)
    net.measure(data.train, random_masks(data, "mixed", seed, "train"))
    return net


def beside(net, kind, law):
    "Another class with the settings and weights of a trained model, which recovers."
    other = kind(replace(net.config, recover=True), *law)
    other.load_state_dict(net.state_dict())
    return other.eval()


def models(name, setting, data, law, seed):
    "The model of a task after its training, by name, and what can be made of it without labels."
    what = GRID[setting][0]
    epochs = max(1, what.steps // -(-len(data.train) // 16))
    with own_randomness(seed):
        net = untrained(name, data, law)
        net.fit_standardization(data.train)
        net = trained(net, data, epochs, seed, what.max_rate)
    yield name, net
    if name != "zero_fill": return
    yield "best_mean_shown", beside(net, BestShownAsObserved, (law, True))
    yield "best_samples_shown", beside(net, BestShownAsObserved, (law, False))
    yield "zeros_shown", beside(net, ZerosShownAsObserved, ())
    with own_randomness(seed): shown = trained(beside(net, ShownAsObserved, ()), data, epochs, seed)
    yield "gsdnet_shown", shown
    shown.mean = True
    yield "gsdnet_mean_shown", shown


def judged(name, net, data, law, seed):
    "Rows of a trained model, one for each protocol; under one of them the error of what is recovered, and the least that it could be."
    for protocol, mask in masks(data, seed).items():
        out, error, least = net.predict(data.test, mask, seed=seed), "", ""
        if protocol == "random 0.5" and name in ("gsdnet", "gsdnet_shown"):
            error = net.recovery_error(data.test, mask, seed=seed)["recovery_mse"]
            least = beside(net, Best, (law,)).recovery_error(data.test, mask, seed=seed, n_samples=32)["recovery_mse"]
        yield name, protocol, classification_metrics(data.y[torch.as_tensor(out.rows)].numpy(), out.probabilities), error, least


def known(data, law, seed):
    "What the law itself answers: the best answer, and those of the best recogniser of complete views when it is shown something for what is missing."
    form, transform, truth = Law(law), AddSpectrum(), torch.cat([c.y for c in data.test]).numpy()
    talks = [transform(c) for c in data.test]
    whole = ConversationBatch.collate(talks)
    x = torch.cat([*whole.features.values()], -1).double()

    def answers(values): # features of all modalities, as if observed
        parts = dict(zip(law.modalities, values.split(list(law.dims), -1)))
        return form.answers(replace(whole, features=parts)).numpy()
    everything = answers(x)
    for protocol, mask in masks(data, seed).items():
        batch = ConversationBatch.collate(talks, [mask[c.rows] for c in talks])
        shown = batch.observed.repeat_interleave(form.widths, -1)
        fill = lambda draws: torch.where(shown, x, draws)
        each = [answers(fill(d)) for d in form.features(batch, 8, torch.Generator().manual_seed(seed))]
        found = {"optimum": form.answers(batch).numpy(), "everything": everything, "mean in its place": answers(fill(form.features(batch)[0])),
                 "zeros in its place": answers(x * shown), "one sample": each[0], "eight samples": sum(each) / len(each)}
        for name, p in found.items(): yield name, protocol, classification_metrics(truth, p), "", ""


def task(setting, seed, name):
    "All rows of one task."
    torch.set_num_threads(1)
    short = lambda e: e and f"{e:.4f}"
    law, data = conversations(GRID[setting][0], seed)
    found = known(data, law, seed) if name == "known" else (r for kind, net in models(name, setting, data, law, seed) for r in judged(kind, net, data, law, seed))
    return [[setting, seed, name, model, protocol, f"{100 * m['weighted_f1']:.3f}", f"{m['nll']:.4f}", short(error), short(least)]
            for model, protocol, m, error, least in found]


def tasks(chosen, there):
    "What is still to be made, seed by seed."
    names = chosen.only.split(";") if chosen.only else list(GRID)
    if unknown := [n for n in names if n not in GRID]: sys.exit(f"got --only with {unknown}, expected some of {list(GRID)}, separated by semicolons")
    wanted = lambda name: not chosen.tasks or name in chosen.tasks.split(",")
    todo = [(setting, seed, name) for seed in range(chosen.first, chosen.first + chosen.seeds) for setting in names for name in GRID[setting][1] if wanted(name)]
    return [t for t in todo if (t[0], str(t[1]), t[2]) not in there]


def main():
    "Make what is missing and add it to the table as it is done."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each in a process of its own")
    parser.add_argument("--only", help="names of settings, separated by semicolons")
    parser.add_argument("--tasks", help="names of trainings, separated by commas: known, zero_fill, gsdnet, best, ...")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--out", default="results", help="folder of the CSV file")
    parser.add_argument("--commit", help="what to write down as the commit where the source is in no repository")
    parser.add_argument("--list", action="store_true", help="print what is to be made and stop")
    chosen = parser.parse_args()
    path = Path(chosen.out) / "synthetic_when.csv"
    there = known_tasks(path, 3)
    todo, source = tasks(chosen, there), chosen.commit or commit()
    if chosen.list:
        print(*("\t".join(map(str, t)) for t in todo), f"{len(todo)} tasks", sep="\n")
        return 0
    return as_made(path, COLUMNS, task, todo, chosen.jobs, source)


if __name__ == "__main__": sys.exit(main())
