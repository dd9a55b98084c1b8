"""What all benchmark scripts share: turns, one table, rows that say where they come from."""
import argparse
import csv
import os
import platform
import statistics
import sys
import time
from collections import namedtuple
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

COLUMNS = ["what", "a", "b", "a_value", "b_value", "unit", "ratio", "low", "high", "cpu_ratio", "busy", "threads", "data", "device", "date", "commit", "versions"]
# medians; median, smallest and largest ratio a / b of a round; the ratio in CPU seconds of the process, where calls are what is timed; its CPU share
Turns = namedtuple("Turns", "a b ratio low high cpu_ratio busy", defaults=[None] * 6)


def options(about, **more):
    "The options that every script takes; `more` maps further flags to their help, or further options to (type, default, help)."
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    parser.add_argument("--data", help="folder with data.npz and meta.json; synthetic conversations of like size if left out")
    parser.add_argument("--out", default="results", help="folder of the CSV files")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and epochs: the right order of magnitude in a minute or two")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", help="commit that rows name, where the source is a copy without its repository")
    for name, what in more.items():
        how = {"action": "store_true", "help": what} if isinstance(what, str) else dict(zip(("type", "default", "help"), what))
        parser.add_argument(f"--{name}", **how)
    chosen = parser.parse_args()
    import torch
    torch.set_num_threads(chosen.threads)
    return chosen


def turns(a, b, rounds=3):
    "Call two functions in turns, A B B A ...; each returns its own measure, or None for the wall-clock seconds of the call."
    found, walls, cpus, timed = {a: [], b: []}, [], {a: [], b: []}, True
    for i in range(rounds):
        for f in ((a, b), (b, a))[i % 2]:
            wall, cpu = time.perf_counter(), time.process_time()
            value = f()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            found[f].append(wall if value is None else value)
            cpus[f].append(cpu)
            walls.append(wall)
            timed = timed and value is None
    ratios = [x / y for x, y in zip(found[a], found[b])]
    in_cpu = statistics.median(x / y for x, y in zip(cpus[a], cpus[b])) if timed else None
    return Turns(statistics.median(found[a]), statistics.median(found[b]), statistics.median(ratios), min(ratios), max(ratios), in_cpu,
                 sum(cpus[a] + cpus[b]) / sum(walls))


def dataset(folder):
    "The data, and its mask kit or one drawn at those of the rates 0, .3 and .5 that the data can reach; None stands for synthetic conversations of IEMOCAP's sizes."
    from gsdnet.benchmark import usable_rates
    from gsdnet.data import SyntheticConversations, load_dataset
    from gsdnet.missing import MaskKit
    if folder is None:
        data = SyntheticConversations(n_dialogues=200, length=(12, 60), n_speakers=(2, 2), modalities=("text", "audio"), dims=(384, 148),
                                      noise=.3).dataset()
        return data, MaskKit.draw(data, [0., .3, .5], [0])
    kit = Path(folder) / "masks.npz"
    kit = MaskKit.load(kit) if kit.is_file() else None
    data = load_dataset(folder, modalities=list(kit.modalities) if kit else None)
    return (data.use(kit), kit) if kit else (data, MaskKit.draw(data, usable_rates(None, data), [0]))


def development(folder, last=False):
    "The conversations of all sessions but the last, which is the test session of the fixed split; or with it."
    from gsdnet.data import ConversationDataset, load_dataset
    whole = load_dataset(folder, modalities=["text", "audio"])
    arrays = whole.arrays()
    kept = arrays["group"] < arrays["group"].max() + last
    return ConversationDataset({name: x[kept] for name, x in arrays.items()}, whole.modalities, label_names=whole.label_names, task=whole.task, name="development")


