"""DropBlock: contiguous regions of feature maps, by kernels that draw the few blocks there are.

Backward draws them again: what is kept is the key with a threshold and a scale, and under a
functorch transform the mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import index
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key, Rate
from dropseed.mask.block import STEPS, coverage, exact_gamma, gamma_factor, kept_fraction
from dropseed.mask.rate import ALL
from dropseed.mask.shape import block_edges
from dropseed.torch import autograd, launch, noise

NORMALIZATIONS = ("sample", "batch", "expectation")
_AXES = ("", "L", "H, W", "D, H, W")


@noise.overridable
def drop_block1d(
    input: Tensor,
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    shared: bool = False,
    exact: bool = False,
    normalization: str = "sample",
    shard: tuple[int, int] = (0, 1),
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Drop stretches of `block_size` steps of a sequence's channels; see `drop_block2d`.

    Args:
        input: (N, C, L) or (C, L).
        p: as in `drop_block2d`, as are the other arguments.
        block_size: the length of a block, from 1 to L.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        shared: whether the channels share their blocks.
        exact: whether gamma is solved for.
        normalization: "sample", "batch" or "expectation".
        shard: which samples of a larger batch these are.
        group: the processes that share a batch.

    Returns:
        As `drop_block2d` does.

    Raises:
        TypeError, ValueError: as `drop_block2d` does.

    Example:
        >>> from dropseed import Key
        >>> drop_block1d(torch.ones(1, 1, 8), 0.4, 3, key=Key(3))
        tensor([[[1.6000, 1.6000, 0.0000, 0.0000, 0.0000, 1.6000, 1.6000, 1.6000]]])
    """
    return _drop_block(
        1, input, p, block_size, training, inplace, key, shared, exact, normalization, shard, group
    )


