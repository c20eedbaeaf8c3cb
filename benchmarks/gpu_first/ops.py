"""Ops: how long each takes, as a share of what a copy would take to move the same bytes.

``python -m benchmarks.gpu_first.ops once`` calls the ops once each and writes no row: what a profiler watches.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch

from benchmarks import test_box, test_points
from benchmarks.gpu_first.rows import COMPILER, DEVICE, GPU, Facts, back_to_back, part, row, seconds, synchronise, tried
from lbgap import ops

Timed = dict[str, tuple[Callable[[], object], float]]  # by name, a call and the bytes that it moves at least
LAUNCH_BOUND = 10**7  # elements; for fewer, calls are also timed back to back
FREE_BELOW = {1.0: 9.0, 0.05: 0.0627}  # share of standard normal numbers whose size is below


def limits() -> float:
    """Bytes a second of a copy; that of matrix products is noted beside it."""
    size = 2**32 if GPU else 2**24
    source = torch.ones(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    copy = 2e6 * size / seconds(lambda: target.copy_(source))["us"]
    row("ops", "copy", ok=True, gbs=round(copy / 1e9, 1))
    for dtype in (torch.float32, torch.bfloat16):
        n = 8192 if GPU else 256
        a, b = (torch.randn(n, n, device=DEVICE).to(dtype) for _ in range(2))
        rate = 2 * n**3 / seconds(lambda a=a, b=b: a @ b)["us"] / 1e6
        row("ops", f"mm {str(dtype)[6:]}", ok=True, tflops=round(rate, 2))
    return copy


def timed(copy: float, call: Callable[[], object], least: float, rounds: int = 15) -> Facts:
    facts = seconds(call, rounds)
    return {**facts, "share_of_copy": round(least / copy / (facts["us"] / 1e6), 3)}


def box_ops(copy: float, n: int) -> None:
    """The box ops and their opponents."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, other, share = (torch.randn(n, generator=generator, device=DEVICE) for _ in range(3))
    y = torch.clamp(share, -1, 1).mul_(x.abs().add_(1).mul_(5e-4)).add_(x)

    def work(op: str, backend: str) -> Facts:
        call = test_box.prepare(op, backend, y, other, x)
        facts = timed(copy, call, 16.0 * n)
        return {**facts, "chained_us": back_to_back(call)} if n < LAUNCH_BOUND else facts

    for op in ("step", "vertex"):
        for backend in ("native", *(["compile"] if GPU else []), "buffers", "torch"):
            tried("ops", f"box_{op} {backend} n={n:,}", lambda op=op, backend=backend: work(op, backend))


def history_calls(n: int) -> Timed:
    """The ops of L-BFGS-B on ten pairs, with all coordinates free and with a twentieth."""
    c, box, once = 10, (0.0, 0.0), 4.0 * n
    generator = torch.Generator(DEVICE).manual_seed(0)
    x, g, share = (torch.randn(n, generator=generator, device=DEVICE) for _ in range(3))
    lower, upper = x - 0.5, x + 0.5
    z, bound = (torch.where(share.abs() < FREE_BELOW[free], x + 0.1, upper) for free in (1.0, 0.05))
    s = torch.randn(c, n, generator=generator, device=DEVICE)
    y, out = s * 1.5, torch.empty_like(x)
    middle, q = torch.eye(2 * c, dtype=torch.float64) * 0.1, torch.arange(2 * c, dtype=torch.float64) * 1e-3

    def gram(at: torch.Tensor) -> object:
        return ops.history_gram(at, x, g, s, y, 1.5, lower, upper, *box)

    def combine() -> object:
        return ops.history_combine(out.copy_(z), x, g, s, y, q, 1.5, lower, upper, *box, True)

    def cauchy() -> object:
        return ops.history_cauchy(x, g, s, y, middle, 1.5, lower, upper, *box, out)

    return {
        "box_project": (lambda: ops.box_project(z, x, 1e-3, 1e-3, out), 3 * once),
        "history_line": (lambda: ops.history_line(g, x, z, lower, upper, *box), 5 * once),
        "history_step": (lambda: ops.history_step(x, z, 0.4, lower, upper, *box, out), 5 * once),
        "history_append": (lambda: ops.history_append(z, x, g, out, s, y, 1), (2 * c + 4) * once),
        "history_gram all free": (lambda: gram(z), (2 * c + 5) * once),
        "history_gram 5% free": (lambda: gram(bound), 5 * once),
        "history_combine all free": (combine, (2 * c + 8) * once),
        "history_cauchy": (cauchy, (2 * c + 5) * once),
    }


