"""Answers with nothing missing: utterances per second of GSDNet and of the GCNet-like network.
"""
from compare import dataset, keep, options, row, show, turns

chosen = options(__doc__)

import torch

from gsdnet.architectures import MODELS

data, _ = dataset(chosen.data)


def speed(name, **options):
    "A function that measures answered utterances per second; weights do not matter, they stay as drawn."
    torch.manual_seed(0)
    model = MODELS[name](data).eval()
    model.fit_standardization(data.train)
    talks = [model.transform(talk) for talk in data.test]
    def measure():
        out = model.predict(talks, **options)
        return len(out.rows) / out.seconds
    measure()
    return measure


rounds, rows = 4 if chosen.quick else 10, []
for size, label in ((None, "default batch"), (32, "batch 32")):
    result = turns(speed("gsdnet", batch_size=size), speed("gcnet_like", batch_size=size), rounds)
    rows.append(row(chosen, "inference, nothing missing", f"gsdnet, {label}", f"gcnet_like, {label}", result, "utterances/s"))
keep(chosen, rows)
show(rows)
