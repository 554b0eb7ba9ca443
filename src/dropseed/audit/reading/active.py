"""Whether a call that drops does so in evaluation: its place and its rate taken together."""

from __future__ import annotations

import ast
from enum import Enum

from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Function, argument, default_of, number, opaque
from dropseed.audit.reading.switch import (
    DEPTH,
    MANY,
    asked_at,
    by_design,
    calls_of,
    switched,
    trains_only,
)


class Rate(Enum):
    """What is known of a rate in evaluation."""

    ON = "above 0"
    OFF = "0, or set by the mode"
    UNKNOWN = "given by callers that can't be seen"


def stays_on(call: ast.Call, rate: ast.expr | None, file: File) -> bool:
    """Whether a call runs in evaluation, at a rate that is not 0 there and that nobody meant.

    Args:
        call: the call that drops.
        rate: its rate; None for a default above 0.
        file: where it stands.

    Returns:
        True where all of this is certain, as far as the file shows.
    """
    if file.in_tests or file.function_of(call) is None:
        return False
    if rate is not None and rate_in_evaluation(rate, file) is not Rate.ON:
        return False
    return not (asked_at(call, file) or trains_only(call, file) or by_design(call, file))


def rate_in_evaluation(rate: ast.expr, file: File, depth: int = DEPTH) -> Rate:
    """What is known of a rate in evaluation: the arguments of the file's own calls are followed.

    Args:
        rate: the expression.
        file: where it stands.
        depth: how many calls and assignments are followed.

    Returns:
        The knowledge.
    """
    if number(rate) == 0 or switched(rate, file):
        return Rate.OFF
    return _unswitched(rate, file, depth)


def _unswitched(rate: ast.expr, file: File, depth: int) -> Rate:
    """What is known of a rate that no mode sets within its function."""
    if isinstance(rate, ast.Constant):
        return Rate.ON if rate.value else Rate.OFF
    if isinstance(rate, ast.IfExp) and depth:
        return _worst([_unswitched(at, file, depth - 1) for at in (rate.body, rate.orelse)])
    if isinstance(rate, ast.Name):
        return _of_name(rate, file, depth)
    if isinstance(rate, ast.Attribute):
        values = [value for value in file.values(rate) if value is not rate]
        if not values and _inherited_method(rate, file):
            return Rate.UNKNOWN
        off = bool(values) and all(_nothing(value) for value in values)
        return Rate.OFF if off else Rate.ON
    inner = [at for at in ast.walk(rate) if isinstance(at, ast.Name) and at.id != "self"]
    given = [_of_name(at, file, depth) for at in inner if _parameter(at, file)]
    return _worst(given) if given else Rate.ON


def _inherited_method(rate: ast.Attribute, file: File) -> bool:
    """Whether `self.rate` is a property of a class above, which may ask for the mode."""
    owner = file.class_of(rate) if dotted(rate.value) == "self" else None
    facts = map(file.project.class_facts, file.lineage(owner)) if owner else ()
    return any(rate.attr in at.methods for at in facts if at is not None)


def _nothing(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and not value.value


def _worst(known: list[Rate]) -> Rate:
    return next((rate for rate in Rate if rate in known), Rate.UNKNOWN)


def _of_name(name: ast.Name, file: File, depth: int) -> Rate:
    if depth == 0:
        return Rate.UNKNOWN
    parameter = _parameter(name, file)
    if parameter is not None:
        function = file.function_of(parameter)
        if function is None or parameter not in ast.walk(function.args):
            return Rate.UNKNOWN  # a lambda's
        return _of_parameter(parameter, function, file, depth)
    values = [value for value in file.values(name) if value is not name]
    left = depth - 1 if len(values) <= MANY else 0
    return _worst([_unswitched(at, file, left) for at in values]) if values else Rate.ON


def _parameter(name: ast.Name, file: File) -> ast.arg | None:
    """The parameter that a name is, if nothing else is assigned to it."""
    bindings = file.bindings(name.id, name)
    return bindings[0] if len(bindings) == 1 and isinstance(bindings[0], ast.arg) else None


def _of_parameter(parameter: ast.arg, function: Function, file: File, depth: int) -> Rate:
    if function.name == "__init__":
        return Rate.ON
    known = []
    calls = list(calls_of(function, file))
    left = depth - 1 if len(calls) <= MANY else 0
    for call in calls:
        given = given_for(parameter, function, call, file)
        if trains_only(call, file):
            known.append(Rate.OFF)
        elif given is None:
            known.append(Rate.UNKNOWN)
        else:
            known.append(rate_in_evaluation(given, file, left))
    if not known:
        default = default_of(parameter, function)
        known = [Rate.ON if default is not None and number(default) else Rate.UNKNOWN]
    return _worst(known)


def given_for(
    parameter: ast.arg, function: Function, call: ast.Call, file: File
) -> ast.expr | None:
    """What a call of a function gives for a parameter: its default if nothing."""
    if opaque(call):
        return None
    positions = [*function.args.posonlyargs, *function.args.args]
    position = len(call.args)
    if parameter in positions:
        position = positions.index(parameter)
        static = any(getattr(at, "id", "") == "staticmethod" for at in function.decorator_list)
        if isinstance(file.parent(function), ast.ClassDef) and not static:
            position -= 1
    return argument(call, position, parameter.arg) or default_of(parameter, function)
