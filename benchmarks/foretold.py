"""Does what synthetic conversations say hold on real ones? The settings of `when_recovery_pays.py` in which it is the question, on IEMOCAP's sessions.

    python benchmarks/foretold.py --data folder --jobs 2           all trainings; rows that are there are not made again
    python benchmarks/foretold.py --data folder --jobs 2 --last    the last session held out, which the four others are trained for
    python benchmarks/foretold.py --data mosi --only "base;max_rate=0.1;max_rate=0" --seeds 5     a set without sessions: its own test split

IEMOCAP's sessions 1 to 4 alone, as in `uses.py`: each is held out in turn, the last epoch counts. Session 5 is read with `--last` only, after all else. A seed
draws the dialogues that are left for training or keep their labels, the masks and the weights, the same for all models. Rows of `foretold.csv`:

    zero_fill, gsdnet         the twin and GSDNet
    gsdnet_shown              the finished twin, and a denoiser trained beside it without labels: samples are shown to the twin as if recorded
    gsdnet_mean_shown         the same with the mean of the samples
    zeros_shown               a control: zeros, which are the mean of all features, shown as if recorded
"""
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from compare import as_made, dataset, development, development_masks, known_tasks, options
from gsdnet.benchmark import commit
from gsdnet.data import ConversationDataset
from gsdnet.metrics import evaluate
from gsdnet.model import GSDConfig, GSDNet
from gsdnet.trainer import own_randomness
from when_recovery_pays import Setting, ShownAsObserved, ZerosShownAsObserved, beside, trained

ALL, STEPS = 999, 216 # more dialogues than there are; training steps where all are used, 36 epochs, and those of a denoiser beside a twin
# name of a setting: what it is, with about the steps at which the twin is best (by one seed that is not in the table), and what is trained in it
SETTINGS = {
    "base": (Setting(dialogues=ALL, steps=STEPS), ("zero_fill",)), # GSDNet's rows are in attempts.csv and uses.csv
    "dialogues=24": (Setting(dialogues=24, steps=72), ("zero_fill", "gsdnet")),
    "labels=24": (Setting(dialogues=ALL, labels=24, steps=324), ("zero_fill", "gsdnet")),
    "max_rate=0.1": (Setting(dialogues=ALL, max_rate=.1, steps=STEPS), ("zero_fill", "gsdnet")),
    "max_rate=0": (Setting(dialogues=ALL, max_rate=0., steps=STEPS), ("zero_fill",)),
}
COLUMNS = ["setting", "fold", "seed", "training", "model", "protocol", "weighted_f1", "nll", "recovery_mse", "commit"]


def conversations(folder, setting, fold, seed):
    "Sessions of which one is the test session, the last if it is that, with what the setting takes away; fewer dialogues or labels are among the more of the same seed."
    if fold == "test": whole, fold = dataset(folder)[0], 0
    else:
        whole = development(folder)
        if fold > whole.group.max(): whole = development(folder, last=True)
    test = whole.split == 2 if whole.group is None else whole.group == fold
    learned = whole.dialogue[~test].unique()
    learned = learned[torch.randperm(len(learned), generator=torch.Generator().manual_seed(1000 * seed + fold))]
    among = lambda n: torch.isin(whole.dialogue, learned[:n])
    kept = (test | among(setting.dialogues)).numpy()
    known = test | among(setting.dialogues if setting.labels is None else setting.labels)
    arrays = whole.arrays() | {"split": torch.where(test, 2, 0).numpy()}
    if whole.task == "classification": arrays["label"] = torch.where(known, whole.y, -1).numpy()
    return ConversationDataset({name: a[kept] for name, a in arrays.items()}, whole.modalities, label_names=whole.label_names, task=whole.task, name=whole.name)


def models(name, setting, data, seed, steps):
    "What one training gives, by name; a denoiser beside a twin is trained for `steps`."
    epochs = lambda steps: max(1, steps // -(-len(data.train) // 16))
    with own_randomness(seed):
        net = GSDNet(GSDConfig.of(data, recover=name == "gsdnet"))
        net.fit_standardization(data.train)
        net = trained(net, data, epochs(setting.steps), seed, setting.max_rate)
    yield name, net
    if name == "gsdnet": return
    yield "zeros_shown", beside(net, ZerosShownAsObserved, ())
    with own_randomness(seed): shown = trained(beside(net, ShownAsObserved, ()), data, epochs(steps), seed)
    yield "gsdnet_shown", shown
    shown.mean = True
    yield "gsdnet_mean_shown", shown


def task(folder, name, fold, seed, training, quick):
    "All rows of one training."
    torch.set_num_threads(1)
    setting = replace(SETTINGS[name][0], steps=4) if quick else SETTINGS[name][0]
    data = conversations(folder, setting, fold, seed)
    nll = lambda found: f"{found['nll']:.4f}" if "nll" in found else "" # scores have none
    return [[name, fold, seed, training, model, protocol, f"{100 * found['weighted_f1']:.3f}", nll(found), f"{found['recovery_mse']:.4f}"]
            for model, net in models(training, setting, data, seed, 4 if quick else STEPS) for protocol, mask in development_masks(data, seed).items()
            for found in [evaluate(net, data, observed=mask, seed=seed)]]


def main():
    "Make what is missing and add it to the table as it is done."
    chosen = options(__doc__, last="hold out the last session, and no other", only=(str, ";".join(SETTINGS), "names of settings, separated by semicolons"), jobs=(int, 1, "trainings at a time, each in a process of its own"), seeds=(int, 3, "how many"), first=(int, 0, "the first of them"))
    if chosen.data is None: raise SystemExit("got no --data, expected a folder of real conversations: synthetic ones are when_recovery_pays.py's")
    settings = chosen.only.split(";")
    if unknown := [n for n in settings if n not in SETTINGS]: raise SystemExit(f"got --only with {unknown}, expected some of {list(SETTINGS)}, separated by semicolons")
    in_groups = dataset(chosen.data)[0].group is not None
    path = Path(chosen.out) / ("foretold.csv" if in_groups else f"foretold_{Path(chosen.data).name}.csv")
    there = known_tasks(path, 4)
    folds = development(chosen.data, chosen.last).group.unique().tolist() if in_groups else ["test"]
    folds = folds[-1:] if chosen.last else folds[:1 if chosen.quick else None]
    seeds = range(chosen.first, chosen.first + (1 if chosen.quick else chosen.seeds))
    todo = [(s, f, i, t) for i in seeds for f in folds for s in settings for t in SETTINGS[s][1] if (s, str(f), str(i), t) not in there]
    return as_made(path, COLUMNS, task, [(chosen.data, *t, chosen.quick) for t in todo], chosen.jobs, chosen.commit or commit())


if __name__ == "__main__": sys.exit(main())
