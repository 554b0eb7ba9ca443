"""Cutout: rectangles of an image set to one value."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.mask.key import integer
from dropseed.torch import autograd, noise
from dropseed.torch.keyed import KeyedLayer

Size = int | tuple[int, int]


def cutout(
    input: Tensor,
    size: Size | None = None,
    count: int = 1,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    fill: float = 0.0,
    area: float | None = None,
) -> Tensor:
    """Cut rectangles out of images, the same ones out of all channels.

    DeVries and Taylor 2017, "Improved regularization of convolutional neural networks with cutout",
    section 3. Each rectangle's centre is a pixel of the image, all alike; what lies outside the
    image is cut off, as in the paper, so that a rectangle at the border is smaller. Nothing is
    scaled. (Single elements of an input are dropped by `dropout`, whole channels by `dropout2d`.)

    Rectangle j of sample i has draw ``i * count + j`` of two keys: the centre's row is that of
    ``integers(key.fold(0), H, (N, count))``, its column that of ``integers(key.fold(1), W, (N,
    count))``. It begins at ``centre - size // 2``. (The authors' code also ends at ``centre + size
    // 2``, so that its squares of odd size are one smaller.)

    Args:
        input: floating-point tensor (N, C, H, W), or (C, H, W) for one sample.
        size: the rectangle's edge in pixels, or (height, width); 0 cuts nothing.
        count: how many rectangles a sample has; they may overlap.
        training: whether to cut.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        fill: what the rectangle is filled with.
        area: instead of `size`, the fraction of the image that a whole rectangle covers, in [0, 1];
            it has the image's proportions, rounded to pixels. With ``f = sqrt(area)``, about
            ``(f - f**2 / 4)**2`` of the image is in it on average: at 1 that is 0.56.

    Returns:
        Tensor of the input's shape and type, with its channels last in memory if they are there;
        the input itself where nothing is cut.

    Raises:
        TypeError: `input` is no floating-point tensor, `size` or `count` no integer, `area` or
            `fill` no number, or `key` no key.
        ValueError: `input` has another rank, `size` or `count` is negative, `area` outside [0, 1],
            or not exactly one of `size` and `area` is given.

    Example:
        >>> from dropseed import Key
        >>> cutout(torch.ones(1, 1, 4, 6), 2, key=Key(0))
        tensor([[[[1., 1., 1., 1., 1., 1.],
                  [1., 1., 1., 0., 0., 1.],
                  [1., 1., 1., 0., 0., 1.],
                  [1., 1., 1., 1., 1., 1.]]]])
    """
    noise.check_input(input)
    _check(size, count, fill, area)
    if input.dim() not in (3, 4):
        raise InvalidValueError(
            f"`input` must be (N, C, H, W) or (C, H, W); got shape {tuple(input.shape)}."
        )
    height, width = input.shape[-2:]
    edges = _edges(size, area, height, width)
    if not training or count == 0 or 0 in edges:
        return input
    key = noise.key_for(key, input)
    if input.dim() == 3:
        return _fill(input.unsqueeze(0), key, count, edges, float(fill)).squeeze(0)
    return _fill(input, key, count, edges, float(fill))


class Cutout(KeyedLayer):
    """Cut rectangles out of images in training; see `cutout`.

    It stands at the head of a model. Before a batch is made, as a transform of single images,
    prefer what the data library has: the draws cost the same for one image as for a batch.

    Args:
        size: the rectangle's edge in pixels, or (height, width).
        count: how many rectangles a sample has.
        fill: what the rectangles are filled with.
        area: instead of `size`, the fraction of the image that a whole rectangle covers.

    Shape:
        Input and output: (N, C, H, W) or (C, H, W).

    Raises:
        TypeError, ValueError: as `cutout` does, for what doesn't depend on an input.

    Example:
        >>> Cutout(16)
        Cutout(size=16)
        >>> Cutout(area=0.25, count=2)
        Cutout(area=0.25, count=2)
    """

    def __init__(
        self,
        size: Size | None = None,
        count: int = 1,
        fill: float = 0.0,
        *,
        area: float | None = None,
    ) -> None:
        _check(size, count, fill, area)
        super().__init__()
        self.size = size
        self.count = count
        self.fill = fill
        self.area = area

    def forward(self, input: Tensor) -> Tensor:
        """Cut in training, return the input in evaluation."""
        return cutout(
            input,
            self.size,
            self.count,
            self.training,
            key=self.key,
            fill=self.fill,
            area=self.area,
        )

    def extra_repr(self) -> str:
        """The size or the area; count and fill where they aren't the usual ones."""
        parts = [f"size={self.size}" if self.area is None else f"area={self.area}"]
        parts += [f"count={self.count}"] if self.count != 1 else []
        parts += [f"fill={self.fill}"] if self.fill != 0 else []
        return ", ".join(parts)


# ---- the routes ------------------------------------------------------------------------------


def _select(input: Tensor, key: Tensor, count: int, size: Sequence[int], fill: float) -> Tensor:
    """Fill the pixels that lie in a rectangle."""
    sides = []
    for axis, (edge, pixels) in enumerate(zip(size, input.shape[2:], strict=True)):
        centre = eager.integers(eager.fold(key, axis), pixels, (input.shape[0], count))
        place = torch.arange(pixels, device=key.device) - (centre[..., None] - edge // 2)
        sides.append((place >= 0) & (place < edge))
    rows, columns = sides  # (N, count, H) and (N, count, W)
    inside = (rows[..., None] & columns[..., None, :]).any(1)
    return torch.where(inside[:, None], fill, input)


def _fake(input: Tensor, key: Tensor, count: int, size: Sequence[int], fill: float) -> Tensor:
    n, _, height, width = input.shape
    return torch.where(input.new_empty((n, 1, height, width), dtype=torch.bool), fill, input)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    _, key, ctx.count, ctx.size, _ = inputs
    ctx.save_for_backward(key)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (key,) = ctx.saved_tensors
    return _fill(gradient, key, ctx.count, ctx.size, 0.0), None, None, None, None


_fill = autograd.recomputed(
    "cutout",
    "(Tensor input, Tensor key, SymInt count, SymInt[] size, float fill) -> Tensor",
    _select,
    _fake,
    _setup,
    _backward,
)


# ---- the arguments ---------------------------------------------------------------------------


def _edges(size: Size | None, area: float | None, height: int, width: int) -> tuple[int, int]:
    """The rectangles' height and width in an image."""
    if area is not None:
        return round(height * math.sqrt(area)), round(width * math.sqrt(area))
    return size if isinstance(size, tuple) else (cast(int, size),) * 2


def _check(size: Any, count: Any, fill: Any, area: Any) -> None:
    if (size is None) == (area is None):
        raise InvalidValueError(
            f"exactly one of `size` and `area` must be given; got {size!r} and {area!r}."
        )
    if size is not None:
        edges = size if isinstance(size, tuple) else (size, size)
        if len(edges) != 2:
            raise InvalidValueError(f"`size` must be an integer or (height, width); got {size!r}.")
        for edge in edges:
            integer(edge, "size", 0, 2**31)
    if area is not None:
        noise.checked_rate(area, "area")
    integer(count, "count", 0, 2**31)
    if isinstance(fill, bool) or not isinstance(fill, numbers.Real):
        raise InvalidTypeError(f"`fill` must be a real number; got {fill!r}.")
