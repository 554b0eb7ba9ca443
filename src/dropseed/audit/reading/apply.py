"""An abstract evaluator of calls: layers are built and applied, functions are followed."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.reading.chain import EMPTY, Chain, Layer, joined, single, then
from dropseed.audit.reading.conditions import harmless, held
from dropseed.audit.reading.evaluate import DEPTH, Env, Evaluator
from dropseed.audit.reading.file import Class, File, Function, default_of, number
from dropseed.audit.reading.names import DROPOUTS
from dropseed.audit.reading.steps import (
    NOTHING,
    Place,
    Step,
    Summary,
    Value,
    any_of,
    connect,
    summarized,
    union,
)

CALLS = 2
"""How many calls deep functions are followed."""
FORWARD = ("forward", "call", "__call__")
SETUP = (
    "__init__",
    "build",
    "setup",
    "_init",
    "init",
    "_build",
    "_make",
    "make",
    "create",
    "_create",
)
"""How the methods that build layers begin."""

_SEQUENCES = frozenset(
    {
        "torch.nn.Sequential",
        "keras.Sequential",
        "flax.linen.Sequential",
        "flax.nnx.Sequential",
        "haiku.Sequential",
        "equinox.nn.Sequential",
    }
)
"""What applies the layers that it holds."""
_LISTS = frozenset(
    {
        "torch.nn.ModuleList",
        "torch.nn.ModuleDict",
        "collections.OrderedDict",
        "list",
        "tuple",
        "dict",
    }
)
_CHANGES = frozenset({"append", "extend", "insert", "add", "add_module", "update"})
_SHAPES = ("noise_shape", "broadcast_dims")
_DATA = ("input", "inputs", "x", "logits", "tensor")
"""How the argument is called that is worked on."""
_BUILT = (ast.List, ast.Tuple, ast.ListComp, ast.Dict, ast.DictComp, ast.IfExp, ast.BinOp)
_NO_DATA = frozenset({"size", "dim", "numel", "len", "get_shape", "item", "print"})
_CHECKPOINTS = frozenset({"torch.utils.checkpoint.checkpoint"})


class Caller(Evaluator):
    """Follows the calls of one file.

    Args:
        file: the file.
    """

    def __init__(self, file: File) -> None:
        super().__init__(file)
        self.sequences: dict[ast.expr, Chain] = {}
        self.inner: dict[Function, tuple[Env, Class | None]] = {}
        self.active: list[Function] = []
        self.owners: list[Class | None] = [None]
        self.returns: list[list[Value]] = [[]]
        self.returned: dict[Function, Value] = {}
        self.building = False
        self._tables: dict[ast.ClassDef, Env] = {}
        self._kept: dict[tuple[ast.ClassDef, str], Value | None] = {}
        self._growing: set[str] | None = None
        self._ends: dict[
            tuple[object, ...],
            tuple[dict[Layer | Chain, frozenset[Step]], dict[Layer | Chain, Value]],
        ] = {}
        self._summaries: dict[tuple[object, ...], Summary | None] = {}

    def block(self, body: list[ast.stmt], env: Env | None) -> Env | None:
        """Run statements; None stands for a place that is never reached."""
        raise NotImplementedError

    def call(self, node: ast.Call, env: Env) -> Value:
        """What a call may give."""
        name = self.file.called(node)
        if name in _SEQUENCES or name in _LISTS:
            return self._sequence(node, name, env)
        if isinstance(node.func, ast.Attribute):
            changed = self._changed(node, node.func, env)
            if changed is not None:
                return changed
            self._forget(self.dotted(node.func.value), env)
        if name in _CHECKPOINTS and node.args:
            inputs = [self.value(value, env) for value in node.args[1:]]
            chain = self.value(node.args[0], env).chain
            return self.apply(chain, inputs, node) if chain else self.unknown(node, *inputs)
        followed = self._followed(node, env)
        if followed is not None:
            return followed
        return self._of_name(node, name, env) if name else self._of_value(node, env)

    def _arguments(self, node: ast.Call, env: Env) -> list[Value]:
        """What is given, the data first."""
        named = sorted(node.keywords, key=lambda at: at.arg not in _DATA)
        given = [*node.args, *(at.value for at in named)]
        return [self.value(value, env) for value in given]

    def _of_name(self, node: ast.Call, name: str, env: Env) -> Value:
        """A layer that is built, or a function that is called."""
        last = name.rpartition(".")[2]
        if last in _NO_DATA:
            return NOTHING
        if not last[:1].isupper() or last == "Input" or last.endswith("Output"):
            return self.step(name, node, self._arguments(node, env))
        kind = self.file.layer_kind(node)
        if kind in DROPOUTS and any(at.arg in _SHAPES for at in node.keywords):
            kind = "dropout of a shape"
        elif not kind.startswith(("torch.nn.", "keras.layers.")):
            self._look_into(node, env)
        return Value(chain=single(self.layer(name if kind in _SEQUENCES else kind, node)))

    def _look_into(self, node: ast.Call, env: Env) -> None:
        """Follow what is built in the arguments of a module."""
        for given in (*node.args, *(at.value for at in node.keywords)):
            if isinstance(given, ast.Call | ast.List | ast.Tuple | ast.Starred | ast.IfExp):
                self.value(given, env)

    def _of_value(self, node: ast.Call, env: Env) -> Value:
        """A call of something that an expression gives: a layer, a tensor's method, or unknown."""
        func, inputs = node.func, self._arguments(node, env)
        known = self.known(self.dotted(func), env) if isinstance(func, ast.Attribute) else None
        if isinstance(func, ast.Attribute) and known is None:
            base = self.value(func.value, env)
            if func.attr in _NO_DATA:
                return NOTHING
            if base.steps:
                return self.step(f".{func.attr}", node, [base, *inputs])
            if base.chain and func.attr in (*FORWARD, "apply"):
                return self.apply(base.chain, inputs, node)
            known = self.of_module(base.chain, func.attr) if base.chain else NOTHING
        elif known is None:
            known = self.value(func, env)
        if known.chain is not None:
            return self.apply(known.chain, inputs, node)
        meant = self._meant(func, 4)
        if meant or self.dotted(func).rpartition(".")[2][:1].isupper():
            return Value(chain=single(self.layer(meant, node)))
        return self.unknown(node, *inputs)

    def _meant(self, node: ast.expr, depth: int) -> str:
        """The one framework's layer that a name stands for if nobody gives another one."""
        names = set()
        for value in self._stands_for(node):
            if isinstance(value, ast.Call) and self.dotted(value.func).endswith("partial"):
                value = value.args[0] if value.args else None
            if isinstance(value, ast.Name | ast.Attribute) and value is not node:
                found = self.file.name_of(value)
                names.add(found or (self._meant(value, depth - 1) if depth else ""))
        names.discard("")
        name = names.pop() if len(names) == 1 else ""
        return name if name.rpartition(".")[2][:1].isupper() else ""

    def _stands_for(self, node: ast.expr) -> Iterator[ast.expr | None]:
        """What a name or attribute is set to, defaults of parameters included."""
        if isinstance(node, ast.Attribute):
            yield from self.file.values(node)
        for binding in self.file.bindings(node.id, node) if isinstance(node, ast.Name) else ():
            function = self.file.function_of(binding)
            if isinstance(binding, ast.arg) and function:
                yield default_of(binding, function)
            else:
                yield self.file.assigned(binding)

    # ---- lists and sequences -------------------------------------------------------------------

    def _sequence(self, node: ast.Call, name: str, env: Env) -> Value:
        """A list, or a module that holds layers in order."""
        values = [self.value(value, env) for value in node.args]
        whole = len(values) == 1 and (name in _LISTS or _is_list(node.args[0]))
        chains = [values[0].chain or EMPTY] if whole else [*map(self.placed, node.args, values)]
        named = [at.value for at in node.keywords if at.arg in (None, "layers")]
        chains += [self.value(at, env).chain or EMPTY for at in named]
        chain = self.short(joined(chains), node)
        if name in _SEQUENCES:
            self.sequences[node] = chain
        return Value(any_of(values).steps, chain)

    def _changed(self, node: ast.Call, func: ast.Attribute, env: Env) -> Value | None:
        """A call that changes a list of layers; None if it is none."""
        name, change = self.dotted(func.value), func.attr
        if not name or change not in _CHANGES or not node.args:
            return None
        base, given = env.get(name, NOTHING), node.args[-1]
        if name == "self" and change == "add_module":
            key = getattr(node.args[0], "value", "")
            if isinstance(key, str):
                env[f"self.{key}"] = self.value(given, env)
            base = Value(base.steps, base.chain or EMPTY)
        if base.chain is None:
            return None
        value = self.value(given, env)
        added = self.placed(given, value)
        if change in ("extend", "update"):
            added = value.chain or self.stranger(given)
        chain = self.short(self._grown(base.chain, added, node, change), node)
        env[name] = Value(base.steps | value.steps, chain)
        for sequence, old in list(self.sequences.items()):
            if old is base.chain:
                self.sequences[sequence] = chain
        return NOTHING

    def _forget(self, name: str, env: Env) -> None:
        """Forget what an object holds, as in `graph.ndata["h"]`, since its method may change it."""
        if name and name != "self" and not name.startswith("self."):
            for held in [at for at in env if at.startswith((f"{name}.", f"{name}["))]:
                del env[held]

    def _grown(self, chain: Chain, added: Chain, node: ast.Call, change: str) -> Chain:
        if change != "insert":
            return then(chain, added)
        front = isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
        return then(added, chain) if front else self.stranger(node)

    # ---- functions that are followed -----------------------------------------------------------

    def _followed(self, node: ast.Call, env: Env) -> Value | None:
        """A call of a method of self, or of a function of this file; None if it is none."""
        owner, func = self.owners[-1], node.func
        if isinstance(func, ast.Name):
            if func.id == "self" and owner is not None:
                return self._inlined(self.forward_of(owner), owner, node, env, 1)
            bindings = self.file.bindings(func.id, func)
            found = bindings[0] if len(bindings) == 1 else None
            if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
                return self._inlined(found, owner, node, env, 0)
        elif isinstance(func, ast.Attribute) and owner is not None:
            if self.dotted(func.value) == "self":
                return self._inlined(self._method(owner, func.attr), owner, node, env, 1)
            if isinstance(func.value, ast.Call) and self.dotted(func.value.func) == "super":
                return self._super(node, func.attr, owner, env)
        return None

    def _super(self, node: ast.Call, name: str, owner: Class, env: Env) -> Value | None:
        """A method of the next class; of a `Sequential` it builds or applies the layers."""
        method = self.active[-1] if self.active else None
        here = next((at for at in self.classes.values() if method in at.methods.values()), owner)
        for ancestor in self.file.lineage(here)[1:]:
            found = self.classes.get(ancestor)
            if found is not None and name in found.methods:
                return self._inlined(found.methods[name], owner, node, env, 1)
        if not any(ancestor in _SEQUENCES for ancestor in self.file.lineage(owner)):
            return None
        if name == "__init__":
            env["self"] = self._sequence(node, "torch.nn.Sequential", env)
            return NOTHING
        chain = self.attributes(owner).get("self", NOTHING).chain
        return self.apply(chain, self._arguments(node, env), node) if chain else None

    def _inlined(
        self, function: Function | None, owner: Class | None, node: ast.Call, env: Env, first: int
    ) -> Value | None:
        """Follow a call of a function of this file: by what is known of it, or by running it."""
        if function is None or function in self.active:
            return None
        static = any(getattr(at, "id", "") == "staticmethod" for at in function.decorator_list)
        given = self._given(function, node, env, 0 if static else first)
        if not first and not self.worthwhile(function):
            return None
        outer = isinstance(self.file.scope_of(function), ast.Module | ast.ClassDef)
        if outer and not self.building and not any(value.chain for value in given.values()):
            summary = self.summary(function, owner if first else None)
            if summary is None or not summary.each:
                return self._joined(summary, given, node)
        if len(self.active) > CALLS:
            return None
        inner = {**(_own(env) if first else env), **given}
        context, self.context = self.context, (*self.context, node)
        value = self.run(function, owner, inner)
        self.context = context
        if owner is not None:
            env.update(_own(inner))
        return value

    def _joined(self, summary: Summary | None, given: Env, node: Place) -> Value:
        """What a function gives, whose steps then take what it is given."""
        if summary is None:
            return self.unknown(node, *given.values())
        certain = all(harmless(test) for test, _ in held(node, self.file))
        for name, value in given.items():
            parameter = summary.parameters.get(name)
            if not certain:  # what a caller gives may never come here
                value = Value(frozenset(at for at in value.steps if not at.is_parameter))
            for user in [*parameter.users] if parameter else ():
                if user not in summary.through:
                    connect(value, user)
        if not summary.through:
            return summary.returned
        return union(summary.returned, self.unknown(node, *given.values()))

    def summary(self, function: Function, owner: Class | None) -> Summary | None:
        """What a function does, whoever calls it; None while that is being found out."""
        key = (function, owner.node if owner else None)
        if key in self._summaries or self.depth > DEPTH // 2:
            return self._summaries.get(key)
        self._summaries[key] = None
        kept = self.context, self.active, self.building
        self.context, self.active, self.building = key, [], False
        names = [at for at in parameters(function) if at.arg != "self"]
        given = {at.arg: self.unknown(at) for at in names}
        returned = self.run(function, owner, dict(given))
        self.context, self.active, self.building = kept
        found = self._summaries[key] = summarized(given, returned)
        self.returned[function] = union(self.returned.get(function, NOTHING), returned)
        return found

    def _given(self, function: Function, node: ast.Call, env: Env, first: int) -> Env:
        """What a call gives for each parameter."""
        positions = [*function.args.posonlyargs, *function.args.args][first:]
        plain = [at for at in node.args if not isinstance(at, ast.Starred)]
        found = {
            parameter.arg: self.value(value, env)
            for parameter, value in zip(positions, plain, strict=False)
        }
        for keyword in node.keywords:
            if keyword.arg:
                found[keyword.arg] = self.value(keyword.value, env)
        for parameter in parameters(function):
            if parameter.arg not in found:
                default = default_of(parameter, function)
                found[parameter.arg] = NOTHING if default else self.unknown(node)
        return found

    def run(self, function: Function, owner: Class | None, env: Env) -> Value:
        """Run a function in an environment, which then holds what `self` became."""
        self.inner.pop(function, None)
        self.active.append(function)
        self.owners.append(owner)
        self.returns.append([])
        ended = self.block(function.body, env)
        if ended is not None:
            env.update(ended)
        self.owners.pop()
        self.active.pop()
        return any_of(self.returns.pop())

    # ---- classes and layers --------------------------------------------------------------------

    def known(self, name: str, env: Env) -> Value | None:
        """What a dotted name may be; None if it isn't known as a whole."""
        found = env.get(name)
        owner = self.owners[-1]
        if found is None and owner is not None and name.startswith("self.") and not self.building:
            found = self.kept(owner, name.removeprefix("self."))
        return found

    def kept(self, owner: Class, name: str) -> Value | None:
        """What a class keeps in `self` under a name.

        The constructor is run only where it has to be: lists grow there, for instance.
        """
        key = (owner.node, name)
        if key not in self._kept:
            values = self._assigned(owner, name.partition("[")[0])
            if len(values) == 1 and self._is_plain(values[0], f"self.{name}"):
                kept = self.context, self.building
                self.context, self.building = (owner.node,), True
                self._kept[key] = self.value(values[0], {})
                self.context, self.building = kept
            else:
                table = self.attributes(owner) if values or self._grows("self") else {}
                self._kept[key] = table.get(f"self.{name}")
        return self._kept[key]

    def _assigned(self, owner: Class, name: str) -> list[ast.expr]:
        """What a class, or a class of this file that it inherits from, sets an attribute to."""
        for ancestor in [owner, *(self.classes.get(at) for at in self.file.lineage(owner)[1:])]:
            if ancestor is not None and name in ancestor.attributes:
                return ancestor.attributes[name]
        return []

    def _is_plain(self, node: ast.expr, name: str) -> bool:
        """Whether an expression means the same wherever it stands, and nobody changes it."""
        if "[" in name or self._grows(name) or isinstance(node, _BUILT):
            return False
        if not isinstance(node, ast.Call):
            return True
        called = self.file.called(node)
        if called in _SEQUENCES or called in _LISTS:
            within = _elements(node)
            return bool(within) and all(
                isinstance(at, ast.Call) and self._is_plain(at, "") for at in within
            )
        module, _, last = called.rpartition(".")
        layer = last[:1].isupper() and module.partition(".")[0] in ("torch", "keras", "flax")
        return called in self.classes or layer

    def _grows(self, name: str) -> bool:
        """Whether a list of some name is changed anywhere."""
        if self._growing is None:
            calls = [at.func for at in self.file.calls if isinstance(at.func, ast.Attribute)]
            changed = [at.value for at in calls if at.attr in _CHANGES]
            for at in self.file.assignments:
                targets = at.targets if isinstance(at, ast.Assign) else [at.target]
                changed += [target.value for target in targets if isinstance(target, ast.Subscript)]
            self._growing = {self.dotted(at) for at in changed} - {""}
        return name in self._growing

    def worthwhile(self, node: ast.AST) -> bool:
        """Whether a function or class may have to do with what is looked for."""
        raise NotImplementedError

    def attributes(self, owner: Class) -> Env:
        """What a class keeps in `self`, found out by running its constructor."""
        known = self._tables.get(owner.node)
        if known is not None:
            return known
        table: Env = {}
        self._tables[owner.node] = table
        kept = self.context, self.active, self.building
        self.context, self.active, self.building = (owner.node,), [], True
        init = self._method(owner, "__init__")
        builders = [at for name, at in owner.methods.items() if name.startswith(SETUP)]
        for method in dict.fromkeys([init, *builders] if init else builders):
            if method is init or any(f"self.{name}" not in table for name in owner.attributes):
                env = {at.arg: self.unknown(at) for at in parameters(method) if at.arg != "self"}
                env.update(table)
                self.run(method, owner, env)
                table.update(_own(env))
        for name, values in owner.attributes.items():
            if f"self.{name}" not in table:
                table[f"self.{name}"] = any_of([self.value(value, {}) for value in values])
        self.context, self.active, self.building = kept
        return table

    def _method(self, owner: Class, name: str) -> Function | None:
        """A method of a class, or of a class of this file that it inherits from."""
        if name in owner.methods:
            return owner.methods[name]
        for ancestor in self.file.lineage(owner)[1:]:
            found = self.classes.get(ancestor)
            if found is not None and name in found.methods:
                return found.methods[name]
        return None

    def forward_of(self, owner: Class) -> Function | None:
        """A class's forward pass."""
        return next((at for at in (self._method(owner, name) for name in FORWARD) if at), None)

    def apply(self, chain: Chain, inputs: list[Value], node: Place) -> Value:
        """Apply layers to values, in every order that they have.

        A part is applied again only if more comes in than before.
        """
        taken, ends = self._ends.setdefault((self.context, node, chain), ({}, {}))
        start = inputs[0] if inputs else NOTHING
        self.depth += 1
        for _ in range(1 if chain.straight or not chain.pairs else 2):
            for part in chain.parts if self.depth < DEPTH else ():
                first = part in chain.first
                before = [ends[one] for one in chain.before(part) if one in ends]
                incoming = any_of([*before, start] if first else before)
                if part not in ends or not incoming.steps <= taken[part]:
                    taken[part] = incoming.steps
                    apply = self.apply if isinstance(part, Chain) else self._applied
                    given = [incoming, *inputs[1:] * first]
                    ends[part] = apply(part, given, node)  # type: ignore[arg-type]
        self.depth -= 1
        result = any_of([ends[part] for part in chain.last if part in ends])
        return union(result, start) if chain.skippable else result

    def _applied(self, layer: Layer, inputs: list[Value], node: Place) -> Value:
        if layer.kind.endswith(".Identity"):
            return inputs[0]
        owner = self.classes.get(layer.kind)
        value = self._through(owner, layer, inputs, node) if owner else None
        return self.step(layer.kind, node, inputs, layer) if value is None else value

    def _through(
        self, owner: Class, layer: Layer, inputs: list[Value], node: Place
    ) -> Value | None:
        """Apply a module of this file: its forward pass, or the layers of a sequence."""
        forward = self.forward_of(owner)
        if not self.worthwhile(owner.node) or _without_dropout(layer):
            return None
        if forward is None:
            chain = self.attributes(owner).get("self", NOTHING).chain
            return self.apply(chain, inputs, node) if chain else None
        if forward in self.active:
            return None
        names = [at.arg for at in parameters(forward) if at.arg != "self"]
        given = dict.fromkeys(names, NOTHING) | dict(zip(names, inputs, strict=False))
        summary = self.summary(forward, owner)
        if summary is None or not summary.each:
            return self._joined(summary, given, node)
        if len(self.active) > CALLS:
            return None
        context, self.context = self.context, (*self.context, node, layer)
        value = self.run(forward, owner, given)
        self.context = context
        return value


def parameters(function: Function) -> list[ast.arg]:
    """All parameters of a function."""
    every = function.args
    starred = [at for at in (every.vararg, every.kwarg) if at]
    return [*every.posonlyargs, *every.args, *every.kwonlyargs, *starred]


def _is_list(node: ast.expr) -> bool:
    """Whether the one argument of a sequence is the list of its layers."""
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "OrderedDict"
    return isinstance(node, ast.List | ast.Tuple | ast.ListComp | ast.GeneratorExp | ast.Name)


def _without_dropout(layer: Layer) -> bool:
    """Whether a module is built with a rate of 0."""
    named = layer.built.keywords if isinstance(layer.built, ast.Call) else []
    return any("drop" in (at.arg or "") and number(at.value) == 0 for at in named)


def _elements(node: ast.Call) -> list[ast.expr]:
    """The layers that are written out in a sequence or list."""
    found: list[ast.expr] = []
    for given in node.args:
        if isinstance(given, ast.List | ast.Tuple):
            found += given.elts
        elif isinstance(given, ast.ListComp | ast.GeneratorExp):
            found.append(given.elt)
        else:
            found.append(given)
    return found


def _own(env: Env) -> Env:
    return {name: value for name, value in env.items() if name.startswith("self")}
