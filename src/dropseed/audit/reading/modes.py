"""What switches the mode of a model and what trains it, in the order in which code runs.

Functions and methods of the file are followed where they are called. This file knows no dropout.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dropseed.audit.reading.constants import rules_out
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Function, Scope
from dropseed.audit.reading.holders import ANY, DEPTH, covers, holder, last_name, outside
from dropseed.audit.reading.optimizers import changed, is_optimizer

Kind = Literal["train", "eval", "step", "unknown"]

MOST = 2000
"""How many events of a function are looked at."""

_SWITCHES = re.compile(
    r"(?:.*_)?(?:train|training|fit|mode|epoch|freeze|unfreeze|set|switch|prepare|reset|setup|update"
    r"|step|run)(?:_.*)?"
)
"""What a function that can't be seen is called if it may switch the mode of its model."""
_HOOKS = re.compile(
    r"(?!register|add|remove|clear)(?:.*_)?(?:hooks?|callbacks?|on|begin|before|notify|fire)(?:_.*)?"
)
"""Likewise, if it may call what others have registered."""
_DECORATOR = re.compile(r"eval|train|mode|restore", re.IGNORECASE)
"""A decorator that may put the mode back."""


@dataclass(frozen=True)
class Event:
    """Something that a function does to a model.

    Attributes:
        kind: "train" and "eval" switch the mode, "step" changes the weights; "unknown" is a call
            that can't be seen and may switch it.
        model: the text that holds the model, or for a step the optimizer; `ANY` if it can't be
            told.
        node: the call.
        place: the call in the function that was asked about, through which it happens.
        weights: for a step, the names in what its optimizer changes; None if that isn't known.
    """

    kind: Kind
    model: str
    node: ast.Call
    place: ast.Call
    weights: frozenset[str] | None = None


class Modes:
    """The events of a file's functions.

    Args:
        file: the file.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._calls: dict[Scope, list[ast.Call]] = {}
        self._events: dict[tuple[Scope, int], list[Event]] = {}
        self._active: set[Scope] = set()
        for call in file.calls:
            scope = file.scope_of(call)
            if not isinstance(scope, ast.Lambda):
                self._calls.setdefault(scope, []).append(call)

    @property
    def scopes(self) -> list[Scope]:
        """The functions, classes and the module that call anything."""
        return list(self._calls)

    def events(self, scope: Scope, depth: int = DEPTH) -> list[Event]:
        """The events of a function, those of what it calls included.

        Args:
            scope: the function, or the module.
            depth: how many calls are followed.

        Returns:
            The events in the order of the text; little more than `MOST`.
        """
        known = self._events.get((scope, depth))
        if known is None:
            known = []
            if scope in self._active:  # what calls itself adds nothing
                return known
            self._active.add(scope)
            for call in self._calls.get(scope, ()):
                known += self._of_call(call, depth)
                if len(known) > MOST:
                    break
            self._active.remove(scope)
            self._events[scope, depth] = known
        return known

    def _of_call(self, call: ast.Call, depth: int) -> Iterator[Event]:
        function = called_function(call, self.file)
        if function is None or self._is_module_method(call):
            event = _switch(call, self.file) or _step(call, self.file)
            if event is not None:
                yield event
                return
        if function is None:
            yield from _unknown(call, self.file)
        elif any(_DECORATOR.search(_decorator(at)) for at in function.decorator_list):
            yield Event("unknown", ANY, call, call)
        elif depth:
            yield from self._through(call, function, depth)

    def _through(self, call: ast.Call, function: Function, depth: int) -> Iterator[Event]:
        """The events of a function of the file, as they are where it is called."""
        for event in self.events(function, depth - 1):
            if event.kind != "train" and rules_out(call, function, event.place, self.file):
                continue
            model = outside(event.model, function, call, self.file)
            if event.kind != "unknown" or model != ANY or event.model == ANY:
                yield replace(event, model=model, place=call)

    def _is_module_method(self, call: ast.Call) -> bool:
        """Whether `self.train()` is a torch module's, though the class has its own."""
        owner = self.file.class_of(call)
        return owner is not None and len(call.args) < 2 and self.file.is_module(owner)


