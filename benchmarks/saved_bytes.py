"""Bytes that autograd keeps between forward and backward, counted by its own hooks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

import dropseed.torch as dst
from benchmarks.harness import Bar, show, show_bars
from dropseed import Key


def _saved(call: Callable[[], object]) -> int:
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        call()
    return total


def main() -> None:
    rows, bars = [], []
    compiled = torch.compile(dst.functional.dropout, backend="aot_eager", fullgraph=True)
    for exponent in (10, 20, 24):
        x = torch.randn(2**exponent, requires_grad=True)
        counts = {
            "drawn seed": _saved(lambda x=x: dst.functional.dropout(x, 0.5)),
            "explicit key": _saved(lambda x=x: dst.functional.dropout(x, 0.5, key=Key(0))),
            "compiled": _saved(lambda x=x: compiled(x, 0.5)),
            "torch": _saved(lambda x=x: functional.dropout(x, 0.5)),
        }
        rows.append([f"2^{exponent}", *(f"{count:,}" for count in counts.values())])
        bars += [
            Bar(f"2^{exponent}, {name}, bytes", counts[name], 16)
            for name in ("drawn seed", "explicit key", "compiled")
        ]
    columns = ["elements", "drawn seed", "explicit key", "compiled", "torch"]
    show("Bytes saved for backward, float32", columns, rows)
    show_bars("Bars on saved bytes", bars)


if __name__ == "__main__":
    main()
