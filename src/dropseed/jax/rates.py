"""Rates as JAX carries them: numbers, checked at once, or scalars that are traced."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Rate
from dropseed.mask.rate import ALL


class Strength(NamedTuple):
    """A rate as the draws and the laws take it.

    ``rate`` is a float, or a traced array. ``everything`` says that all is dropped, which no uint32
    threshold can. ``in_force`` is ``threshold / 2**32``, NaN where the rate is none.
    """

    rate: Any
    threshold: Any
    everything: Any
    in_force: Any

    @property
    def number(self) -> float | None:
        """The rate where it is known before the program runs, else None."""
        return self.rate if isinstance(self.rate, float) else None

    @property
    def drops_all(self) -> bool:
        """Whether it is known that everything is dropped."""
        return self.number is not None and bool(self.everything)

    def factors(self, scaling: str) -> tuple[Any, Any]:
        """What survivors are multiplied by in training, and everything in inference."""
        if self.number is not None:
            factors = Rate(self.number).factors(scaling)
            return factors.training, factors.inference
        Rate(0.0).factors(scaling)  # refuses an unknown scaling
        kept = 1 - self.in_force
        valid = 1 + 0 * kept  # NaN where the rate is none
        inverse = jnp.where(kept == 0, 0.0, 1 / kept)
        return (
            inverse if scaling == "inverted" else valid,
            kept if scaling == "original" else valid,
        )


def strength(rate: Any, name: str = "rate") -> Strength:
    """A rate's threshold and what belongs to it.

    Args:
        rate: a number in [0, 1], or a `Rate`; or a floating-point array without dimensions, traced
            or not. A traced one is exact too: float32 times 2**32 loses nothing. It can't be
            checked: outside [0, 1] it makes the output NaN.
        name: what the errors call it.

    Returns:
        The strength, its fields numbers or scalar arrays.

    Raises:
        TypeError: `rate` is no real number.
        ValueError: `rate` is outside [0, 1].

    Example:
        >>> strength(0.5).threshold
        2147483648
        >>> int(jax.jit(lambda rate: strength(rate).threshold)(0.1))
        429496736
    """
    if isinstance(rate, jax.Array):
        if rate.shape != () or not jnp.issubdtype(rate.dtype, jnp.floating):
            raise InvalidTypeError(
                f"`{name}` must be a number or a 0-d floating-point array; "
                f"got {rate.dtype} of shape {rate.shape}."
            )
        if isinstance(rate, jax.core.Tracer):
            return _traced(_without_gradient(rate))
        rate = float(rate)
    elif isinstance(rate, np.ndarray) and rate.shape == ():
        rate = rate[()]
    checked = _checked(rate, name)
    everything = checked.threshold == ALL
    threshold = 0 if everything else checked.threshold
    return Strength(checked.value, threshold, everything, checked.threshold / ALL)


def _checked(rate: Any, name: str) -> Rate:
    if isinstance(rate, Rate):
        return rate
    try:
        return Rate(rate)
    except (InvalidTypeError, InvalidValueError) as error:
        raise type(error)(str(error).replace("`rate`", f"`{name}`")) from None


def _traced(rate: Array) -> Strength:
    if rate.dtype.itemsize < 4:
        rate = rate.astype(jnp.float32)
    valid = (rate >= 0) & (rate <= 1)
    # A power of two moves no digit, so this is round(rate * 2**32), ties to even.
    steps = lax.round(jnp.where(valid, rate, 0) * float(ALL), lax.RoundingMethod.TO_NEAREST_EVEN)
    everything = steps == float(ALL)
    threshold = jnp.where(everything, 0, steps).astype(jnp.uint32)
    return Strength(rate, threshold, everything, jnp.where(valid, steps / float(ALL), jnp.nan))


@jax.custom_jvp
def _without_gradient(rate: Array) -> Array:
    return rate


@_without_gradient.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:
    raise InvalidValueError(
        "`rate` must not be differentiated: dropout has no gradient to its rate. "
        "Pass jax.lax.stop_gradient(rate)."
    )
