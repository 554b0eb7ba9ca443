"""The CPU kernels between preallocated buffers, against a multiply and the Philox words alone."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch

from benchmarks import philox
from benchmarks.harness import Bar, medians, per_element, show, show_bars
from dropseed.kernels import cpu
from dropseed.mask import Rate
from dropseed.mask.shard import whole

_KEY = (1, 2, 3, 4)
_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}


@numba.njit
def _double(y: np.ndarray, x: np.ndarray) -> None:
    for i in range(y.size):
        y[i] = x[i] * np.float32(2)


def _buffer(tensor: torch.Tensor) -> np.ndarray:
    bits = _BITS.get(tensor.dtype)
    return (tensor if bits is None else tensor.view(bits)).numpy()


def _launch(
    y: torch.Tensor, x: torch.Tensor, p: float, shared: tuple[int, ...] = (), threads: int = 1
) -> Callable[[], None]:
    source, rate, draws = _buffer(x), Rate(p), whole(tuple(x.shape), shared)
    target = source if y is x else _buffer(y)
    scale = rate.scale if y is not x else 1.0  # in place, values must not run off to infinity
    return lambda: cpu.dropout(target, source, draws, _KEY, rate.threshold, scale, threads=threads)


def in_cache() -> None:
    """One thread, 2^17 elements: the kernel is arithmetic, not memory."""
    size = 2**17
    rows, bars = [], []
    for dtype, limits in (
        (torch.float32, (1.25, 1.4)),
        (torch.float64, None),
        (torch.bfloat16, (1.5, 1.5)),
        (torch.float16, (1.5, 1.5)),
    ):
        x = torch.randn(size).to(dtype)
        y, z = torch.empty_like(x), x.clone()
        torch.set_num_threads(1)
        t = medians(
            {
                "A": lambda x=x, y=y: torch.mul(x, 2.0, out=y),
                "M": lambda x=x, y=y: _double(_buffer(y), _buffer(x)),
                "P": lambda: philox.words(size, 1),
                "0.5": _launch(y, x, 0.5),
                "0.1": _launch(y, x, 0.1),
                "in place": _launch(z, z, 0.1),
                "torch": lambda x=x: torch.nn.functional.dropout(x, 0.5),
            }
            if dtype == torch.float32
            else {
                "A": lambda x=x, y=y: torch.mul(x, 2.0, out=y),
                "P": lambda: philox.words(size, 1),
                "0.5": _launch(y, x, 0.5),
                "0.1": _launch(y, x, 0.1),
                "in place": _launch(z, z, 0.1),
                "torch": lambda x=x: torch.nn.functional.dropout(x, 0.5),
            }
        )
        name = str(dtype).removeprefix("torch.")
        columns = ("A", "P", "0.5", "0.1", "in place", "torch")
        rows.append([name, *(per_element(t[c], size) for c in columns)])
        if "M" in t:
            limit = 1.5 if "AVX-512" in _vectors() else 2.5
            bars.append(Bar("P / M, an in-cache y = x * 2", t["P"] / t["M"], limit))
        if limits:
            both = t["A"] + t["P"]
            bars += [
                Bar(f"{name}, p = {p}, over A + P", t[p] / both, limit)
                for p, limit in zip(("0.5", "0.1"), limits, strict=True)
            ]
    show(
        "Kernel between preallocated buffers, 2^17 elements, one thread, ns an element",
        ["dtype", "x * 2.0 (A)", "words (P)", "p = 0.5", "p = 0.1", "0.1 in place", "torch"],
        rows,
        "torch's allocates its output.",
    )
    show_bars("Kernel bars", bars)


def layouts() -> None:
    """Channels-last memory and whole channels, on an image batch, all threads."""
    threads = _all_threads()
    rows, bars = [], []
    for shape in ((32, 64, 56, 56), (32, 256, 14, 14), (16, 3, 128, 128)):
        x = torch.randn(shape)
        last = x.contiguous(memory_format=torch.channels_last)
        y, y_last = torch.empty_like(x), torch.empty_like(last)
        t = medians(
            {
                "A": lambda x=x, y=y: torch.mul(x, 2.0, out=y),
                "contiguous": _launch(y, x, 0.1, threads=threads),
                "channels last": _launch(y_last, last, 0.1, threads=threads),
                "spatial": _launch(y, x, 0.1, (2, 3), threads),
                "spatial, last": _launch(y_last, last, 0.1, (2, 3), threads),
            }
        )
        size = x.numel()
        rows.append([str(shape), *(per_element(seconds, size) for seconds in t.values())])
        ratio = t["channels last"] / t["contiguous"]
        bars.append(Bar(f"{shape}: channels last over contiguous", ratio, 1.5))
        bars.append(Bar(f"{shape}: spatial over x * 2.0", t["spatial"] / t["A"], 1.3))
    show(
        "Layouts, p = 0.1, preallocated buffers, ns an element",
        ["shape", "x * 2.0", "contiguous", "channels last", "spatial", "spatial, last"],
        rows,
    )
    show_bars("Layout bars", bars)


def _vectors() -> str:
    from benchmarks.harness import machine

    return machine().split(", ")[1]


def _all_threads() -> int:
    torch.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    return torch.get_num_threads()


def main() -> None:
    in_cache()
    layouts()


if __name__ == "__main__":
    main()
