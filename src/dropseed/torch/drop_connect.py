"""DropConnect: weights dropped, by a mask for each sample that is never stored.

A form of three arguments, input, weight and gradient, each product of which is kept or dropped:
the layer and its gradients are the two ops of `autograd.bilinear`, and draw the same mask again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as theirs

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.mask.shard import Draws, each_dimension
from dropseed.torch import autograd, launch, noise

Sizes = int | Sequence[int]

MODES = ("sample", "batch")
_CONVOLUTIONS: tuple[Any, ...] = (None, theirs.conv1d, theirs.conv2d, theirs.conv3d)


@noise.overridable
def drop_connect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    mode: str = "sample",
    drop_bias: bool = False,
    scaling: str = "inverted",
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """A linear layer of whose weights a random fraction is dropped.

    Wan, Zeiler, Zhang, LeCun and Fergus 2013, "Regularization of neural networks using
    DropConnect", section 3: ``output = (mask * weight) @ input / (1 - p) + bias``. Each sample has
    a mask of its own, as in the paper; the products are summed while the mask is drawn, so that
    there is no tensor of masks (but for the transforms of `torch.func`, which must see them).

    Args:
        input: floating-point tensor (N, *, I), or (I,) for one sample. What lies between the first
            dimension and the last, time steps for instance, shares its sample's mask.
        weight: (O, I), of the input's type.
        bias: (O,), or None.
        p: the fraction of the weights dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn. The bias takes the
            derived key ``fold(1)``.
        mode: "sample" (noise shape (N, O, I)) or "batch" (one mask for all, noise shape (O, I)).
        drop_bias: whether the bias drops out too.
        scaling: "inverted", "original" (survivors unscaled in training, the weights times 1 - p in
            inference, as in the paper) or "none".
        shard: ``(start, stride)`` of the samples in a larger batch: sample n of the input is
            number ``start + stride * n``.

    Returns:
        (N, *, O), or (O,).

    Raises:
        TypeError: a tensor is none of floating point, the types differ, `p` is no number, or `key`
            no key.
        ValueError: the shapes don't fit, `p` is outside [0, 1], or `mode` or `scaling` unknown.

    Example:
        >>> from dropseed import Key
        >>> drop_connect_linear(torch.ones(2, 4), torch.ones(3, 4), p=0.5, key=Key(0))
        tensor([[4., 6., 4.],
                [6., 8., 4.]])
    """
    check(input, weight, bias, p, mode, scaling)
    if weight.dim() != 2 or input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise InvalidValueError(
            f"`input` and `weight` must be (N, *, I) and (O, I); "
            f"got {tuple(input.shape)} and {tuple(weight.shape)}."
        )
    batch = input.unsqueeze(0) if input.dim() == 1 else input
    order = noise.checked_shard(shard, batch.shape[0], weight.numel())
    settings = p, training, key, mode, drop_bias, scaling, order
    if math.prod(batch.shape[1:-1]) == 1:  # a sample has one position
        rows = batch if batch.dim() == 2 else batch.reshape(batch.shape[0], batch.shape[-1])
        output = _connect(theirs.linear, _linear, -1, rows, weight, bias, *settings)
        return output.reshape(*input.shape[:-1], weight.shape[0])
    return _connect(theirs.linear, _linear_of_positions, -1, input, weight, bias, *settings)


@noise.overridable
def drop_connect_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    mode: str = "sample",
    drop_bias: bool = False,
    scaling: str = "inverted",
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """A convolution in one to three dimensions of whose weights a random fraction is dropped.

    `drop_connect_linear` for convolutions: all places of a sample's map share its mask.

    Args:
        input: floating-point tensor (N, C, *L), or (C, *L) for one sample.
        weight: (O, C / groups, *K), of the input's type; its rank says in how many dimensions.
        bias: (O,), or None.
        stride: as in torch's convolutions: one integer or one a dimension.
        padding: likewise; zeros on both sides.
        dilation: likewise.
        groups: the number of groups that the channels are split into.
        p: the fraction of the weights dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        mode: "sample" (noise shape (N, *weight.shape)) or "batch" (one mask for all).
        drop_bias: whether the bias drops out too.
        scaling: "inverted", "original" or "none".
        shard: ``(start, stride)`` of the samples in a larger batch.

    Returns:
        (N, O, *M), or (O, *M).

    Raises:
        TypeError, ValueError: as `drop_connect_linear` does.

    Example:
        >>> from dropseed import Key
        >>> drop_connect_conv(torch.ones(2, 1, 4), torch.ones(1, 1, 3), p=0.5, key=Key(0))
        tensor([[[4., 4.]],
        <BLANKLINE>
                [[4., 4.]]])
    """
    check(input, weight, bias, p, mode, scaling)
    rank = weight.dim() - 2
    if rank not in (1, 2, 3) or input.dim() not in (rank + 1, rank + 2):
        raise InvalidValueError(
            f"`input` and `weight` must be (N, C, *L) and (O, C / groups, *K) with one to three "
            f"dimensions behind the channels; got {tuple(input.shape)} and {tuple(weight.shape)}."
        )
    if input.shape[-rank - 1] != weight.shape[1] * groups:
        raise InvalidValueError(
            f"`input` must have {weight.shape[1] * groups} channels for a `weight` of shape "
            f"{tuple(weight.shape)} in {groups} groups; got {tuple(input.shape)}."
        )
    batch = input if input.dim() == rank + 2 else input.unsqueeze(0)
    order = noise.checked_shard(shard, batch.shape[0], weight.numel())
    geometry: list[Any] = [
        _numbers(stride, "stride", 1, rank),
        _numbers(padding, "padding", 0, rank),
        _numbers(dilation, "dilation", 1, rank),
        groups,
    ]
    shape = _conv_shape(batch, weight, *geometry, order)
    if min(shape[2:]) < 1:
        raise InvalidValueError(
            f"`weight` must fit into the padded `input`; got {tuple(weight.shape)} for "
            f"{tuple(input.shape)}."
        )

    def plain(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = _CONVOLUTIONS[rank](input, weight, bias, *geometry)
        return output

    def masked(input: Tensor, weight: Tensor, *numbers: Any) -> Tensor:
        return _convolution(input, weight, *numbers[:3], *geometry, numbers[3])

    settings = p, training, key, mode, drop_bias, scaling, order
    output = _connect(plain, masked, 1, batch, weight, bias, *settings)
    return output if batch is input else output.squeeze(0)


def _numbers(value: Any, name: str, low: int, rank: int) -> tuple[int, ...]:
    if isinstance(value, str):
        raise InvalidTypeError(
            f"`{name}` must be integers; got {value!r}. The layers know {value!r} as torch's do."
        )
    return each_dimension(value, name, rank, low)


def check_mode(mode: Any) -> None:
    """Refuse an unknown mode."""
    if mode not in MODES:
        raise InvalidValueError(f'`mode` must be "sample" or "batch"; got {mode!r}.')


def check(input: Any, weight: Any, bias: Any, p: Any, mode: str, scaling: str) -> None:
    """Refuse what no product with dropped weights can take."""
    noise.check_input(input)
    noise.check_dense(input)
    noise.check_input(weight, "weight")
    if bias is not None:
        noise.check_input(bias, "bias")
        if bias.shape != weight.shape[:1]:
            raise InvalidValueError(
                f"`bias` must have shape {tuple(weight.shape[:1])}, one number for each of "
                f"the weight's rows; got {tuple(bias.shape)}."
            )
    casts = autocast_type(input) is not None
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.is_complex():
            raise InvalidTypeError(f"`{name}` must be real; got {tensor.dtype}.")
        if tensor.dtype != input.dtype and not casts:
            raise InvalidTypeError(
                f"`{name}` must have the type of `input`, {input.dtype}; got {tensor.dtype}."
            )
    noise.check_rate(p)
    check_mode(mode)
    noise.check_scaling(scaling)


# ---- what linear layers and convolutions share -------------------------------------------------


def _connect(
    plain: Callable[..., Tensor],
    masked: Callable[..., Tensor],
    axis: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float | Tensor,
    training: bool,
    key: Key | Tensor | None,
    mode: str,
    drop_bias: bool,
    scaling: str,
    order: tuple[int, int],
) -> Tensor:
    """The product with what is left of the weight, plus what is left of the bias."""
    drops = training and (isinstance(p, Tensor) or p > 0)
    dropped_bias = bias if drop_bias else None
    if mode == "batch" or not drops:
        own = None
        if drops and dropped_bias is not None and noise.draws(p):
            key = noise.two_words(noise.key_for(key, input))
            own = noise.folded(key, 1)
        weight = noise.drop(weight, p, drops, False, key, scaling)
        if dropped_bias is not None:
            bias = noise.drop(dropped_bias, p, drops, False, own, scaling)
        return plain(input, weight, bias)
    key = noise.key_for(Key(0) if key is None and not noise.draws(p) else key, input)
    threshold, scale = noise.numbers(p, scaling)
    dtype = autocast_type(input) or input.dtype
    output = masked(input.to(dtype), weight.to(dtype), key, threshold, scale, order)
    if bias is None:
        return output
    shape = [1] * output.dim()
    shape[axis] = bias.shape[0]
    if drop_bias:
        shape[0] = input.shape[0]
        own, sizes = noise.folded(key, 1), (input.shape[0], bias.shape[0])
        mask = torch.ops.dropseed.keep_tensor_rate(own, threshold, sizes, False, order)
        bias = eager.apply(bias.expand(sizes), mask, scale)
    return output + bias.to(dtype).reshape(shape)


def autocast_type(input: Tensor) -> torch.dtype | None:
    """The type that autocast wants of products, if it is on; it leaves float64 alone."""
    device = input.device.type
    if input.dtype == torch.float64:
        return None
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def _of_sample(weight: Tensor, key: Tensor, threshold: Any, scale: Any, number: int) -> Tensor:
    """What one sample's mask leaves of a weight, or of a weight's gradient."""
    if not launch.has_kernel(weight):
        mask = eager.keep(key, threshold, (1, *weight.shape), (number, 1))[0]
        return eager.apply(weight, mask, scale)
    size, rows = weight.numel(), launch.contiguous(weight)
    output = torch.empty_like(rows)
    launch.cpu_kernel().dropout(
        launch.buffer(output).reshape(-1),
        launch.buffer(rows).reshape(-1),
        Draws((size,), number * size, (1,)),
        launch.key_words(key.tolist()),
        launch.number(threshold),
        float(scale),
        threads=torch.get_num_threads(),
    )
    return output


def _dense_weights(
    input: Tensor, weight: Tensor, key: Tensor, threshold: Tensor, scale: Tensor, order: Any
) -> Tensor:
    """Every sample's weight: for transforms, which must see the masks."""
    shape = (input.shape[0], *weight.shape)
    mask = torch.ops.dropseed.keep_tensor_rate(key, threshold, shape, False, order)
    return eager.apply(weight, mask, scale)


