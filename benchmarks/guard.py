"""What `dropseed.audit.guard` costs: a training step of the MNIST convnet with and without it.

Both steps of a round are taken one after the other, in turns of order, on one thread and in time of
that thread on a core; the figure is the median over the rounds. A step of 128 images takes tens of
milliseconds and the guard some hundredths of one, which a busy machine still drowns. What the
guard adds doesn't depend on the number of images, so it is measured with one image as well, and
set against the step of 128.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn

import dropseed.torch as dst
from benchmarks.harness import Bar, show, show_bars
from dropseed.audit.running.guard import guard
from dropseed.lab.models import mnist_convnet

_BATCH, _SECONDS = 128, 15.0


def training_step(layer: type[nn.Module], batch: int) -> Callable[[], None]:
    """A step as the trainer does it, with a dropout layer of dropseed's or torch's."""
    torch.manual_seed(0)
    model = mnist_convnet().to(memory_format=torch.channels_last)
    model.dropout = layer(0.5)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    x = torch.randn(batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,))

    def step() -> None:
        model.train()
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def deep_step() -> Callable[[], None]:
    """A step with many dropouts and little else: 12 Transformer layers 32 wide, a batch of 4."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.randn(4, 16, 32)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


class Paired(NamedTuple):
    """Medians over rounds, with the standard error of the ratio's."""

    plain: float
    added: float
    ratio: float
    error: float


def paired(step: Callable[[], None], seconds: float) -> Paired:
    """A step without the guard and with it, in turns: seconds, and the ratio."""
    plain, guarded = [], []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        turns = ((plain, nullcontext()), (guarded, guard("error")))
        for times, watch in turns if len(plain) % 2 else turns[::-1]:
            with watch:
                step()
                start = time.thread_time()
                step()
                times.append(time.thread_time() - start)
    ratios = [b / a for a, b in zip(plain, guarded, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    error = 1.253 * (high - low) / 1.349 / len(ratios) ** 0.5  # of a median, by the quartiles
    added = statistics.median(b - a for a, b in zip(plain, guarded, strict=True))
    return Paired(statistics.median(plain), added, middle, error)


def enter_and_exit() -> float:
    """The median time that it takes to put a guard up and down."""
    times = []
    for _ in range(200):
        start = time.perf_counter()
        with guard("error"):
            pass
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    rows, bars = [], []

    def row(name: str, t: Paired) -> None:
        figures = f"{t.plain * 1e3:.2f}", f"{t.added * 1e6:.1f}", f"{t.ratio:.4f}", f"{t.error:.4f}"
        rows.append([name, *figures])

    for whose, layer in (("dropseed's", dst.Dropout), ("torch's", nn.Dropout)):
        one, many = (paired(training_step(layer, batch), _SECONDS) for batch in (1, _BATCH))
        row(f"MNIST convnet, {whose} dropout, 1 image", one)
        row(f"MNIST convnet, {whose} dropout, {_BATCH} images", many)
        ratio = 1 + one.added / many.plain
        bars.append(
            Bar(f"{whose} dropout: added to a step of {_BATCH}, over that step", ratio, 1.02)
        )
    row("12 narrow Transformer layers, 48 dropouts", paired(deep_step(), _SECONDS))
    columns = ["training step", "unguarded, ms", "guard adds, us", "ratio", "standard error"]
    note = f"A guard goes up and down in {enter_and_exit() * 1e6:.0f} us."
    show("The guard: medians of paired steps, in turns", columns, rows, note)
    show_bars("Guard bars", bars)


if __name__ == "__main__":
    main()
