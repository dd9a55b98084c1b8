"""How a recovery may be used: other ways to show it to the recogniser, and a denoiser that is told what the recogniser thinks.

    python benchmarks/uses.py --data folder --jobs 2        all trainings; rows that are there are not made again

IEMOCAP's sessions 1 to 4 alone, as in `attempts.py`: each is held out in turn, the last epoch counts, session 5 is never read. Rows of `uses.csv`:

    twin                      the same network without recovery
    as designed               GSDNet
    shown as if recorded      the same weights; in the answer, what is recovered stands in the place of what is missing, bit and all, sample by sample
    mean as if recorded       the same with the mean of the samples
    twin, shown               the finished twin, and a denoiser trained beside it on its latents, shown in the same way
    trained as if recorded    GSDNet that is shown what is recovered as if recorded in training, too
    posterior at once         all samples enter one answer: attention over samples, and a gate by how far they spread
    told the class            the denoiser reads, as one more modality that is always there, what the recogniser answers from the observed entries
"""
import os
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from compare import as_made, development, development_masks, known_tasks, options
from gsdnet.benchmark import commit
from gsdnet.diffusion import Recovery, SpectralDiffusion
from gsdnet.metrics import evaluate
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.trainer import own_randomness
from when_recovery_pays import ShownAsObserved, beside, trained

COLUMNS = ["use", "fold", "seed", "protocol", "weighted_f1", "nll", "recovery_mse", "commit"]


class TrainedAsRecorded(ShownAsObserved):
    "What is recovered is shown as if it had been recorded, in training and in answers."
    __init__, loss, parameter_groups = GSDNet.__init__, GSDNet.loss, GSDNet.parameter_groups

    def views(self, z, batches, recovery):
        first, *others = batches
        whole = first.observed | first.valid[..., None]
        shown = torch.stack([whole, *(b.observed for b in others)], 2)
        values = torch.where(first.observed[..., None], z, recovery.values[0].unflatten(-1, z.shape[-2:]))
        latents = torch.stack([values, *(z * b.observed[..., None] for b in others)], 2)
        offsets = [self.recovered(x, bits, first, None)[1] for x, bits in zip(latents.unbind(2), shown.unbind(2))]
        return self.fusion(latents, shown, None, torch.cat(offsets, 2), first.graph).unbind(2)


class Several(SpectralDiffusion):
    "Draws several samples where one is asked for, as training does, and knows in training how far its first estimate is off: by every tenth batch."
    steps = 0

    def loss(self, *given):
        self.steps += 1
        if self.steps % 10 == 1: self.measure([given[:4]])
        return super().loss(*given)

    def recover(self, *given, n_samples=8, **how): return super().recover(*given, n_samples=max(4, n_samples), **how)


class AtOnce(GSDNet):
    "One answer from all samples: attention over samples pools them, and a gate closes where they spread."
    def __init__(self, config):
        super().__init__(config)
        self.attend, self.gate = nn.Linear(config.latent * len(config.dims), 1), nn.Linear(len(config.dims), len(config.dims))

    def process(self, dims, **how): return Several(dims, **how)

    def recovered(self, z, observed, batch, recovery):
        values, offsets = super().recovered(z, observed, batch, recovery)
        if values is None: return None, offsets.mean(2, keepdim=True)
        weights = self.attend(values.flatten(-2)).softmax(2)[..., None]
        spread = values.std(2, correction=0).mean(-1)
        pooled = (weights * values).sum(2) * torch.sigmoid(self.gate(spread))[..., None]
        return pooled[:, :, None], offsets.mean(2, keepdim=True)