def tangents_calls(batch: int, dtype: torch.dtype) -> Timed:
    """The ops on the tangents of eight vectors, 512 wide, in place."""
    k, wide, name = 8, 512, str(dtype)[6:]
    t, r = (torch.randn(batch, k, wide, device=DEVICE).to(dtype) for _ in range(2))
    first, curve = (torch.randn(batch, wide, device=DEVICE) for _ in range(2))
    scale, slopes = torch.randn(wide, device=DEVICE), torch.randn(k, wide, device=DEVICE)
    logits, p = torch.randn(batch, k, 10, device=DEVICE).to(dtype), torch.rand(batch, 10, device=DEVICE).softmax(1)
    one, shared = float(t.nbytes), float(first.nbytes)
    return {
        f"tangents_scale {name}": (lambda: ops.tangents_scale(t, first, t), 2 * one + shared),
        f"tangents_curve {name}": (lambda: ops.tangents_curve(r, first, curve, t, r), 3 * one + 2 * shared),
        f"tangents_affine {name}": (lambda: ops.tangents_affine(t, scale, slopes, first, slopes, t), 2 * one + shared),
        f"tangents_softmax {name}": (
            lambda: ops.tangents_softmax(logits, p, None, logits),
            2.0 * logits.nbytes + p.nbytes,
        ),
    }


def points_ops(copy: float) -> None:
    """The ops on many points and their opponents."""
    for op in ("blend", "chain", "xent"):
        args, amounts = test_points.draw(op, not GPU, DEVICE)
        [(unit, amount)] = amounts.items()

        def work(backend: str, op: str = op, args: tuple = args, unit: str = unit, amount: float = amount) -> Facts:
            function = getattr(ops, f"{op}_points") if backend == "native" else test_points.EAGER[op]
            if backend == "compile":
                function = torch.compile(function, dynamic=False, backend=COMPILER)
            facts = seconds(lambda: function(*args))
            rate = 1e6 * amount / facts["us"]
            share = {"share_of_copy": round(rate / copy, 3)} if unit == "copy" else {"tflops": round(rate / 1e12, 2)}
            return {**facts, **share}

        for backend in ("native", "compile", "torch"):
            tried("ops", f"{op}_points {backend}", lambda backend=backend, work=work: work(backend))


def subspace_ops() -> None:
    n = 10**7 if GPU else 10**4
    z = torch.randn(100, dtype=torch.float64, device=DEVICE)
    centre, out = torch.randn(n, device=DEVICE), torch.empty(n, device=DEVICE)
    for law in ("normal", "rademacher"):
        calls = {
            "apply": lambda law=law: ops.subspace_apply(centre, z, 1, 2, law, out),
            "project": lambda law=law: ops.subspace_project(centre, 100, 1, 2, law),
        }
        for name, call in calls.items():
            tried("ops", f"subspace_{name} {law} p=100 n={n:,}", lambda call=call: seconds(call, 5))


def measure() -> None:
    copy = limits()
    sizes = (10**8, 10**6) if GPU else (10**5, 10**3)
    for n in sizes:
        box_ops(copy, n)
    for n in sizes:
        for name, (call, least) in history_calls(n).items():
            tried("ops", f"{name} n={n:,}", lambda call=call, least=least: timed(copy, call, least, 7))
    for dtype in (torch.float32, torch.bfloat16):
        for name, (call, least) in tangents_calls(60_000 if GPU else 50, dtype).items():
            tried("ops", name, lambda call=call, least=least: timed(copy, call, least))
    points_ops(copy)
    subspace_ops()


def once() -> None:
    """Call the ops once each, at a size that fills a GPU."""
    calls = history_calls(2 * 10**7 if GPU else 10**4)
    for dtype in (torch.float32, torch.bfloat16):
        calls |= tangents_calls(20_000 if GPU else 20, dtype)
    for name, (call, _) in calls.items():
        call()
        synchronise()
        print(name, flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["once"]:
        part(once, rows=False)
    part(measure)
