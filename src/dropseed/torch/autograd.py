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

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dropseed.torch import laws
from dropseed.torch.laws import Bernoulli, Gaussian, Law

_PLAIN_TYPES = (Tensor, nn.Parameter)


def noise(
    input: Tensor,
    key: Tensor,
    law: Law,
    shared: tuple[int, ...] = (),
    inplace: bool = False,
) -> Tensor:
    """Noise under a key, by the route that this call needs.

    Args:
        input: floating-point or complex tensor.
        key: int64 tensor on the input's device: a 0-d seed or ``[seed, site + 2**32 * step]``.
        law: what happens to a value, given its draw.
        shared: the axes along which elements share a draw; none for Gaussian noise.
        inplace: whether to overwrite the input.

    Returns:
        A tensor of the input's shape, type and strides; the input itself if in place.
    """
    chosen = route(input)
    if chosen is _by_function:
        return chosen(input, key, law, shared, inplace)
    output = chosen(input, key, law, shared)
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


def define(
    name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Register an op of this library, for every device and for shapes alone."""
    name = f"dropseed::{name}"
    torch.library.define(name, schema, tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.impl(name, "default", implementation)
    torch.library.register_fake(name, fake)


def is_transformed(input: Tensor) -> bool:
    """Whether a functorch transform is active, or a level of forward AD open."""
    return route(input) is _by_mask


def is_eager(input: Tensor) -> bool:
    """Whether a call on this input is neither compiled, traced nor transformed."""
    return route(input) is _by_function


def recomputed(
    name: str,
    schema: str,
    compute: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    setup: Callable[..., None],
    backward: Callable[..., Any],
    kernel: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    """A function by the routes of `noise`, for an operation that keeps a key and not its draws.

    Args:
        name: the op's name in torch's library.
        schema: its arguments, of which the first tensor is asked for the route, and its result.
        compute: the operation in torch operations that autograd can look through.
        fake: the same for shapes alone.
        setup: ``setup(ctx, inputs, output)`` keeps what `backward` needs, without the output.
        backward: ``backward(ctx, gradient)``, in torch operations too.
        kernel: the operation by faster means, where autograd need not look through it.

    Returns:
        The function.
    """
    kernel = kernel or compute
    define(name, schema, kernel, fake)
    torch.library.register_autograd(f"dropseed::{name}", backward, setup_context=setup)

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        setup(ctx, inputs, None)
        return kernel(*inputs)

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(name.capitalize(), (torch.autograd.Function,), methods)
    routes = {
        _by_mask: compute,
        _by_op: getattr(torch.ops.dropseed, name),
        _by_function: function.apply,
    }

    def call(*inputs: Any) -> Tensor:
        output: Tensor = routes[route(inputs[0])](*inputs)
        return output

    return call


def bilinear(
    name: str,
    numbers: str,
    dense: Callable[..., Tensor],
    product: Callable[..., Tensor],
    gradients: Callable[..., tuple[Tensor, Tensor]],
    shape: Callable[..., Sequence[int]],
) -> Callable[..., Tensor]:
    """A product of an input and a weight, parts of which drop out: by two of the routes.

    With the gradient it makes a form that is linear in each of three tensors, so every derivative
    is one of its two ops again: the product, or both gradients at once.

    Args:
        name: the product op's name in torch's library; that of the gradients ends in "_backward".
        numbers: the arguments behind input, weight, key, threshold and scale, as a schema.
        dense: the product in torch operations that autograd can look through, masks and all.
        product: the product by faster means.
        gradients: ``gradients(input, weight, gradient, *others)`` gives those of input and weight.
        shape: ``shape(input, weight, *numbers)`` of the product.

    Returns:
        The function, of the arguments of the op.
    """
    ops, back = torch.ops.dropseed, f"{name}_backward"
    others = f"Tensor key, Tensor threshold, Tensor scale, {numbers}"

    def fake(
        input: Tensor, weight: Tensor, key: Any, threshold: Any, scale: Any, *rest: Any
    ) -> Any:
        return input.new_empty(shape(input, weight, *rest))

    def fake_back(input: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        return input.new_empty(input.shape), weight.new_empty(weight.shape)

    define(name, f"(Tensor input, Tensor weight, {others}) -> Tensor", product, fake)
    schema = f"(Tensor input, Tensor weight, Tensor gradient, {others}) -> (Tensor, Tensor)"
    define(back, schema, gradients, fake_back)

    def call(*inputs: Any) -> Tensor:
        dense_route = is_transformed(inputs[0])
        output: Tensor = dense(*inputs) if dense_route else getattr(ops, name)(*inputs)
        return output

    def call_back(input: Tensor, weight: Tensor, gradient: Tensor, *rest: Any) -> Any:
        if is_transformed(gradient):
            pull = torch.func.vjp(lambda x, w: dense(x, w, *rest), input, weight)[1]
            return pull(gradient)
        return getattr(ops, back)(input, weight, gradient, *rest)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*(one for one in inputs if isinstance(one, Tensor)))
        ctx.numbers = [one for one in inputs if not isinstance(one, Tensor)]

    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, w, *rest = ctx.saved_tensors
        none = [None] * (3 + len(ctx.numbers))
        return *call_back(x, w, gradient, *rest, *ctx.numbers), *none

    def backward_again(ctx: Any, to_x: Tensor, to_w: Tensor) -> tuple[Any, ...]:
        x, w, gradient, *rest = ctx.saved_tensors
        rest += ctx.numbers
        to_gradient = call(to_x, w, *rest) + call(x, to_w, *rest)
        return *call_back(to_x, to_w, gradient, *rest), to_gradient, *[None] * len(rest)

    register = torch.library.register_autograd
    register(f"dropseed::{name}", backward, setup_context=setup)
    register(f"dropseed::{back}", backward_again, setup_context=setup)
    return call


# ---- route 1: a mask and torch.where ---------------------------------------------------------


def _by_mask(input: Tensor, key: Tensor, law: Law, shared: tuple[int, ...]) -> Tensor:
    shape = laws.noise_shape(input, shared)
    ops = torch.ops.dropseed
    draws: Tensor
    if isinstance(law, Gaussian):
        draws = ops.normals(key, shape, False)
    else:
        op = ops.keep_tensor_rate if law.rate_is_tensor else ops.keep
        draws = op(key, law.threshold, shape, False)
    return laws.by_draws(law, input, arranged(draws, input))


def arranged(draws: Tensor, input: Tensor) -> Tensor:
    """Draws with their axes in the memory order of the input's.

    `torch.where` takes its output's strides from the mask, and they should be the input's.
    """
    if input.is_contiguous():
        return draws
    strides = torch.empty_like(input, device="meta").stride()
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    back = [order.index(axis) for axis in range(len(strides))]
    return draws.permute(order).contiguous().permute(back)


def _keep_fake(
    keys: Tensor, threshold: Any, shape: Sequence[int], batched: bool, order: Sequence[int] = (0, 1)
) -> Tensor:
    return keys.new_empty((*keys.shape[:batched], *shape), dtype=torch.bool)


def _normals_fake(keys: Tensor, shape: Sequence[int], batched: bool) -> Tensor:
    return keys.new_empty((*keys.shape[:batched], *shape), dtype=torch.float32)


def _keep_vmap(
    info: Any,
    in_dims: Any,
    keys: Tensor,
    threshold: Any,
    shape: Sequence[int],
    batched: bool,
    order: Sequence[int] = (0, 1),
) -> tuple[Tensor, int]:
    """One mask for each example whose key or rate is its own; a batch of batches is flattened."""
    ops, keys = torch.ops.dropseed, _lead(info, keys, in_dims[0])
    outer = keys.shape[:2]
    op = ops.keep
    if isinstance(threshold, Tensor):
        op, threshold = ops.keep_tensor_rate, _lead(info, threshold, in_dims[1])
        threshold = threshold.flatten(0, 1) if batched else threshold
    keys = keys.flatten(0, 1) if batched else keys
    masks: Tensor = op(keys, threshold, shape, True, order)
    return (masks.reshape(*outer, *masks.shape[1:]) if batched else masks), 0


def _normals_vmap(
    info: Any, in_dims: Any, keys: Tensor, shape: Sequence[int], batched: bool
) -> tuple[Tensor, int]:
    keys = _lead(info, keys, in_dims[0])
    outer = keys.shape[:2]
    draws: Tensor = torch.ops.dropseed.normals(keys.flatten(0, 1) if batched else keys, shape, True)
    return (draws.reshape(*outer, *draws.shape[1:]) if batched else draws), 0


def _lead(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    """A tensor with the examples in front."""
    size = info.batch_size
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


for _name, _rate in (("keep", "int threshold"), ("keep_tensor_rate", "Tensor threshold")):
    _schema = (
        f"(Tensor keys, {_rate}, SymInt[] shape, bool batched, SymInt[] order=[0, 1]) -> Tensor"
    )
    define(_name, _schema, laws.draw_masks, _keep_fake)
    torch.library.register_vmap(f"dropseed::{_name}", _keep_vmap)

_schema = "(Tensor keys, SymInt[] shape, bool batched) -> Tensor"
define("normals", _schema, laws.draw_normals, _normals_fake)
torch.library.register_vmap("dropseed::normals", _normals_vmap)


# ---- route 2: a torch.library op ---------------------------------------------------------------


def _by_op(input: Tensor, key: Tensor, law: Law, shared: tuple[int, ...]) -> Tensor:
    ops = torch.ops.dropseed
    output: Tensor
    if isinstance(law, Gaussian):
        op = ops.gaussian_tensor_rate if law.rate_is_tensor else ops.gaussian
        output = op(input, key, law.sigma)
    else:
        op = ops.dropout_tensor_rate if law.rate_is_tensor else ops.dropout
        output = op(input, key, law.threshold, *(*law.factors, None, None)[:3], shared)
    return output


def _dropout_law(
    threshold: Any, scale: Any, shift: Any, fill: Any, shared: Sequence[int]
) -> tuple[Law, Any]:
    factors = (scale,) if shift is None else (scale, shift, fill)
    return Bernoulli(threshold, factors), tuple(shared)


def _gaussian_law(sigma: Any) -> tuple[Law, Any]:
    return Gaussian(sigma), ()


def _define_noise(name: str, numbers: str, law_of: Callable[..., tuple[Law, Any]]) -> None:
    """Register a law as an op, whose arguments after the key are its numbers."""

    def forward(input: Tensor, key: Tensor, *arguments: Any) -> Tensor:
        law, shared = law_of(*arguments)
        return laws.compute(law, input, key, shared, False)

    def fake(input: Tensor, key: Tensor, *arguments: Any) -> Tensor:
        return torch.empty_like(input)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, key, *ctx.arguments = inputs
        ctx.save_for_backward(key)

    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (key,) = ctx.saved_tensors
        law, shared = law_of(*ctx.arguments)
        none = [None] * len(ctx.arguments)
        return noise(gradient, key, law.derivative, shared), None, *none

    define(name, f"(Tensor input, Tensor key, {numbers}) -> Tensor", forward, fake)
    torch.library.register_autograd(f"dropseed::{name}", backward, setup_context=setup)


for _name, _int, _float in (
    ("", "int", "float"),
    ("_tensor_rate", "Tensor", "Tensor"),  # it stays one, so that a schedule compiles once
):
    _define_noise(
        f"dropout{_name}",
        f"{_int} threshold, {_float} scale, {_float}? shift, {_float}? fill, int[] shared",
        _dropout_law,
    )
    _define_noise(f"gaussian{_name}", f"{_float} sigma", _gaussian_law)


# ---- route 3: a plain autograd.Function ------------------------------------------------------


def _by_function(
    input: Tensor, key: Tensor, law: Law, shared: tuple[int, ...], inplace: bool
) -> Tensor:
    tracked = torch.is_grad_enabled() and input.requires_grad
    if inplace:
        frozen = input.is_inference() and not torch.is_inference_mode_enabled()
        if frozen or (tracked and (input.is_leaf or input._is_view())):
            # Torch may refuse to change these. `copy_` does so while they are still untouched.
            return input.copy_(_by_function(input, key, law, shared, False))
    if not tracked:
        if inplace and not input.is_inference():
            torch.autograd.graph.increment_version(input)  # autograd sees no kernel write
        return laws.compute(law, input, key, shared, inplace)
    apply: Callable[..., Tensor] = _Noise.apply
    return apply(input, key, law, shared, inplace)


class _Noise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, key: Tensor, law: Law, shared: tuple[int, ...], inplace: bool
    ) -> Tensor:
        ctx.law, ctx.shared = law.derivative, shared
        ctx.save_for_backward(key)
        if inplace:
            ctx.mark_dirty(input)
        return laws.compute(law, input, key, shared, inplace)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (key,) = ctx.saved_tensors
        return noise(gradient, key, ctx.law, ctx.shared), None, None, None, None
