"""How many axes a value has, as far as the steps that make it tell."""

from __future__ import annotations

import ast

from dropseed.audit.reading.file import argument, integer, number
from dropseed.audit.reading.steps import Step

_MAPS = {"conv1": 3, "conv2": 4, "conv3": 5, "recurrent": 3}
_KEEPING = frozenset(
    {"activation", "identity", "norm", "batch norm", "linear", "softmax", "elementwise", "spatial"}
    | {"alpha", "path", "max pool", "mean pool", "resize", "sum"}
)
_REDUCING = frozenset({"max", "min", "mean", "sum", "amax", "amin", "prod", "std", "var", "median"})
_PAIRS = frozenset({"max", "min", "median", "topk", "sort"})
"""Functions that give values and indices."""


def axes(step: Step, seen: frozenset[Step] = frozenset()) -> int | None:
    """The number of axes of what a step gives, with the batch.

    Args:
        step: the step.
        seen: steps on whose way this one was asked for.

    Returns:
        The number; None if it is unknown, or not always the same.
    """
    if step in seen or len(seen) > 40:
        return None
    seen = seen | {step}
    if step.family in _MAPS:
        return _MAPS[step.family]
    name = step.kind.rpartition(".")[2]
    if step.kind == "[]":
        return _indexed(step, seen)
    if name in ("view", "reshape", "permute", "flatten", "Flatten"):
        return _shaped(step, name, seen)
    if name == "cat" or step.family in _KEEPING or name in ("transpose", "swapaxes", "concat"):
        return _of_inputs(step, seen)
    if name in ("unsqueeze", "stack"):
        return _plus(_of_inputs(step, seen), 1)
    if name in _REDUCING or name == "squeeze":
        return _reduced(step, seen)
    return None


def _of_inputs(step: Step, seen: frozenset[Step]) -> int | None:
    found = {axes(source, seen) for source in step.inputs if source not in seen}
    return found.pop() if len(found) == 1 else None


def _plus(count: int | None, more: int) -> int | None:
    return None if count is None else count + more


def _shaped(step: Step, name: str, seen: frozenset[Step]) -> int | None:
    call, method = step.site, step.kind.startswith(".")
    if not isinstance(call, ast.Call):
        return None
    if name == "Flatten":
        return 2 if not call.args and not call.keywords else None
    sizes = call.args if method else call.args[1:]
    if name == "flatten":
        start, end = (argument(call, at + (not method), key) for at, key in enumerate(_FLATTEN))
        whole = number(start) == 1 and (end is None or number(end) == -1)
        return 2 if whole else None
    if len(sizes) == 1 and isinstance(sizes[0], ast.Tuple | ast.List):
        sizes = sizes[0].elts
    if len(sizes) == 1 and number(sizes[0]) != -1:
        return None  # a shape that stands elsewhere
    return None if any(isinstance(at, ast.Starred) for at in sizes) else len(sizes) or None


_FLATTEN = ("start_dim", "end_dim")


def _reduced(step: Step, seen: frozenset[Step]) -> int | None:
    """Reduced along one axis, or several that are written out."""
    call, method = step.site, step.kind.startswith(".")
    if not isinstance(call, ast.Call) or any(
        at.arg in ("keepdim", "keepdims") for at in call.keywords
    ):
        return None
    along = argument(call, 0 if method else 1, "dim") or argument(call, 99, "axis")
    if isinstance(along, ast.Tuple | ast.List):
        return _plus(_of_inputs(step, seen), -len(along.elts))
    whole = integer(along) is not None and len(call.args) + method <= 2
    return _plus(_of_inputs(step, seen), -1) if whole else None


def _indexed(step: Step, seen: frozenset[Step]) -> int | None:
    node = step.node
    if not isinstance(node, ast.Subscript):
        return None
    position = integer(node.slice)
    if position is not None and any(
        at.name in _PAIRS or at.family == "recurrent" for at in step.inputs
    ):
        return _of_inputs(step, seen) if position == 0 else None
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    change = 0
    for part in parts:
        if isinstance(part, ast.Constant) and part.value is None:
            change += 1
        elif integer(part) is not None:
            change -= 1
        elif not isinstance(part, ast.Slice) and getattr(part, "value", 0) is not Ellipsis:
            return None
    return _plus(_of_inputs(step, seen), change)
