"""The walk through a model: what each layer gives, and what each dropout does, from real passes."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

import dropseed.torch as dst
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Key, uniform


@dataclass(frozen=True)
class Drops:
    """What a dropout layer did with an input of one example.

    Attributes:
        values: how many values it was given.
        dropped: how many of them a training pass dropped.
        factor: what the survivors were multiplied by, nan if there were none.
        changed: how many values were kept in one of two training passes and dropped in the other.
        inert: whether inference gave the input back unchanged.
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
        name: the qualified name, relative to the model.
        kind: the class's name.
        shape: the output's shape, None if the output is no tensor.
        parameters: how many numbers the layer itself learns.
        drops: what it dropped, None if it is not a dropout layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    drops: Drops | None


def trace(model: nn.Module, shape: Sequence[int], seed: int = 0) -> list[Row]:
    """Follow one example through a model, in inference and then twice in training.

    In training only the dropout layers are switched, so that no other layer's state changes.

    Args:
        model: takes a float32 batch of one example.
        shape: the example's shape, without the batch dimension.
        seed: integer in [0, 2**64), of the example's values and the masks.

    Returns:
        A row for each call of a layer, in order.

    Raises:
        ValueError: the model fails on such an input.

    Example:
        >>> rows = trace(nn.Sequential(nn.Linear(4, 2), nn.Dropout(1)), [4])
        >>> [(row.name, row.parameters) for row in rows], rows[1].drops.dropped
        ([('0', 10), ('1', 0)], 2)
    """
    example = torch.from_numpy(uniform(Key(seed), (1, *shape))).float()
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        calls = _pass(model, example)
        for module in _dropouts(model):
            module.train()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            passes = [_keyed_pass(model, example, seed, step) for step in (0, 1)]
    finally:
        for module, training in was_training.items():
            module.training = training
    return [_row(*call) for call in zip(calls, *passes, strict=True)]


def load_model(address: str) -> nn.Module:
    """Import a model's factory and call it.

    Args:
        address: "module:factory"; the factory takes no arguments and returns a torch module. A
            module in the working directory is found too.

    Returns:
        The model.

    Raises:
        TypeError: what was made is no torch module.
        ValueError: the address can't be imported, or the factory fails.
    """
    module, colon, factory = address.partition(":")
    if not (module and colon and factory):
        raise InvalidValueError(f"`MODEL` must read module:factory; got {address!r}.")
    try:
        with _importable(Path.cwd()):
            model = getattr(importlib.import_module(module), factory)()
    except Exception as error:  # whatever the user's code raises
        raise InvalidValueError(
            f"`MODEL` {address} could not be made ({_brief(error)}). It must read module:factory, "
            "importable from here, the factory callable without arguments."
        ) from error
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(
            f"`MODEL` {address} must make a torch.nn.Module; it made a {type(model).__name__}."
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


def _pass(model: nn.Module, example: Tensor) -> list[_Call]:
    """A forward pass with a hook on every layer that computes something itself."""
    calls: list[_Call] = []
    handles = [
        module.register_forward_hook(_recorder(name, calls))
        for name, module in model.named_modules()
        if not any(module.children()) or any(module.parameters(recurse=False))
    ]
    try:
        with torch.no_grad():
            model(example)
    except Exception as error:  # whatever the user's model raises
        raise InvalidValueError(
            f"`--input` {'x'.join(map(str, example.shape[1:]))} is not what the model takes "
            f"({_brief(error)}). It is one example's shape, without the batch; values are float32."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _keyed_pass(model: nn.Module, example: Tensor, seed: int, step: int) -> list[_Call]:
    dst.set_key(model, seed, step)
    try:
        return _pass(model, example)
    finally:
        dst.set_key(model, None)


def _recorder(name: str, calls: list[_Call]) -> Any:
    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = _Call(name, module, output)
        if isinstance(module, _DropoutNd) and inputs:
            call.unchanged = torch.equal(inputs[0], output)
            if module.training:
                call.kept, call.factor = _kept(module, inputs[0])
        calls.append(call)

    return record


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


def _row(inference: _Call, first: _Call, second: _Call) -> Row:
    drops = None
    if first.kept is not None and second.kept is not None:
        drops = Drops(
            values=first.kept.numel(),
            dropped=int((~first.kept).sum()),
            factor=first.factor,
            changed=int((first.kept != second.kept).sum()),
            inert=inference.unchanged,
        )
    shape = tuple(inference.output.shape) if isinstance(inference.output, Tensor) else None
    own = sum(p.numel() for p in inference.module.parameters(recurse=False))
    return Row(inference.name, type(inference.module).__name__, shape, own, drops)


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
