"""The passes that a model is judged by: evaluation twice, training several times."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.draws import digest, is_plain, unseen
from dropseed.audit.running.graph import Call, Pass, record, tensors
from dropseed.audit.running.place import is_batch_norm
from dropseed.audit.running.places import module_names
from dropseed.audit.running.unchanged import own_randomness, unchanged
from dropseed.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor, nn

TRAINING_PASSES = 8

_UNWRITTEN = re.compile(r"(new)?empty\w*")  # functions that return whatever is in memory


@dataclass(frozen=True)
class Watched:
    """A pass, and what was read of its numbers.

    Attributes:
        flow: the calls.
        digests: hashes of what each call gave; evaluation only.
        variances: of the inputs of batch normalisations, over the batch and space, the channels'
            mean; None for a single value a channel.
        modes: which of the model's modules are in training mode after the pass, by name.
    """

    flow: Pass
    digests: dict[Call, tuple[str, ...]] = field(default_factory=dict)
    variances: dict[Call, float | None] = field(default_factory=dict)
    modes: dict[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Passes:
    """The passes of a model.

    Attributes:
        evaluation: two, with what is random drawn anew.
        training: `TRAINING_PASSES`, in which batch normalisation goes on by its running statistics.
    """

    evaluation: list[Watched]
    training: list[Watched]


def run(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Passes:
    """Run a model in evaluation and in training, and leave it as it is.

    Gradients are recorded, as some models take one in their forward pass, but none is computed.

    Args:
        model: the model.
        args: its positional arguments.
        kwargs: its named ones.

    Returns:
        The passes.

    Raises:
        ValueError: the model fails.
    """
    import torch

    def one(mode: str, switch: Callable[[nn.Module], None]) -> Watched:
        try:
            switch(model)
            return _watched(model, _copied(args), _copied(kwargs), mode)
        except Exception as error:  # whatever the user's code raises
            raise InvalidValueError(
                f"`model` fails in {mode} on `example_inputs` ({_brief(error)}). They are what it "
                "is called with: a tensor, a tuple of arguments, or a dict of named ones."
            ) from error
        finally:
            restore()

    with own_randomness(model), torch.enable_grad(), unchanged(model) as restore:
        evaluation = [one("evaluation", _evaluate) for _ in range(2)]
        training = [one("training", _train) for _ in range(TRAINING_PASSES)]
    return Passes(evaluation, training)


def _evaluate(model: nn.Module) -> None:
    model.eval()


def _train(model: nn.Module) -> None:
    """Batch statistics would hide what dropout does to the variance; a batch of one has none."""
    from torch.nn.modules.batchnorm import _BatchNorm

    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.training = False


def _watched(model: nn.Module, args: Any, kwargs: Any, mode: str) -> Watched:
    digests: dict[Call, tuple[str, ...]] = {}
    variances: dict[Call, float | None] = {}

    def look(call: Call, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        with unseen():
            if mode == "evaluation" and not _UNWRITTEN.fullmatch(call.word):
                digests[call] = tuple(digest(one) for one in outputs if is_plain(one))
            if is_batch_norm(call) and inputs:
                variances[call] = _variance(inputs[0])

    flow = record(model, args, kwargs, look)
    modes = {name: module.training for module, name in module_names(model).items()}
    return Watched(flow, digests, variances, modes)


def _variance(maps: Tensor) -> float | None:
    channels = maps.detach().double().transpose(0, 1).flatten(1)
    return channels.var(1, correction=0).mean().item() if channels.shape[1] > 1 else None


def _copied(value: Any) -> Any:
    """A copy of nested arguments, also where tensors have a history and can't be deep-copied."""
    copies = {
        id(one): one.detach().clone().requires_grad_(one.requires_grad) for one in tensors(value)
    }
    return copy.deepcopy(value, copies)


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