# ---- linear ----------------------------------------------------------------------------------


def _linear_dense(input: Tensor, weight: Tensor, *numbers: Any) -> Tensor:
    output: Tensor = torch.einsum("ni,noi->no", input, _dense_weights(input, weight, *numbers))
    return output


def _linear_product(
    input: Tensor, weight: Tensor, key: Tensor, threshold: Tensor, scale: Tensor, order: Any
) -> Tensor:
    n, outputs = input.shape[0], weight.shape[0]
    if not launch.has_kernel(input):
        output = input.new_empty((n, outputs))
        for i, row in enumerate(input):
            number = order[0] + i * order[1]
            output[i] = _of_sample(weight, key, threshold, scale, number) @ row
        return output
    output = torch.empty((n, outputs), dtype=eager.compute_type(input.dtype))
    launch.cpu_kernel().drop_connect(
        output.numpy().reshape(-1),
        *(launch.buffer(launch.contiguous(tensor)).reshape(-1) for tensor in (input, weight)),
        (n, outputs, weight.shape[1]),
        launch.key_words(key.tolist()),
        launch.number(threshold),
        float(scale),
        order=tuple(order),
        threads=torch.get_num_threads(),
    )
    return output.to(input.dtype)


def _linear_gradients(
    input: Tensor,
    weight: Tensor,
    gradient: Tensor,
    key: Tensor,
    threshold: Tensor,
    scale: Tensor,
    order: Any,
) -> tuple[Tensor, Tensor]:
    wide = eager.compute_type(input.dtype)
    to_input, to_weight = (
        torch.zeros(tensor.shape, dtype=wide, device=tensor.device) for tensor in (input, weight)
    )
    if launch.has_kernel(input):
        tensors = (launch.contiguous(tensor) for tensor in (input, weight, gradient))
        launch.cpu_kernel().drop_connect_backward(
            to_input.numpy().reshape(-1),
            to_weight.numpy().reshape(-1),
            *(launch.buffer(tensor).reshape(-1) for tensor in tensors),
            (*gradient.shape, weight.shape[1]),
            launch.key_words(key.tolist()),
            launch.number(threshold),
            float(scale),
            order=tuple(order),
            threads=torch.get_num_threads(),
        )
    else:
        for i, (row, slope) in enumerate(zip(input, gradient, strict=True)):
            numbers = key, threshold, scale, order[0] + i * order[1]
            to_input[i] = slope @ _of_sample(weight, *numbers)
            to_weight += _of_sample(torch.outer(slope, row), *numbers)
    return to_input.to(input.dtype), to_weight.to(weight.dtype)


