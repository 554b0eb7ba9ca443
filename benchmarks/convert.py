"""Time to swap the dropout layers of models of 500 modules, look-alikes of two libraries'."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.harness import Bar, show, show_bars
from dropseed.torch.convert import convert, revert

MODULES = 500
ROUNDS = 30


class DropPath(nn.Module):
    """Looks like timm's."""

    __module__ = "timm.layers.drop"

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, True

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


class StochasticDepth(nn.Module):
    """Looks like torchvision's."""

    __module__ = "torchvision.ops.stochastic_depth"

    def __init__(self, p: float, mode: str) -> None:
        super().__init__()
        self.p, self.mode = p, mode

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


class Attention(nn.Module):
    """A transformer's attention, with a module and a functional call that drop."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.attn_drop, self.proj_drop = nn.Dropout(0.1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Project, attend, project."""
        q, k, v = self.qkv(x).chunk(3, -1)
        rate = self.attn_drop.p if self.training else 0.0
        x = functional.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return self.proj_drop(self.proj(x))


class Mlp(nn.Module):
    """A transformer's two linear layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(size, size), nn.GELU(), nn.Dropout(0.1)
        self.norm, self.fc2, self.drop2 = nn.Identity(), nn.Linear(size, size), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Two layers and their dropout."""
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class ViTBlock(nn.Module):
    """A block as timm's vision transformers have it."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = nn.LayerNorm(size), Attention(size), DropPath(0.1)
        self.norm2, self.mlp, self.drop_path2 = nn.LayerNorm(size), Mlp(size), DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Both residual branches."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class ConvBlock(nn.Module):
    """A block as torchvision's EfficientNets have it."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Sequential(nn.Conv2d(size, size, 1), nn.BatchNorm2d(size), nn.SiLU()),
            nn.Sequential(nn.Conv2d(size, size, 3), nn.BatchNorm2d(size), nn.SiLU()),
            nn.Dropout2d(0.1),
        )
        self.stochastic_depth = StochasticDepth(0.1, "row")

    def forward(self, x: Tensor) -> Tensor:
        """The residual branch."""
        return x + self.stochastic_depth(self.block(x))


def _stack(block: Callable[[], nn.Module]) -> nn.Module:
    """As many blocks as make 500 modules, and the identities that are missing."""
    model = nn.Sequential()
    while (missing := MODULES - sum(1 for _ in model.modules())) > 0:
        new = block()
        model.append(new if sum(1 for _ in new.modules()) <= missing else nn.Identity())
    return model


def _times(model: nn.Module, kind: str | None) -> tuple[float, list[float], int]:
    """The first time in milliseconds, the later ones, and the number of layers replaced."""
    times, replaced = [], 0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        report = convert(model, kind=kind)
        times.append(1e3 * (time.perf_counter() - start))
        replaced = len(report.replaced)
        revert(model)
    return times[0], times[1:], replaced


def main() -> None:
    torch.manual_seed(0)
    models = {"timm-like": ViTBlock, "torchvision-like": ConvBlock}
    rows, bars = [], []
    for name, block in models.items():
        for kind in (None, "gaussian", "spatial"):
            first, later, replaced = _times(_stack(block), kind)
            median = statistics.median(later)
            title = f"{name}, {'kinds kept' if kind is None else kind}"
            rows.append([title, str(replaced), f"{first:.1f}", f"{median:.1f}"])
            bars.append(Bar(f"{title}, ms", median, 50))
    columns = ["model of 500 modules", "replaced", "first, ms", "median, ms"]
    show("Converting a model", columns, rows)
    show_bars("Bars on converting", bars)


if __name__ == "__main__":
    main()
