"""The walk through a model: what each layer gives, and what each dropout does, from real passes."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

import dropseed.torch as dst
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Key, uniform
from dropseed.mask.key import site_number
from dropseed.torch.keyed import KeyedLayer, places

LARGEST_INPUT = 2**24


@dataclass(frozen=True)
class Drops:
    """What a dropout layer did with an input of one example.

    Attributes:
        values: how many values it was given.
        dropped: how many of them a training pass dropped.
        factor: what the survivors were multiplied by, nan if there were none.
        changed: how many values were kept in one of two training passes and dropped in the other.
        inert: whether inference gave the input back unchanged, or never called the layer.
    """

    values: int
    dropped: int
    factor: float
    changed: int
    inert: bool


@dataclass(frozen=True)
class Row:
    """A layer's call. `name` is its qualified name, by which other findings can be joined.

    Attributes:
        name: the qualified name, relative to the model and without wrappers' prefixes.
        kind: the class's name.
        shape: the output's shape, None if the output is no tensor.
        parameters: how many numbers the layer itself learns.
        drops: what it dropped, None if it is not a dropout layer.
        site: the site's number where `convert` fixed another than the name's, else None.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    drops: Drops | None
    site: int | None = None

    @property
    def label(self) -> str:
        """The name, with the site's number where the name doesn't tell it."""
        return self.name if self.site is None else f"{self.name} (site number {self.site})"


def trace(model: nn.Module, shape: Sequence[int], seed: int = 0) -> list[Row]:
    """Follow one example through a model, in inference and then twice in training.

    In training only the dropout layers are switched, so that no other layer's state changes. The
    keys that the model's layers have stay theirs.

    Args:
        model: takes a float32 batch of one example.
        shape: the example's shape, without the batch dimension; at most 2**24 values.
        seed: integer in [0, 2**64), of the example's values and the masks.

    Returns:
        A row for each call of a layer in inference or training, in order.

    Raises:
        ValueError: the shape has too many values, the model fails on such an input, or its two
            training passes do not match.

    Example:
        >>> rows = trace(nn.Sequential(nn.Linear(4, 2), nn.Dropout(1)), [4])
        >>> [(row.name, row.parameters) for row in rows], rows[1].drops.dropped
        ([('0', 10), ('1', 0)], 2)
    """
    example = _example(shape, seed)
    names: dict[nn.Module, str] = {}
    for place in places(model):
        names.setdefault(place.module, place.name)
    was_training = {module: module.training for module in names}
    keys = {module: module.key for module in names if isinstance(module, KeyedLayer)}
    model.eval()
    try:
        inference = _pass(model, names, example)
        for module in _dropouts(model):
            module.train()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            passes = []
            for step in (0, 1):
                dst.set_key(model, seed, step)
                passes.append(_pass(model, names, example))
    finally:
        for module, training in was_training.items():
            module.training = training
        for layer, key in keys.items():
            layer.key = key
    _must_match(*passes)
    return [_row(called, inference, *passes) for called in _merged(inference, passes[0])]


def load_model(address: str, argument: str = "MODEL") -> nn.Module:
    """Import a model's factory and call it.

    Args:
        address: "module:factory"; the factory takes no arguments and returns a torch module. A
            module in the working directory is found too.
        argument: what the address was given to, for the messages.

    Returns:
        The model.

    Raises:
        TypeError: what was made is no torch module.
        ValueError: the address can't be imported, or the factory fails.
    """
    module, colon, factory = address.partition(":")
    if not (module and colon and factory):
        raise InvalidValueError(f"`{argument}` must read module:factory; got {address!r}.")
    try:
        with _importable(Path.cwd()):
            model = getattr(importlib.import_module(module), factory)()
    except Exception as error:  # whatever the user's code raises
        raise InvalidValueError(
            f"`{argument}` {address} could not be made ({_brief(error)}). It must read "
            "module:factory, importable from here, the factory callable without arguments."
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            f"`{argument}` {address} must make a torch.nn.Module; it made a {type(model).__name__}."
        )
    return model


@dataclass
class _Call:
    """One call of a layer in one pass. `kept` and `factor` only for dropout layers in training."""

    name: str
    module: nn.Module
    output: Any
    unchanged: bool = False
    kept: Tensor | None = None
    factor: float = float("nan")


