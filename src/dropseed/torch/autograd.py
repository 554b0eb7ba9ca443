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
_CPU_TYPES = (torch.float32, torch.float64, *_BITS)

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


# ---- route 1: a mask and torch.where ---------------------------------------------------------


def _by_mask(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...],
) -> Tensor:
    shape = [1 if axis in shared else size for axis, size in enumerate(input.shape)]
    mask = torch.ops.dropseed.keep(key, _as_tensor(threshold, torch.int64, key), shape)
    # `torch.where` takes its output's strides from the mask, and they should be the input's.
    strides = torch.empty_like(input, device="meta").stride()
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    back = [order.index(axis) for axis in range(len(shape))]
    return eager.apply(input, mask.permute(order).contiguous().permute(back), scale)


@torch.library.custom_op("dropseed::keep", mutates_args=())
def _keep(key: Tensor, threshold: Tensor, shape: Sequence[int]) -> Tensor:
    if key.device.type != "cpu":
        return eager.keep(key, threshold, shape)
    out = torch.empty(tuple(shape), dtype=torch.bool)
    kernel, threads = _cpu_kernel(), torch.get_num_threads()
    kernel.keep(out.numpy(), _draws(tuple(shape)), _words(key), _number(threshold), threads=threads)
    return out


@_keep.register_fake
def _(key: Tensor, threshold: Tensor, shape: Sequence[int]) -> Tensor:
    return key.new_empty(tuple(shape), dtype=torch.bool)


@_keep.register_vmap
def _(
    info: Any, in_dims: Any, key: Tensor, threshold: Tensor, shape: Sequence[int]
) -> tuple[Tensor, int]:
    """One mask for each example whose key or rate is its own."""
    keys = key.movedim(in_dims[0], 0) if in_dims[0] is not None else [key] * info.batch_size
    thresholds = (
        threshold.movedim(in_dims[1], 0) if in_dims[1] is not None else [threshold] * len(keys)
    )
    masks = [_keep(k, t, shape) for k, t in zip(keys, thresholds, strict=True)]
    return torch.stack(masks), 0


# ---- route 2: a torch.library op ---------------------------------------------------------------


def _by_op(
    input: Tensor,
    key: Tensor,
    threshold: Tensor | int,
    scale: Tensor | float,
    shared: tuple[int, ...],
) -> Tensor:
    output: Tensor = torch.ops.dropseed.dropout(
        input,
        key,
        _as_tensor(threshold, torch.int64, key),
        _as_tensor(scale, torch.float64, key),
        shared,
    )
    return output


@torch.library.custom_op("dropseed::dropout", mutates_args=())
def _dropout(
    input: Tensor, key: Tensor, threshold: Tensor, scale: Tensor, shared: Sequence[int]
) -> Tensor:
    return _compute(input, key, threshold, scale, tuple(shared), inplace=False)


@_dropout.register_fake
def _(
    input: Tensor, key: Tensor, threshold: Tensor, scale: Tensor, shared: Sequence[int]
) -> Tensor:
    return torch.empty_like(input)


def _op_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, key, ctx.threshold, ctx.scale, shared = inputs
    ctx.shared = tuple(shared)
    ctx.save_for_backward(key)


def _op_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    return dropout(gradient, key, ctx.threshold, ctx.scale, ctx.shared), None, None, None, None


_dropout.register_autograd(_op_backward, setup_context=_op_setup)


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
    if input.device.type == "cpu" and input.dtype in _CPU_TYPES:
        return _compute_on_cpu(input, key, _number(threshold), float(scale), shared, inplace)
    shape = [1 if axis in shared else size for axis, size in enumerate(input.shape)]
    output = eager.apply(input, eager.keep(key, threshold, shape), scale)
    return input.copy_(output) if inplace else torch.empty_like(input).copy_(output)


def _compute_on_cpu(
    input: Tensor,
    key: Tensor,
    threshold: int,
    scale: float,
    shared: tuple[int, ...],
    inplace: bool,
) -> Tensor:
    # `empty_like` keeps the strides of what is dense in memory; anything else is copied first.
    output = torch.empty_like(input)
    lazy = input.is_neg() or input._is_zerotensor()
    dense = not lazy and (input.is_contiguous() or output.stride() == input.stride())
    if inplace and dense:
        output = input
    source = input if dense else output.copy_(input)
    x, y = _buffer(source), _buffer(output)
    draws = _draws(tuple(input.shape), shared)
    threads = torch.get_num_threads()
    _cpu_kernel().dropout(
        y, y if source is output else x, draws, _words(key), threshold, scale, threads=threads
    )
    return input.copy_(output) if inplace and not dense else output


def _buffer(tensor: Tensor) -> Any:
    tensor = tensor.detach()
    bits = _BITS.get(tensor.dtype)
    return (tensor if bits is None else tensor.view(bits)).numpy()


def _cpu_kernel() -> Any:
    """`kernels.cpu`, imported at the first call: Numba takes half a second."""
    kernel = sys.modules.get("dropseed.kernels.cpu")
    if kernel is None:
        from dropseed.kernels import cpu as kernel
    return kernel


def _words(key: Tensor) -> tuple[int, int, int, int]:
    seed, place = (key.item(), 0) if key.dim() == 0 else key.tolist()
    low = 0xFFFFFFFF
    return int(seed) & low, int(seed) >> 32 & low, place & low, place >> 32 & low


def _number(threshold: Tensor | int) -> int:
    number = int(threshold)
    if not 0 <= number <= ALL:  # a tensor rate is first seen here
        raise InvalidValueError(
            "`p` must be in [0, 1]; got a tensor that is not. "
            "It is the fraction dropped, not the fraction kept."
        )
    return number


def _as_tensor(number: Any, dtype: torch.dtype, like: Tensor) -> Tensor:
    """A 0-d tensor, made by an operation so that a tracer sees no constant from outside."""
    if isinstance(number, Tensor):
        return number
    return torch.full((), number, dtype=dtype, device=like.device)
