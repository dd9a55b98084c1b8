"""Recovery by GSDNet (2 steps, 8 samples) against the IMDer-like sampler (100 steps): utterances per second, error, roofline.

Both recover latents of the same encoder: the IMDer-like model is given GSDNet's, frozen, and trains its score networks on them. The error is the
squared error of a latent's channel at hidden entries; latents have zero mean and unit variance over their channels, so that zeros score 1.
"""
import time

from compare import dataset, keep, options, row, show, turns

chosen = options(__doc__, samples="also the mean of 8 samples of the 100-step sampler (eight times its time)")

import torch
from torch.utils.flop_counter import FlopCounterMode

from gsdnet.architectures import IMDerCompact, IMDerLike
from gsdnet.model import GSDConfig
from gsdnet.trainer import TrainConfig, fit

data, kit = dataset(chosen.data)
observed = kit.observed(max(kit.rates), 0).numpy()
middle = sorted(talk.num_nodes for talk in data.test)[len(data.test) // 2]
few = sorted(data.test, key=lambda talk: abs(talk.num_nodes - middle))[:2 if chosen.quick else 8] # all of them would take hours
config = TrainConfig(epochs=2 if chosen.quick else 36, choose_from=0)
learn = data.with_split(torch.where(torch.as_tensor(data.split) == 1, 2, torch.as_tensor(data.split))) # no validation: the last epoch counts
gsdnet = fit(learn, config=config)


def on_the_same_latents(kind, epochs):
    "An IMDer-like model whose score networks are trained on GSDNet's own latents."
    def make(dataset):
        model = kind(GSDConfig.of(dataset, denoiser_width=32, n_steps=2, n_samples=1))
        model.encoders.load_state_dict(gsdnet.encoders.state_dict())
        model.encoders.requires_grad_(False)
        return model
    if epochs: return fit(learn, model=make, config=TrainConfig(epochs=epochs, batch_size=4, choose_from=0)) # four times the steps
    model = make(learn) # weights as drawn do for a measure of speed
    model.fit_standardization(learn.train)
    return model.eval()


def speed(model, talks, **options):
    "A function that measures recovered utterances per second."
    return lambda: model.recovery_error(talks, observed, **options)["recovered_per_second"]


def recover_all(model, batches):
    "Recover every batch once; the seconds it took."
    begin = time.perf_counter()
    for batch in batches: model.recover(batch, generator=torch.Generator().manual_seed(0))
    return time.perf_counter() - begin


def product_rate(m, k, n, seconds=1.0):
    "Floating-point operations a second of `[m, k] @ [k, n]`."
    a, b, count, begin = torch.randn(m, k), torch.randn(k, n), 0, time.perf_counter()
    while time.perf_counter() - begin < seconds: a @ b; count += 1
    return 2 * m * k * n * count / (time.perf_counter() - begin)


def roofline():
    "Operations of a recovery, their rate, and the rate of matrix products of like size, in one run."
    batches = [batch for _, batch in gsdnet.batches(data.test, observed)]
    width, rows = gsdnet.config.denoiser_width, gsdnet.config.n_samples * batches[len(batches) // 2].valid.numel()
    with FlopCounterMode(display=False) as counted: recover_all(gsdnet, batches)
    done = lambda: counted.get_total_flops() / min(recover_all(gsdnet, batches) for _ in range(2)) / 1e9
    like = lambda: product_rate(rows, 3 * width, width) / 1e9
    result = turns(done, like, 3)
    hidden = sum(int((~batch.observed & batch.valid[..., None]).any(-1).sum()) for batch in batches)
    return result, counted.get_total_flops() / hidden / 1e6, product_rate(1024, 1024, 1024) / 1e9


rows, ours = [], speed(gsdnet, data.test)
ours()
kinds = {"imder_like": (IMDerLike, 0 if chosen.quick else 24), "imder_like, 8 positions": (IMDerCompact, 0 if chosen.quick else 36)}
for name, (kind, epochs) in kinds.items():
    theirs = on_the_same_latents(kind, epochs)
    label = f"{name}, 100 steps"
    rows.append(row(chosen, "recovery", "gsdnet", label, turns(ours, speed(theirs, few, n_steps=100), 2), "utterances/s"))
    error = lambda model, **options: model.recovery_error(few, observed, **options)["recovery_mse"]
    if chosen.quick: continue # an error needs trained networks
    rows.append(row(chosen, "recovery error", label, "gsdnet", turns(lambda: error(theirs, n_steps=100), lambda: error(gsdnet), 1), "variances"))
    rows.append(row(chosen, "recovery error", f"{name}, 4 steps", "gsdnet", turns(lambda: error(theirs, n_steps=4), lambda: error(gsdnet), 1), "variances"))
    if chosen.samples:
        mean = turns(lambda: error(theirs, n_steps=100, n_samples=8), lambda: error(gsdnet), 1)
        rows.append(row(chosen, "recovery error", f"{label}, mean of 8", "gsdnet", mean, "variances"))
share, per_utterance, peak = roofline()
rows.append(row(chosen, "roofline of recovery", "operations of gsdnet", "matrix products of like size", share, "GFLOP/s"))
rows.append(row(chosen, "operations of recovery", "gsdnet", None, per_utterance, "MFLOP/utterance"))
rows.append(row(chosen, "matrix product, 1024 x 1024", "torch", None, peak, "GFLOP/s"))
keep(chosen, rows)
show(rows)
