"""Calls of functional dropout in the code of a module: what no swap of layers reaches.

Read from bytecode, in which a global name can be followed to the function it stands for: no source
is needed, `dropout` may go by another name, and a method of that name isn't taken for it. Values
are asked for nothing but their `type`: globals hold proxies that run code when they are asked more.
"""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Iterator
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from torch._ops import OpOverloadPacket

_NAMES = re.compile(r"(feature_)?(alpha_)?dropout([123]d)?_?|drop_path|stochastic_depth")
_FUNCTIONS = (FunctionType, BuiltinFunctionType, OpOverloadPacket)


def functional_calls(cls: type) -> list[tuple[str, str]]:
    """The functional dropouts that a module's class names, outside torch's own code.

    Args:
        cls: a class of modules. Its methods are read, and the functions of their own files that
            they name.

    Returns:
        For each call what is called, and where.

    Example:
        >>> from torch.nn import functional
        >>> class Net:
        ...     def forward(self, x):
        ...         return functional.dropout(x, 0.1, self.training)
        >>> [what for what, _ in functional_calls(Net)]
        ['dropout()']
    """
    pending = [
        inspect.unwrap(value if isinstance(value, FunctionType) else value.__func__)
        for base in cls.__mro__
        if not base.__module__.startswith("torch.nn.")
        for value in vars(base).values()
        if isinstance(value, FunctionType | staticmethod | classmethod)
    ]
    calls: dict[tuple[str, str], None] = {}
    seen: set[Any] = set()
    while pending:
        function = pending.pop(0)
        if function in seen or type(function) is not FunctionType or _is_own(function):
            continue
        seen.add(function)
        file = PurePath(function.__code__.co_filename).name
        for code in _codes(function.__code__):
            named = [function.__globals__.get(name) for name in code.co_names]
            pending += [
                value
                for value in named
                if type(value) is FunctionType and value.__module__ == function.__module__
            ]
            if _may_drop(code, named):
                for what, line in _calls(code, function.__globals__):
                    calls[what, f"a call at {file}:{line}, which is no module"] = None
    return list(calls)


def _is_own(function: FunctionType) -> bool:
    return str(function.__globals__.get("__name__", "")).partition(".")[0] == "torch"


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _may_drop(code: CodeType, named: list[Any]) -> bool:
    """Whether it is worth to read the instructions, which takes a hundred times as long."""
    words = {word for const in code.co_consts if type(const) is tuple for word in const}
    return "dropout_p" in words or any(
        _drops(value) or _NAMES.fullmatch(name)
        for name, value in zip(code.co_names, named, strict=True)
    )


def _calls(code: CodeType, names: dict[str, Any]) -> Iterator[tuple[str, int]]:
    value: Any = None
    line = code.co_firstlineno
    for step in dis.get_instructions(code):
        line = (step.positions and step.positions.lineno) or line
        if step.opname == "LOAD_GLOBAL":
            value = names.get(step.argval)
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD") and issubclass(type(value), ModuleType):
            value = vars(value).get(step.argval)  # no getattr: a module may import at one
        else:
            value = None
        if _drops(value):
            yield f"{value.__name__}()", line
        elif step.opname in ("KW_NAMES", "LOAD_CONST"):  # a call's keywords, until 3.12 and since
            constant = code.co_consts[step.arg or 0]
            if type(constant) is tuple and "dropout_p" in constant:
                yield "dropout_p=", line


def _drops(value: Any) -> bool:
    return (
        type(value) in _FUNCTIONS
        and _NAMES.fullmatch(value.__name__) is not None
        and not str(value.__module__).startswith("dropseed")
    )
