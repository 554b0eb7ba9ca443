"""All scanned files together: which thing a dotted name is, wherever it was defined."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

from dropseed.audit.reading.facts import ClassFacts, ModuleFacts
from dropseed.audit.reading.names import FRAMEWORKS, canonical

DEPTH = 24
"""How many re-exports or base classes are followed before a name counts as unknown."""


class Project:
    """The facts of every scanned file.

    Args:
        modules: the facts, in the order of the files.
    """

    def __init__(self, modules: Iterable[ModuleFacts]) -> None:
        self.modules: dict[str, ModuleFacts] = {}
        for module in modules:
            self.modules.setdefault(module.name, module)
        self._followed: dict[str, str] = {}

    def follow(self, name: str, depth: int = DEPTH) -> str:
        """Where a dotted name leads, through the re-exports of the scanned files.

        Args:
            name: dotted and absolute.
            depth: how many steps are left.

        Returns:
            The name at which the thing is defined; a framework's in its canonical spelling.
        """
        known = self._followed.get(name)
        if known is None:
            known = self._followed[name] = self._follow(name, depth)
        return known

    def _follow(self, name: str, depth: int) -> str:
        module, rest = self._split(name)
        if module is None or not rest or depth == 0:
            return canonical(name)
        first, _, more = rest.partition(".")
        if first in module.functions or first in module.classes:
            return f"{module.name}.{rest}"
        target = module.imports.get(first) or self._alias(module, first)
        if target:
            step = self.absolute(target, module)
            onward = f"{step}.{more}" if more else step
            return canonical(name) if onward == name else self.follow(onward, depth - 1)
        for star in module.stars:
            star_module, _ = self._split(self.absolute(star, module))
            if star_module is None:
                if star.split(".")[0] in ("torch", "keras", "tensorflow"):
                    return canonical(f"{star}.{rest}")
            elif star_module is not module:
                found = self.follow(f"{star_module.name}.{rest}", depth - 1)
                if found != f"{star_module.name}.{rest}" or self.defined(found):
                    return found
        return canonical(name)

    def defined(self, name: str) -> bool:
        """Whether a scanned file defines a class or a function of that name."""
        module, rest = self._split(name)
        return module is not None and (rest in module.classes or rest in module.functions)

    def absolute(self, name: str, module: ModuleFacts) -> str:
        """An imported name as the scanned files know it: scripts import their neighbours."""
        first = name.partition(".")[0]
        if first not in self._tops and first not in FRAMEWORKS:
            parts = module.name.split(".")
            for end in range(len(parts) - (0 if module.package else 1), 0, -1):
                if ".".join([*parts[:end], first]) in self._prefixes:
                    return ".".join([*parts[:end], name])
        return name

    def class_facts(self, name: str) -> ClassFacts | None:
        """The facts of the class at which `follow` has arrived."""
        module, rest = self._split(name)
        return module.classes.get(rest) if module is not None else None

    def module_of(self, name: str) -> ModuleFacts | None:
        """The scanned module in which a name is defined."""
        return self._split(name)[0]

    def bases(self, name: str) -> list[str]:
        """What the bases of a scanned class lead to; "" for one that can't be told."""
        module, rest = self._split(name)
        facts = module.classes.get(rest) if module else None
        if module is None or facts is None:
            return []
        return [self.local(base, module) if base else "" for base in facts.bases]

    def local(self, name: str, module: ModuleFacts) -> str:
        """What a name written at the top level of a module leads to."""
        first = name.partition(".")[0]
        if first in module.classes or first in module.functions or first in module.imports:
            return self.follow(f"{module.name}.{name}")
        if first in module.aliases or module.stars:
            return self.follow(f"{module.name}.{name}")
        return name

    def ancestors(self, name: str) -> Iterator[str]:
        """A class and everything that it inherits from, each name once; "" for an unknown base."""
        seen: set[str] = set()
        waiting = [name]
        while waiting and len(seen) < 200:
            current = waiting.pop(0)
            if current not in seen:
                seen.add(current)
                yield current
                waiting += self.bases(current)

    def descendants(self, name: str) -> set[str]:
        """Every scanned class that inherits from a class."""
        found: set[str] = set()
        waiting = [name]
        while waiting:
            for child in self._children.get(waiting.pop(), ()):
                if child not in found:
                    found.add(child)
                    waiting.append(child)
        return found

    @cached_property
    def _children(self) -> dict[str, list[str]]:
        children: dict[str, list[str]] = {}
        for module in self.modules.values():
            for rest in module.classes:
                child = f"{module.name}.{rest}"
                for base in self.bases(child):
                    children.setdefault(base, []).append(child)
        return children

    @cached_property
    def _tops(self) -> set[str]:
        return {name.partition(".")[0] for name in self.modules}

    @cached_property
    def _prefixes(self) -> set[str]:
        found: set[str] = set()
        for name in self.modules:
            parts = name.split(".")
            found.update(".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return found

    def _split(self, name: str) -> tuple[ModuleFacts | None, str]:
        """The longest scanned module that begins a dotted name, and the rest of the name."""
        head, tail = name, ""
        while head:
            module = self.modules.get(head)
            if module is not None:
                return module, tail
            head, _, last = head.rpartition(".")
            tail = f"{last}.{tail}" if tail else last
        return None, name

    @staticmethod
    def _alias(module: ModuleFacts, first: str) -> str:
        value = module.aliases.get(first, "")
        return f"{module.name}.{value}" if value and value.partition(".")[0] != first else ""
