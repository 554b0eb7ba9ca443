"""Hold a program's gradient against finite differences, under one seed of torch's generators."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dropseed.audit.running.draws import unseen

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-3
"""Gradients that are further off, as a fraction of themselves, are wrong."""

_WIDTHS = (1e-2, 1e-3, 1e-4)  # of the steps, as fractions of the parameters' norm


def gradient_error(run: Callable[[], Tensor], parameters: Sequence[Tensor]) -> float | None:
    """How far a gradient is from the slope along it, as a fraction of it.

    The slope is measured by central differences at three widths, of which the best counts. On
    networks in float32 it agrees to about 1e-6, where a gradient that belongs to another mask is
    off by about the rate. Rounding in 16 bits makes the three scatter; then nothing is said.

    Args:
        run: computes the loss, a 0-d tensor; every call is given the same random stream.
        parameters: the leaf tensors to differentiate by.

    Returns:
        The error; None if two runs under one seed have different losses, if the gradient is 0, or
        if the widths disagree.

    Example:
        >>> import torch
        >>> weight = torch.ones(3, requires_grad=True)
        >>> gradient_error(lambda: (weight**2).sum(), [weight]) < 1e-5
        True
    """
    loss = _seeded(run)
    gradients = _gradients(loss, parameters)
    squares = _squares(gradients)
    if not 0 < squares < math.inf or _value(run) != float(loss.detach()):
        return None
    norm = _squares(parameters) ** 0.5 or 1.0
    errors: list[float] = []
    for width in _WIDTHS:
        step = width * norm / squares**0.5
        ends: list[float] = []
        for signed in (step, -step):
            with _moved(parameters, gradients, signed):
                ends.append(_value(run))
        errors.append((ends[0] - ends[1]) / (2 * step * squares) - 1)
    best = min(map(abs, errors))
    scatter = max(errors) - min(errors)
    return best if best < TOLERANCE or scatter < best / 4 else None


def _seeded(run: Callable[[], Tensor]) -> Tensor:
    import torch

    torch.manual_seed(0)
    return run()


def _value(run: Callable[[], Tensor]) -> float:
    return float(_seeded(run).detach())


def _squares(tensors: Sequence[Tensor]) -> float:
    return sum(float(tensor.detach().double().square().sum()) for tensor in tensors)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """By `backward`, which a reentrant checkpoint needs; what was in `.grad` is put back."""
    import torch

    held = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    found = [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in parameters
    ]
    for parameter, grad in zip(parameters, held, strict=True):
        parameter.grad = grad
    return found


@contextmanager
def _moved(
    parameters: Sequence[Tensor], directions: Sequence[Tensor], step: float
) -> Iterator[None]:
    with unseen():
        held = [parameter.clone() for parameter in parameters]
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=step)
    try:
        yield
    finally:
        with unseen():
            for parameter, value in zip(parameters, held, strict=True):
                parameter.copy_(value)
