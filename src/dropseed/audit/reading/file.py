"""A parsed file as the rules see it: its calls, functions and classes, and what names stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from dropseed.audit.finding import Edit, Fix, Span
from dropseed.audit.reading.facts import borrowed, collect, dotted, imported
from dropseed.audit.reading.names import DROPOUTS, FRAMEWORKS, is_torch_module
from dropseed.audit.reading.project import Project
from dropseed.audit.reading.source import Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef | ast.Module

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.Module)
_COLLECTED = (ast.Call, ast.ClassDef, *_FUNCTIONS, ast.Assign, ast.AnnAssign, ast.AugAssign)
_TESTS = {"test", "tests", "testing", "benchmark", "benchmarks"}
LONGEST_NAME = 60
"""Longer strings are no attribute's name."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What a rule's check yields.

    Attributes:
        span: where.
        message: one sentence without a full stop.
        fix: edits that mend it, or None.
    """

    span: Span
    message: str
    fix: Fix | None = None


@dataclass
class Class:
    """A class of the file.

    Attributes:
        node: its definition.
        name: dotted, with the module.
        methods: those of its own body, by name.
        attributes: attribute -> what is assigned to it through `self`, or in the class's body.
    """

    node: ast.ClassDef
    name: str
    methods: dict[str, Function] = field(default_factory=dict)
    attributes: dict[str, list[ast.expr]] = field(default_factory=dict)


class File:
    """A file: its tree, walked once, and the questions that rules ask.

    Nodes that several rules want are collected in the order of the text: `calls`, `functions`,
    `classes` and `assignments`. `reads` are those of names and attributes with "drop" in them.

    Args:
        source: its text.
        tree: the parsed text.
        name: the dotted name of the module.
        package: whether it is a package's `__init__`.
    """

    def __init__(self, source: Source, tree: ast.Module, name: str, package: bool = False) -> None:
        self.source, self.tree, self.name = source, tree, name
        self.calls: list[ast.Call] = []
        self.reads: list[ast.Attribute | ast.Name] = []
        self.functions: list[Function] = []
        self.assignments: list[ast.Assign | ast.AnnAssign | ast.AugAssign] = []
        self.facts = collect(tree, name, package)
        self.project = Project([self.facts])
        self._parents: dict[ast.AST, ast.AST] = {}
        self._bound: dict[ast.AST, dict[str, list[ast.AST]]] = {tree: {}}
        self._classes: list[ast.ClassDef] = []
        self._scopes: dict[str, ast.AST | None] = {}  # the one scope that binds a name, or None
        self._names: dict[ast.AST, str] = {}
        self._global_names: dict[str, str] = {}
        self.memo: dict[tuple[str, ast.AST], object] = {}  # answers that others keep here
        self._walk()

    # ---- the one walk --------------------------------------------------------------------

    def _walk(self) -> None:
        parents, attributes, strings = self._parents, set(), set()
        bound: list[tuple[str, ast.AST]] = []
        collected: list[ast.AST] = []
        waiting: list[ast.AST] = [self.tree]
        while waiting:
            node = waiting.pop()
            kind = type(node)
            if kind is ast.Attribute:
                if type(node.ctx) is ast.Load:  # type: ignore[attr-defined]
                    attributes.add(node.attr)  # type: ignore[attr-defined]
                    if "drop" in node.attr:  # type: ignore[attr-defined]
                        self.reads.append(node)  # type: ignore[arg-type]
                child = node.value  # type: ignore[attr-defined]
                parents[child] = node
                waiting.append(child)
                continue
            if kind is ast.Name:
                if type(node.ctx) is not ast.Load:  # type: ignore[attr-defined]
                    bound.append((node.id, node))  # type: ignore[attr-defined]
                elif "drop" in node.id:  # type: ignore[attr-defined]
                    self.reads.append(node)  # type: ignore[arg-type]
                continue
            if kind is ast.Constant:
                value = node.value  # type: ignore[attr-defined]
                if type(value) is str and len(value) <= LONGEST_NAME and value.isidentifier():
                    strings.add(value)
                continue
            if kind in _COLLECTED:
                collected.append(node)
            elif kind is ast.arg:
                bound.append((node.arg, node))  # type: ignore[attr-defined]
            elif kind is ast.Import or kind is ast.ImportFrom:
                bound += [(name, node) for name in self._imported(node)]
            elif kind is ast.ExceptHandler and node.name:  # type: ignore[attr-defined]
                bound.append((node.name, node))  # type: ignore[attr-defined]
            for name in node._fields:
                child = getattr(node, name, None)
                if type(child) is list:
                    for item in child:
                        if isinstance(item, ast.AST):
                            parents[item] = node
                            waiting.append(item)
                elif isinstance(child, ast.AST):
                    parents[child] = node
                    waiting.append(child)
        self.facts.attributes, self.facts.strings = frozenset(attributes), frozenset(strings)
        self.facts.borrowed = borrowed(self.reads, self.facts)
        self._sort(collected)
        self._bind(bound)

    def _sort(self, collected: list[ast.AST]) -> None:
        collected.sort(key=lambda node: (node.lineno, node.col_offset))  # type: ignore[attr-defined]
        for node in collected:
            if isinstance(node, ast.Call):
                self.calls.append(node)
            elif isinstance(node, ast.ClassDef):
                self._classes.append(node)
            elif isinstance(node, _FUNCTIONS):
                self.functions.append(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
                self.assignments.append(node)

    def _bind(self, bound: list[tuple[str, ast.AST]]) -> None:
        for name, node in bound:
            scope = self.scope_of(node)
            if isinstance(node, ast.arg):
                arguments = self._parents[node]
                scope = self._parents[arguments]  # type: ignore[assignment]
            self._bound.setdefault(scope, {}).setdefault(name, []).append(node)
        for definition in (*self.functions, *self._classes):
            names = self._bound.setdefault(self.scope_of(definition), {})
            names.setdefault(definition.name, []).append(definition)
        for where, names in self._bound.items():
            for name in names:
                self._scopes[name] = where if name not in self._scopes else None

    def _imported(self, node: ast.AST) -> dict[str, str]:
        assert isinstance(node, ast.Import | ast.ImportFrom)
        return imported(node, self.facts.name, self.facts.package)

    # ---- places --------------------------------------------------------------------------

    def parent(self, node: ast.AST) -> ast.AST | None:
        """The node in which a node stands; None for the module."""
        return self._parents.get(node)

    def ancestors(self, node: ast.AST) -> Iterator[ast.AST]:
        """The nodes in which a node stands, from the inside out."""
        at = self._parents.get(node)
        while at is not None:
            yield at
            at = self._parents.get(at)

    def scope_of(self, node: ast.AST) -> Scope:
        """The innermost function, lambda, class or module in which a node stands."""
        at = self._parents.get(node)
        while at is not None and not isinstance(at, _SCOPES):
            at = self._parents.get(at)
        return at if isinstance(at, _SCOPES) else self.tree

    def function_of(self, node: ast.AST) -> Function | None:
        """The innermost function definition in which a node stands."""
        for at in self.ancestors(node):
            if isinstance(at, _FUNCTIONS):
                return at
        return None

    def class_of(self, node: ast.AST) -> Class | None:
        """The innermost class in which a node stands, seen through methods and lambdas."""
        for at in self.ancestors(node):
            if isinstance(at, ast.ClassDef):
                return self._class_table[at]
        return None

    def method_of(self, node: ast.AST) -> Function | None:
        """The method of the innermost class in which a node stands."""
        found = None
        for at in self.ancestors(node):
            if isinstance(at, _FUNCTIONS):
                found = at
            elif isinstance(at, ast.ClassDef):
                return found
        return None

    def statement_of(self, node: ast.AST) -> ast.stmt:
        """The innermost statement in which a node stands."""
        at: ast.AST = node
        while not isinstance(at, ast.stmt):
            at = self._parents[at]
        return at

    @cached_property
    def comments(self) -> dict[int, str]:
        """What stands behind the first "#" of each line that has one; lines from 1."""
        lines = enumerate(self.source.lines, 1)
        return {number: text.partition("#")[2] for number, text in lines if "#" in text}

    @cached_property
    def in_tests(self) -> bool:
        """Whether the file belongs to tests or benchmarks, by its name."""
        parts = self.name.split(".")
        last = parts[-1]
        return (
            last.startswith("test_")
            or last.endswith(("_test", "_tests"))
            or last == "conftest"
            or any(part in _TESTS for part in parts[:-1])
        )

    # ---- classes -------------------------------------------------------------------------

    @cached_property
    def classes(self) -> list[Class]:
        """The classes of the file in the order of the text."""
        return list(self._class_table.values())

    @cached_property
    def _class_table(self) -> dict[ast.ClassDef, Class]:
        table = {}
        for node in self._classes:
            outer = [at.name for at in self.ancestors(node) if isinstance(at, ast.ClassDef)]
            name = ".".join([self.name, *reversed(outer), node.name])
            methods = {at.name: at for at in node.body if isinstance(at, _FUNCTIONS)}
            table[node] = Class(node, name, methods)
        for assignment in self.assignments:
            value = assignment.value
            if value is None or isinstance(assignment, ast.AugAssign):
                continue
            targets = (
                assignment.targets if isinstance(assignment, ast.Assign) else [assignment.target]
            )
            for target, one in ((t, v) for t in targets for t, v in _pairs(t, value)):
                owner = next(
                    (at for at in self.ancestors(assignment) if isinstance(at, ast.ClassDef)), None
                )
                if owner is None:
                    continue
                if isinstance(target, ast.Attribute) and dotted(target.value) == "self":
                    table[owner].attributes.setdefault(target.attr, []).append(one)
                elif isinstance(target, ast.Name) and self._parents[assignment] is owner:
                    table[owner].attributes.setdefault(target.id, []).append(one)
        return table

    def lineage(self, owner: Class) -> list[str]:
        """A class's name and those of all that it inherits from; "" for an unknown base."""
        known = self.project.class_facts(owner.name)
        if known is not None and self.project.module_of(owner.name) is not None:
            return list(self.project.ancestors(owner.name))
        found = [owner.name]  # a class inside a function, or of a module whose name is taken twice
        for base in owner.node.bases:
            name = self.name_of(base.value if isinstance(base, ast.Subscript) else base)
            found += self.project.ancestors(name) if name else [""]
        return found

    def is_module(self, owner: Class) -> bool:
        """Whether a class is a torch module; one with unknown bases is if it has a `forward`."""
        lineage = self.lineage(owner)[1:]
        if any(is_torch_module(name) for name in lineage):
            return True
        known = {"object", "abc.ABC", "typing.Generic", "Generic", "torch.autograd.Function"}
        outside = [
            name for name in lineage if name not in known and self.project.class_facts(name) is None
        ]
        if not any(not name.startswith(("keras.", "flax.", "haiku.")) for name in outside):
            return False
        scanned = (self.project.class_facts(name) for name in lineage)
        return "forward" in owner.methods or any("forward" in at.methods for at in scanned if at)

    def inherits(self, owner: Class, *prefixes: str) -> bool:
        """Whether a class inherits from a name, or from one that a prefix ending in "." begins."""
        return any(
            name == prefix or (prefix.endswith(".") and name.startswith(prefix))
            for name in self.lineage(owner)[1:]
            for prefix in prefixes
        )

    # ---- what names stand for ------------------------------------------------------------

    def name_of(self, node: ast.AST | None) -> str:
        """The canonical dotted name of what an expression is, or "" if that can't be told.

        Follows imports, local and class-wide assignments of one name to another, and the
        re-exports of other scanned files.
        """
        if node is None or not isinstance(node, ast.Name | ast.Attribute):
            return ""
        known = self._names.get(node)
        if known is None:
            self._names[node] = ""  # a name that is assigned to itself leads nowhere
            known = self._names[node] = self._name_of(node)
        return known

    def _name_of(self, node: ast.Name | ast.Attribute) -> str:
        written = dotted(node)
        if not written:
            return ""
        first, _, rest = written.partition(".")
        if first == "self" and rest and "." not in rest:
            owner = self.class_of(node)
            values = owner.attributes.get(rest, []) if owner else []
            names = {self.name_of(value) for value in values}
            return names.pop() if len(names) == 1 else ""
        if self._scopes.get(first, self.tree) is not self.tree:
            return self._resolved(written, node)
        known = self._global_names.get(written)
        if known is None:
            known = self._global_names[written] = self._resolved(written, node)
        return known

    def _resolved(self, written: str, node: ast.AST) -> str:
        first, _, rest = written.partition(".")
        binding = self.bindings(first, node)
        if not binding:
            return self.project.local(written, self.facts)
        # `try: from a import f` with `except ImportError: f = None`: the import counts.
        placeholders = [at for at in binding if isinstance(self.assigned(at), ast.Constant)]
        imports: list[ast.AST] = [
            at for at in binding if isinstance(at, ast.Import | ast.ImportFrom)
        ]
        if imports and len(imports) + len(placeholders) == len(binding):
            binding = imports
        targets = {self._target(first, at) for at in binding}
        if len(targets) != 1 or "" in targets:
            return ""
        target = targets.pop()
        return self.project.follow(f"{target}.{rest}" if rest else target)

    def _target(self, name: str, at: ast.AST) -> str:
        """What one binding of a name makes it stand for."""
        if isinstance(at, ast.Import | ast.ImportFrom):
            return self.project.absolute(self._imported(at)[name], self.facts)
        if isinstance(at, (*_FUNCTIONS, ast.ClassDef)):
            scope = self.scope_of(at)
            if scope is self.tree:
                return f"{self.name}.{name}"
            return f"{self.name}.<{getattr(scope, 'name', 'lambda')}>.{name}"
        value = self._default(at) if isinstance(at, ast.arg) else self.assigned(at)
        return self.name_of(value) if value is not None else ""

    def _default(self, parameter: ast.arg) -> ast.expr | None:
        """A parameter's default where it is a layer's class: `norm=nn.BatchNorm2d`."""
        function = self.function_of(parameter)
        value = None if function is None else default_of(parameter, function)
        name = self.name_of(value)
        known = name.partition(".")[0] in FRAMEWORKS and name.rpartition(".")[2][:1].isupper()
        return value if known else None

    def bindings(self, name: str, at: ast.AST) -> list[ast.AST]:
        """The nodes that bind a name which is used at a node, in the innermost scope that does."""
        only = self._scopes.get(name, self)
        if only is self or only is self.tree:
            return self._bound[self.tree].get(name, [])
        scope: ast.AST = self.scope_of(at)
        inner = True
        while True:
            # A class's names are seen in its own body, not in its methods.
            if inner or not isinstance(scope, ast.ClassDef):
                found = self._bound.get(scope, {}).get(name)
                if found:
                    return found
            if scope is self.tree:
                return []
            scope, inner = self.scope_of(scope), False

    def bound_in(self, scope: Scope) -> dict[str, list[ast.AST]]:
        """The names that a function, class or module binds itself, each with its bindings."""
        return self._bound.get(scope, {})

    def assigned(self, binding: ast.AST) -> ast.expr | None:
        """The expression that a bound name is set to, where a plain assignment does that."""
        at: ast.AST = binding
        while isinstance(self._parents.get(at), ast.Tuple | ast.List):
            at = self._parents[at]
        statement = self._parents.get(at)
        if isinstance(statement, ast.NamedExpr):
            return statement.value
        if isinstance(statement, ast.AnnAssign) and at is statement.target:
            return statement.value
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                for one, value in _pairs(target, statement.value):
                    if one is binding:
                        return value
        return None

    def values(self, node: ast.expr) -> list[ast.expr]:
        """The expressions that a name or an attribute of self may stand for; else the node itself.

        Empty if some of them can't be told: a parameter, a loop's variable, an import.
        """
        if isinstance(node, ast.Name):
            found = [self.assigned(at) for at in self.bindings(node.id, node)]
            return [] if None in found else [value for value in found if value is not None]
        if isinstance(node, ast.Attribute) and dotted(node.value) == "self":
            owner = self.class_of(node)
            return list(owner.attributes.get(node.attr, [])) if owner else []
        return [node]

    # ---- calls ---------------------------------------------------------------------------

    def called(self, call: ast.Call) -> str:
        """The canonical name of what is called, or ""."""
        return self.name_of(call.func)

    def calls_to(self, *names: str) -> Iterator[tuple[ast.Call, str]]:
        """The calls of any of some canonical names, each with the name."""
        wanted = [name for name in set(names) if name in self.calls_by_name]
        found = [(call, name) for name in wanted for call in self.calls_by_name[name]]
        yield from sorted(found, key=lambda at: (at[0].lineno, at[0].col_offset))

    @cached_property
    def calls_by_name(self) -> dict[str, list[ast.Call]]:
        """The calls under the canonical name of what is called; "" where that can't be told."""
        found: dict[str, list[ast.Call]] = {}
        for call in self.calls:
            found.setdefault(self.name_of(call.func), []).append(call)
        return found

    @cached_property
    def calls_by_text(self) -> dict[str, list[ast.Call]]:
        """The calls under what is called, as written: "self.head"; "" if that is no plain name."""
        found: dict[str, list[ast.Call]] = {}
        for call in self.calls:
            found.setdefault(dotted(call.func), []).append(call)
        return found

    def layer_kind(self, node: ast.expr | None) -> str:
        """The canonical name of the layer that an expression builds, or "".

        A scanned class that inherits from a framework's layer counts as that layer, unless it
        has a forward pass of its own; then it is known by its own name.
        """
        return self.kind_of(self.called(node)) if isinstance(node, ast.Call) else ""

    def kind_of(self, name: str) -> str:
        """The canonical name of the layer that a class is: see `layer_kind`."""
        for ancestor in self.project.ancestors(name) if name else ():
            facts = self.project.class_facts(ancestor)
            if facts is None:
                return ancestor or name
            if facts.methods & {"forward", "call", "__call__"}:
                return name
        return name

    def dropout_kind(self, node: ast.expr | None) -> str:
        """The canonical name of the dropout layer that an expression builds, or ""."""
        kind = self.layer_kind(node)
        return kind if kind in DROPOUTS else ""

    # ---- reports -------------------------------------------------------------------------

    def hit(
        self,
        node: ast.expr | ast.stmt | ast.arg | ast.keyword,
        message: str,
        fix: Fix | None = None,
    ) -> Hit:
        """A hit at a node. Of a function or class only its first line is marked."""
        span = self.source.span(node)
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.With, ast.AsyncWith, ast.For)):
            line = self.source.lines[node.lineno - 1].rstrip()
            span = Span(span.line, span.column, span.line, len(line) + 1, span.cell)
        return Hit(span, message, fix)

    def text(self, node: ast.expr | ast.stmt | ast.keyword) -> str:
        """A node as it is written."""
        return ast.get_source_segment(self.source.text, node) or ""

    def replace(self, node: ast.expr | ast.stmt | ast.keyword, text: str) -> Edit:
        """The edit that writes a text in a node's place."""
        return Edit(self.source.span(node), text)

    def insert(self, line: int, offset: int, text: str) -> Edit:
        """The edit that inserts a text before the parser's line and byte offset."""
        return Edit(self.source.between(line, offset, line, offset), text)


