"""One JAX primitive: the draws of a key. It picks its route where it is lowered, for one program.

It gives a mask, or normal draws, and takes one array of words, so nothing that has a gradient
passes through it. Batched, it has a row of words for each key: it stays one primitive under any
transformation, and what is kept for a backward pass is its words.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from dropseed.jax import host
from dropseed.kernels import xla
from dropseed.kernels.xla import Geometry

_draws = Primitive("dropseed_draws")


def keep(key: Array, threshold: Any, everything: Any, base: Any, geometry: Geometry) -> Array:
    """The mask of a key, True where a value is kept.

    Args:
        key: uint32 array (4,).
        threshold: uint32 scalar or a number below 2**32; a draw below it drops.
        everything: boolean, whether everything drops.
        base: uint32 array (2,): the index of the first draw.
        geometry: which draw each element has.

    Returns:
        Boolean array of the geometry's shape.

    Example:
        >>> zeros = jnp.zeros(4, jnp.uint32)
        >>> keep(zeros, 2**31, False, zeros[:2], Geometry((4,), (1,), 0)).astype(int)
        Array([1, 1, 0, 0], dtype=int32)
    """
    last = jnp.stack((xla.u32(threshold), jnp.asarray(everything, jnp.uint32)))
    words = jnp.concatenate((key, jnp.asarray(base), last))
    mask: Array = _draws.bind(words, kind="keep", geometry=geometry)
    return mask


def normals(key: Array, base: Any, geometry: Geometry) -> Array:
    """Standard normal draws of a key.

    Args:
        key: uint32 array (4,).
        base: uint32 array (2,): the index of the first draw.
        geometry: which draw each element has.

    Returns:
        float32 array of the geometry's shape.

    Example:
        >>> zeros = jnp.zeros(4, jnp.uint32)
        >>> normals(zeros, zeros[:2], Geometry((2,), (1,), 0)) * 100 // 1
        Array([59., 43.], dtype=float32)
    """
    words = jnp.concatenate((key, jnp.asarray(base), jnp.zeros(2, jnp.uint32)))
    draws: Array = _draws.bind(words, kind="normals", geometry=geometry)
    return draws


# ---- the routes --------------------------------------------------------------------------------


def by_xla(words: Array, *, kind: str, geometry: Geometry, spread: bool = True) -> Array:
    """The draws in XLA operations, for each row of words.

    Args:
        words: uint32 array (..., 8): the key, the base's two words, the threshold, and whether
            everything drops.
        kind: "keep" or "normals".
        geometry: which draw each element has.
        spread: whether the array may be spread over devices.

    Returns:
        Array (..., *geometry.shape).

    Example:
        >>> words = jnp.array([0, 0, 0, 0, 0, 0, 2**31, 0], jnp.uint32)
        >>> by_xla(words, kind="keep", geometry=Geometry((4,), (1,), 0)).astype(int)
        Array([1, 1, 0, 0], dtype=int32)
    """

    def one(words: Array) -> Array:
        key, base = words[:4], words[4:6]
        if kind == "normals":
            return xla.normals(key, base, geometry=geometry, spread=spread)
        return xla.keep(key, base, words[6], words[7] != 0, geometry=geometry, spread=spread)

    for _ in range(words.ndim - 1):
        one = jax.vmap(one)
    return one(words)


def _route(context: Any, kind: str, geometry: Geometry) -> Callable[..., Array]:
    """The fastest route that is right for the program that is being lowered."""
    module = context.module_context
    if (
        _is_local(module.axis_context)
        and tuple(module.platforms) == ("cpu",)
        and not module.lowering_parameters.for_export
        and host.takes(kind, geometry)
    ):
        return partial(host.by_kernel, kind=kind, geometry=geometry)
    spread = not _is_of_one_device(module.axis_context)
    return partial(by_xla, kind=kind, geometry=geometry, spread=spread)


def _is_local(axes: Any) -> bool:
    """Whether each array of the program lies on one device: nothing is left to partition."""
    if isinstance(axes, mlir.SPMDAxisContext):
        return frozenset(axes.mesh.axis_names) <= axes.manual_axes
    return _is_of_one_device(axes)


def _is_of_one_device(axes: Any) -> bool:
    return isinstance(axes, mlir.ShardingContext) and axes.num_devices == 1


# ---- the rules -----------------------------------------------------------------------------------


@_draws.def_impl
def _eager(words: Array, **params: Any) -> Array:
    with jax.disable_jit(False):  # the draws are one operation, also where a user steps through
        return _compiled(words, **params)


@partial(jax.jit, static_argnames=("kind", "geometry"))
def _compiled(words: Array, kind: str, geometry: Geometry) -> Array:
    draws: Array = _draws.bind(words, kind=kind, geometry=geometry)
    return draws


@_draws.def_abstract_eval
def _type(words: Any, *, kind: str, geometry: Geometry) -> Any:
    spec = (*words.sharding.spec[:-1], *[None] * len(geometry.shape))
    return words.update(
        shape=(*words.shape[:-1], *geometry.shape),
        dtype=jnp.dtype(host.DTYPES[kind]),
        sharding=NamedSharding(words.sharding.mesh, PartitionSpec(*spec)),
    )


def _batched(args: Sequence[Array], axes: Sequence[Any], **params: Any) -> tuple[Array, int]:
    return _draws.bind(jnp.moveaxis(args[0], axes[0], 0), **params), 0


def _lower(context: Any, words: Any, *, kind: str, geometry: Geometry) -> Any:
    if math.prod(context.avals_out[0].shape) == 0:
        route: Callable[..., Array] = partial(by_xla, kind=kind, geometry=geometry)
    else:
        route = _route(context, kind, geometry)
    return mlir.lower_fun(route, multiple_results=False)(context, words)


batching.primitive_batchers[_draws] = _batched
mlir.register_lowering(_draws, _lower)
