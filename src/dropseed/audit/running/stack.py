"""Who is calling: the modules that run, and the user's line that began it.

Looks at Python's stack only, never at what the frames hold but for the modules they run.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

_PACKAGE = str(Path(__file__).parents[2]) + os.sep
_STANDARD = str(Path(os.__file__).parent) + os.sep
_SCRIPTS = sysconfig.get_path("scripts") + os.sep
_GENERATED = ("<frozen", "<eval_with_key>")


class Call(NamedTuple):
    """A module that is running.

    Attributes:
        module: the module.
        caller: the frame that called it.
    """

    module: nn.Module
    caller: FrameType


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        path: the file, as Python names it.
        number: counted from 1.
    """

    path: str
    number: int


def frames() -> list[FrameType]:
    """The stack outside of the function that asks, from the innermost frame to the outermost.

    That function's own frame would hold a list that holds the frame: a cycle that keeps all the
    tensors of the stack alive.

    Example:
        >>> def asked():
        ...     return frames()
        >>> asked()[0].f_code.co_name
        '<module>'
    """
    stack = []
    frame: FrameType | None = sys._getframe(2)
    while frame:
        stack.append(frame)
        frame = frame.f_back
    return stack


def calls(stack: Sequence[FrameType]) -> list[Call]:
    """The PyTorch modules that run on a stack, the innermost first.

    Args:
        stack: frames, the innermost first.

    Returns:
        One `Call` for each.

    Example:
        >>> calls([])
        []
    """
    code = _entrance()
    return [Call(f.f_locals["self"], f.f_back or f) for f in stack if f.f_code is code]


def root() -> nn.Module | None:
    """The outermost PyTorch module that runs: `calls(frames())[-1].module`, in less time.

    Example:
        >>> root() is None
        True
    """
    code = _entrance()
    found = None
    frame: FrameType | None = sys._getframe(1)
    while frame:
        if frame.f_code is code:
            found = frame
        frame = frame.f_back
    return found.f_locals["self"] if found else None


def innermost() -> nn.Module | None:
    """The innermost PyTorch module that runs.

    Example:
        >>> innermost() is None
        True
    """
    code = _entrance()
    frame: FrameType | None = sys._getframe(1)
    while frame and frame.f_code is not code:
        frame = frame.f_back
    return frame.f_locals["self"] if frame else None


@cache
def _entrance() -> CodeType:
    from torch import nn

    return nn.Module._wrapped_call_impl.__code__


def users_line(stack: Sequence[FrameType]) -> Line:
    """The innermost line that is in no installed package.

    Where all code on the stack is installed, the innermost that is neither torch's nor this
    package's part in the call.

    Args:
        stack: frames, the innermost first.

    Returns:
        The line.

    Example:
        >>> def asked():
        ...     return users_line(frames())
        >>> asked().path
        '<doctest dropseed.audit.running.stack.users_line[1]>'
    """
    users = (f for f in stack if is_users(f))
    others = (f for f in stack if not _is_machinery(f.f_code.co_filename))
    return line(next(users, None) or next(others, None) or stack[0])


def root_line(stack: Sequence[FrameType], running: Sequence[Call]) -> Line:
    """The line that called the model: the outermost module that the user's code calls.

    Args:
        stack: frames, the innermost first.
        running: the modules that run on it.

    Returns:
        The line; without such a module, the one of `users_line`.
    """
    callers = (call.caller for call in reversed(running) if is_users(call.caller))
    caller = next(callers, None)
    return line(caller) if caller else users_line(stack)


def line(frame: FrameType) -> Line:
    """The line at which a frame stands."""
    return Line(frame.f_code.co_filename, frame.f_lineno)


def is_users(frame: FrameType) -> bool:
    """Whether a frame's code is in no installed package."""
    return not _is_installed(frame.f_code.co_filename)


@lru_cache(maxsize=4096)
def _is_installed(path: str) -> bool:
    packages = "site-packages" in path or "dist-packages" in path
    return packages or path.startswith((_PACKAGE, _STANDARD, _SCRIPTS)) or _is_machinery(path)


@lru_cache(maxsize=4096)
def _is_machinery(path: str) -> bool:
    import torch

    folders = Path(torch.__file__).parent, Path(_PACKAGE, "audit"), Path(_PACKAGE, "torch")
    return path.startswith((*(f"{folder}{os.sep}" for folder in folders), *_GENERATED))