_linear = autograd.bilinear(
    "drop_connect",
    "SymInt[] order",
    _linear_dense,
    _linear_product,
    _linear_gradients,
    lambda x, weight, order: (x.shape[0], weight.shape[0]),
)


def _linear_of_positions(input: Tensor, weight: Tensor, *numbers: Any) -> Tensor:
    """Positions that share their sample's mask: a convolution with a kernel of one."""
    if input.numel() == 0:  # which no convolution takes
        return theirs.linear(input, weight)
    rows, kernel = input.flatten(1, -2).transpose(1, 2), weight.unsqueeze(-1)
    output = _convolution(rows, kernel, *numbers[:3], (1,), (0,), (1,), 1, numbers[3])
    return output.transpose(1, 2).reshape(*input.shape[:-1], weight.shape[0])


# ---- convolutions ----------------------------------------------------------------------------


def _convolve(input: Tensor, weight: Tensor, *geometry: Any) -> Tensor:
    output: Tensor = _CONVOLUTIONS[weight.dim() - 2](input, weight, None, *geometry)
    return output


def _conv_dense(
    input: Tensor, weight: Tensor, key: Tensor, threshold: Tensor, scale: Tensor, *numbers: Any
) -> Tensor:
    *geometry, groups, order = numbers
    n = input.shape[0]
    weights = _dense_weights(input, weight, key, threshold, scale, order).flatten(0, 1)
    output = _convolve(input.flatten(0, 1).unsqueeze(0), weights, *geometry, n * groups)
    return output.reshape(n, weight.shape[0], *output.shape[2:])


