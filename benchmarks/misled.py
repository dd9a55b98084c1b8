"""Where GSDNet loses: CMU-MOSI with all four modalities of its folder, two of them from extractors that saw the labels of the training videos.

Validation is cut from those videos too, so that its score less the test's says how far a model follows what such extractors leak. Each model is judged on both with
everything shown, one modality shown and one hidden, with nothing chosen by what comes out. Rows go to `misled.csv` as a training ends; those that are there are not made again.

Expected before the first whole run: validation near 99 for every model, so that no epoch is chosen by it; GSDNet and its twin further above their test score than the recurrent network
on visual alone, because each modality is asked alone; half of the loss gone without that; some of it gone with a narrower and more dropped-out twin.
"""
import csv
from pathlib import Path

from compare import keep, options

chosen = options(__doc__, seeds=(int, 5, "trainings of each model"))

import torch

from gsdnet.architectures import MODELS
from gsdnet.benchmark import commit, with_validation
from gsdnet.data import load_dataset
from gsdnet.metrics import evaluate
from gsdnet.missing import FixedMissing, draw_mask
from gsdnet.trainer import TrainConfig, fit

KEY = ("model", "seed", "split", "shown")


def silent(name):
    "A model whose modalities are not asked alone: no loss on their own answers, and nothing added to the network's."
    def build(dataset):
        model = MODELS[name](dataset, unimodal_weight=0.)
        for head in model.fusion.alone:
            for p in head.parameters(): torch.nn.init.zeros_(p).requires_grad_(False)
        return model
    return build


WAYS = {"gsdnet": MODELS["gsdnet"], "zero_fill": MODELS["zero_fill"], "bigru": MODELS["bigru"], "gsdnet, not asked alone": silent("gsdnet"),
        "zero_fill, not asked alone": silent("zero_fill"), "zero_fill, narrow and dropped out": lambda d: MODELS["zero_fill"](d, width=64, encoder_dropout=.5, dropout=.5)}


def shown(data):
    "Masks by what they show."
    hide = lambda *names: draw_mask(data.available, FixedMissing(names, data.modalities), data.dialogue, seed=0)
    return ({"all": data.available.numpy()} | {f"{m} alone": hide(*(o for o in data.modalities if o != m)) for m in data.modalities}
            | {f"without {m}": hide(m) for m in data.modalities})


def main():
    path = Path(chosen.out) / "misled.csv"
    done = {(row["model"], row["seed"]) for row in csv.DictReader(path.open(encoding="utf-8", newline=""))} if path.is_file() else set()
    data, _ = with_validation(load_dataset(chosen.data))
    config = TrainConfig(epochs=2) if chosen.quick else TrainConfig()
    for seed in range(chosen.seeds):
        for name, build in WAYS.items():
            if (name, str(seed)) in done: continue
            model = fit(data, model=build, seed=seed, config=config, progress=False)
            rows = [dict(model=name, seed=seed, split=split, shown=what, weighted_f1=round(100 * evaluate(model, data, observed=mask, split=split, seed=seed)["weighted_f1"], 3),
                         utterances=int((data.split == ("train", "valid", "test").index(split)).sum()), commit=commit())
                    for what, mask in shown(data).items() for split in ("valid", "test")]
            keep(chosen, rows, path.name, KEY)
            print(seed, name, *(f"{row['shown']} {row['split']} {row['weighted_f1']:.1f};" for row in rows if row["shown"] == "all"), flush=True)


if __name__ == "__main__": main()
