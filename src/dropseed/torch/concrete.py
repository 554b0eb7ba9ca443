"""Concrete dropout: a rate that is learned, through noise that is a smooth function of it.

The noise is drawn again in backward: what is kept is the input, the rate's logit and the key, and
under a functorch transform also the noise.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import torch
import torch.nn.functional as theirs
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.torch import autograd, laws, noise
from dropseed.torch.keyed import KeyedLayer

_FINEST = 2.0**-33  # the least draw: a rate below it, or as near to 1, is as good as 0, or 1


def concrete_dropout(
    input: Tensor,
    logit: Tensor,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    temperature: float = 0.1,
    spatial: bool = False,
) -> Tensor:
    """Drop softly, at a rate p that has a gradient: ``input * (1 - z) / (1 - p)``.

    Gal, Hron and Kendall 2017, "Concrete dropout", equation 5: with uniform draws u,
    ``z = sigmoid((log p - log(1 - p) + log u - log(1 - u)) / temperature)`` is near 1, dropped,
    with probability about p, and near 0 otherwise. A dropped element is small, not 0. The draws lie
    strictly inside (0, 1), so that nothing is added to them.

    In inference the input is returned, which is the noise's expectation in the limit of temperature
    0. The authors leave the noise on there and average several passes: that is ``training=True``.

    Args:
        input: floating-point tensor of any shape; (N, C, *) if `spatial`.
        logit: floating-point tensor of one element: ``log(p) - log(1 - p)``. Any finite value will
            do.
        training: whether to drop.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        temperature: how soft the noise is, in (0, 1]; towards 0 an element is dropped where
            u > 1 - p, and kept elsewhere.
        spatial: whether whole channels share a draw, as in the authors' spatial variant.

    Returns:
        Tensor of the input's shape and type.

    Raises:
        TypeError: `input` or `logit` is no floating-point tensor, `temperature` no number, or `key`
            no key.
        ValueError: `logit` has not one element, `temperature` is outside (0, 1], or `input` has no
            channels.

    Example:
        >>> from dropseed import Key
        >>> logit = torch.zeros((), requires_grad=True)
        >>> output = concrete_dropout(torch.ones(4), logit, key=Key(0))
        >>> (output > 1).tolist(), (output < 0.1).tolist()
        ([False, False, True, True], [True, True, False, False])
        >>> output.sum().backward()
        >>> bool(logit.grad != 0)
        True
    """
    noise.check_input(input)
    if not isinstance(logit, Tensor) or not logit.is_floating_point():
        got = logit.dtype if isinstance(logit, Tensor) else type(logit).__name__
        raise InvalidTypeError(f"`logit` must be a floating-point tensor; got {got}.")
    if logit.numel() != 1:
        raise InvalidValueError(f"`logit` must have one element; got {tuple(logit.shape)}.")
    temperature = _check_temperature(temperature)
    if spatial and input.dim() < 2:
        raise InvalidValueError(f"`input` must be (N, C, *); got shape {tuple(input.shape)}.")
    if not training:
        return input
    key = noise.key_for(key, input)
    return _noisy(input, logit, key, temperature, spatial)


# ---- the routes ------------------------------------------------------------------------------


def _multiply(
    input: Tensor, logit: Tensor, key: Tensor, temperature: float, spatial: bool
) -> Tensor:
    return eager.scaled(input, _factor(input, logit, key, temperature, spatial)[0])


def _factor(
    input: Tensor, logit: Tensor, key: Tensor, temperature: float, spatial: bool
) -> tuple[Tensor, Tensor]:
    """What each element is multiplied by, ``(1 - z) / (1 - p)``, and z."""
    dtype = _compute_type(input.dtype)
    u = eager.uniform(key, _noise_shape(input, spatial))  # in double: within 2**-33 of 0 and 1
    logit = logit.to(dtype).reshape(())
    noisy = (logit + (u.log() - (-u).log1p()).to(dtype)) / temperature
    # The quotient by logarithms: at large logits both of its parts are 0.
    factor = torch.exp(theirs.logsigmoid(-noisy) - theirs.logsigmoid(-logit))
    return factor, torch.sigmoid(noisy)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    *tensors, ctx.temperature, ctx.spatial = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, logit, key = ctx.saved_tensors
    factor, z = _factor(x, logit, key, ctx.temperature, ctx.spatial)
    to_input = to_logit = None
    if ctx.needs_input_grad[0]:
        to_input = eager.scaled(gradient, factor)
    if ctx.needs_input_grad[1]:
        wide = torch.promote_types(x.dtype, factor.dtype)
        product = torch.real(gradient.to(wide) * x.to(wide).conj())
        slope = factor * (_rate(logit, factor.dtype) - z / ctx.temperature)
        to_logit = (product * slope).sum().reshape(logit.shape).to(logit.dtype)
    return to_input, to_logit, None, None, None


def _fake(input: Tensor, logit: Tensor, key: Tensor, temperature: float, spatial: bool) -> Tensor:
    shape = _noise_shape(input, spatial)
    return eager.scaled(input, input.new_empty(shape, dtype=_compute_type(input.dtype)))


_noisy = autograd.recomputed(
    "concrete",
    "(Tensor input, Tensor logit, Tensor key, float temperature, bool spatial) -> Tensor",
    _multiply,
    _fake,
    _setup,
    _backward,
)


def _noise_shape(input: Tensor, spatial: bool) -> list[int]:
    return laws.noise_shape(input, tuple(range(2, input.dim())) if spatial else ())


def _rate(logit: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.sigmoid(logit.to(dtype)).reshape(())


def _compute_type(dtype: torch.dtype) -> torch.dtype:
    return eager.compute_type(dtype).to_real()


# ---- the layer -------------------------------------------------------------------------------


class ConcreteDropout(KeyedLayer):
    """Drop the input of a layer at a rate that is learned with it; see `concrete_dropout`.

    Gal, Hron and Kendall 2017, "Concrete dropout". The loss wants the layer's `regularization`,
    without which the rate goes where the data term is least, to 0::

        loss = criterion(model(x), y) + concrete_regularization(model)

    The elements of a linear layer's input have draws of their own, the channels of a convolution's
    share theirs (the authors' `SpatialConcreteDropout`). In evaluation this is the layer itself;
    the authors leave the noise on there, to estimate uncertainty from several passes, which is
    this module in training mode.

    Args:
        layer: a module with a `weight` and `in_features` or `in_channels`, as `torch.nn.Linear`,
            `Conv2d` and `ConvTranspose2d` have. Its parameters are ``layer.*`` in the state.
        p: the rate to begin with, in [0, 1]. A learned rate is never quite 0 or 1: those are
            2**-33 away, the draws' own resolution.
        weight_regularizer: the weights' part of the paper's prior, at least 0: ``l**2 / (tau * N)``
            for a prior length scale l, a model precision tau and N training samples.
        dropout_regularizer: the rate's part, at least 0: ``2 / (tau * N)`` for a squared error,
            ``1 / N`` for a cross-entropy.
        temperature: how soft the noise is, in (0, 1].

    Attributes:
        p_logit: the parameter that is learned, ``log(p) - log(1 - p)`` of shape (1,), in float32 at
            least. A weight decay should leave it out: it would pull the rate to one half.
        rate: the learned rate, a 0-d tensor with a gradient.

    Shape:
        Input: (*, in_features), (N, in_channels, *) or (in_channels, *). Output: the layer's.

    Raises:
        TypeError: `layer` is no such module, or another argument no number.
        ValueError: an argument is out of its range; in a call, the input has another rank.

    Example:
        >>> layer = ConcreteDropout(nn.Linear(16, 3), 0.1)
        >>> layer(torch.ones(4, 16)).shape
        torch.Size([4, 3])
        >>> layer.rate
        tensor(0.1000, grad_fn=<ViewBackward0>)
    """

    layer: Any

    def __init__(
        self,
        layer: nn.Module,
        p: float = 0.1,
        *,
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
        temperature: float = 0.1,
    ) -> None:
        _check_layer(layer)
        rate = min(max(noise.checked_rate(p).value, _FINEST), 1 - _FINEST)
        temperature = _check_temperature(temperature)
        strengths = (
            _check_strength(weight_regularizer, "weight_regularizer"),
            _check_strength(dropout_regularizer, "dropout_regularizer"),
        )
        super().__init__()
        self.layer = layer
        self.weight_regularizer, self.dropout_regularizer = strengths
        self.temperature = temperature
        weight: Any = layer.weight
        logit = math.log(rate) - math.log1p(-rate)
        dtype = _compute_type(weight.dtype)
        # Not 0-d: FullyShardedDataParallel takes no scalars.
        self.p_logit = nn.Parameter(torch.full((1,), logit, dtype=dtype, device=weight.device))

    @property
    def rate(self) -> Tensor:
        """The learned rate, a 0-d tensor with a gradient."""
        return _rate(self.p_logit, self.p_logit.dtype)

    def forward(self, input: Tensor) -> Tensor:
        """The layer of the dropped input in training, of the input in evaluation."""
        spatial = hasattr(self.layer, "in_channels")
        unbatched = spatial and isinstance(input, Tensor) and _is_unbatched(input, self.layer)
        dropped = concrete_dropout(
            input.unsqueeze(0) if unbatched else input,
            self.p_logit,
            self.training,
            key=self.key,
            temperature=self.temperature,
            spatial=spatial,
        )
        output: Tensor = self.layer(dropped.squeeze(0) if unbatched else dropped)
        return output

    def regularization(self) -> Tensor:
        """The paper's prior, to be added to the loss (equations 3 and 4).

        ``weight_regularizer * sum(weight**2) / (1 - p)
        + dropout_regularizer * K * (p * log(p) + (1 - p) * log(1 - p))`` with K the features or
        channels of the input. The layer's bias, which no mask meets, has no part in it.

        Returns:
            0-d tensor, with gradients to the rate and to the weight.

        Example:
            >>> layer = ConcreteDropout(nn.Linear(2, 1), 0.5, dropout_regularizer=1)
            >>> layer.regularization() < 0
            tensor(True)
        """
        dtype = _compute_type(self.p_logit.dtype)
        logit = self.p_logit.to(dtype).reshape(())
        log_p, log_kept = theirs.logsigmoid(logit), theirs.logsigmoid(-logit)
        p, kept = torch.sigmoid(logit), torch.sigmoid(-logit)
        squares: Tensor = self.layer.weight.to(dtype).square().sum()
        spatial = hasattr(self.layer, "in_channels")
        features: int = self.layer.in_channels if spatial else self.layer.in_features
        negative_entropy = p * log_p + kept * log_kept
        weights = self.weight_regularizer * squares * torch.exp(-log_kept)
        return weights + self.dropout_regularizer * features * negative_entropy

    def extra_repr(self) -> str:
        """The rate as it is now, and the settings."""
        rate = "?" if self.p_logit.is_meta else f"{self.rate.item():.4g}"
        return (
            f"rate={rate}, weight_regularizer={self.weight_regularizer}, "
            f"dropout_regularizer={self.dropout_regularizer}, temperature={self.temperature}"
        )


def concrete_regularization(model: nn.Module) -> Tensor:
    """The sum of the `regularization` of all `ConcreteDropout` layers of a model, each once.

    Args:
        model: any module, also one that is compiled or wrapped for data parallelism.

    Returns:
        0-d tensor, to be added to the loss; 0 for a model without such layers.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> model = nn.Sequential(ConcreteDropout(nn.Linear(4, 4)), nn.ReLU())
        >>> bool(concrete_regularization(model) == model[0].regularization())
        True
    """
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"`model` must be a torch.nn.Module; got {model!r}.")
    layers = [layer for layer in model.modules() if isinstance(layer, ConcreteDropout)]
    return sum((layer.regularization() for layer in layers), torch.zeros(()))


def _is_unbatched(input: Tensor, layer: Any) -> bool:
    rank: int = layer.weight.dim()
    if input.dim() not in (rank - 1, rank):
        raise InvalidValueError(
            f"`input` must be (N, C, *) or (C, *) with {rank} or {rank - 1} dimensions; "
            f"got shape {tuple(input.shape)}."
        )
    return input.dim() < rank


def _check_layer(layer: Any) -> None:
    weight = getattr(layer, "weight", None)
    if (
        not isinstance(layer, nn.Module)
        or not (isinstance(weight, Tensor) and weight.is_floating_point())
        or not (hasattr(layer, "in_features") or hasattr(layer, "in_channels"))
    ):
        raise InvalidTypeError(
            "`layer` must be a module with a `weight` and `in_features` or `in_channels`, "
            f"as torch.nn.Linear and Conv2d have; got {type(layer).__name__}."
        )


def _check_temperature(temperature: Any) -> float:
    number = _number(temperature, "temperature")
    if not 0 < number <= 1:
        raise InvalidValueError(
            f"`temperature` must be above 0, where there is no gradient, and at most 1; "
            f"got {number}."
        )
    return number


def _check_strength(value: Any, name: str) -> float:
    number = _number(value, name)
    if not 0 <= number < math.inf:
        raise InvalidValueError(f"`{name}` must be finite and at least 0; got {number}.")
    return number


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"`{name}` must be a real number; got {value!r}.")
    return float(value)
