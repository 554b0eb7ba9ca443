"""The draws of `dropseed.mask` in plain torch operations: any device, the same bits, not fast.

Policy: the key and a tensor threshold are never read back, so nothing synchronises. Unsigned 32-bit
arithmetic is done in int64: a product of two words wraps, but its two halves are still right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def _philox(counter: list[Tensor], k0: Tensor, k1: Tensor) -> list[Tensor]:
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW
        c2, c3 = (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = k0 + 0x9E3779B9 & _LOW, k1 + 0xBB67AE85 & _LOW
    return [c0, c1, c2, c3]


def _call(key: Tensor, c0: Tensor, c1: Tensor) -> list[Tensor]:
    """The four words of a key's Philox calls with these counter words."""
    seed, place = (key, torch.zeros_like(key)) if key.dim() == 0 else key.unbind()
    counter = [c0, c1, place & _LOW, place >> 32 & _LOW]
    return _philox(counter, seed & _LOW, seed >> 32 & _LOW)


def _bytes(key: Tensor, blocks: int, plane: int, first: int = 0) -> Tensor:
    """The bytes of one plane, sixteen for each of `blocks` blocks from `first` on, in order."""
    block = torch.arange(blocks, device=key.device) + first
    words = _call(key, block & _LOW, plane * 2**28 + (block >> 32))
    four = torch.stack(words, -1)  # after ten rounds every word has the shape of the blocks
    shifts = torch.arange(0, 32, 8, device=key.device)
    return (four[..., None] >> shifts & 0xFF).reshape(-1)


def keep(
    key: Tensor, threshold: Tensor | int, shape: Sequence[int], order: Sequence[int] = (0, 1)
) -> Tensor:
    """The mask of a key, True where a value is kept.

    Args:
        key: int64 tensor, a 0-d seed or ``[seed, site + 2**32 * step]``.
        threshold: integer in [0, 2**32], or a 0-d int64 tensor of it.
        shape: the noise shape.
        order: the number of the first row of draws, and the distance of neighbouring ones.

    Returns:
        Boolean tensor of `shape` on the key's device.

    Example:
        >>> keep(torch.tensor(0), 2**31, (8,)).int().tolist()
        [1, 1, 0, 0, 1, 1, 0, 1]
    """
    start, stride = order
    if start == 0 and stride == 1:
        return _integers(key, shape) >= threshold
    row = math.prod(shape[1:])
    rows = max(shape[0] - 1, 0) * stride + 1
    between = _integers(key, (rows * row,), start=start * row).reshape(rows, *shape[1:])
    return between[::stride][: shape[0]] >= threshold


def dilated(dropped: Tensor, block: Sequence[int]) -> Tensor:
    """What blocks cover: each true element becomes a block of them, whose first one it was.

    Args:
        dropped: boolean tensor whose last dimensions are the places of blocks.
        block: the block's edge in each of these dimensions.

    Returns:
        Boolean tensor, larger by ``edge - 1`` in each of the dimensions.

    Example:
        >>> dilated(torch.tensor([True, False, False]), (2,)).int()
        tensor([1, 1, 0, 0], dtype=torch.int32)
    """
    pad = torch.nn.functional.pad
    for axis, edge in enumerate(reversed(block)):
        around, reach = [0, 0] * axis, 1
        while reach < edge:  # each step doubles what an element covers, as far as the edge
            more = min(reach, edge - reach)
            dropped = pad(dropped, (*around, 0, more)) | pad(dropped, (*around, more, 0))
            reach += more
    return dropped


