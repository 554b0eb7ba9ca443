"""Equinox modules, with the arguments and the switches of `equinox.nn.Dropout`."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array, lax

from dropseed.errors import InvalidValueError, MissingExtraError
from dropseed.jax import functional, rates
from dropseed.jax.drop_block import check_normalization, drop_block
from dropseed.jax.drop_connect import drop_connect
from dropseed.mask import Key
from dropseed.mask.shard import Shape

try:
    import equinox as eqx
except ModuleNotFoundError as error:
    raise MissingExtraError("equinox", "jax") from error

__all__ = [
    "AlphaDropout",
    "DropBlock",
    "DropConnectLinear",
    "DropPath",
    "Dropout",
    "GaussianDropout",
    "SpatialDropout",
]


class _Noise(eqx.Module):
    """What the modules share: a rate and a switch, which `equinox.tree_at` may change."""

    p: Any
    inference: bool

    def __init__(self, p: float = 0.5, inference: bool = False) -> None:
        rates.strength(p, "p")
        self.p = p
        self.inference = inference

    def __call__(self, x: Array, *, key: Any = None, inference: bool | None = None) -> Array:
        """Drop, or return the input in inference.

        Args:
            x: floating-point array. One sample where channels or paths are meant: maps are
                (C, *), as Equinox's layers take them.
            key: a key of `jax.random`, or one of ours.
            inference: overrides the module's.

        Returns:
            Array of the input's shape and type; of a linear layer, its output.
        """
        rate = self._rate(key, inference)
        if rate is None:
            return self._whole(x)
        # Without a key, every draw of any key drops.
        return self._dropped(Key(0) if key is None else key, x, rate)

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        """What training gives."""
        raise NotImplementedError

    def _whole(self, x: Array) -> Array:
        """What inference gives."""
        return x

    def _rate(self, key: Any, inference: bool | None) -> Any:
        """The rate of one call, None where nothing is dropped."""
        inference = self.inference if inference is None else inference
        known = not isinstance(self.p, jax.Array)
        if inference or (known and self.p == 0):
            return None
        if key is None and not (known and self._drops_all()):
            raise InvalidValueError(
                "`key` must be given where something is dropped; got None. "
                "Give one, or set the model to inference by equinox.nn.inference_mode."
            )
        return self.p if known else lax.stop_gradient(self.p)

    def _drops_all(self) -> bool:
        """Whether every draw of any key drops."""
        return bool(self.p == 1)


class Dropout(_Noise):
    """`equinox.nn.Dropout` with dropseed's masks.

    Args:
        p: the fraction dropped, in [0, 1].
        inference: whether nothing is dropped; `equinox.nn.inference_mode` sets it.

    Raises:
        TypeError: `p` is no real number.
        ValueError: `p` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> layer = Dropout(0.5)
        >>> layer(jnp.ones(8), key=dsj.key(0))
        Array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
        >>> layer(jnp.ones(3), inference=True)
        Array([1., 1., 1.], dtype=float32)
    """

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        return functional.dropout(key, x, rate)


class SpatialDropout(_Noise):
    """Whole channels of one sample dropped; see `dropseed.jax.spatial`.

    Args:
        p: the fraction dropped, in [0, 1].
        inference: as in `Dropout`.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> SpatialDropout(0.5)(jnp.ones((3, 2, 2)), key=dsj.key(0))[:, 0, 0]
        Array([2., 2., 0.], dtype=float32)
    """

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        return functional.spatial(key, x[None], rate, data_format="channels_first")[0]


class DropPath(_Noise):
    """The residual path of one sample dropped: all of it, or nothing; see `dropseed.jax.drop_path`.

    Args:
        p: the fraction dropped, in [0, 1].
        inference: as in `Dropout`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> keys = jax.vmap(dsj.key)(jnp.arange(4))
        >>> jax.vmap(lambda x, key: DropPath(0.5)(x, key=key))(jnp.ones((4, 2)), keys)[:, 0]
        Array([2., 0., 2., 0.], dtype=float32)
    """

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        return functional.drop_path(key, x[None], rate)[0]


class AlphaDropout(_Noise):
    """Dropout for self-normalising networks; see `dropseed.jax.alpha`.

    Args:
        p: the fraction dropped, in [0, 1].
        inference: as in `Dropout`.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> AlphaDropout(0.5)(jnp.zeros(4), key=dsj.key(0)) > 0
        Array([ True,  True, False, False], dtype=bool)
    """

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        return functional.alpha(key, x, rate)


class GaussianDropout(_Noise):
    """Multiplication by normal draws; see `dropseed.jax.gaussian`.

    Args:
        p: the rate of the dropout that it stands for, in [0, 1].
        inference: as in `Dropout`.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> GaussianDropout(0.5)(100 * jnp.ones(2), key=dsj.key(0)) // 1
        Array([159., 143.], dtype=float32)
    """

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        return functional.gaussian(key, x, rate)


class DropBlock(_Noise):
    """Contiguous regions of one sample's maps dropped; see `dropseed.jax.drop_block`.

    Args:
        p: the fraction dropped, in [0, 1].
        block_size: the block's edge, one integer or one a dimension.
        shared: whether the channels share their blocks.
        exact: whether gamma is solved for.
        normalization: "sample" or "expectation".
        inference: as in `Dropout`.

    Example:
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> DropBlock(0.4, 3)(jnp.ones((1, 8)), key=dsj.key(3))[0] > 0
        Array([ True,  True, False, False, False,  True,  True,  True], dtype=bool)
    """

    block_size: Shape = eqx.field(static=True)
    shared: bool = eqx.field(static=True)
    exact: bool = eqx.field(static=True)
    normalization: str = eqx.field(static=True)

    def __init__(
        self,
        p: float = 0.1,
        block_size: Shape = 7,
        *,
        shared: bool = False,
        exact: bool = False,
        normalization: str = "sample",
        inference: bool = False,
    ) -> None:
        check_normalization(normalization)
        super().__init__(p, inference)
        self.block_size = block_size if isinstance(block_size, int) else tuple(block_size)
        self.shared, self.exact, self.normalization = shared, exact, normalization

    def _drops_all(self) -> bool:
        return self.exact and super()._drops_all()  # by the paper's formula gamma is below 1

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        return drop_block(
            key,
            x[None],
            rate,
            self.block_size,
            data_format="channels_first",
            shared=self.shared,
            exact=self.exact,
            normalization=self.normalization,
        )[0]


class DropConnectLinear(_Noise):
    """A linear layer of whose weights a fraction is dropped; see `dropseed.jax.drop_connect`.

    Its weight is (O, I), as Equinox's is. The draws are those of the function: of (1, O, I).

    Args:
        linear: an `equinox.nn.Linear`, whose weights are taken.
        p: the fraction of the weights dropped, in [0, 1].
        drop_bias: whether the bias drops out too.
        inference: as in `Dropout`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import dropseed.jax as dsj
        >>> layer = DropConnectLinear(eqx.nn.Linear(4, 3, key=jax.random.key(0)), 0.5)
        >>> layer(jnp.ones(4), key=dsj.key(0)).shape
        (3,)
    """

    linear: eqx.nn.Linear
    drop_bias: bool = eqx.field(static=True)

    def __init__(
        self,
        linear: eqx.nn.Linear,
        p: float = 0.5,
        *,
        drop_bias: bool = False,
        inference: bool = False,
    ) -> None:
        super().__init__(p, inference)
        self.linear, self.drop_bias = linear, drop_bias

    def _dropped(self, key: Any, x: Array, rate: Any) -> Array:
        weight, bias = self.linear.weight.T, self.linear.bias
        return drop_connect(key, x, weight, bias, rate, drop_bias=self.drop_bias)

    def _whole(self, x: Array) -> Array:
        output: Array = self.linear(x)
        return output
