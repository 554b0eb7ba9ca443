"""The one place where dropout meets autograd: three routes with the same bits, and their picker.

Backward is forward on the gradient with the same key, so a route keeps the key and nothing of the
input's size, except where a functorch transform needs a mask to differentiate through.

| asked in this order | route | kept for backward |
| --- | --- | --- |
| a functorch transform or a forward-AD level is active | mask, then `torch.where` | the mask |
| compiled, traced, dispatch mode, subclass, meta, legacy batch | `torch.library` op | the key |
| plain eager | `autograd.Function` | the key |
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dropseed.errors import InvalidValueError
from dropseed.kernels import eager
from dropseed.mask.rate import ALL
from dropseed.mask.shard import whole

_PLAIN_TYPES = (Tensor, nn.Parameter)
_BITS = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}
_LIKE = {  # the CPU kernel's types: NumPy knows no bfloat16, and Numba no float16
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.float16: np.empty(0, np.int16),
    torch.bfloat16: np.empty(0, np.uint16),
}

_draws = lru_cache(maxsize=4096)(whole)


def dropout(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...] = (),
    inplace: bool = False,
) -> Tensor:
    """Dropout under a key, by the route that this call needs.

    Args:
        input: floating-point or complex tensor.
        key: int64 tensor on the input's device: a 0-d seed or ``[seed, site + 2**32 * step]``.
        threshold: integer in [0, 2**32], or a 0-d int64 tensor.
        scale: the survivors' factor, or a 0-d float64 tensor.
        shared: the axes along which elements share a draw.
        inplace: whether to overwrite the input.

    Returns:
        A tensor of the input's shape, type and strides; the input itself if in place.
    """
    chosen = route(input)
    if chosen is _by_function:
        return chosen(input, key, threshold, scale, shared, inplace)
    output = chosen(input, key, threshold, scale, shared)
    return input.copy_(output) if inplace else output


def route(input: Tensor) -> Callable[..., Tensor]:
    """The first route of the table that this call needs. Backward asks again."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return _by_mask
    if (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or type(input) not in _PLAIN_TYPES
        or input.is_meta
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.is_legacy_batchedtensor(input)
    ):
        return _by_op
    return _by_function


def _define(
    name: str, schema: str, implementation: Callable[..., Tensor], fake: Callable[..., Tensor]
) -> None:
    """Register an op of this library, for every device and for shapes alone."""
    name = f"dropseed::{name}"
    torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "default", implementation)
    torch.library.register_fake(name, fake)


# ---- route 1: a mask and torch.where ---------------------------------------------------------


def _by_mask(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...],
) -> Tensor:
    shape = [1 if axis in shared else size for axis, size in enumerate(input.shape)]
    ops = torch.ops.dropseed
    op = ops.keep_tensor_rate if isinstance(threshold, Tensor) else ops.keep
    mask: Tensor = op(key, threshold, shape, False)
    if not input.is_contiguous():
        # `torch.where` takes its output's strides from the mask, and they should be the input's.
        strides = torch.empty_like(input, device="meta").stride()
        order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
        back = [order.index(axis) for axis in range(len(shape))]
        mask = mask.permute(order).contiguous().permute(back)
    return eager.apply(input, mask, scale)


def _keep(keys: Tensor, threshold: Any, shape: Sequence[int], batched: bool) -> Tensor:
    """A mask of `shape`; if batched, one for each key, and each threshold if that is a tensor."""
    batch = keys if batched else keys[None]
    thresholds = (
        threshold if batched and isinstance(threshold, Tensor) else [threshold] * len(batch)
    )
    out = torch.empty((len(batch), *shape), dtype=torch.bool, device=keys.device)
    if keys.device.type != "cpu":
        for mask, key, one in zip(out, batch, thresholds, strict=True):
            mask.copy_(eager.keep(key, one, shape))
    else:
        kernel, buffer, draws = _cpu_kernel(), out.numpy(), _draws(tuple(shape))
        for i, (key, one) in enumerate(zip(batch.tolist(), thresholds, strict=True)):
            threads = torch.get_num_threads()
            kernel.keep(buffer[i, ...], draws, _words(key), _number(one), threads=threads)
    return out if batched else out[0]


def _keep_fake(keys: Tensor, threshold: Any, shape: Sequence[int], batched: bool) -> Tensor:
    return keys.new_empty((*keys.shape[:batched], *shape), dtype=torch.bool)


def _keep_vmap(
    info: Any, in_dims: Any, keys: Tensor, threshold: Any, shape: Sequence[int], batched: bool
) -> tuple[Tensor, int]:
    """One mask for each example whose key or rate is its own; a batch of batches is flattened."""

    def lead(tensor: Tensor, dim: int | None) -> Tensor:
        size = info.batch_size
        return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)

    ops, keys = torch.ops.dropseed, lead(keys, in_dims[0])
    outer = keys.shape[:2]
    op = ops.keep
    if isinstance(threshold, Tensor):
        op, threshold = ops.keep_tensor_rate, lead(threshold, in_dims[1])
        threshold = threshold.flatten(0, 1) if batched else threshold
    masks: Tensor = op(keys.flatten(0, 1) if batched else keys, threshold, shape, True)
    return (masks.reshape(*outer, *masks.shape[1:]) if batched else masks), 0


for _name, _rate in (("keep", "int threshold"), ("keep_tensor_rate", "Tensor threshold")):
    _schema = f"(Tensor keys, {_rate}, SymInt[] shape, bool batched) -> Tensor"
    _define(_name, _schema, _keep, _keep_fake)
    torch.library.register_vmap(f"dropseed::{_name}", _keep_vmap)


