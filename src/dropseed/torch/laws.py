"""The laws of noise, and how each runs on the kernels: what happens to a value, given its draw.

A law is a value that autograd's routes hand on: numbers, or 0-d tensors where the rate is a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropseed.kernels import eager
from dropseed.mask.rate import ALL
from dropseed.mask.shard import part, whole
from dropseed.torch import launch

_draws = lru_cache(maxsize=4096)(whole)


class Bernoulli(NamedTuple):
    """Drops what draws below the threshold; ``factors`` say what becomes of a value.

    With one factor, the scale, a survivor is multiplied by it and a dropped value is +0. With three
    (scale, shift, fill) a survivor is shifted too, and a dropped value becomes the fill.
    """

    threshold: Tensor | int
    factors: tuple[Tensor | float, ...]

    @property
    def derivative(self) -> Bernoulli:
        """What happens to the gradient: the same, without the constants."""
        return Bernoulli(self.threshold, self.factors[:1])

    @property
    def rate_is_tensor(self) -> bool:
        """Whether the numbers are tensors."""
        return isinstance(self.threshold, Tensor)


class Gaussian(NamedTuple):
    """Multiplies each value by a normal draw of mean 1 and deviation ``sigma``."""

    sigma: Tensor | float

    @property
    def derivative(self) -> Gaussian:
        """What happens to the gradient: the same."""
        return self

    @property
    def rate_is_tensor(self) -> bool:
        """Whether the number is a tensor."""
        return isinstance(self.sigma, Tensor)


Law = Bernoulli | Gaussian


def noise_shape(input: Tensor, shared: tuple[int, ...]) -> list[int]:
    """The shape of the draws that broadcasts to the input."""
    return [1 if axis in shared else size for axis, size in enumerate(input.shape)]


# ---- by the draws themselves -----------------------------------------------------------------


def by_draws(law: Law, input: Tensor, draws: Tensor) -> Tensor:
    """Apply a law by its draws in torch operations, through which autograd can look.

    Args:
        law: what happens to a value.
        input: floating-point or complex tensor.
        draws: a mask, or normal draws, that broadcasts to the input.

    Returns:
        A tensor of the input's shape and type.

    Example:
        >>> by_draws(Gaussian(0.5), torch.ones(2), torch.tensor([0.0, 2.0]))
        tensor([1., 2.])
    """
    if isinstance(law, Gaussian):
        return eager.noisy(input, draws, law.sigma)
    return eager.apply(input, draws, *law.factors)


def eager_draws(law: Law, key: Tensor, shape: Sequence[int]) -> Tensor:
    """The draws of a law by torch operations: a mask, or normal draws.

    Args:
        law: what happens to a value.
        key: int64 tensor, a 0-d seed or ``[seed, site + 2**32 * step]``.
        shape: the noise shape.

    Returns:
        Boolean or float64 tensor of `shape` on the key's device.

    Example:
        >>> eager_draws(Bernoulli(2**31, (2.0,)), torch.tensor(0), (4,))
        tensor([ True,  True, False, False])
    """
    if isinstance(law, Gaussian):
        return eager.gaussian(key, shape)
    return eager.keep(key, law.threshold, shape)


# ---- by the kernel of a device ---------------------------------------------------------------


def compute(law: Law, input: Tensor, key: Tensor, shared: tuple[int, ...], inplace: bool) -> Tensor:
    """Run the kernel of the input's device; in place or into a new tensor of the same strides.

    Args:
        law: what happens to a value.
        input: floating-point or complex tensor.
        key: int64 tensor, a 0-d seed or ``[seed, site + 2**32 * step]``.
        shared: the axes along which elements share a draw; none for Gaussian noise.
        inplace: whether to overwrite the input.

    Returns:
        A tensor of the input's shape, type and strides; the input itself if in place.

    Example:
        >>> compute(Bernoulli(2**31, (2.0,)), torch.ones(4), torch.tensor(0), (), False)
        tensor([2., 2., 0., 0.])
    """
    if not launch.has_kernel(input):
        output = by_draws(law, input, eager_draws(law, key, noise_shape(input, shared)))
        return input.copy_(output) if inplace else torch.empty_like(input).copy_(output)
    kernel, numbers = _launcher(law)
    words, threads = launch.key_words(key.tolist()), torch.get_num_threads()
    lazy = launch.is_lazy(input)
    if lazy or shared or not input.is_contiguous():
        if isinstance(law, Gaussian):  # its kernel knows one order of memory
            output = compute(
                law, torch.empty(input.shape, dtype=input.dtype).copy_(input), key, (), True
            )
            return input.copy_(output) if inplace else torch.empty_like(input).copy_(output)
        return _compute_strided(input, words, numbers, shared, inplace, lazy, threads)
    output = input if inplace else torch.empty_like(input)
    at, source = output.data_ptr(), input.data_ptr()
    like = launch.LIKE[input.dtype]
    kernel(at, source, like, input.numel(), words, *numbers, threads=threads)
    return output


def _launcher(law: Law) -> tuple[Callable[..., None], tuple[Any, ...]]:
    """The CPU kernel of a law for contiguous tensors, and the law's numbers as it takes them."""
    kernel = launch.cpu_kernel()
    if isinstance(law, Gaussian):
        sigma = float(law.sigma)
        if math.isinf(sigma):  # a tensor rate of 1
            return kernel.dropout_flat, (ALL, 0.0)
        return kernel.gaussian_flat, (sigma,)
    factors = law.factors
    scale = float(factors[0]) if len(factors) == 1 else tuple(float(f) for f in factors)
    return kernel.dropout_flat, (launch.number(law.threshold), scale)


