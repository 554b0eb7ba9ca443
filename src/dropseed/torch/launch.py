"""How tensors, keys and rates reach the CPU kernel: as buffers and plain numbers."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dropseed.errors import InvalidValueError
from dropseed.mask.key import DERIVING_PLANE
from dropseed.mask.rate import ALL

_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}
LIKE = {  # the CPU kernel's types: NumPy knows no bfloat16, and Numba no float16
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.float16: np.empty(0, np.int16),
    torch.bfloat16: np.empty(0, np.uint16),
}


def has_kernel(input: Tensor) -> bool:
    """Whether the CPU kernel takes a tensor."""
    return input.is_cpu and input.dtype in LIKE


def is_lazy(input: Tensor) -> bool:
    """Whether a tensor's memory does not hold its values."""
    return input.is_neg() or input._is_zerotensor()


def contiguous(input: Tensor) -> Tensor:
    """A tensor whose memory holds its values, row by row."""
    if is_lazy(input):
        return torch.empty(input.shape, dtype=input.dtype).copy_(input)
    return input.contiguous()


def fold(key: Tensor, n: int) -> Tensor:
    """The n-th key derived from a key on a CPU, by one call of its kernel.

    Args:
        key: int64 tensor, a 0-d seed or ``[seed, site + 2**32 * step]``.
        n: integer in [0, 2**60).

    Returns:
        int64 tensor of shape (2,).

    Example:
        >>> fold(torch.tensor(0), 1)
        tensor([-1606184165897665883,                    0])
    """
    words = np.empty(4, np.uint32)
    cpu_kernel().words(words, key_words(key.tolist()), DERIVING_PLANE, n)
    derived = torch.zeros(2, dtype=torch.int64) if key.dim() == 0 else key.clone()
    derived[0] = int(words[:2].view(np.int64)[0])
    return derived


def buffer(tensor: Tensor) -> Any:
    """The NumPy array of a tensor's memory; halves as the integers that the kernel takes."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    bits = _BITS.get(tensor.dtype)
    return (tensor if bits is None else tensor.view(bits)).numpy()


def cpu_kernel() -> Any:
    """`kernels.cpu`, imported at the first call: Numba takes half a second."""
    kernel = sys.modules.get("dropseed.kernels.cpu")
    if kernel is None:
        from dropseed.kernels import cpu as kernel
    return kernel


def key_words(key: int | list[int]) -> tuple[int, int, int, int]:
    """The four words of a key tensor, or of a seed, whose values were read."""
    seed, place = (key, 0) if isinstance(key, int) else key
    low = 0xFFFFFFFF
    return seed & low, seed >> 32 & low, place & low, place >> 32 & low


def number(threshold: Tensor | int) -> int:
    """A threshold that may be a tensor, as a number in [0, 2**32]."""
    value = int(threshold)
    if not 0 <= value <= ALL:  # a tensor rate is first seen here
        raise InvalidValueError(
            "`p` must be in [0, 1]; got a tensor that is not. "
            "It is the fraction dropped, not the fraction kept."
        )
    return value
