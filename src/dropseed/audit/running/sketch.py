"""Tensors in a few numbers each, which tell another mask from another rounding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.draws import is_plain, unseen

if TYPE_CHECKING:
    from torch import Tensor

_PERIOD = 1009  # a prime, so that it falls in with no axis
_TOLERANCE = 1e-4  # of the norm; another mask of rate p is further off by about sqrt(2 p)


@dataclass(frozen=True, slots=True)
class Sketch:
    """A tensor's projections on four fixed random directions.

    Alon, Matias and Szegedy 1996, "The space complexity of approximating the frequency moments".

    Attributes:
        size: the number of its values.
        norm: its Euclidean norm.
        projections: four numbers.
        tolerance: how far, as a fraction of the norm, rounding may move one.
    """

    size: int
    norm: float
    projections: tuple[float, ...]
    tolerance: float

    def is_close(self, other: Sketch) -> bool:
        """Whether the two tensors differ by rounding at most."""
        allowed = max(self.tolerance, other.tolerance) * max(self.norm, other.norm)
        pairs = zip(self.projections, other.projections, strict=True)
        return self.size == other.size and all(abs(a - b) <= allowed for a, b in pairs)


def sketches(value: Any) -> tuple[Sketch, ...]:
    """The sketches of all tensors in nested tuples, lists and dicts.

    Example:
        >>> import torch
        >>> x = torch.arange(6.0)
        >>> first, second, third = sketches([x, x * (1 + 1e-7), {"flipped": x.flip(0)}])
        >>> first.is_close(second), first.is_close(third)
        (True, False)
    """
    from torch.utils._pytree import tree_leaves

    with unseen():
        return tuple(_sketch(leaf) for leaf in tree_leaves(value) if is_plain(leaf))


def are_close(one: tuple[Sketch, ...], other: tuple[Sketch, ...]) -> bool:
    """Whether all tensors of two values differ by rounding at most."""
    return len(one) == len(other) and all(a.is_close(b) for a, b in zip(one, other, strict=True))


def _sketch(tensor: Tensor) -> Sketch:
    import torch

    tolerance = _TOLERANCE
    if tensor.is_floating_point():
        tolerance = max(tolerance, 4 * torch.finfo(tensor.dtype).eps)
    flat = _real(tensor.detach()).reshape(-1)
    whole = flat.numel() // _PERIOD * _PERIOD
    folded = flat[:whole].view(-1, _PERIOD).sum(0, dtype=torch.float64)
    folded[: flat.numel() - whole] += flat[whole:]
    projections = folded.cpu() @ _directions()
    norm = float(torch.linalg.vector_norm(flat.double() if flat.numel() < 10**6 else flat))
    return Sketch(tensor.numel(), norm, tuple(projections.tolist()), tolerance)


def _real(tensor: Tensor) -> Tensor:
    import torch

    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    values = tensor if tensor.is_floating_point() else tensor.to(torch.float64)
    return values if bool(values.isfinite().all()) else values.nan_to_num()


@cache
def _directions() -> Any:
    import torch

    signs = Random(0).choices((-1.0, 1.0), k=4 * _PERIOD)  # torch's own would be watched
    return torch.tensor(signs, dtype=torch.float64).reshape(_PERIOD, 4)
