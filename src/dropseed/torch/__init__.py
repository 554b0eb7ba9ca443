"""dropseed for PyTorch. Write ``import dropseed.torch as dst``; Numba loads at the first call."""

from dropseed.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("torch", "torch") from error

from dropseed.torch import functional
from dropseed.torch.keyed import key_tensor, set_key
from dropseed.torch.layers import Dropout, Dropout1d, Dropout2d, Dropout3d

__all__ = [
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "functional",
    "key_tensor",
    "set_key",
]