@noise.overridable
def drop_block2d(
    input: Tensor,
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    shared: bool = False,
    exact: bool = False,
    normalization: str = "sample",
    shard: tuple[int, int] = (0, 1),
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Drop square regions of feature maps, and scale what is left.

    Ghiasi, Lin and Le 2018, "DropBlock: a regularization method for convolutional networks",
    algorithm 1. Each place where a whole block fits has a draw, and takes a block with it at the
    rate gamma. By the paper's formula (equation 1) that is a little less than `p` in all, since
    blocks overlap; ``exact=True`` solves for the gamma at which the fraction dropped is `p`.

    Args:
        input: floating-point tensor (N, C, H, W) or (C, H, W), of any strides.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor, with which a rate that
            changes compiles once (the paper's grows from 0).
        block_size: the block's edge, odd or even, or (height, width); each from 1 to the map's.
        training: whether to drop. Without it the input itself is returned.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form: the call is then a pure function of it.
        shared: whether the channels of a sample share their blocks, as in the authors' code.
        exact: whether gamma is solved for, overlaps and borders included.
        normalization: what the rest is multiplied by: "sample" (a sample's size over the number of
            its elements that are kept: the same under any split of the batch), "batch" (the
            same over the whole batch, as in the paper), or "expectation" (one over the fraction
            that is kept on average).
        shard: ``(start, stride)`` of the samples in a larger batch: sample n of the input is
            number ``start + stride * n``.
        group: the processes over which "batch" counts. Each of them must make the call, once.

    Returns:
        Tensor of the input's shape, type and strides. A dropped element is +0, also where the
        input is NaN or infinite. Where nothing is left of a sample, or of the batch, all is 0.

    Raises:
        TypeError: `input` is no floating-point tensor, `p` no number, `block_size` no integer, or
            `key` no key.
        ValueError: `input` has another rank, `p` is outside [0, 1], a block doesn't fit into the
            map, `normalization` is unknown, "batch" and a shard come without a group, or a group
            without "batch".

    Example:
        >>> from dropseed import Key
        >>> drop_block2d(torch.ones(1, 1, 4, 6), 0.2, 2, key=Key(5))
        tensor([[[[1.2000, 1.2000, 1.2000, 1.2000, 1.2000, 1.2000],
                  [1.2000, 1.2000, 0.0000, 0.0000, 1.2000, 1.2000],
                  [1.2000, 1.2000, 0.0000, 0.0000, 1.2000, 1.2000],
                  [1.2000, 1.2000, 1.2000, 1.2000, 1.2000, 1.2000]]]])
    """
    return _drop_block(
        2, input, p, block_size, training, inplace, key, shared, exact, normalization, shard, group
    )


@noise.overridable
def drop_block3d(
    input: Tensor,
    p: float | Tensor = 0.1,
    block_size: int | Sequence[int] = 7,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    shared: bool = False,
    exact: bool = False,
    normalization: str = "sample",
    shard: tuple[int, int] = (0, 1),
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Drop cubes of volumes' feature maps; see `drop_block2d`.

    Args:
        input: (N, C, D, H, W) or (C, D, H, W).
        p: as in `drop_block2d`, as are the other arguments.
        block_size: the cube's edge, or (depth, height, width).
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        shared: whether the channels share their blocks.
        exact: whether gamma is solved for.
        normalization: "sample", "batch" or "expectation".
        shard: which samples of a larger batch these are.
        group: the processes that share a batch.

    Returns:
        As `drop_block2d` does.

    Raises:
        TypeError, ValueError: as `drop_block2d` does.

    Example:
        >>> from dropseed import Key
        >>> output = drop_block3d(torch.ones(1, 1, 4, 4, 4), 0.3, 2, key=Key(0))
        >>> int((output == 0).sum())
        16
    """
    return _drop_block(
        3, input, p, block_size, training, inplace, key, shared, exact, normalization, shard, group
    )


def _drop_block(
    rank: int,
    input: Tensor,
    p: float | Tensor,
    block_size: int | Sequence[int],
    training: bool,
    inplace: bool,
    key: Key | Tensor | None,
    shared: bool,
    exact: bool,
    normalization: str,
    shard: tuple[int, int],
    group: dist.ProcessGroup | None,
) -> Tensor:
    noise.check_input(input)
    noise.check_dense(input)
    noise.check_rate(p)
    check_normalization(normalization)
    if input.dim() not in (rank + 1, rank + 2):
        axes = f"(N, C, {_AXES[rank]}) or (C, {_AXES[rank]})"
        raise InvalidValueError(f"`input` must be {axes}; got shape {tuple(input.shape)}.")
    batch = input if input.dim() == rank + 2 else input.unsqueeze(0)
    order = noise.checked_shard(shard, batch.shape[0], math.prod(batch.shape[1:]))
    _check_group(group, normalization, order)
    # Gamma depends on them: they must be numbers, not the compiler's symbols.
    sizes = tuple(index(size) for size in batch.shape[2:])
    if not training or 0 in sizes or (not isinstance(p, Tensor) and p == 0):
        return input
    edges = tuple(index(edge) for edge in block_edges(block_size, sizes))
    if batch.numel() == 0 and group is None:
        return input
    threshold, scale = _strength(p, sizes, edges, exact, normalization)
    if key is None and not isinstance(threshold, Tensor) and threshold == ALL:
        key = Key(0)  # every draw of any key drops
    numbers = noise.key_for(key, input), torch.as_tensor(threshold), edges, shared, order
    if normalization == "batch":
        scale = scale * _batch_factor(batch, *numbers, group)
    factor = torch.as_tensor(scale, dtype=torch.float64)
    output = _blocks(batch, factor, *numbers, normalization == "sample")
    output = output if batch is input else output.squeeze(0)
    return input.copy_(output) if inplace else output


def check_normalization(normalization: Any) -> None:
    """Refuse an unknown normalization."""
    if normalization not in NORMALIZATIONS:
        raise InvalidValueError(
            f'`normalization` must be "sample", "batch" or "expectation"; got {normalization!r}.'
        )


def _check_group(group: Any, normalization: str, order: tuple[int, int]) -> None:
    if group is not None and not isinstance(group, dist.ProcessGroup):
        raise InvalidTypeError(
            f"`group` must be a process group that this process is in; got {group!r}."
        )
    if group is not None and normalization != "batch":
        raise InvalidValueError(
            f'`group` must be None unless `normalization` is "batch"; that is {normalization!r}.'
        )
    if normalization == "batch" and order != (0, 1) and group is None:
        raise InvalidValueError(
            f'`normalization` "batch" under the shard {order} must have a `group` to count over. '
            'Give one, or use "sample" or "expectation", which need none.'
        )


# ---- gamma -----------------------------------------------------------------------------------


def _strength(
    p: float | Tensor, sizes: tuple[int, ...], edges: tuple[int, ...], exact: bool, norm: str
) -> tuple[Any, Any]:
    """Gamma's threshold, and one over the fraction that is kept on average, where it is used."""
    if not isinstance(p, Tensor):
        # Integers, because the compiler may take a float for a symbol.
        ratio = noise.checked_rate(p).value.as_integer_ratio()
        number, scale = _number_strength(ratio, sizes, edges, exact)
        return number, scale if norm == "expectation" else 1.0
    paper, *table = _constants(sizes, edges)
    places, weights = (torch.tensor(row, dtype=torch.float64, device=p.device) for row in table)
    rate = p.double()
    gamma = _tensor_gamma(rate, places, weights) if exact and len(table[0]) > 1 else rate * paper
    valid = (rate >= 0) & (rate <= 1)
    threshold, gamma = noise.tensor_threshold(torch.where(valid, gamma, torch.nan))
    if norm != "expectation":
        return threshold, torch.where(valid, 1.0, torch.nan)
    kept = (weights * (1 - gamma) ** places).sum()
    return threshold, torch.where(kept == 0, 0.0, 1 / kept)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _number_strength(*numbers: Any) -> tuple[int, float]:
    return _cached_strength(*numbers)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _constants(*shapes: Any) -> tuple[float, list[int], list[float]]:
    return _cached_constants(*shapes)


@lru_cache(maxsize=1024)
def _cached_strength(
    ratio: tuple[int, int], sizes: tuple[int, ...], edges: tuple[int, ...], exact: bool
) -> tuple[int, float]:
    covered, rate = coverage(sizes, edges), ratio[0] / ratio[1]
    gamma = exact_gamma(rate, covered) if exact else rate * gamma_factor(sizes, edges)
    threshold = Rate(gamma).threshold
    kept = kept_fraction(threshold / ALL, covered)
    return threshold, 1 / kept if kept else 0.0


@lru_cache(maxsize=1024)
def _cached_constants(
    sizes: tuple[int, ...], edges: tuple[int, ...]
) -> tuple[float, list[int], list[float]]:
    covered = coverage(sizes, edges)
    return gamma_factor(sizes, edges), list(covered), list(covered.values())


def _tensor_gamma(p: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """`exact_gamma` in tensors: the same steps, all of them."""
    at = torch.zeros_like(p)
    for _ in range(STEPS):
        lost = (weights * torch.expm1(-places * at)).sum()
        remaining = weights * torch.exp(-places * at)
        kept, slope = remaining.sum(), (remaining * places).sum()
        logarithm = torch.where(kept > 0.5, torch.log1p(lost), torch.log(kept))
        at = at + (logarithm - torch.log1p(-p)) * kept / slope
    return torch.where((p == 0) | (p == 1), p, -torch.expm1(-at))


# ---- the routes ------------------------------------------------------------------------------


def _mask(
    shape: Sequence[int],
    key: Tensor,
    threshold: Tensor,
    block: Sequence[int],
    shared: bool,
    order: Sequence[int],
) -> Tensor:
    """The mask of the input's size, by the paper's picture."""
    n, channels, *sizes = shape
    places = [size - edge + 1 for size, edge in zip(sizes, block, strict=True)]
    noise_shape = [n, *places] if shared else [n, channels, *places]
    draws = torch.ops.dropseed.keep_tensor_rate(key, threshold, noise_shape, False, order)
    mask = ~eager.dilated(~draws, block)
    return mask.unsqueeze(1).expand(shape) if shared else mask


def _dense(
    input: Tensor,
    scale: Tensor,
    key: Tensor,
    threshold: Tensor,
    block: Sequence[int],
    shared: bool,
    order: Sequence[int],
    by_sample: bool,
) -> Tensor:
    """The paper's picture in torch operations: a mask, and a factor."""
    mask = _mask(input.shape, key, threshold, block, shared, order)
    if by_sample:
        kept = mask.flatten(1).sum(1)
        scale = scale * _quotient(torch.full_like(kept, math.prod(input.shape[1:])), kept)
        scale = scale.reshape(-1, *[1] * (input.dim() - 1))
    return eager.apply(input, autograd.arranged(mask, input), scale)


def _quotient(size: Tensor, kept: Tensor) -> Tensor:
    """What is left is multiplied by, if nothing is left 0."""
    # Both are tensors: torch divides a number by a tensor less exactly.
    return torch.where(kept == 0, 0.0, size.double() / kept.double())


def _kernel(
    input: Tensor,
    scale: Tensor,
    key: Tensor,
    threshold: Tensor,
    block: Sequence[int],
    shared: bool,
    order: Sequence[int],
    by_sample: bool,
) -> Tensor:
    """The CPU kernel where there is one for the input, else the picture."""
    output = torch.empty_like(input)
    if not launch.has_kernel(input):
        return output.copy_(_dense(input, scale, key, threshold, block, shared, order, by_sample))
    if input.numel() == 0:
        return output
    last = not input.is_contiguous() and input.movedim(1, -1).is_contiguous()
    rows = launch.contiguous(input.movedim(1, -1) if last else input)
    direct = output.stride() == (input.stride() if last else rows.stride())
    target = (output.movedim(1, -1) if last else output) if direct else torch.empty_like(rows)
    launch.cpu_kernel().drop_block(
        launch.buffer(target).reshape(-1),
        launch.buffer(rows).reshape(-1),
        *_shapes(input.shape, block),
        launch.key_words(key.tolist()),
        launch.number(threshold),
        None if by_sample else float(scale),
        shared=shared,
        order=tuple(order),
        channels_last=last,
        threads=torch.get_num_threads(),
    )
    return output if direct else output.copy_(target)


def _shapes(shape: Sequence[int], block: Sequence[int]) -> tuple[Any, Any]:
    """The input's shape and the block's edges as the kernel takes them: in three dimensions."""
    thin = [1] * (3 - len(block))
    return (*shape[:2], *thin, *shape[2:]), (*thin, *block)


def _fake(input: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(input)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    _, scale, key, threshold, *ctx.numbers = inputs
    ctx.save_for_backward(scale, key, threshold)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return _blocks(gradient, *ctx.saved_tensors, *ctx.numbers), *[None] * 7


_blocks = autograd.recomputed(
    "drop_block",
    "(Tensor input, Tensor scale, Tensor key, Tensor threshold, SymInt[] block, bool shared, "
    "SymInt[] order, bool by_sample) -> Tensor",
    _dense,
    _fake,
    _setup,
    _backward,
    _kernel,
)


# ---- the factor of a batch ---------------------------------------------------------------------


def _batch_factor(
    batch: Tensor,
    key: Tensor,
    threshold: Tensor,
    block: Sequence[int],
    shared: bool,
    order: Sequence[int],
    group: dist.ProcessGroup | None,
) -> Tensor:
    """The batch's size over what is kept of it. Backward uses the same, and counts no more."""
    if autograd.is_transformed(batch):
        kept = _mask(batch.shape, key, threshold, block, shared, order).sum()
    else:
        count = torch.ops.dropseed.drop_block_kept
        kept = count(key, threshold, batch.shape, block, shared, order)
    both = torch.stack((torch.full_like(kept, batch.numel()), kept))
    if group is not None:
        dist.all_reduce(both, group=group)
    return _quotient(*both.unbind())


def _kept(
    key: Tensor,
    threshold: Tensor,
    shape: Sequence[int],
    block: Sequence[int],
    shared: bool,
    order: Sequence[int],
) -> Tensor:
    """How many elements of a batch are kept."""
    if not key.is_cpu:
        return _mask(shape, key, threshold, block, shared, order).sum()
    dropped = torch.zeros(shape[0], dtype=torch.int64)
    if math.prod(shape):
        launch.cpu_kernel().drop_block_counts(
            dropped.numpy(),
            *_shapes(shape, block),
            launch.key_words(key.tolist()),
            launch.number(threshold),
            shared=shared,
            order=tuple(order),
        )
    return math.prod(shape) - dropped.sum()


autograd.define(
    "drop_block_kept",
    "(Tensor key, Tensor threshold, SymInt[] shape, SymInt[] block, bool shared, SymInt[] order)"
    " -> Tensor",
    _kept,
    lambda key, *others: key.new_empty(()),
)
