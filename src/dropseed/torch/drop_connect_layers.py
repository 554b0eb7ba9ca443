"""DropConnect as modules that stand in for torch's linear layer and convolutions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as theirs

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.key import integer
from dropseed.torch import noise
from dropseed.torch.drop_connect import (
    check_mode,
    drop_connect_conv,
    drop_connect_linear,
)
from dropseed.torch.drop_connect_moments import moments
from dropseed.torch.keyed import KeyedLayer

_USUAL: dict[str, Any] = {
    "mode": "sample",
    "drop_bias": False,
    "scaling": "inverted",
    "inference": "mean",
    "samples": 100,
}


class _DropConnect(KeyedLayer):
    """What the layers share: the arguments beside those of torch's layer, and inference."""

    weight: Tensor
    bias: Any
    _like: type[nn.Module]

    def __init__(
        self,
        *args: Any,
        p: float | Tensor = 0.5,
        mode: str = "sample",
        drop_bias: bool = False,
        scaling: str = "inverted",
        inference: str = "mean",
        activation: Callable[[Tensor], Tensor] | None = None,
        samples: int = 100,
        **kwargs: Any,
    ) -> None:
        given = inspect.signature(self._like).bind(*args, **kwargs).arguments
        for name, value in given.items():
            if isinstance(value, float) or (name == "bias" and not isinstance(value, bool)):
                raise InvalidTypeError(
                    f"`{name}` must be as in torch.nn.{self._like.__name__}; got {value!r}. "
                    "The rate is given by name: p=."
                )
        noise.check_rate(p)
        check_mode(mode)
        noise.check_scaling(scaling)
        if inference not in ("mean", "moments"):
            raise InvalidValueError(f'`inference` must be "mean" or "moments"; got {inference!r}.')
        if inference == "moments" and activation is None:
            raise InvalidValueError(
                '`inference` "moments" needs the `activation` that it averages, for instance '
                'torch.relu; without one the average is what "mean" gives.'
            )
        samples = integer(samples, "samples", 1, 2**31)
        super().__init__(*args, **kwargs)
        self.p = p
        self.mode = mode
        self.drop_bias = drop_bias
        self.scaling = scaling
        self.inference = inference
        self.activation = activation
        self.samples = samples

    def _apply_to(
        self, input: Tensor, function: Callable[..., Tensor], plain: Callable[..., Tensor]
    ) -> Tensor:
        """Drop in training; in inference use the mean weights, or average over samples."""
        if self.inference == "moments" and not self.training and self.activation is not None:
            return moments(
                plain,
                input,
                self.weight,
                self.bias,
                self.p,
                self.key,
                self.activation,
                self.samples,
                self.drop_bias,
                self.scaling,
            )
        output = function(
            input,
            self.weight,
            self.bias,
            p=self.p,
            training=self.training,
            key=self.key,
            mode=self.mode,
            drop_bias=self.drop_bias,
            scaling=self.scaling,
        )
        return output if self.activation is None else self.activation(output)

    def extra_repr(self) -> str:
        """The arguments of torch's layer, the rate, and the others where they aren't usual."""
        given = [(name, getattr(self, name)) for name in _USUAL]
        other = "".join(f", {name}={value!r}" for name, value in given if value != _USUAL[name])
        return f"{super().extra_repr()}, p={self.p}{other}"


class DropConnectLinear(_DropConnect, nn.Linear):
    """A linear layer that drops weights in training; see `functional.drop_connect_linear`.

    Args:
        in_features: as in `torch.nn.Linear`, whose other arguments it takes too.
        out_features: likewise.
        bias: likewise.
        device: likewise.
        dtype: likewise.
        p: the fraction of the weights dropped, in [0, 1]: a number, or a 0-d tensor. Give it by
            name.
        mode: "sample" (a mask for each sample) or "batch" (one for all).
        drop_bias: whether the bias drops out too.
        scaling: "inverted", "original" (as in the paper) or "none".
        inference: "mean" (the mean weights) or "moments" (the activation's mean over Gaussian
            samples that have the moments of the dropped sum, as in the paper).
        activation: applied to the output, element by element; "moments" averages it.
        samples: how many samples "moments" averages. Each inference draws them by the layer's key,
            or by a seed from torch's generator.

    Shape:
        Input: (N, *, I) or (I,); output: (N, *, O) or (O,).

    Raises:
        TypeError, ValueError: an argument is out of range, or "moments" comes without an
            activation.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.DropConnectLinear(20, 10, p=0.3)
        DropConnectLinear(in_features=20, out_features=10, bias=True, p=0.3)
    """

    _like = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        """Drop weights in training; in evaluation use what `inference` says."""
        return self._apply_to(input, drop_connect_linear, theirs.linear)


