"""Where the values of a forward pass come from and go to, as far as source tells.

Every application of a layer, function, method or operator is a step; a step knows the steps that
give its inputs. All branches are followed, loops twice. Calls of what the same file defines are
followed inside. What can't be told is a step of unknown kind, at which every search ends.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

from dropseed.audit.reading.conditions import contradict, counted, harmless, held, parts
from dropseed.audit.reading.file import File, Function, argument, number
from dropseed.audit.reading.interpret import Interpreter
from dropseed.audit.reading.operations import DROPPING
from dropseed.audit.reading.steps import Place, Step, Value

T = TypeVar("T")


@dataclass
class Flow:
    """The steps of a file's functions and classes that have to do with dropout.

    Attributes:
        steps: every step.
        returned: what each function gives back, by its definition.
        sequences: where sequences are built; each is also applied there, by itself.
    """

    steps: list[Step] = field(default_factory=list)
    returned: dict[Function, Value] = field(default_factory=dict)
    sequences: set[ast.AST] = field(default_factory=set)

    def dropouts(self, *families: str) -> Iterator[Step]:
        """The steps that drop: "elementwise", whole maps ("spatial"), paths ("path") or "alpha"."""
        return (step for step in self.steps if step.family in families)

    def found(
        self, look: Callable[[Step], T | None], *families: str
    ) -> Iterator[tuple[Place, Step, T]]:
        """What is found at the dropouts of some families, once for each place in the source.

        A layer that is applied in several places, and is wrong in some of them only, is reported
        there; any other where it is built.

        Args:
            look: gives what there is to say of a step, or None.
            families: as of `dropouts`.

        Returns:
            An iterator over the place to report, the step and what was found.
        """
        applied: dict[object, dict[Place, list[Step]]] = {}
        for step in self.dropouts(*families):
            applied.setdefault(step.layer or step, {}).setdefault(step.node, []).append(step)
        seen: set[Place] = set()
        for places in applied.values():
            wrong = {at: found for at, steps in places.items() if (found := _first(look, steps))}
            right = [at for at in places if at not in wrong and at not in self.sequences]
            for node, (step, answer) in wrong.items():
                place = node if right and node not in self.sequences else step.site
                if place not in seen:
                    seen.add(place)
                    yield place, step, answer


def _first(look: Callable[[Step], T | None], steps: list[Step]) -> tuple[Step, T] | None:
    """The first step of which there is something to say, and what."""
    for step in steps:
        answer = look(step)
        if answer is not None:
            return step, answer
    return None


@lru_cache(maxsize=1)
def flow(file: File) -> Flow:
    """Follow the values of a file wherever dropout is built or applied.

    Args:
        file: the file, with its project.

    Returns:
        The steps; none if there is no dropout, or if the file is of tests.
    """
    found = [] if file.in_tests else [*_dropouts(file)]
    if not found:
        return Flow()
    interpreter = Interpreter(file)
    return Flow(interpreter.follow(found), interpreter.returned, {*interpreter.sequences})


def _dropouts(file: File) -> Iterator[ast.Call]:
    """The calls that build a dropout layer, or drop."""
    for call in file.calls:
        func = call.func
        name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
        if ("rop" in name or "Depth" in name) and (
            file.dropout_kind(call) or file.called(call) in DROPPING
        ):
            yield call


def dropped_nothing(step: Step) -> bool:
    """Whether a dropout's rate is written as 0."""
    call = step.site
    return isinstance(call, ast.Call) and any(
        number(argument(call, 0 if step.layer else 1, name)) == 0 for name in ("p", "rate")
    )


def apart(one: Step, other: Step, file: File) -> bool:
    """Whether a value can't go from one step to another, because of conditions.

    Those where the two are built and applied exclude each other; or the condition of the first
    holds again between the two, and what happens under it there was left out on the way; or one
    of them is left out in the first or last round of a loop; or the second is in another
    function, under a condition which a caller may have decided.
    """
    here = file.function_of(one.node)
    for place in (other.node, *other.calls):
        elsewhere = place not in one.calls and file.function_of(place) is not here
        if elsewhere and not all(harmless(test) for test, _ in held(place, file)):
            return True
    pairs = ((one.site, other.site), (one.node, other.node), (one.site, other.node))
    return any(contradict(first, second, file) for first, second in pairs) or any(
        _again(first, second, file) or counted(first, second, file) or counted(second, first, file)
        for first, second in pairs[:2]
    )


def _again(one: ast.AST, other: ast.AST, file: File) -> bool:
    function = file.function_of(one)
    if function is None or function is not file.function_of(other):
        return False
    under = [(ast.dump(test), truth) for test, truth in held(one, file)]
    inside = set(file.ancestors(other))
    return bool(under) and any(
        isinstance(at, ast.If)
        and at not in inside
        and _line(one) < at.lineno < _line(other)
        and any((ast.dump(test), truth) in under for test, truth in parts(at.test, True))
        for at in ast.walk(function)
    )


def _line(node: ast.AST) -> int:
    return getattr(node, "lineno", 0)
