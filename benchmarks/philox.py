"""The yardstick: Philox words alone, as many as dropout needs at a rate of 0.5, written nowhere."""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import prange

from dropseed.kernels import cpu

_KEY = (1, 2, 3, 4)


@numba.njit(parallel=True)
def _words(size: int, parts: int, key: tuple[int, int, int, int]) -> None:
    for part in prange(parts):
        scratch = np.empty(cpu.CHUNK // 4, np.uint32)
        for index in range(part * size // parts, (part + 1) * size // parts, cpu.CHUNK):
            cpu._words(scratch, key, 0, index >> 4)


@numba.njit
def _words_serial(size: int, key: tuple[int, int, int, int]) -> None:
    scratch = np.empty(cpu.CHUNK // 4, np.uint32)
    for index in range(0, size, cpu.CHUNK):
        cpu._words(scratch, key, 0, index >> 4)


def words(size: int, threads: int | None = None) -> None:
    """Make the words for `size` draws, on torch's number of threads unless told."""
    threads = threads or torch.get_num_threads()
    if threads == 1:
        _words_serial(size, _KEY)
    else:
        _words(size, threads, _KEY)
