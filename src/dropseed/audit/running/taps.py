"""The few places of PyTorch that every dropout, optimiser step and export passes.

`opened` wraps them and puts back what was there. A wrapper tells what it sees and calls the
original: numbers and random streams stay as they are. The places lie deep, so that they don't
show: `torch.nn.functional.dropout` remains itself, for whoever imported it before and for FX. The
compiler and TorchScript are told what a wrapper stands for, and look through it.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from dropseed.audit.running.stack import innermost

Dropout = Callable[[str, Any, Any, bool], None]
"""Hears of a dropout call: the function, its input, the rate (None: unknown), whether it drops."""
Leave = Callable[[str, Any], None]
"""Hears of what is about to be saved or exported: the function, the thing."""
Step = Callable[[Any], None]
"""Hears of an optimiser that is about to step."""

_DROPOUTS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_DRAWS = ("rand", "rand_like", "bernoulli")
_DROPS = re.compile(
    r"drop_?(out|path|block|connect|layer)|layer_?drop|stochastic_?depth", re.IGNORECASE
)
_OURS = {"drop": "dropout", "alpha": "alpha_dropout", "gaussian": "gaussian_dropout"}


class _Place(NamedTuple):
    """An attribute to wrap: `read` finds what `hear` wants to know in a call's arguments."""

    owner: Any
    name: str
    read: Callable[..., tuple[Any, ...] | None]
    hear: Callable[..., None]
    label: str
    operator: str | None = None


@contextmanager
def opened(dropout: Dropout, step: Step, leave: Leave) -> Iterator[None]:
    """Tell of every dropout call, optimiser step, save and export, before it happens.

    Args:
        dropout: hears of dropout: torch's functions and modules, attention and recurrent layers,
            and layers of anybody's whose name says that they drop paths or blocks.
        step: hears of optimiser steps.
        leave: hears of saves and exports.
            What they raise, the call raises.

    Yields:
        None. Afterwards torch is as before.

    Example:
        >>> import torch
        >>> with opened(lambda *call: print(call[0], call[2:]), print, print):
        ...     y = torch.nn.Dropout(0.25)(torch.ones(2))
        dropout (0.25, True)
    """
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    with ExitStack() as undo:
        for place in (*_dropouts(dropout), *_exits(leave)):
            undo.enter_context(_wrapped(place))
        undo.callback(register_optimizer_step_pre_hook(lambda one, *_: step(one)).remove)
        yield


@contextmanager
def opened_dropseed(dropout: Dropout) -> Iterator[None]:
    """Tell of the calls of dropseed's own dropout as well; it must have been imported."""
    noise = sys.modules["dropseed.torch.noise"]
    with ExitStack() as undo:
        for name, label in _OURS.items():
            undo.enter_context(_wrapped(_Place(noise, name, _plain, dropout, label)))
        undo.enter_context(_wrapped(_Place(noise, "key_for", _keyed, dropout, "dropseed")))
        yield


def _dropouts(hear: Dropout) -> Iterator[_Place]:
    import torch
    from torch import _VF
    from torch.nn import functional

    for name in (name + suffix for name in _DROPOUTS for suffix in ("", "_")):
        for owner in (torch, _VF):
            yield _Place(owner, name, _plain, hear, name, f"aten::{name}")
    for name in _RECURRENT:
        yield _Place(_VF, name, _recurrent, hear, name, f"aten::{name}")
    attention = "scaled_dot_product_attention"
    yield _Place(functional, attention, _attention, hear, attention, f"aten::{attention}")
    yield _Place(torch.Tensor, "bernoulli_", _named_so, hear, "drop")
    for name in _DRAWS:
        yield _Place(torch, name, _named_so, hear, "drop", f"aten::{name}")


def _exits(hear: Leave) -> Iterator[_Place]:
    import torch
    from torch.jit._script import RecursiveScriptModule

    for owner, name in (
        (torch, "save"),
        (torch.export, "export"),
        (torch.jit, "trace"),
        (torch.jit, "save"),
    ):
        yield _Place(owner, name, _first, hear, f"{owner.__name__}.{name}")
    yield _Place(RecursiveScriptModule, "save", _first, hear, "ScriptModule.save")


# ---- what a call's arguments say -------------------------------------------------------------


def _argument(args: tuple[Any, ...], kwargs: dict[str, Any], place: int, *names: str) -> Any:
    if place < len(args):
        return args[place]
    return next((kwargs[name] for name in names if name in kwargs), None)


def _plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    rate = _argument(args, kwargs, 1, "p")
    on = _argument(args, kwargs, 2, "train", "training")
    return _argument(args, kwargs, 0, "input"), rate, bool(on)


def _recurrent(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Four of nine are has_biases, num_layers, dropout, train: from 3 on, if packed from 4 on."""
    if len(args) != 9:
        return None
    first = 3 if isinstance(args[3], bool) else 4
    _, layers, rate, on = args[first : first + 4]
    return (args[0], rate, on) if layers > 1 else None


def _attention(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    rate = _argument(args, kwargs, 4, "dropout_p")
    return (_argument(args, kwargs, 0, "query"), rate, True) if rate else None


def _named_so(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """A draw by a function or layer whose name says that it drops: its first tensor is dropped."""
    from torch import Tensor

    frame = sys._getframe(2)
    code = frame.f_code
    if not _DROPS.search(code.co_qualname):
        return None
    given = (frame.f_locals.get(name) for name in code.co_varnames[: code.co_argcount])
    values = next((one for one in given if isinstance(one, Tensor)), None)
    return values, None, True


def _keyed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
    """Layers that draw in evaluation by design do so with the switch off."""
    module = innermost()
    return (args[1], None, True) if module is not None and module.training else None


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    return (_argument(args, kwargs, 0, "obj", "mod", "func", "m"),)


# ---- wrapping --------------------------------------------------------------------------------


@contextmanager
def _wrapped(place: _Place) -> Iterator[None]:
    from torch.jit import _builtins

    owner, name = place.owner, place.name
    inherited = name not in vars(owner)
    original = getattr(owner, name)
    wrapper = _wrapper(original, place.read, place.hear, place.label)
    operators = _builtins._get_builtin_table()  # type: ignore[no-untyped-call]
    if place.operator is not None:
        operators[id(wrapper)] = place.operator
    setattr(owner, name, wrapper)
    try:
        yield
    finally:
        operators.pop(id(wrapper), None)
        if vars(owner).get(name) is not wrapper:
            pass  # somebody wrapped the wrapper, and still does
        elif inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def _wrapper(
    original: Callable[..., Any],
    read: Callable[..., tuple[Any, ...] | None],
    hear: Callable[..., None],
    label: str,
) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        seen = read(args, kwargs)
        if seen is not None:
            hear(label, *seen)
        return original(*args, **kwargs)

    call._torchdynamo_inline = original  # type: ignore[attr-defined]
    return call
