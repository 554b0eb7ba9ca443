"""The weights of the convnet with the channels last, as Keras and JAX have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Arrays = dict[str, np.ndarray[Any, Any]]


def from_torch(weights: Mapping[str, Tensor]) -> Arrays:
    """PyTorch's weights: (out, in, height, width) as (height, width, in, out), (out, in) turned.

    Example:
        >>> from_torch({"conv.weight": torch.zeros(8, 1, 3, 2)})["conv.weight"].shape
        (3, 2, 1, 8)
    """
    return {name: _turned(at.numpy(), (2, 3, 1, 0)) for name, at in weights.items()}


def to_torch(weights: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Tensor]:
    """The way back.

    Example:
        >>> to_torch({"dense.weight": np.zeros((16, 10))})["dense.weight"].shape
        torch.Size([10, 16])
    """
    turned = {name: _turned(at, (3, 2, 0, 1)) for name, at in weights.items()}
    return {name: torch.from_numpy(at.copy()) for name, at in turned.items()}


def _turned(value: np.ndarray[Any, Any], axes: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(value.transpose(axes) if value.ndim == 4 else value.T)
