"""Flax NNX modules, with the arguments and the switches of `flax.nnx.Dropout`.

Each takes a key from its own stream at each call, as Flax's do, or the key that it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import Array

from dropseed.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from dropseed.jax import functional, rates
from dropseed.jax.drop_block import check_normalization, drop_block
from dropseed.jax.drop_connect import drop_connect
from dropseed.mask import Key
from dropseed.mask.shard import Shape

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise MissingExtraError("flax", "jax") from error

__all__ = [
    "AlphaDropout",
    "DropBlock",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "GaussianDropout",
    "SpatialDropout",
]


class _Noise(nnx.Module):
    """What the modules share: a rate, a switch, and a stream of keys."""

    def __init__(
        self,
        rate: float,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> None:
        self.rate = rates.strength(rate).rate
        self.deterministic = deterministic
        self.rng_collection = rng_collection
        self.rngs = nnx.data(None) if rngs is None else _stream(rngs, rng_collection).fork()

    def __call__(
        self, inputs: Array, *, deterministic: bool | None = None, rngs: Any = None
    ) -> Array:
        """Drop in training; in inference return the inputs.

        Args:
            inputs: floating-point array.
            deterministic: overrides the module's.
            rngs: an `nnx.Rngs`, an `nnx.RngStream`, a key of `jax.random`, or one of ours.

        Returns:
            Array of the inputs' shape and type; of a linear layer, its output.
        """
        if not self._training(deterministic):
            return self._whole(inputs)
        return self._dropped(self._key(rngs), inputs)

    def _dropped(self, key: Any, inputs: Array) -> Array:
        """What training gives."""
        raise NotImplementedError

    def _whole(self, inputs: Array) -> Array:
        """What inference gives."""
        return inputs

    def _training(self, deterministic: bool | None) -> bool:
        chosen = self.deterministic if deterministic is None else deterministic
        if chosen is None:
            raise InvalidValueError(
                "`deterministic` must be given to the constructor, to the call, or by nnx.view; "
                "got None everywhere."
            )
        return not chosen and self.rate != 0

    def _key(self, rngs: Any) -> Any:
        """The key of one call."""
        rngs = self.rngs if rngs is None else rngs
        if isinstance(rngs, Key | jax.Array):
            return rngs
        if rngs is None and self._drops_all():
            return Key(0)
        if rngs is None:
            raise InvalidValueError(
                "`rngs` must be given to the constructor or to the call where something is "
                "dropped; got None in both."
            )
        return _stream(rngs, self.rng_collection)()

    def _drops_all(self) -> bool:
        """Whether every draw of any key drops."""
        return bool(self.rate == 1)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Answer `nnx.view`.

        Args:
            deterministic: whether nothing is dropped; None leaves it as it is.
        """
        if deterministic is not None:
            self.deterministic = deterministic


def _stream(rngs: Any, collection: str) -> nnx.RngStream:
    if isinstance(rngs, nnx.Rngs):
        return rngs[collection]
    if isinstance(rngs, nnx.RngStream):
        return rngs
    raise InvalidTypeError(
        f"`rngs` must be an nnx.Rngs, an nnx.RngStream or, in a call, a key; got {rngs!r}."
    )


