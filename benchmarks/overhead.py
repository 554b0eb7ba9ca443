"""What a call costs before it does anything: small tensors, every autograd route."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

import dropseed.torch as dst
from benchmarks.harness import Bar, medians, show, show_bars

Apply = Callable[[torch.Tensor], torch.Tensor]


def _eager(apply: Apply, x: torch.Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()
    gradient = torch.ones_like(x)
    return lambda: torch.autograd.grad(apply(x), x, gradient)


def _compiled(apply: Apply, x: torch.Tensor) -> Callable[[], object]:
    return _eager(torch.compile(apply, backend="aot_eager", fullgraph=True), x)


def _functorch(apply: Apply, x: torch.Tensor) -> Callable[[], object]:
    gradient = torch.func.grad(lambda x: apply(x).sum())
    return lambda: gradient(x)


def _vmapped(apply: Apply, x: torch.Tensor) -> Callable[[], object]:
    batch = torch.func.vmap(apply, randomness="different")
    rows = x.reshape(8, -1)
    return lambda: batch(rows)


def _traced(apply: Apply, x: torch.Tensor) -> Callable[[], object]:
    graph = make_fx(lambda x: apply(x))(x)
    return lambda: graph(x)


def _batched(apply: Apply, x: torch.Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()
    output = apply(x)
    gradients = torch.ones(8, *x.shape)
    return lambda: torch.autograd.grad(
        output, x, gradients, retain_graph=True, is_grads_batched=True
    )


ROUTES = {
    "plain eager": _eager,
    "torch.compile": _compiled,
    "torch.func.grad": _functorch,
    "torch.func.vmap": _vmapped,
    "make_fx graph": _traced,
    "batched gradients": _batched,
}


def main() -> None:
    rows, bars = [], []
    for size in (64, 2**10):
        x = torch.randn(size)
        for route, build in ROUTES.items():
            t = medians(
                {
                    "ours": build(lambda x: dst.functional.dropout(x, 0.5), x),
                    "torch": build(lambda x: functional.dropout(x, 0.5), x),
                },
                1.0,
            )
            ratio = t["ours"] / t["torch"]
            rows.append(
                [
                    f"{route}, {size}",
                    f"{t['ours'] * 1e6:.1f}",
                    f"{t['torch'] * 1e6:.1f}",
                    f"{ratio:.2f}",
                ]
            )
            limit = 4.0 if route != "plain eager" else 2.5 if size == 64 else 1.6
            bars.append(Bar(f"{route}, {size} elements, ours over torch", ratio, limit))
    columns = ["route and elements", "ours, us", "torch, us", "ratio"]
    show("Overhead: a call, with its backward where the route has one", columns, rows)
    show_bars("Overhead bars", bars)


if __name__ == "__main__":
    main()
