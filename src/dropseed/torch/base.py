"""What the layers with a rate share, beside the torch class that each stands in for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dropseed.torch import noise
from dropseed.torch.keyed import KeyedLayer


class RateLayer(KeyedLayer):
    """What the layers share: the arguments, and the key that `set_key` writes."""

    p: Any  # a float, or a 0-d tensor
    inplace: bool

    def __init__(self, p: float | Tensor = 0.5, inplace: bool = False) -> None:
        noise.check_rate(p)
        number = 0.0 if isinstance(p, Tensor) else p
        super().__init__(number, inplace)  # torch's layers compare it, which would read a tensor
        self.p = p

    def extra_repr(self) -> str:
        """The arguments, as torch prints them."""
        return f"p={self.p}, inplace={self.inplace}"


class ScaledLayer(RateLayer):
    """A layer that scales what survives."""

    def __init__(
        self, p: float | Tensor = 0.5, inplace: bool = False, *, scaling: str = "inverted"
    ) -> None:
        noise.check_scaling(scaling)
        super().__init__(p, inplace)
        self.scaling = scaling

    def extra_repr(self) -> str:
        """The arguments; the scaling where it isn't the usual one."""
        other = noise.scaling_repr(self.scaling)
        return super().extra_repr() + other
