"""The conditions under which pieces of code run."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File


def contradict(one: ast.AST, other: ast.AST, file: File) -> bool:
    """Whether two places of a file never run together: one under the opposite of a condition."""
    return any(
        _exclude(test, truth, its, their)
        for test, truth in held(one, file)
        for its, their in held(other, file)
    )


def _exclude(one: ast.expr, truth: bool, other: ast.expr, its: bool) -> bool:
    """Whether two conditions can't both be as they are: `a` and `not a`, `a == 1` and `a == 2`."""
    if ast.dump(one) == ast.dump(other):
        return truth != its
    return (
        truth
        and its
        and isinstance(one, ast.Compare)
        and isinstance(other, ast.Compare)
        and isinstance(one.ops[0], ast.Eq | ast.Is)
        and isinstance(other.ops[0], ast.Eq | ast.Is)
        and ast.dump(one.left) == ast.dump(other.left)
        and isinstance(one.comparators[0], ast.Constant)
        and isinstance(other.comparators[0], ast.Constant)
    )


def held(node: ast.AST, file: File) -> Iterator[tuple[ast.expr, bool]]:
    """The conditions that hold where a node runs."""
    child = node
    for parent in file.ancestors(node):
        if isinstance(parent, ast.If | ast.IfExp) and child is not parent.test:
            body = parent.body if isinstance(parent.body, list) else [parent.body]
            yield from parts(parent.test, child in body)
        if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            return
        child = parent


def parts(test: ast.expr, truth: bool) -> Iterator[tuple[ast.expr, bool]]:
    """What has to hold, or not to hold, for a condition to be true, or false."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from parts(test.operand, not truth)
    elif isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) == truth:
        for value in test.values:
            yield from parts(value, truth)
    else:
        yield test, truth


def harmless(test: ast.expr) -> bool:
    """Whether a condition asks for a rate, for training, or for what the interpreter knows."""
    known = isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.Is | ast.IsNot)
    text = ast.unparse(test)
    return known or text.startswith("isinstance(") or "drop" in text or "training" in text


def counted(node: ast.AST, other: ast.AST, file: File) -> bool:
    """Whether a node stands under a condition on the counter of a loop in which another doesn't.

    `if i < last:` in a loop leaves out the last round, after which the other comes.
    """
    outside = set(file.ancestors(other))
    tests: list[ast.expr] = []
    child = node
    for parent in file.ancestors(node):
        if isinstance(parent, ast.If) and child is not parent.test:
            tests.append(parent.test)
        elif isinstance(parent, ast.For | ast.AsyncFor) and parent not in outside:
            name = counter(parent)
            if name and any(name in _names(test) for test in tests):
                return True
        elif isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            return False
        child = parent
    return False


def counter(loop: ast.For | ast.AsyncFor) -> str:
    """The name that counts the rounds of a loop, or ""."""
    called = dotted(loop.iter.func) if isinstance(loop.iter, ast.Call) else ""
    target = loop.target
    if called == "enumerate" and isinstance(target, ast.Tuple) and target.elts:
        target = target.elts[0]
    return dotted(target) if called in ("range", "enumerate") else ""


def _names(test: ast.expr) -> set[str]:
    """The names in a condition."""
    return {at.id for at in ast.walk(test) if isinstance(at, ast.Name)}