def argument(call: ast.Call, position: int, keyword: str) -> ast.expr | None:
    """An argument of a call, by position or keyword; None if it isn't given that way."""
    for given in call.keywords:
        if given.arg == keyword:
            return given.value
    if position < len(call.args) and not any(
        isinstance(value, ast.Starred) for value in call.args[: position + 1]
    ):
        return call.args[position]
    return None


def opaque(call: ast.Call) -> bool:
    """Whether a call takes arguments that can't be seen: `*args` or `**options`."""
    return any(isinstance(value, ast.Starred) for value in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    )


def number(node: ast.expr | None) -> float | None:
    """The number that a literal is, with its sign; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = number(node.operand)
        return None if value is None else (-value if isinstance(node.op, ast.USub) else value)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    return None


def integer(node: ast.expr | None) -> int | None:
    """The whole number that a literal is, with its sign; None for anything else."""
    value = number(node)
    return int(value) if value is not None and value in range(-(10**6), 10**6) else None


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each single target of an assignment with its value: `a, b = 1, 2` has two."""
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, ast.Tuple | ast.List):
        if len(target.elts) == len(value.elts):
            for one, its in zip(target.elts, value.elts, strict=True):
                yield from _pairs(one, its)
    elif not isinstance(target, ast.Tuple | ast.List):
        yield target, value


def default_of(parameter: ast.arg, function: Function) -> ast.expr | None:
    """A parameter's default, or None."""
    arguments = function.args
    positions = [*arguments.posonlyargs, *arguments.args]
    first = len(positions) - len(arguments.defaults)
    if parameter in positions and positions.index(parameter) >= first:
        return arguments.defaults[positions.index(parameter) - first]
    if parameter in arguments.kwonlyargs:
        return arguments.kw_defaults[arguments.kwonlyargs.index(parameter)]
    return None
