"""Dropout built and never applied, or a dropout argument taken and never used.

A layer that `__init__` builds and `forward` forgets does nothing, and neither does a rate that a
function takes, or keeps in an attribute, and never reads: the settings promise a regularization
that the model doesn't have. It is mostly the trace of a line that was lost in an edit. The same
holds of a result that is thrown away, as that of `self.dropout(x)` on a line of its own.

**Wrong**

```python
class Block(nn.Module):
    def __init__(self, size, dropout=0.1):
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.linear(x)
```

**Right**

```python
class Block(nn.Module):
    def __init__(self, size, dropout=0.1):
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(self.linear(x))
```

**Silent** where the layer may be used out of sight: by a parent or child class, by another
object, by `getattr`, by a loop over `children()`, through `nn.Sequential`, or in a class without
a forward pass. Of arguments: in abstract methods and overrides, where `locals()` or a decorator
takes them, and where a comment or docstring says that they are ignored.

**When to leave it.** The layer's presence is needed to load old checkpoints, or the argument for
a common interface: say so in a comment.

**Source.** Both have no effect; unused arguments are ruff's ARG002 and pylint's W0613, and no
linter knows unused layers.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.facts import ModuleFacts, borrowed, dotted
from dropseed.audit.reading.file import Class, File, Function, Hit, argument, opaque
from dropseed.audit.reading.names import DROPOUTS
from dropseed.audit.reading.operations import DROPPING
from dropseed.audit.rule import Rule

_FORWARD = {"forward", "call", "__call__"}
_ROOTS = re.compile(
    r"torch\.nn\.Module|keras\.layers\.Layer|keras\.Model|lightning\.LightningModule|flax\.\w+\.Module"
    r"|equinox\.Module|haiku\.Module|object|abc\.ABC|typing\.\w+|Generic|torch\.jit\.ScriptModule"
)
"""Classes that use no dropout of their children."""
_NAMED = re.compile("drop|StochasticDepth", re.IGNORECASE)
_ASKING = {"getattr", "hasattr", "attrgetter", "get_submodule", "__getattr__", "__getattribute__"}
_RATE = re.compile(
    r"(?!.*(?:rng|key|mask|seed|state|token|label|word|feature|column|data|last)s?$)"
    r"(?:\w*dropout\w*|\w*drop_?(?:path|rate|prob|ratio|connect|block|p)\w*|\w+_drop|p_drop\w*)"
)
_DECORATORS = {
    "staticmethod", "classmethod", "no_grad", "inference_mode", "script", "script_method", "export",
    "ignore", "unused", "compact", "nowrap", "register", "register_model", "register_module",
    "register_keras_serializable", "autocast", "torch_no_grad", "keras_export", "function",
}  # fmt: skip
_NOTHING = re.compile(
    r"identity|no_?op|dummy|null|mock|fake|stub|base|abstract|interface|none|empty|placeholder|protocol",
    re.IGNORECASE,
)
"""Names of what does nothing on purpose, or is there for others to fill."""
_IGNORED = re.compile(
    r"unused|not used|(?<!type: )ignor|no effect|deprecat|compat|unsupported|not support|reserved"
    r"|placeholder|legacy|interface|noqa|pylint|never used|not needed|isn't used|backward",
    re.IGNORECASE,
)
_TAKES_ALL = re.compile(
    r"locals|vars|store_attr|currentframe|signature|getargvalues|\w*init_arg\w*|\w*hyper_?param\w*"
)
_LOOKS = ("children", "named_children", "_modules", "__dict__", "__getattr__")


def check(file: File) -> Iterator[Hit]:
    """Yield what drops nothing because nobody uses it."""
    if file.in_tests:
        return
    for owner in file.classes:
        yield from _layers(owner, file)
    yield from _thrown_away(file)
    for function in file.functions:
        yield from _arguments(function, file)


# ---- layers --------------------------------------------------------------------------------


def _layers(owner: Class, file: File) -> Iterator[Hit]:
    """The dropout layers that a class keeps and nobody reads."""
    for name, values in owner.attributes.items():
        built = [call for value in values for call in _built(value, file)]
        built = [call for call in built if not _said(call, file)]
        if built and not _read(name, owner, file) and _whole(owner, file):
            for call in built:
                yield file.hit(call, f"`self.{name}` is built and never applied")


def _built(value: ast.expr, file: File) -> list[ast.expr]:
    """The dropout layers that an attribute is set to; nothing but those may be in it."""
    if isinstance(value, ast.IfExp):
        return _built(value.body, file) + _built(value.orelse, file)
    if not isinstance(value, ast.Call) or not _NAMED.search(_last(value.func)):
        return []
    kind = file.layer_kind(value)
    return [value] if kind in DROPOUTS or _own_dropout(kind, file) else []


def _last(node: ast.expr) -> str:
    """The last part of a dotted name."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _said(call: ast.expr, file: File) -> bool:
    """Whether a comment beside a layer says that it isn't used."""
    first, last = max(call.lineno - 2, 0), call.end_lineno or call.lineno
    comments = (line.partition("#")[2] for line in file.source.lines[first:last])
    return any(_IGNORED.search(comment) for comment in comments)


