"""Time against the number of dialogues, their length, eigenpairs, steps, batch size; on one thread and on two.

Answers at a missing rate of three tenths by a model as drawn (weights do not change the time), and epochs where training is what grows.
"""
import time

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
    "Name of the curve, its abscissa, utterances, and a function that gives seconds."
    some = lambda *values: values[:4:2] if quick else values
    base = talks(20 if quick else 40)
    for n in some(20, 40, 80, 160, 320): yield "dialogues", n, (d := talks(n)), answers(d)
    for n in some(20, 40, 80, 160, 320): yield "dialogues, training", n, (d := talks(n)), epochs(d)
    for n in some(8, 16, 32, 64, 128, 256, 400): yield "length", n, (d := talks(max(1, 1600 // n), n)), answers(d)
    for k in some(4, 8, 16, 36): yield "eigenpairs", k, base, answers(base, {"rank": k})
    for t in some(1, 2, 4, 8, 16): yield "steps", t, base, answers(base, n_steps=t)
    for s in some(1, 2, 4, 8, 16): yield "samples", s, base, answers(base, n_samples=s)
    for b in some(1, 2, 4, 8, 16, 32): yield "batch", b, base, answers(base, batch_size=b)
    for b in some(4, 8, 16, 32): yield "batch, training", b, base, epochs(base, b)


rows = []
for curve, x, data, measure in curves(chosen.quick):
    for threads in (1, 2):
        torch.set_num_threads(threads)
        measure()
        seconds = min(measure() for _ in range(2 if chosen.quick else 4))
        rows.append(dict(curve=curve, x=x, utterances=data.n_utterances, seconds=float(f"{seconds:.4g}"),
                         microseconds_per_utterance=float(f"{1e6 * seconds / data.n_utterances:.4g}"), threads=threads, device=device(),
                         date=time.strftime("%Y-%m-%d", time.gmtime()), commit=commit()))
keep(chosen, rows, "growth.csv", key=("curve", "x", "threads", "device"))
print(f"{'curve':22}{'x':>6}{'utterances':>12}   µs per utterance, 1 and 2 threads")
for one, two in zip(rows[::2], rows[1::2]):
    print(f"{one['curve']:22}{one['x']:6}{one['utterances']:12}{one['microseconds_per_utterance']:12.1f}{two['microseconds_per_utterance']:12.1f}")