class Told(SpectralDiffusion):
    "A diffusion with one modality more, never missing: what the recogniser answers from the observed entries."
    def __init__(self, dims, net, n_classes, **how):
        super().__init__(dict(dims) | {"answer": n_classes}, **how)
        self.net, self.n = [net], n_classes # in a list: the recogniser is no part of its own diffusion

    @torch.no_grad()
    def told(self, x, observed, graph):
        "Features and bits with the answer beside them; one class more likely than by chance is above zero."
        net = self.net[0]
        training = net.training
        net.eval()
        m = observed.shape[-1]
        z = (x * self.columns(torch.cat([observed, observed[..., :1]], -1))[..., :-self.n]).unflatten(-1, (m, -1))
        answer = net.fuse(z, observed, SimpleNamespace(graph=graph))[0].softmax(-1) * self.n - 1
        net.train(training)
        return torch.cat([x, answer * graph.valid[..., None]], -1), torch.cat([observed, graph.valid[..., None]], -1)

    def offsets(self, x, graph, known=None):
        if x.shape[-1] == sum(self.dims.values()): return super().offsets(x, graph, known)
        more = None if known is None else torch.cat([known, graph.valid[..., None]], -1)
        return super().offsets(nn.functional.pad(x, (0, self.n)), graph, more)[..., :-1]

    def recover(self, x, observed, graph, **how):
        found = super().recover(*self.told(x, observed, graph), graph, **how)
        return Recovery(found.values[..., :-self.n], found.spectra[..., :-1], found.known[..., :-self.n], found.whole)

    def loss(self, x0, observed, target, graph, generator=None):
        x, bits = self.told(x0, observed, graph)
        return super().loss(x, bits, torch.cat([target, torch.zeros_like(target[..., :1])], -1), graph, generator)

    def measure(self, batches):
        more = lambda target: torch.cat([target, torch.zeros_like(target[..., :1])], -1)
        super().measure((*self.told(x0, observed, graph), more(target), graph) for x0, observed, target, graph in batches)


class ToldTheClass(GSDNet):
    "GSDNet whose denoiser knows what the recogniser answers from the observed entries."
    def process(self, dims, **how): return Told(dims, self, self.config.n_outputs, **how)


TRAININGS = {"twin": GSDNet, "as designed": GSDNet, "trained as if recorded": TrainedAsRecorded, "posterior at once": AtOnce, "told the class": ToldTheClass}


def models(name, data, epochs, seed):
    "What one training gives, by name."
    with own_randomness(seed):
        net = TRAININGS[name](GSDConfig.of(data, recover=name != "twin", **{"path_drop": 0.} if name == "trained as if recorded" else {}))
        net.fit_standardization(data.train)
        net = trained(net, data, epochs, seed)
    yield name, net
    if name == "as designed":
        shown = beside(net, ShownAsObserved, ())
        yield "shown as if recorded", shown
        shown.mean = True
        yield "mean as if recorded", shown
    if name == "twin":
        with own_randomness(seed): yield "twin, shown", trained(beside(net, ShownAsObserved, ()), data, epochs, seed)


def task(folder, name, fold, seed, epochs):
    "All rows of one training."
    torch.set_num_threads(1)
    whole = development(folder)
    data = whole.with_split(torch.where(whole.group == fold, 2, 0))
    return [[kind, fold, seed, protocol, f"{100 * found['weighted_f1']:.3f}", f"{found['nll']:.4f}", f"{found['recovery_mse']:.4f}"]
            for kind, net in models(name, data, epochs, seed) for protocol, mask in development_masks(data, seed).items()
            for found in [evaluate(net, data, observed=mask, seed=seed)]]


def main():
    "Make what is missing and add it to the table as it is done."
    chosen = options(__doc__, jobs=(int, 1, "trainings at a time, each in a process of its own"), seeds=(int, 2, "how many"), first=(int, 0, "the first of them"))
    if chosen.data is None: raise SystemExit("got no --data, expected a folder with groups such as sessions: the trainings are judged on actors never heard")
    path = Path(chosen.out) / "uses.csv"
    there = known_tasks(path, 3)
    folds = development(chosen.data).group.unique().tolist()[:1 if chosen.quick else None]
    seeds = range(chosen.first, chosen.first + (1 if chosen.quick else chosen.seeds))
    todo = [(name, f, s) for s in seeds for f in folds for name in TRAININGS if (name, str(f), str(s)) not in there]
    todo = [(chosen.data, *t, 1 if chosen.quick else 36) for t in todo]
    return as_made(path, COLUMNS, task, todo, chosen.jobs, chosen.commit or commit())


if __name__ == "__main__": sys.exit(main())
