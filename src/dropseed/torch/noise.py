"""The one way from the functions to the laws: check, draw a seed if none came, go."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Factors, Key, Rate
from dropseed.mask.key import integer
from dropseed.mask.rate import ALL
from dropseed.mask.shard import INDEX_END
from dropseed.torch import autograd, launch
from dropseed.torch.keyed import key_tensor
from dropseed.torch.laws import Bernoulli, Gaussian, Law

_P = ParamSpec("_P")

SATURATION = 1.7580993408473766
"""SELU's scale times its alpha: it saturates at minus this (Klambauer et al. 2017)."""


def overridable(function: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Hand a call on to an input that is no tensor but stands for one, as FX's proxies do.

    Args:
        function: a function whose first argument is `input`.

    Returns:
        The function, which an input's ``__torch_function__`` may now answer.

    Example:
        >>> class Stand:
        ...     @classmethod
        ...     def __torch_function__(cls, function, types, args=(), kwargs=None):
        ...         return function.__name__
        >>> overridable(gaussian)(Stand())
        'gaussian'
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        first: Any = args[0] if args else kwargs.get("input")
        if not isinstance(first, Tensor) and has_torch_function((first,)):
            output: Tensor = handle_torch_function(call, (first,), *args, **kwargs)
            return output
        return function(*args, **kwargs)

    return call


def drop(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    scaling: str,
    shared: tuple[int, ...] = (),
) -> Tensor:
    """Drop values: Bernoulli noise of any noise shape and scaling.

    Args:
        input: floating-point or complex tensor.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; None draws a seed.
        scaling: "inverted", "original" or "none".
        shared: the axes along which elements share a draw.

    Returns:
        Tensor of the input's shape, type and strides; the input itself where nothing is dropped.

    Raises:
        TypeError, ValueError: `p`, `key` or `scaling` is none; a sparse or nested input.

    Example:
        >>> drop(torch.ones(2, 3), 0.5, True, False, Key(0), "none", (1,))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """
    if isinstance(p, Tensor):
        return _drop_with_tensor_rate(input, p, training, inplace, key, scaling, shared)
    rate, factors = _strength(p, scaling)
    if not training:
        return _multiply(input, factors.inference, inplace)
    if rate.value == 0:
        return input
    key = _zero_key(input) if rate.value == 1 and key is None else key_for(key, input)
    return _noise(input, key, Bernoulli(rate.threshold, (factors.training,)), shared, inplace)


def _drop_with_tensor_rate(
    input: Tensor,
    p: Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    scaling: str,
    shared: tuple[int, ...],
) -> Tensor:
    check_scaling(scaling)
    threshold, rate = _tensor_rate(p)
    kept = 1 - rate
    if not training:
        return _multiply(input, kept, inplace) if scaling == "original" else input
    law = Bernoulli(threshold, (_tensor_scale(kept, scaling),))
    return _noise(input, key_for(key, input), law, shared, inplace)


def _tensor_scale(kept: Tensor, scaling: str) -> Tensor:
    if scaling == "inverted":
        return torch.where(kept == 0, 0.0, 1 / kept)
    return 1 + 0 * kept


def numbers(p: float | Tensor, scaling: str) -> tuple[Tensor, Tensor]:
    """The threshold and the survivors' factor of a checked rate, as 0-d tensors."""
    if isinstance(p, Tensor):
        threshold, in_force = tensor_threshold(p)
        return threshold, _tensor_scale(1 - in_force, scaling)
    rate, factors = _strength(p, scaling)
    return torch.tensor(rate.threshold), torch.tensor(factors.training, dtype=torch.float64)


def alpha(
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    shared: tuple[int, ...] = (),
) -> Tensor:
    """Drop values to SELU's saturation and restore mean and variance; arguments as in `drop`.

    Klambauer et al. 2017, section "New dropout technique".

    Example:
        >>> alpha(torch.zeros(4), 0.5, True, False, Key(0))
        tensor([ 0.7792,  0.7792, -0.7792, -0.7792])
    """
    return _with_law(_alpha_law, input, p, training, inplace, key, shared)


def gaussian(
    input: Tensor, p: float | Tensor, training: bool, inplace: bool, key: Key | Tensor | None
) -> Tensor:
    """Multiply by normal draws of the mean and the variance of dropout; arguments as in `drop`.

    Srivastava et al. 2014, section 10.

    Example:
        >>> gaussian(torch.ones(2), 0.5, True, False, Key(0))
        tensor([1.5981, 1.4363])
    """
    return _with_law(_gaussian_law, input, p, training, inplace, key, ())


def _with_law(
    law_of: Callable[[Any, Any], Law],
    input: Tensor,
    p: float | Tensor,
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    shared: tuple[int, ...],
) -> Tensor:
    """Noise of a law that needs no scaling in inference."""
    if isinstance(p, Tensor):
        law = law_of(*_tensor_rate(p))
        return _noise(input, key_for(key, input), law, shared, inplace) if training else input
    rate = checked_rate(p)
    if not training or rate.value == 0:
        return input
    if rate.threshold == ALL:
        key = _zero_key(input) if key is None else key_for(key, input)
        return _noise(input, key, Bernoulli(ALL, (0.0,)), shared, inplace)
    law = law_of(rate.threshold, rate.threshold / ALL)
    return _noise(input, key_for(key, input), law, shared, inplace)


def _alpha_law(threshold: Any, rate: Any) -> Law:
    scale = ((SATURATION**2 * rate + 1) * (1 - rate)) ** -0.5
    shift, fill = SATURATION * scale * rate, -SATURATION * scale * (1 - rate)
    if isinstance(rate, Tensor):  # where everything is dropped, what is left is 0
        scale, shift, fill = (torch.where(rate == 1, 0.0, n) for n in (scale, shift, fill))
    return Bernoulli(threshold, (scale, shift, fill))


def _gaussian_law(threshold: Any, rate: Any) -> Law:
    return Gaussian((rate / (1 - rate)) ** 0.5)


def _noise(input: Tensor, key: Tensor, law: Law, shared: tuple[int, ...], inplace: bool) -> Tensor:
    check_dense(input)
    return autograd.noise(input, key, law, shared, inplace)


def _tensor_rate(p: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold and the rate in force of a rate that is a tensor."""
    _check_tensor_rate(p)
    return tensor_threshold(p)


def tensor_threshold(p: Tensor) -> tuple[Tensor, Tensor]:
    """The threshold and the rate in force of a checked rate that is a tensor.

    It is never read back, so that nothing compiles anew or synchronises. Outside [0, 1] the
    threshold is -1, which a kernel that can read it refuses, and the rate NaN, which shows where
    none can.
    """
    valid = (p >= 0) & (p <= 1)
    threshold = torch.where(valid, (p.double() * ALL).round(), -1).to(torch.int64)
    return threshold, torch.where(valid, threshold.double() / ALL, torch.nan)


def _check_tensor_rate(p: Tensor, name: str = "p") -> None:
    if p.dim() != 0 or not p.is_floating_point():
        raise InvalidTypeError(
            f"`{name}` must be a number or a 0-d floating-point tensor; got {p!r}."
        )
    if p.requires_grad or _is_dual(p):
        raise InvalidValueError(
            f"`{name}` must not require grad: dropout has no gradient to its rate."
        )


def _is_dual(p: Tensor) -> bool:
    return forward_ad.unpack_dual(p).tangent is not None  # type: ignore[no-untyped-call]


def check_input(input: Any, name: str = "input") -> None:
    """Refuse what no dropout can take: anything but a floating-point or complex tensor."""
    if not isinstance(input, Tensor):
        raise InvalidTypeError(f"`{name}` must be a torch.Tensor; got {type(input).__name__}.")
    if not (input.is_floating_point() or input.is_complex()):
        raise InvalidTypeError(
            f"`{name}` must be a floating-point tensor; got {input.dtype}. Call .float() first."
        )


def check_dense(input: Tensor) -> None:
    """Refuse sparse and nested tensors."""
    if input.is_nested or input.layout is not torch.strided:
        raise InvalidTypeError(
            f"`input` must be a dense tensor; got a nested one or layout {input.layout}. "
            "A mask is defined by an element's place in a dense shape."
        )


def checked_shard(shard: Any, samples: int, draws: int) -> tuple[int, int]:
    """Which samples of a larger batch an input has: the first one's number, and the distance.

    Each sample has `draws` of its own, the last of which must have an index below 2**63.
    """
    if not isinstance(shard, tuple) or len(shard) != 2:
        raise InvalidValueError(f"`shard` must be (start, stride); got {shard!r}.")
    start = integer(shard[0], "shard[0]", 0, INDEX_END)
    stride = integer(shard[1], "shard[1]", 1, INDEX_END)
    plain = start == 0 and stride == 1  # which no tensor that fits into memory can lead too far
    if not plain and (start + stride * max(samples - 1, 0) + 1) * draws > INDEX_END:
        raise InvalidValueError(
            f"`shard` {shard} leads to a draw beyond 2**63 - 1, the last one: {samples} samples "
            f"have {draws} draws each."
        )
    return start, stride


def checked_rate(p: Any, name: str = "p") -> Rate:
    """The rate of a number, with errors that call it by this front end's name."""
    try:
        return Rate(p)
    except (InvalidTypeError, InvalidValueError) as error:
        raise type(error)(str(error).replace("`rate`", f"`{name}`")) from None


def check_rate(p: Any, name: str = "p") -> None:
    """Refuse a rate that is neither a number in [0, 1] nor a 0-d floating-point tensor."""
    if isinstance(p, Tensor):
        _check_tensor_rate(p, name)
    else:
        checked_rate(p, name)


def draws(p: float | Tensor) -> bool:
    """Whether masks of a checked rate are random. A tensor is not read back, and counts as such."""
    return isinstance(p, Tensor) or 0 < p < 1


def check_scaling(scaling: str) -> None:
    """Refuse an unknown scaling."""
    Rate(0.0).factors(scaling)


def scaling_repr(scaling: str) -> str:
    """A layer's scaling as it is printed: where it isn't the usual one."""
    return "" if scaling == "inverted" else f", scaling={scaling!r}"


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


def key_for(key: Key | Tensor | None, input: Tensor) -> Tensor:
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


def two_words(key: Tensor) -> Tensor:
    """A key or a seed as the two words of a key."""
    return key if key.dim() == 1 else torch.stack((key, torch.zeros_like(key)))


def folded(key: Tensor, n: int) -> Tensor:
    """The n-th key derived from a key's tensor form or a seed."""
    plain = key.is_cpu and autograd.is_eager(key)
    return (
        launch.fold(key, n) if plain else eager.fold(key, n)
    )  # the latter is 200 small operations


def _zero_key(input: Tensor) -> Tensor:
    return torch.zeros((), dtype=torch.int64, device=input.device)