Called = tuple[nn.Module, int]
"""A layer, and how often it had been called before in the same pass."""

Calls = dict[Called, _Call]
"""The calls of one pass, in order."""


def _example(shape: Sequence[int], seed: int) -> Tensor:
    size = math.prod(shape)
    if max(size, *shape, 0) > LARGEST_INPUT:
        raise InvalidValueError(
            f"`--input` {_sizes(shape)} is too large; at most {LARGEST_INPUT:,} values can be "
            "traced."
        )
    return torch.from_numpy(uniform(Key(seed), size)).float().reshape(1, *shape)


def _pass(model: nn.Module, names: Mapping[nn.Module, str], example: Tensor) -> Calls:
    """A forward pass with a hook on every layer that computes something itself."""
    calls: Calls = {}
    handles = [
        module.register_forward_hook(_recorder(name, calls), with_kwargs=True)
        for module, name in names.items()
        if not [*module.children()] or [*module.parameters(recurse=False)]
    ]
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:  # whatever the user's model raises
        raise InvalidValueError(
            f"`--input` {_sizes(example.shape[1:])} is not what the model takes "
            f"({_brief(error)}). It is one example's shape, without the batch; values are float32."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _recorder(name: str, calls: Calls) -> Any:
    occurrences = itertools.count()

    def record(
        module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any
    ) -> None:
        call = calls[module, next(occurrences)] = _Call(name, module, output)
        value = inputs[0] if inputs else named.get("input")
        if isinstance(module, _DropoutNd) and isinstance(value, Tensor):
            call.unchanged = torch.equal(value, output)
            if module.training:
                call.kept, call.factor = _kept(module, value)

    return record


def _must_match(first: Calls, second: Calls) -> None:
    """Refuse a model whose two training passes can't be compared value by value."""
    shapes = [
        {called: call.kept.shape for called, call in calls.items() if call.kept is not None}
        for calls in (first, second)
    ]
    if shapes[0] != shapes[1]:
        raise InvalidValueError(
            "`MODEL` calls other dropout layers, or gives them other shapes, at each training "
            "pass; what they drop can't be compared."
        )


def _merged(inference: Calls, training: Calls) -> list[Called]:
    """The calls of inference in order, each that only training makes behind the one before it."""
    behind: dict[Called | None, list[Called]] = {None: []}
    last = None
    for called in training:
        if called in inference:
            last = called
        else:
            behind.setdefault(last, []).append(called)
    order = list(behind[None])
    for called in inference:
        order += [called, *behind.get(called, [])]
    return order


def _kept(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, float]:
    """Which values a dropout layer keeps, and their factor.

    Kept is what depends on the input: a zero in the output may just be a zero of the input, and
    alpha dropout drops to something else than zero. So the layer runs on ones and on twos, both
    with the key or the generator that it has at this moment of the pass.
    """
    outputs = []
    for fill in (1.0, 2.0):
        with torch.random.fork_rng(devices=[]):
            outputs.append(layer.forward(torch.full_like(inputs, fill)))
    slope = outputs[1] - outputs[0]
    kept = slope != 0
    return kept, slope[kept].mean().item() if kept.any() else float("nan")


def _row(called: Called, inference: Calls, *passes: Calls) -> Row:
    call = inference[called] if called in inference else passes[0][called]
    first, second = (calls.get(called, call) for calls in passes)
    drops = None
    if first.kept is not None and second.kept is not None:
        drops = Drops(
            values=first.kept.numel(),
            dropped=int((~first.kept).sum()),
            factor=first.factor,
            changed=int((first.kept != second.kept).sum()),
            inert=called not in inference or inference[called].unchanged,
        )
    shape = tuple(call.output.shape) if isinstance(call.output, Tensor) else None
    own = sum(p.numel() for p in call.module.parameters(recurse=False))
    fixed = call.module.site if isinstance(call.module, KeyedLayer) else None
    site = None if fixed == site_number(call.name) else fixed
    return Row(call.name, type(call.module).__name__, shape, own, drops, site)


def _sizes(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _dropouts(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _DropoutNd)]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def _brief(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
