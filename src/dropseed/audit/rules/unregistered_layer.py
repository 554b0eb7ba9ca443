"""Dropout layer in a plain list, dict or tuple.

A module finds its children among its attributes. A plain list is no module: what is in it is never
registered, so that `eval()` does not reach the dropout, and it drops in evaluation, too. `to()`,
`state_dict()` and the printed structure miss it as well.

**Wrong**

```python
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drops = [nn.Dropout(0.1), nn.Dropout(0.2)]

    def forward(self, x):
        for drop in self.drops:
            x = drop(x)
        return x
```

**Right**

```python
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.drops = nn.ModuleList([nn.Dropout(0.1), nn.Dropout(0.2)])

    def forward(self, x):
        for drop in self.drops:
            x = drop(x)
        return x
```

**Silent** where the list is later given to `ModuleList`, `Sequential` or any other call, or its
layers are registered by `add_module`, `setattr` or an attribute of their own; where no method uses
it; in Keras, which looks into lists; in tests.

**When to leave it.** Never.

**Source.** [torch.nn.ModuleList](https://docs.pytorch.org/docs/stable/generated/torch.nn.ModuleList.html):
the modules that it contains "are properly registered".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Fix, Severity
from dropseed.audit.reading.edits import spelling
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import Class, File, Hit
from dropseed.audit.reading.names import TORCH_DROPOUTS
from dropseed.audit.reading.switch import by_design
from dropseed.audit.rule import Rule

_REGISTERS = {"add_module", "register_module", "_modules", "setattr", "__setattr__"}
_GROWS = {"append", "extend", "insert", "update", "setdefault"}
_VIEWS = {"items", "values", "keys"}
_LOOKS = {"zip", "enumerate", "reversed", "len", "range", "iter", "sorted"}
_MOVES = {"to", "cuda", "cpu", "float", "double", "half", "train", "requires_grad_"}
_FREE = re.compile(r"(?!bfloat16)\w*(?:\d|drop)\w*")
"""Keys that are no name of a module's own methods."""


def check(file: File) -> Iterator[Hit]:
    """Yield the first dropout layer of each container that registers none."""
    if file.in_tests:
        return
    for owner in file.classes:
        held = {name: at for name, at in owner.attributes.items() if _plain(at, file)}
        if not held or not file.is_module(owner) or _registers(owner):
            continue
        for name, values in held.items():
            hit = _container(name, values, owner, file)
            if hit is not None:
                yield hit


def _plain(values: list[ast.expr], file: File) -> bool:
    """Whether an attribute is never anything but a plain container."""
    return all(_elements(value, file) is not None for value in values)


def _elements(value: ast.expr, file: File, depth: int = 4) -> list[ast.expr] | None:
    """What is in a list, tuple or dict, perhaps under a local name; None for anything else."""
    if depth == 0:
        return None
    if isinstance(value, ast.Name):
        values = file.values(value)
        return _elements(values[0], file, depth - 1) if len(values) == 1 else None
    if isinstance(value, ast.BinOp):  # a sum of lists, or a list times a number
        parts = [_elements(side, file, depth - 1) for side in (value.left, value.right)]
        lists = [part for part in parts if part is not None]
        wanted = 2 if isinstance(value.op, ast.Add) else 1
        return [at for part in lists for at in part] if len(lists) == wanted else None
    if isinstance(value, ast.Call) and not value.args and dotted(value.func) in ("list", "dict"):
        return [keyword.value for keyword in value.keywords]
    if isinstance(value, ast.List | ast.Tuple):
        return value.elts
    if isinstance(value, ast.Dict):
        return value.values
    if isinstance(value, ast.ListComp):
        return [value.elt]
    return [value.value] if isinstance(value, ast.DictComp) else None


def _registers(owner: Class) -> bool:
    """Whether a class registers modules by name."""
    return any(
        (isinstance(node, ast.Attribute) and node.attr in _REGISTERS)
        or (isinstance(node, ast.Name) and node.id == "setattr")
        for node in ast.walk(owner.node)
    )


def _container(name: str, values: list[ast.expr], owner: Class, file: File) -> Hit | None:
    written = f"self.{name}"
    uses: list[ast.expr] = [
        node
        for node in ast.walk(owner.node)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Load)
        and node.attr == name
        and dotted(node) == written
    ]
    for value in values:
        if isinstance(value, ast.Name):
            uses += _uses_of_local(value, file)
    if not all(_stays(use, file) for use in uses) or not any(_outside(use, file) for use in uses):
        return None
    elements = [at for value in values for at in _elements(value, file) or ()]
    elements += [at for use in uses for at in _added(use, file)]
    dropouts = [at for element in elements if (at := _dropout(element, file)) is not None]
    if not dropouts or by_design(dropouts[0], file):
        return None
    first = min(dropouts, key=lambda at: (at.lineno, at.col_offset))
    message = f"a dropout layer in the plain container `{written}`: `eval()` never reaches it"
    fix = _fix(values, file) if elements == dropouts else None
    return file.hit(first, message, fix)


