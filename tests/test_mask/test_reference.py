"""The draws against a second implementation, written from the specification in plain integers."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed import Key, Rate, drop_block, gaussian, integers, keep, subset, uniform
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.reference import as_rate

keys = st.builds(
    Key, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
COUNT = 20
starts = st.one_of(
    st.integers(0, 2**63 - COUNT), st.integers(0, 100), st.integers(2**36 - 20, 2**36 + 20)
)


def philox(counter, key):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def byte(key, index, plane):
    block, j = divmod(index, 16)
    counter = (block % 2**32, plane * 2**28 + block // 2**32, key.site, key.step)
    word = philox(counter, (key.seed % 2**32, key.seed // 2**32))[j // 4]
    return word.to_bytes(4, "little")[j % 4]


def u(key, index, first_plane=0):
    return int.from_bytes(bytes(byte(key, index, first_plane + i) for i in range(4)), "big")


def test_the_second_implementation_knows_the_published_answer():
    assert philox((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@given(keys, starts, st.floats(0, 1))
def test_keep(key, start, rate):
    threshold = round(rate * 2**32)
    expected = [u(key, index) >= threshold for index in range(start, start + COUNT)]
    assert keep(key, rate, COUNT, start=start).tolist() == expected


@given(keys, starts, st.integers(0, COUNT - 1))
def test_keep_at_a_tie(key, start, which):
    tie = u(key, start + which)
    assert keep(key, tie / 2**32, COUNT, start=start)[which]
    assert not keep(key, (tie + 1) / 2**32, COUNT, start=start)[which]


@given(keys, starts)
def test_uniform(key, start):
    expected = [(u(key, index) + 0.5) / 2**32 for index in range(start, start + COUNT)]
    assert uniform(key, COUNT, start=start).tolist() == expected


@given(keys, starts, st.one_of(st.integers(1, 2**32), st.sampled_from([1, 2**32 - 1, 2**32])))
def test_integers(key, start, n):
    expected = [u(key, index) * n // 2**32 for index in range(start, start + COUNT)]
    drawn = integers(key, n, COUNT, start=start)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == expected
    assert 0 <= drawn.min() <= drawn.max() < n


@given(keys, starts)
def test_gaussian(key, start):
    expected = [
        math.sqrt(-2 * math.log((u(key, i) + 1) / 2**32))
        * math.cos(2 * math.pi * u(key, i, 4) / 2**32)
        for i in range(start, start + COUNT)
    ]
    np.testing.assert_allclose(gaussian(key, COUNT, start=start), expected, rtol=1e-12, atol=1e-15)


@given(keys, st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**58))
def test_subset(key, n, size, row):
    size = min(n, size)
    ranked = sorted((u(key, row * n + i), i) for i in range(n))
    drawn = subset(key, n, size, row=row)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == sorted(i for _, i in ranked[:size])


@given(keys, st.integers(0, 2**60 - 1))
def test_fold(key, n):
    counter = (n % 2**32, 15 * 2**28 + n // 2**32, key.site, key.step)
    word0, word1, _, _ = philox(counter, (key.seed % 2**32, key.seed // 2**32))
    assert key.fold(n) == Key(word0 + 2**32 * word1, key.site, key.step)


@given(
    keys,
    st.floats(0, 0.5),
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(1, 5),
    st.booleans(),
)
def test_drop_block(key, gamma, spatial, edge, shared):
    edge = min(edge, *spatial)
    shape = (2, 2, *spatial)
    places = tuple(n - edge + 1 for n in spatial)
    draws = keep(key, gamma, (2, *places) if shared else (2, 2, *places))
    expected = np.ones(shape, bool)
    for n, c, *corner in np.ndindex(2, 2, *places):
        if not draws[(n, *corner) if shared else (n, c, *corner)]:
            expected[n, c, *(slice(o, o + edge) for o in corner)] = False
    assert np.array_equal(drop_block(key, gamma, shape, edge, shared=shared), expected)


def test_rectangular_blocks():
    mask = drop_block(Key(1), 0.1, (1, 1, 6, 9), (1, 9))
    rows = keep(Key(1), 0.1, 6)
    assert np.array_equal(mask[0, 0], np.repeat(rows[:, np.newaxis], 9, axis=1))


def test_ends_of_the_ranges():
    drawn = uniform(Key(5), 10_000)
    assert 0 < drawn.min() < drawn.max() < 1
    assert np.array_equal(integers(Key(5), 1, 100), np.zeros(100))
    assert np.array_equal(integers(Key(5), 2**32, 10_000), drawn * 2**32 - 0.5)
    assert np.isfinite(gaussian(Key(5), 10_000)).all()


@pytest.mark.parametrize("n", [0, -1, 2**32 + 1])
def test_integers_out_of_range(n):
    with pytest.raises(InvalidValueError, match=r"`n` must be in \[1, 4294967297\)"):
        integers(Key(0), n, 3)


@pytest.mark.parametrize(
    "draw", [uniform, gaussian, lambda *a, **o: integers(a[0], 99, *a[1:], **o)]
)
def test_start_is_a_slice(draw):
    larger = draw(Key(8), (50, 3))
    assert np.array_equal(draw(Key(8), (4, 3), start=40), larger[40:44])
    assert np.array_equal(draw(Key(8), (4, 3), start=(40, 0)), larger[40:44])
    with pytest.raises(InvalidValueError, match="may leave the first dimension only"):
        draw(Key(8), (4, 3), start=(0, 1))


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 10))
def test_subsets_are_ascending_and_distinct(n, size, row):
    size = min(n, size)
    drawn = subset(Key(4), n, size, row=row)
    assert drawn.shape == (size,)
    assert (np.diff(drawn) > 0).all()
    assert size == 0 or 0 <= drawn[0] <= drawn[-1] < n


def test_subsets_grow():
    assert set(subset(Key(4), 30, 10)) < set(subset(Key(4), 30, 11))


def test_subsets_of_other_rows_differ():
    assert len({tuple(subset(Key(4), 30, 10, row=row)) for row in range(50)}) == 50


def test_subset_errors():
    with pytest.raises(InvalidValueError, match="`size` must be at most `n`, which is 3; got 4"):
        subset(Key(0), 3, 4)
    with pytest.raises(InvalidValueError, match="`row` must be in"):
        subset(Key(0), 4, 1, row=2**61)
    assert subset(Key(0), 4, 4, row=2**61 - 1).tolist() == [0, 1, 2, 3]
    with pytest.raises(InvalidTypeError, match="`size` must be an integer"):
        subset(Key(0), 4, 1.0)


@pytest.mark.parametrize("key", [0, None, "key", (0, 0, 0)], ids=repr)
def test_key_is_a_key(key):
    for draw in (
        lambda: keep(key, 0.5, 3),
        lambda: uniform(key, 3),
        lambda: integers(key, 3, 3),
        lambda: gaussian(key, 3),
        lambda: subset(key, 3, 2),
        lambda: drop_block(key, 0.5, (1, 1, 3), 2),
    ):
        with pytest.raises(InvalidTypeError, match="`key` must be a Key, for instance") as caught:
            draw()
        assert f"got {key!r}." in str(caught.value)


@pytest.mark.parametrize("rate", [True, "0.5", None, [0.5]])
def test_keep_checks_the_rate(rate):
    with pytest.raises(InvalidTypeError, match="`rate` must be a real number"):
        keep(Key(0), rate, 3)


def test_a_rate_may_be_ready():
    assert np.array_equal(keep(Key(0), Rate(0.3), 99), keep(Key(0), 0.3, 99))
    rate = Rate(0.3)
    assert as_rate(rate) is rate
    assert as_rate(0.3) == rate


def test_rates_at_the_ends():
    assert keep(Key(3), 0, 1000).all()
    assert not keep(Key(3), 1, 1000).any()


def test_masks_of_a_key_are_nested():
    masks = [keep(Key(3), rate, 1000) for rate in np.linspace(0, 1, 9)]
    for larger, smaller in pairwise(masks):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()


def test_each_number_of_a_key_gives_another_mask():
    key = Key(12345, 678, 9)
    others = [Key(12346, 678, 9), Key(12345, 679, 9), Key(12345, 678, 10)]
    others += [Key(12345 + 2**32, 678, 9), Key(12345, 9, 678), key.fold(0), key.at("drop")]
    masks = {keep(k, 0.5, 256).tobytes() for k in [key, *others]}
    assert len(masks) == 1 + len(others)


def test_planes_and_far_blocks_differ():
    draws = [uniform(Key(6), 64, start=start) for start in (0, 2**36, 2**40, 2**62)]
    assert len({d.tobytes() for d in draws}) == len(draws)


def test_same_key_same_mask():
    assert np.array_equal(keep(Key(7), 0.5, (8, 9)), keep(Key(7), 0.5, (8, 9)))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_kept_fraction(rate):
    """Fails with probability 2e-6 for each rate over random seeds; the seed is fixed.

    The number of kept draws is binomial: with 10**6 draws its normal approximation leaves 4.75
    standard deviations with probability 2.04e-6.
    """
    draws = 10**6
    deviation = math.sqrt(draws * rate * (1 - rate))
    assert abs(keep(Key(20261123), rate, draws).sum() - draws * (1 - rate)) < 4.75 * deviation
