"""Where in a program a call is: the innermost module that runs, and the line that called."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_NO_CODE = compile("", "", "exec")


@dataclass
class Entry:
    """A module that runs.

    Attributes:
        module: the module.
        name: its qualified name in the model; where it isn't the model's, its class in angle
            brackets behind the name of the module that called it.
        known: whether the model, or a module of it that runs, holds it.
        grad: whether gradients were recorded when it began.
        call: what is kept about its call while it runs; the calls inside are then part of it.
        exits: what to undo when it returns.
    """

    module: nn.Module
    name: str
    known: bool
    grad: bool
    call: Any = None
    exits: ExitStack = field(default_factory=ExitStack)


class Places:
    """The modules that run, for each thread and for each backward pass in it.

    What a checkpoint recomputes runs in a backward pass. There the innermost module may not have
    been called, since a checkpoint can run a method of it: it is then the nearest `self`, or what
    an inner function has of it.

    Args:
        model: the model that gives the names; by default the outermost module that runs first.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model
        self._names: dict[nn.Module, str] = {} if model is None else module_names(model)
        self._local = threading.local()
        self._ordinals: dict[tuple[str, str], dict[tuple[CodeType, int], int]] = {}

    @contextmanager
    def follow(
        self, entered: Callable[[Entry, Any], None], left: Callable[[Entry, Any, Any], None]
    ) -> Iterator[None]:
        """Keep track while a program runs.

        Args:
            entered: called with each module that begins, and its positional arguments.
            left: called with each module that ends, its output (None where it failed) and its
                named arguments.
        """
        from torch.nn.modules import module as hooks

        def before(module: nn.Module, inputs: Any) -> None:
            entered(self._push(module), inputs)

        def after(module: nn.Module, inputs: Any, *rest: Any) -> None:
            entry = self._pop(module)
            if entry:  # torch leaves the named arguments out where the module failed
                left(entry, rest[-1], rest[0] if len(rest) == 2 else {})
                entry.exits.close()

        with ExitStack() as handles:
            handles.callback(self._unwind)
            handles.callback(hooks.register_module_forward_pre_hook(before).remove)
            last = hooks.register_module_forward_hook(after, with_kwargs=True, always_call=True)
            handles.callback(last.remove)
            # which forgets this one, whereupon torch.compile warns of global hooks for good
            handles.callback(hooks._global_forward_hooks_with_kwargs.pop, last.id, None)
            yield

    def top(self) -> Entry | None:
        """The innermost module that was called; None outside of all."""
        stack = self._stack()
        return stack[-1] if stack else None

    def innermost(self) -> Entry | None:
        """The innermost module that runs, called or not; None outside of all."""
        from torch import nn

        top = self.top()
        if top:
            return top
        for frame in _frames():
            code = frame.f_code
            for name in (*code.co_varnames[: min(code.co_argcount, 1)], *code.co_freevars):
                module = frame.f_locals.get(name)
                if isinstance(module, nn.Module) and module in self._names:
                    return Entry(module, self._names[module], known=True, grad=_grad_enabled())
        return None

    def site(self, entry: Entry | None, function: str) -> str:
        """The name of a call of a function: its module's, its own, and which of several it is.

        Several are told apart by their places in the code, so that a call in a loop is one.
        """
        name = entry.name if entry else ""
        frame = _outside()
        place = (frame.f_code, frame.f_lasti) if frame else (_NO_CODE, 0)
        seen = self._ordinals.setdefault((name, function), {})
        ordinal = seen.setdefault(place, len(seen) + 1)
        full = f"{name}:{function}" if name else function
        return full if ordinal == 1 else f"{full}#{ordinal}"

    def grad_mode(self) -> str:
        """Whether gradients flow: "grad", "no_grad" or "inference".

        A custom `autograd.Function`, as a reentrant checkpoint is one, runs without and yet
        passes them on: what counts is then the mode in which the outermost module was called.
        """
        import torch

        if torch.is_inference_mode_enabled():
            return "inference"
        stack = self._stack()
        outer = bool(stack) and stack[0].grad and _in_autograd_function()
        return "grad" if _grad_enabled() or outer else "no_grad"

    def _push(self, module: nn.Module) -> Entry:
        stack = self._stack()
        if not self._names and not stack:
            self.model, self._names = module, module_names(module)
        name, known = self._names.get(module), True
        if name is None:
            parent = stack[-1].name if stack else ""
            name = f"{parent}.<{type(module).__name__}>".lstrip(".")
            known = any(entry.known for entry in stack)
        entry = Entry(module, name, known, _grad_enabled())
        stack.append(entry)
        return entry

    def _pop(self, module: nn.Module) -> Entry | None:
        stack = self._stack()
        if all(entry.module is not module for entry in stack):
            return None  # it ran before anyone watched
        while (entry := stack.pop()).module is not module:
            entry.exits.close()
        return entry

    def _stack(self) -> list[Entry]:
        import torch

        stacks: dict[int, list[Entry]] = self._local.__dict__.setdefault("stacks", {})
        task = torch._C._current_graph_task_id()  # of the backward pass; -1 outside of one
        if task == -1 and len(stacks) > 1:
            for ended in [number for number in stacks if number != -1]:
                del stacks[ended]
        return stacks.setdefault(task, [])

    def _unwind(self) -> None:
        """Undo what is open because an interrupt came."""
        for stack in self._local.__dict__.get("stacks", {}).values():
            while stack:
                stack.pop().exits.close()


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """The qualified names of a model's modules, without the parts that wrappers add.

    Example:
        >>> from torch import nn
        >>> list(module_names(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))).values())
        ['', '0', '1', '1.0']
    """
    return {
        module: ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        for name, module in model.named_modules()
    }


def caller() -> str | None:
    """The file and line of the call, outside of torch and dropseed.torch; None if there is none."""
    frame = _outside()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else None


def calling_function() -> str:
    """The name of the function that called, outside of torch and dropseed.torch; "" if none."""
    frame = _outside()
    return frame.f_code.co_name if frame else ""


def _outside() -> FrameType | None:
    return next((f for f in _frames() if not _is_inside(f.f_code.co_filename)), None)


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame:
        yield frame
        frame = frame.f_back


@cache
def _is_inside(file: str) -> bool:
    package = Path(__file__).parents[2]
    torch = Path(sys.modules["torch"].__file__ or "").parent
    folders = (package / "audit", package / "torch", torch)
    inside = file.startswith(("<frozen", *(f"{folder}{os.sep}" for folder in folders)))
    return inside or Path(file).name == "contextlib.py"


def _in_autograd_function() -> bool:
    return any(
        frame.f_code.co_name == "apply"
        and frame.f_code.co_filename.endswith(os.path.join("torch", "autograd", "function.py"))
        for frame in _frames()
    )


def _grad_enabled() -> bool:
    import torch

    return torch.is_grad_enabled()