def _own_dropout(kind: str, file: File) -> bool:
    """Whether a class of the scanned files is a dropout layer, by its name."""
    named = re.search(r"Drop(?:out|Path|Block)(?:\dd)?$", kind)
    return named is not None and file.project.class_facts(kind) is not None


def _read(name: str, owner: Class, file: File) -> bool:
    """Whether an attribute of a class may be read somewhere."""
    modules = file.project.modules.values()
    if "drop" not in name:
        return any(name in at.attributes or name in at.strings for at in modules)
    family = {*file.lineage(owner), *file.project.descendants(owner.name)} - {""}
    if any(_reads(node, name, owner, family, file) for node in file.reads):
        return True
    if any(name in at.borrowed and _near(at, file) for at in modules if at.name != file.name):
        return True
    relatives = [file.project.module_of(at) for at in family]
    return any(
        name in at.attributes or name in at.strings
        for at in relatives
        if at is not None and at.name != file.name
    ) or _asked(name, file)


def _reads(node: ast.expr, name: str, owner: Class, family: set[str], file: File) -> bool:
    """Whether a node reads an attribute of a class of a family, or of an unknown object."""
    if not isinstance(node, ast.Attribute) or node.attr != name:
        return False
    if dotted(node.value) != "self":
        return bool(borrowed([node], file.facts))
    here = file.class_of(node)
    return here is None or here.name in family or owner.name in file.lineage(here)


def _near(module: ModuleFacts, file: File) -> bool:
    """Whether a module may hold objects of a file's classes: it is beside it, or imports of it."""
    package = file.name.rpartition(".")[0]
    beside = module.name.rpartition(".")[0] == package
    return beside or any(f"{at}.".startswith(f"{package}.") for at in module.imports.values())


def _asked(name: str, file: File) -> bool:
    """Whether `getattr` and its kin may ask for an attribute."""
    for call in file.calls:
        if dotted(call.func).rpartition(".")[2] in _ASKING:
            given = call.args[1] if len(call.args) > 1 else call.args[0] if call.args else None
            if not isinstance(given, ast.Constant) or given.value == name:
                return True
    return False


def _whole(owner: Class, file: File) -> bool:
    """Whether everything that may apply a class's layers is in sight."""
    lineage = file.lineage(owner)
    scanned = [file.project.class_facts(name) for name in lineage[1:]]
    if not all(
        facts is not None or _ROOTS.fullmatch(name)
        for name, facts in zip(lineage[1:], scanned, strict=True)
    ):
        return False
    scanned += [file.project.class_facts(name) for name in file.project.descendants(owner.name)]
    methods = {*owner.methods, *(name for facts in scanned if facts for name in facts.methods)}
    return bool(_FORWARD & methods) and not any(
        (isinstance(node, ast.Attribute) and node.attr in _LOOKS)
        or (isinstance(node, ast.Name) and node.id in ("vars", "locals"))
        for node in ast.walk(owner.node)
    )


# ---- results -------------------------------------------------------------------------------


def _thrown_away(file: File) -> Iterator[Hit]:
    """Dropout whose result is a statement of its own, and layers that are."""
    for call in file.calls:
        if "drop" not in _last(call.func).lower() or not isinstance(file.parent(call), ast.Expr):
            continue
        name = file.called(call)
        if (name in DROPPING and not _in_place(call, 3)) or file.dropout_kind(call):
            yield file.hit(call, "the result of this dropout is thrown away")
        else:
            built = file.values(call.func) if isinstance(call.func, ast.Attribute) else [call.func]
            if built and all(file.dropout_kind(at) and not _in_place(at, 1) for at in built):
                yield file.hit(call, "the result of this dropout is thrown away")


def _in_place(call: ast.expr, position: int) -> bool:
    """Whether a layer or function works in place, or may do so."""
    if not isinstance(call, ast.Call) or opaque(call):
        return True
    given = argument(call, position, "inplace")
    return given is not None and not (isinstance(given, ast.Constant) and given.value is False)


# ---- arguments -----------------------------------------------------------------------------