def _conv_product(
    input: Tensor, weight: Tensor, key: Tensor, threshold: Tensor, scale: Tensor, *numbers: Any
) -> Tensor:
    *geometry, order = numbers
    output = input.new_empty(_conv_shape(input, weight, *numbers))
    for i, one in enumerate(input):
        number = order[0] + i * order[1]
        output[i] = _convolve(one, _of_sample(weight, key, threshold, scale, number), *geometry)
    return output


def _conv_gradients(
    input: Tensor,
    weight: Tensor,
    gradient: Tensor,
    key: Tensor,
    threshold: Tensor,
    scale: Tensor,
    *numbers: Any,
) -> tuple[Tensor, Tensor]:
    stride, padding, dilation, groups, order = numbers
    geometry = stride, padding, dilation, False, [0] * len(stride), groups
    to_input = input.new_empty(input.shape)
    to_weight = weight.new_zeros(weight.shape, dtype=eager.compute_type(weight.dtype))
    for i in range(input.shape[0]):
        mask = key, threshold, scale, order[0] + i * order[1]
        one, kernel = input[i : i + 1], _of_sample(weight, *mask)
        to_one, to_kernel, _ = torch.ops.aten.convolution_backward(
            gradient[i : i + 1], one, kernel, None, *geometry, [True, True, False]
        )
        to_input[i] = to_one[0]
        to_weight += _of_sample(to_kernel, *mask)
    return to_input, to_weight.to(weight.dtype)


def _conv_shape(input: Tensor, weight: Tensor, *numbers: Any) -> list[int]:
    stride, padding, dilation, _, _ = numbers
    lengths = [
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, pad, gap, kernel, step in zip(
            input.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    ]
    return [input.shape[0], weight.shape[0], *lengths]


_convolution = autograd.bilinear(
    "drop_connect_conv",
    "int[] stride, SymInt[] padding, int[] dilation, SymInt groups, SymInt[] order",
    _conv_dense,
    _conv_product,
    _conv_gradients,
    _conv_shape,
)
