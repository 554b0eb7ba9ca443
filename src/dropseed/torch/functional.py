"""Dropout as functions, with the argument names and order of `torch.nn.functional`."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Factors, Key, Rate
from dropseed.mask.rate import ALL
from dropseed.torch import autograd
from dropseed.torch.keyed import key_tensor


def dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
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

    Returns:
        Tensor of the input's shape, type and strides. A dropped element is +0, also where the
        input is NaN or infinite.

    Raises:
        TypeError: `input` is no floating-point tensor, `p` no number, or `key` no key.
        ValueError: `p` is outside [0, 1], or `scaling` unknown.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.functional.dropout(torch.ones(8), 0.5, key=Key(0))
        tensor([2., 2., 0., 0., 2., 2., 0., 2.])
    """
    _check_input(input)
    return _dropout(input, p, training, inplace, key, scaling)


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
    _check_input(input)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"`input` of dropout1d must be (N, C, L) or (C, L); got {input.dim()} dimensions."
        )
    return _spatial(input, p, training, inplace, key, scaling, batched=input.dim() == 3)


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
    _check_input(input)
    if input.dim() != 4:
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
    _check_input(input)
    if input.dim() not in (4, 5):
        warnings.warn(
            "`input` of dropout3d should be (N, C, D, H, W) or (C, D, H, W); "
            f"got {input.dim()} dimensions: that is deprecated.",
            stacklevel=2,
        )
    return _spatial(input, p, training, inplace, key, scaling, batched=input.dim() == 5)


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
    if input.dim() < 1 + batched:
        raise RuntimeError(f"`input` must have a channel dimension; got {input.dim()} dimensions.")
    shared = tuple(range(1 + batched, input.dim()))
    return _dropout(input, p, training, inplace, key, scaling, shared)


def _dropout(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    scaling: str,
    shared: tuple[int, ...] = (),
) -> Tensor:
    """The one way from the functions to the kernels: check, draw a seed if none came, go."""
    if isinstance(p, Tensor):
        return _with_tensor_rate(input, p, training, inplace, key, scaling, shared)
    rate, factors = _strength(p, scaling)
    if not training:
        return _multiply(input, factors.inference, inplace)
    if rate.value == 0:
        return input
    key = _zero_key(input) if rate.value == 1 and key is None else _key(key, input)
    return autograd.dropout(input, key, rate.threshold, factors.training, shared, inplace)


def _with_tensor_rate(
    input: Tensor,
    p: Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    scaling: str,
    shared: tuple[int, ...],
) -> Tensor:
    """A rate that is a tensor is never read back, so that nothing compiles anew or synchronises."""
    if p.dim() != 0 or not p.is_floating_point():
        raise InvalidTypeError(f"`p` must be a number or a 0-d floating-point tensor; got {p!r}.")
    if p.requires_grad or _is_dual(p):
        raise InvalidValueError("`p` must not require grad: dropout has no gradient to its rate.")
    Rate(0.0).factors(scaling)  # refuses an unknown scaling
    # Outside [0, 1] the threshold is -1, which a kernel that can read it refuses, and the factors
    # are NaN, which shows where none can.
    valid = (p >= 0) & (p <= 1)
    threshold = torch.where(valid, (p.double() * ALL).round(), -1).to(torch.int64)
    one = valid.double() / valid.double()
    kept = one - threshold.double() / ALL
    if not training:
        return _multiply(input, kept, inplace) if scaling == "original" else input
    scale = torch.where(kept == 0, 0.0, one / kept) if scaling == "inverted" else one
    return autograd.dropout(input, _key(key, input), threshold, scale, shared, inplace)


def _is_dual(p: Tensor) -> bool:
    return forward_ad.unpack_dual(p).tangent is not None  # type: ignore[no-untyped-call]


def _check_input(input: Any) -> None:
    if not isinstance(input, Tensor):
        raise InvalidTypeError(f"`input` must be a torch.Tensor; got {type(input).__name__}.")
    if not (input.is_floating_point() or input.is_complex()):
        raise InvalidTypeError(
            f"`input` must be a floating-point tensor; got {input.dtype}. Call .float() first."
        )


def checked_rate(p: Any) -> Rate:
    """The rate of a number, with errors that call it by this front end's name."""
    try:
        return Rate(p)
    except (InvalidTypeError, InvalidValueError) as error:
        raise type(error)(str(error).replace("`rate`", "`p`")) from None


def _strength(p: Any, scaling: str) -> tuple[Rate, Factors]:
    cached = type(p) is float and not torch.compiler.is_compiling()
    return (_cached_strength if cached else _checked_strength)(p, scaling)


def _checked_strength(p: Any, scaling: str) -> tuple[Rate, Factors]:
    rate = checked_rate(p)
    return rate, rate.factors(scaling)


_cached_strength = lru_cache(maxsize=1024)(_checked_strength)


def _multiply(input: Tensor, factor: float | Tensor, inplace: bool) -> Tensor:
    if not isinstance(factor, Tensor) and factor == 1:
        return input
    output = eager.scaled(input, factor)
    return input.copy_(output) if inplace else output


def _key(key: Key | Tensor | None, input: Tensor) -> Tensor:
    """The key's tensor on the input's device; without a key, one seed from torch's generator."""
    if key is None:
        return torch.randint(-(2**63), 2**63 - 1, (), device=input.device)
    if isinstance(key, Key):
        return key_tensor(key, input.device)
    if not isinstance(key, Tensor):
        raise InvalidTypeError(f"`key` must be a dropseed.Key or its tensor form; got {key!r}.")
    if key.dtype != torch.int64 or key.shape != (2,):
        raise InvalidValueError(
            f"`key` must be an int64 tensor of shape (2,), as key_tensor makes it; "
            f"got {key.dtype} of shape {tuple(key.shape)}."
        )
    return key.to(input.device)


def _zero_key(input: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=input.device)
