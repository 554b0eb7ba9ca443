"""Edits that several rules make: an argument more, a layer in `__init__`, a container's name."""

from __future__ import annotations

import ast
import re

from dropseed.audit.finding import Edit
from dropseed.audit.reading.file import Class, File, Function


def add_argument(call: ast.Call, text: str, file: File) -> Edit | None:
    """The edit that adds an argument at the end of a call.

    Args:
        call: a call with an argument.
        text: the new argument: "training=self.training".
        file: where it stands.

    Returns:
        The edit, or None if the call has no argument.
    """
    given: list[ast.expr | ast.keyword] = [*call.args, *call.keywords]
    if not given:
        return None
    last = max(given, key=lambda node: (node.end_lineno or 0, node.end_col_offset or 0))
    line, offset = last.end_lineno or 0, last.end_col_offset or 0
    tail = _rest(call, line, offset, file)
    closing = re.sub(r"#.*", lambda comment: " " * len(comment[0]), tail)
    for _ in range(closing.count(")") - 1):  # of parentheses around the last argument
        skipped = closing.index(")") + 1
        before, tail, closing = tail[:skipped], tail[skipped:], closing[skipped:]
        line += before.count("\n")
        last_line = before.rpartition("\n")[2].encode()
        offset = len(last_line) + (0 if "\n" in before else offset)
    return file.insert(line, offset, f", {text}")


def reaches_self(node: ast.AST, file: File) -> bool:
    """Whether a node stands in a method of a torch module, which calls its module `self`."""
    owner, method = file.class_of(node), file.method_of(node)
    if owner is None or method is None or not file.is_module(owner):
        return False
    first = [*method.args.posonlyargs, *method.args.args][:1]
    bound = file.bindings("self", node)
    return [arg.arg for arg in first] == ["self"] and bound == first


def _rest(call: ast.Call, line: int, offset: int, file: File) -> str:
    """The text of a call from a place on."""
    lines = file.source.lines[line - 1 : call.end_lineno]
    end = call.end_col_offset or 0
    lines[-1] = lines[-1].encode()[:end].decode()
    lines[0] = lines[0].encode()[offset:].decode()
    return "\n".join(lines)


def constructor(owner: Class) -> Function | None:
    """The constructor of a class, if it calls that of its parent."""
    method = owner.methods.get("__init__")
    called = isinstance(method, ast.FunctionDef) and any(
        isinstance(part, ast.Call)
        and isinstance(part.func, ast.Attribute)
        and part.func.attr == "__init__"
        for statement in method.body
        for part in ast.walk(statement)
    )
    return method if called else None


def append(function: Function, text: str, file: File) -> Edit | None:
    """The edit that adds a line at the end of a function, or None if it ends by leaving it."""
    last = function.body[-1]
    if last.lineno == function.lineno or isinstance(last, ast.Return | ast.Raise):
        return None
    line = file.source.lines[last.lineno - 1]
    indent = line[: len(line) - len(line.lstrip())]
    end = last.end_lineno or last.lineno
    return file.insert(end, len(file.source.lines[end - 1].encode()), f"\n{indent}{text}")


def spelling(name: str, file: File) -> str:
    """How a file can write a framework's name: "nn.ModuleList"; "" if nothing was imported."""
    for local, target in file.facts.imports.items():
        if target == name:
            return local
        if name.startswith(f"{target}.") and target.count(".") == name.count(".") - 1:
            return f"{local}.{name.rpartition('.')[2]}"
    return name if file.facts.imports.get(name.partition(".")[0]) == name.partition(".")[0] else ""
