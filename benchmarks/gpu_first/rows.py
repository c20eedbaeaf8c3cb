"""Rows of a first run, each with ``ok`` or ``error``, written as soon as they are known; and how a call is timed.

``OUT`` is the folder they go to, ``GPU_FIRST_DEVICE`` where the work runs: ``cuda``, or ``cpu`` for small sizes.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lbgap import _extension

Facts = dict[str, Any]

DEVICE = torch.device(os.environ.get("GPU_FIRST_DEVICE", "cuda"))
GPU = DEVICE.type == "cuda"
COMPILER = "inductor" if GPU else "eager"  # of torch.compile; on a CPU nobody waits for a C++ compiler

_good: list[bool] = []


def row(part: str, what: str, **facts: Any) -> None:
    """Write a row; ``facts`` have ``ok``, or ``error`` in words."""
    _good.append(facts.get("ok", False))
    line = json.dumps({"part": part, "what": what, **facts}, default=str)
    with (Path(os.environ["OUT"]) / "rows.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


def tried(part: str, what: str, work: Callable[[], Facts]) -> None:
    """Write what a piece of work says of itself, or how it failed, and go on."""
    began = time.perf_counter()
    try:
        facts = {"ok": True, **work()}
    except Exception as error:
        traceback.print_exc()
        facts = {"error": f"{type(error).__name__}: {error}"[:300]}
    row(part, what, **facts, part_seconds=round(time.perf_counter() - began, 2))


def part(work: Callable[[], None], *, rows: bool = True) -> NoReturn:
    """Do the work of a part and end the process: with status 1 where a row failed, or none was written.

    Without a compiled library the twins would run, and every row of a kernel would be one of theirs: then nothing runs.
    """
    if GPU and not torch.cuda.is_available():
        sys.exit("torch sees no GPU here")
    if DEVICE.type not in _extension.NATIVE_DEVICES:
        sys.exit(f"no compiled library serves {DEVICE.type}: build it first")
    warnings.simplefilter("ignore")
    work()
    sys.exit(int(rows and not (_good and all(_good))))


def synchronise() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(call: Callable[[], object], rounds: int = 15, max_seconds: float = 2.0) -> Facts:
    """Median microseconds of a call by events, ``us``, and what the host takes to enqueue it, ``host_us``."""
    call()
    synchronise()
    rounds = rounds if GPU else 2
    device: list[float] = []
    host: list[float] = []
    began = time.perf_counter()
    while len(device) < rounds and (len(device) < 3 or time.perf_counter() - began < max_seconds):
        if GPU:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
        before = time.perf_counter()
        call()
        host.append(time.perf_counter() - before)
        if GPU:
            last.record()
            last.synchronize()
        device.append(first.elapsed_time(last) / 1e3 if GPU else host[-1])
    return {"us": round(1e6 * statistics.median(device), 1), "host_us": round(1e6 * statistics.median(host), 1)}


def back_to_back(call: Callable[[], object]) -> float:
    """Microseconds a call where many follow each other: the limit that launches set."""
    calls = 200 if GPU else 5
    call()
    synchronise()
    began = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise()
    return round(1e6 * (time.perf_counter() - began) / calls, 1)


def close(found: Tensor, expected: Tensor, rtol: float, atol: float = 1e-6) -> None:
    """Raise unless two tensors agree, wherever they are and of whatever dtype."""
    torch.testing.assert_close(found.double().cpu(), expected.double().cpu(), rtol=rtol, atol=atol, equal_nan=True)
