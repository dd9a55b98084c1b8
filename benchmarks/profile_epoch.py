"""Share of an epoch's wall-clock time inside tensor operations, and which ones.

Inside counts the self CPU time of `aten::` events of torch's profiler, against the wall-clock time of the same epoch. The profiler's own time falls
mostly outside of operations, so that the share without it is rather larger.
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

data, _ = dataset(chosen.data)


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
    operations = {e.key: (e.self_cpu_time_total / 1e6, e.count) for e in seen.key_averages() if e.key.startswith("aten::")}
    return wall, operations


rows, lines = [], []
for name in ("gsdnet",) if chosen.quick else ("gsdnet", "gcnet_like"):
    wall, operations = measured(name)
    inside = sum(seconds for seconds, _ in operations.values())
    rows.append(row(chosen, "share of an epoch inside tensor operations", name, None, 100 * inside / wall, "%"))
    top = sorted(operations.items(), key=lambda item: -item[1][0])[:25]
    lines += [dict(model=name, operation=key, seconds=round(s, 4), share=round(100 * s / wall, 2), calls=n, threads=chosen.threads,
                   data=rows[0]["data"], device=device(), date=rows[0]["date"], commit=commit()) for key, (s, n) in top]
keep(chosen, lines, "profile.csv", key=("model", "threads", "data", "device"))
keep(chosen, rows)
show(rows)
for line in lines[:10]: print(f"{line['share']:6.1f} %  {line['calls']:6d} x  {line['operation']}")