def _uses_of_local(value: ast.Name, file: File) -> list[ast.expr]:
    """The places where the function that fills a list under a local name reads that name."""
    function = file.function_of(value)
    return [
        node
        for statement in (function.body if function else [])
        for node in ast.walk(statement)
        if isinstance(node, ast.Name)
        and node.id == value.id
        and isinstance(node.ctx, ast.Load)
        and node is not value
    ]


def _stays(use: ast.expr, file: File) -> bool:
    """Whether a use of a container only looks at it, or adds to it."""
    parent = file.parent(use)
    if isinstance(parent, ast.For | ast.comprehension):
        return parent.iter is use
    if isinstance(parent, ast.Subscript):
        return parent.value is use
    if isinstance(parent, ast.Attribute):
        call = file.parent(parent)
        if not isinstance(call, ast.Call) or call.func is not parent:
            return False
        return parent.attr in _GROWS or (parent.attr in _VIEWS and _stays(call, file))
    if isinstance(parent, ast.Call):
        return isinstance(parent.func, ast.Name) and parent.func.id in _LOOKS
    return isinstance(parent, ast.Compare | ast.If | ast.IfExp | ast.BoolOp | ast.UnaryOp)


def _outside(use: ast.expr, file: File) -> bool:
    method = file.method_of(use)
    return method is not None and method.name != "__init__"


def _added(use: ast.expr, file: File) -> list[ast.expr]:
    """What a use adds to a container: `self.drops.append(layer)`, `self.drops[name] = layer`."""
    parent = file.parent(use)
    if isinstance(parent, ast.Attribute) and parent.attr in _GROWS:
        call = file.parent(parent)
        assert isinstance(call, ast.Call)
        if parent.attr == "extend" and call.args:
            return _elements(call.args[0], file) or [call.args[0]]
        return call.args[-1:]
    statement = file.parent(parent) if isinstance(parent, ast.Subscript) else None
    if isinstance(statement, ast.Assign) and statement.targets == [parent]:
        return [statement.value]
    return []


def _dropout(element: ast.expr, file: File) -> ast.Call | None:
    """The dropout layer that an element is or holds, unless it is an attribute of its own."""
    if isinstance(element, ast.Name):
        values = file.values(element)
        parent = file.parent(values[0]) if len(values) == 1 else None
        if not isinstance(parent, ast.Assign) or len(parent.targets) > 1:
            return None
        element = values[0]
    while (
        isinstance(element, ast.Call)
        and isinstance(element.func, ast.Attribute)
        and element.func.attr in _MOVES
    ):
        element = element.func.value
    if isinstance(element, ast.IfExp):
        return _dropout(element.body, file) or _dropout(element.orelse, file)
    if not isinstance(element, ast.Call):
        return None
    if file.dropout_kind(element) in TORCH_DROPOUTS:
        return element
    if file.called(element) == "torch.nn.Sequential":
        return next((at for one in element.args if (at := _dropout(one, file)) is not None), None)
    return None


def _fix(values: list[ast.expr], file: File) -> Fix | None:
    """Wrap the one container in ModuleList or ModuleDict."""
    if len(values) != 1:
        return None
    value = values[0]
    kind = "ModuleDict" if isinstance(value, ast.Dict) else "ModuleList"
    if isinstance(value, ast.Dict) and not _names_modules(value):
        return None
    how = spelling(f"torch.nn.{kind}", file)
    text = file.text(value)
    if isinstance(value, ast.Tuple) and not text.startswith("("):
        text = f"[{text}]"
    if not how or isinstance(value, ast.DictComp | ast.Call | ast.BinOp | ast.Name):
        return None
    return Fix(f"Wrap it in `{how}`", (file.replace(value, f"{how}({text})"),))


def _names_modules(display: ast.Dict) -> bool:
    """Whether no key of a dict is a name that a module has already."""
    return all(
        isinstance(key, ast.Constant) and isinstance(key.value, str) and _FREE.fullmatch(key.value)
        for key in display.keys
    )


RULE = Rule("DS106", "dropout-unregistered", Severity.ERROR, __doc__, check)
