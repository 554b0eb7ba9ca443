"""What switches the mode of a model and what trains it, in the order in which code runs.

Functions and methods of the file are followed where they are called. A model is known by the text
of the expression that holds it: `self.model`. This file knows no dropout.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from dropseed.audit.reading.active import given_for
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Function, Scope, argument

Kind = Literal["train", "eval", "step", "unknown"]

ANY = "*"
"""The text of a model that can't be told."""
DEPTH = 4
MOST = 2000
"""How many events of a function are looked at."""

_OPTIMIZER = re.compile(r"\w*(?:optim\w*|scaler|sgd|adam\w*)(?:_\w+)?|opts?|opt_\w+|\w+_opt")
_SWITCHES = re.compile(
    r"(?:.*_)?(?:train|training|fit|mode|epoch|freeze|unfreeze|set|switch|prepare|reset|setup|update"
    r"|step|run)(?:_.*)?"
)
"""What a function that can't be seen has in its name if it may switch the mode of its model."""
_HOOKS = re.compile(
    r"(?!register|add|remove|clear)(?:.*_)?(?:hooks?|callbacks?|on|begin|before|notify|fire)(?:_.*)?"
)
"""Likewise, if it may call what others have registered."""
_DECORATOR = re.compile(r"eval|train|mode|restore", re.IGNORECASE)
"""A decorator that may put the mode back."""
_PARAMETERS = frozenset({"parameters", "named_parameters"})
_SAME = frozenset({"unwrap_model", "unwrap", "DataParallel", "DistributedDataParallel", "compile"})
"""Functions that give back the model they take, or one that shares its mode."""


@dataclass(frozen=True)
class Event:
    """Something that a function does to a model.

    Attributes:
        kind: "train" and "eval" switch the mode, "step" changes the weights; "unknown" is a call
            that can't be seen and may switch it.
        model: the model's text, or for a step the optimizer's; `ANY` if it can't be told.
        node: the call.
        place: the call in the function that was asked about, through which it happens.
        words: for a step, the names in what its optimizer changes; None if that isn't known.
    """

    kind: Kind
    model: str
    node: ast.Call
    place: ast.Call
    words: frozenset[str] | None = None


