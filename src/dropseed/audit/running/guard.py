"""A watch over real runs: dropout that is on or off at the wrong time, reported as it happens.

What can't be known to be a mistake stays silent. The public names are `guard` and `allow`; the
environment variable `DROPSEED_GUARD` turns the watch on for any program, see `guard`.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import ContextDecorator, ExitStack
from dataclasses import dataclass
from functools import wraps
from typing import Any, Self, TypeVar, cast

from dropseed.audit.running import taps
from dropseed.audit.running.judge import Judge
from dropseed.audit.running.stack import Line
from dropseed.errors import (
    DropoutError,
    InvalidTypeError,
    InvalidValueError,
    MissingExtraError,
)

VARIABLE = "DROPSEED_GUARD"
CODES = ("DS505", "DS506", "DS507")
_MODES = ("warn", "error", "record")
_F = TypeVar("_F", bound=Callable[..., Any])


class DropoutWarning(UserWarning):
    """Dropout is on or off at the wrong time.

    Example:
        >>> issubclass(DropoutWarning, UserWarning)
        True
    """


@dataclass(frozen=True, slots=True)
class Incident:
    """Something that a guard saw.

    Attributes:
        code: "DS505", "DS506" or "DS507".
        path: the file of the user's line that led to it.
        line: the line, counted from 1.
        message: what happened, and what to do.

    Example:
        >>> print(Incident("DS506", "train.py", 40, "SGD steps in evaluation mode"))
        train.py:40: DS506 SGD steps in evaluation mode
    """

    code: str
    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.code} {self.message}"


class Guard(ContextDecorator):
    """What `guard` returns: a context manager and a decorator.

    Attributes:
        mode: "warn", "error" or "record".
    """

    def __init__(self, mode: str) -> None:
        if mode not in _MODES:
            hint = " Write @guard() with parentheses." if callable(mode) else ""
            raise InvalidValueError(
                f"`mode` must be 'warn', 'error' or 'record'; got {mode!r}.{hint}"
            )
        self.mode = mode
        self._seen: dict[tuple[str, Line], Incident] = {}

    @property
    def incidents(self) -> list[Incident]:
        """What was seen so far, each once, in the order of its first time."""
        return list(self._seen.values())

    def __enter__(self) -> Self:
        _watch(self)
        return self

    def __exit__(self, *_: object) -> None:
        _unwatch(self)

    def __call__(self, function: _F) -> _F:
        """The function, guarded whenever it runs."""
        _check_runs_through("guard", function)
        return super().__call__(function)

    def hear(self, code: str, at: Line, message: Callable[[], str]) -> None:
        """Take note, once for each line, of what happened there."""
        known = (code, at) in self._seen
        if known and self.mode != "error":
            return
        incident = Incident(code, at.path, at.number, message())
        self._seen[code, at] = incident
        if self.mode == "error":
            raise DropoutError(str(incident))
        if self.mode == "warn":
            text = f"{code} {incident.message}"
            warnings.warn_explicit(text, DropoutWarning, at.path, at.number)


def guard(mode: str = "warn") -> Guard:
    """Watch what runs for dropout that is on or off at the wrong time.

    Three mistakes are seen, each reported once for each line of the user's that leads to it:

    - DS505: dropout that drops with gradients off, under ``torch.no_grad()`` or
      ``inference_mode()``: ``model.eval()`` was forgotten, or doesn't reach it.
    - DS506: an optimiser step on a model that ran in evaluation mode, all its dropout off:
      ``model.train()`` was forgotten.
    - DS507: a whole model saved (``torch.save(model)``, ``torch.jit.save``) or exported
      (``torch.export.export``, ``torch.onnx.export``, ``torch.jit.trace``) in training mode with
      dropout on. Saving a ``state_dict``, which has no mode, is always fine, and so is a
      dictionary that holds a model to go on with.

    Silent are activation checkpointing and whatever else runs in an ``autograd.Function``; a
    module's constructor; a part of a model that its own ``forward`` runs without gradients; models
    without dropout; dropout layers put into training mode while the model is in evaluation mode,
    as Monte-Carlo dropout does; and functions and classes whose names say as much
    (``mc_dropout``, ``monte_carlo_predict``, ``BayesianNet``, ``Prenet``, ``update_bn``). Where
    else it is wanted, say so with `allow`: a mean teacher, a generator that makes fakes without
    gradients, a first pass for lazy layers, a model fine-tuned in evaluation mode on purpose.

    Code that a compiler, TorchScript or a CUDA graph runs isn't seen. Nor is it, for DS506, that
    layers by other people than torch and dropseed are off.

    A guard watches all threads. Of nested guards the innermost reports. Set the environment
    variable ``DROPSEED_GUARD`` to ``warn`` or ``error`` to put one around any program that imports
    torch, unchanged, where dropseed is installed (see `start`).

    Args:
        mode: "warn" issues a `DropoutWarning` at the user's line; "error" raises a `DropoutError`
            each time, before the step, the save or the dropout is done; "record" only keeps what
            was seen in the guard's `incidents`, as the others do too.

    Returns:
        A context manager and decorator. It has the attribute `incidents`.

    Raises:
        ValueError: `mode` is none of these.
        MissingExtraError: torch isn't installed; raised when the guard begins.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> with guard("record") as watch, torch.no_grad():
        ...     y = model(torch.ones(1, 2))
        >>> [incident.code for incident in watch.incidents]
        ['DS505']
    """
    return Guard(mode)


class Allow(ContextDecorator):
    """What `allow` returns: a context manager and a decorator."""

    def __init__(self, codes: Sequence[str]) -> None:
        unknown = next((code for code in codes if code not in CODES), None)
        if unknown is not None:
            raise InvalidValueError(f"`codes` must be among {', '.join(CODES)}; got {unknown!r}.")
        self._codes = frozenset(codes or CODES)

    def __enter__(self) -> None:
        _allowed.append(self._codes)

    def __exit__(self, *_: object) -> None:
        _allowed.remove(self._codes)

    def __call__(self, function: _F) -> _F:
        """The function, allowed whenever it runs; compiled code has it as it was."""
        _check_runs_through("allow", function)

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _compiling():
                return function(*args, **kwargs)
            with self:
                return function(*args, **kwargs)

        return cast(_F, call)


def allow(*codes: str) -> Allow:
    """Say that what a guard would report is wanted here, in all threads meanwhile.

    Args:
        codes: what is wanted: "DS505", "DS506", "DS507"; all, if none is given.

    Returns:
        A context manager and decorator.

    Raises:
        ValueError: a code is none of these.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> with guard("error"), torch.no_grad(), allow("DS505"):
        ...     votes = torch.stack([model(torch.ones(1, 2)) for _ in range(20)])
    """
    return Allow(codes)


def start() -> None:
    """Watch from here on if the environment variable `DROPSEED_GUARD` says so.

    ``import torch`` calls this at its end, by an entry point of dropseed's in the group
    ``torch.backends``. Torch made that group for devices, and calls all that are installed;
    ``TORCH_DEVICE_BACKEND_AUTOLOAD=0`` keeps it from doing so.

    Raises:
        ValueError: the variable is neither "warn" nor "error" nor empty.

    Example:
        >>> start()  # does nothing here, where the variable isn't set
    """
    mode = os.environ.get(VARIABLE, "")
    if mode not in ("", "warn", "error"):
        raise InvalidValueError(
            f"The environment variable `{VARIABLE}` must be 'warn' or 'error'; got {mode!r}. "
            "Unset it to run without a guard."
        )
    if mode and not _started:
        _started.append(guard(mode).__enter__())


# ---- one watch for all guards ----------------------------------------------------------------

_guards: list[Guard] = []
_started: list[Guard] = []
_allowed: list[frozenset[str]] = []
_lock = threading.Lock()


def _report(code: str, at: Line, message: Callable[[], str]) -> None:
    if any(code in codes for codes in tuple(_allowed)):
        return
    for innermost in _guards[-1:]:
        innermost.hear(code, at, message)


_judge = Judge(_report)
_taps = ExitStack()
_attached = False


def _watch(one: Guard) -> None:
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "torch") from error
    with _lock:
        if not _guards:
            _taps.enter_context(taps.opened(_judge.dropout, _judge.step, _judge.leave))
        _guards.append(one)
    attach()


def _unwatch(one: Guard) -> None:
    global _attached
    with _lock:
        last = len(_guards) - 1 - _guards[::-1].index(one)
        del _guards[last]
        if not _guards:
            _taps.close()
            _attached = False
            _judge.forget()


def attach() -> None:
    """Let the guards see dropseed's own dropout too, if it is imported by now."""
    global _attached
    with _lock:
        if _guards and not _attached and "dropseed.torch.noise" in sys.modules:
            _taps.enter_context(taps.opened_dropseed(_judge.dropout))
            _attached = True


def _check_runs_through(name: str, function: Callable[..., Any]) -> None:
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        raise InvalidTypeError(
            f"`{name}` can't decorate {function.__name__}, which stops in between. "
            f"Write `with {name}():` inside it."
        )


def _compiling() -> bool:
    from torch import compiler

    return compiler.is_compiling()
