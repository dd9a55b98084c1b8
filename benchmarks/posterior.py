"""What is recovered against what was hidden: error, spread, distribution and spectra, on sessions held out, for the diffusion and what could stand in its place.

Each model is trained on the other groups of the data (or on the training split where there are none), the last epoch counts, and recovers the held-out part with half of its entries
hidden. Latents are each model's own, of mean zero and variance one in each utterance. Rows go to `posterior.csv` as they are made; those that are there are not made again.
"""
import csv
from dataclasses import replace
from pathlib import Path

from compare import dataset, keep, options

chosen = options(__doc__, folds=(int, 3, "groups to hold out, one after the other"), rate=(float, .5, "missing rate"))

import numpy as np
import torch
from scipy.stats import t as student

from gsdnet.architectures import MODELS
from gsdnet.benchmark import commit
from gsdnet.metrics import frechet_distance, sample_metrics
from gsdnet.missing import RandomMissing, draw_mask
from gsdnet.model import keyed_generators
from gsdnet.trainer import TrainConfig, fit

KEY = ("model", "what", "fold", "seed", "rate", "data")
# name of a row: model that is trained, options of its sampler; the default is 2 steps, 8 samples
WAYS = {"default": ("gsdnet", {}), "64 samples": ("gsdnet", dict(n_samples=64)), "one estimate": ("gsdnet", dict(n_steps=1, n_samples=1)),
        "regression": ("regression", {}), "noise on the adjacency": ("adjacency_noise", {})}


@torch.no_grad()
def collected(model, talks, mask, seed, **how):
    "Samples `[S, n, M, d]`, truth `[n, M, d]` and hidden `[n, M]` of all utterances; errors of the spectra by source, summed, and their number."
    parts, errors, count = [], {}, 0
    for _, batch in model.batches(talks, mask, targets=True):
        truth, hidden = model.encode(batch.complete()), batch.target_mask
        if not hidden.any(): continue
        recovery = model.recover(batch, generator=keyed_generators(batch.keys, seed), **how)
        shape, spectrum = truth.shape[-2:], batch.graph.spectrum
        parts.append((recovery.values.unflatten(-1, shape)[:, batch.valid], truth[batch.valid], hidden[batch.valid]))
        known = batch.observed | hidden
        whole = (known | ~batch.valid[..., None]).all(1) & hidden.any(1)
        counted = (whole[:, None] & spectrum.valid[..., None]).float()
        level = lambda x, known: spectrum.values[..., None] + model.config.spread * model.diffusion.offsets(x.flatten(-2), batch.graph, known)
        exact, count = level(truth, known), count + counted.sum().item()
        sources = {"recovered": recovery.spectra.mean(0), "structure": spectrum.values[..., None].expand_as(exact),
                   "observed": level(truth * batch.observed[..., None], batch.observed), "of the mean": level(recovery.mean.unflatten(-1, shape), None)}
        for name, found in sources.items(): errors[name] = errors.get(name, 0) + ((found - exact).abs() * counted).sum().item()
    columns = [torch.cat(column, dim).numpy() for column, dim in zip(zip(*parts), (1, 0, 0))]
    return *columns, {name: error / count for name, error in errors.items()}


def judged(model, talks, mask, seed, **how):
    "Figures of one way to recover."
    samples, truth, hidden, errors = collected(model, talks, mask, seed, **how)
    mean, s = samples.mean(0), len(samples)
    found = {"squared_error": ((mean - truth)[hidden] ** 2).mean()}
    if s > 1:
        # the samples' noise sums to zero, so their mean has no error of sampling and Student's interval no widening for it
        half = student.ppf(.95, s - 1) * samples.std(0, ddof=1)
        found |= {"variance_ratio": sample_metrics(samples, truth, hidden[..., None], centred=True)["variance_ratio"],
                  "coverage_90": (abs(truth - mean) <= half)[hidden].mean()}
    for m, name in enumerate(model.modalities):
        found[f"frechet_{name}"] = frechet_distance(samples[0, :, m][hidden[:, m]], truth[:, m][hidden[:, m]])
    return found | {f"spectrum_{name.replace(' ', '_')}": error for name, error in errors.items()}


def parts(data):
    "Number of the fold, training data with a test split."
    groups = [] if data.group is None else data.group.unique().tolist()
    for fold in groups[:1 if chosen.quick else chosen.folds]: yield fold, data.with_split(torch.where(data.group == fold, 2, 0))
    if not groups: yield -1, data


data, _ = dataset(chosen.data)
name = Path(chosen.data).name if chosen.data else "synthetic"
path, seed = Path(chosen.out) / "posterior.csv", 0
there = {tuple(r[k] for k in KEY) for r in csv.DictReader(path.open(encoding="utf-8", newline=""))} if path.is_file() else set()
config = replace(TrainConfig(choose_from=0), epochs=1 if chosen.quick else 36)
for fold, part in parts(data):
    mask, trained = draw_mask(part.available, RandomMissing(chosen.rate), part.dialogue, seed=seed), {}
    for what, (which, how) in WAYS.items():
        key = dict(zip(KEY, (which, what, fold, seed, chosen.rate, name)))
        if tuple(map(str, key.values())) in there: continue
        if which not in trained: trained[which] = fit(part, model=MODELS[which], seed=seed, config=config, progress=False)
        found = judged(trained[which], part.test, mask, seed, **how)
        keep(chosen, [key | {k: f"{found[k]:.5f}" if k in found else "" for k in
                      ("squared_error", "variance_ratio", "coverage_90", *(f"frechet_{m}" for m in data.modalities), "spectrum_recovered", "spectrum_structure",
                       "spectrum_observed", "spectrum_of_the_mean")} | {"commit": chosen.commit or commit()}], path.name, KEY)
        print(fold, what, {k: round(float(v), 3) for k, v in found.items()}, flush=True)