class Modes:
    """The events of a file's functions.

    Args:
        file: the file.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self._calls: dict[Scope, list[ast.Call]] = {}
        self._events: dict[tuple[Scope, int], list[Event]] = {}
        for call in file.calls:
            scope = file.scope_of(call)
            if not isinstance(scope, ast.Lambda):
                self._calls.setdefault(scope, []).append(call)
        self._functions: dict[str, list[Function]] = {}
        for function in file.functions:
            self._functions.setdefault(function.name, []).append(function)

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
            The events in the order of the text; at most `MOST`.
        """
        known = self._events.get((scope, depth))
        if known is None:
            self._events[scope, depth] = []  # what calls itself adds nothing
            known = []
            for call in self._calls.get(scope, ()):
                known += self._of_call(call, scope, depth)
                if len(known) > MOST:
                    break
            self._events[scope, depth] = known
        return known

    def _of_call(self, call: ast.Call, scope: Scope, depth: int) -> Iterator[Event]:
        function = self.target(call)
        switch = None if function and not self._is_switch(call) else self._switch(call, scope)
        if switch is not None:
            yield switch
        elif function is not None and depth:
            if any(_DECORATOR.search(_name(at)) for at in function.decorator_list):
                yield Event("unknown", ANY, call, call)
                return
            for event in self.events(function, depth - 1):
                if event.kind != "train" and self._ruled_out(event, function, call):
                    continue
                model = self._outside(event.model, function, call, scope)
                if event.kind != "unknown" or model != ANY or event.model == ANY:
                    yield replace(event, model=model, place=call)
        elif function is None:
            yield from self._unknown(call, scope)

    def _ruled_out(self, event: Event, function: Function, call: ast.Call) -> bool:
        """Whether the constants that a call gives forbid an event: `train=False`."""
        child: ast.AST = event.place
        for parent in self.file.ancestors(event.place):
            if parent is function:
                return False
            if isinstance(parent, ast.If) and child is not parent.test:
                truth = self._truth(parent.test, function, call)
                if truth is not None and truth != (child in parent.body):
                    return True
            child = parent
        return False

    def _truth(self, test: ast.expr, function: Function, call: ast.Call) -> bool | None:
        """Whether a condition holds, by the constants that a call gives; None if unknown."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            truth = self._truth(test.operand, function, call)
            return None if truth is None else not truth
        if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
            truths = [self._truth(value, function, call) for value in test.values]
            return False if False in truths else None
        if isinstance(test, ast.Compare) and len(test.ops) == 1:
            none = isinstance(test.comparators[0], ast.Constant) and (
                test.comparators[0].value is None
            )
            if not none or not isinstance(test.ops[0], ast.Is | ast.IsNot):
                return None
            given = self._constant(test.left, function, call)
            if given is None:
                return None
            return (given.value is None) == isinstance(test.ops[0], ast.Is)
        given = self._constant(test, function, call)
        return None if given is None else bool(given.value)

    def _constant(self, node: ast.expr, function: Function, call: ast.Call) -> ast.Constant | None:
        """The constant that a call gives for a parameter."""
        if not isinstance(node, ast.Name):
            return None
        bindings = self.file.bindings(node.id, node)
        if len(bindings) != 1 or not isinstance(bindings[0], ast.arg):
            return None
        if bindings[0] not in [*function.args.args, *function.args.kwonlyargs]:
            return None
        given = given_for(bindings[0], function, call, self.file)
        return given if isinstance(given, ast.Constant) else None

    def _is_switch(self, call: ast.Call) -> bool:
        """Whether `self.train()` is a torch module's, though the class has its own."""
        owner = self.file.class_of(call)
        return owner is not None and len(call.args) < 2 and self.file.is_module(owner)

    def _switch(self, call: ast.Call, scope: Scope) -> Event | None:
        """The event of `model.train()`, `model.eval()` or `optimizer.step()`."""
        if not isinstance(call.func, ast.Attribute):
            return None
        name, holder = call.func.attr, call.func.value
        given = [*call.args, *(keyword.value for keyword in call.keywords)]
        if name == "step":
            optimizer = next((at for at in (*given, holder) if _is_optimizer(at)), None)
            words = self._words(optimizer) if optimizer is not None else None
            if optimizer is None:
                return None
            return Event("step", self.text(optimizer, scope), call, call, words)
        if name not in ("train", "eval") or len(given) > (name == "train"):
            return None
        if isinstance(holder, ast.Name) and any(
            isinstance(at, ast.Import | ast.ImportFrom)
            for at in self.file.bindings(holder.id, holder)
        ):
            return None  # `pd.eval`
        off = name == "eval" or (
            bool(given) and isinstance(given[0], ast.Constant) and not given[0].value
        )
        model = self.text(holder, scope)
        if off and self._paired(call, model, scope):
            return Event("train", model, call, call)
        return Event("eval" if off else "train", model, call, call)

    def _words(self, optimizer: ast.expr) -> frozenset[str] | None:
        """The names in what an optimizer changes, assignments followed; None if unknown."""
        found: set[str] = set()
        values = self.file.values(optimizer)
        for call in values:
            if isinstance(call, ast.Constant):
                continue
            changed = argument(call, 0, "params") if isinstance(call, ast.Call) else None
            words = self._in(changed) if changed is not None else set()
            if not isinstance(changed, ast.List) and not words & _PARAMETERS:
                return None
            found |= words
        return frozenset(found) or None

    def _in(self, node: ast.expr) -> set[str]:
        """The names in an expression, and in what is assigned to them."""
        found: set[str] = set()
        waiting = [node]
        for step in range(MOST):
            if not waiting:
                break
            for part in ast.walk(waiting.pop()):
                if isinstance(part, ast.Attribute):
                    found.add(part.attr)
                elif isinstance(part, ast.Name) and part.id not in found:
                    found.add(part.id)
                    waiting += self.file.values(part) if step < DEPTH else []
        return found

    def _paired(self, call: ast.Call, model: str, scope: Scope) -> bool:
        """Whether the other arm of an `if` around an `eval()` has the `train()`."""
        child: ast.AST = call
        for parent in self.file.ancestors(call):
            if parent is scope:
                return False
            if isinstance(parent, ast.If | ast.IfExp):
                arms = [parent.body, parent.orelse]
                for arm in arms:
                    nodes = arm if isinstance(arm, list) else [arm]
                    if child not in nodes and self._trains(nodes, model, scope):
                        return True
            child = parent
        return False

    def _trains(self, nodes: list[ast.stmt] | list[ast.expr], model: str, scope: Scope) -> bool:
        calls = (
            at
            for node in nodes
            for at in ast.walk(node)
            if isinstance(at, ast.Call) and isinstance(at.func, ast.Attribute)
        )
        return any(
            at.func.attr == "train" and covers(self.text(at.func.value, scope), model)
            for at in calls
            if isinstance(at.func, ast.Attribute)
        )

    def _unknown(self, call: ast.Call, scope: Scope) -> Iterator[Event]:
        """The models that a call which can't be seen may switch."""
        name = _last(call.func).lower()
        if _HOOKS.fullmatch(name):
            yield Event("unknown", ANY, call, call)
        if not _SWITCHES.fullmatch(name):
            return
        called = self.file.called(call)
        module = self.file.project.module_of(called) if called else None
        if called.startswith(("torch.", "numpy.")) or (
            module is not None
            and module is not self.file.facts
            and "train" not in module.attributes
        ):
            return
        holder = call.func.value if isinstance(call.func, ast.Attribute) else None
        for value in [holder, *call.args, *(keyword.value for keyword in call.keywords)]:
            if isinstance(value, ast.Name | ast.Attribute):
                model = self.text(value, scope)
                if model != ANY:
                    yield Event("unknown", model, call, call)

    # ---- names ---------------------------------------------------------------------------

    def target(self, call: ast.Call) -> Function | None:
        """The function or method of the file that a call runs, if that is certain."""
        name = dotted(call.func)
        if name.startswith(("self.", "cls.")) and name.count(".") == 1:
            owner = self.file.class_of(call)
            while owner is not None:
                method = owner.methods.get(name.partition(".")[2])
                if method is not None:
                    return method
                parents = {self.file.name_of(base) for base in owner.node.bases}
                owner = next((at for at in self.file.classes if at.name in parents), None)
            return None
        bindings = self.file.bindings(name, call) if name and "." not in name else []
        if len(bindings) == 1 and isinstance(bindings[0], ast.FunctionDef | ast.AsyncFunctionDef):
            return bindings[0]
        return None

    def text(self, node: ast.expr, scope: Scope) -> str:
        """The text by which a model is known: aliases and wrappers are seen through."""
        for _ in range(DEPTH):
            name = dotted(node)
            if name:
                break
            if not isinstance(node, ast.Call) or _last(node.func) not in _SAME or not node.args:
                return ANY
            node = node.args[0]
        first, _, rest = name.partition(".")
        if first not in ("self", "cls"):
            bindings = [at for at in self.file.bindings(first, node) if not self._wraps(first, at)]
            if any(self._is_item(at) for at in bindings):
                return ANY
            value = self.file.assigned(bindings[0]) if len(bindings) == 1 else None
            if isinstance(value, ast.Call) and _last(value.func) in _SAME and value.args:
                value = value.args[0]
            if isinstance(value, ast.Attribute):
                first = dotted(value) or first
        parts = [part for part in f"{first}.{rest}".split(".") if part not in ("module", "")]
        return ".".join(parts) or ANY

    def _wraps(self, name: str, binding: ast.AST) -> bool:
        """Whether a name is set to what is made of itself: `model = model.to(device)`."""
        value = self.file.assigned(binding)
        if not isinstance(value, ast.Call):
            return False
        parts = [*value.args, value.func]
        return any(dotted(at).partition(".")[0] == name for at in parts)

    def _is_item(self, binding: ast.AST) -> bool:
        """Whether a name is bound by a loop, alone or with others."""
        parent = self.file.parent(binding)
        while isinstance(parent, ast.Tuple | ast.List | ast.Starred):
            parent = self.file.parent(parent)
        return isinstance(parent, ast.For | ast.AsyncFor | ast.comprehension)

    def _outside(self, model: str, function: Function, call: ast.Call, scope: Scope) -> str:
        """What a function's model is where the function is called."""
        first, dot, rest = model.partition(".")
        if not model or first in (ANY, "self", "cls"):
            return model
        bound = self.file.bound_in(function).get(first)
        if not bound:
            return model  # a global name, or one of the function around
        parameter = next((at for at in bound if isinstance(at, ast.arg)), None)
        if parameter is not None:
            given = given_for(parameter, function, call, self.file)
            if given is not None and not isinstance(given, ast.Constant):
                return self.text(given, scope) + dot + rest
        return f"{function.name}().{model}"


def covers(one: str, other: str) -> bool:
    """Whether switching one model may switch another: it is the same, or it holds the other."""
    return ANY in (one, other) or same(one, other) or other.startswith(f"{one}.")


def same(one: str, other: str) -> bool:
    """Whether two texts may mean one model: `model` may be `self.model`, or `ddp_model`."""
    first, second = (text.rpartition(".")[2].strip("_") for text in (one, other))
    return first in second or second in first


def _is_optimizer(node: ast.expr) -> bool:
    return _OPTIMIZER.fullmatch(_last(node).lower()) is not None


def _name(node: ast.expr) -> str:
    return dotted(node.func if isinstance(node, ast.Call) else node)


def _last(node: ast.expr) -> str:
    """The last name of an expression: of `self.optimizers["g"]` it is `optimizers`."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
