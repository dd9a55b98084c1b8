"""An epoch of GSDNet against one of the GCNet-like network, same data, batches and masks.

The GCNet-like network is also run with the batch of 32 dialogues that its authors use. `--scores` trains both in full and adds their weighted F1.
"""
from compare import dataset, keep, options, row, show, turns

chosen = options(__doc__, scores="train both in full and compare their weighted F1 on the test split (an hour)")

import torch

from gsdnet.architectures import MODELS
from gsdnet.metrics import evaluate
from gsdnet.missing import MixedMissing
from gsdnet.trainer import TrainConfig, Trainer, fit

data, kit = dataset(chosen.data)


def epochs(name, batch_size):
    "A function that runs one more epoch of a model."
    torch.manual_seed(0)
    model = MODELS[name](data)
    model.fit_standardization(data.train)
    trainer = Trainer(model, data, [], MixedMissing(), config=TrainConfig(epochs=99, batch_size=batch_size), seed=0)
    def one(): trainer.epoch()
    return one


def score(name):
    "Weighted F1 of a whole training, a mean over the kit's rates."
    model = fit(data, model=MODELS[name], kit=kit, seed=0)
    found = [evaluate(model, data, observed=kit.observed(rate, 0).numpy())["weighted_f1"] for rate in kit.rates]
    return sum(found) / len(found)


ours, rows = epochs("gsdnet", 16), []
ours()
for batch_size in (16,) if chosen.quick else (16, 32):
    theirs = epochs("gcnet_like", batch_size)
    if not chosen.quick: theirs()
    rows.append(row(chosen, "training epoch", f"gcnet_like, batch {batch_size}", "gsdnet, batch 16", turns(theirs, ours, 2 if chosen.quick else 4), "s"))
if chosen.scores:
    for name in ("gcnet_like", "gsdnet"): rows.append(row(chosen, "weighted F1, mean over rates", name, None, 100 * score(name), "%"))
keep(chosen, rows)
show(rows)
