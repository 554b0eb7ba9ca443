import pickle
import zlib
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import site_number

seeds = st.integers(0, 2**64 - 1)
words = st.integers(0, 2**32 - 1)
keys = st.builds(Key, seeds, words, words)

LIMITS = {"seed": 2**64, "site": 2**32, "step": 2**32}


def key_with(name, value):
    return Key(**({"seed": 0} | {name: value}))


@pytest.mark.parametrize("name", LIMITS)
def test_first_and_last_values(name):
    for value in (0, LIMITS[name] - 1):
        assert getattr(key_with(name, value), name) == value


@pytest.mark.parametrize("name", LIMITS)
@pytest.mark.parametrize(
    "value", [True, np.True_, 1.0, np.float64(1), "1", b"1", None, 1j, [1], np.array([1])], ids=repr
)
def test_no_integer(name, value):
    with pytest.raises(InvalidTypeError, match=f"`{name}` must be an integer; got") as caught:
        key_with(name, value)
    assert repr(value) in str(caught.value)
    assert caught.value.__cause__ is None
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("value", [np.array(1.0), np.array(True)], ids=repr)
def test_no_integer_in_a_0d_array(value):
    with pytest.raises(InvalidTypeError, match="`seed` must be an integer"):
        Key(value)


def test_no_array_of_one_element():
    class OneElement:
        """As PyTorch's tensors, which have an index in any number of dimensions."""

        shape = (1,)

        def __index__(self):
            return 1

    with pytest.raises(InvalidTypeError, match="`seed` must be an integer"):
        Key(OneElement())


@pytest.mark.parametrize("name", LIMITS)
def test_out_of_range(name):
    for value in (-1, LIMITS[name], np.int64(-1), 10**30):
        with pytest.raises(InvalidValueError, match=rf"`{name}` must be in \[0, .*got {value}"):
            key_with(name, value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_numpy_integers_become_python_integers(dtype):
    key = Key(dtype(7), dtype(8), dtype(9))
    assert key == Key(7, 8, 9)
    assert {type(n) for n in (key.seed, key.site, key.step, *key.words)} == {int}
    assert repr(key) == "Key(seed=7, site=8, step=9)"
    assert Key(np.array(7, dtype)) == Key(7)


def test_immutable():
    key = Key(1)
    with pytest.raises(FrozenInstanceError):
        key.seed = 2
    # Python 3.11's frozen classes with slots raise a TypeError here.
    with pytest.raises((AttributeError, TypeError)):
        key.other = 2


@given(keys)
def test_is_a_value(key):
    twin = Key(key.seed, key.site, key.step)
    assert twin == key
    assert hash(twin) == hash(key)
    assert eval(repr(key)) == key
    assert pickle.loads(pickle.dumps(key)) == key


def test_differs_by_each_number():
    assert len({Key(0), Key(1), Key(0, 1), Key(0, 0, 1)}) == 4


@given(keys)
def test_words(key):
    k0, k1, site, step = key.words
    assert max(key.words) < 2**32
    assert Key(k0 + 2**32 * k1, site, step) == key


@given(st.text())
def test_at(name):
    key = Key(3, 4, 5).at(name)
    assert key == Key(3, zlib.crc32(name.encode("utf-8")), 5)
    assert key.site == site_number(name)


def test_at_reads_utf_8():
    assert site_number("blöck.1.attn_drop") == 1784089416
    assert site_number("") == 0


@pytest.mark.parametrize("name", [None, 3, b"drop"])
def test_at_refuses_other_names(name):
    with pytest.raises(InvalidTypeError, match="`name` must be a string; got"):
        Key(0).at(name)


@pytest.mark.parametrize("n", [-1, 2**60])
def test_fold_out_of_range(n):
    with pytest.raises(InvalidValueError, match="`n` must be in"):
        Key(0).fold(n)


@pytest.mark.parametrize("n", [True, 1.0, "1", None])
def test_fold_no_integer(n):
    with pytest.raises(InvalidTypeError, match="`n` must be an integer"):
        Key(0).fold(n)


@given(keys, st.integers(0, 2**60 - 1))
def test_fold_keeps_site_and_step(key, n):
    folded = key.fold(n)
    assert (folded.site, folded.step) == (key.site, key.step)
    assert folded == key.fold(np.int64(n))


def test_folds_differ():
    numbers = [0, 1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**60 - 1]
    once = {Key(0).fold(n) for n in numbers}
    twice = {Key(0).fold(n).fold(m) for n in numbers for m in numbers}
    assert len(once) == len(numbers)
    assert len(twice) == len(numbers) ** 2
    assert not once & twice


def test_fold_depends_on_the_whole_key():
    keys = [Key(0), Key(1), Key(2**32), Key(0, 1), Key(0, 0, 1)]
    assert len({key.fold(1).seed for key in keys}) == len(keys)
