"""Long conversations: answers in overlapping pieces, or from the leading eigenpairs alone, against the whole; seconds and memory up to 100,000 utterances."""
import copy
import resource
import time
from dataclasses import replace

import numpy as np
import torch
from compare import dataset, keep, options, row
from sklearn.metrics import f1_score

from gsdnet.conversation import Conversation
from gsdnet.trainer import TrainConfig, fit

LENGTH = 400 # utterances of a joined conversation
FORMS = [("whole", 10**9, 0, None), *(("pieces", size, margin, None) for size in (96, 128, 192) for margin in (8, 16, 32)),
         *(("leading eigenpairs", 10**9, 0, k) for k in (16, 64, 128))]


def joined(talks, modalities):
    "Dialogues put end to end until each is about `LENGTH` long."
    groups, group = [], []
    for talk in talks:
        group.append(talk)
        if sum(t.num_nodes for t in group) >= LENGTH: groups, group = [*groups, group], []
    groups = [*groups, group] if group else groups
    cat = lambda group, names: {name: torch.cat([talk[name] for talk in group]) for name in names}
    return [Conversation.build(cat(group, modalities), key=f"joined {i}", **cat(group, ("speaker", "y", "rows", "present"))) for i, group in enumerate(groups)]


def answers(model, talks, mask, size, margin, rank, seed=0):
    "Probabilities `[n, C]` and CPU seconds."
    model.config = replace(model.config, max_length=size, margin=margin, rank=rank)
    begin = time.process_time()
    return model.predict(talks, mask, seed=seed).probabilities, time.process_time() - begin


def agreement(model, data, kit, rates):
    "A row for every form and rate."
    talks, rows = joined(data.test, data.modalities), []
    y = np.concatenate([talk.y.numpy() for talk in talks])
    score = lambda p: 100 * f1_score(y, p.argmax(1), average="weighted")
    for rate in rates:
        mask = np.asarray(kit.observed(rate, 0))
        whole, _ = answers(model, talks, mask, *FORMS[0][1:])
        cases = [(*form, 0) for form in FORMS] + ([("whole, another seed", *FORMS[0][1:], 1)] if rate else [])
        for name, size, margin, rank, seed in cases:
            p, seconds = answers(model, talks, mask, size, margin, rank, seed)
            gap = np.abs(p - whole)
            rows.append(dict(form=name, size="" if size == 10**9 else size, margin=margin if size < 10**9 else "", rank=rank or "", rate=rate,
                             utterances=len(y), score=round(score(p), 2), score_gap=round(score(p) - score(whole), 2), mean_gap=f"{gap.mean():.2g}",
                             largest_gap=f"{gap.max():.2g}", same_class=round(float((p.argmax(1) == whole.argmax(1)).mean()), 4), seconds=round(seconds, 3)))
            print(rows[-1], flush=True)
    return rows


def growth(model, data, lengths):
    "Seconds and memory of one conversation, length after length; features are random numbers of the data's sizes."
    model.config, g, rows = replace(model.config, max_length=128, margin=32, rank=None), torch.Generator().manual_seed(0), []
    for n in lengths:
        present = torch.rand(n, len(data.dims), generator=g) < .7
        present[~present.any(1), 0] = True
        talk = Conversation.build({name: torch.randn(n, d, generator=g) for name, d in data.dims.items()}, key=f"{n}",
                                  speaker=torch.randint(0, 3, (n,), generator=g))
        before, begin = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize(), time.process_time()
        model.predict([talk], present)
        seconds, peak = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows.append(dict(utterances=n, missing=round(1 - float(present.float().mean()), 3), microseconds_per_utterance=round(1e6 * seconds / n, 1),
                         megabytes_beyond_features=round(max(0, peak - before) / 2**20)))
        print(rows[-1], flush=True)
    return rows


def main():
    chosen = options(__doc__)
    data, kit = dataset(chosen.data)
    model = fit(data, kit=kit, config=TrainConfig(epochs=4 if chosen.quick else 36), progress=False)
    origin = {k: v for k, v in row(chosen, "", "", "", 0.0, "").items() if k in ("data", "device", "threads", "date", "commit")}
    rates = [0.0] if chosen.quick else [0.0, max(kit.rates)]
    lengths = [1000, 5000] if chosen.quick else [1000, 3000, 10000, 30000, 100000]
    keep(chosen, [r | origin for r in growth(copy.deepcopy(model), data, lengths)], "length.csv", ("utterances", "threads", "data", "device"))
    keep(chosen, [r | origin for r in agreement(model, data, kit, rates)], "pieces.csv", ("form", "size", "margin", "rank", "rate", "data"))


if __name__ == "__main__": main()
