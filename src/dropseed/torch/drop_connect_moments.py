"""DropConnect's inference by moments: an activation's mean over masks, without the masks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.mask.rate import ALL
from dropseed.torch import noise
from dropseed.torch.drop_connect import autocast_type, check

_AT_ONCE = 2**20  # elements of samples that are drawn together


def moments(
    plain: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float | Tensor,
    key: Key | Tensor | None,
    activation: Callable[[Tensor], Tensor],
    samples: int,
    drop_bias: bool,
    scaling: str,
) -> Tensor:
    """The activation's mean over masks, by Gaussian samples of what goes into it.

    Wan et al. 2013, section 4 and algorithm 2: a sum of many dropped products is nearly Gaussian,
    so its mean and variance are computed, samples are drawn, and the activation is averaged. The
    moments are those of training, whatever the scaling. Halves and autocast compute in float32.

    Args:
        plain: ``plain(input, weight, bias)``, the layer without dropping.
        input: as the layer takes it.
        weight: likewise.
        bias: likewise, or None.
        p: the fraction of the weights dropped.
        key: sample z draws by the derived key ``fold(z)``; by default a seed is drawn.
        activation: what the layer's output goes through, element by element.
        samples: how many samples.
        drop_bias: whether the bias drops out too.
        scaling: "inverted", "original" or "none".

    Returns:
        Tensor of the layer's output shape and type.

    Raises:
        TypeError, ValueError: as the layer does in training.

    Example:
        >>> x, w = torch.ones(1, 400), torch.full((1, 400), 0.05)
        >>> arguments = None, 0.5, Key(0), torch.relu, 1000, False, "inverted"
        >>> moments(torch.nn.functional.linear, x, w - 0.05, *arguments)
        tensor([[0.]])
        >>> round(moments(torch.nn.functional.linear, x, w, *arguments).item())
        20
    """
    check(input, weight, bias, p, "sample", scaling)
    dtype = autocast_type(input) or input.dtype
    with torch.autocast(input.device.type, enabled=False):
        wide = eager.compute_type(dtype)
        x, w = input.to(wide), weight.to(wide)
        b = None if bias is None else bias.to(wide)
        threshold, scale = noise.numbers(p, scaling)
        rate = threshold.double() / ALL
        left = scale * (1 - rate)
        dropped = b if drop_bias else None
        mean = plain(
            x, eager.scaled(w, left), b if dropped is None else eager.scaled(dropped, left)
        )
        squares = None if dropped is None else dropped**2
        variance = eager.scaled(plain(x**2, w**2, squares), scale**2 * rate * (1 - rate))
        spread = torch.where(variance == 0, 1, variance).sqrt() * (variance != 0)
        total = torch.zeros_like(mean)
        keys = eager.folds(noise.key_for(key, input), samples)
        together = max(1, _AT_ONCE // max(mean.numel(), 1))
        for first in range(0, samples, together):
            draws = torch.ops.dropseed.normals(keys[first : first + together], mean.shape, True)
            total = total + activation(mean + spread * draws.to(wide)).sum(0)
        return (total / samples).to(dtype)
