import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed import Key, gaussian, integers, keep, uniform
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.shard import Draws, part, row_major, whole

KEY = Key(2026, 11, 3)


@st.composite
def shards(draw):
    """(shape, start, stride, of): any part of a mask with up to 4 dimensions."""
    of = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    start = [draw(st.integers(0, n - 1)) for n in of]
    stride = [draw(st.integers(1, 3)) for _ in of]
    most = [-(-(n - s) // t) for n, s, t in zip(of, start, stride, strict=True)]
    shape = [draw(st.integers(0, n)) for n in most]
    return tuple(shape), tuple(start), tuple(stride), tuple(of)


@given(shards())
def test_any_shard_is_a_slice_of_the_larger_mask(shard):
    shape, start, stride, of = shard
    ends = [s + t * n for s, t, n in zip(start, stride, shape, strict=True)]
    slices = tuple(slice(*ends) for ends in zip(start, ends, stride, strict=True))
    mask = keep(KEY, 0.5, shape, start=start, stride=stride, of=of)
    assert mask.shape == shape
    assert np.array_equal(mask, keep(KEY, 0.5, of)[slices])


@given(shards())
def test_draws_are_plain_flat_indices(shard):
    shape, start, stride, of = shard
    draws = part(shape, start, stride, of)
    flat = np.arange(math.prod(of)).reshape(of)
    ends = [s + t * n for s, t, n in zip(start, stride, shape, strict=True)]
    slices = tuple(slice(*ends) for ends in zip(start, ends, stride, strict=True))
    assert np.array_equal(draws.indices(), flat[slices])
    assert draws.shape == shape


@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 5), (5, 1), (2, 3, 4), (2, 0, 4), (0,)])
def test_a_whole_tensor_is_its_own_part(shape):
    assert whole(shape).indices().tolist() == part(shape).indices().tolist()
    assert whole(shape).shape == part(shape).shape == shape


def test_row_major():
    assert row_major((4, 3, 2)) == (6, 2, 1)
    assert row_major(()) == ()


def test_a_dimension_of_one_element_has_no_stride():
    assert whole((1, 5)) == part((1, 5)) == Draws((1, 5), 0, (0, 1))
    assert whole((2, 3, 4), (1,)) == Draws((2, 3, 4), 0, (4, 0, 1))
    assert part((1, 1), start=(2, 7), of=(2**40, 2**40)) == Draws((1, 1), 2 * 2**40 + 7, (0, 0))
    # The strides of this one would overflow.
    assert part((1, 1, 1), of=(2, 2**40, 2**40)).indices().tolist() == [[[0]]]


def test_interleaved_sampler():
    batch = keep(KEY, 0.3, (12, 5))
    for rank in range(4):
        mine = keep(KEY, 0.3, (3, 5), start=rank, stride=4)
        assert np.array_equal(mine, batch[rank::4])


def test_start_goes_on_beyond_the_first_dimension():
    larger = keep(KEY, 0.3, (100, 5))
    assert np.array_equal(keep(KEY, 0.3, (4, 5), start=60), larger[60:64])
    assert np.array_equal(keep(KEY, 0.3, (4, 5), start=(60, 0), of=(4, 5)), larger[60:64])


def test_one_number_is_for_the_first_dimension():
    options = {"of": (9, 9)}
    one = keep(KEY, 0.3, (3, 4), start=2, stride=2, **options)
    assert np.array_equal(one, keep(KEY, 0.3, (3, 4), start=(2, 0), stride=(2, 1), **options))
    assert np.array_equal(
        one, keep(KEY, 0.3, (3, 4), start=np.int32(2), stride=np.array(2), of=[9, 9])
    )


@pytest.mark.parametrize(
    ("shape", "start", "stride", "of"),
    [
        ((2, 3), (0, 1), 1, None),
        ((2, 3), (0, 3), 1, (2, 5)),
        ((2, 3), 0, (1, 2), (2, 4)),
        ((2, 6), 0, 1, (2, 5)),
        ((2, 3, 4), 0, 1, (9, 2, 4)),
    ],
)
def test_a_shard_leaves_no_other_dimension(shape, start, stride, of):
    with pytest.raises(InvalidValueError, match="may leave the first dimension only"):
        keep(KEY, 0.3, shape, start=start, stride=stride, of=of)


