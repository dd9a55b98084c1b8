"""What a computation must do: floating-point operations and bytes counted operation by operation, and the rates they are measured against."""
import math
import time
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

FREE = {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "_local_scalar_dense"} # neither read nor write


def held(x):
    "Bytes of a tensor; one that is expanded has no more than lie in its storage."
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


class Traffic(TorchDispatchMode):
    "Inside, the bytes are added up that each operation reads and writes, views left out: what no cache keeps between operations."
    def __init__(self):
        super().__init__()
        self.bytes, self.products, self.calls = 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[1]
        if not function.is_view and name not in FREE:
            moved = sum(held(x) for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
            self.bytes, self.calls = self.bytes + moved, self.calls + 1
            if name in ("mm", "addmm", "bmm", "baddbmm"): self.products += moved
        return out


def recurrent(inputs, weights, *others, **more):
    "Operations of cuDNN's recurrent layers, which torch does not count: each weight meets each row."
    return 2 * math.prod(inputs[:-1]) * sum(math.prod(w) for w in weights if len(w) == 2)


RECURRENT = {torch.ops.aten._cudnn_rnn: recurrent, torch.ops.aten._cudnn_rnn_backward: lambda *args, **more: 2 * recurrent(*args, **more)}


@contextmanager
def counted():
    "Inside, operations and bytes are counted; yields a dictionary that is filled at the end."
    found = {}
    with FlopCounterMode(display=False, custom_mapping=RECURRENT) as operations, Traffic() as traffic: yield found
    found |= {"operations": operations.get_total_flops(), "bytes": traffic.bytes, "product_bytes": traffic.products, "calls": traffic.calls}


def wait(device):
    "Until the device has done what it was given."
    if torch.device(device).type == "cuda": torch.cuda.synchronize()


def seconds(call, device="cpu", budget=1.0):
    "Seconds of a call, a mean over as many as fit into a budget, after one to warm up."
    call()
    wait(device)
    begin = time.perf_counter()
    call()
    wait(device)
    count = max(1, min(200, round(budget / max(1e-9, time.perf_counter() - begin))))
    begin = time.perf_counter()
    for _ in range(count): call()
    wait(device)
    return (time.perf_counter() - begin) / count


def product_rate(m, k, n, device="cpu", dtype=torch.float32, budget=1.0):
    "Floating-point operations a second of `[m, k] @ [k, n]`."
    a, b, out = (torch.randn(shape, device=device).to(dtype) for shape in ((m, k), (k, n), (m, n)))
    return 2 * m * k * n / seconds(lambda: torch.mm(a, b, out=out), device, budget)


def copy_rate(n_bytes, device="cpu", budget=1.0):
    "Bytes a second that a copy of a block moves, what is read and what is written together."
    source = torch.randn(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / seconds(lambda: target.copy_(source), device, budget)