class _DropConnectConv(_DropConnect):
    """What the convolutions share: padding by a rule or by a mode comes before the product."""

    padding: Any
    padding_mode: Any
    stride: Any
    dilation: Any
    groups: int
    _reversed_padding_repeated_twice: Any
    _plain: Any

    def forward(self, input: Tensor) -> Tensor:
        """Drop weights in training; in evaluation use what `inference` says."""
        x, padding = input, self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            how = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = theirs.pad(x, self._reversed_padding_repeated_twice, how), 0
        geometry: dict[str, Any] = {
            "stride": self.stride,
            "padding": padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }
        return self._apply_to(
            x, partial(drop_connect_conv, **geometry), partial(self._plain, **geometry)
        )


class DropConnectConv1d(_DropConnectConv, nn.Conv1d):
    """A convolution of sequences that drops weights in training; see `DropConnectLinear`.

    Args:
        in_channels: as in `torch.nn.Conv1d`, whose other arguments it takes too.
        out_channels: likewise.
        kernel_size: likewise.
        p: as in `DropConnectLinear`, as are `mode`, `drop_bias`, `scaling`, `inference`,
            `activation` and `samples`; all by name.

    Shape:
        Input: (N, C, L) or (C, L); output: as that of `torch.nn.Conv1d`.

    Raises:
        TypeError, ValueError: as `DropConnectLinear` does.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.DropConnectConv1d(3, 8, 5, p=0.2, mode="batch")
        DropConnectConv1d(3, 8, kernel_size=(5,), stride=(1,), p=0.2, mode='batch')
    """

    _like = nn.Conv1d
    _plain = staticmethod(theirs.conv1d)


class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    """A convolution of images that drops weights in training; see `DropConnectLinear`.

    Args:
        in_channels: as in `torch.nn.Conv2d`, whose other arguments it takes too.
        out_channels: likewise.
        kernel_size: likewise.
        p: as in `DropConnectLinear`, as are `mode`, `drop_bias`, `scaling`, `inference`,
            `activation` and `samples`; all by name.

    Shape:
        Input: (N, C, H, W) or (C, H, W); output: as that of `torch.nn.Conv2d`.

    Raises:
        TypeError, ValueError: as `DropConnectLinear` does.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.DropConnectConv2d(3, 8, 5, padding="same")
        DropConnectConv2d(3, 8, kernel_size=(5, 5), stride=(1, 1), padding=same, p=0.5)
    """

    _like = nn.Conv2d
    _plain = staticmethod(theirs.conv2d)


class DropConnectConv3d(_DropConnectConv, nn.Conv3d):
    """A convolution of volumes that drops weights in training; see `DropConnectLinear`.

    Args:
        in_channels: as in `torch.nn.Conv3d`, whose other arguments it takes too.
        out_channels: likewise.
        kernel_size: likewise.
        p: as in `DropConnectLinear`, as are `mode`, `drop_bias`, `scaling`, `inference`,
            `activation` and `samples`; all by name.

    Shape:
        Input: (N, C, D, H, W) or (C, D, H, W); output: as that of `torch.nn.Conv3d`.

    Raises:
        TypeError, ValueError: as `DropConnectLinear` does.

    Example:
        >>> import dropseed.torch as dst
        >>> dst.DropConnectConv3d(3, 8, 3, p=0.1)
        DropConnectConv3d(3, 8, kernel_size=(3, 3, 3), stride=(1, 1, 1), p=0.1)
    """

    _like = nn.Conv3d
    _plain = staticmethod(theirs.conv3d)
