"""The max-norm constraint, dropout's companion: no unit's incoming weights leave a ball.

Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
section 5.1: the norm of each hidden unit's incoming weight vector is at most c, and a vector that
an update takes out of the ball of radius c is projected onto its surface. `constrain` does exactly
that after each step of an optimizer. `max_norm` is the same constraint as a parametrization, where
the optimizer's own parameter stays free.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.key import integer

Layer = TypeVar("Layer", bound=nn.Module)


def max_norm_(weight: Tensor, c: float, dim: int = 0) -> Tensor:
    """Project each unit's incoming weight vector onto a ball, in place and outside of autograd.

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    section 5.1.

    Args:
        weight: floating-point tensor of 2 or more dimensions.
        c: the radius of the ball, the largest Euclidean norm allowed; finite and greater than 0.
            The paper's networks use 3 to 4.
        dim: the dimension that counts the units, 0 in linear layers and convolutions, 1 in
            transposed convolutions. A unit's vector runs over all others.

    Returns:
        `weight`. A vector of norm c or less is left as it is, to the bit; a longer one is scaled
        to norm c, up to rounding.

    Raises:
        TypeError: `weight` is no floating-point tensor, `c` no number, or `dim` no integer.
        ValueError: `weight` has fewer than 2 dimensions, `c` is not greater than 0, or `dim` is
            none of the dimensions.

    Example:
        >>> max_norm_(torch.tensor([[3.0, 4.0], [0.6, 0.8]]), c=2)
        tensor([[1.2000, 1.6000],
                [0.6000, 0.8000]])
    """
    dim = _checked(weight, "weight", c, dim)
    with torch.no_grad():
        weight.mul_(_factor(weight, c, dim))
    return weight


def max_norm(module: Layer, c: float, name: str = "weight", dim: int | None = None) -> Layer:
    """Constrain a layer's weight by a parametrization: the layer computes with the projection.

    Srivastava et al. 2014, section 5.1, with one difference: the projection is a part of the
    forward pass and of its gradient, and the parameter that the optimizer changes may leave the
    ball. `constrain` projects the parameter itself after each step, as the paper does. Here the
    constraint belongs to the model, whichever optimizer trains it.

    Args:
        module: the layer that has the weight.
        c: the largest norm of a unit's incoming weights, finite and greater than 0.
        name: the parameter's name.
        dim: the dimension that counts the units; by default 1 in transposed convolutions, and 0.

    Returns:
        The module, with a parametrization of `torch.nn.utils.parametrize`: its state_dict has the
        free parameter as "parametrizations.weight.original". ``remove_parametrizations`` there
        takes it away and leaves the projected weight, or with ``leave_parametrized=False`` the
        free one.

    Raises:
        TypeError: the parameter is no floating-point tensor, `c` no number, or `dim` no integer.
        ValueError: the module has no such parameter or one of fewer than 2 dimensions, `c` is not
            greater than 0, `dim` is none of the dimensions, or the module is a transposed
            convolution of several groups, whose units no dimension counts.

    Example:
        >>> layer = max_norm(nn.Linear(100, 10), c=0.5)
        >>> bool((layer.weight.norm(dim=1) < 0.5001).all())
        True
    """
    weight = getattr(module, name, None) if isinstance(name, str) else None
    if not isinstance(weight, Tensor):
        raise InvalidValueError(
            f"`name` must be that of a parameter of {type(module).__name__}; got {name!r}."
        )
    if dim is None:
        dim = _units(module)
    dim = _checked(weight, name, c, dim)
    parametrize.register_parametrization(module, name, _MaxNorm(float(c), dim))
    return module


def constrain(
    optimizer: torch.optim.Optimizer,
    c: float,
    parameters: Iterable[Tensor] | None = None,
    dim: int = 0,
) -> RemovableHandle:
    """Project weights after each step of an optimizer, as `max_norm_` does.

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    section 5.1.

    Args:
        optimizer: any optimizer of torch.
        c: the largest norm of a unit's incoming weights, finite and greater than 0.
        parameters: the weights to project. By default all of the optimizer's that have 2 or more
            dimensions, also those it gets later: name them where embeddings or transposed
            convolutions, which need ``dim=1``, are among these.
        dim: the dimension that counts the units.

    Returns:
        A handle whose `remove()` ends the constraint. A copied or unpickled optimizer does not have
        it, as with any hook.

    Raises:
        TypeError: `optimizer` is none, `parameters` is a tensor or holds something else, `c` is no
            number, or `dim` no integer.
        ValueError: a parameter has fewer than 2 dimensions, `c` is not greater than 0, or `dim` is
            none of the dimensions.

    Example:
        >>> layer = nn.Linear(100, 10)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=100.0)
        >>> handle = constrain(optimizer, c=3)
        >>> layer(torch.ones(1, 100)).sum().backward()
        >>> optimizer.step()
        >>> bool((layer.weight.norm(dim=1) < 3.001).all())
        True
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidTypeError(
            f"`optimizer` must be a torch.optim.Optimizer; got {type(optimizer).__name__}."
        )
    if isinstance(parameters, Tensor):
        raise InvalidTypeError("`parameters` must be an iterable of tensors; got a tensor.")
    chosen = None if parameters is None else list(parameters)
    _check_radius(c)
    for weight in _matrices(optimizer) if chosen is None else chosen:
        _checked(weight, "parameters", c, dim)

    def project(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for weight in _matrices(optimizer) if chosen is None else chosen:
            max_norm_(weight, c, dim)

    return optimizer.register_step_post_hook(project)


class _MaxNorm(nn.Module):
    """The parametrization: what the layer sees is the projection of its parameter."""

    def __init__(self, c: float, dim: int) -> None:
        super().__init__()
        self.c, self.dim = c, dim

    def forward(self, weight: Tensor) -> Tensor:
        return (weight * _factor(weight, self.c, self.dim)).to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def extra_repr(self) -> str:
        return f"c={self.c}, dim={self.dim}"


def _factor(weight: Tensor, c: float, dim: int) -> Tensor:
    """What each vector is multiplied by, exactly 1 inside the ball."""
    others = [axis for axis in range(weight.dim()) if axis != dim]
    # In double precision the squares of float32 neither overflow nor round; MPS has none.
    wide = torch.float32 if weight.device.type == "mps" else torch.float64
    norm: Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True, dtype=wide)
    # A clamp, where a `torch.where` would give a zero vector the gradient NaN; and a quotient of
    # tensors, since torch takes `c / norm` for `c * (1 / norm)`, which need not be 1 at c.
    factor: Tensor = torch.full_like(norm, c) / norm.clamp(min=c)
    return factor.to(torch.promote_types(weight.dtype, torch.float32))