def _arguments(function: Function, file: File) -> Iterator[Hit]:
    """The rates that a function takes and doesn't use."""
    every = function.args
    named = [
        at
        for at in (*every.posonlyargs, *every.args, *every.kwonlyargs)
        if "drop" in at.arg and at.arg[0] != "_" and _RATE.fullmatch(at.arg)
    ]
    unused = {at: "taken" for at in named if not _used(at, function, file)}
    if function.name == "__init__":
        unused |= {at: "kept" for at in named if _forgotten(at, function, file)}
    if unused and not _imposed(function, file):
        for parameter, what in unused.items():
            if not _excused(parameter, function, file):
                yield file.hit(parameter, f"argument `{parameter.arg}` is {what} and never used")


def _forgotten(parameter: ast.arg, function: Function, file: File) -> bool:
    """Whether a constructor only keeps an argument in an attribute that nobody reads."""
    owner, uses = file.class_of(function), list(_uses(parameter, function, file))
    kept = file.parent(uses[0]) if len(uses) == 1 else None
    if owner is None or not isinstance(kept, ast.Assign) or len(kept.targets) != 1:
        return False
    own, _, name = dotted(kept.targets[0]).partition(".")
    if own != "self" or "drop" not in name or len(owner.attributes.get(name, ())) != 1:
        return False
    return not _read(name, owner, file) and _whole(owner, file)


def _uses(parameter: ast.arg, function: Function, file: File) -> Iterator[ast.Name]:
    """Where an argument is read."""
    first, last = function.lineno, function.end_lineno or function.lineno
    for node in file.reads:
        if isinstance(node, ast.Name) and node.id == parameter.arg and first <= node.lineno <= last:
            yield node


def _used(parameter: ast.arg, function: Function, file: File) -> bool:
    return any(_uses(parameter, function, file)) or any(
        isinstance(at, ast.Name) and isinstance(at.ctx, ast.Del)
        for at in file.bindings(parameter.arg, function.body[0])
    )


def _imposed(function: Function, file: File) -> bool:
    """Whether others decide on a function's arguments, or take all of them."""
    if _stub(function) or any(not _harmless(at) for at in function.decorator_list):
        return True
    owner = file.class_of(function) if isinstance(file.parent(function), ast.ClassDef) else None
    names = [function.name, owner.node.name if owner else ""]
    if any(_NOTHING.search(name) for name in names) or function.name.startswith("test"):
        return True
    if any(isinstance(at, ast.Call) and _takes_all(at) for at in ast.walk(function)):
        return True
    return owner is not None and (
        bool({"save_hyperparameters", "hparams"} & file.facts.attributes)
        or _shared(function, owner, file)
    )


def _stub(function: Function) -> bool:
    """Whether a body does nothing but raise, return a constant or be documented."""
    return all(
        isinstance(at, ast.Pass | ast.Raise | ast.Global)
        or (isinstance(at, ast.Expr) and isinstance(at.value, ast.Constant))
        or (isinstance(at, ast.Return) and isinstance(at.value, ast.Constant | None))
        for at in function.body
    )


def _harmless(decorator: ast.expr) -> bool:
    """Whether a decorator neither stores nor asks for a function's arguments."""
    call = decorator.func if isinstance(decorator, ast.Call) else decorator
    return dotted(call).rpartition(".")[2] in _DECORATORS


def _takes_all(call: ast.Call) -> bool:
    return _TAKES_ALL.fullmatch(_last(call.func)) is not None


def _shared(function: Function, owner: Class, file: File) -> bool:
    """Whether a method stands in other classes of the family, too, or may do so."""
    name = function.name
    if name == "__init__":
        return False
    lineage = file.lineage(owner)[1:]
    family = [*lineage, *file.project.descendants(owner.name)]
    facts = [file.project.class_facts(at) for at in family]
    unknown = any(
        at is None and not _ROOTS.fullmatch(base) for base, at in zip(family, facts, strict=True)
    )
    if unknown or any(at is not None and name in at.methods for at in facts):
        return True
    return name not in _FORWARD and any(
        name in one.methods
        for module in file.project.modules.values()
        for place, one in module.classes.items()
        if f"{module.name}.{place}" != owner.name
    )


def _excused(parameter: ast.arg, function: Function, file: File) -> bool:
    """Whether it is said that an argument is ignored, or a parent class keeps it."""
    lines = file.source.lines[function.lineno - 1 : function.end_lineno]
    owner = file.class_of(function)
    if owner is not None and function.name == "__init__":
        if parameter.arg not in owner.attributes and _reads_own(parameter.arg, owner):
            return True
        lines = lines + (ast.get_docstring(owner.node, clean=False) or "").split("\n")
    return any(_IGNORED.search(line) for line in lines if parameter.arg in line)


def _reads_own(name: str, owner: Class) -> bool:
    """Whether a class reads an attribute of its own."""
    return any(
        isinstance(node, ast.Attribute) and node.attr == name and dotted(node.value) == "self"
        for node in ast.walk(owner.node)
    )


RULE = Rule("DS401", "unused-dropout", Severity.NOTE, __doc__, check)
