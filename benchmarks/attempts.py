"""Attempts to make recovery pay, on IEMOCAP's sessions 1 to 4 alone: each held out in turn, the last epoch counts, session 5 is never read.

Every attempt is trained with recovery and without it, with the same seed, and judged under random rates, bursts, whole modalities and one speaker's
modality missing. Rows go to `attempts.csv` as they are made; those that are there are not made again.
"""
import csv
from dataclasses import replace
from pathlib import Path

from compare import development, development_masks, options

chosen = options(__doc__)

import torch

from gsdnet.architectures import MODELS
from gsdnet.benchmark import commit
from gsdnet.conversation import ConversationBatch
from gsdnet.data import ConversationDataset, never_recorded
from gsdnet.metrics import evaluate
from gsdnet.missing import BurstMissing, MixedMissing, Protocol
from gsdnet.trainer import TrainConfig, Trainer, fit, own_randomness

COLUMNS = ["attempt", "model", "fold", "seed", "protocol", "weighted_f1", "recovery_mse", "commit"]


def few_labels(data, seed, share=.25):
    "Labels for a quarter of the training dialogues; the others keep their features."
    arrays, generator = dict(data.arrays()), torch.Generator().manual_seed(seed)
    ids = data.dialogue[data.split == 0].unique()
    kept = ids[torch.randperm(len(ids), generator=generator)[:round(share * len(ids))]]
    unknown = (data.split == 0) & ~torch.isin(data.dialogue, kept)
    arrays["label"] = torch.where(unknown, -1, data.y).numpy()
    return ConversationDataset(arrays, data.modalities, label_names=data.label_names, task=data.task, name=data.name)


class Wide(Protocol):
    "Half the batches at mixed random rates, a quarter in bursts, a quarter with whole modalities of dialogues gone."
    rate = None

    def draw(self, available, dialogue, generator, *others):
        which, rate = torch.rand(2, generator=generator).tolist()
        if which < .5: return MixedMissing().draw(available, dialogue, generator)
        if which < .75: return BurstMissing(rate / 2, 10).draw(available, dialogue, generator)
        out = available.clone()
        for d in dialogue.unique():
            if torch.rand((), generator=generator) < .5:
                out[(dialogue == d) & (out.sum(1) > 1), int(torch.randint(out.shape[1], (), generator=generator))] = False
        return out


def with_wide_masks(data, model, seed, config):
    "Training under many protocols at once."
    with own_randomness(seed):
        net = model(data)
        net.fit_standardization(data.train)
        return Trainer(net, data, [], Wide(), config=config, seed=seed).fit(progress=False)


def longer_denoiser(data, model, seed, config, epochs=60):
    "After training, the denoiser goes on alone on latents that no longer move."
    net = fit(data, model=model, seed=seed, config=config, progress=False)
    if not net.config.recover: return net
    generator, talks = torch.Generator().manual_seed(seed), [net.transform(talk) for talk in data.train]
    sizes, owner = [t.num_nodes for t in talks], torch.arange(len(talks)).repeat_interleave(torch.tensor([t.num_nodes for t in talks]))
    weights = list(net.diffusion.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(weights, lr=1.5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=epochs * -(-len(talks) // 16))
    for _ in range(1 if chosen.quick else epochs):
        shown = MixedMissing().draw(torch.cat([t.present for t in talks]), owner, generator).split(sizes)
        for places in torch.randperm(len(talks), generator=generator).split(16):
            batch = net.align(ConversationBatch.collate([talks[i] for i in places], [shown[i] for i in places], targets=True))
            with torch.no_grad(): clean = net.encode(batch.complete()).flatten(-2)
            terms = net.diffusion.loss(clean, batch.observed, batch.target_mask, batch.graph, generator)
            optimizer.zero_grad()
            (terms["feature"] + .4 * terms["eigenvalue"]).backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step(), schedule.step()
    return net.eval()


def plainly(data, model, seed, config): return fit(data, model=model, seed=seed, config=config, progress=False)


# name: what is done to the training data, how a model is trained
ATTEMPTS = {"as it stands": (lambda data, seed: data, plainly), "a quarter of the labels": (few_labels, plainly),
            "half never recorded": (lambda data, seed: never_recorded(data, .5, seed=seed), plainly),
            "many protocols in training": (lambda data, seed: data, with_wide_masks), "denoiser trained longer": (lambda data, seed: data, longer_denoiser)}


def rows(data, attempt, name, fold, seed):
    "Train once, judge under every protocol."
    split = torch.where(data.group == fold, 2, 0)
    change, train = ATTEMPTS[attempt]
    part = data.with_split(split)
    net = train(change(part, seed), MODELS[name], seed, replace(TrainConfig(choose_from=0), epochs=1 if chosen.quick else 36))
    for protocol, mask in development_masks(data, seed).items():
        found = evaluate(net, part, observed=mask, seed=seed)
        yield [attempt, name, fold, seed, protocol, f"{100 * found['weighted_f1']:.3f}", f"{found['recovery_mse']:.4f}", commit()]


if chosen.data is None: raise SystemExit("got no --data, expected a folder with groups such as sessions: the attempts are about their actors")
data, path = development(chosen.data), Path(chosen.out) / "attempts.csv"
there = {tuple(r[:4]) for r in csv.reader(path.open(encoding="utf-8", newline=""))} if path.is_file() else set()
path.parent.mkdir(parents=True, exist_ok=True)
with path.open("a", encoding="utf-8", newline="") as handle:
    writer = csv.writer(handle, lineterminator="\n")
    if not there: writer.writerow(COLUMNS)
    for attempt in ATTEMPTS:
        for fold in data.group.unique().tolist()[:1 if chosen.quick else None]:
            for name in ("gsdnet", "zero_fill"):
                if (attempt, name, str(fold), "0") in there: continue
                made = list(rows(data, attempt, name, fold, 0))
                writer.writerows(made), handle.flush()
                print(attempt, name, fold, "random 0.5:", next(r[5] for r in made if r[4] == "random 0.5"), flush=True)
