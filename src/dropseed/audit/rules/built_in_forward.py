"""Dropout layer built where it is called.

A module is born in training mode. One that is built in the forward pass is a new one at each call,
which `model.eval()` never reached: it drops in evaluation, too. Predictions are random, and the
model's printed structure has no such layer.

**Wrong**

```python
class Block(nn.Module):
    def forward(self, x):
        return nn.Dropout(0.5)(self.linear(x))
```

**Right**

```python
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.linear(x))
```

**Silent** in Keras and in Flax's compact modules, whose layers are called where they are built;
where the code runs in training only; where the rate is set by the mode; where the layer is handed
on, or its mode is set by hand; in tests.

**When to leave it.** Monte-Carlo dropout that says so.

**Source.** [torch.nn.Module.eval](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval)
reaches a module's registered children.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Fix, Severity
from dropseed.audit.reading.active import Rate, rate_in_evaluation
from dropseed.audit.reading.edits import append, constructor, reaches_self
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import Class, File, Function, Hit, argument
from dropseed.audit.reading.names import TORCH_DROPOUTS, is_torch_module
from dropseed.audit.reading.switch import asked_at, by_design, calls_of, trains_only
from dropseed.audit.rule import Rule

_OWN_LAYER = re.compile(r"\w*(?:Dropout|DropPath|DropBlock|DropConnect|StochasticDepth)(?:\d[dD])?")
_BUILDERS = {"__init__", "__new__", "build", "setup", "setUp", "reset_parameters", "main"}


def check(file: File) -> Iterator[Hit]:
    """Yield the layers that are called as soon as they are built."""
    if file.in_tests:
        return
    kinds = {name: kind for name in file.calls_by_name if (kind := _kind(name, file))}
    for call, name in file.calls_to(*kinds):
        kind, function = kinds[name], file.function_of(call)
        if function is None or not _called(call, function, file):
            continue
        if function.name in _BUILDERS and not isinstance(file.scope_of(call), ast.Lambda):
            continue
        rate = argument(call, 0, "p")
        if kind not in TORCH_DROPOUTS and _told(call, file):
            continue
        if rate is not None and rate_in_evaluation(rate, file) is Rate.OFF:
            continue
        if asked_at(call, file) or trains_only(call, file) or by_design(call, file):
            continue
        what = kind.rpartition(".")[2]
        message = f"`{what}` built where it is called: `eval()` never reaches it"
        yield file.hit(call, message, _fix(call, file))


def _kind(name: str, file: File) -> str:
    """The canonical name of the dropout module, torch's or a scanned one, that a class is."""
    kind = file.kind_of(name)
    if kind in TORCH_DROPOUTS:
        return kind
    if not _OWN_LAYER.fullmatch(kind.rpartition(".")[2]):
        return ""
    return kind if any(is_torch_module(name) for name in file.project.ancestors(kind)) else ""


def _told(call: ast.Call, file: File) -> bool:
    """Whether a layer is called with more than its input, which may be the mode."""
    parent = file.parent(call)
    return isinstance(parent, ast.Call) and parent.func is call and len(parent.args) != 1


def _called(call: ast.Call, function: Function, file: File) -> bool:
    """Whether a layer is called at once, itself or through a name or a Sequential around it."""
    layer = _outermost(call, file)
    parent = file.parent(layer)
    inside = file.method_of(call) is not None and reaches_self(call, file)
    if isinstance(parent, ast.Call) and parent.func is layer:
        return inside or (_moved(call, file) is layer and not _symbolic(function, file))
    if isinstance(parent, ast.IfExp) and layer is not parent.test:
        parent = file.parent(parent)
    if not isinstance(parent, ast.Assign) or len(parent.targets) != 1:
        return False
    target = parent.targets[0]
    if isinstance(target, ast.Name):
        uses = _uses(target.id, function)
        return bool(uses) and all(
            isinstance(use := file.parent(name), ast.Call)
            and use.func is name
            and (inside or _of_a_parameter(use, file))
            for name in uses
        )
    return inside and layer is call and _called_later(target, parent, function, file)


