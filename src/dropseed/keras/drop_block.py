"""DropBlock as layers, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from dropseed.errors import InvalidValueError
from dropseed.keras.base import PACKAGE, RateLayer
from dropseed.keras.checks import checked_data_format
from dropseed.keras.route import draws
from dropseed.mask import Key
from dropseed.mask.shape import block_edges
from dropseed.mask.shard import each_dimension

_NORMALIZATIONS = ("sample", "batch", "expectation")


class _DropBlock(RateLayer):
    """What the layers share: all but the number of dimensions."""

    rank: int

    def __init__(
        self,
        rate: float = 0.1,
        block_size: int | Sequence[int] = 7,
        data_format: str | None = None,
        seed: int | Key | None = None,
        *,
        shared: bool = False,
        exact: bool = False,
        normalization: str = "sample",
        **kwargs: Any,
    ) -> None:
        each_dimension(block_size, "block_size", self.rank, low=1)
        if normalization not in _NORMALIZATIONS:
            raise InvalidValueError(
                '`normalization` must be "sample", "batch" or "expectation"; '
                f"got {normalization!r}."
            )
        super().__init__(rate, seed=seed, **kwargs)
        self.block_size = block_size
        self.data_format = checked_data_format(data_format)
        self.shared = shared
        self.exact = exact
        self.normalization = normalization
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2)

    def _dropped(self, inputs: Any, words: Any) -> Any:
        last = self.data_format == "channels_last"
        maps = keras.ops.moveaxis(inputs, -1, 1) if last else inputs
        sizes = tuple(maps.shape[2:])
        if None in sizes:
            raise InvalidValueError(
                "`inputs` must have a known size in each dimension of the map, on which gamma "
                f"depends; got {tuple(inputs.shape)}. Give the model an Input of a whole shape."
            )
        edges = block_edges(self.block_size, sizes)
        output = draws.drop_block(
            maps, words, self.rate, edges, self.shared, self.exact, self.normalization
        )
        return keras.ops.moveaxis(output, 1, -1) if last else output

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        names = ("block_size", "data_format", "shared", "exact", "normalization")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(PACKAGE)
class DropBlock1D(_DropBlock):
    """Drop stretches of a sequence's channels in training; see `DropBlock2D`.

    Args:
        rate: the fraction dropped, in [0, 1].
        block_size: the length of a block.
        data_format: "channels_last", "channels_first", or None for Keras's setting.
        seed: as in `Dropout`.
        shared: whether the channels share their blocks.
        exact: whether the fraction dropped is the rate exactly.
        normalization: "sample", "batch" or "expectation".
        **kwargs: `site` as in `Dropout`, `name` and `dtype`.

    Call arguments:
        inputs: (N, L, C), or (N, C, L) if the channels come first.
        training: whether to drop.

    Raises:
        TypeError, ValueError: as `DropBlock2D` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.DropBlock1D(0.4, 3, seed=3)
        >>> output = keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 8, 1)), training=True))
        >>> output[0, :, 0].round(1)
        array([1.6, 1.6, 0. , 0. , 0. , 1.6, 1.6, 1.6], dtype=float32)
    """

    rank = 1


@keras.saving.register_keras_serializable(PACKAGE)
class DropBlock2D(_DropBlock):
    """Drop square regions of feature maps in training, and scale what is left.

    Ghiasi, Lin and Le 2018, "DropBlock: a regularization method for convolutional networks",
    algorithm 1. Each place where a whole block fits has a draw, and takes a block with it at the
    rate gamma. By the paper's formula (equation 1) that is a little less than the rate in all,
    since blocks overlap; ``exact=True`` solves for the gamma at which the fraction dropped is the
    rate.

    Args:
        rate: the fraction dropped, in [0, 1].
        block_size: the block's edge, or (height, width); each from 1 to the map's.
        data_format: "channels_last", "channels_first", or None for Keras's setting. Both have the
            same draws.
        seed: as in `Dropout`.
        shared: whether the channels of a sample share their blocks.
        exact: whether gamma is solved for, overlaps and borders included.
        normalization: what the rest is multiplied by: "sample" (a sample's size over the number of
            its elements that are kept), "batch" (the same over the batch, as in the paper), or
            "expectation" (one over the fraction that is kept on average).
        **kwargs: `site` as in `Dropout`, `name` and `dtype`.

    Call arguments:
        inputs: (N, H, W, C), or (N, C, H, W) if the channels come first; H and W known.
        training: whether to drop.

    Raises:
        TypeError: `rate` is no number, or `block_size` no integer.
        ValueError: `rate` is outside [0, 1], a block doesn't fit into the map, or `data_format` or
            `normalization` is unknown.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.DropBlock2D(0.2, 2, seed=5)
        >>> output = keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 4, 6, 1)), training=True))
        >>> output[0, :, :, 0].round(1)
        array([[1.2, 1.2, 1.2, 1.2, 1.2, 1.2],
               [1.2, 1.2, 0. , 0. , 1.2, 1.2],
               [1.2, 1.2, 0. , 0. , 1.2, 1.2],
               [1.2, 1.2, 1.2, 1.2, 1.2, 1.2]], dtype=float32)
    """

    rank = 2


@keras.saving.register_keras_serializable(PACKAGE)
class DropBlock3D(_DropBlock):
    """Drop cubes of volumes' feature maps in training; see `DropBlock2D`.

    Args:
        rate: the fraction dropped, in [0, 1].
        block_size: the cube's edge, or (depth, height, width).
        data_format: "channels_last", "channels_first", or None for Keras's setting.
        seed: as in `Dropout`.
        shared: whether the channels share their blocks.
        exact: whether the fraction dropped is the rate exactly.
        normalization: "sample", "batch" or "expectation".
        **kwargs: `site` as in `Dropout`, `name` and `dtype`.

    Call arguments:
        inputs: (N, D, H, W, C), or (N, C, D, H, W) if the channels come first.
        training: whether to drop.

    Raises:
        TypeError, ValueError: as `DropBlock2D` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.DropBlock3D(0.3, 2, seed=0)
        >>> output = layer(keras.ops.ones((1, 4, 4, 4, 1)), training=True)
        >>> int(keras.ops.sum(output == 0))
        16
    """

    rank = 3
