"""Rate: the fraction dropped, as the integer threshold and the scale that kernels take."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any, NamedTuple

from dropseed.errors import InvalidTypeError, InvalidValueError

ALL = 2**32
"""The threshold that drops everything."""


class Factors(NamedTuple):
    """What the survivors are multiplied by in training, and everything in inference.

    Example:
        >>> Rate(0.5).factors().training
        2.0
    """

    training: float
    inference: float


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Rate:
    """A dropout rate: the fraction **dropped**.

    Args:
        rate: real number in [0, 1], from Python or NumPy; converted to double first.

    Attributes:
        value: the rate as a Python float.
        threshold: ``round(rate * 2**32)``, ties to even. A draw u drops iff u < threshold.
        scale: ``1 / (1 - threshold / 2**32)``, or 0 where everything is dropped.

    Raises:
        TypeError: `rate` is not a real number (bool, string, complex, array).
        ValueError: `rate` is NaN or outside [0, 1].

    Example:
        >>> Rate(0.5)
        Rate(0.5)
        >>> Rate(0.5).threshold, Rate(0.5).scale
        (2147483648, 2.0)
    """

    value: float
    threshold: int

    def __init__(self, rate: Any) -> None:
        if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
            raise InvalidTypeError(
                f"`rate` must be a real number in [0, 1]; got {rate!r}. It is the fraction dropped."
            )
        # Checked before the conversion, which rounds 1 + 2**-60 to 1.
        if not 0 <= rate <= 1:  # type: ignore[operator]
            raise InvalidValueError(
                f"`rate` must be in [0, 1]; got {rate!r}. "
                "It is the fraction dropped, not the fraction kept."
            )
        value = float(rate)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "threshold", round(value * 2**32))

    def __repr__(self) -> str:
        return f"Rate({self.value!r})"

    @property
    def scale(self) -> float:
        """What training multiplies the survivors by, in double precision."""
        return 0.0 if self.threshold == ALL else 1 / (1 - self.threshold / 2**32)

    def factors(self, scaling: str = "inverted") -> Factors:
        """The two multipliers of one of the field's three scalings.

        Args:
            scaling: "inverted" (training divides the survivors by 1 - rate, inference does
                nothing), "original" (Hinton et al. 2012: training leaves the survivors as they
                are, inference multiplies everything by 1 - rate) or "none".

        Returns:
            The pair (training, inference), in double precision.

        Raises:
            ValueError: `scaling` is none of the three.

        Example:
            >>> Rate(0.5).factors("original")
            Factors(training=1.0, inference=0.5)
        """
        if scaling == "inverted":
            return Factors(self.scale, 1.0)
        if scaling == "original":
            return Factors(1.0, 1 - self.threshold / 2**32)
        if scaling == "none":
            return Factors(1.0, 1.0)
        raise InvalidValueError(
            f'`scaling` must be "inverted", "original" or "none"; got {scaling!r}.'
        )
