"""The same tuning budget for every model: random trials from one search space, on development folds only, resumable.

Trial 0 is each model as it stands, with the sizes and settings of its own; trial i > 0 is one draw from `space.json`, the same for all models. A trial
trains once per fold, with the fold's dialogues for validation and the other development dialogues for training, and is judged by the last epoch's averaged
weights under random masks of all rates, mean over folds: weighted F1, or minus the mean absolute error of scores as they are answered, with the slope that
calibration gave them. (Trials of CMU-MOSI were first judged before calibration, `results/tuning_uncalibrated.csv`. The settings that this chose cost GSDNet 3 points of F1 on test, which is how it was noticed that trials were judged by another
number than models. Expected of the trials judged anew, before they were run: GSDNet's choice is within a point of its own settings on test, and cannot be told from the tuned recurrent network.) Development is what the test split leaves: whole groups where there are groups (sessions), else the
training split's dialogues. The test rows are cut off before anything is read from them. A row is written when its trial is over.
"""
import csv
import json
import sys
import time
from pathlib import Path

import joblib
import numpy as np
import torch
from compare import dataset, keep, options

from gsdnet.architectures import MODELS
from gsdnet.benchmark import commit, fingerprint, with_settings
from gsdnet.data import ConversationDataset, folds
from gsdnet.trainer import TrainConfig, fit, random_masks, validation_score

SPACE = Path(__file__).with_name("space.json")
KEY = ("data", "model", "trial")


def development(data):
    "The data set without its test rows: those of whole groups that are not tested on, or those of the training split."
    split = np.asarray(data.split)
    if data.group is None: kept = split == 0
    else: kept = ~np.isin(np.asarray(data.group), np.asarray(data.group)[split == 2])
    if not kept.any(): raise ValueError(f"got no development dialogue in {data.name!r}, expected groups that the test split leaves, or a training split")
    arrays = {name: np.asarray(array)[kept] for name, array in data.arrays().items()}
    arrays["split"] = np.zeros(kept.sum(), np.int8)
    return ConversationDataset(arrays, data.modalities, label_names=data.label_names, task=data.task, name=data.name, title=data.title)


def development_folds(data, most):
    "Name and data set of each of the first folds: whole groups or whole dialogues validate, the others train."
    found = [(name, part.with_split(torch.where(torch.as_tensor(part.split) == 2, 1, 0))) for name, part in folds(development(data))]
    return found[:most]


def drawn(space, trial, seed=0):
    "Settings of a trial, the same for all models; trial 0 changes nothing."
    if trial == 0: return {}
    rng = np.random.default_rng([seed, trial])
    return {name: choices[rng.integers(len(choices))] for name, choices in space.items()}


def planned(chosen):
    "What there is to do: each trial of each model, with all that its outcome depends on."
    data, _ = dataset(chosen.data)
    parts = development_folds(data, chosen.folds)
    space, found = json.loads(SPACE.read_text(encoding="utf-8")), []
    hashes = [part.hash + fingerprint(np.asarray(part.split)) for _, part in parts]
    for name in (MODELS if chosen.models is None else chosen.models.split(",")):
        if name not in MODELS: raise ValueError(f"got model {name!r}, expected some of {', '.join(MODELS)}")
        for trial in range(chosen.trials):
            settings = drawn(space, trial) | ({} if chosen.epochs is None else {"epochs": chosen.epochs})
            row = dict(data=data.name, model=name, trial=trial, settings=json.dumps(settings, sort_keys=True),
                       identity=fingerprint(name, settings, hashes), folds=" ".join(fold for fold, _ in parts))
            found.append((row, settings))
    return parts, found


def attempt(parts, row, settings, threads):
    "Train and judge a trial on all folds; its row, or what went wrong."
    torch.set_num_threads(threads)
    begin, scores = time.time(), []
    try:
        build, config = with_settings(MODELS[row["model"]], TrainConfig(choose_from=0), settings)
        for _, part in parts:
            model = fit(part, model=build, seed=row["trial"], config=config, progress=False)
            scores.append(validation_score(model, part.valid, random_masks(part, "mixed", row["trial"]), row["trial"])) # after calibration, as it answers
    except Exception as error: return row | {"error": f"{type(error).__name__}: {error}"}
    return row | dict(score=round(float(np.mean(scores)), 5), scores=" ".join(f"{s:.5f}" for s in scores), parameters=model.history["parameters"],
                      seconds=round(time.time() - begin, 1), date=time.strftime("%Y-%m-%d", time.gmtime()), commit=commit())


def whole_rows(path):
    "The rows of a table that were written to their end; a torn last one is left out."
    if not path.is_file(): return []
    with path.open(encoding="utf-8", newline="") as handle: rows = list(csv.DictReader(handle))
    return [row for row in rows if None not in row and None not in row.values() and row["commit"]]


def best(rows):
    "The row of the highest score of each model, the earlier trial where two are level."
    found = {}
    for row in sorted(rows, key=lambda row: (-float(row["score"]), int(row["trial"]))): found.setdefault(row["model"], row)
    return found


def run(chosen):
    "Do what is not done yet, write each row when it is over, and print the best of each model."
    path = Path(chosen.out) / chosen.table
    parts, todo = planned(chosen)
    kept = whole_rows(path)
    if kept: keep(chosen, kept, path.name, KEY)
    elif path.is_file(): path.unlink()
    done = {row["identity"] for row in kept}
    left = [(row, settings) for row, settings in todo if row["identity"] not in done]
    print(f"{len(todo) - len(left)} of {len(todo)} trials are done, {len(left)} to go", file=sys.stderr)
    with joblib.parallel_config("loky", inner_max_num_threads=chosen.threads):
        work = joblib.Parallel(n_jobs=chosen.jobs, return_as="generator_unordered", batch_size=1)(
            joblib.delayed(attempt)(parts, row, settings, chosen.threads) for row, settings in left)
        failed = 0
        for row in work:
            if "error" not in row: keep(chosen, [row], path.name, KEY)
            else: print(f"failed: {row['model']}, trial {row['trial']}: {row['error']}", file=sys.stderr)
            failed += "error" in row
    wanted = {row["identity"] for row, _ in todo}
    for name, row in best([row for row in whole_rows(path) if row["identity"] in wanted]).items():
        print(f"{name}: {float(row['score']):.4f} in trial {row['trial']} {row['settings']}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(run(options(__doc__, trials=(int, 8, "trials of each model"), models=(str, None, "names, comma-separated; all if left out"),
                         table=(str, "tuning.csv", "name of the table of trials"),
                         epochs=(int, None, "epochs of every trial, in the place of those drawn"), jobs=(int, 1, "trials at a time"),
                         folds=(int, 2, "development folds, of which each trial sees the first so many"))))
