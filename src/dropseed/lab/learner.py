"""What a run trains: the convnet and its optimiser, in one of the frameworks.

Every framework begins with the same weights, has the same learning rates, and drops the same
values: the losses agree to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from dropseed.lab.models import mnist_convnet
from dropseed.lab.settings import Settings

_LEARNERS = {
    "torch": "dropseed.lab.by_torch:TorchLearner",
    "keras": "dropseed.lab.by_keras:KerasLearner",
    "jax": "dropseed.lab.by_jax:JaxLearner",
}
_PEAK_LEARNING_RATE = 5e-3


class Learner(Protocol):
    """A model and its optimiser."""

    def step(self, images: Tensor, labels: Tensor, step: int) -> tuple[float, int]:
        """Do an optimiser step in training mode.

        Args:
            images: uint8 (N, 28, 28).
            labels: uint8 (N,).
            step: counted from 0; the masks have it in their key.

        Returns:
            The mean loss in nats before the step, and how many images were classified correctly.
        """
        ...

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """The summed loss in nats in inference mode, and how many images are classified correctly.

        Args:
            images: uint8 (N, 28, 28).
            labels: uint8 (N,).
        """
        ...

    def weights(self) -> dict[str, Tensor]:
        """The weights, named and laid out as in PyTorch."""
        ...

    def state(self) -> dict[str, Any]:
        """All that the next step depends on: tensors and plain values."""
        ...

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """Take over a state after some number of steps; of something else this raises anything."""
        ...


def make_learner(settings: Settings) -> Learner:
    """The learner of a run, at its beginning.

    Args:
        settings: name the framework, the seed of the first weights and the rest.

    Returns:
        The learner.

    Raises:
        ValueError: the settings' device is unknown, absent, or not the framework's.
        MissingExtraError: the framework is not installed.

    Example:
        >>> sorted(make_learner(Settings(threads=1)).weights())[:2]
        ['conv1.bias', 'conv1.weight']
    """
    module, _, name = _LEARNERS[settings.framework].partition(":")
    learner: Learner = getattr(import_module(module), name)(settings)
    return learner


def first_model(settings: Settings) -> nn.Sequential:
    """The convnet with the first weights of a seed; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        return mnist_convnet(settings.rate)


def schedule(optimiser: torch.optim.Optimizer, settings: Settings) -> OneCycleLR:
    """The learning rate and the first moment's decay, step by step (Smith and Topin 2018)."""
    total = settings.steps + 1
    rising = max(0.25, 2 / total)  # at least a step: torch divides by their number
    return OneCycleLR(optimiser, _PEAK_LEARNING_RATE, total_steps=total, pct_start=rising)


def scheduled(settings: Settings) -> tuple[list[float], list[float]]:
    """The learning rates of all steps, and the decays, for optimisers that are not torch's.

    Example:
        >>> rates, decays = scheduled(Settings(epochs=1, train_size=300))
        >>> len(rates), round(rates[0], 6), round(decays[0], 6)
        (3, 0.0002, 0.95)
    """
    optimiser = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    cycle, rates, decays = schedule(optimiser, settings), [], []
    optimiser.step()  # nothing to do yet; the schedule warns if it is asked to go first
    for _ in range(settings.steps):
        group = optimiser.param_groups[0]
        rates.append(float(group["lr"]))
        decays.append(float(group["betas"][0]))
        cycle.step()
    return rates, decays
