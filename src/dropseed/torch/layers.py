"""Dropout as modules that stand in for those of `torch.nn`."""

from __future__ import annotations

from torch import Tensor, nn

from dropseed.torch import functional
from dropseed.torch.keyed import KeyedLayer


class _Layer(KeyedLayer):
    """What the layers share: the arguments, and the key that `set_key` writes."""

    p: float
    inplace: bool

    def __init__(self, p: float = 0.5, inplace: bool = False, *, scaling: str = "inverted") -> None:
        functional.checked_rate(p).factors(scaling)
        super().__init__(p, inplace)
        self.scaling = scaling

    def extra_repr(self) -> str:
        """The arguments, as torch prints them; the scaling where it isn't the usual one."""
        other = "" if self.scaling == "inverted" else f", scaling={self.scaling!r}"
        return f"p={self.p}, inplace={self.inplace}{other}"


class Dropout(_Layer, nn.Dropout):
    """Zero a random fraction of the elements in training; see `functional.dropout`.

    Args:
        p: the fraction dropped, in [0, 1].
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".

    Shape:
        Input and output: any.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import torch
        >>> import dropseed.torch as dst
        >>> layer = dst.Dropout(0.5).eval()
        >>> layer(torch.ones(3))
        tensor([1., 1., 1.])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, return the input in evaluation."""
        return functional.dropout(
            input, self.p, self.training, self.inplace, key=self.key, scaling=self.scaling
        )


class Dropout1d(_Layer, nn.Dropout1d):
    """Drop whole channels of (N, C, L) or (C, L) in training; see `functional.dropout1d`.

    Args:
        p: the fraction dropped, in [0, 1].
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".

    Shape:
        Input and output: (N, C, L) or (C, L).

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.Dropout1d(0.2)
        Dropout1d(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.dropout1d(
            input, self.p, self.training, self.inplace, key=self.key, scaling=self.scaling
        )


class Dropout2d(_Layer, nn.Dropout2d):
    """Drop whole channels of (N, C, H, W) in training; see `functional.dropout2d`.

    Args:
        p: the fraction dropped, in [0, 1].
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".

    Shape:
        Input and output: (N, C, H, W).

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.Dropout2d(0.2, scaling="original")
        Dropout2d(p=0.2, inplace=False, scaling='original')
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.dropout2d(
            input, self.p, self.training, self.inplace, key=self.key, scaling=self.scaling
        )


class Dropout3d(_Layer, nn.Dropout3d):
    """Drop whole channels of (N, C, D, H, W) or (C, D, H, W); see `functional.dropout3d`.

    Args:
        p: the fraction dropped, in [0, 1].
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".

    Shape:
        Input and output: (N, C, D, H, W) or (C, D, H, W).

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.Dropout3d(0.2)
        Dropout3d(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.dropout3d(
            input, self.p, self.training, self.inplace, key=self.key, scaling=self.scaling
        )