def _symbolic(function: Function, file: File) -> bool:
    """Whether a function builds a model by calling layers on symbols, as Keras's do."""
    return file.method_of(function) is None and any(
        isinstance(node, ast.Call)
        and file.called(node).startswith(("torch.nn.Linear", "torch.nn.Conv"))
        for statement in function.body
        for node in ast.walk(statement)
    )


def _outermost(call: ast.Call, file: File) -> ast.Call:
    """The Sequential in which a layer is built, if it is in one; else the layer."""
    layer = _moved(call, file)
    for parent in file.ancestors(layer):
        if isinstance(parent, ast.Call) and parent.func is not layer:
            if file.called(parent) != "torch.nn.Sequential":
                break
            layer = _moved(parent, file)
        elif not isinstance(parent, ast.List | ast.Tuple | ast.Starred):
            break
    return layer


def _moved(call: ast.Call, file: File) -> ast.Call:
    """`nn.Dropout(p).to(device)` is the layer still."""
    method = file.parent(call)
    while isinstance(method, ast.Attribute) and method.attr in ("to", "cuda", "cpu"):
        outer = file.parent(method)
        if not isinstance(outer, ast.Call) or outer.func is not method:
            break
        call, method = outer, file.parent(outer)
    return call


def _uses(name: str, function: Function) -> list[ast.Name]:
    return [
        node
        for statement in function.body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]


def _of_a_parameter(use: ast.Call, file: File) -> bool:
    """Whether a layer is called on what its function was given; a demonstration makes its own."""
    return any(
        isinstance(binding, ast.arg)
        for value in use.args
        for name in ast.walk(value)
        if isinstance(name, ast.Name)
        for binding in file.bindings(name.id, name)
    )


def _called_later(target: ast.expr, assignment: ast.Assign, function: Function, file: File) -> bool:
    """Whether a forward pass sets an attribute to a new layer, at each call, and then calls it."""
    written = dotted(target)
    if not written.startswith("self.") or file.parent(assignment) is not function:
        return False
    if function.name != "forward" and not any(
        (caller := file.function_of(call)) is not None and caller.name == "forward"
        for call in calls_of(function, file)
    ):
        return False
    return any(
        isinstance(node, ast.Call)
        and dotted(node.func) == written
        and node.lineno >= assignment.lineno
        for statement in function.body
        for node in ast.walk(statement)
    )


def _fix(call: ast.Call, file: File) -> Fix | None:
    """Build the layer in `__init__`, where its rate is the same at each call."""
    owner, parent = file.class_of(call), file.parent(call)
    if owner is None or not isinstance(parent, ast.Call) or parent.func is not call:
        return None
    method = constructor(owner)
    if method is None or not reaches_self(call, file) or not reaches_self(method.body[0], file):
        return None
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if not all(_fixed(at, owner, method, file) for at in given):
        return None
    name = _free_name(owner, file)
    line = append(method, f"self.{name} = {file.text(call)}", file)
    if not name or line is None or "\n" in file.text(call):
        return None
    return Fix("Build the layer in `__init__`", (line, file.replace(call, f"self.{name}")))


def _fixed(value: ast.expr, owner: Class, method: Function, file: File) -> bool:
    """Whether a value is a literal, or an attribute that only the constructor sets, and once."""
    if isinstance(value, ast.Constant):
        return True
    if not isinstance(value, ast.Attribute) or dotted(value) != f"self.{value.attr}":
        return False
    values = owner.attributes.get(value.attr, [])
    statement = file.statement_of(values[0]) if len(values) == 1 else None
    return statement in method.body


def _free_name(owner: Class, file: File) -> str:
    """A name for a layer that nothing in the class, nor above or below it, can have."""
    if file.lineage(owner)[1:] != ["torch.nn.Module"]:
        return ""
    taken = set(owner.attributes) | set(owner.methods) | file.facts.attributes | file.facts.strings
    names = ["dropout", *(f"dropout{number}" for number in range(1, 100))]
    return next((name for name in names if name not in taken), "")


RULE = Rule("DS103", "dropout-built-in-forward", Severity.ERROR, __doc__, check)
