"""What of a run's dropout calls, optimiser steps and exports is certainly a mistake."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.sites import is_dropout, kind_of, sites
from dropseed.audit.running.stack import Call, Line, calls, frames, root, root_line, users_line

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Report = Callable[[str, Line, Callable[[], str]], None]
"""Takes a mistake: its code, the user's line, and what makes the message."""

# Functions, classes and modules named so drop where nothing is trained, and mean to.
_WANTED = re.compile(
    r"(?i:monte_?carlo|bayes|uncertain|prenet|always_?on|update_bn|bn_stats)"
    r"|(?<![a-zA-Z])(mc|MC)(?![a-zA-Z])|MC(?=[A-Z][a-z])|[a-z]MC(?![a-z])"
)


class Judge:
    """Hears of what happens, and reports what is a mistake, as often as it is made.

    Args:
        report: takes the mistakes.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._passes: dict[int, _Passes] = {}

    def forget(self) -> None:
        """Forget the forward passes so far."""
        self._passes.clear()

    def dropout(self, name: str, values: Any, rate: Any, on: bool) -> None:
        """Hear of a dropout call.

        Args:
            name: the function's name.
            values: its input.
            rate: the rate asked for; None if it is unknown.
            on: whether it drops.
        """
        import torch

        if not _is_positive(rate) or not _is_real(values):
            return
        if torch.is_grad_enabled():
            self._remember(values, on)
        elif on:
            self._without_gradients(name, rate)

    def step(self, optimizer: Optimizer) -> None:
        """Hear of an optimiser that is about to step: DS506."""
        import torch

        if torch.compiler.is_compiling():
            return
        idle = [one for one in self._passes.values() if one.idle and not one.trained]
        self._passes.clear()
        for one in idle:
            model = one.model()
            if model is None or model.training:
                continue
            if _updates(optimizer, model):
                names = type(optimizer).__name__, type(model).__name__
                self._report("DS506", users_line(frames()), partial(_idle_step, *names))
            else:
                self._passes[id(model)] = one

    def leave(self, how: str, thing: Any) -> None:
        """Hear of something that is about to be saved or exported: DS507."""
        from torch import nn

        if not isinstance(thing, nn.Module) or not thing.training:
            return
        on = [site for site in sites(thing) if site.training and site.rate != 0]
        if on:
            name, site = kind_of(thing), str(on[0])
            self._report("DS507", users_line(frames()), partial(_leaving, how, name, site))

    def _remember(self, values: Any, on: bool) -> None:
        model = root()
        if model is None:
            return
        passes = self._passes.get(id(model))
        if passes is None or passes.model() is not model:
            passes = self._passes[id(model)] = _Passes(weakref.ref(model))
        passes.trained |= on or model.training
        passes.idle |= values.requires_grad

    def _without_gradients(self, name: str, rate: Any) -> None:
        """DS505."""
        stack = frames()
        running = calls(stack)
        if not running or _is_wanted(stack, running):
            return
        inner, outer = running[0].module, running[-1].module
        if outer.training:
            at, say = root_line(stack, running), _in_training
        elif inner.training:
            if _is_set_apart(running):
                return
            at, say = users_line(stack), _left_in_training
        elif isinstance(inner, _layers()):
            return  # a subclass that drops in evaluation does so on purpose
        else:
            at, say = users_line(stack), _by_function
        self._report("DS505", at, partial(say, name, rate, inner, outer))


@dataclass(slots=True)
class _Passes:
    """What a model's forward passes with gradients did since the last optimiser step.

    Attributes:
        model: the model.
        trained: whether something dropped, or the model was in training mode.
        idle: whether a dropout that backward passes through did nothing.
    """

    model: weakref.ref[nn.Module]
    trained: bool = False
    idle: bool = False


def _is_positive(rate: Any) -> bool:
    return rate > 0 if isinstance(rate, (int, float)) else True


def _is_real(values: Any) -> bool:
    """Whether a call computes: it has numbers, and isn't traced."""
    import torch

    plain = type(values) in (torch.Tensor, torch.nn.Parameter)
    return plain and not values.is_meta and torch._C._get_tracing_state() is None


def _updates(optimizer: Optimizer, model: nn.Module) -> bool:
    """Whether a step changes some of a model's parameters."""
    groups = optimizer.param_groups
    changed = {id(one) for group in groups for one in group["params"] if one.grad is not None}
    return any(id(one) in changed for one in model.parameters())


