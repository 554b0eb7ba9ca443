"""What the constants that a call gives say of the conditions in the function that it calls."""

from __future__ import annotations

import ast

from dropseed.audit.reading.active import given_for
from dropseed.audit.reading.file import File, Function

DEPTH = 4
"""How deep a condition is taken apart."""


def rules_out(call: ast.Call, function: Function, node: ast.AST, file: File) -> bool:
    """Whether a call's constants keep a node of the function from running: `train=False`.

    Args:
        call: the call.
        function: the function that it calls.
        node: a node in the function.
        file: where both stand.

    Returns:
        True if an `if` around the node says so.
    """
    child = node
    for parent in file.ancestors(node):
        if parent is function:
            return False
        if isinstance(parent, ast.If) and child is not parent.test:
            truth = _truth(parent.test, function, call, file)
            if truth is not None and truth != (child in parent.body):
                return True
        child = parent
    return False


def _truth(
    test: ast.expr, function: Function, call: ast.Call, file: File, depth: int = DEPTH
) -> bool | None:
    """Whether a condition holds; None if that can't be told."""
    if depth == 0:
        return None
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        truth = _truth(test.operand, function, call, file, depth - 1)
        return None if truth is None else not truth
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        known = [_truth(value, function, call, file, depth - 1) for value in test.values]
        return False if False in known else None
    if isinstance(test, ast.Compare):
        return _is_none(test, function, call, file)
    given = _given(test, function, call, file)
    return None if given is None else bool(given.value)


def _is_none(test: ast.Compare, function: Function, call: ast.Call, file: File) -> bool | None:
    """`optimizer is None`, `optimizer is not None`."""
    right = test.comparators[0]
    if not isinstance(right, ast.Constant) or right.value is not None:
        return None
    given = _given(test.left, function, call, file)
    if given is None or not isinstance(test.ops[0], ast.Is | ast.IsNot):
        return None
    return (given.value is None) == isinstance(test.ops[0], ast.Is)


def _given(node: ast.expr, function: Function, call: ast.Call, file: File) -> ast.Constant | None:
    """The constant that a call gives for a parameter."""
    bindings = file.bindings(node.id, node) if isinstance(node, ast.Name) else []
    if len(bindings) != 1 or not isinstance(bindings[0], ast.arg):
        return None
    if bindings[0] not in [*function.args.args, *function.args.kwonlyargs]:
        return None
    given = given_for(bindings[0], function, call, file)
    return given if isinstance(given, ast.Constant) else None
