"""Time against the number of dialogues, their length, eigenpairs, steps, batch size; on one thread and on two.

Answers at a missing rate of three tenths by a model as drawn (weights do not change the time), and epochs where training is what grows.
A point is written when it is known, and points of the same commit are not measured again: the same command goes on where it was stopped.
"""
import csv
import time
from pathlib import Path

from compare import device, keep, options

chosen = options(__doc__)

import torch

from gsdnet.baselines import gsdnet
from gsdnet.benchmark import commit
from gsdnet.data import SyntheticConversations
from gsdnet.missing import MixedMissing, RandomMissing, draw_mask
from gsdnet.trainer import TrainConfig, Trainer


def talks(n_dialogues=40, length=36):
    "Synthetic dialogues of one length, all of them for training."
    data = SyntheticConversations(n_dialogues=n_dialogues, length=(length, length), n_speakers=(2, 2), modalities=("text", "audio"), dims=(384, 148),
                                  noise=.3).dataset()
    return data.with_split(torch.zeros(data.n_utterances, dtype=torch.int8))


def answers(data, options=None, batch_size=8, **sampler):
    "A function that answers all utterances once; its seconds are the model's own clock."
    torch.manual_seed(0)
    model = gsdnet(data, **(options or {})).eval()
    model.fit_standardization(data.train)
    ready, mask = [model.transform(talk) for talk in data], draw_mask(data.available, RandomMissing(.3), data.dialogue, seed=0)
    return lambda: model.predict(ready, mask, batch_size=batch_size, **sampler).seconds


def epochs(data, batch_size=16):
    "A function that runs one epoch."
    torch.manual_seed(0)
    model = gsdnet(data)
    model.fit_standardization(data.train)
    trainer = Trainer(model, data, [], MixedMissing(), config=TrainConfig(epochs=999, batch_size=batch_size), seed=0)
    def one():
        begin = time.perf_counter()
        trainer.epoch()
        return time.perf_counter() - begin
    return one


def curves(quick):
    "Name of the curve, its abscissa, and a function that makes data and a function that gives seconds."
    some = lambda *values: values[:4:2] if quick else values
    size = 20 if quick else 40
    def case(measure, n_dialogues=size, length=36, *args, **options):
        data = talks(n_dialogues, length)
        return data, measure(data, *args, **options)
    for n in some(20, 40, 80, 160): yield "dialogues", n, lambda: case(answers, n)
    for n in some(20, 40, 80, 160): yield "dialogues, training", n, lambda: case(epochs, n)
    for n in some(8, 16, 32, 64, 128, 256, 400): yield "length", n, lambda: case(answers, max(1, 800 // n), n)
    for k in some(4, 8, 16, 36): yield "eigenpairs", k, lambda: case(answers, options={"rank": k})
    for t in some(1, 2, 4, 8): yield "steps", t, lambda: case(answers, n_steps=t)
    for k in some(1, 2, 4, 8, 16): yield "samples", k, lambda: case(answers, n_samples=k)
    for b in some(1, 2, 4, 8, 16, 32): yield "batch", b, lambda: case(answers, batch_size=b)
    for b in some(4, 8, 16, 32): yield "batch, training", b, lambda: case(epochs, batch_size=b)


path, here, source = Path(chosen.out) / "growth.csv", device(), chosen.commit or commit()
old = list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.is_file() else []
known = {(r["curve"], r["x"], r["threads"]) for r in old if r["device"] == here and r["commit"] == source and not source.endswith("+")}
print(f"{'curve':22}{'x':>6}{'utterances':>12}   µs per utterance, 1 and 2 threads", flush=True)
for curve, x, make in curves(chosen.quick):
    if all((curve, str(x), str(threads)) in known for threads in (1, 2)): continue
    (data, measure), rows = make(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        measure()
        seconds = min(measure() for _ in range(2))
        rows.append(dict(curve=curve, x=x, utterances=data.n_utterances, seconds=float(f"{seconds:.4g}"),
                         microseconds_per_utterance=float(f"{1e6 * seconds / data.n_utterances:.4g}"), threads=threads, device=here,
                         date=time.strftime("%Y-%m-%d", time.gmtime()), commit=source))
    keep(chosen, rows, "growth.csv", key=("curve", "x", "threads", "device"))
    print(f"{curve:22}{x:6}{data.n_utterances:12}" + "".join(f"{r['microseconds_per_utterance']:12.1f}" for r in rows), flush=True)
