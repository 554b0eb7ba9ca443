"""DropConnect against masks that are stored, against the plain layer and the Philox words alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import dropseed.torch as dst
from benchmarks import philox
from benchmarks.harness import Bar, growth, medians, reuse_memory, show, show_bars

BATCH, INPUTS, OUTPUTS = 128, 1024, 1024
_Layer = Callable[[torch.Tensor], torch.Tensor]


def dense(x: torch.Tensor, weight: torch.Tensor, p: float) -> torch.Tensor:
    """A stored mask for each sample, and einsum."""
    mask = torch.empty(len(x), *weight.shape).bernoulli_(1 - p)
    return torch.einsum("ni,noi->no", x, mask * weight) / (1 - p)


def _backward(output: torch.Tensor, inputs: list[torch.Tensor]) -> Callable[[], object]:
    gradient = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, inputs, gradient, retain_graph=True)


def _step(layer: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    inputs = [x, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(x).sum(), inputs)


def _data(inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, w = torch.randn(BATCH, inputs), torch.randn(OUTPUTS, inputs)
    return x.requires_grad_(), w.requires_grad_()


def a_mask_a_sample() -> None:
    """Forward, and backward by itself, at two rates."""
    linear = dst.functional.drop_connect_linear
    x, w = _data(INPUTS)
    size = BATCH * INPUTS * OUTPUTS
    rows, bars = [], []
    for p in (0.5, 0.3):
        stored = dense(x, w, p)
        ours = linear(x, w, p=p)
        slow = medians(
            {
                "forward": lambda p=p: dense(x, w, p),
                "backward": _backward(stored, [x, w]),
            },
            1.0,
            rounds=3,
        )
        fast = medians(
            {
                "forward": lambda p=p: linear(x, w, p=p),
                "backward": _backward(ours, [x, w]),
                "words": lambda: philox.words(size),
                "plain": lambda: nn.functional.linear(x, w),
            },
            4.0,
        )
        for way, limit in (("forward", -100), ("backward", -60)):
            figures = (slow[way], fast[way], fast["words"], fast["plain"])
            gain, words = slow[way] / fast[way], fast[way] / fast["words"]
            cells = [f"{1000 * seconds:.2f}" for seconds in figures]
            rows.append([f"{way}, p = {p}", *cells, f"{gain:.0f}", f"{words:.2f}"])
            bars.append(Bar(f"{way}, p = {p}: stored masks over ours", gain, limit))
            bars.append(Bar(f"{way}, p = {p}: ours over the words", words, 5))
        del stored
    columns = ["", "stored masks", "ours", "words (P)", "plain layer", "stored/ours", "ours/P"]
    show(f"DropConnect, a mask a sample, {BATCH} x {INPUTS} to {OUTPUTS}, ms", columns, rows)
    show_bars("DropConnect bars", bars)


def widths() -> None:
    """Inputs that fill no whole number of vectors, each per weight."""
    candidates = {}
    for inputs in (1024, 1000, 1023):
        x, w = _data(inputs)
        output = dst.functional.drop_connect_linear(x, w, p=0.3)
        candidates[f"{inputs} forward"] = lambda x=x, w=w: dst.functional.drop_connect_linear(
            x, w, p=0.3
        )
        candidates[f"{inputs} backward"] = _backward(output, [x, w])
    t = medians(candidates, 6.0)
    each = {name: seconds / int(name.split()[0]) for name, seconds in t.items()}
    bars = [
        Bar(f"{inputs} inputs, {way}, per weight, over 1024", ratio, 1.25)
        for inputs in (1000, 1023)
        for way in ("forward", "backward")
        if (ratio := each[f"{inputs} {way}"] / each[f"1024 {way}"])
    ]
    show_bars("DropConnect, widths, p = 0.3", bars)


def memory() -> None:
    """What a call adds to the process at its peak, beside a number for each sample and output."""
    linear = dst.functional.drop_connect_linear
    x, w = _data(INPUTS)
    few = (x[:32].detach().requires_grad_(), w)
    stored, ours = dense(*few, 0.5), linear(x, w, p=0.5)
    rows = [
        [name, f"{growth(call) / 2**20:.1f}"]
        for name, call in (
            ("ours, forward", lambda: linear(x, w, p=0.5)),
            ("ours, backward", _backward(ours, [x, w])),
            ("stored masks, forward, a quarter of the batch", lambda: dense(*few, 0.5)),
            ("stored masks, backward, a quarter of the batch", _backward(stored, list(few))),
        )
    ]
    note = f"An output takes {BATCH * OUTPUTS * 4 / 2**20:.1f} MiB, the weight's gradient 4.0."
    show("DropConnect, peak memory of a call, MiB", ["", "MiB"], rows, note)


def a_mask_a_batch() -> None:
    """The plain layer with one mask: as a layer of its own, and put on torch's."""
    layers = {
        "plain": nn.Linear(INPUTS, OUTPUTS),
        "layer": dst.DropConnectLinear(INPUTS, OUTPUTS, p=0.5, mode="batch"),
        "drop_weights": dst.drop_weights(nn.Linear(INPUTS, OUTPUTS), "weight", 0.5),
    }
    x = torch.randn(BATCH, INPUTS, requires_grad=True)
    forward = medians({name: lambda layer=layer: layer(x) for name, layer in layers.items()}, 4.0)
    both = medians({name: _step(layer, x) for name, layer in layers.items()}, 6.0)
    rows, bars = [], []
    for way, t in (("forward", forward), ("forward and backward", both)):
        rows.append([way, *(f"{1000 * seconds:.3f}" for seconds in t.values())])
        bars += [
            Bar(f"{way}: {name} over plain", t[name] / t["plain"], 1.15)
            for name in ("layer", "drop_weights")
        ]
    columns = ["", "plain", 'DropConnectLinear(mode="batch")', "drop_weights"]
    show(f"A mask a batch, {BATCH} x {INPUTS} to {OUTPUTS}, p = 0.5, ms", columns, rows)
    show_bars("Bars of a mask a batch", bars)


def main() -> None:
    memory()  # before malloc is told to keep what is freed
    reuse_memory()
    a_mask_a_batch()
    widths()
    a_mask_a_sample()


if __name__ == "__main__":
    main()
