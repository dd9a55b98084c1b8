"""Recovery by GSDNet (2 steps, 8 samples) against the IMDer-like sampler (100 steps): utterances per second, error, roofline.

Both recover latents of the same encoder: the IMDer-like model is given GSDNet's, frozen, and trains its score networks on them. The error is the
squared error of a latent's channel at hidden entries; latents have zero mean and unit variance over their channels, so that zeros score 1.
Every row is written when it is known, and trainings leave checkpoints: the same command goes on where it was stopped, on the same commit.
"""
import csv
import time
from pathlib import Path

from compare import Turns, dataset, keep, options, row, show, turns

chosen = options(__doc__, samples="also the mean of 8 samples of the 100-step sampler (eight times its time)",
                 steps=(int, None, "training steps of the score networks, 4 dialogues each; 240, or none with --quick"),
                 runs=(str, "runs/recovery", "folder of the trainings"), device=(str, "cpu", "cuda where there is a GPU, which then is used"))

import torch
from traffic import copy_rate, counted, product_rate, wait

from gsdnet.architectures import IMDerCompact, IMDerLike
from gsdnet.benchmark import commit
from gsdnet.model import GSDConfig
from gsdnet.trainer import TrainConfig, fit

assert (chosen.device == "cuda") == torch.cuda.is_available(), "the trainer takes a GPU where there is one: say --device cuda there, and only there"
STEPS = (0 if chosen.quick else 240) if chosen.steps is None else chosen.steps
data, kit = dataset(chosen.data)
observed = kit.observed(max(kit.rates), 0).numpy()
middle = sorted(talk.num_nodes for talk in data.test)[len(data.test) // 2]
few = sorted(data.test, key=lambda talk: abs(talk.num_nodes - middle))[:2 if chosen.quick else 8] # all of them would take hours
learn = data.with_split(torch.where(torch.as_tensor(data.split) == 1, 2, torch.as_tensor(data.split))) # no validation: the last epoch counts
runs = Path(chosen.runs) / f"{learn.name}-{learn.hash}-{chosen.commit or commit()}-{'quick' if chosen.quick else STEPS}"
rows = []


def note(what, a, b, value, unit):
    "Write a row, unless one of this commit is there; `value` is a function of no arguments, called where it is needed."
    path, like = Path(chosen.out) / "performance.csv", row(chosen, what, a, b, 0.0, unit)
    same = ("what", "a", "b", "threads", "data", "device", "commit")
    old = list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.is_file() else []
    if not like["commit"].endswith("+") and any(all(str(r[k]) == str(like[k]) for k in same) for r in old): return
    rows.append(row(chosen, what, a, b, value(), unit))
    keep(chosen, rows[-1:])
    print(time.strftime("%H:%M:%S"), what, "|", a, "|", b or "", "|", rows[-1]["a_value"], rows[-1]["b_value"] or "", unit, flush=True)


def trained(name, make, epochs, batch_size):
    "A model of all training dialogues, trained or read from its last checkpoint."
    config = TrainConfig(epochs=epochs, batch_size=batch_size, choose_from=0)
    model = fit(learn, model=make, config=config, run=runs / name, resume=True)
    note("training before the recovery error", name, None, lambda: float(epochs * -(-len(learn.train) // batch_size)), f"steps of {batch_size} dialogues")
    note("training before the recovery error, time", name, None, lambda: epochs * model.history["seconds_per_epoch"], "s")
    return model


def on_the_same_latents(kind):
    "A function that makes an IMDer-like model on GSDNet's own encoder, frozen."
    def make(dataset):
        model = kind(GSDConfig.of(dataset, denoiser_width=32, n_steps=2, n_samples=1))
        model.encoders.load_state_dict(gsdnet.encoders.state_dict())
        model.encoders.requires_grad_(False)
        return model
    return make


def as_drawn(make):
    "A model whose weights are as drawn: they change no time."
    model = make(learn)
    model.fit_standardization(learn.train)
    return model.eval().to(chosen.device)


def speed(model, talks, **options):
    "A function that measures recovered utterances per second."
    batches = [batch for _, batch in model.batches(talks, observed)]
    hidden = sum(int((~batch.observed & batch.valid[..., None]).any(-1).sum()) for batch in batches)
    return lambda: hidden / recover_all(model, batches, **options)


def recover_all(model, batches, **options):
    "Recover every batch once, each dialogue's noise from a generator of its own as in `predict`; the seconds it took."
    begin = time.perf_counter()
    for batch in batches: model.recover(batch, generator=[torch.Generator().manual_seed(i) for i in range(len(batch.keys))], **options)
    wait(chosen.device)
    return time.perf_counter() - begin


def roofline():
    "Operations and bytes of a recovery against the rates of this thread, measured in the same run, turn by turn."
    batches = [batch for _, batch in gsdnet.batches(data.test, observed)]
    width, one = gsdnet.config.denoiser_width, gsdnet.config.n_samples * batches[len(batches) // 2].valid.numel()
    hidden = sum(int((~batch.observed & batch.valid[..., None]).any(-1).sum()) for batch in batches)
    with counted() as work: recover_all(gsdnet, batches)
    took = lambda: min(recover_all(gsdnet, batches) for _ in range(2))
    rate = lambda: product_rate(one, 3 * width, width, chosen.device)
    near = lambda: copy_rate(4 * one * width, chosen.device, .3) # a tensor of the denoiser's states: it lies in the cache
    found = [(took(), rate(), near()) for _ in range(3)]
    seconds, product, copy = (sorted(x)[1] for x in zip(*found))
    share = [work["operations"] / t / p for t, p, _ in found]
    floor = [(work["operations"] / p + work["bytes"] / c) / t for t, p, c in found]
    left = work["operations"] / product / (work["operations"] / product + work["bytes"] / copy)
    note("roofline of recovery", "operations of gsdnet", "matrix products of like size",
         lambda: Turns(work["operations"] / seconds / 1e9, product / 1e9, sorted(share)[1], min(share), max(share)), "GFLOP/s")
    note("roofline of recovery", "bytes of gsdnet", "copies in the cache",
         lambda: Turns(work["bytes"] / seconds / 1e9, copy / 1e9, work["bytes"] / seconds / copy), "GB/s")
    note("roofline of recovery, time of operations and of bytes at these rates", "floor", "measured",
         lambda: Turns(sorted(floor)[1] * seconds, seconds, sorted(floor)[1], min(floor), max(floor)), "s")
    note("roofline of recovery, largest share of the product rate that the bytes leave", "gsdnet", None, lambda: left, "")
    note("operations of recovery", "gsdnet", None, lambda: work["operations"] / hidden / 1e6, "MFLOP/utterance")
    note("bytes of recovery", "gsdnet", None, lambda: work["bytes"] / hidden / 1e6, "MB/utterance")
    note("bytes of recovery, of matrix products", "gsdnet", None, lambda: work["product_bytes"] / hidden / 1e6, "MB/utterance")
    note("matrix product, 1024 x 1024", "torch", None, lambda: product_rate(1024, 1024, 1024, chosen.device) / 1e9, "GFLOP/s")
    note("copy, 256 MiB", "torch", None, lambda: copy_rate(2**28, chosen.device) / 1e9, "GB/s")


gsdnet = trained("gsdnet", None, 2 if chosen.quick else 36, 16)
roofline()
kinds = {"imder_like, 8 positions": IMDerCompact, "imder_like": IMDerLike}
for name, kind in kinds.items():
    theirs, label = as_drawn(on_the_same_latents(kind)), f"{name}, 100 steps"
    note("recovery", "gsdnet", label, lambda: turns(speed(gsdnet, data.test), speed(theirs, few, n_steps=100), 1 if chosen.quick else 5), "utterances/s")
for name, kind in kinds.items() if STEPS else ():
    theirs = trained(name, on_the_same_latents(kind), max(1, round(STEPS / -(-len(learn.train) // 4))), 4)
    error = lambda model, **options: lambda: model.recovery_error(few, observed, **options)["recovery_mse"]
    for label, options in ((f"{name}, 4 steps", dict(n_steps=4)), (f"{name}, 100 steps", dict(n_steps=100)),
                           *([(f"{name}, 100 steps, mean of 8", dict(n_steps=100, n_samples=8))] if chosen.samples else [])):
        note("recovery error", label, "gsdnet", lambda: turns(error(theirs, **options), error(gsdnet), 1), "variances")
if rows: show(rows)