def uniform(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Uniform draws of a key, strictly between 0 and 1.

    Args:
        key: as in `keep`.
        shape: the shape of the draws.

    Returns:
        float64 tensor of `shape` on the key's device.

    Example:
        >>> uniform(torch.tensor(0), (2,))
        tensor([0.8325, 0.9069], dtype=torch.float64)
    """
    return (_integers(key, shape).double() + 0.5) / 2**32


def integers(key: Tensor, n: int, shape: Sequence[int]) -> Tensor:
    """Uniform integers of a key in [0, n).

    Args:
        key: as in `keep`.
        n: integer in [1, 2**31].
        shape: the shape of the draws.

    Returns:
        int64 tensor of `shape` on the key's device.

    Example:
        >>> integers(torch.tensor(0), 6, (4,))
        tensor([4, 5, 0, 2])
    """
    return _integers(key, shape) * n >> 32


def gaussian(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal draws of a key, by Box and Muller's cosine.

    Args:
        key: as in `keep`.
        shape: the shape of the draws.

    Returns:
        float64 tensor of `shape` on the key's device.

    Example:
        >>> gaussian(torch.tensor(0), (2,))
        tensor([0.5981, 0.4363], dtype=torch.float64)
    """
    u, v = _integers(key, shape), _integers(key, shape, 4)
    radius = torch.sqrt(-2 * torch.log((u + 1).double() / 2**32))
    return radius * torch.cos(2 * math.pi * v.double() / 2**32)


def subset(key: Tensor, n: int, size: int, rows: int) -> Tensor:
    """A random subset for each of `rows` rows: the `size` indices below `n` of the smallest draws.

    Args:
        key: as in `keep`.
        n: the number of indices to choose from.
        size: how many to choose, at most `n`.
        rows: how many subsets; row r uses the draws from r * n on.

    Returns:
        int64 tensor (rows, size) on the key's device, each row in ascending order.

    Example:
        >>> subset(torch.tensor(0), 10, 3, 1)
        tensor([[2, 3, 8]])
    """
    order = torch.sort(_integers(key, (rows, n)), dim=-1, stable=True).indices
    return order[:, :size].sort(dim=-1).values


def fold(key: Tensor, n: Tensor | int) -> Tensor:
    """The n-th key derived from a key, as `Key.fold` derives it.

    Args:
        key: as in `keep`.
        n: integer in [0, 2**60), or a 0-d int64 tensor of it.

    Returns:
        int64 tensor of shape (2,) on the key's device.

    Example:
        >>> fold(torch.tensor(0), 1)
        tensor([-1606184165897665883,                    0])
    """
    place = torch.zeros_like(key) if key.dim() == 0 else key[1]
    n = torch.as_tensor(n, device=key.device)
    low, high, _, _ = _call(key, n & _LOW, 15 * 2**28 + (n >> 32))
    return torch.stack((low | high << 32, place))


def folds(key: Tensor, count: int) -> Tensor:
    """The keys ``fold(0)`` to ``fold(count - 1)``, made at once: one fold is 200 small operations.

    Args:
        key: as in `keep`.
        count: how many.

    Returns:
        int64 tensor (count, 2) on the key's device.

    Example:
        >>> key = torch.tensor(7)
        >>> torch.equal(folds(key, 3)[2], fold(key, 2))
        True
    """
    numbers = torch.arange(count, device=key.device)
    keys: Tensor = torch.vmap(fold, (None, 0))(key, numbers)
    return keys


def _integers(key: Tensor, shape: Sequence[int], first: int = 0, start: int = 0) -> Tensor:
    """The 32-bit integer of each draw from `start` on, by four planes that begin with `first`."""
    size, skipped = math.prod(shape), start % 16
    blocks = (skipped + size + 15) // 16
    planes = [_bytes(key, blocks, first + plane, start // 16) for plane in range(4)]
    u = sum(plane << shift for plane, shift in zip(planes, (24, 16, 8, 0), strict=True))
    return torch.as_tensor(u)[skipped : skipped + size].reshape(tuple(shape))


def apply(
    input: Tensor,
    mask: Tensor,
    scale: Tensor | float,
    shift: Tensor | float | None = None,
    fill: Tensor | float = 0.0,
) -> Tensor:
    """Select by a mask: kept elements times `scale` in the compute type, dropped ones `fill`.

    Args:
        input: tensor of any floating-point or complex type; halves compute in float32.
        mask: boolean tensor that broadcasts to the input.
        scale: the survivors' factor, a number or a 0-d float64 tensor.
        shift: what is added to survivors, likewise; None for nothing.
        fill: what a dropped element becomes.

    Returns:
        Tensor of the input's shape and type.

    Example:
        >>> apply(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]), 2.0)
        tensor([2., 0.])
    """
    compute = compute_type(input.dtype)
    kept = input.to(compute) * _rounded(scale, compute)
    if shift is not None:
        kept = kept + _rounded(shift, compute)
    if isinstance(fill, Tensor):
        fill = _rounded(fill, compute).to(input.dtype)
    return torch.where(mask, kept.to(input.dtype), fill)


def noisy(input: Tensor, draws: Tensor, sigma: Tensor | float) -> Tensor:
    """Multiply each element by ``1 + sigma * draw`` in the compute type.

    Args:
        input: tensor of any floating-point or complex type; halves compute in float32.
        draws: floating-point tensor that broadcasts to the input.
        sigma: a number or a 0-d float64 tensor.

    Returns:
        Tensor of the input's shape and type.

    Example:
        >>> noisy(torch.ones(2), torch.tensor([0.0, 2.0]), 0.5)
        tensor([1., 2.])
    """
    compute = compute_type(input.dtype)
    real = compute.to_real()
    factors = draws.to(real) * _rounded(sigma, real) + 1
    product = (input.to(compute) * factors).to(input.dtype)
    # A rate of 1 makes sigma infinite: what is left is 0, as for Bernoulli noise.
    return torch.where(torch.isinf(sigma), 0.0, product) if isinstance(sigma, Tensor) else product


def scaled(input: Tensor, scale: Tensor | float) -> Tensor:
    """A tensor times a factor that is rounded once to the compute type, float32 for halves.

    Args:
        input: tensor of any floating-point or complex type.
        scale: a number or a 0-d float64 tensor.

    Returns:
        Tensor of the input's shape and type.

    Example:
        >>> scaled(torch.ones(2, dtype=torch.float16), 0.75)
        tensor([0.7500, 0.7500], dtype=torch.float16)
    """
    compute = compute_type(input.dtype)
    product: Tensor = input.to(compute) * _rounded(scale, compute)
    return product.to(input.dtype)


def compute_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which values of a type are computed: float32 for halves, else their own."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _rounded(number: Any, compute: torch.dtype) -> Any:
    return number.to(compute) if isinstance(number, Tensor) else number
