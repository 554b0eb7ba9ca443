"""The convnet in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import dropseed.torch as dst
from dropseed.errors import InvalidValueError
from dropseed.lab.learner import first_model, schedule
from dropseed.lab.models import normalise
from dropseed.lab.settings import Settings


class TorchLearner:
    """A `Learner` in PyTorch, on any device.

    Args:
        settings: of the run.

    Raises:
        ValueError: the settings' device is unknown or absent.
    """

    def __init__(self, settings: Settings) -> None:
        self.seed = settings.seed
        self.device = usable_device(settings.device)
        self.model = first_model(settings)
        # Channels last is the faster order of memory for convolutions on CPU and GPU alike.
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.Adam(self.model.parameters(), fused=True)
        self.schedule = schedule(self.optimiser, settings)

    def step(self, images: Tensor, labels: Tensor, step: int) -> tuple[float, int]:
        """As `Learner.step`."""
        dst.set_key(self.model, self.seed, step)
        self.model.train()
        target = labels.to(self.device).long()
        logits = self.model(self._input(images))
        loss = nn.functional.cross_entropy(logits, target)
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.schedule.step()
        return loss.item(), int((logits.argmax(1) == target).sum())

    @torch.no_grad()
    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """As `Learner.evaluate`."""
        self.model.eval()
        logits, target = self.model(self._input(images)), labels.to(self.device).long()
        loss = nn.functional.cross_entropy(logits, target, reduction="sum").item()
        return loss, int((logits.argmax(1) == target).sum())

    def weights(self) -> dict[str, Tensor]:
        """As `Learner.weights`."""
        return {name: at.cpu().contiguous() for name, at in self.model.state_dict().items()}

    @property
    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimiser": self.optimiser, "schedule": self.schedule}

    def state(self) -> dict[str, Any]:
        """As `Learner.state`."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """As `Learner.restore`."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        if self.schedule.last_epoch != step:
            raise InvalidValueError("its learning rate is that of another step")

    def _input(self, images: Tensor) -> Tensor:
        return normalise(images.to(self.device)).contiguous(memory_format=torch.channels_last)


def usable_device(name: str) -> torch.device:
    """The torch device of a name, tried out.

    Args:
        name: for instance "cpu", "cuda" or "cuda:1".

    Returns:
        The device.

    Raises:
        ValueError: torch doesn't know it, or this machine doesn't have it.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own
        raise InvalidValueError(
            f"`device` {name!r} is unknown to torch or absent here. Try `cpu`."
        ) from error
    return device
