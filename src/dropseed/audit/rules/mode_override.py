"""Override of `train` or `eval` that forgets its parent, or the return value.

`nn.Module.train(mode)` sets the mode of the module and of all its children, and returns the module;
`eval()` is `train(False)`. An override that does not call it leaves every dropout as it was. One
that returns nothing makes `model = model.eval()` None. And a training loop of a module, if it is
named `train`, takes the place of `Module.train`: `eval()` then trains, or fails.

**Wrong**

```python
class Net(nn.Module):
    def train(self, mode=True):
        self.backbone.eval()
```

**Right**

```python
class Net(nn.Module):
    def train(self, mode=True):
        super().train(mode)
        self.backbone.eval()
        return self
```

**Silent** where the override does the parent's work itself (it sets `self.training`, or hands the
mode on to what it wraps), only refuses (`raise`), or only returns the module, by which frozen
networks stay in one mode; on training loops of a class that has its own `eval` or may be no module.

**When to leave it.** Never for the parent; for the return value, where nobody chains calls.

**Source.**
[torch.nn.Module.train](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.train):
"Returns self".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.finding import Fix, Severity
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import Class, File, Function, Hit
from dropseed.audit.reading.names import is_torch_module
from dropseed.audit.rule import Rule

MODES = frozenset({"mode", "training", "train", "is_train", "is_training", "train_mode", "flag"})
_DECORATORS = frozenset({"torch.no_grad", "torch.inference_mode", "typing.override"})


def check(file: File) -> Iterator[Hit]:
    """Yield the overrides that lose something."""
    for owner in file.classes:
        for name in ("train", "eval"):
            method = owner.methods.get(name)
            if method is None or file.in_tests or _trivial(method):
                continue
            if not _overrides(method, file):
                if name == "train" and _hides(method, owner, file):
                    message = (
                        "`train` is something else here than `Module.train`, which `eval` calls"
                    )
                    yield file.hit(method, message)
                continue
            if not file.is_module(owner) and not _calls_parent(method):
                continue
            if not _switches(method):
                yield file.hit(method, f"`{name}` does not call `super().{name}`")
            elif not _returns(method):
                message = f"`{name}` does not return the module"
                yield file.hit(method, message, _fix(method, file))


def _overrides(method: Function, file: File) -> bool:
    """Whether a method has the signature of `Module.train` or `Module.eval`."""
    arguments = method.args
    names = [arg.arg for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    marks = (at.func if isinstance(at, ast.Call) else at for at in method.decorator_list)
    if not names or names[0] != "self" or any(file.name_of(at) not in _DECORATORS for at in marks):
        return False
    return len(names) == 1 if method.name == "eval" else set(names[1:]) <= MODES and len(names) < 3


def _hides(method: Function, owner: Class, file: File) -> bool:
    """Whether a method of a torch module that takes more than a mode hides `Module.train`.

    `Module.eval` calls `self.train(False)`, which then trains, or fails.
    """
    plain = not method.decorator_list and isinstance(method, ast.FunctionDef)
    certain = any(is_torch_module(name) for name in file.lineage(owner))
    return plain and certain and "eval" not in owner.methods and not _switches(method)


def _trivial(method: Function) -> bool:
    """Whether a method only refuses, or only returns itself."""
    body = [at for at in method.body if not isinstance(at, ast.Expr) or _work(at)]
    return len(body) == 1 and isinstance(body[0], ast.Raise | ast.Return)


def _work(statement: ast.Expr) -> bool:
    return not isinstance(statement.value, ast.Constant)


def _switches(method: Function) -> bool:
    """Whether a method switches the module, by its parent or by itself."""
    for node in ast.walk(method):
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if stored and dotted(node) == "self.training":
            return True
        if isinstance(node, ast.Call) and _hands_on(node, method):
            return True
    return False


def _calls_parent(method: Function) -> bool:
    """Whether a method, of a mix-in as a rule, gives its mode to `super().train(mode)`."""
    modes = {arg.arg for arg in (*method.args.args[1:], *method.args.kwonlyargs)}
    return any(
        isinstance(node, ast.Call)
        and _is_parents(node.func)
        and {dotted(value) for value in (*node.args, *(at.value for at in node.keywords))} == modes
        for node in ast.walk(method)
    ) and bool(modes)


def _is_parents(func: ast.expr) -> bool:
    """Whether `super().train` or `super().eval` is called."""
    return (
        isinstance(func, ast.Attribute)
        and func.attr in ("train", "eval")
        and isinstance(func.value, ast.Call)
        and dotted(func.value.func) == "super"
    )


def _hands_on(call: ast.Call, method: Function) -> bool:
    """Whether a call switches the parent, or a child in the same way."""
    target = call.func
    if not isinstance(target, ast.Attribute) or target.attr not in ("train", "eval"):
        return False
    if _is_parents(target):
        return True
    given = [dotted(value) for value in (*call.args, *(at.value for at in call.keywords))]
    if "self" in given:  # Parent.train(self, mode)
        return True
    modes = [arg.arg for arg in (*method.args.args[1:], *method.args.kwonlyargs)]
    if method.name == "eval":
        return target.attr == "eval" or bool(given)
    return target.attr == "train" and set(given) == set(modes)


def _returns(method: Function) -> bool:
    """Whether a method returns anything; functions inside of it don't count."""
    waiting: list[ast.AST] = [*method.body]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return) and node.value:
            return True
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting += ast.iter_child_nodes(node)
    return False


def _fix(method: Function, file: File) -> Fix | None:
    """Return the module at the end."""
    first, last = method.body[0], method.body[-1]
    line = last.end_lineno or 0
    text, indent = file.source.lines[line - 1], file.source.lines[first.lineno - 1]
    indent = indent[: len(indent) - len(indent.lstrip())]
    rest = text.encode()[last.end_col_offset or 0 :].decode(errors="replace").strip()
    if first.lineno == method.lineno or (rest and not rest.startswith("#")):
        return None
    edit = file.insert(line, len(text.encode()), f"\n{indent}return self")
    return Fix("Return the module", (edit,))


RULE = Rule("DS110", "mode-override-loses-mode", Severity.WARNING, __doc__, check)
