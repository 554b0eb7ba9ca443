"""How every benchmark measures: callables in turn, medians, and ratios within one run.

Two cores that others use too give no stable times, but stable ratios: a round calls every
candidate, so that a slow moment hits them all. It calls each twice and times the second call: the
first finds the caches as the candidate before left them.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

console = Console(width=118)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


class Bar(NamedTuple):
    """One claim: a measured ratio, and the most (or, negative, the least) that it may be."""

    what: str
    ratio: float
    limit: float


def medians(
    candidates: Mapping[str, Callable[[], object]], seconds: float = 2.0, rounds: int = 7
) -> dict[str, float]:
    """The median time of each candidate in seconds, called in turn for about `seconds` in all.

    There are at least `rounds` rounds, however long they take.
    """
    for call in candidates.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[next(iter(times))]) < rounds:
        for name, call in candidates.items():
            call()
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def step(apply: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], object]:
    """Forward and backward through autograd, for an output of the input's size."""
    gradient = torch.ones_like(x)
    return lambda: torch.autograd.grad(apply(x), x, gradient)


def fresh_memory() -> None:
    """Let malloc map every large output anew: the kernel then hands it over page by page.

    Left alone, malloc moves its own limits as blocks are freed, and one size shows either regime.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 128 * 2**10)


def reuse_memory() -> None:
    """Let malloc keep what is freed: outputs up to 32 MiB then lie on pages already touched."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


def growth(call: Callable[[], object]) -> int:
    """By how many bytes a call raises what the process holds at its peak, on Linux."""
    call()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def machine() -> str:
    """The CPU model, the vector width and the thread count, for a table's caption."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        info = ""
    model = next(
        (line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "?"
    )
    vectors = "AVX-512" if "avx512bw" in info else "no AVX-512"
    return f"{model}, {vectors}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()}"


def show(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> None:
    """Print a table: the first column names the row, the others are figures."""
    table = Table(title=title, caption=f"{note} {machine()}".strip(), title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def show_bars(title: str, bars: list[Bar]) -> None:
    """Print claims with what was measured: a limit below 0 is the least, above 0 the most."""
    rows = []
    for what, ratio, limit in bars:
        sign, met = ("at most", ratio <= limit) if limit > 0 else ("at least", ratio >= -limit)
        rows.append([what, f"{ratio:.2f}", f"{sign} {abs(limit):g}", "met" if met else "MISSED"])
    show(title, ["claim", "measured", "bar", ""], rows)


def per_element(seconds: float, size: int) -> str:
    """Nanoseconds an element."""
    return f"{seconds / size * 1e9:.3f}"