class Dropout(_Noise):
    """`flax.nnx.Dropout` with dropseed's masks.

    Args:
        rate: the fraction dropped, in [0, 1].
        broadcast_dims: the axes along which the elements share a draw.
        deterministic: whether nothing is dropped; ``model.train()``, ``model.eval()`` and
            `nnx.view` set it. None leaves it to the call.
        rng_collection: the name of the stream of keys in `rngs`.
        rngs: an `nnx.Rngs` or an `nnx.RngStream`, which is forked.

    Raises:
        TypeError: `rate` is no real number, or `rngs` no stream.
        ValueError: `rate` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> layer = Dropout(0.5, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones(8), rngs=dsj.key(0))
        Array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
        >>> layer.eval()
        >>> layer(jnp.ones(3))
        Array([1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        *,
        broadcast_dims: Sequence[int] = (),
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> None:
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        self.broadcast_dims = tuple(broadcast_dims)

    def _dropped(self, key: Any, inputs: Array) -> Array:
        noise: list[int | None] = [None] * inputs.ndim
        for axis in self.broadcast_dims:
            noise[axis] = 1
        return functional.dropout(key, inputs, self.rate, noise_shape=noise)


class SpatialDropout(_Noise):
    """Whole channels dropped; see `dropseed.jax.spatial`.

    Args:
        rate: the fraction dropped, in [0, 1].
        data_format: "channels_last" or "channels_first".
        deterministic: as in `Dropout`, as are the others.
        rng_collection: the name of the stream of keys.
        rngs: the streams.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> layer = SpatialDropout(0.5, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((1, 2, 2, 3)), rngs=dsj.key(0))[0, 0, 0]
        Array([2., 2., 0.], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        *,
        data_format: str = "channels_last",
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> None:
        functional.check_format(data_format)
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        self.data_format = data_format

    def _dropped(self, key: Any, inputs: Array) -> Array:
        return functional.spatial(key, inputs, self.rate, data_format=self.data_format)


class DropPath(_Noise):
    """The residual path of whole samples dropped; see `dropseed.jax.drop_path`.

    Args:
        rate: the fraction dropped, in [0, 1].
        deterministic: as in `Dropout`, as are the others.
        rng_collection: the name of the stream of keys.
        rngs: the streams.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> DropPath(0.5)(jnp.ones((4, 2)), rngs=dsj.key(0))[:, 0]
        Array([2., 2., 0., 0.], dtype=float32)
    """

    def _dropped(self, key: Any, inputs: Array) -> Array:
        return functional.drop_path(key, inputs, self.rate)


class AlphaDropout(_Noise):
    """Dropout for self-normalising networks; see `dropseed.jax.alpha`.

    Args:
        rate: the fraction dropped, in [0, 1].
        deterministic: as in `Dropout`, as are the others.
        rng_collection: the name of the stream of keys.
        rngs: the streams.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> AlphaDropout(0.5)(jnp.zeros(4), rngs=dsj.key(0)) > 0
        Array([ True,  True, False, False], dtype=bool)
    """

    def _dropped(self, key: Any, inputs: Array) -> Array:
        return functional.alpha(key, inputs, self.rate)


class GaussianDropout(_Noise):
    """Multiplication by normal draws; see `dropseed.jax.gaussian`.

    Args:
        rate: the rate of the dropout that it stands for, in [0, 1].
        deterministic: as in `Dropout`, as are the others.
        rng_collection: the name of the stream of keys.
        rngs: the streams.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> GaussianDropout(0.5)(100 * jnp.ones(2), rngs=dsj.key(0)) // 1
        Array([159., 143.], dtype=float32)
    """

    def _dropped(self, key: Any, inputs: Array) -> Array:
        return functional.gaussian(key, inputs, self.rate)


class DropBlock(_Noise):
    """Contiguous regions dropped; see `dropseed.jax.drop_block`.

    Args:
        rate: the fraction dropped, in [0, 1].
        block_size: the block's edge, one integer or one a dimension.
        data_format: "channels_last" or "channels_first".
        shared: whether the channels share their blocks.
        exact: whether gamma is solved for.
        normalization: "sample", "batch" or "expectation".
        deterministic: as in `Dropout`, as are the others.
        rng_collection: the name of the stream of keys.
        rngs: the streams.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> DropBlock(0.4, 3)(jnp.ones((1, 8, 1)), rngs=dsj.key(3))[0, :, 0] > 0
        Array([ True,  True, False, False, False,  True,  True,  True], dtype=bool)
    """

    def __init__(
        self,
        rate: float,
        block_size: Shape = 7,
        *,
        data_format: str = "channels_last",
        shared: bool = False,
        exact: bool = False,
        normalization: str = "sample",
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs | nnx.RngStream | None = None,
    ) -> None:
        functional.check_format(data_format)
        check_normalization(normalization)
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        self.block_size = block_size if isinstance(block_size, int) else tuple(block_size)
        self.data_format = data_format
        self.shared = shared
        self.exact = exact
        self.normalization = normalization

    def _drops_all(self) -> bool:
        return self.exact and super()._drops_all()  # by the paper's formula gamma is below 1

    def _dropped(self, key: Any, inputs: Array) -> Array:
        return drop_block(
            key,
            inputs,
            self.rate,
            self.block_size,
            data_format=self.data_format,
            shared=self.shared,
            exact=self.exact,
            normalization=self.normalization,
        )


class DropConnectLinear(_Noise):
    """A linear layer of whose weights a fraction is dropped; see `dropseed.jax.drop_connect`.

    Args:
        in_features: I.
        out_features: O.
        rate: the fraction of the weights dropped, in [0, 1].
        use_bias: whether there is a bias.
        per_sample: whether each sample has a mask of its own.
        drop_bias: whether the bias drops out too.
        deterministic: as in `Dropout`.
        rng_collection: the name of the stream of keys for the masks.
        rngs: the streams; their ``params`` initialises the weight.

    Example:
        >>> import jax.numpy as jnp
        >>> layer = DropConnectLinear(4, 3, 0.5, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 4))).shape
        (2, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float = 0.5,
        *,
        use_bias: bool = True,
        per_sample: bool = True,
        drop_bias: bool = False,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs
        )
        self.linear = nnx.Linear(in_features, out_features, use_bias=use_bias, rngs=rngs)
        self.per_sample = per_sample
        self.drop_bias = drop_bias

    def _dropped(self, key: Any, inputs: Array) -> Array:
        bias = self.linear.bias
        return drop_connect(
            key,
            inputs,
            self.linear.kernel[...],
            None if bias is None else bias[...],
            self.rate,
            per_sample=self.per_sample,
            drop_bias=self.drop_bias,
        )

    def _whole(self, inputs: Array) -> Array:
        output: Array = self.linear(inputs)
        return output
