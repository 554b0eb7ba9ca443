import numpy as np
import pytest

from dropseed import Key, drop_block
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import noise_shape, shared_axes
from dropseed.mask.shape import VARIANTS
from dropseed.mask.shard import whole

# variant, input shape, noise shape, shared axes
TABLE = [
    ("elementwise", (), (), ()),
    ("elementwise", (3, 0, 5), (3, 0, 5), ()),
    ("attention", (2, 3, 4, 5), (2, 3, 4, 5), ()),
    ("spatial", (2, 3), (2, 3), ()),
    ("spatial", (2, 3, 4), (2, 3), (2,)),
    ("spatial", (2, 3, 4, 5, 6), (2, 3), (2, 3, 4)),
    ("spatial_channels_last", (2, 3), (2, 3), ()),
    ("spatial_channels_last", (2, 3, 4), (2, 4), (1,)),
    ("spatial_channels_last", (2, 3, 4, 5), (2, 5), (1, 2)),
    ("locked", (2, 3, 4), (2, 4), (1,)),
    ("path", (2,), (2,), ()),
    ("path", (2, 3, 4), (2,), (1, 2)),
    ("embedding", (7, 4), (7,), (1,)),
    ("token", (6, 5, 4), (6, 5), (2,)),
    ("drop_connect", (6, 5), (6, 5), ()),
    ("drop_connect", (6, 5, 3, 3), (6, 5, 3, 3), ()),
]


@pytest.mark.parametrize(("variant", "shape", "expected", "shared"), TABLE)
def test_noise_shape(variant, shape, expected, shared):
    assert noise_shape(variant, shape) == expected
    assert shared_axes(variant, len(shape)) == shared
    assert noise_shape(variant, [np.int64(n) for n in shape]) == expected


def test_table_has_every_variant():
    assert {row[0] for row in TABLE} == set(VARIANTS)


@pytest.mark.parametrize(("variant", "shape", "expected", "shared"), TABLE)
def test_whole_shares_what_the_noise_shape_leaves_out(variant, shape, expected, shared):
    indices = whole(shape, shared).indices()
    assert indices.shape == shape
    noise = np.arange(np.prod(expected, dtype=int)).reshape(expected)
    assert np.array_equal(indices, np.broadcast_to(np.expand_dims(noise, shared), shape))


def test_drop_connect_with_a_mask_for_each_sample():
    assert noise_shape("drop_connect", (6, 5), batch=4) == (4, 6, 5)
    assert noise_shape("drop_connect", (6, 5, 3, 3), batch=4) == (4, 6, 5, 3, 3)
    assert noise_shape("drop_connect", (6, 5), batch=0) == (0, 6, 5)


def test_zoneout_leaves_time_to_the_key():
    assert noise_shape("zoneout", (9, 4, 3)) == (4, 3)
    with pytest.raises(InvalidValueError, match=r"\(T, N, D\), at least 2 dimensions; got 1"):
        noise_shape("zoneout", (9,))


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_too_few_dimensions(variant):
    rank = VARIANTS[variant].least_rank - 1
    if rank >= 0:
        with pytest.raises(InvalidValueError, match=f'"{variant}" takes .* got {rank}'):
            noise_shape(variant, (2,) * rank)


@pytest.mark.parametrize("variant", ["Spatial", "", None, 2])
def test_unknown_variant(variant):
    with pytest.raises(InvalidValueError, match=r"`variant` must be one of .*drop_block") as caught:
        noise_shape(variant, (2, 3, 4))
    assert repr(variant) in str(caught.value)
    with pytest.raises(InvalidValueError, match="`variant` must be one of"):
        shared_axes(variant, 3)


@pytest.mark.parametrize("variant", ["drop_block", "zoneout"])
def test_no_shared_axes(variant):
    with pytest.raises(InvalidValueError, match="`variant` must be one of"):
        shared_axes(variant, 3)


def test_arguments_of_another_variant():
    with pytest.raises(InvalidValueError, match='`batch` belongs to "drop_connect"'):
        noise_shape("spatial", (2, 3, 4), batch=2)
    with pytest.raises(InvalidValueError, match='`batch` belongs to "drop_connect"'):
        noise_shape("drop_block", (2, 3, 4), batch=2, block_size=2)
    for options in ({"block_size": 2}, {"shared": True}):
        with pytest.raises(InvalidValueError, match='belong to "drop_block"; got them for "path"'):
            noise_shape("path", (2, 3, 4), **options)


@pytest.mark.parametrize("shape", [2.0, "ab", None, (2.0, 3), (True, 3), (None,)], ids=repr)
def test_shape_of_something_else(shape):
    with pytest.raises(InvalidTypeError, match="`shape` must be an integer"):
        noise_shape("elementwise", shape)


def test_negative_size():
    with pytest.raises(InvalidValueError, match=r"`shape` must be in \[0, .*; got -1"):
        noise_shape("elementwise", (2, -1))


def test_block_shapes():
    assert noise_shape("drop_block", (2, 3, 8, 7), block_size=3) == (2, 3, 6, 5)
    assert noise_shape("drop_block", (2, 3, 8, 7), block_size=(3, 7)) == (2, 3, 6, 1)
    assert noise_shape("drop_block", (2, 3, 8, 7), block_size=2, shared=True) == (2, 7, 6)
    assert noise_shape("drop_block", (2, 3, 8), block_size=1) == (2, 3, 8)


@pytest.mark.parametrize("block_size", [0, 8, (8, 1), (1, 9), (2, 2, 2), (), (0, 1)], ids=repr)
def test_blocks_that_do_not_fit(block_size):
    for call in (
        lambda: noise_shape("drop_block", (2, 3, 7, 8), block_size=block_size),
        lambda: drop_block(Key(0), 0.1, (2, 3, 7, 8), block_size),
    ):
        with pytest.raises(InvalidValueError, match=r"`block_size` must be .*\(7, 8\)") as caught:
            call()
        assert repr(block_size) in str(caught.value)


def test_block_errors():
    with pytest.raises(InvalidValueError, match="at least 3 dimensions; got 2"):
        drop_block(Key(0), 0.1, (7, 8), 2)
    with pytest.raises(InvalidValueError, match="`block_size` is needed"):
        noise_shape("drop_block", (2, 3, 7, 8))
    with pytest.raises(InvalidTypeError, match="`block_size` must be an integer"):
        drop_block(Key(0), 0.1, (2, 3, 7, 8), 2.0)
    with pytest.raises(InvalidValueError, match="`rate` must be in"):
        drop_block(Key(0), 1.1, (2, 3, 7, 8), 2)