def test_last_index():
    assert keep(KEY, 0.3, 1, start=2**63 - 1).shape == (1,)
    assert keep(KEY, 0.3, (2, 1), start=(2**62 - 2, 1), of=(1, 2)).shape == (2, 1)
    assert keep(KEY, 0.3, 2, start=2**63 - 5, stride=4).shape == (2,)
    assert keep(KEY, 0.3, 1, stride=2**63 - 1).shape == (1,)


@pytest.mark.parametrize(
    ("shape", "start", "stride"),
    [
        (2, 2**63 - 1, 1),
        (2, 2**63 - 4, 4),
        (2, 1, 2**63 - 1),
        ((1, 2), (2**62, 0), 1),
        ((2**40, 2**40), 0, 1),
        (2**63 - 1, 2, 1),
    ],
)
def test_index_2_63_raises(shape, start, stride):
    with pytest.raises(InvalidValueError, match=r"leads to index \d+; the last is 2\*\*63 - 1"):
        keep(KEY, 0.3, shape, start=start, stride=stride)


@pytest.mark.parametrize("name", ["start", "stride"])
@pytest.mark.parametrize("value", [2**63, -1, (0, -1)], ids=repr)
def test_numbers_out_of_range(name, value):
    with pytest.raises(InvalidValueError, match=rf"`{name}` must be in \["):
        keep(KEY, 0.3, (1, 1), **{name: value})


def test_stride_0_raises():
    for stride in (0, (1, 0)):
        with pytest.raises(InvalidValueError, match=r"`stride` must be in \[1, .*; got 0"):
            keep(KEY, 0.3, (2, 2), stride=stride)


@pytest.mark.parametrize("name", ["start", "stride"])
@pytest.mark.parametrize(
    "value", [(1,), (1, 1, 1), (), np.array([1]), np.array([1, 1, 1])], ids=repr
)
def test_one_number_a_dimension(name, value):
    with pytest.raises(
        InvalidValueError, match=f"`{name}` must be one integer or one for each of 2"
    ):
        keep(KEY, 0.3, (2, 2), **{name: value})


@pytest.mark.parametrize("name", ["start", "stride", "of"])
@pytest.mark.parametrize("value", [1.0, "1", (1.0, 1), (True, 1)], ids=repr)
def test_no_integers(name, value):
    with pytest.raises(InvalidTypeError, match=f"`{name}` must be an integer"):
        keep(KEY, 0.3, (2, 2), **{name: value})


def test_of_has_the_same_rank():
    with pytest.raises(InvalidValueError, match="`of` must have as many dimensions as `shape`"):
        keep(KEY, 0.3, (2, 2), of=4)


@pytest.mark.parametrize("shape", [0, (0, 4), (4, 0), (3, 0, 2), (0, 2**40, 2**10)])
def test_empty(shape):
    sizes = (shape,) if isinstance(shape, int) else shape
    for drawn in (keep(KEY, 0.3, shape), uniform(KEY, shape), gaussian(KEY, shape)):
        assert drawn.shape == sizes
    assert part((0, 3), start=(2**63 - 1, 0)).indices().shape == (0, 3)


def test_0d():
    mask = keep(KEY, 0.5, ())
    assert isinstance(mask, np.ndarray)
    assert mask.shape == ()
    assert mask == keep(KEY, 0.5, 1)[0]
    assert keep(KEY, 0.5, (), start=(), stride=(), of=()) == mask
    assert keep(KEY, 0.5, (), start=0, stride=1) == mask
    for name, value in (("start", 1), ("stride", 2)):
        with pytest.raises(InvalidValueError, match=f"`{name}` must be"):
            keep(KEY, 0.5, (), **{name: value})
    assert [f.shape for f in (uniform(KEY, ()), gaussian(KEY, ()), integers(KEY, 3, ()))] == [
        ()
    ] * 3


def test_arguments_stay_as_they_are():
    shape, start, stride, of = [2, 2], [1, 1], [1, 2], [3, 4]
    keep(KEY, 0.3, shape, start=start, stride=stride, of=of)
    assert (shape, start, stride, of) == ([2, 2], [1, 1], [1, 2], [3, 4])
