import math
import pickle
from dataclasses import FrozenInstanceError, fields
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.schedule import Constant, Cosine, Curriculum, Early, Late, Linear, rate_at

rates = st.floats(0, 1)
lengths = st.integers(1, 2**40) | st.integers(1, 20)
moments = st.integers(0, 2**40) | st.integers(0, 40)
positive = st.floats(0, exclude_min=True, allow_infinity=False)

SCHEDULES = st.one_of(
    st.builds(Constant, rates),
    st.builds(Linear, rates, rates, lengths, moments),
    st.builds(Cosine, rates, rates, lengths, moments),
    st.builds(Early, rates, lengths, st.booleans()),
    st.builds(Late, rates, moments),
    st.builds(Curriculum, rates, positive),
)
EACH = [
    Constant(0.3),
    Linear(0.1, 0.7, 10, 3),
    Cosine(0.1, 0.7, 10, 3),
    Early(0.3, 10),
    Early(0.3, 10, linear=False),
    Late(0.3, 10),
    Curriculum(0.3, 0.01),
]


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.3), {0: 0.3, 1: 0.3, 2**62: 0.3}),
        (
            Linear(0, 0.5, 100),
            {0: 0, 1: 0.005, 50: 0.25, 99: 0.495, 100: 0.5, 101: 0.5, 2**62: 0.5},
        ),
        (Linear(0.5, 0.1, 8, 4), {0: 0.5, 4: 0.5, 5: 0.45, 8: 0.3, 12: 0.1, 13: 0.1}),
        (Linear(0.2, 0.4, 1), {0: 0.2, 1: 0.4}),
        (Cosine(0, 1, 100), {0: 0, 50: 0.5, 100: 1, 101: 1}),
        (Cosine(0, 1, 3), {1: 0.25, 2: 0.75}),
        (Cosine(0.8, 0.2, 10, 5), {0: 0.8, 5: 0.8, 10: 0.5, 15: 0.2, 99: 0.2}),
        (Early(0.4, 100), {0: 0.4, 50: 0.2, 75: 0.1, 99: 0.004, 100: 0, 101: 0}),
        (Early(0.4, 100, linear=False), {0: 0.4, 99: 0.4, 100: 0, 101: 0}),
        (Early(0.4, 1), {0: 0.4, 1: 0}),
        (Late(0.4, 100), {0: 0, 99: 0, 100: 0.4, 101: 0.4}),
        (Late(0.4, 0), {0: 0.4}),
        (Curriculum(0.5, math.log(2)), {0: 0, 1: 0.25, 2: 0.375, 3: 0.4375, 2**62: 0.5}),
        (Curriculum(0.5, 1e308), {0: 0, 1: 0.5, 2**62: 0.5}),
    ],
    ids=repr,
)
def test_known_values(schedule, values):
    got = {step: schedule(step) for step in values}
    assert got == pytest.approx(values, rel=1e-14, abs=0)
    assert all(type(value) is float for value in got.values())


@given(rates, rates, lengths, moments)
def test_ramps_begin_and_end_exactly(start, end, steps, begin):
    for ramp in (Linear(start, end, steps, begin), Cosine(start, end, steps, begin)):
        assert ramp(0) == ramp(begin) == start
        assert ramp(begin + steps) == ramp(begin + steps + 1) == ramp(2**62) == end


@given(rates, st.floats(1e-9, 10), st.integers(0, 1000))
def test_curriculum_is_the_papers_retain_probability(rate, gamma, step):
    bar = 1 - rate
    theta = (1 - bar) * math.exp(-gamma * step) + bar
    assert Curriculum(rate, gamma)(step) == pytest.approx(1 - theta, abs=1e-15)


@given(SCHEDULES, st.lists(moments, min_size=2, max_size=8))
def test_always_a_rate_and_never_turns_back(schedule, steps):
    values = [schedule(step) for step in sorted(steps)]
    assert all(0 <= value <= 1 for value in values)
    rises = [after - before for before, after in pairwise(values)]
    assert all(rise >= -1e-15 for rise in rises) or all(rise <= 1e-15 for rise in rises)


