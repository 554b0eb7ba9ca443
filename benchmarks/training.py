"""Dropout as a training step sees it: forward and backward through autograd, and in place."""

from __future__ import annotations

import torch
from torch.nn import functional

import dropseed.torch as dst
from benchmarks import philox
from benchmarks.harness import (
    Bar,
    fresh_memory,
    medians,
    per_element,
    reuse_memory,
    show,
    show_bars,
    step,
)


def _row(exponent: int, t: dict[str, float]) -> list[str]:
    """A table's row: nanoseconds an element, then what users compare."""
    figures = [per_element(seconds, 2**exponent) for seconds in t.values()]
    return [f"2^{exponent}", *figures, f"{t['0.5'] / t['A']:.2f}", f"{t['torch'] / t['0.5']:.1f}"]


def forward_and_backward(regime: str) -> None:
    """Sizes from the cache to main memory."""
    rows, bars = [], []
    for exponent in (17, 20, 24):
        size = 2**exponent
        x = torch.randn(size, requires_grad=True)
        candidates = {
            "A": step(lambda x: x * 2.0, x),
            "P": lambda size=size: philox.words(2 * size),
            "0.5": step(lambda x: dst.functional.dropout(x, 0.5), x),
            "0.1": step(lambda x: dst.functional.dropout(x, 0.1), x),
            "torch": step(lambda x: functional.dropout(x, 0.5), x),
        }
        t = medians(candidates, 2.0 if exponent < 24 else 12.0)
        rows.append(_row(exponent, t))
        both = t["A"] + t["P"]
        if exponent == 17:
            bars.append(Bar("2^17, p = 0.5, over x * 2.0", t["0.5"] / t["A"], 2))
        else:
            bars.append(Bar(f"2^{exponent}, p = 0.5, over A + P", t["0.5"] / both, 1.25))
            bars.append(Bar(f"2^{exponent}, p = 0.1, over A + P", t["0.1"] / both, 1.4))
        if exponent == 20:
            limit = -8 if regime.startswith("memory reused") else -4
            bars.append(Bar("2^20, torch over ours", t["torch"] / t["0.5"], limit))
    columns = [
        "size",
        "x * 2.0 (A)",
        "words (P)",
        "p = 0.5",
        "p = 0.1",
        "torch",
        "ours/A",
        "torch/ours",
    ]
    title = f"Forward and backward through autograd, float32, ns an element; {regime}"
    show(title, columns, rows)
    show_bars(f"Training bars; {regime}", bars)


def in_place() -> None:
    """No output at all: 2^20 in the cache, 2^26 in main memory."""
    rows, bars = [], []
    for exponent in (20, 26):
        size = 2**exponent
        x = torch.randn(size)
        candidates = {
            "A": lambda x=x: x.mul_(1.0),
            "P": lambda size=size: philox.words(size),
            "0.5": lambda x=x: dst.functional.dropout(x, 0.5, inplace=True, scaling="none"),
            "0.1": lambda x=x: dst.functional.dropout(x, 0.1, inplace=True, scaling="none"),
            "torch": lambda x=x: functional.dropout(x, 0.5, inplace=True),
        }
        t = medians(candidates, 2.0 if exponent == 20 else 12.0)
        rows.append(_row(exponent, t))
        both = t["A"] + t["P"]
        if exponent == 26:
            bars.append(Bar("2^26 in place, p = 0.5, over A + P", t["0.5"] / both, 1.25))
            bars.append(Bar("2^26 in place, p = 0.1, over A + P", t["0.1"] / both, 1.4))
        else:
            bars.append(Bar("2^20 in place, torch over ours", t["torch"] / t["0.5"], -8))
    columns = [
        "size",
        "x.mul_ (A)",
        "words (P)",
        "p = 0.5",
        "p = 0.1",
        "torch",
        "ours/A",
        "torch/ours",
    ]
    show("In place, no gradient, float32, ns an element", columns, rows)
    show_bars("In-place bars", bars)


def main() -> None:
    fresh_memory()
    forward_and_backward("fresh outputs, page faults included")
    in_place()
    reuse_memory()
    forward_and_backward("memory reused up to 32 MiB")


if __name__ == "__main__":
    main()