def development_masks(data, seed):
    "Masks of the protocols that these are judged under, by name."
    from gsdnet.missing import BurstMissing, FixedMissing, RandomMissing, SpeakerMissing, draw_mask
    protocols = {f"random {r:g}": RandomMissing(r) for r in (.1, .2, .3, .4, .5)} | {f"burst {r:g}": BurstMissing(r, 10) for r in (.3, .5)}
    protocols |= {f"no {m}": FixedMissing((m,), data.modalities) for m in data.modalities} | {"speaker": SpeakerMissing()}
    return {"random 0": data.available.numpy()} | {name: draw_mask(data.available, p, data.dialogue, seed=seed, speaker=data.speaker) for name, p in protocols.items()}


def known_tasks(path, width):
    "The first columns of the rows that a CSV file has."
    return {tuple(r[:width]) for r in csv.reader(path.open(encoding="utf-8", newline=""))} if path.is_file() else set()


def as_made(path, columns, run, todo, jobs, source):
    "Run tasks, each in a process of its own, and add the rows of each, with the commit, to a CSV file as it ends; the exit code: 1 where one failed."
    path.parent.mkdir(parents=True, exist_ok=True)
    failed, fresh = 0, not path.is_file() or not path.stat().st_size
    with path.open("a", encoding="utf-8", newline="") as handle, ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        writer, waiting = csv.writer(handle, lineterminator="\n"), {pool.submit(run, *t): t for t in todo}
        if fresh: writer.writerow(columns)
        for i, done in enumerate(as_completed(waiting), 1):
            if error := done.exception():
                failed += 1
                print(f"{waiting[done]} failed: {error!r}", file=sys.stderr, flush=True)
                continue
            writer.writerows([*row, source] for row in done.result())
            handle.flush()
            print(f"{i}/{len(todo)} {waiting[done]}", flush=True)
    return 1 if failed else 0


def device(kind="cpu"):
    "Name of the GPU; or that of the processor, and how many cores are to be had."
    if kind == "cuda":
        import torch
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")] if os.path.exists("/proc/cpuinfo") else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def row(chosen, what, a, b, result, unit):
    "A row of `performance.csv`; `result` is `Turns`, or one number where nothing is compared."
    from gsdnet.benchmark import commit, versions
    if not isinstance(result, Turns): result = Turns(result)
    short = lambda x: x if x is None else float(f"{x:.4g}")
    figures = dict(a_value=short(result.a), b_value=short(result.b), ratio=short(result.ratio), low=short(result.low), high=short(result.high),
                   cpu_ratio=short(result.cpu_ratio), busy=short(result.busy))
    return dict(what=what, a=a, b=b or "", **figures, unit=unit, threads=chosen.threads, data=Path(chosen.data).name if chosen.data else "synthetic",
                device=device(getattr(chosen, "device", "cpu")), date=time.strftime("%Y-%m-%d", time.gmtime()), commit=chosen.commit or commit(),
                versions=" ".join(f"{k}={v}" for k, v in versions().items() if k in ("python", "torch", "gsdnet")))


def keep(chosen, rows, file="performance.csv", key=("what", "a", "b", "threads", "data", "device")):
    "Put rows into a CSV file, each in the place of an older row of the same key."
    path = Path(chosen.out) / file
    old = list(csv.DictReader(path.open(encoding="utf-8", newline=""))) if path.is_file() else []
    same = lambda r: tuple(str(r[k]) for k in key)
    fresh = {same(r) for r in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".tmp").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows([r for r in old if same(r) not in fresh] + rows)
    path.with_suffix(".tmp").replace(path)


def show(rows):
    "Print the rows as one table, and say where the machine was not ours alone."
    import pandas as pd
    frame = pd.DataFrame(rows)
    print(frame[["what", "a", "b", "a_value", "b_value", "unit", "ratio", "low", "high", "cpu_ratio"]].astype(object).fillna("").to_string(index=False))
    shared = frame["busy"].dropna()
    if (shared < .9 * frame.loc[shared.index, "threads"].clip(upper=1)).any():
        print(f"the process had {100 * shared.min():.0f} % of a core: other work ran on this machine, trust ratios rather than seconds")
