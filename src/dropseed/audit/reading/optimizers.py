"""Optimizers: what is one, and which weights it changes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.reading.file import File, argument
from dropseed.audit.reading.holders import last_name

DEPTH = 4
"""How many assignments are followed."""

_OPTIMIZER = re.compile(r"\w*(?:optim\w*|scaler|sgd|adam\w*)(?:_\w+)?|opts?|opt_\w+|\w+_opt")
_NUMBERS = frozenset({"shape", "size", "ndim", "device", "dtype", "detach", "item", "numel", "len"})
_PARAMETERS = frozenset({"parameters", "named_parameters"})


def is_optimizer(node: ast.expr) -> bool:
    """Whether an expression is an optimizer, or a scaler that makes its steps, by its name."""
    return _OPTIMIZER.fullmatch(last_name(node).lower()) is not None


def changed(optimizer: ast.expr, file: File) -> frozenset[str] | None:
    """The names in what an optimizer changes, assignments followed.

    Args:
        optimizer: an expression that holds it.
        file: where it stands.

    Returns:
        The names; None if it can't be seen what it was built with.
    """
    found: set[str] = set()
    for built in file.values(optimizer):
        if isinstance(built, ast.Constant):
            continue  # None, until it is built
        weights = argument(built, 0, "params") if isinstance(built, ast.Call) else None
        names = _names(weights, file) if weights is not None else set()
        if not isinstance(weights, ast.List) and not names & _PARAMETERS:
            return None
        found |= names
    return frozenset(found) or None


def _names(node: ast.expr, file: File) -> set[str]:
    """The names in an expression, and in what is assigned to them."""
    found: set[str] = set()
    waiting = [node]
    for _ in range(DEPTH):
        parts = [part for expression in waiting for part in _parts(expression)]
        found.update(part.attr for part in parts if isinstance(part, ast.Attribute))
        fresh = {
            part.id: part for part in parts if isinstance(part, ast.Name) and part.id not in found
        }
        found.update(fresh)
        waiting = [value for part in fresh.values() for value in file.values(part)]
    return found


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of an expression, without those that are numbers only: `x.shape`, `len(x)`."""
    if isinstance(node, ast.Attribute) and node.attr in _NUMBERS:
        return
    if isinstance(node, ast.Call) and last_name(node.func) in _NUMBERS:
        return
    yield node
    for part in ast.iter_child_nodes(node):
        yield from _parts(part)
