"""Keys as JAX carries them: four uint32 words, which may be traced."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import xla
from dropseed.mask import Key, site_number
from dropseed.mask.key import integer


def key(seed: Any, site: Any = 0, step: Any = 0) -> Array:
    """The key of a seed, a site and a step, each of which may be traced.

    Args:
        seed: integer in [0, 2**64); or a uint32 array (2,) of its low and its high word; or an
            integer array, traced or not; or a key of `jax.random`, as in `dropout`; or a
            `dropseed.Key`, which brings its own site and step.
        site: integer in [0, 2**32), or an integer array; or a layer's name, whose CRC-32 it is.
        step: integer in [0, 2**32), or an integer array.

    Returns:
        uint32 array (4,): the seed's low and high word, the site and the step.

    Raises:
        TypeError: an argument is none of these.
        ValueError: a Python integer is outside its range, or an array has another shape.

    Example:
        >>> import dropseed.jax as dsj
        >>> dsj.key(7, site="features.3", step=2)
        Array([        7,         0, 461642344,         2], dtype=uint32)
    """
    if isinstance(seed, Key):
        if not (isinstance(site, int) and isinstance(step, int) and site == step == 0):
            raise InvalidValueError(
                "`site` and `step` must be left out beside a `dropseed.Key`, which has its own; "
                f"got {site!r} and {step!r}."
            )
        return jnp.asarray(np.array(seed.words, np.uint32))
    if isinstance(site, str):
        site = site_number(site)
    words = (*_seed_words(seed), _word(site, "site"), _word(step, "step"))
    if all(isinstance(word, int) for word in words):
        return jnp.asarray(np.array(words, np.uint32))
    return jnp.stack([xla.u32(word) for word in words])


def fold(key: Any, n: Any) -> Array:
    """Derive the n-th key from a key, as `dropseed.Key.fold` does.

    Args:
        key: any key that `dropout` takes.
        n: integer in [0, 2**60), or an integer array, traced or not, below 2**32.

    Returns:
        uint32 array (4,): a seed of its own, with the same site and step.

    Raises:
        TypeError: `key` is no key, or `n` no integer.
        ValueError: `n` is outside its range.

    Example:
        >>> import dropseed.jax as dsj
        >>> from dropseed import Key
        >>> bool((dsj.fold(dsj.key(7), 3) == dsj.key(Key(7).fold(3))).all())
        True
    """
    number = xla.pair(integer(n, "n", 0, 2**60)) if not _is_array(n) else _halves(n, "n")
    return xla.fold(words(key), number)


def words(key: Any) -> Array:
    """The four words of anything that serves as a key."""
    if isinstance(key, Key):
        return jnp.asarray(np.array(key.words, np.uint32))
    if not _is_array(key):
        raise InvalidTypeError(
            f"`key` must be a dropseed.Key, a key of dropseed.jax or one of jax.random; got "
            f"{key!r}."
        )
    if _is_random_key(key) or (key.dtype == np.uint32 and key.shape == (2,)):
        return jnp.concatenate((_random_words(key), jnp.zeros(2, jnp.uint32)))
    if key.dtype != np.uint32 or key.shape != (4,):
        raise InvalidValueError(
            "`key` must be four uint32 words, as dropseed.jax.key makes them, or a single key of "
            f"jax.random; got {key.dtype} of shape {key.shape}."
        )
    return jnp.asarray(key)


def _seed_words(seed: Any) -> tuple[Any, Any]:
    if not _is_array(seed):
        number = integer(seed, "seed", 0, 2**64)
        return number % 2**32, number // 2**32
    if _is_random_key(seed):
        seed = _random_words(seed)
    if seed.dtype == np.uint32 and seed.shape == (2,):
        return seed[0], seed[1]
    return _halves(seed, "seed")


def _random_words(key: Array) -> Array:
    """The seed that a key of `jax.random` stands for: its first 64 random bits."""
    if key.ndim and _is_random_key(key):
        raise InvalidValueError(f"`key` must be a single key; got an array of shape {key.shape}.")
    return jax.random.bits(key, (2,), jnp.uint32)


def _word(number: Any, name: str) -> Any:
    return integer(number, name, 0, 2**32) if not _is_array(number) else _halves(number, name)[0]


def _halves(number: Any, name: str) -> xla.Pair:
    """The low and the high word of an integer array, or of one that is traced."""
    if number.shape != () or not np.issubdtype(number.dtype, np.integer):
        raise InvalidTypeError(
            f"`{name}` must be an integer or a 0-d integer array; "
            f"got {number.dtype} of shape {number.shape}."
        )
    if not isinstance(number, jax.core.Tracer):
        checked = integer(operator.index(number), name, 0, 2**64)
        return xla.pair(checked)
    high = number >> 32 if number.dtype.itemsize == 8 else jnp.zeros((), jnp.uint32)
    return number.astype(jnp.uint32), high.astype(jnp.uint32)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array | np.ndarray)


def _is_random_key(key: Any) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
