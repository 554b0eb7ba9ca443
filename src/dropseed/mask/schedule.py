"""Rates that change in training: small values that map a step to a rate, and nothing else.

A schedule has no state, so a run that is resumed at a step has that step's rate. Wherever one is
taken, so is any other function of the step; `rate_at` checks what it gives.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.key import integer
from dropseed.mask.rate import Rate

Schedule = Callable[[int], float]
"""What maps a step, an integer >= 0, to a rate in [0, 1]."""

_END = 2**63


@dataclass(frozen=True, slots=True)
class Constant:
    """The same rate at every step.

    Args:
        rate: the fraction dropped, in [0, 1].

    Returns:
        Called with a step, an integer >= 0: the rate, a float.

    Raises:
        TypeError: `rate` is no number; in a call, the step no integer.
        ValueError: `rate` is outside [0, 1]; in a call, the step is negative.

    Example:
        >>> Constant(0.1)(1000)
        0.1
    """

    rate: float

    def __post_init__(self) -> None:
        _rates(self, "rate")

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        _step(step)
        return self.rate


@dataclass(frozen=True, slots=True)
class Linear:
    """A straight ramp from one rate to another.

    With `start` 0 it is the ramp of DropBlock: Ghiasi, Lin and Le 2018, "DropBlock: a
    regularization method for convolutional networks", section 3.

    Args:
        start: the rate up to the step `begin`, in [0, 1].
        end: the rate from the step ``begin + steps`` on, in [0, 1].
        steps: how many steps the ramp takes, an integer >= 1.
        begin: the step at which it begins, an integer >= 0.

    Returns:
        Called with a step, an integer >= 0: the rate, a float.

    Raises:
        TypeError: a rate is no number, or `steps`, `begin` or a step no integer.
        ValueError: one of them is outside its range.

    Example:
        >>> ramp = Linear(0, 0.5, steps=100, begin=10)
        >>> [ramp(step) for step in (0, 10, 60, 110, 1000)]
        [0.0, 0.0, 0.25, 0.5, 0.5]
    """

    start: float
    end: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        _rates(self, "start", "end")
        _integers(self, steps=1, begin=0)

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        return _between(self.start, self.end, _progress(step, self.begin, self.steps))


@dataclass(frozen=True, slots=True)
class Cosine:
    """A half-cosine from one rate to another: flat at both ends, steepest in the middle.

    The annealing of Loshchilov and Hutter 2017, "SGDR: stochastic gradient descent with warm
    restarts", equation 5, with a rate in the learning rate's place.

    Args:
        start: the rate up to the step `begin`, in [0, 1].
        end: the rate from the step ``begin + steps`` on, in [0, 1].
        steps: how many steps it takes, an integer >= 1.
        begin: the step at which it begins, an integer >= 0.

    Returns:
        Called with a step, an integer >= 0: the rate, a float.

    Raises:
        TypeError: a rate is no number, or `steps`, `begin` or a step no integer.
        ValueError: one of them is outside its range.

    Example:
        >>> [round(Cosine(0, 0.5, steps=100)(step), 3) for step in (0, 25, 50, 75, 100)]
        [0.0, 0.073, 0.25, 0.427, 0.5]
    """

    start: float
    end: float
    steps: int
    begin: int = 0

    def __post_init__(self) -> None:
        _rates(self, "start", "end")
        _integers(self, steps=1, begin=0)

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        progress = _progress(step, self.begin, self.steps)
        return _between(self.start, self.end, (1 - math.cos(math.pi * progress)) / 2)


@dataclass(frozen=True, slots=True)
class Early:
    """Early dropout: dropout at the beginning of training only, for models that underfit.

    Liu, Xu, Jin, Shen and Darrell 2023, "Dropout reduces underfitting", section 4.

    Args:
        rate: the rate at step 0, in [0, 1].
        steps: the number of steps with dropout, an integer >= 1; from this step on the rate is 0.
        linear: whether the rate falls linearly to 0, as in the paper's experiments, or stays.

    Returns:
        Called with a step, an integer >= 0: the rate, a float.

    Raises:
        TypeError: `rate` is no number, `steps` or a step no integer, or `linear` no bool.
        ValueError: one of them is outside its range.

    Example:
        >>> [Early(0.5, steps=100)(step) for step in (0, 50, 100)]
        [0.5, 0.25, 0.0]
        >>> [Early(0.5, steps=100, linear=False)(step) for step in (0, 50, 99, 100)]
        [0.5, 0.5, 0.5, 0.0]
    """

    rate: float
    steps: int
    linear: bool = True

    def __post_init__(self) -> None:
        _rates(self, "rate")
        _integers(self, steps=1)
        if not isinstance(self.linear, bool):
            raise InvalidTypeError(f"`linear` must be True or False; got {self.linear!r}.")

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        progress = _progress(step, 0, self.steps)
        return _between(self.rate, 0.0, progress if self.linear or progress == 1 else 0.0)


@dataclass(frozen=True, slots=True)
class Late:
    """Late dropout: no dropout before a step, and a constant rate from there on.

    Liu, Xu, Jin, Shen and Darrell 2023, "Dropout reduces underfitting", section 4.

    Args:
        rate: the rate from the step `begin` on, in [0, 1].
        begin: the first step with dropout, an integer >= 0.

    Returns:
        Called with a step, an integer >= 0: the rate, a float.

    Raises:
        TypeError: `rate` is no number, or `begin` or a step no integer.
        ValueError: one of them is outside its range.

    Example:
        >>> [Late(0.4, begin=100)(step) for step in (0, 99, 100, 1000)]
        [0.0, 0.0, 0.4, 0.4]
    """

    rate: float
    begin: int

    def __post_init__(self) -> None:
        _rates(self, "rate")
        _integers(self, begin=0)

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        return self.rate if _step(step) >= self.begin else 0.0


@dataclass(frozen=True, slots=True)
class Curriculum:
    """Curriculum dropout: from no dropout towards a rate, exponentially.

    Morerio, Cavazza, Volpi, Vidal and Murino 2017, "Curriculum dropout", section 3. There theta,
    the fraction **kept**, is ``(1 - theta_bar) * exp(-gamma * t) + theta_bar``; with
    ``rate = 1 - theta_bar`` the fraction dropped is ``rate * (1 - exp(-gamma * t))``.

    Args:
        rate: the rate that is approached, in [0, 1].
        gamma: how fast, a finite number > 0. The paper takes 10 over the number of steps.

    Returns:
        Called with a step, an integer >= 0: the rate, a float.

    Raises:
        TypeError: `rate` or `gamma` is no number, or a step no integer.
        ValueError: one of them is outside its range.

    Example:
        >>> [round(Curriculum(0.5, gamma=10 / 1000)(step), 3) for step in (0, 100, 1000)]
        [0.0, 0.316, 0.5]
    """

    rate: float
    gamma: float

    def __post_init__(self) -> None:
        _rates(self, "rate")
        gamma: Any = self.gamma
        if isinstance(gamma, bool) or not isinstance(gamma, numbers.Real):
            raise InvalidTypeError(f"`gamma` must be a real number; got {gamma!r}.")
        # Neither 0 nor infinite after the conversion either.
        if not math.ulp(0.0) <= gamma <= sys.float_info.max:  # type: ignore[operator]
            raise InvalidValueError(f"`gamma` must be finite and greater than 0; got {gamma!r}.")
        object.__setattr__(self, "gamma", float(gamma))

    def __call__(self, step: int) -> float:
        """The rate at a step."""
        return self.rate * -math.expm1(-self.gamma * _step(step))


def rate_at(schedule: Schedule | float, step: int) -> float:
    """The rate of a schedule at a step, checked.

    Args:
        schedule: a function from a step to a rate; or a rate, which is the same at every step.
        step: integer >= 0.

    Returns:
        A float in [0, 1].

    Raises:
        TypeError: `step` is no integer, or what `schedule` gives no number.
        ValueError: `step` is negative, or what `schedule` gives is outside [0, 1].

    Example:
        >>> rate_at(Linear(0, 0.5, steps=100), 50)
        0.25
        >>> rate_at(lambda step: 0.1 if step % 2 else 0.2, 3)
        0.1
    """
    step = _step(step)
    rate = schedule(step) if callable(schedule) else schedule
    try:
        return Rate(rate).value
    except (InvalidTypeError, InvalidValueError) as error:
        raise type(error)(
            f"`schedule` must give a rate in [0, 1]; got {rate!r} at step {step} from {schedule!r}."
        ) from None


def _step(step: Any) -> int:
    return integer(step, "step", 0, _END)


def _progress(step: Any, begin: int, steps: int) -> float:
    """The fraction of a ramp that is behind, exactly 0 before it and exactly 1 after it."""
    return min(max(_step(step) - begin, 0), steps) / steps


def _between(start: float, end: float, progress: float) -> float:
    # The sum may miss `end` by its last bit.
    return end if progress == 1 else start + (end - start) * progress


def _rates(schedule: Any, *names: str) -> None:
    """Check the attributes that are rates, and make floats of them."""
    for name in names:
        try:
            rate = Rate(getattr(schedule, name))
        except (InvalidTypeError, InvalidValueError) as error:
            raise type(error)(str(error).replace("`rate`", f"`{name}`")) from None
        object.__setattr__(schedule, name, rate.value)


def _integers(schedule: Any, **least: int) -> None:
    """Check the attributes that are integers, each against its least value."""
    for name, low in least.items():
        object.__setattr__(schedule, name, integer(getattr(schedule, name), name, low, _END))
