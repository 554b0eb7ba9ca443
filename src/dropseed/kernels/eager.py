"""The masks of `dropseed.mask` in plain torch operations: any device, the same bits, not fast.

Policy: the key and a tensor threshold are never read back, so nothing synchronises. Unsigned 32-bit
arithmetic is done in int64: a product of two words wraps, but its two halves are still right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def _bytes(key: Tensor, blocks: int, plane: int) -> Tensor:
    """The bytes of one plane, sixteen for each of the first `blocks` blocks, in index order."""
    seed, place = (key, torch.zeros_like(key)) if key.dim() == 0 else key.unbind()
    block = torch.arange(blocks, device=key.device)
    high = plane * 2**28 + (block >> 32)
    site, step = place & _LOW, place >> 32 & _LOW
    words = _philox([block & _LOW, high, site, step], seed & _LOW, seed >> 32 & _LOW)
    four = torch.stack(words, -1)  # after ten rounds every word has the shape of the blocks
    shifts = torch.arange(0, 32, 8, device=key.device)
    return (four[..., None] >> shifts & 0xFF).reshape(-1)


def keep(key: Tensor, threshold: Tensor | int, shape: Sequence[int]) -> Tensor:
    """The mask of a key, True where a value is kept.

    Args:
        key: int64 tensor, a 0-d seed or ``[seed, site + 2**32 * step]``.
        threshold: integer in [0, 2**32], or a 0-d int64 tensor of it.
        shape: the noise shape.

    Returns:
        Boolean tensor of `shape` on the key's device.

    Example:
        >>> keep(torch.tensor(0), 2**31, (8,)).int().tolist()
        [1, 1, 0, 0, 1, 1, 0, 1]
    """
    size = math.prod(shape)
    blocks = (size + 15) // 16
    u = sum(_bytes(key, blocks, plane) << (24 - 8 * plane) for plane in range(4))
    return (torch.as_tensor(u)[:size] >= threshold).reshape(tuple(shape))


def apply(input: Tensor, mask: Tensor, scale: Tensor | float) -> Tensor:
    """Select by a mask: kept elements times `scale` in the compute type, dropped ones +0.

    Args:
        input: tensor of any floating-point or complex type; halves compute in float32.
        mask: boolean tensor that broadcasts to the input.
        scale: the survivors' factor, a number or a 0-d float64 tensor.

    Returns:
        Tensor of the input's shape and type.

    Example:
        >>> apply(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]), 2.0)
        tensor([2., 0.])
    """
    return torch.where(mask, scaled(input, scale), 0.0)


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
    half = input.dtype in (torch.float16, torch.bfloat16)
    compute = torch.float32 if half else input.dtype
    if isinstance(scale, Tensor):
        scale = scale.to(compute)
    return (input.float() * scale).to(input.dtype) if half else input * scale
