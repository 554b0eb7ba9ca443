"""Run a model and leave no trace: its tensors, its attributes and the random generators."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.draws import is_plain

if TYPE_CHECKING:
    from torch import Tensor, nn

_CONTAINERS = (
    dict,
    OrderedDict,
    list,
    set,
)  # as modules keep their parameters, buffers, children and hooks


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Put a model back as it was at the end, and whenever asked to.

    That is every module's attributes and what their dicts, lists and sets hold, the values of
    parameters, buffers and other tensors. Takes as much memory again as the tensors.

    Args:
        model: the model.

    Yields:
        A function that puts the model back.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> with unchanged(norm):
        ...     y = norm.train()(torch.ones(4, 2))
        >>> norm.num_batches_tracked.item()
        0
    """
    attributes = [(vars(module), dict(vars(module))) for module in model.modules()]
    values = [value for _, saved in attributes for value in saved.values()]
    contents = [(value, value.copy()) for value in values if type(value) in _CONTAINERS]
    tensors = [(tensor, tensor.detach().clone()) for tensor in _tensors(model, values)]

    def restore() -> None:
        for container, saved in [*attributes, *contents]:
            _refill(container, saved)
        for tensor, before in tensors:
            _rewrite(tensor, before)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def own_randomness(model: nn.Module) -> Iterator[None]:
    """Seed the generators of torch, Python and NumPy, and put them back at the end.

    Args:
        model: the model, whose devices' generators are meant.

    Example:
        >>> import torch
        >>> model, before = torch.nn.Linear(1, 1), torch.get_rng_state()
        >>> with own_randomness(model):
        ...     y = torch.rand(3)
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    import torch

    numbers = {tensor.get_device() for tensor in model.parameters() if tensor.is_cuda}
    with ExitStack() as exits:
        exits.callback(random.setstate, random.getstate())
        if "numpy" in sys.modules:
            numpy = sys.modules["numpy"].random
            exits.callback(numpy.set_state, numpy.get_state())
            numpy.seed(0)
        exits.enter_context(torch.random.fork_rng(devices=sorted(numbers)))
        random.seed(0)
        torch.default_generator.manual_seed(0)
        for number in numbers:
            torch.cuda.default_generators[number].manual_seed(0)
        yield


def _tensors(model: nn.Module, values: list[Any]) -> list[Tensor]:
    found = {id(value): value for value in [*model.parameters(), *model.buffers(), *values]}
    return [value for value in found.values() if is_plain(value)]


def _refill(container: Any, saved: Any) -> None:
    container.clear()
    (container.extend if isinstance(saved, list) else container.update)(saved)


def _rewrite(tensor: Tensor, before: Tensor) -> None:
    """Give a tensor its former values if it has others; autograd needn't know."""
    import torch

    if not torch.equal(tensor.detach(), before):
        tensor.data.copy_(before)
