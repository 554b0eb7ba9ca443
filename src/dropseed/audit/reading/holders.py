"""By what text a model is known: `self.model`, wherever aliases, wrappers and arguments lead."""

from __future__ import annotations

import ast

from dropseed.audit.reading.active import given_for
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Function

ANY = "*"
"""The text of a model that can't be told."""
DEPTH = 4

_SAME = frozenset({"unwrap_model", "unwrap", "DataParallel", "DistributedDataParallel", "compile"})
"""Functions that give back the model they take, or one that shares its mode."""


def holder(node: ast.expr, file: File) -> str:
    """The text by which a model is known.

    Args:
        node: an expression that holds it.
        file: where it stands.

    Returns:
        Dotted names, as `self.model`; `ANY` for an item of a list and whatever else can't be told.
    """
    for _ in range(DEPTH):
        name = dotted(node)
        if name:
            break
        if not isinstance(node, ast.Call) or last_name(node.func) not in _SAME or not node.args:
            return ANY
        node = node.args[0]
    first, _, rest = name.partition(".")
    if first not in ("self", "cls"):
        bindings = [at for at in file.bindings(first, node) if not _wraps(first, at, file)]
        if any(_is_item(at, file) for at in bindings):
            return ANY
        value = file.assigned(bindings[0]) if len(bindings) == 1 else None
        if isinstance(value, ast.Call) and last_name(value.func) in _SAME and value.args:
            value = value.args[0]
        if isinstance(value, ast.Attribute):
            first = dotted(value) or first
    parts = [part for part in f"{first}.{rest}".split(".") if part not in ("module", "")]
    return ".".join(parts) or ANY


def outside(model: str, function: Function, call: ast.Call, file: File) -> str:
    """What a function's model is where the function is called.

    Args:
        model: its text in the function.
        function: the function.
        call: the call.
        file: where both stand.

    Returns:
        Its text around the call; for a local of the function one that nothing else has.
    """
    first, dot, rest = model.partition(".")
    if first in (ANY, "self", "cls"):
        return model
    bound = file.bound_in(function).get(first)
    if not bound:
        return model  # a global name, or one of the function around
    parameter = next((at for at in bound if isinstance(at, ast.arg)), None)
    if parameter is not None:
        given = given_for(parameter, function, call, file)
        if given is not None and not isinstance(given, ast.Constant):
            return holder(given, file) + dot + rest
    return f"{function.name}().{model}"


def covers(one: str, other: str) -> bool:
    """Whether switching one model may switch another: it is the same, or it holds the other."""
    return ANY in (one, other) or same(one, other) or other.startswith(f"{one}.")


def same(one: str, other: str) -> bool:
    """Whether two texts may mean one model: `model` may be `self.model`, or `ddp_model`.

    Example:
        >>> same("self.model", "ddp_model"), same("model", "teacher")
        (True, False)
    """
    first, second = (text.rpartition(".")[2].strip("_") for text in (one, other))
    return first in second or second in first


def last_name(node: ast.expr) -> str:
    """The last name of an expression: of `self.optimizers["g"]` it is `optimizers`."""
    while isinstance(node, ast.Subscript | ast.Call):
        node = node.value if isinstance(node, ast.Subscript) else node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _wraps(name: str, binding: ast.AST, file: File) -> bool:
    """Whether a name is set to what is made of itself: `model = model.to(device)`."""
    value = file.assigned(binding)
    if not isinstance(value, ast.Call):
        return False
    return any(dotted(at).partition(".")[0] == name for at in (*value.args, value.func))


def _is_item(binding: ast.AST, file: File) -> bool:
    """Whether a name is bound by a loop, alone or with others."""
    parent = file.parent(binding)
    while isinstance(parent, ast.Tuple | ast.List | ast.Starred):
        parent = file.parent(parent)
    return isinstance(parent, ast.For | ast.AsyncFor | ast.comprehension)
