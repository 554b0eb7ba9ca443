"""What determines a training run's numbers, checked once. Without torch, hence quick to import."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Rate
from dropseed.mask.key import integer

FRAMEWORKS = ("torch", "keras", "jax")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """The settings of a run: with the data and the package versions they determine every number.

    Args:
        epochs: passes over the training images, at least 1.
        rate: the fraction dropped in front of the last layer, in [0, 1].
        seed: integer in [0, 2**64): first weights, choice and order of the images, and masks.
        batch_size: images a step, at least 1.
        train_size: how many of the 60,000 training images are used, at least 1.
        device: a torch device, for instance "cpu" or "cuda"; "cpu" for other frameworks, which
            choose for themselves.
        threads: torch's CPU threads; another number may round sums differently.
        framework: "torch", "keras" or "jax". All have the same first weights, order and masks.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is outside its range.

    Example:
        >>> Settings(rate=0.2).rate
        0.2
    """

    epochs: int = 4
    rate: float = 0.5
    seed: int = 0
    batch_size: int = 128
    train_size: int = 60_000
    device: str = "cpu"
    threads: int = field(default_factory=_cores)
    framework: str = "torch"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", Rate(self.rate).value)
        if not isinstance(self.device, str):
            raise InvalidTypeError(f"`device` must be a string; got {self.device!r}.")
        if self.framework not in FRAMEWORKS:
            raise InvalidValueError(
                f"`framework` must be one of {', '.join(FRAMEWORKS)}; got {self.framework!r}."
            )
        if self.framework != "torch" and self.device != "cpu":
            raise InvalidValueError(
                f"`device` must be left out: {self.framework} chooses its own; got {self.device!r}."
            )
        limits = {"epochs": 10_001, "batch_size": 60_001, "train_size": 60_001, "threads": 1025}
        for name, limit in limits.items():
            object.__setattr__(self, name, integer(getattr(self, name), name, 1, limit))
        object.__setattr__(self, "seed", integer(self.seed, "seed", 0, 2**64))

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch; the last one may have fewer images."""
        return -(-self.train_size // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    def must_agree(self, asked: Mapping[str, Any]) -> None:
        """Check that what was asked for is what this run has.

        Args:
            asked: some settings by name.

        Raises:
            ValueError: one differs; the message names it.

        Example:
            >>> Settings(rate=0.5).must_agree({"rate": 0.5})
        """
        saved = asdict(self)
        for name, value in asked.items():
            if value != saved[name]:
                raise InvalidValueError(
                    f"`{name}` is {saved[name]} in the run to be resumed; got {value}. "
                    "Leave it out, or start another run in another folder."
                )
