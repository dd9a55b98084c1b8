"""GSDNet on a GPU: training in three precisions, recovery and answers as batches grow, each against the rates of the same card; resume; compilation.

Rows go to `gpu.csv` as each part ends. With `--device cpu` the same parts run, small, on the processor: a check of the script, not a measurement.
"""
import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8") # what deterministic matrix products ask for, read when the library starts

import math
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import fields, is_dataclass, replace

from compare import Turns, dataset, keep, options, row, show

PARTS = ("ceilings", "agreement", "training", "recovery", "answers", "resume", "compile")
chosen = options(__doc__, device=(str, "cuda", "cuda, or cpu for a dry run"), only=(str, ",".join(PARTS), "parts to run, comma-separated"),
                 limit=(float, 150.0, "seconds after which no further part is begun"))
start = time.perf_counter()

import torch
from traffic import copy_rate, counted, product_rate, seconds, wait

from gsdnet.architectures import MODELS
from gsdnet.conversation import ConversationBatch
from gsdnet.missing import MixedMissing
from gsdnet.trainer import TrainConfig, Trainer

CUDA = chosen.device == "cuda"
assert CUDA == torch.cuda.is_available(), f"got --device {chosen.device}, expected {'cuda' if torch.cuda.is_available() else 'cpu'}: the trainer takes a GPU where there is one"
data, kit = dataset(chosen.data)
mask = torch.as_tensor(kit.observed(max(kit.rates), 0))
NAMES, DTYPES = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}, {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS = list(NAMES) if CUDA else ["no", "bf16"] # fp16 needs a GPU
EPOCHS = 6 if CUDA else 2
rates = {} # ceilings of this card, by name


def made(name):
    "A model as drawn: its weights change no time."
    torch.manual_seed(0)
    model = MODELS[name](data)
    model.fit_standardization(data.train)
    return model.eval().to(chosen.device)


def one(what, name, value, unit): return row(chosen, what, name, None, value, unit)


def repeated(x, times):
    "A batch with its dialogues several times over."
    if isinstance(x, torch.Tensor): return x.repeat(times, *[1] * (x.ndim - 1))
    if isinstance(x, list): return x * times
    if isinstance(x, dict): return {k: repeated(v, times) for k, v in x.items()}
    return replace(x, **{f.name: repeated(getattr(x, f.name), times) for f in fields(x)}) if is_dataclass(x) else x


def batches(model, observed):
    "The first test dialogues as one batch on the device, then more and more often, while they fit."
    talks = [model.transform(talk) for talk in sorted(data.test, key=lambda talk: talk.num_nodes)[-32:]]
    bits = [talk.present & observed[talk.rows] if observed is not None else talk.present for talk in talks]
    base = model.align(ConversationBatch.collate(talks, bits).to(chosen.device))
    for times in (1, 4, 16, 64, 256, 1024) if CUDA else (1, 2):
        if CUDA:
            free, total = torch.cuda.mem_get_info()
            if times > 1 and 4.5 * torch.cuda.max_memory_allocated() > .95 * total: return
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield times * len(talks), repeated(base, times)


def peak(): return torch.cuda.max_memory_allocated() / 2**20 if CUDA else float("nan")


def ceilings():
    "Matrix products by precision and a copy: what the card gives where nothing stands in the way."
    n, block = (8192, 2**31) if CUDA else (512, 2**26)
    for precision in PRECISIONS:
        rates[precision] = product_rate(n, n, n, chosen.device, DTYPES[precision])
        yield one("matrix product, ceiling", f"{NAMES[precision]}, {n} x {n}", rates[precision] / 1e9, "GFLOP/s")
    rates["copy"] = copy_rate(block, chosen.device)
    yield one("copy, ceiling", f"{block >> 20} MiB read and written", rates["copy"] / 1e9, "GB/s")


def agreement():
    "The same weights on processor and card: how far answers differ."
    model = made("gsdnet")
    for label, observed in (("nothing missing", None), (f"{100 * max(kit.rates):.0f} % missing", mask)):
        here = model.to(chosen.device).predict(data.test, observed).probabilities
        there = model.to("cpu").predict(data.test, observed).probabilities
        yield one("answers, largest difference from the processor's", f"gsdnet, {label}", float(abs(here - there).max()), "probability")


def trainer(name, epochs=EPOCHS, run=None, **settings):
    "A trainer as `fit` makes it; validation masks are the kit's."
    model = made(name)
    return Trainer(model, data, [kit.observed(rate, 0).numpy() for rate in kit.rates], MixedMissing(), config=TrainConfig(epochs=epochs, **settings), seed=0, run=run)


def trained(name, **settings):
    "Seconds of an epoch (the first apart), loss of the first and the last, validation score, peak memory."
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    job = trainer(name, choose_from=1 / EPOCHS, **settings)
    job.fit(progress=False)
    losses = [sum(line["terms"].values()) for line in job.rows]
    assert all(math.isfinite(x) for x in losses), f"{name} {settings}: losses {losses}"
    assert losses[-1] < losses[0], f"{name} {settings}: the loss does not fall, {losses}"
    return min(line["seconds"] for line in job.rows[1:]), losses, job.rows[-1]["valid_score"], peak(), job


def training():
    "An epoch of both models in each precision, at the trainer's batch and at one that fills the card better."
    for size, precisions in ((16, PRECISIONS), (64, PRECISIONS[:2])) if CUDA else ((16, PRECISIONS),):
        for precision in precisions:
            found = {name: trained(name, precision=precision, batch_size=size) for name in ("gcnet_like", "gsdnet")}
            label = {name: f"{name}, {NAMES[precision]}, batch {size}" for name in found}
            a, b = (epoch for epoch, *_ in found.values())
            yield row(chosen, "training epoch", *label.values(), Turns(a, b, a / b), "s")
            for name, (epoch, losses, score, memory, job) in found.items():
                yield one("loss, last epoch over first", label[name], losses[-1] / losses[0], "")
                yield one("validation score after a few epochs", label[name], 100 * score, "%")
                if CUDA: yield one("peak memory of training", label[name], memory, "MB")
                if name == "gsdnet":
                    with counted() as work: job.epoch()
                    yield one("operations of an epoch", label[name], work["operations"] / 1e9, "GFLOP")
                    yield from shares("training epoch", label[name], work, epoch, precision)


def shares(what, label, work, took, precision="no"):
    "Operations and bytes a second against the ceilings, and the time that both together would take at the ceilings against the time it took."
    if "copy" not in rates: return
    products, bytes_ = work["operations"] / rates[precision], work["bytes"] / rates["copy"]
    for name, x in (("operations", products), ("bytes", bytes_), ("operations and bytes", products + bytes_)):
        yield one(f"share of the ceiling, {what}", f"{label}: {name}", x / took, "")


def recovery():
    "Recovered utterances a second, noise drawn on the card, as batches grow; the IMDer-like sampler beside it."
    model, other = made("gsdnet"), made("imder_like")
    for size, batch in batches(model, mask):
        hidden = int((~batch.observed & batch.valid[..., None]).any(-1).sum())
        took = seconds(lambda: model.recover(batch), chosen.device)
        yield one("recovery", f"gsdnet, {size} dialogues", hidden / took, "utterances/s")
        if CUDA: yield one("peak memory of recovery", f"gsdnet, {size} dialogues", peak(), "MB")
        with counted() as work: model.recover(batch)
        yield from shares("recovery", f"gsdnet, {size} dialogues", work, took)
        if size > 32: continue
        theirs = seconds(lambda: other.recover(batch, n_steps=100 if CUDA else 2, n_samples=1), chosen.device)
        yield row(chosen, "recovery", f"gsdnet, {size} dialogues", "imder_like, 100 steps", Turns(hidden / took, hidden / theirs, theirs / took), "utterances/s")


def answers():
    "Answered utterances a second with nothing missing: a batch on the card as it grows, and `predict` as it is called."
    model = made("gsdnet")
    with torch.no_grad():
        for size, batch in batches(model, None):
            took, n = seconds(lambda: model.outputs(batch), chosen.device), int(batch.valid.sum())
            yield one("inference, nothing missing", f"gsdnet, {size} dialogues on the device", n / took, "utterances/s")
            with counted() as work: model.outputs(batch)
            yield from shares("inference", f"gsdnet, {size} dialogues", work, took)
    talks = [model.transform(talk) for talk in data]
    model.predict(talks)
    n = sum(talk.num_nodes for talk in talks)
    yield one("inference, nothing missing", "gsdnet, predict", n / min(model.predict(talks).seconds for _ in range(3)), "utterances/s")
    for name, observed in (("predict, holes", mask),):
        model.predict(talks, observed)
        yield one("inference", f"gsdnet, {name}", n / min(model.predict(talks, observed).seconds for _ in range(2)), "utterances/s")


def resume():
    "Stopped by a signal in the middle of an epoch and resumed, against the same training left alone: the largest difference of a weight."
    for deterministic in (True, False):
        weights = []
        for stop in (None, 10 if CUDA else 5):
            with tempfile.TemporaryDirectory() as folder:
                job = trainer("gsdnet", epochs=2, run=folder, deterministic=deterministic, choose_from=.5)
                if stop:
                    step = job.step
                    def interrupted(talks):
                        if job.step_count == stop - 1: os.kill(os.getpid(), signal.SIGTERM)
                        return step(talks)
                    job.step = interrupted
                    try: job.fit(progress=False)
                    except KeyboardInterrupt: print(f"stopped after step {job.step_count}")
                    else: raise RuntimeError("the training was not interrupted")
                    torch.manual_seed(99) # states that resuming has to put back
                    job = trainer("gsdnet", epochs=2, run=folder, deterministic=deterministic, choose_from=.5)
                job.fit(progress=False, resume=bool(stop))
                weights.append({name: x.cpu() for name, x in job.model.state_dict().items()})
        gap = max(float((weights[0][name].double() - weights[1][name].double()).abs().max()) for name in weights[0])
        yield one("resume, largest difference of a weight", f"gsdnet, {'deterministic' if deterministic else 'default'}", gap, "")


def compile():
    "Compiled against plain: recovery by a compiled denoiser, and an epoch of a compiled loss; seconds that compiling took."
    model = made("gsdnet")
    batch = next(iter([b for _, b in zip(range(2), batches(model, mask))][-1:]))[1]
    plain = seconds(lambda: model.recover(batch), chosen.device)
    begin = time.perf_counter()
    model.diffusion.features.compile(dynamic=False)
    model.recover(batch)
    wait(chosen.device)
    took = time.perf_counter() - begin
    fast = seconds(lambda: model.recover(batch), chosen.device)
    yield row(chosen, "compiled denoiser, recovery", "plain", "compiled", Turns(plain, fast, plain / fast), "s")
    yield one("compiling", "denoiser", took, "s")
    if late() or not CUDA: return # on a processor compiling the loss takes minutes
    found = {}
    for name, on in (("plain", False), ("compiled", True)):
        begin = time.perf_counter()
        found[name] = trained("gsdnet", compile=on)[0]
        took = time.perf_counter() - begin
    yield row(chosen, "compiled loss, training epoch", "plain", "compiled", Turns(found["plain"], found["compiled"], found["plain"] / found["compiled"]), "s")
    yield one("compiling", f"loss, with {EPOCHS} epochs", took, "s")


def late(): return time.perf_counter() - start > chosen.limit


print(f"{torch.__version__} on {torch.cuda.get_device_name() if CUDA else 'the processor'}", flush=True)
failed = []
for name in chosen.only.split(","):
    begin, rows = time.perf_counter(), []
    if late(): failed.append(f"{name} (not begun, {chosen.limit:g} s were over)")
    try:
        for found in () if late() else globals()[name](): rows.append(found)
    except Exception:
        failed.append(name)
        traceback.print_exc()
    if rows:
        keep(chosen, rows, "gpu.csv")
        show(rows)
    print(f"--- {name}: {time.perf_counter() - begin:.1f} s", flush=True)
sys.exit(f"failed: {failed}" if failed else 0)
