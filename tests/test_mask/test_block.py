"""DropBlock's gamma against counting by hand and by convolution."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dropseed.mask.block import coverage, exact_gamma, gamma_factor, kept_fraction

MAPS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3)


def split(pairs):
    """Sizes, and edges that fit into them."""
    return tuple(max(pair) for pair in pairs), tuple(min(pair) for pair in pairs)


@given(MAPS)
def test_coverage_counts_the_places_of_each_element(pairs):
    sizes, edges = split(pairs)
    count = np.zeros(sizes, int)
    for corner in itertools.product(*(range(n - e + 1) for n, e in zip(sizes, edges, strict=True))):
        count[tuple(slice(c, c + e) for c, e in zip(corner, edges, strict=True))] += 1
    values, numbers = np.unique(count, return_counts=True)
    assert coverage(sizes, edges) == dict(
        zip(values.tolist(), (numbers / count.size).tolist(), strict=True)
    )


@given(MAPS)
def test_every_rate_has_its_gamma(pairs):
    sizes, edges = split(pairs)
    assert 0 < gamma_factor(sizes, edges) <= 1


def test_the_paper_s_formula():
    """Equation 1 for the paper's example of a square map."""
    assert 0.1 * gamma_factor((28, 28), (7, 7)) == pytest.approx(0.1 / 7**2 * 28**2 / 22**2)


@given(MAPS)
def test_single_elements_and_whole_maps_have_gamma_equal_to_the_rate(pairs):
    sizes, _ = split(pairs)
    for edges in ((1,) * len(sizes), sizes):
        assert gamma_factor(sizes, edges) == 1
        assert exact_gamma(0.3, coverage(sizes, edges)) == 0.3


@example([(59, 58), (59, 58), (7, 3)], 1e-17)  # where rounding might lead below 0
@example([(3, 2)], 1 - 2**-53)  # where what is kept has fewer digits than what is lost
@example([(43, 14)], 1 - 2**-53)
@given(MAPS, st.floats(0, 1))
def test_exact_gamma_drops_the_rate(pairs, rate):
    covered = coverage(*split(pairs))
    gamma = exact_gamma(rate, covered)
    assert 0 <= gamma <= 1
    kept = kept_fraction(gamma, covered)
    assert 1 - kept == pytest.approx(rate, rel=1e-9, abs=1e-12)
    assert kept == pytest.approx(1 - rate, rel=1e-9, abs=1e-15)


def test_exact_gamma_is_at_least_the_paper_s():
    """Overlaps, which the formula counts twice, make up for more than what borders lack."""
    for sizes, edges in (((28, 28), (7, 7)), ((9,), (4,)), ((6, 5, 4), (2, 3, 4))):
        for rate in (0.01, 0.1, 0.5, 0.9):
            by_formula = rate * gamma_factor(sizes, edges)
            assert exact_gamma(rate, coverage(sizes, edges)) > by_formula * (1 - 1e-12)


def test_the_ends():
    covered = coverage((28, 28), (7, 7))
    assert exact_gamma(0, covered) == 0
    assert exact_gamma(1, covered) == 1
    assert kept_fraction(0, covered) == pytest.approx(1)
    assert kept_fraction(1, covered) == 0
    assert math.isclose(sum(covered.values()), 1)