def _units(module: nn.Module) -> int:
    if not isinstance(module, _ConvTransposeNd):
        return 0
    if module.groups > 1:
        raise InvalidValueError(
            f"`module` must not have several groups where it is a transposed convolution, unless "
            f"`dim` says what a unit is; got groups={module.groups}."
        )
    return 1


def _matrices(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    groups = optimizer.param_groups
    return [weight for group in groups for weight in group["params"] if weight.dim() >= 2]


def _checked(weight: Any, name: str, c: Any, dim: Any) -> int:
    """Check all of a projection's arguments; return the dimension counted from the front."""
    _check_radius(c)
    if not isinstance(weight, Tensor):
        raise InvalidTypeError(f"`{name}` must be a torch.Tensor; got {type(weight).__name__}.")
    if not weight.is_floating_point():
        raise InvalidTypeError(f"`{name}` must be floating-point; got {weight.dtype}.")
    if weight.dim() < 2:
        raise InvalidValueError(
            f"`{name}` must have 2 or more dimensions, of which one counts the units; "
            f"got the shape {tuple(weight.shape)}."
        )
    return integer(dim, "dim", -weight.dim(), weight.dim()) % weight.dim()


def _check_radius(c: Any) -> None:
    if isinstance(c, bool) or not isinstance(c, numbers.Real):
        raise InvalidTypeError(f"`c` must be a real number; got {c!r}.")
    if not 0 < cast(float, c) < math.inf:
        raise InvalidValueError(f"`c` must be finite and greater than 0; got {c!r}.")
