"""Evaluation that never switches dropout off.

`torch.no_grad()` saves memory and changes no result; only `model.eval()` turns dropout off and
makes BatchNorm use what it has learned. Code that evaluates or predicts without it reports numbers
that are too low, and gives another answer each time.

**Wrong**

```python
def evaluate(model, loader):
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
```

**Right**

```python
def evaluate(model, loader):
    model.eval()
    with torch.no_grad():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader)
```

**Silent** where anything in the file, in a parent class, or in a file that uses the function or
class calls `eval()`; in the methods of modules and of frameworks' classes, whose mode others set;
in training functions, which compute targets so; on models that come from elsewhere, since
`from_pretrained` gives them in evaluation mode; and in tests.

**When to leave it.** The callers call `eval()`, or the model has neither dropout nor BatchNorm.

**Source.** [Autograd mechanics](https://docs.pytorch.org/docs/stable/notes/autograd.html):
evaluation mode "is not a mechanism to locally disable gradient computation", nor is `no_grad` one
to evaluate.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.facts import ModuleFacts, dotted
from dropseed.audit.reading.file import Class, File, Function, Hit
from dropseed.audit.reading.names import is_torch_module
from dropseed.audit.rule import Rule

_EVALUATES = re.compile(
    r"(?:.*_)?(?:eval|evaluate|evaluation|valid|validate|validation|val|test|predict|prediction"
    r"|predictions|predict_proba|infer|inference)(?:_.*)?"
)
_VERBS = re.compile(r"_?(?:evaluate|validate|predict|infer)(?:_.*)?|(?:eval|test)(?:_epoch|_loop)?")
"""Functions that evaluate, even if nothing in them switches gradients off."""
_OTHERWISE = re.compile(
    r"test_.*|(?:.*_)?(?:train|training|fit|update|step|learn|loss|collect|rollout|init|setup|hook"
    r"|forward|explain|attack|attribute|saliency|benchmark|profile|export|trace|summary)(?:_.*)?"
)
"""Functions that train, are called by a framework, or need no right answer."""
_HELD_OUT = re.compile(
    r"(?:.*_)?(?:val|valid|validation|test|eval|dev)_?(?:\w*(?:loader|iter|dl|set|data).*|dl)"
)
_MODEL = re.compile(r"_?(?:model|net|network|classifier|clf)_?")
_COPIES = re.compile(
    r"(?:^|[._])(?:ema|avg|ref)(?:$|[._])|teacher|target|momentum|average|frozen|reference", re.I
)
_NO_GRAD = frozenset({"torch.no_grad", "torch.inference_mode", "torch.autograd.no_grad"})
_MARKS = frozenset({"no_grad", "inference_mode"})
_SWITCHES = re.compile(r"(?:.*_)?(?:eval|train|training|evaluation)_mode")
_TRAINING = frozenset({"backward", "zero_grad"})
_LOADS = frozenset({"load_state_dict"})
_MOVES = frozenset({"to", "cuda", "cpu", "float", "half", "double"})
_BUILDERS = ("torchvision.models.", "timm.create_model", "timm.models.")
_FREE = frozenset({"object", "abc.ABC", "typing.Generic", "Generic", "typing.Protocol"})
"""Classes that no framework drives."""


def check(file: File) -> Iterator[Hit]:
    """Yield the evaluations whose model nobody switches."""
    if file.in_tests or not _uses_torch(file) or _switches(file.facts) or _sets_mode(file):
        return
    seen: set[ast.AST] = set()
    marked = not _MARKS.isdisjoint((*file.facts.attributes, *file.facts.imports))
    for call in file.calls:
        name = _called(call.func)
        if not name:
            continue
        scope = file.method_of(call) or file.function_of(call)
        free = marked and _without_gradients(call, file)
        if (scope or file.tree) in seen or not (free or (scope and _VERBS.fullmatch(scope.name))):
            continue
        if (
            _is_model(call.func, file)
            and _evaluates(call, scope, free, file)
            and not _switched_elsewhere(call, scope, file)
        ):
            seen.add(scope or file.tree)
            what = f"`{scope.name}`" if scope else "this"
            yield file.hit(call, f"{what} runs `{name}` and nothing calls `eval()`")


def _uses_torch(file: File) -> bool:
    return any(name.partition(".")[0] == "torch" for name in file.facts.imports.values())


def _switches(facts: ModuleFacts) -> bool:
    """Whether anything in a file switches modes."""
    if "eval" in facts.attributes or "eval" in facts.strings:
        return True
    return any(
        "mode" in at and _SWITCHES.fullmatch(at) for at in (*facts.attributes, *facts.imports)
    )


def _sets_mode(file: File) -> bool:
    """Whether a file calls `model.train(mode)`."""
    return "train" in file.facts.attributes and any(
        isinstance(call.func, ast.Attribute) and call.func.attr == "train" and _given(call)
        for call in file.calls
    )


def _given(call: ast.Call) -> bool:
    return bool(call.args or call.keywords)


def _called(node: ast.expr) -> str:
    """A name or an attribute of self; "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"self.{node.attr}" if node.value.id == "self" else ""
    return ""


# ---- what is run -------------------------------------------------------------------------


def _is_model(node: ast.expr, file: File) -> bool:
    """Whether an expression is a model in training mode, as far as the file shows."""
    last = dotted(node).rpartition(".")[2]
    if _COPIES.search(last):
        return False
    built = _built(node, file)
    if not built:
        return _MODEL.fullmatch(last) is not None
    return all(isinstance(value, ast.Call) and _builds(value, file) for value in built)


