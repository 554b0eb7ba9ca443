"""DropBlock through autograd, against a multiply and the field's max-pool formulation."""

from __future__ import annotations

import torch
from torch.nn import functional

import dropseed.torch as dst
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

BLOCK = 7
RATE = 0.1
SHAPES = ((32, 256, 28, 28), (32, 512, 14, 14), (8, 64, 112, 112))


def pooled(x: torch.Tensor) -> torch.Tensor:
    """Bernoulli draws, grown into blocks by a max-pool, as torchvision and timm form them."""
    n, c, h, w = x.shape
    places = (h - BLOCK + 1) * (w - BLOCK + 1)
    noise = torch.empty(n, c, h - BLOCK + 1, w - BLOCK + 1)
    noise.bernoulli_(RATE * h * w / (BLOCK**2 * places))
    noise = functional.pad(noise, [BLOCK // 2] * 4)
    mask = 1 - functional.max_pool2d(noise, BLOCK, stride=1, padding=BLOCK // 2)
    return x * mask * (mask.numel() / (1e-6 + mask.sum()))


def ours(x: torch.Tensor) -> torch.Tensor:
    return dst.functional.drop_block2d(x, RATE, BLOCK)


def forward_and_backward(regime: str) -> None:
    """Maps of three sizes, and one of them with its channels last."""
    rows, bars = [], []
    for shape in SHAPES:
        x = torch.randn(shape, requires_grad=True)
        last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
        t = medians(
            {
                "A": step(lambda x: x * 2.0, x),
                "ours": step(ours, x),
                "last": step(ours, last),
                "pooled": step(pooled, x),
            },
            6.0,
        )
        size = x.numel()
        rows.append(
            [
                str(shape),
                *(per_element(seconds, size) for seconds in t.values()),
                f"{t['ours'] / t['A']:.2f}",
                f"{t['pooled'] / t['ours']:.1f}",
            ]
        )
        if shape == SHAPES[0]:
            bars.append(Bar("(32, 256, 28, 28) over x * 2.0", t["ours"] / t["A"], 1.6))
            bars.append(Bar("(32, 256, 28, 28), max-pool over ours", t["pooled"] / t["ours"], -12))
    columns = [
        "shape",
        "x * 2.0 (A)",
        "ours",
        "channels last",
        "max-pool",
        "ours/A",
        "max-pool/ours",
    ]
    title = f"DropBlock2d, block 7, p = 0.1, forward and backward, ns an element; {regime}"
    show(title, columns, rows)
    show_bars(f"DropBlock bars; {regime}", bars)


def main() -> None:
    fresh_memory()
    forward_and_backward("fresh outputs, page faults included")
    reuse_memory()
    forward_and_backward("memory reused up to 32 MiB")


if __name__ == "__main__":
    main()
