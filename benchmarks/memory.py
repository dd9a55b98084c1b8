"""Peak resident memory of training, beyond a process that has imported torch, for GSDNet and the GCNet-like network.
"""
import resource
import subprocess
import sys

MEASURED = "--child" in sys.argv
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 if sys.platform == "linux" else 1024) / 1024 # MB


def child(name, folder, epochs):
    "Train a model in this process and print what it took: after torch, after gsdnet, at the end."
    import torch
    torch.set_num_threads(1)
    start = peak()
    from compare import dataset
    from gsdnet.architectures import MODELS
    from gsdnet.trainer import TrainConfig, fit
    imported = peak()
    data, kit = dataset(folder or None)
    loaded = peak()
    fit(data, model=MODELS[name], kit=kit, config=TrainConfig(epochs=epochs, choose_from=0), progress=False)
    print(start, imported, loaded, peak())


def measure(name, chosen):
    "Megabytes beyond torch: libraries, data, training."
    words = [sys.executable, __file__, "--child", name, chosen.data or "", str(1 if chosen.quick else 3)]
    start, *rest = map(float, subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-4:])
    return [value - start for value in rest]


if MEASURED: child(sys.argv[2], sys.argv[3], int(sys.argv[4]))
else:
    from compare import Turns, keep, options, row, show
    chosen = options(__doc__)
    found = {name: measure(name, chosen) for name in ("gsdnet", "gcnet_like")}
    rows = [row(chosen, f"peak memory beyond torch, {what}", "gsdnet", "gcnet_like", Turns(a, b, a / b), "MB")
            for what, a, b in zip(("libraries imported", "and data loaded", "and trained"), *found.values())]
    keep(chosen, rows)
    show(rows)
