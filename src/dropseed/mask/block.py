"""DropBlock's gamma: the rate at which draws take a block with them, from the rate of elements.

An element is kept if none of the blocks that would cover it is drawn. Along a dimension of n
elements a block of b can begin at n - b + 1 places; few of them cover an element near the border.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

STEPS = 16
"""Newton steps of `exact_gamma`; nine were the most that any of its tests needs."""


def coverage(sizes: Iterable[int], edges: Iterable[int]) -> dict[int, float]:
    """By how many places of a block an element of the map is covered.

    Args:
        sizes: the map's size in each dimension.
        edges: the block's edge in each dimension, from 1 to the map's size.

    Returns:
        The fraction of the elements, by number of places.

    Example:
        >>> coverage((4,), (2,))
        {1: 0.5, 2: 0.5}
    """
    counts = Counter({1: 1})
    for size, edge in zip(sizes, edges, strict=True):
        line = Counter(min(at, size - edge) - max(at - edge + 1, 0) + 1 for at in range(size))
        product: Counter[int] = Counter()
        for places, number in counts.items():
            for more, times in line.items():
                product[places * more] += number * times
        counts = product
    total = sum(counts.values())
    return {places: number / total for places, number in sorted(counts.items())}


def gamma_factor(sizes: Iterable[int], edges: Iterable[int]) -> float:
    """Gamma for each unit of the rate by the paper's formula.

    Ghiasi, Lin and Le 2018, equation 1: the map's elements, over those of a block times the places
    of a block. It is at most 1, so every rate has its gamma. Blocks that overlap count twice in it:
    less than the rate is dropped.

    Args:
        sizes: the map's size in each dimension.
        edges: the block's edge in each dimension, from 1 to the map's size.

    Returns:
        The factor, exactly 1 for blocks of one element and for those that fill the map.

    Example:
        >>> round(0.1 * gamma_factor((28, 28), (7, 7)), 6)
        0.003306
    """
    pairs = list(zip(sizes, edges, strict=True))
    return math.prod(n for n, _ in pairs) / math.prod(e * (n - e + 1) for n, e in pairs)


def kept_fraction(gamma: float, covered: dict[int, float]) -> float:
    """The fraction of the elements that is kept on average.

    Args:
        gamma: the rate at which draws take a block with them, in [0, 1].
        covered: what `coverage` gave.

    Returns:
        A number in [0, 1].

    Example:
        >>> kept_fraction(0.5, coverage((4,), (2,)))
        0.375
    """
    return sum(weight * (1 - gamma) ** places for places, weight in covered.items())


def exact_gamma(rate: float, covered: dict[int, float]) -> float:
    """The gamma at which the fraction dropped is the rate, overlaps and borders included.

    Newton's method on the logarithm of what is kept, which is convex in ``-log(1 - gamma)``: from 0
    on it nears the root from below and never passes it.

    Args:
        rate: the fraction of the elements dropped, in [0, 1].
        covered: what `coverage` gave.

    Returns:
        Gamma in [0, 1]; the rate itself where every element has one place.

    Example:
        >>> covered = coverage((28, 28), (7, 7))
        >>> gamma = exact_gamma(0.1, covered)
        >>> round(gamma, 6), round(1 - kept_fraction(gamma, covered), 6)
        (0.003534, 0.1)
    """
    if rate in (0, 1) or covered.keys() == {1}:
        return rate
    at = 0.0
    for _ in range(STEPS):
        lost = sum(weight * math.expm1(-places * at) for places, weight in covered.items())
        kept = sum(weight * math.exp(-places * at) for places, weight in covered.items())
        slope = sum(w * places * math.exp(-places * at) for places, w in covered.items())
        # Near 0 what is lost has more digits, near 1 what is kept.
        logarithm = math.log1p(lost) if kept > 0.5 else math.log(kept)
        before, at = at, at + (logarithm - math.log1p(-rate)) * kept / slope
        if at <= before:
            break
    return -math.expm1(-at)
