"""What is dropped costs nothing: residual paths, layers and tokens left out of a training step."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor, nn

import dropseed.torch as dst
from benchmarks.harness import Bar, medians, reuse_memory, show, show_bars
from dropseed.torch.layer_drop import LayerDrop
from dropseed.torch.paths import DropPath
from dropseed.torch.tokens import PatchDropout

RATE = 0.2
BATCH, WIDTH, DEPTH = 32, 256, 24
IDEAL, LIMIT = 1 - RATE, 0.9


class Branch(nn.Sequential):
    """A transformer's MLP, before it is added to its input."""

    def __init__(self) -> None:
        super().__init__(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )


class Residual(nn.Module):
    """A branch and its addition, with the path dropped after the branch has run, or not at all."""

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        self.branch = Branch()
        self.path = DropPath(p)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus what the path lets through."""
        return x + self.path(self.branch(x))


class Loop(nn.Module):
    """Layers one after the other, as a list yields them."""

    def __init__(self, layers: nn.ModuleList) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        """The last layer's output."""
        for layer in self.layers:
            x = layer(x)
        return x


class Transformer(nn.Module):
    """Encoder layers behind a token dropout."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout
        layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        """The encoding of the tokens left."""
        return self.encoder(self.dropout(x))


def step(model: nn.Module, x: Tensor) -> Callable[[], object]:
    """A training step of a model, without its optimizer."""
    dst.set_key(model, 0)

    def call() -> None:
        model.zero_grad()
        model(x).sum().backward()

    return call


def main() -> None:
    # One thread: what is counted is the work left out, not how well the rest of it is shared out.
    torch.set_num_threads(1)
    reuse_memory()
    torch.manual_seed(0)
    x = torch.randn(BATCH, 12, WIDTH)
    nets = {
        "no drop": Loop(nn.ModuleList([Residual() for _ in range(DEPTH)])),
        "DropPath": Loop(nn.ModuleList([Residual(RATE) for _ in range(DEPTH)])),
        "DropPath.wrap": Loop(nn.ModuleList([DropPath.wrap(Branch(), RATE) for _ in range(DEPTH)])),
        "LayerDrop": Loop(LayerDrop([Residual() for _ in range(DEPTH)], RATE)),
    }
    calls = {name: step(model, x) for name, model in nets.items()}
    # 24 draws say little about the rate: take a seed under which as many layers stay as it says.
    layers = nets["LayerDrop"]
    seeds = (seed for seed in count() if dst.set_key(layers, seed))
    next(seed for seed in seeds if len(list(layers.layers)) == round(IDEAL * DEPTH))
    net = medians(calls, 10.0)
    x = torch.randn(BATCH, 65, 128)
    transformers = {"no drop": nn.Identity(), "PatchDropout": PatchDropout(RATE)}
    tokens = medians({n: step(Transformer(d), x) for n, d in transformers.items()}, 6.0)
    rows, bars = [], []
    for kind, times in ((f"{DEPTH} residual blocks", net), ("transformer, 65 tokens", tokens)):
        for name, seconds in times.items():
            ratio = seconds / times["no drop"]
            rows.append([f"{kind}: {name}", f"{seconds * 1e3:.0f}", f"{ratio:.2f}"])
            if name not in ("no drop", "DropPath"):
                bars.append(Bar(f"{name} over no drop (ideal {IDEAL:g})", ratio, LIMIT))
    show(f"Forward and backward at rate {RATE}, batch {BATCH}", ["network", "ms", "ratio"], rows)
    show_bars("Cheaper training", bars)


if __name__ == "__main__":
    main()
