"""An abstract evaluator of expressions: what they may be, without running anything.

The base of the interpreter. Calls are followed in `apply.py`, statements in `interpret.py`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from typing import Any

from dropseed.audit.reading.chain import (
    EMPTY,
    LONGEST,
    Chain,
    Layer,
    joined,
    repeated,
    single,
    then,
)
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import Class, File, integer
from dropseed.audit.reading.operations import OF_ONE
from dropseed.audit.reading.steps import NOTHING, Place, Step, Value, any_of, connect, union

Env = dict[str, Value]
"""What names may be; attributes of self as "self.name", what it applies in order as "self"."""

BUDGET = 40_000
"""How many expressions of a file are followed before the rest counts as unknown."""
DEPTH = 70
"""How deep statements and expressions may stand in each other, calls included."""

_NO_DATA = frozenset({"shape", "device", "dtype", "ndim", "training", "is_cuda", "requires_grad"})


class EnoughError(Exception):
    """The budget is spent."""


class Evaluator:
    """Follows the expressions of one file.

    Args:
        file: the file.
    """

    def __init__(self, file: File) -> None:
        self.file = file
        self.steps: dict[tuple[object, Place, Layer | None], Step] = {}
        self.classes = {owner.name: owner for owner in file.classes}
        self.context: tuple[object, ...] = ()
        self.depth = 0
        self._left = BUDGET
        self.built: set[ast.AST] = set()
        self._layers: dict[tuple[object, ast.AST], Layer] = {}
        self._written: dict[ast.AST, str] = {}

    def value(self, node: ast.expr, env: Env) -> Value:
        """What an expression may be."""
        self.spend()
        evaluate = _EXPRESSIONS.get(type(node))
        if evaluate is None:
            return NOTHING
        if self.depth >= DEPTH:
            return self.unknown(node)
        self.depth += 1
        found = evaluate(self, node, env)
        self.depth -= 1
        return found

    def call(self, node: ast.Call, env: Env) -> Value:
        """What a call may give."""
        raise NotImplementedError

    def kept(self, owner: Class, name: str) -> Value | None:
        """What a class keeps in `self` under a name."""
        raise NotImplementedError

    def known(self, name: str, env: Env) -> Value | None:
        """What a dotted name may be; None if it isn't known as a whole."""
        raise NotImplementedError

    def spend(self) -> None:
        """Count what is done, and stop when it is too much."""
        self._left -= 1
        if self._left < 0:
            raise EnoughError

    def dotted(self, node: ast.AST) -> str:
        """A chain of names as text; "" for any other expression."""
        name = self._written.get(node)
        if name is None:
            name = self._written[node] = dotted(node)
        return name

    # ---- steps and layers ----------------------------------------------------------------------

    def unknown(self, node: Place, *inputs: Value) -> Value:
        """What a step of unknown kind gives."""
        return self.step("", node, inputs)

    def step(
        self, kind: str, node: Place, inputs: Iterable[Value], layer: Layer | None = None
    ) -> Value:
        """What a step gives. The same place on the same way is the same step."""
        self.spend()
        key = (self.context, node, layer)
        step = self.steps.get(key)
        if step is None:
            calls = tuple(at for at in self.context if isinstance(at, ast.expr))
            step = self.steps[key] = Step(kind, node, layer, calls)
        for value in list(inputs)[:1] if step.family in OF_ONE else inputs:
            connect(value, step)
        return Value(frozenset((step,)))

    def layer(self, kind: str, node: ast.AST) -> Layer:
        """A layer that an expression builds; the same place on the same way is the same layer."""
        key = (self.context, node)
        found = self._layers.get(key)
        if found is None:
            assert isinstance(node, ast.expr | ast.stmt)
            found = self._layers[key] = Layer(kind, node)
            self.built.add(node)
        return found

    def stranger(self, node: ast.AST) -> Chain:
        """A layer of unknown kind."""
        return single(self.layer("", node))

    def short(self, chain: Chain, node: ast.AST) -> Chain:
        """A chain, or an unknown layer in the place of one that is too long."""
        long = len(chain.parts) > LONGEST or len(chain.pairs) > 20 * LONGEST
        return self.stranger(node) if long else chain

    def any_part(self, chain: Chain | None, node: ast.AST) -> Chain | None:
        """Any one of the parts of a chain; if they differ, which of them is unknown."""
        if chain is None or not chain.parts:
            return chain
        parts = frozenset(chain.parts)
        alike = Chain(chain.parts, parts, parts, skippable=False)
        return alike if chain.alike else self.stranger(node)

    def placed(self, node: ast.expr, value: Value) -> Chain:
        """A value as a part of a list; the parts of a starred one stand in the list themselves."""
        if value.chain is None:
            return EMPTY if isinstance(node, ast.Constant) else self.stranger(node)
        alone = value.chain.straight and len(value.chain.parts) == 1
        return value.chain if alone or isinstance(node, ast.Starred) else single(value.chain)

    def bind(self, target: ast.expr, value: Value, env: Env) -> None:
        """Set names to a value."""
        if isinstance(target, ast.Tuple | ast.List):
            count = len(target.elts)
            parts = next((values for values in value.tuples if len(values) == count), None)
            whole = Value(value.steps, self.any_part(value.chain, target))
            for one, its in zip(target.elts, parts or [whole] * count, strict=True):
                self.bind(one, its, env)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, Value(value.steps, value.chain), env)
        elif isinstance(target, ast.Subscript):
            name = self.dotted(target.value)
            if name:
                env[_key(name, target.slice)] = value
                env[name] = Value(env.get(name, NOTHING).steps | value.steps)
        elif name := self.dotted(target):
            env[name] = value

    def bind_each(self, target: ast.expr, node: ast.expr, env: Env) -> None:
        """Set names to what a loop may go through."""
        name = self.dotted(node.func) if isinstance(node, ast.Call) else ""
        if isinstance(target, ast.Tuple) and isinstance(node, ast.Call):
            if name == "enumerate" and node.args and len(target.elts) == 2:
                self.bind_each(target.elts[1], node.args[0], env)
                return
            if name == "zip" and len(node.args) == len(target.elts):
                for one, its in zip(target.elts, node.args, strict=True):
                    self.bind_each(one, its, env)
                return
        value = self.value(node, env)
        self.bind(target, Value(value.steps, self.any_part(value.chain, node)), env)

    def bind_items(self, name: str, node: ast.Dict, env: Env) -> None:
        """Set what a dict that is written out holds under each key."""
        for key, item in zip(node.keys, node.values, strict=True):
            if key is not None:
                env[_key(name, key)] = self.value(item, env)

    # ---- expressions ---------------------------------------------------------------------------

    def _name(self, node: ast.Name, env: Env) -> Value:
        return env.get(node.id, NOTHING)

    def _attribute(self, node: ast.Attribute, env: Env) -> Value:
        if node.attr in _NO_DATA:
            return NOTHING
        known = self.known(self.dotted(node), env)
        if known is not None:
            return known
        base = self.value(node.value, env)
        if base.chain is not None:
            return self.of_module(base.chain, node.attr)
        return self.step(f".{node.attr}", node, [base]) if base.steps else NOTHING

    def of_module(self, chain: Chain, name: str) -> Value:
        """What a module of this file keeps under a name."""
        part = chain.alone
        owner = self.classes.get(part.kind) if isinstance(part, Layer) else None
        return (self.kept(owner, name) if owner else None) or NOTHING

    def _list(self, node: ast.List | ast.Tuple | ast.Set, env: Env) -> Value:
        values = [self.value(element, env) for element in node.elts]
        steps = any_of(values).steps
        tuples = (tuple(values),) if isinstance(node, ast.Tuple) else ()
        if isinstance(node, ast.Tuple) and not any(value.chain for value in values):
            return Value(steps, None, tuples)
        chain = joined(map(self.placed, node.elts, values))
        return Value(steps, self.short(chain, node), tuples)

    def _dict(self, node: ast.Dict, env: Env) -> Value:
        return Value(any_of(self.value(at, env) for at in node.values).steps)

    def _comprehension(
        self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp, env: Env
    ) -> Value:
        inner = dict(env)
        for generator in node.generators:
            value = self.value(generator.iter, inner)
            if _filters(node):
                return value
            self.bind_each(generator.target, generator.iter, inner)
        element = node.value if isinstance(node, ast.DictComp) else node.elt
        value = self.value(element, inner)
        return Value(value.steps, repeated(self.placed(element, value)))

    def _binary(self, node: ast.BinOp, env: Env) -> Value:
        left, right = self.value(node.left, env), self.value(node.right, env)
        return self.operated(node, node.op, left, right)

    def operated(self, node: Place, sign: ast.operator, one: Value, other: Value) -> Value:
        """What an operator gives: of lists a list, and a multiple of a value is that value."""
        if isinstance(sign, ast.Add) and one.chain is not None and other.chain is not None:
            return Value(one.steps | other.steps, self.short(then(one.chain, other.chain), node))
        if isinstance(sign, ast.Mult) and (one.chain or other.chain):
            return Value(chain=repeated(one.chain or other.chain or EMPTY))
        if not one.steps and not other.steps:
            return NOTHING
        if isinstance(sign, ast.Mult | ast.Div) and not (one.steps and other.steps):
            return one if one.steps else other
        return self.step("+" if isinstance(sign, ast.Add) else "", node, [one, other])

    def _unary(self, node: ast.UnaryOp, env: Env) -> Value:
        value = self.value(node.operand, env)
        return NOTHING if isinstance(node.op, ast.Not) else Value(value.steps)

    def _boolean(self, node: ast.BoolOp, env: Env) -> Value:
        return any_of([self.value(value, env) for value in node.values])

    def _choice(self, node: ast.IfExp, env: Env) -> Value:
        self.value(node.test, env)
        return union(self.value(node.body, env), self.value(node.orelse, env))

    def _subscript(self, node: ast.Subscript, env: Env) -> Value:
        name = self.dotted(node.value)
        known = self.known(_key(name, node.slice), env) if name else None
        if known is not None:
            return known
        base, position = self.value(node.value, env), integer(node.slice)
        if position is not None:
            found = [at[position] for at in base.tuples if -len(at) <= position < len(at)]
            if found:
                return any_of(found)
        steps = self.step("[]", node, [base]).steps if base.steps else frozenset()
        return Value(steps, self._picked(base.chain, node) if base.chain else None)

    def _picked(self, chain: Chain, node: ast.Subscript) -> Chain:
        """The part, or the piece, of a list that a subscript means."""
        parts, position = chain.parts, integer(node.slice)
        if isinstance(node.slice, ast.Slice):
            return then(self.stranger(node), then(chain, self.stranger(node)))
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return self.stranger(node)
        if chain.straight and position is not None and -len(parts) <= position < len(parts):
            return single(parts[position])
        return self.any_part(chain, node) or EMPTY

    def _named(self, node: ast.NamedExpr, env: Env) -> Value:
        value = self.value(node.value, env)
        self.bind(node.target, value, env)
        return value

    def _inside(self, node: ast.Starred | ast.Await, env: Env) -> Value:
        return self.value(node.value, env)

    def _compare(self, node: ast.Compare, env: Env) -> Value:
        values = [self.value(part, env) for part in (node.left, *node.comparators)]
        return self.unknown(node, *values) if any(value.steps for value in values) else NOTHING

    def _call(self, node: ast.Call, env: Env) -> Value:
        return self.call(node, env)