def _is_wanted(stack: Sequence[FrameType], running: Sequence[Call]) -> bool:
    """Whether dropout without gradients is as it should be, or that can't be known.

    An `autograd.Function` runs its forward without gradients, as activation checkpointing does. A
    constructor runs its parts to see their shapes. Where the model itself has values with a
    history at hand, gradients are off for a part of it only: a mask that is drawn, a teacher.
    """
    from torch.autograd import Function
    from torch.nn import Module

    function = Function.apply.__func__.__code__.co_filename  # type: ignore[attr-defined]
    within = True
    for frame in stack:
        within = within and frame is not running[-1].caller
        code = frame.f_code
        if code.co_filename == function:
            return True
        if code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), Module):
            return True
        if within and any(map(_has_history, frame.f_locals.values())):
            return True
        if _says_so(f"{frame.f_globals.get('__name__')}.{code.co_qualname}"):
            return True
    return any(_says_so(type(call.module).__name__) for call in running)


def _has_history(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.grad_fn is not None


@lru_cache(maxsize=4096)
def _says_so(name: str) -> bool:
    return _WANTED.search(name) is not None


def _is_set_apart(running: Sequence[Call]) -> bool:
    """Whether it is only a dropout layer of the model that somebody put into training mode."""
    inner, outer = running[0].module, running[-1].module
    alone = len(running) > 1 and not running[1].module.training
    return alone and is_dropout(inner) and any(one is inner for one in outer.modules())


def _layers() -> type[nn.Module]:
    from torch.nn.modules.dropout import _DropoutNd

    return _DropoutNd


# ---- messages --------------------------------------------------------------------------------


def _in_training(name: str, rate: Any, inner: nn.Module, outer: nn.Module) -> str:
    return (
        f"{_drops(name, rate, inner, outer)}: {type(outer).__name__} is in training mode. "
        f"Call eval() on it first{_unless('DS505')}"
    )


def _left_in_training(name: str, rate: Any, inner: nn.Module, outer: nn.Module) -> str:
    part = any(one is inner for one in outer.modules())
    cure = "Call eval() after it" if part else "Make it an attribute, built once"
    why = "a part of it was put back" if part else "eval() doesn't reach this layer"
    return (
        f"{_drops(name, rate, inner, outer)}: {type(outer).__name__} is in evaluation mode, but "
        f"{why}. {cure}{_unless('DS505')}"
    )


def _by_function(name: str, rate: Any, inner: nn.Module, outer: nn.Module) -> str:
    attention = name.startswith("scaled")
    switch = "dropout_p=p if self.training else 0.0" if attention else "training=self.training"
    return (
        f"{_drops(name, rate, inner, outer)}: {type(inner).__name__} is in evaluation mode, but "
        f"the call isn't told. Pass {switch}{_unless('DS505')}"
    )


def _drops(name: str, rate: Any, inner: nn.Module, outer: nn.Module) -> str:
    import torch

    region = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
    p = "" if rate is None else f", p={float(rate):g}"
    names = (where for where, one in outer.named_modules() if one is inner)
    where = next(names, None)
    what = type(inner).__name__ if is_dropout(inner) else f"{name} in {type(inner).__name__}"
    place = f"{where}: " if where else ""
    return f"dropout is on under {region} ({place}{what}{p})"


def _idle_step(optimizer: str, model: str) -> str:
    return (
        f"{optimizer} updates {model}, which ran in evaluation mode with its dropout off. "
        f"Call train() on it first{_unless('DS506')}"
    )


def _leaving(how: str, model: str, site: str) -> str:
    saved = how in ("torch.save", "torch.jit.save", "ScriptModule.save")
    what = (
        f"{how} saves {model} in training mode: whoever loads it runs it with dropout on"
        if saved
        else f"{how} takes {model} in training mode, so that what it makes always drops"
    )
    cure = (
        "Save its state_dict(), or call eval() on it first"
        if how == "torch.save"
        else "Call eval() on it first"
    )
    return f"{what} ({site}). {cure}{_unless('DS507')}"


def _unless(code: str) -> str:
    return f"; where it is wanted, say so with dropseed.audit.allow({code!r})"
