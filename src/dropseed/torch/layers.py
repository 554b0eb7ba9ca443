"""Dropout as modules that stand in for those of `torch.nn`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dropseed.torch import functional
from dropseed.torch.base import RateLayer, ScaledLayer


class Dropout(ScaledLayer, nn.Dropout):
    """Zero a random fraction of the elements in training; see `functional.dropout`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".
        noise_shape: the shape of the draws, as in `functional.dropout`.

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

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        scaling: str = "inverted",
        noise_shape: Sequence[int | None] | None = None,
    ) -> None:
        super().__init__(p, inplace, scaling=scaling)
        self.noise_shape = noise_shape

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, return the input in evaluation."""
        return functional.dropout(
            input,
            self.p,
            self.training,
            self.inplace,
            key=self.key,
            scaling=self.scaling,
            noise_shape=self.noise_shape,
        )

    def extra_repr(self) -> str:
        """The arguments; the noise shape where it isn't the input's."""
        other = "" if self.noise_shape is None else f", noise_shape={self.noise_shape}"
        return super().extra_repr() + other


class Dropout1d(ScaledLayer, nn.Dropout1d):
    """Drop whole channels of (N, C, L) or (C, L) in training; see `functional.dropout1d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
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


class Dropout2d(ScaledLayer, nn.Dropout2d):
    """Drop whole channels of (N, C, H, W) in training; see `functional.dropout2d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
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


class Dropout3d(ScaledLayer, nn.Dropout3d):
    """Drop whole channels of (N, C, D, H, W) or (C, D, H, W); see `functional.dropout3d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
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


class SpatialDropout1d(ScaledLayer, _DropoutNd):
    """Drop whole channels of (N, C, L) in training; see `functional.spatial_dropout1d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".
        channels_last: whether the input is (N, L, C).

    Shape:
        Input and output: (N, C, L), or (N, L, C) with `channels_last`.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.SpatialDropout1d(0.2, channels_last=True)
        SpatialDropout1d(p=0.2, inplace=False, channels_last=True)
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        scaling: str = "inverted",
        channels_last: bool = False,
    ) -> None:
        super().__init__(p, inplace, scaling=scaling)
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.spatial_dropout1d(
            input,
            self.p,
            self.training,
            self.inplace,
            key=self.key,
            scaling=self.scaling,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        """The arguments; the layout where it isn't torch's."""
        return super().extra_repr() + ", channels_last=True" * self.channels_last


class SpatialDropout2d(ScaledLayer, _DropoutNd):
    """Drop whole channels of (N, C, H, W) in training; see `functional.spatial_dropout2d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".
        channels_last: whether the input is (N, H, W, C).

    Shape:
        Input and output: (N, C, H, W), or (N, H, W, C) with `channels_last`.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.SpatialDropout2d(0.2, channels_last=True)
        SpatialDropout2d(p=0.2, inplace=False, channels_last=True)
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        scaling: str = "inverted",
        channels_last: bool = False,
    ) -> None:
        super().__init__(p, inplace, scaling=scaling)
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.spatial_dropout2d(
            input,
            self.p,
            self.training,
            self.inplace,
            key=self.key,
            scaling=self.scaling,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        """The arguments; the layout where it isn't torch's."""
        return super().extra_repr() + ", channels_last=True" * self.channels_last


class SpatialDropout3d(ScaledLayer, _DropoutNd):
    """Drop whole channels of (N, C, D, H, W) in training; see `functional.spatial_dropout3d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".
        channels_last: whether the input is (N, D, H, W, C).

    Shape:
        Input and output: (N, C, D, H, W), or (N, D, H, W, C) with `channels_last`.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.SpatialDropout3d(0.2, channels_last=True)
        SpatialDropout3d(p=0.2, inplace=False, channels_last=True)
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        scaling: str = "inverted",
        channels_last: bool = False,
    ) -> None:
        super().__init__(p, inplace, scaling=scaling)
        self.channels_last = channels_last

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.spatial_dropout3d(
            input,
            self.p,
            self.training,
            self.inplace,
            key=self.key,
            scaling=self.scaling,
            channels_last=self.channels_last,
        )

    def extra_repr(self) -> str:
        """The arguments; the layout where it isn't torch's."""
        return super().extra_repr() + ", channels_last=True" * self.channels_last


class LockedDropout(ScaledLayer, _DropoutNd):
    """Drop the same features at all time steps in training; see `functional.locked_dropout`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".
        batch_first: whether the input is (N, T, D).

    Shape:
        Input and output: (N, T, D), or (T, N, D) without `batch_first`.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.LockedDropout(0.2, batch_first=False)
        LockedDropout(p=0.2, inplace=False, batch_first=False)
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        scaling: str = "inverted",
        batch_first: bool = True,
    ) -> None:
        super().__init__(p, inplace, scaling=scaling)
        self.batch_first = batch_first

    def forward(self, input: Tensor) -> Tensor:
        """Drop features in training, return the input in evaluation."""
        return functional.locked_dropout(
            input,
            self.p,
            self.training,
            self.inplace,
            key=self.key,
            scaling=self.scaling,
            batch_first=self.batch_first,
        )

    def extra_repr(self) -> str:
        """The arguments."""
        return super().extra_repr() + f", batch_first={self.batch_first}"


class AlphaDropout(RateLayer, nn.AlphaDropout):
    """Drop elements to SELU's saturation in training; see `functional.alpha_dropout`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.

    Shape:
        Input and output: any.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1].

    Example:
        >>> import dropseed.torch as dst
        >>> dst.AlphaDropout(0.2)
        AlphaDropout(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training, return the input in evaluation."""
        return functional.alpha_dropout(input, self.p, self.training, self.inplace, key=self.key)


class FeatureAlphaDropout(RateLayer, nn.FeatureAlphaDropout):
    """Drop channels to SELU's saturation in training; see `functional.feature_alpha_dropout`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.

    Shape:
        Input and output: (N, C, *).

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1].

    Example:
        >>> import dropseed.torch as dst
        >>> dst.FeatureAlphaDropout(0.2)
        FeatureAlphaDropout(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Drop channels in training, return the input in evaluation."""
        return functional.feature_alpha_dropout(
            input, self.p, self.training, self.inplace, key=self.key
        )


class GaussianDropout(RateLayer, _DropoutNd):
    """Multiply by normal draws of mean 1 in training; see `functional.gaussian_dropout`.

    Args:
        p: the rate of the dropout that it stands for, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.

    Shape:
        Input and output: any.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1].

    Example:
        >>> import dropseed.torch as dst
        >>> dst.GaussianDropout(0.2)
        GaussianDropout(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        """Multiply in training, return the input in evaluation."""
        return functional.gaussian_dropout(input, self.p, self.training, self.inplace, key=self.key)
