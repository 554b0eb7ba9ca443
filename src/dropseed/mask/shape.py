"""Noise shapes: which elements of a tensor share a draw, variant by variant."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from dropseed.errors import InvalidValueError
from dropseed.mask.key import integer
from dropseed.mask.shard import INDEX_END, Shape, dimensions, each_dimension


class Variant(NamedTuple):
    """The axes of the input that have draws of their own, and the ranks that make sense."""

    axes: Callable[[int], tuple[int, ...]]
    least_rank: int
    layout: str


def _all(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


VARIANTS: dict[str, Variant] = {
    "elementwise": Variant(_all, 0, "any shape"),
    "attention": Variant(_all, 4, "(B, H, Tq, Tk)"),
    "spatial": Variant(lambda rank: (0, 1), 2, "(N, C, *)"),
    "spatial_channels_last": Variant(lambda rank: (0, rank - 1), 2, "(N, *, C)"),
    "locked": Variant(lambda rank: (0, *range(2, rank)), 3, "(N, T, D)"),
    "token": Variant(lambda rank: (0, 1), 3, "(N, T, D)"),
    "path": Variant(lambda rank: (0,), 1, "(N, *)"),
    "embedding": Variant(lambda rank: (0,), 2, "weight (V, D)"),
    "drop_connect": Variant(_all, 2, "weight (O, I) or (O, I, *K)"),
}


def shared_axes(variant: str, rank: int) -> tuple[int, ...]:
    """The axes along which the elements of a tensor of `rank` dimensions share a draw.

    Args:
        variant: a name of `VARIANTS`, for instance "spatial".
        rank: the number of dimensions of the input.

    Returns:
        The shared axes in ascending order, empty for elementwise draws.

    Raises:
        ValueError: an unknown variant, or too few dimensions for it.

    Example:
        >>> shared_axes("spatial", 4)
        (2, 3)
    """
    _check_name(variant, VARIANTS)
    axes, least_rank, layout = VARIANTS[variant]
    if rank < least_rank:
        raise InvalidValueError(
            f'`variant` "{variant}" takes {layout}, at least {least_rank} dimensions; got {rank}.'
        )
    own = axes(rank)
    return tuple(axis for axis in range(rank) if axis not in own)


def noise_shape(
    variant: str,
    shape: Shape,
    *,
    batch: int | None = None,
    block_size: Shape | None = None,
    shared: bool = False,
) -> tuple[int, ...]:
    """The shape of a variant's draws, which are then broadcast over the rest of the input.

    Args:
        variant: a name of `VARIANTS`, "drop_block", or "zoneout" (input (T, N, D), where time
            step t takes the key ``fold(t)``).
        shape: the input's shape (for "embedding" and "drop_connect" the weight's).
        batch: "drop_connect" only: the number of samples, each with a mask of its own; None for
            one mask a batch.
        block_size: "drop_block" only: the block's edge, one integer or one a spatial dimension.
        shared: "drop_block" only: whether the channels share their blocks.

    Returns:
        The shape of the draws, without the axes that share them.

    Raises:
        TypeError: `shape` holds something else than integers.
        ValueError: an unknown variant, too few dimensions, an argument of another variant, or a
            block larger than the map.

    Example:
        >>> noise_shape("spatial", (8, 64, 12, 12))
        (8, 64)
        >>> noise_shape("drop_block", (8, 64, 12, 12), block_size=3)
        (8, 64, 10, 10)
    """
    _check_name(variant, (*VARIANTS, "drop_block", "zoneout"))
    if batch is not None and variant != "drop_connect":
        raise InvalidValueError(f'`batch` belongs to "drop_connect"; got it for "{variant}".')
    if (block_size is not None or shared) and variant != "drop_block":
        raise InvalidValueError(
            f'`block_size` and `shared` belong to "drop_block"; got them for "{variant}".'
        )
    sizes = dimensions(shape, "shape")
    if variant == "drop_block":
        return _block_shape(sizes, block_size, shared)
    if variant == "zoneout":
        if len(sizes) < 2:
            raise InvalidValueError(
                f'`variant` "zoneout" takes (T, N, D), at least 2 dimensions; got {len(sizes)}.'
            )
        return sizes[1:]
    hidden = shared_axes(variant, len(sizes))
    own = tuple(size for axis, size in enumerate(sizes) if axis not in hidden)
    return own if batch is None else (integer(batch, "batch", 0, INDEX_END), *own)


def _check_name(variant: str, known: Collection[str]) -> None:
    if variant not in known:
        raise InvalidValueError(f"`variant` must be one of {sorted(known)}; got {variant!r}.")


def block_edges(block_size: Shape | None, spatial: tuple[int, ...]) -> tuple[int, ...]:
    """DropBlock's edge in each spatial dimension, checked against the map that must hold it.

    Args:
        block_size: one integer, or one for each dimension.
        spatial: the map's size in each dimension.

    Returns:
        One integer for each dimension.

    Raises:
        TypeError: `block_size` holds something else than integers.
        ValueError: an edge is below 1 or larger than the map, or their number is wrong.

    Example:
        >>> block_edges(3, (12, 12))
        (3, 3)
    """
    if block_size is None:
        raise InvalidValueError('`block_size` is needed for "drop_block": one integer a dimension.')
    wanted = f"dimension of the map {spatial}"
    edges = each_dimension(block_size, "block_size", len(spatial), each=wanted)
    if not all(1 <= e <= n for e, n in zip(edges, spatial, strict=True)):
        raise InvalidValueError(
            f"`block_size` must be between 1 and the map {spatial} in each dimension; "
            f"got {block_size!r}."
        )
    return edges


def _block_shape(sizes: tuple[int, ...], block_size: Shape | None, shared: bool) -> tuple[int, ...]:
    if len(sizes) < 3:
        raise InvalidValueError(
            '`variant` "drop_block" takes (N, C, L1, ..., Ld), at least 3 dimensions; '
            f"got {len(sizes)}."
        )
    edges = block_edges(block_size, sizes[2:])
    places = tuple(n - e + 1 for n, e in zip(sizes[2:], edges, strict=True))
    return (sizes[0], *places) if shared else (*sizes[:2], *places)
