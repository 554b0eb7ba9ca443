"""Steps of a forward pass, and the values that they make."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from dropseed.audit.reading.chain import Chain, Layer, either
from dropseed.audit.reading.operations import family

Place = ast.expr | ast.stmt | ast.arg


@dataclass(eq=False)
class Step:
    """Something that is applied to values.

    Attributes:
        kind: the canonical name of the layer or function; of a tensor's method its name behind a
            dot; of an operator its sign; "" if that can't be told.
        node: where it is applied.
        layer: the layer, if it is one.
        calls: the calls that have led there, if it is in a function that was followed.
        inputs: the steps that give its inputs.
        users: the steps that take its output.
    """

    kind: str
    node: Place
    layer: Layer | None = None
    calls: tuple[ast.expr, ...] = ()
    inputs: set[Step] = field(default_factory=set)
    users: set[Step] = field(default_factory=set)

    @property
    def site(self) -> Place:
        """Where the layer is built, or the function called."""
        return self.layer.built if self.layer else self.node

    @cached_property
    def family(self) -> str:
        """What it does, in a word."""
        return family(self.kind)

    @property
    def is_parameter(self) -> bool:
        """Whether it stands for what a function is given."""
        return isinstance(self.node, ast.arg)

    @property
    def name(self) -> str:
        """The last word of its kind."""
        return self.kind.rpartition(".")[2]

    @property
    def position(self) -> tuple[int, int]:
        """For sorting."""
        return getattr(self.node, "lineno", 0), getattr(self.node, "col_offset", 0)

    def before(self, *through: str) -> list[Step]:
        """The steps whose output reaches this one straight, or through steps of some families."""
        return _reached(self, "inputs", through)[1]

    def after(self, *through: str) -> list[Step]:
        """The steps that this one's output reaches straight, or through steps of some families."""
        return _reached(self, "users", through)[1]

    def passed(self, *through: str) -> set[Step]:
        """This step, and those of some families through which its output goes."""
        return _reached(self, "users", through)[0]


def _reached(start: Step, way: str, through: tuple[str, ...]) -> tuple[set[Step], list[Step]]:
    """The steps that are passed on a way, and those at its ends."""
    found: dict[Step, None] = {}
    waiting, passed = [start], {start}
    while waiting:
        for step in sorted(getattr(waiting.pop(), way), key=lambda at: at.position):
            if step.family in through:
                if step not in passed:
                    passed.add(step)
                    waiting.append(step)
            else:
                found[step] = None
    return passed, list(found)


@dataclass(frozen=True, eq=False)
class Value:
    """What an expression may be.

    Attributes:
        steps: the steps that may have made it.
        chain: the layers that it may be, or that it holds in order.
        tuples: the values that it holds, if it is a tuple; several if it may be of several lengths.
    """

    steps: frozenset[Step] = frozenset()
    chain: Chain | None = None
    tuples: tuple[tuple[Value, ...], ...] = ()

    @property
    def everything(self) -> frozenset[Step]:
        """The steps, and those of what it holds."""
        held = (at.everything for values in self.tuples for at in values)
        return self.steps.union(*held)


NOTHING = Value()


def union(one: Value, other: Value) -> Value:
    """One value or another."""
    if one is other or other is NOTHING:
        return one
    if one is NOTHING:
        return other
    tuples = {len(values): values for values in one.tuples}
    for values in other.tuples:
        mine = tuples.get(len(values))
        tuples[len(values)] = tuple(map(union, mine, values)) if mine else values
    chain = one.chain or other.chain
    if one.chain and other.chain:
        chain = either(one.chain, other.chain)
    steps = one.steps | other.steps
    if bool(one.tuples) != bool(other.tuples):  # where one value is meant it is no tuple
        single, pair = (other, one) if one.tuples else (one, other)
        steps = single.steps or pair.steps
    return Value(steps, chain, tuple(tuples.values()))


def any_of(values: Iterable[Value]) -> Value:
    """Any one of some values."""
    result = NOTHING
    for value in values:
        result = union(result, value)
    return result


def connect(value: Value, step: Step) -> None:
    """Let a step take a value."""
    step.inputs |= value.steps
    for source in value.steps:
        source.users.add(step)


@dataclass(frozen=True)
class Summary:
    """What a function does with its arguments, whoever calls it.

    Attributes:
        parameters: by name the steps that stand for its arguments.
        returned: what it gives back, arguments aside.
        through: the steps by which an argument may be given back as good as it is.
        each: whether it has to be followed at each call.
    """

    parameters: dict[str, Step]
    returned: Value
    through: frozenset[Step]
    each: bool


PASSING = ("activation", "identity", "reshape", "index", "softmax", "record")
"""The families that give back what they take, as good as it is."""


def summarized(parameters: dict[str, Value], returned: Value) -> Summary:
    """Sum up a function that was run with a step for each of its arguments.

    A function that does little more than give back its argument is to be followed at each call, or
    the arguments of all calls would come out at all of them; so is one that gives layers.
    """
    given = {name: next(iter(value.steps)) for name, value in parameters.items()}
    starts = frozenset(given.values())
    before = {*returned.everything}
    waiting = [*before]
    while waiting:
        step = waiting.pop()
        more = step.inputs - before if step.family in PASSING else ()
        before.update(more)
        waiting += more
    leaks = bool(before & starts)
    passing = frozenset(at for at in before if at.family in PASSING or at in starts)
    thin = leaks and len(passing) == len(before)
    return Summary(
        given,
        _without(returned, starts),
        passing if leaks else frozenset(),
        thin or bool(returned.chain),
    )


def _without(value: Value, steps: frozenset[Step]) -> Value:
    tuples = tuple(tuple(_without(at, steps) for at in values) for values in value.tuples)
    return Value(value.steps - steps, value.chain, tuples)
