"""The variants that act on activations, against torch's and against the formula written out."""

from __future__ import annotations

import torch
from torch.nn import functional

import dropseed.torch as dst
from benchmarks.harness import Bar, medians, per_element, reuse_memory, show, show_bars

_ours = dst.functional


def _saved(call: object) -> int:
    """The bytes that a call keeps for backward."""
    sizes: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()  # type: ignore[operator]
    return sum(sizes)


def spatial() -> None:
    """Whole channels, forward."""
    rows, bars = [], []
    for shape in ((32, 64, 56, 56), (32, 256, 28, 28), (32, 256, 14, 14)):
        x = torch.randn(shape)
        t = medians(
            {
                "A": lambda x=x: x * 2.0,
                "torch": lambda x=x: functional.dropout2d(x, 0.1),
                "ours": lambda x=x: _ours.spatial_dropout2d(x, 0.1),
            }
        )
        rows.append([str(shape), *(per_element(seconds, x.numel()) for seconds in t.values())])
        bars.append(Bar(f"{shape}: over F.dropout2d", t["ours"] / t["torch"], 1.1))
        bars.append(Bar(f"{shape}: over x * 2.0", t["ours"] / t["A"], 1.3))
    x = torch.randn(32, 64, 56, 56, requires_grad=True)
    bars.append(Bar("bytes saved", _saved(lambda: _ours.spatial_dropout2d(x, 0.1)), 16))
    columns = ["shape", "x * 2.0", "F.dropout2d", "spatial_dropout2d"]
    show("Spatial, p = 0.1, forward, ns an element", columns, rows)
    show_bars("Spatial bars", bars)


def laws() -> None:
    """The affine and the Gaussian law, forward."""
    rows, bars = [], []
    for exponent in (17, 20):
        x = torch.randn(2**exponent)
        t = medians(
            {
                "plain": lambda x=x: _ours.dropout(x, 0.3),
                "alpha": lambda x=x: _ours.alpha_dropout(x, 0.3),
                "torch alpha": lambda x=x: functional.alpha_dropout(x, 0.3, training=True),
                "gaussian": lambda x=x: _ours.gaussian_dropout(x, 0.3),
                "randn": lambda x=x: torch.randn_like(x) * x,
            },
            4.0,
        )
        size = 2**exponent
        rows.append([f"2^{exponent}", *(per_element(seconds, size) for seconds in t.values())])
        bars.append(Bar(f"2^{exponent}: alpha over plain", t["alpha"] / t["plain"], 1.3))
        bars.append(
            Bar(f"2^{exponent}: torch's alpha over ours", t["torch alpha"] / t["alpha"], -5)
        )
        bars.append(Bar(f"2^{exponent}: randn * x over Gaussian", t["randn"] / t["gaussian"], -3))
    x = torch.randn(2**20, requires_grad=True)
    bars.append(Bar("alpha, bytes saved", _saved(lambda: _ours.alpha_dropout(x, 0.3)), 16))
    bars.append(Bar("Gaussian, bytes saved", _saved(lambda: _ours.gaussian_dropout(x, 0.3)), 16))
    columns = ["size", "dropout", "alpha_dropout", "F.alpha_dropout", "gaussian", "randn_like * x"]
    show("Laws, p = 0.3, forward, ns an element; memory reused", columns, rows)
    show_bars("Law bars", bars)


def main() -> None:
    reuse_memory()
    spatial()
    laws()


if __name__ == "__main__":
    main()