_EXPRESSIONS: dict[type, Callable[[Any, Any, Env], Value]] = {
    ast.Name: Evaluator._name,
    ast.Attribute: Evaluator._attribute,
    ast.List: Evaluator._list,
    ast.Tuple: Evaluator._list,
    ast.Set: Evaluator._list,
    ast.Dict: Evaluator._dict,
    ast.ListComp: Evaluator._comprehension,
    ast.GeneratorExp: Evaluator._comprehension,
    ast.SetComp: Evaluator._comprehension,
    ast.DictComp: Evaluator._comprehension,
    ast.BinOp: Evaluator._binary,
    ast.UnaryOp: Evaluator._unary,
    ast.BoolOp: Evaluator._boolean,
    ast.IfExp: Evaluator._choice,
    ast.Subscript: Evaluator._subscript,
    ast.NamedExpr: Evaluator._named,
    ast.Starred: Evaluator._inside,
    ast.Await: Evaluator._inside,
    ast.Compare: Evaluator._compare,
    ast.Call: Evaluator._call,
}


def _key(name: str, key: ast.expr) -> str:
    """The name of what a list or dict holds under a key as it is written."""
    return f"{name}[{ast.dump(key)}]"


def _filters(node: ast.ListComp | ast.GeneratorExp | ast.SetComp | ast.DictComp) -> bool:
    """`[layer for layer in layers if layer]`, which keeps the order."""
    if isinstance(node, ast.DictComp) or len(node.generators) != 1:
        return False
    target = node.generators[0].target
    return isinstance(target, ast.Name) and dotted(node.elt) == target.id
