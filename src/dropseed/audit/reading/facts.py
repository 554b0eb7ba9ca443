"""What other files need to know of a file: the names it has, and what its classes are.

Facts are plain data, so that they can be sent between processes and kept from run to run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import blake2b

DROPS = re.compile(r"dropout|drop_?(?:path|connect|block|edge|node|token|feature)")
"""How functions that drop are named."""

SWITCHES = ("training", "is_training", "train")
"""What functions call their switch between training and evaluation."""


@dataclass
class ClassFacts:
    """A class that stands at the top of a module, or in such a class.

    Attributes:
        bases: as written, dotted; "" where a base is no plain name.
        methods: the names that its body defines.
    """

    bases: tuple[str, ...]
    methods: frozenset[str]


@dataclass
class ModuleFacts:
    """A module.

    Attributes:
        name: dotted.
        package: whether it is a package's `__init__`.
        imports: local name -> dotted name, for imports anywhere at the top level.
        stars: the modules whose names are all imported.
        classes: by name; a nested class as "Outer.Inner".
        functions: the names of the functions at the top level.
        dropouts: those named for dropout that have a switch with a default -> their parameters,
            the switch's name and its default.
        aliases: top-level names that stand for another name, as written.
        attributes: every attribute's name that is read anywhere in the module.
        strings: every string that is a name, by which an attribute might be asked for.
        borrowed: the attributes with "drop" in their names that are read of objects other than
            self, modules and settings.
    """

    name: str
    package: bool = False
    imports: dict[str, str] = field(default_factory=dict)
    stars: tuple[str, ...] = ()
    classes: dict[str, ClassFacts] = field(default_factory=dict)
    functions: frozenset[str] = frozenset()
    dropouts: dict[str, tuple[tuple[str, ...], str, bool]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()
    strings: frozenset[str] = frozenset()
    borrowed: frozenset[str] = frozenset()

    def digest(self) -> bytes:
        """A digest that is the same in every process, which the order of a set is not."""
        plain = [
            self.name,
            self.package,
            self.imports,
            self.stars,
            [(name, at.bases, sorted(at.methods)) for name, at in self.classes.items()],
            sorted(self.functions),
            self.dropouts,
            self.aliases,
            sorted(self.attributes),
            sorted(self.strings),
            sorted(self.borrowed),
        ]
        return blake2b(repr(plain).encode("utf-8", "surrogatepass"), digest_size=16).digest()


_SETTINGS = re.compile(
    r"self|cls|\w*(?:config|cfg|conf|arg|hparam|param|opt|option|hp|setting|flag|kwarg|namespace)s?",
    re.IGNORECASE,
)


def borrowed(reads: Iterable[ast.Attribute | ast.Name], facts: ModuleFacts) -> frozenset[str]:
    """The attributes that are read of objects other than self, imported modules and settings."""
    return frozenset(
        node.attr
        for node in reads
        if isinstance(node, ast.Attribute)
        and not _SETTINGS.fullmatch(dotted(node.value).rpartition(".")[2])
        and dotted(node.value).partition(".")[0] not in facts.imports
    )


def dotted(node: ast.AST | None) -> str:
    """A chain of names as text: "a.b.c"; "" for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    parts.append(node.id)
    return ".".join(reversed(parts))


def imported(node: ast.Import | ast.ImportFrom, name: str, package: bool) -> dict[str, str]:
    """The local names that an import binds, each with what it stands for.

    Args:
        node: the import.
        name: the dotted name of the module in which it stands.
        package: whether that module is a package's `__init__`.

    Returns:
        Local name -> dotted name. For a star, "*" -> the module.

    Example:
        >>> imported(ast.parse("from .a import b as c").body[0], "p.q", False)
        {'c': 'p.a.b'}
    """
    if isinstance(node, ast.Import):
        # `import a.b` binds `a`; `import a.b as c` binds c to a.b.
        return {
            alias.asname or alias.name.partition(".")[0]: alias.name
            if alias.asname
            else alias.name.partition(".")[0]
            for alias in node.names
        }
    module = node.module or ""
    if node.level:
        parts = name.split(".")
        upwards = node.level - 1 if package else node.level
        parts = parts[: max(len(parts) - upwards, 0)]
        module = ".".join([*parts, *([module] if module else [])])
    found = {}
    for alias in node.names:
        if alias.name == "*":
            found["*"] = module
        else:
            found[alias.asname or alias.name] = f"{module}.{alias.name}" if module else alias.name
    return found


def collect(tree: ast.Module, name: str, package: bool) -> ModuleFacts:
    """The facts of a parsed module, without those that need its every node.

    Args:
        tree: the module.
        name: its dotted name.
        package: whether it is a package's `__init__`.

    Returns:
        The facts; `attributes` and `strings` are empty.
    """
    facts = ModuleFacts(name, package)
    functions: set[str] = set()
    stars: list[str] = []
    for node in _top_level(tree.body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for local, target in imported(node, name, package).items():
                if local == "*":
                    stars.append(target)
                else:
                    facts.imports.setdefault(local, target)
        elif isinstance(node, ast.ClassDef):
            _collect_class(node, node.name, facts)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            functions.add(node.name)
            given = {dotted(at).rpartition(".")[2] for at in node.decorator_list}
            if DROPS.search(node.name) and "add_arg_scope" not in given:  # which gives arguments
                _collect_dropout(node, facts)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1:
            target_name, value = dotted(node.targets[0]), dotted(node.value)
            if value and target_name and "." not in target_name:
                facts.aliases.setdefault(target_name, value)
    facts.functions, facts.stars = frozenset(functions), tuple(stars)
    return facts


def _top_level(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module, those inside `if`, `try` and `with` included."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If | ast.Try | ast.With):
            inner = [*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])]
            for handler in getattr(node, "handlers", []):
                inner += handler.body
            found += _top_level(inner)
    return found


def _collect_dropout(node: ast.FunctionDef | ast.AsyncFunctionDef, facts: ModuleFacts) -> None:
    given = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(given) - len(node.args.defaults)), *node.args.defaults]
    for parameter, default in zip(
        [*given, *node.args.kwonlyargs], [*defaults, *node.args.kw_defaults], strict=True
    ):
        value = default.value if isinstance(default, ast.Constant) else None
        if parameter.arg in SWITCHES and isinstance(value, bool):
            names = tuple(one.arg for one in given)
            facts.dropouts.setdefault(node.name, (names, parameter.arg, value))


def _collect_class(node: ast.ClassDef, name: str, facts: ModuleFacts) -> None:
    methods = set()
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            methods.add(statement.name)
        elif isinstance(statement, ast.ClassDef):
            _collect_class(statement, f"{name}.{statement.name}", facts)
    bases = tuple(
        dotted(base.value if isinstance(base, ast.Subscript) else base) for base in node.bases
    )
    facts.classes.setdefault(name, ClassFacts(bases, frozenset(methods)))