def _built(node: ast.expr, file: File) -> list[ast.expr]:
    """What is assigned to a model; nothing if it is given from outside."""
    values = [value for value in file.values(node) if value is not node]
    built = [_unwrapped(value) for value in values if not isinstance(value, ast.Constant)]
    return [] if all(isinstance(value, ast.Name) for value in built) else built


def _unwrapped(node: ast.expr) -> ast.expr:
    """What is moved to a device or made parallel."""
    while isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute) and node.func.attr in _MOVES:
            node = node.func.value
        elif dotted(node.func).endswith("DataParallel") and node.args:
            node = node.args[0]
        else:
            break
    return node


def _builds(call: ast.Call, file: File) -> bool:
    """Whether a call gives a new model, in training mode."""
    name = file.called(call)
    if name.startswith(_BUILDERS):
        return True
    module = file.project.module_of(name) if name else None
    if module is None or file.project.class_facts(name) is None or _switches(module):
        return False
    return any(is_torch_module(ancestor) for ancestor in file.project.ancestors(name))


# ---- where it is run ---------------------------------------------------------------------


def _evaluates(call: ast.Call, scope: Function | None, free: bool, file: File) -> bool:
    """Whether a call is made to evaluate or to predict; `free` is one without gradients."""
    name = scope.name.lower() if scope else ""
    if free and _on_held_out(call, file):
        return True
    if _OTHERWISE.fullmatch(name) or (scope and _trains(scope, file)):
        return False
    if free:
        return _EVALUATES.fullmatch(name) is not None or _loads(call, scope, file)
    return scope is not None and not _used(scope, file)


def _on_held_out(call: ast.Call, file: File) -> bool:
    """Whether a call stands in a loop over data that is held out: `for x, y in test_loader`."""
    for parent in file.ancestors(call):
        if isinstance(parent, ast.For):
            names = [at.id for at in ast.walk(parent.iter) if isinstance(at, ast.Name)]
            names += [at.attr for at in ast.walk(parent.iter) if isinstance(at, ast.Attribute)]
            if any(_HELD_OUT.fullmatch(name.lower()) for name in names):
                return True
    return False


def _trains(scope: Function, file: File) -> bool:
    return not _TRAINING.isdisjoint(file.facts.attributes) and any(
        isinstance(at, ast.Attribute) and at.attr in _TRAINING for at in ast.walk(scope)
    )


def _without_gradients(call: ast.Call, file: File) -> bool:
    """Whether a call stands in a `no_grad` region, or in a function decorated so."""
    for parent in file.ancestors(call):
        marks: list[ast.expr] = []
        if isinstance(parent, ast.With | ast.AsyncWith):
            marks = [item.context_expr for item in parent.items]
        elif isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = parent.decorator_list
        for mark in marks:
            if file.name_of(mark.func if isinstance(mark, ast.Call) else mark) in _NO_GRAD:
                return True
    return False


def _loads(call: ast.Call, scope: Function | None, file: File) -> bool:
    """Whether weights are loaded in the same function, or when its class is built."""
    if not _LOADS & file.facts.attributes:
        return False
    owner = file.class_of(call)
    places: list[ast.AST | None] = [scope or file.tree]
    places.append(owner.methods.get("__init__") if owner else None)
    return any(
        isinstance(at, ast.Attribute) and at.attr in _LOADS
        for place in places
        if place
        for at in ast.walk(place)
    )


def _used(scope: Function, file: File) -> bool:
    """Whether a function is called in a function of the file that trains."""
    for call in file.calls:
        if dotted(call.func).rpartition(".")[2] == scope.name:
            around = file.function_of(call)
            if around is None or around is scope or _trains(around, file):
                return True
    return False


# ---- who else may switch the mode --------------------------------------------------------


def _switched_elsewhere(call: ast.Call, scope: Function | None, file: File) -> bool:
    """Whether a parent class, a framework or another file may call `eval()`."""
    owner = file.class_of(call)
    if owner is not None:
        if not _known(owner, file):
            return True
        names = [owner.node.name, *(at.rpartition(".")[2] for at in _family(owner, file))]
    elif scope is not None:
        names = [scope.name]
        if scope.decorator_list and not _without_gradients(call, file):
            return True
    else:
        names = []
    near = f"{file.name.rpartition('.')[0]}."
    given = not _built(call.func, file)
    return any(
        (_mentions(module, names) or (given and f"{module.name}.".startswith(near)))
        and _switches(module)
        for module in file.project.modules.values()
    )


def _known(owner: Class, file: File) -> bool:
    """Whether a class is no module, and no framework's: all its parents can be seen."""
    return all(
        name in _FREE or (name and file.project.class_facts(name) is not None)
        for name in file.lineage(owner)
    )


def _family(owner: Class, file: File) -> set[str]:
    return {*file.lineage(owner)[1:], *file.project.descendants(owner.name)} - _FREE


def _mentions(module: ModuleFacts, names: list[str]) -> bool:
    """Whether a module uses or defines one of some names."""
    return any(
        name in module.imports or name in module.attributes or name in module.classes
        for name in names
    )


RULE = Rule("DS107", "never-evaluated", Severity.NOTE, __doc__, check, preview=True)