def called_function(call: ast.Call, file: File) -> Function | None:
    """The function or method of the file that a call runs, if that is certain."""
    name = dotted(call.func)
    if name.startswith(("self.", "cls.")) and name.count(".") == 1:
        owner = file.class_of(call)
        for _ in range(DEPTH):
            method = owner.methods.get(name.partition(".")[2]) if owner else None
            if owner is None or method is not None:
                return method
            parents = {file.name_of(base) for base in owner.node.bases}
            owner = next((at for at in file.classes if at.name in parents), None)
        return None
    bindings = file.bindings(name, call) if name and "." not in name else []
    if len(bindings) == 1 and isinstance(bindings[0], ast.FunctionDef | ast.AsyncFunctionDef):
        return bindings[0]
    return None


def _switch(call: ast.Call, file: File) -> Event | None:
    """The event of `model.train()` or `model.eval()`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr not in ("train", "eval"):
        return None
    name, given = call.func.attr, _given(call)
    if len(given) > (name == "train") or _is_import(call.func.value, file):
        return None
    model = holder(call.func.value, file)
    if name == "train":
        off = bool(given) and isinstance(given[0], ast.Constant) and not given[0].value
        return Event("eval" if off else "train", model, call, call)
    # `model.train()` in the other arm of an `if`: both arms together set the mode that is wanted.
    return Event("train" if _paired(call, model, file) else "eval", model, call, call)


def _is_import(node: ast.expr, file: File) -> bool:
    """Whether an expression is a module: `pd.eval`."""
    bindings = file.bindings(node.id, node) if isinstance(node, ast.Name) else []
    return any(isinstance(at, ast.Import | ast.ImportFrom) for at in bindings)


def _paired(call: ast.Call, model: str, file: File) -> bool:
    """Whether the other arm of an `if` around an `eval()` has the `train()`."""
    child: ast.AST = call
    scope = file.scope_of(call)
    for parent in file.ancestors(call):
        if parent is scope:
            return False
        if isinstance(parent, ast.If | ast.IfExp):
            for arm in (parent.body, parent.orelse):
                nodes = arm if isinstance(arm, list) else [arm]
                if child not in nodes and _trains(nodes, model, file):
                    return True
        child = parent
    return False


def _trains(nodes: Sequence[ast.stmt | ast.expr], model: str, file: File) -> bool:
    return any(
        isinstance(at, ast.Call)
        and isinstance(at.func, ast.Attribute)
        and at.func.attr == "train"
        and covers(holder(at.func.value, file), model)
        for node in nodes
        for at in ast.walk(node)
    )


def _step(call: ast.Call, file: File) -> Event | None:
    """The event of `optimizer.step()` or `scaler.step(optimizer)`."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "step":
        return None
    for optimizer in (*_given(call), call.func.value):
        if is_optimizer(optimizer):
            weights = changed(optimizer, file)
            return Event("step", holder(optimizer, file), call, call, weights)
    return None


def _unknown(call: ast.Call, file: File) -> Iterator[Event]:
    """The models that a call which can't be seen may switch."""
    name = last_name(call.func).lower()
    if _HOOKS.fullmatch(name):
        if not _is_of_keras(call, file):
            yield Event("unknown", ANY, call, call)
        return
    if not _SWITCHES.fullmatch(name) or _switches_nothing(call, file):
        return
    owner = [call.func.value] if isinstance(call.func, ast.Attribute) else []
    for value in (*owner, *_given(call)):
        model = holder(value, file) if isinstance(value, ast.Name | ast.Attribute) else ANY
        if model != ANY:
            yield Event("unknown", model, call, call)


def _switches_nothing(call: ast.Call, file: File) -> bool:
    """Whether what a call runs is in torch, or in another file that never calls `train()`."""
    name = file.called(call)
    module = file.project.module_of(name) if name else None
    elsewhere = module is not None and module is not file.facts
    return name.startswith(("torch.", "numpy.")) or (
        elsewhere and module is not None and "train" not in module.attributes
    )


def _is_of_keras(call: ast.Call, file: File) -> bool:
    """Whether a method is that of Keras's callbacks, which know no mode of torch."""
    held = call.func.value if isinstance(call.func, ast.Attribute) else None
    bindings = file.bindings(held.id, held) if isinstance(held, ast.Name) else []
    made = (file.assigned(at) for at in bindings)
    return any(isinstance(at, ast.Call) and last_name(at.func) == "CallbackList" for at in made)


def _given(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def _decorator(node: ast.expr) -> str:
    return dotted(node.func if isinstance(node, ast.Call) else node)
