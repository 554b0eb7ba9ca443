"""Dropout as functions, with the argument names and order of `torch.nn.functional`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dropseed.errors import InvalidValueError
from dropseed.mask import Key
from dropseed.torch import noise
from dropseed.torch.concrete import concrete_dropout
from dropseed.torch.cutout import cutout
from dropseed.torch.drop_block import drop_block1d, drop_block2d, drop_block3d
from dropseed.torch.drop_connect import drop_connect_conv, drop_connect_linear
from dropseed.torch.embedding import embedding_dropout
from dropseed.torch.multi_sample import multi_sample_dropout
from dropseed.torch.paired import dropout_pair, r_drop_loss
from dropseed.torch.paths import drop_path
from dropseed.torch.recurrent import recurrent_dropout, zoneout
from dropseed.torch.tokens import token_dropout

__all__ = [
    "alpha_dropout",
    "concrete_dropout",
    "cutout",
    "drop_block1d",
    "drop_block2d",
    "drop_block3d",
    "drop_connect_conv",
    "drop_connect_linear",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_pair",
    "embedding_dropout",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "locked_dropout",
    "multi_sample_dropout",
    "r_drop_loss",
    "recurrent_dropout",
    "spatial_dropout1d",
    "spatial_dropout2d",
    "spatial_dropout3d",
    "token_dropout",
    "zoneout",
]


@noise.overridable
def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    noise_shape: Sequence[int | None] | None = None,
) -> Tensor:
    """Zero a random fraction of the elements and scale the survivors; in inference do nothing.

    Hinton et al. 2012, "Improving neural networks by preventing co-adaptation of feature
    detectors"; Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting", section 4.

    Args:
        input: floating-point tensor of any shape and strides.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor, with which a rate that
            changes compiles once.
        training: whether to drop. Without it the input itself is returned.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form (`key_tensor`): the call is then a pure function
            of it. By default one seed is drawn from torch's generator.
        scaling: "inverted", "original" (survivors unscaled in training, everything times 1 - p in
            inference) or "none".
        noise_shape: the shape of the draws, which are broadcast to the input: a size of 1 where
            the elements along an axis share a draw, None or the input's size elsewhere, as in
            Keras. By default every element has a draw of its own.

    Returns:
        Tensor of the input's shape, type and strides. A dropped element is +0, also where the
        input is NaN or infinite.

    Raises:
        TypeError: `input` is no floating-point tensor, `p` no number, or `key` no key.
        ValueError: `p` is outside [0, 1], `scaling` unknown, or `noise_shape` does not broadcast
            to the input.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.dropout(torch.ones(8), 0.5, key=Key(0))
        tensor([2., 2., 0., 0., 2., 2., 0., 2.])
    """
    noise.check_input(input)
    shared = () if noise_shape is None else _shared_axes(noise_shape, input.shape)
    return noise.drop(input, p, training, inplace, key, scaling, shared)


@noise.overridable
def dropout1d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
) -> Tensor:
    """Drop whole channels of a sequence: `dropout` with one draw a channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        input: (N, C, L) or (C, L).
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.

    Returns:
        As `dropout` does.

    Raises:
        RuntimeError: the input has another rank.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.dropout1d(torch.ones(1, 3, 2), 0.5, key=Key(0))
        tensor([[[2., 2.],
                 [2., 2.],
                 [0., 0.]]])
    """
    noise.check_input(input)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"`input` of dropout1d must be (N, C, L) or (C, L); got {input.dim()} dimensions."
        )
    return _spatial(input, p, training, inplace, key, scaling, batched=input.dim() == 3)


@noise.overridable
def dropout2d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
) -> Tensor:
    """Drop whole channels of an image: `dropout` with one draw a channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        input: (N, C, H, W). As in torch, another rank is a warning, and three dimensions are taken
            for (N, C, L).
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.

    Returns:
        As `dropout` does.

    Raises:
        RuntimeError: the input has no channel dimension.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.dropout2d(torch.ones(1, 3, 4, 4), 0.5, key=Key(0)).sum((2, 3))
        tensor([[32., 32.,  0.]])
    """
    noise.check_input(input)
    if input.dim() != 4 and not torch.compiler.is_compiling():
        meant = (
            "it is taken for (N, C, L), as by torch; for that, dropout1d says what is meant"
            if input.dim() == 3
            else "that is deprecated"
        )
        warnings.warn(
            f"`input` of dropout2d should be (N, C, H, W); got {input.dim()} dimensions: {meant}.",
            stacklevel=2,
        )
    return _spatial(input, p, training, inplace, key, scaling, batched=True)


@noise.overridable
def dropout3d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
) -> Tensor:
    """Drop whole channels of a volume: `dropout` with one draw a channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W). As in torch, another rank is a warning, and the
            input is taken for one without a batch.
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.

    Returns:
        As `dropout` does.

    Raises:
        RuntimeError: the input has no channel dimension.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.dropout3d(torch.ones(1, 3, 2, 2, 2), 0.5, key=Key(0)).sum((2, 3, 4))
        tensor([[16., 16.,  0.]])
    """
    noise.check_input(input)
    if input.dim() not in (4, 5) and not torch.compiler.is_compiling():
        warnings.warn(
            "`input` of dropout3d should be (N, C, D, H, W) or (C, D, H, W); "
            f"got {input.dim()} dimensions: that is deprecated.",
            stacklevel=2,
        )
    return _spatial(input, p, training, inplace, key, scaling, batched=input.dim() == 5)


@noise.overridable
def spatial_dropout1d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    channels_last: bool = False,
) -> Tensor:
    """Drop whole channels of a batch of sequences, whose channels may come last.

    `dropout1d` is the same with torch's looser rules on the input's rank. Tompson et al. 2015,
    "Efficient object localization using convolutional networks", section 3.2.

    Args:
        input: (N, C, L), or (N, L, C) with `channels_last`. Both have the same draws,
            of shape (N, C).
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.
        channels_last: whether the last axis holds the channels.

    Returns:
        As `dropout` does.

    Raises:
        ValueError: the input has another rank.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> x = torch.ones(1, 2, 3)
        >>> dst.functional.spatial_dropout1d(x, 0.5, key=Key(0), channels_last=True)[0, 0]
        tensor([2., 2., 0.])
    """
    return _spatial_of_rank(3, "L", input, p, training, inplace, key, scaling, channels_last)


@noise.overridable
def spatial_dropout2d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    channels_last: bool = False,
) -> Tensor:
    """Drop whole channels of a batch of images, whose channels may come last.

    `dropout2d` is the same with torch's looser rules on the input's rank. Tompson et al. 2015,
    "Efficient object localization using convolutional networks", section 3.2.

    Args:
        input: (N, C, H, W), or (N, H, W, C) with `channels_last`. Both have the same draws,
            of shape (N, C).
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.
        channels_last: whether the last axis holds the channels.

    Returns:
        As `dropout` does.

    Raises:
        ValueError: the input has another rank.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> x = torch.ones(1, 2, 2, 3)
        >>> dst.functional.spatial_dropout2d(x, 0.5, key=Key(0), channels_last=True)[0, 0, 0]
        tensor([2., 2., 0.])
    """
    return _spatial_of_rank(4, "H, W", input, p, training, inplace, key, scaling, channels_last)


@noise.overridable
def spatial_dropout3d(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    channels_last: bool = False,
) -> Tensor:
    """Drop whole channels of a batch of volumes, whose channels may come last.

    `dropout3d` is the same with torch's looser rules on the input's rank. Tompson et al. 2015,
    "Efficient object localization using convolutional networks", section 3.2.

    Args:
        input: (N, C, D, H, W), or (N, D, H, W, C) with `channels_last`. Both have the same draws,
            of shape (N, C).
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.
        channels_last: whether the last axis holds the channels.

    Returns:
        As `dropout` does.

    Raises:
        ValueError: the input has another rank.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> x = torch.ones(1, 2, 2, 2, 3)
        >>> dst.functional.spatial_dropout3d(x, 0.5, key=Key(0), channels_last=True)[0, 0, 0, 0]
        tensor([2., 2., 0.])
    """
    return _spatial_of_rank(5, "D, H, W", input, p, training, inplace, key, scaling, channels_last)


@noise.overridable
def locked_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    batch_first: bool = True,
) -> Tensor:
    """Drop features of a sequence, the same ones at all time steps ("variational" dropout).

    Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks", section 4; named as in Merity et al. 2017.

    Args:
        input: (N, T, D), or (T, N, D) without `batch_first`. Both have the same draws, of shape
            (N, D).
        p: the fraction of the features dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.
        batch_first: whether the batch comes before the time steps.

    Returns:
        As `dropout` does.

    Raises:
        ValueError: the input has another rank.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.locked_dropout(torch.ones(1, 2, 3), 0.5, key=Key(0))
        tensor([[[2., 2., 0.],
                 [2., 2., 0.]]])
    """
    noise.check_input(input)
    if input.dim() != 3:
        layout = "(N, T, D)" if batch_first else "(T, N, D)"
        raise InvalidValueError(f"`input` must be {layout}; got shape {tuple(input.shape)}.")
    shared = (1,) if batch_first else (0,)
    return noise.drop(input, p, training, inplace, key, scaling, shared)


@noise.overridable
def alpha_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
) -> Tensor:
    """Drop elements to SELU's saturation, then restore mean and variance by an affine map.

    For self-normalising networks: an input of mean 0 and variance 1 keeps both. Klambauer et al.
    2017, "Self-normalizing neural networks", section "New dropout technique". Unlike torch's
    function, this one drops unless told otherwise.

    Args:
        input: floating-point tensor of any shape and strides.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.

    Returns:
        Tensor of the input's shape, type and strides: ``a * x + b`` where an element is kept, the
        constant ``-a * (1 - p) * 1.758`` where it is dropped; zeros at p = 1.

    Raises:
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.alpha_dropout(torch.zeros(4), 0.5, key=Key(0))
        tensor([ 0.7792,  0.7792, -0.7792, -0.7792])
    """
    noise.check_input(input)
    return noise.alpha(input, p, training, inplace, key)


@noise.overridable
def feature_alpha_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
) -> Tensor:
    """`alpha_dropout` of whole channels.

    Args:
        input: (N, C, *).
        p: the fraction of the channels dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.

    Returns:
        As `alpha_dropout` does.

    Raises:
        ValueError: the input has no channel dimension.
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.feature_alpha_dropout(torch.zeros(1, 3, 9), 0.5, key=Key(0)).mean(2)
        tensor([[ 0.7792,  0.7792, -0.7792]])
    """
    noise.check_input(input)
    if input.dim() < 2:
        raise InvalidValueError(f"`input` must be (N, C, *); got shape {tuple(input.shape)}.")
    return noise.alpha(input, p, training, inplace, key, tuple(range(2, input.dim())))


@noise.overridable
def gaussian_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
) -> Tensor:
    """Multiply each element by a normal draw of mean 1 and variance p / (1 - p).

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    section 10: the mean and the variance of inverted dropout.

    Args:
        input: floating-point tensor of any shape and strides.
        p: the rate of the dropout that it stands for, in [0, 1]: a number, or a 0-d tensor.
        training: whether to multiply.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.

    Returns:
        Tensor of the input's shape, type and strides; zeros at p = 1, where no variance is left
        to choose.

    Raises:
        TypeError, ValueError: as `dropout` does.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.gaussian_dropout(torch.ones(2), 0.5, key=Key(0))
        tensor([1.5981, 1.4363])
    """
    noise.check_input(input)
    return noise.gaussian(input, p, training, inplace, key)


def _spatial(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    scaling: str,
    *,
    batched: bool,
) -> Tensor:
    drops = training and (isinstance(p, Tensor) or p != 0)
    if drops and input.dim() < 1 + batched:
        raise RuntimeError(f"`input` must have a channel dimension; got {input.dim()} dimensions.")
    shared = tuple(range(1 + batched, input.dim()))
    return noise.drop(input, p, training, inplace, key, scaling, shared)


def _spatial_of_rank(
    rank: int,
    axes: str,
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    scaling: str,
    channels_last: bool,
) -> Tensor:
    noise.check_input(input)
    if input.dim() != rank:
        layout = f"(N, {axes}, C)" if channels_last else f"(N, C, {axes})"
        raise InvalidValueError(f"`input` must be {layout}; got shape {tuple(input.shape)}.")
    shared = tuple(range(1, rank - 1) if channels_last else range(2, rank))
    return noise.drop(input, p, training, inplace, key, scaling, shared)


def _shared_axes(noise_shape: Sequence[int | None], shape: Sequence[int]) -> tuple[int, ...]:
    """The axes along which a noise shape has size 1; one with fewer axes is broadcast."""
    sizes = (*(1,) * (len(shape) - len(noise_shape)), *noise_shape)
    if len(sizes) != len(shape) or any(
        size not in (None, 1, whole) for size, whole in zip(sizes, shape, strict=True)
    ):
        raise InvalidValueError(
            f"`noise_shape` must broadcast to the input's shape {tuple(shape)}: 1, None or the "
            f"input's size in each dimension; got {noise_shape!r}."
        )
    return tuple(axis for axis, size in enumerate(sizes) if size == 1)