@given(SCHEDULES)
def test_is_a_value(schedule):
    assert eval(repr(schedule)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert hash(eval(repr(schedule))) == hash(schedule)


def test_different_schedules_differ():
    assert len(set(EACH)) == len(EACH)
    assert Linear(0, 0.5, 10) != Cosine(0, 0.5, 10)


@pytest.mark.parametrize("schedule", EACH, ids=repr)
def test_immutable(schedule):
    with pytest.raises(FrozenInstanceError):
        setattr(schedule, fields(schedule)[0].name, 0.9)


def test_numbers_become_pythons():
    ours = Linear(Fraction(1, 2), np.float32(0.25), np.int64(8), np.uint8(1))
    assert ours == Linear(0.5, 0.25, 8, 1)
    assert repr(ours) == "Linear(start=0.5, end=0.25, steps=8, begin=1)"
    assert repr(Curriculum(1, 2)) == "Curriculum(rate=1.0, gamma=2.0)"


WITH_A_RATE = {
    "Constant": (Constant, "rate"),
    "Linear start": (lambda rate: Linear(rate, 0, 1), "start"),
    "Linear end": (lambda rate: Linear(0, rate, 1), "end"),
    "Cosine start": (lambda rate: Cosine(rate, 0, 1), "start"),
    "Cosine end": (lambda rate: Cosine(0, rate, 1), "end"),
    "Early": (lambda rate: Early(rate, 1), "rate"),
    "Late": (lambda rate: Late(rate, 1), "rate"),
    "Curriculum": (lambda rate: Curriculum(rate, 1), "rate"),
}
WITH_AN_INTEGER = {
    "Linear steps": (lambda n: Linear(0, 1, n), "steps", 1),
    "Linear begin": (lambda n: Linear(0, 1, 1, n), "begin", 0),
    "Cosine steps": (lambda n: Cosine(0, 1, n), "steps", 1),
    "Cosine begin": (lambda n: Cosine(0, 1, 1, n), "begin", 0),
    "Early": (lambda n: Early(0.5, n), "steps", 1),
    "Late": (lambda n: Late(0.5, n), "begin", 0),
    **{repr(schedule): (schedule, "step", 0) for schedule in EACH},
}


@pytest.mark.parametrize(("make", "name"), WITH_A_RATE.values(), ids=WITH_A_RATE)
def test_wrong_rates(make, name):
    for rate in (1.5, -0.1, float("nan"), float("inf"), 1 + 2**-52):
        with pytest.raises(InvalidValueError, match=f"`{name}` must be in ") as caught:
            make(rate)
        assert repr(rate) in str(caught.value)
    for rate in ("0.5", None, True, 0.5j):
        with pytest.raises(InvalidTypeError, match=f"`{name}` must be a real number") as caught:
            make(rate)
        assert repr(rate) in str(caught.value)


@pytest.mark.parametrize(("make", "name", "least"), WITH_AN_INTEGER.values(), ids=WITH_AN_INTEGER)
def test_wrong_integers(make, name, least):
    make(least)
    for number in (least - 1, -5, 2**63):
        with pytest.raises(InvalidValueError, match=rf"`{name}` must be in .* got {number}"):
            make(number)
    for number in (1.0, "1", None, True, np.ones(1)):
        with pytest.raises(InvalidTypeError, match=f"`{name}` must be an integer"):
            make(number)


@pytest.mark.parametrize("gamma", [0, -1, 0.0, float("nan"), float("inf"), 10**400])
def test_gamma_out_of_range(gamma):
    with pytest.raises(
        InvalidValueError, match="`gamma` must be finite and greater than 0"
    ) as caught:
        Curriculum(0.5, gamma)
    assert repr(gamma) in str(caught.value)


@pytest.mark.parametrize("gamma", ["1", None, True, 1j])
def test_gamma_is_no_number(gamma):
    with pytest.raises(InvalidTypeError, match="`gamma` must be a real number"):
        Curriculum(0.5, gamma)


@pytest.mark.parametrize("linear", [0, 1, None, "no"])
def test_linear_is_no_bool(linear):
    with pytest.raises(InvalidTypeError, match="`linear` must be True or False"):
        Early(0.5, 1, linear)


@given(SCHEDULES, moments)
def test_rate_at(schedule, step):
    assert rate_at(schedule, step) == schedule(step)


def test_rate_at_takes_functions_and_numbers():
    assert rate_at(lambda step: step / 4, np.int8(3)) == 0.75
    assert rate_at(lambda step: np.float32(0.5), 0) == 0.5
    assert rate_at(0.25, 3) == rate_at(Fraction(1, 4), 0) == 0.25


def test_rate_at_checks_what_it_gets():
    def warmup(step):
        return step / 10

    assert rate_at(warmup, 10) == 1
    with pytest.raises(
        InvalidValueError, match=r"must give a rate in \[0, 1\]; got 1.1 at step 11"
    ):
        rate_at(warmup, 11)
    with pytest.raises(InvalidValueError, match="got nan at step 0"):
        rate_at(float("nan"), 0)
    for schedule in ("linear", None, lambda step: "0.5", lambda step: None):
        with pytest.raises(InvalidTypeError, match="`schedule` must give a rate"):
            rate_at(schedule, 0)
    for step, error in ((-1, InvalidValueError), (0.0, InvalidTypeError), (True, InvalidTypeError)):
        with pytest.raises(error, match="`step` must be"):
            rate_at(0.5, step)