def _compute_strided(
    input: Tensor,
    words: tuple[int, int, int, int],
    numbers: tuple[Any, ...],
    shared: tuple[int, ...],
    inplace: bool,
    lazy: bool,
    threads: int,
) -> Tensor:
    # `empty_like` keeps the strides of what is dense in memory; anything else is copied first.
    output = torch.empty_like(input)
    dense = not lazy and output.stride() == input.stride()
    if inplace and dense:
        output = input
    source = input if dense else output.copy_(input)
    y = launch.buffer(output)
    x = y if source is output else launch.buffer(source)
    draws = _draws(input.shape, shared)
    launch.cpu_kernel().dropout(y, x, draws, words, *numbers, threads=threads)
    return input.copy_(output) if inplace and not dense else output


def draw_masks(
    keys: Tensor,
    threshold: Any,
    shape: Sequence[int],
    batched: bool,
    order: Sequence[int] = (0, 1),
) -> Tensor:
    """A mask of `shape`; if batched, one for each key, and each threshold if that is a tensor.

    `order` is the number of the first row of draws and the distance of neighbouring ones.
    """
    batch = keys if batched else keys[None]
    thresholds = (
        threshold if batched and isinstance(threshold, Tensor) else [threshold] * len(batch)
    )
    out = torch.empty((len(batch), *shape), dtype=torch.bool, device=keys.device)
    if keys.device.type != "cpu":
        for mask, key, one in zip(out, batch, thresholds, strict=True):
            mask.copy_(eager.keep(key, one, shape, order))
    else:
        kernel, buffer = launch.cpu_kernel(), out.numpy()
        plain = tuple(order) == (0, 1)
        draws = _draws(tuple(shape)) if plain else part(tuple(shape), *order)
        for i, (key, one) in enumerate(zip(batch.tolist(), thresholds, strict=True)):
            threads = torch.get_num_threads()
            kernel.keep(
                buffer[i, ...], draws, launch.key_words(key), launch.number(one), threads=threads
            )
    return out if batched else out[0]


def draw_normals(keys: Tensor, shape: Sequence[int], batched: bool) -> Tensor:
    """Normal draws of `shape` in float32; if batched, one array for each key."""
    batch = keys if batched else keys[None]
    out = torch.empty((len(batch), math.prod(shape)), dtype=torch.float32, device=keys.device)
    for row, key in zip(out, batch, strict=True):
        if keys.device.type == "cpu":
            launch.cpu_kernel().normals(row.numpy(), launch.key_words(key.tolist()))
        else:
            row.copy_(eager.gaussian(key, row.shape))
    out = out.reshape(len(batch), *shape)
    return out if batched else out[0]
