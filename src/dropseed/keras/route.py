"""Which code draws for Keras's back end: one table."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import keras

_ROUTES = {"jax": "dropseed.keras.by_jax", "torch": "dropseed.keras.by_torch"}
"""Back ends with kernels of their own; any other draws through `keras.ops`."""

draws: Any = import_module(_ROUTES.get(keras.backend.backend(), "dropseed.keras.by_ops"))
"""The operations of `by_ops`, by the means of the back end."""