# ---- route 2: a torch.library op ---------------------------------------------------------------


def _by_op(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...],
) -> Tensor:
    ops = torch.ops.dropseed
    op = ops.dropout_tensor_rate if isinstance(threshold, Tensor) else ops.dropout
    output: Tensor = op(input, key, threshold, scale, shared)
    return output


def _op(input: Tensor, key: Tensor, threshold: Any, scale: Any, shared: Sequence[int]) -> Tensor:
    return _compute(input, key, threshold, scale, tuple(shared), inplace=False)


def _op_fake(
    input: Tensor, key: Tensor, threshold: Any, scale: Any, shared: Sequence[int]
) -> Tensor:
    return torch.empty_like(input)


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, key, ctx.threshold, ctx.scale, shared = inputs
    ctx.shared = tuple(shared)
    ctx.save_for_backward(key)


def _op_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    return dropout(gradient, key, ctx.threshold, ctx.scale, ctx.shared), None, None, None, None


for _name, _strength in (
    ("dropout", "int threshold, float scale"),
    # A rate that is a tensor stays one, so that a schedule compiles once.
    ("dropout_tensor_rate", "Tensor threshold, Tensor scale"),
):
    _schema = f"(Tensor input, Tensor key, {_strength}, int[] shared) -> Tensor"
    _define(_name, _schema, _op, _op_fake)
    torch.library.register_autograd(f"dropseed::{_name}", _op_backward, setup_context=_op_setup)


# ---- route 3: a plain autograd.Function ------------------------------------------------------


def _by_function(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...],
    inplace: bool,
) -> Tensor:
    tracked = torch.is_grad_enabled() and input.requires_grad
    if inplace and tracked and (input.is_leaf or input._is_view()):
        # Torch may refuse to change these. `copy_` does so while they are still untouched.
        return input.copy_(_by_function(input, key, threshold, scale, shared, False))
    if not tracked:
        if inplace and not input.is_inference():
            torch.autograd.graph.increment_version(input)  # autograd sees no kernel write
        return _compute(input, key, threshold, scale, shared, inplace)
    apply: Callable[..., Tensor] = _Dropout.apply
    return apply(input, key, threshold, scale, shared, inplace)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        key: Tensor,
        threshold: Tensor | int,
        scale: Tensor | float,
        shared: tuple[int, ...],
        inplace: bool,
    ) -> Tensor:
        ctx.threshold, ctx.scale, ctx.shared = threshold, scale, shared
        ctx.save_for_backward(key)
        if inplace:
            ctx.mark_dirty(input)
        return _compute(input, key, threshold, scale, shared, inplace)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (key,) = ctx.saved_tensors
        result = dropout(gradient, key, ctx.threshold, ctx.scale, ctx.shared)
        return result, None, None, None, None, None


# ---- the kernels -----------------------------------------------------------------------------


def _compute(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...],
    inplace: bool,
) -> Tensor:
    """Run the kernel of the input's device; in place or into a new tensor of the same strides."""
    like = _LIKE.get(input.dtype)
    if like is None or not input.is_cpu:
        shape = [1 if axis in shared else size for axis, size in enumerate(input.shape)]
        output = eager.apply(input, eager.keep(key, threshold, shape), scale)
        return input.copy_(output) if inplace else torch.empty_like(input).copy_(output)
    words, threads = _words(key.tolist()), torch.get_num_threads()
    threshold, scale = _number(threshold), float(scale)
    lazy = input.is_neg() or input._is_zerotensor()
    if lazy or shared or not input.is_contiguous():
        return _compute_strided(input, words, threshold, scale, shared, inplace, lazy, threads)
    output = input if inplace else torch.empty_like(input)
    _cpu_kernel().dropout_flat(
        output.data_ptr(),
        input.data_ptr(),
        like,
        input.numel(),
        words,
        threshold,
        scale,
        threads=threads,
    )
    return output


def _compute_strided(
    input: Tensor,
    words: tuple[int, int, int, int],
    threshold: int,
    scale: float,
    shared: tuple[int, ...],
    inplace: bool,
    lazy: bool,
    threads: int,
) -> Tensor:
    # `empty_like` keeps the strides of what is dense in memory; anything else is copied first.
    output = torch.empty_like(input)
    dense = not lazy and output.stride() == input.stride()
    if inplace and dense:
        output = input
    source = input if dense else output.copy_(input)
    y = _buffer(output)
    x = y if source is output else _buffer(source)
    draws = _draws(input.shape, shared)
    _cpu_kernel().dropout(y, x, draws, words, threshold, scale, threads=threads)
    return input.copy_(output) if inplace and not dense else output


def _buffer(tensor: Tensor) -> Any:
    if tensor.requires_grad:
        tensor = tensor.detach()
    bits = _BITS.get(tensor.dtype)
    return (tensor if bits is None else tensor.view(bits)).numpy()


def _cpu_kernel() -> Any:
    """`kernels.cpu`, imported at the first call: Numba takes half a second."""
    kernel = sys.modules.get("dropseed.kernels.cpu")
    if kernel is None:
        from dropseed.kernels import cpu as kernel
    return kernel


def _words(key: int | list[int]) -> tuple[int, int, int, int]:
    seed, place = (key, 0) if isinstance(key, int) else key
    low = 0xFFFFFFFF
    return seed & low, seed >> 32 & low, place & low, place >> 32 & low


def _number(threshold: Tensor | int) -> int:
    number = int(threshold)
    if not 0 <= number <= ALL:  # a tensor rate is first seen here
        raise InvalidValueError(
            "`p` must be in [0, 1]; got a tensor that is not. "
            "It is the fraction dropped, not the fraction kept."
        )
    return number
