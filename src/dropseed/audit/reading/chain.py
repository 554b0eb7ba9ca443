"""Layers that are applied one after the other, in every order that their source allows.

What a list of layers holds depends on conditions and loops. A chain keeps which layer may come
first, which last, and which may follow which: an automaton whose words are the lists.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import product

LONGEST = 200
"""A chain of more layers counts as unknown."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer that source builds.

    Attributes:
        kind: the canonical name of its class; "" if that can't be told.
        built: the expression that builds it.
    """

    kind: str
    built: ast.expr | ast.stmt


@dataclass(frozen=True, eq=False)
class Chain:
    """Parts in an order; each is a layer or a chain of its own.

    Attributes:
        parts: every part, in the order of the text.
        first: those that may come first.
        last: those that may come last.
        pairs: which may be followed by which.
        skippable: whether there may be none at all.
    """

    parts: tuple[Layer | Chain, ...] = ()
    first: frozenset[Layer | Chain] = frozenset()
    last: frozenset[Layer | Chain] = frozenset()
    pairs: frozenset[tuple[Layer | Chain, Layer | Chain]] = frozenset()
    skippable: bool = True

    @property
    def straight(self) -> bool:
        """Whether there is one order only."""
        return (
            not self.skippable
            and len(self.first) == len(self.last) == 1
            and len(self.pairs) == len(self.parts) - 1
        )

    @property
    def alike(self) -> bool:
        """Whether all parts are of one kind, so that any may stand for another."""
        return len({part.kind if isinstance(part, Layer) else "" for part in self.parts}) <= 1

    @property
    def alone(self) -> Layer | Chain | None:
        """The part of a chain that has no other."""
        return self.parts[0] if self.straight and len(self.parts) == 1 else None

    def before(self, part: Layer | Chain) -> list[Layer | Chain]:
        """The parts that a part may follow."""
        return self._before.get(part, [])

    @cached_property
    def _before(self) -> dict[Layer | Chain, list[Layer | Chain]]:
        found: dict[Layer | Chain, list[Layer | Chain]] = {}
        for one, other in self.pairs:
            found.setdefault(other, []).append(one)
        return found


EMPTY = Chain()


def single(part: Layer | Chain) -> Chain:
    """The chain of one part."""
    alone = frozenset({part})
    return Chain((part,), alone, alone, skippable=False)


def either(one: Chain, other: Chain) -> Chain:
    """One chain or another; a layer that may be left out is taken to be there.

    Where the two are the same layers in two orders, nothing is known of what stands around them.

    Example:
        >>> a, b = single(Layer("a", ast.Constant(1))), single(Layer("b", ast.Constant(2)))
        >>> len(either(a, b).first), len(then(a, b).first), either(a, EMPTY).skippable
        (2, 1, True)
    """
    if one is other or _does_nothing(other):
        return one
    if _does_nothing(one):
        return other
    both = Chain(
        _unique(one.parts + other.parts),
        one.first | other.first,
        one.last | other.last,
        one.pairs | other.pairs,
        one.skippable or other.skippable,
    )
    if one.parts == other.parts or {*_known(one)} != {*_known(other)}:
        return both
    unknown = single(Layer("", ast.Constant(None)))
    return joined((unknown, both, unknown))


def _known(chain: Chain) -> list[Layer | Chain]:
    """The parts of a chain whose kind is known."""
    return [at for at in chain.parts if not isinstance(at, Layer) or at.kind]


def _does_nothing(chain: Chain) -> bool:
    return isinstance(chain.alone, Layer) and chain.alone.kind.endswith(".Identity")


def then(one: Chain, other: Chain) -> Chain:
    """A chain and another behind it."""
    return Chain(
        _unique(one.parts + other.parts),
        one.first | other.first if one.skippable else one.first,
        one.last | other.last if other.skippable else other.last,
        one.pairs | other.pairs | frozenset(product(one.last, other.first)),
        one.skippable and other.skippable,
    )


def repeated(chain: Chain) -> Chain:
    """A chain several times."""
    return then(chain, chain)


def joined(chains: Iterable[Chain]) -> Chain:
    """Chains one behind the other."""
    result = EMPTY
    for chain in chains:
        result = then(result, chain)
    return result


def _unique(parts: tuple[Layer | Chain, ...]) -> tuple[Layer | Chain, ...]:
    return tuple(dict.fromkeys(parts))
