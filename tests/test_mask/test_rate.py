import pickle
from dataclasses import FrozenInstanceError
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed import Rate
from dropseed.errors import InvalidTypeError, InvalidValueError

rates = st.floats(0, 1)


@given(rates)
def test_threshold_is_the_nearest(rate):
    assert abs(Rate(rate).threshold - Fraction(rate) * 2**32) <= Fraction(1, 2)


@pytest.mark.parametrize(
    ("halves", "threshold"),
    [(1, 0), (3, 2), (5, 2), (7, 4), (2**33 - 1, 2**32), (2**33 - 3, 2**32 - 2)],
)
def test_ties_go_to_even(halves, threshold):
    assert Rate(halves / 2**33).threshold == threshold


def test_negative_zero_is_zero():
    assert Rate(-0.0).threshold == 0
    assert Rate(-0.0) == Rate(0)


@pytest.mark.parametrize(
    ("rate", "threshold"),
    [
        (0.1, 429496730),
        (np.float64(0.1), 429496730),
        (np.float32(0.1), 429496736),
        (np.float16(0.1), 429391872),
        (np.longdouble(0.1), 429496730),
        (Fraction(1, 10), 429496730),
        (Fraction(1, 3), 1431655765),
        (0, 0),
        (1, 2**32),
        (np.int8(1), 2**32),
        (np.uint64(0), 0),
    ],
    ids=repr,
)
def test_real_numbers_become_doubles_first(rate, threshold):
    assert Rate(rate).threshold == threshold
    assert type(Rate(rate).threshold) is int
    assert type(Rate(rate).value) is float


@pytest.mark.parametrize(
    "rate",
    [
        *(True, False, np.True_),
        *("0.5", b"0.5", None, 0.5j, np.complex64(0.5), Decimal("0.5")),
        *([0.5], np.array(0.5), np.array([0.5])),
    ],
    ids=repr,
)
def test_no_real_number(rate):
    with pytest.raises(InvalidTypeError, match="`rate` must be a real number in ") as caught:
        Rate(rate)
    assert f"got {rate!r}. It is the fraction dropped." in str(caught.value)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize(
    "rate",
    [
        *(float("nan"), float("inf"), -float("inf")),
        *(1.5, -0.1, -5e-324, np.nextafter(1, 2), 2, -1, 10**400),
        *(np.float32("nan"), np.float64("inf"), np.int64(2)),
        *(Fraction(-1, 10**400), 1 + Fraction(1, 2**60)),
    ],
    ids=lambda rate: repr(rate)[:30],
)
def test_out_of_range(rate):
    with pytest.raises(InvalidValueError, match=r"`rate` must be in \[0, 1\]") as caught:
        Rate(rate)
    assert f"got {rate!r}. It is the fraction dropped, not" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@given(rates)
def test_scale_is_that_of_the_rate_in_force(rate):
    rate = Rate(rate)
    kept = 1 - Fraction(rate.threshold, 2**32)
    if kept == 0:
        assert rate.scale == 0
    else:
        assert rate.scale == float(1 / kept)


def test_three_scalings():
    quarter = Rate(0.25)
    assert quarter.factors() == quarter.factors("inverted") == (1 / 0.75, 1)
    assert quarter.factors("original") == (1, 0.75)
    assert quarter.factors("none") == (1, 1)


@given(rates)
def test_training_and_inference_agree_on_average(rate):
    rate = Rate(rate)
    kept = 1 - rate.threshold / 2**32
    for scaling in ("inverted", "original"):
        factors = rate.factors(scaling)
        if kept:
            assert factors.training * kept == pytest.approx(factors.inference, rel=1e-15)


def test_everything_dropped():
    assert Rate(1).factors() == (0, 1)
    assert Rate(1).factors("original") == (1, 0)


@pytest.mark.parametrize("scaling", ["Inverted", "", None, 1])
def test_unknown_scaling(scaling):
    with pytest.raises(InvalidValueError, match="`scaling` must be") as caught:
        Rate(0.5).factors(scaling)
    assert repr(scaling) in str(caught.value)


@given(rates)
def test_is_a_value(rate):
    rate = Rate(rate)
    assert eval(repr(rate)) == rate
    assert pickle.loads(pickle.dumps(rate)) == rate
    assert hash(Rate(rate.value)) == hash(rate)


def test_immutable():
    with pytest.raises(FrozenInstanceError):
        Rate(0.5).threshold = 0
