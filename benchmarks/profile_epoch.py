"""Share of an epoch's wall-clock time inside tensor operations, and which ones; the same of a recovery, by kinds of operation.

Inside counts the self CPU time of `aten::` events of torch's profiler, against the wall-clock time of the same epoch. The profiler's own time falls
mostly outside of operations, so that the share without it is rather larger. A recovery is nearly all operations: its shares are of their own seconds.
"""
import time

from compare import dataset, device, keep, options, row, show

chosen = options(__doc__)

import torch
from torch.profiler import ProfilerActivity, profile

from gsdnet.architectures import MODELS
from gsdnet.benchmark import commit
from gsdnet.missing import MixedMissing
from gsdnet.trainer import TrainConfig, Trainer

data, kit = dataset(chosen.data)
KINDS = {"matrix products": ("addmm", "mm", "bmm"), "normal numbers": ("normal_",), "GELU": ("gelu",), "normalisation": ("native_layer_norm",),
         "copies and concatenation": ("copy_", "cat", "where", "fill_", "index_select", "_index_put_impl_"),
         "sums and products of elements": ("mul", "add", "addcmul", "sub", "div", "mul_", "addcmul_", "sum", "exp", "linalg_vector_norm", "mean")}


def own(seen):
    "An operation's own seconds and calls, by name."
    return {e.key: (e.self_cpu_time_total / 1e6, e.count) for e in seen.key_averages() if e.key.startswith("aten::")}


def measured(name):
    "Seconds of an epoch, and the operations' own seconds and calls by name."
    torch.manual_seed(0)
    model = MODELS[name](data)
    model.fit_standardization(data.train)
    trainer = Trainer(model, data, [], MixedMissing(), config=TrainConfig(epochs=99), seed=0)
    trainer.epoch()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        begin = time.perf_counter()
        trainer.epoch()
        wall = time.perf_counter() - begin
    return wall, own(seen)


def recovered():
    "The operations' own seconds and calls in a recovery of the test split, by name."
    torch.manual_seed(0)
    model = MODELS["gsdnet"](data).eval()
    model.fit_standardization(data.train)
    model.diffusion.error_channels.copy_(.8 * torch.eye(len(model.diffusion.error_channels)))
    for part, value in ((model.diffusion.error_response, 1.), (model.diffusion.error_levels, .5)): part.fill_(value) # as after training: error is drawn
    batches = [batch for _, batch in model.batches(data.test, kit.observed(max(kit.rates), 0).numpy())]
    def once():
        for batch in batches: model.recover(batch, generator=[torch.Generator().manual_seed(i) for i in range(len(batch.keys))])
    for _ in range(2): once()
    times = 2 if chosen.quick else 10
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(times): once()
    return {name: (s / times, n // times) for name, (s, n) in own(seen).items()}


rows, lines = [], []
for name in ("gsdnet",) if chosen.quick else ("gsdnet", "gcnet_like"):
    wall, operations = measured(name)
    inside = sum(seconds for seconds, _ in operations.values())
    rows.append(row(chosen, "share of an epoch inside tensor operations", name, None, 100 * inside / wall, "%"))
    top = sorted(operations.items(), key=lambda item: -item[1][0])[:25]
    lines += [dict(model=name, operation=key, seconds=round(s, 4), share=round(100 * s / wall, 2), calls=n, threads=chosen.threads,
                   data=rows[0]["data"], device=device(), date=rows[0]["date"], commit=commit()) for key, (s, n) in top]
operations = recovered()
inside = sum(seconds for seconds, _ in operations.values())
kinds = {kind: sum(operations.get(f"aten::{name}", (0, 0))[0] for name in names) for kind, names in KINDS.items()}
kinds |= {f"the rest of {sum(n for _, n in operations.values()):,} calls": inside - sum(kinds.values())}
rows += [row(chosen, "share of a recovery's operations", kind, None, 100 * seconds / inside, "%") for kind, seconds in kinds.items()]
lines += [dict(model="gsdnet, recovery", operation=key, seconds=round(s, 5), share=round(100 * s / inside, 2), calls=n, threads=chosen.threads,
               data=rows[0]["data"], device=device(), date=rows[0]["date"], commit=commit())
          for key, (s, n) in sorted(operations.items(), key=lambda item: -item[1][0])[:25]]
keep(chosen, lines, "profile.csv", key=("model", "threads", "data", "device"))
keep(chosen, rows)
show(rows)
for line in lines[:10]: print(f"{line['share']:6.1f} %  {line['calls']:6d} x  {line['operation']}")
