"""Checks of arguments. Where Keras has an error for a mistake, ours begins as Keras's does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Rate


def checked_rate(rate: Any) -> float:
    """The rate as a float, with an error that begins as Keras's does."""
    try:
        return Rate(rate).value
    except (InvalidTypeError, InvalidValueError) as error:
        raise type(error)(
            "Invalid value received for argument `rate`. Expected a float value between 0 and 1. "
            f"Received: rate={rate!r}. It is the fraction dropped, not the fraction kept."
        ) from None


def check_inputs(inputs: Any) -> None:
    """Refuse what has no floating-point type."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise InvalidTypeError(
            f"`inputs` must be a floating-point tensor; got {dtype}. "
            "Cast it first: keras.ops.cast(inputs, 'float32')."
        )


def shared_axes(noise_shape: Sequence[int | None], shape: Sequence[int | None]) -> tuple[int, ...]:
    """The axes along which a noise shape has size 1; one with fewer axes is broadcast."""
    sizes = (*(1,) * (len(shape) - len(noise_shape)), *noise_shape)
    if len(sizes) != len(shape) or any(
        size not in (None, 1, whole) and whole is not None
        for size, whole in zip(sizes, shape, strict=True)
    ):
        raise InvalidValueError(
            f"`noise_shape` must broadcast to the shape of `inputs` {tuple(shape)}: 1, None or the "
            f"inputs' size in each dimension; got {noise_shape!r}."
        )
    return tuple(axis for axis, size in enumerate(sizes) if size == 1)


def checked_noise_shape(noise_shape: Any) -> tuple[int | None, ...] | None:
    """The noise shape as a tuple, with errors that begin as Keras's do."""
    if noise_shape is None:
        return None
    begin = "Invalid value received for argument `noise_shape`."
    if isinstance(noise_shape, str) or not hasattr(noise_shape, "__iter__"):
        raise InvalidValueError(
            f"{begin} Expected a tuple or list of integers. Received: noise_shape={noise_shape!r}. "
            "A size of 1 shares a draw along an axis."
        )
    sizes = tuple(noise_shape)
    for axis, size in enumerate(sizes):
        if size is not None and (isinstance(size, bool) or not hasattr(size, "__index__")):
            raise InvalidValueError(
                f"{begin} Expected all elements to be integers or None. "
                f"Received element at index {axis}: {size!r}."
            )
        if size is not None and size <= 0:
            raise InvalidValueError(
                f"{begin} Expected all dimensions to be positive integers or None. "
                f"Received {size} at index {axis}; 1 shares a draw along an axis."
            )
    return tuple(None if size is None else int(size) for size in sizes)


def checked_data_format(data_format: Any) -> str:
    """The layout of the channels, Keras's setting if None."""
    layout = keras.config.image_data_format() if data_format is None else data_format
    if layout not in ("channels_last", "channels_first"):
        raise InvalidValueError(
            f'`data_format` must be "channels_last", "channels_first" or None; got {data_format!r}.'
        )
    return str(layout)
