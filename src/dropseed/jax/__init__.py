"""dropseed for JAX. Write ``import dropseed.jax as dsj``; Numba loads at the first CPU program.

`dropseed.jax.nnx` and `dropseed.jax.equinox` hold modules for Flax NNX and for Equinox.
"""

from __future__ import annotations

from importlib import import_module as _import_module
from typing import Any as _Any

from dropseed.errors import MissingExtraError

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("jax", "jax") from error

from dropseed.jax.attention import scaled_dot_product_attention
from dropseed.jax.drop_block import drop_block
from dropseed.jax.drop_connect import drop_connect
from dropseed.jax.functional import alpha, drop_path, dropout, gaussian, keep, spatial
from dropseed.jax.keys import fold, key

__all__ = [
    "alpha",
    "drop_block",
    "drop_connect",
    "drop_path",
    "dropout",
    "fold",
    "gaussian",
    "keep",
    "key",
    "scaled_dot_product_attention",
    "spatial",
]


def __getattr__(name: str) -> _Any:
    if name in ("equinox", "nnx"):  # each needs a library of its own
        return _import_module(f"dropseed.jax.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
