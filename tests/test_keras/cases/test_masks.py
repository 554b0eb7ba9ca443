"""One key, one mask: every back end and route against the NumPy reference, to the bit."""

import math

import hypothesis.strategies as st
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import dropseed
import dropseed.keras as dsk
import vectors
from dropseed import Key, Rate
from dropseed.keras import by_ops, route

RATES = [0.5, 0.1, 0.3, 1 / 3, 2**-32, 1 - 2**-32, 0.25 + 2**-20, 1.0]


def words(key):
    return dsk.Dropout(0.5, seed=key).seed_generator.next()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rate", [0.5, 0.1, 1.0])
def test_dropout_is_keep(either_route, see, key, rate, dtype):
    x = see.tensor(np.random.default_rng(0).normal(size=(5, 3, 7)) * 100, dtype)
    layer = dsk.Dropout(rate, seed=key, dtype=dtype)
    for step in range(3):  # the step wraps around
        now = Key(key.seed, key.site, (key.step + step) % 2**32)
        y = layer(x, training=True)
        assert keras.backend.standardize_dtype(y.dtype) == dtype
        assert np.array_equal(see.array(y), see.dropped(x, rate, now, dtype=dtype))


@pytest.mark.parametrize("rate", RATES)
def test_every_byte_of_a_threshold_counts(either_route, see, key, rate):
    x = see.tensor(np.ones(70000))
    y = see.array(dsk.Dropout(rate, seed=key)(x, training=True))
    assert np.array_equal(y != 0, dropseed.keep(key, rate, 70000))


def test_pinned_draws():
    """The vectors' own draws, at rates on both sides of each: all four bytes decide."""
    for case in vectors.cases("pins"):
        if case.index < 10**6:
            for rate in case.keeps + case.drops:
                mask = by_ops.keep(words(case.key), Rate(rate), (case.index + 1,))
                kept = bool(keras.ops.convert_to_numpy(mask)[-1])
                assert kept == (rate in case.keeps)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.one_of(st.floats(0, 1), st.sampled_from(RATES)),
    st.lists(st.integers(0, 9), max_size=4),
    st.data(),
)
def test_any_key_rate_and_noise_shape(either_route, see, seed, site, step, rate, shape, data):
    key, shared = Key(seed, site, step), ()
    if shape:
        shared = tuple(data.draw(st.sets(st.integers(0, len(shape) - 1))))
    noise_shape = [1 if axis in shared else None for axis in range(len(shape))]
    x = see.tensor(np.ones(shape))
    y = dsk.Dropout(rate, noise_shape, seed=key)(x, training=True)
    expected = see.dropped(x, rate, key, shared) if rate else np.ones(shape)
    assert np.array_equal(see.array(y), expected)


@pytest.mark.parametrize(
    ("layer", "shape", "shared"),
    [
        (lambda key: dsk.SpatialDropout1D(0.3, seed=key), (4, 5, 3), (1,)),
        (lambda key: dsk.SpatialDropout2D(0.3, "channels_last", seed=key), (4, 5, 2, 3), (1, 2)),
        (lambda key: dsk.SpatialDropout2D(0.3, "channels_first", seed=key), (4, 3, 5, 2), (2, 3)),
        (lambda key: dsk.SpatialDropout3D(0.3, "channels_last", key), (4, 5, 2, 1, 3), (1, 2, 3)),
        (lambda key: dsk.SpatialDropout3D(0.3, "channels_first", key), (4, 3, 5, 2, 1), (2, 3, 4)),
        (lambda key: dsk.DropPath(0.3, seed=key), (40, 5, 2), (1, 2)),
        (lambda key: dsk.MonteCarloDropout(0.3, seed=key), (4, 5), ()),
        (lambda key: dsk.Dropout(0.3, (4, 1, 3), seed=key), (4, 5, 3), (1,)),
        (lambda key: dsk.Dropout(0.3, (3,), seed=key), (4, 5, 3), (0, 1)),
    ],
)
def test_noise_shapes(either_route, see, key, layer, shape, shared):
    x = see.tensor(np.random.default_rng(1).normal(size=shape))
    y = layer(key)(x, training=True)
    assert np.array_equal(see.array(y), see.dropped(x, 0.3, key, shared))


def test_channels_first_and_last_have_the_same_draws(either_route, see, key):
    x = np.random.default_rng(2).normal(size=(3, 4, 6, 6))
    layers = dsk.SpatialDropout2D, lambda rate, **options: dsk.DropBlock2D(rate, 3, **options)
    for make in layers:
        first = make(0.4, data_format="channels_first", seed=key)(see.tensor(x), training=True)
        moved = see.tensor(np.moveaxis(x, 1, -1))
        last = make(0.4, data_format="channels_last", seed=key)(moved, training=True)
        assert np.array_equal(see.array(first), np.moveaxis(see.array(last), -1, 1))


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_alpha(either_route, see, key, rate):
    x = np.random.default_rng(0).normal(size=(6, 50))
    y = see.array(dsk.AlphaDropout(rate, seed=key)(see.tensor(x), training=True))
    saturation, keep = 1.7580993408473766, dropseed.keep(key, rate, x.shape)
    a = ((1 - rate) * (1 + rate * saturation**2)) ** -0.5
    expected = a * np.where(keep, x, -saturation) + a * saturation * rate
    assert np.allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert len(np.unique(y[~keep])) == 1


def test_gaussian(either_route, see, key):
    y = see.array(dsk.GaussianDropout(0.5, seed=key)(see.tensor(np.ones(10000)), training=True))
    assert np.abs(y - 1 - dropseed.gaussian(key, 10000)).max() < 2**-18 + 2**-22


def test_normals_at_the_ends_of_the_range(monkeypatch):
    """Where u is nearly 0 or 2**32, and on each side of the angle's quarters."""
    ends = [0, 1, 2**31 - 1, 2**31, 2**32 - 300, 2**32 - 2, 2**32 - 1]
    turns = [0, 1, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 1]
    u, v = (a.ravel() for a in np.meshgrid(np.array(ends), np.array(turns)))
    patterns = iter([u, v])

    def integers(*_):
        return keras.ops.convert_to_tensor(next(patterns).astype(np.uint32).view(np.int32))

    monkeypatch.setattr(by_ops, "_integers", integers)
    z = keras.ops.convert_to_numpy(by_ops.normals(words(Key(0)), u.shape))
    with np.errstate(divide="ignore"):
        exact = np.sqrt(-2 * np.log((u + 1) / 2**32)) * np.cos(2 * math.pi * v / 2**32)
    assert np.abs(z - exact).max() < 2**-18


@pytest.mark.parametrize("n", [0, 1, 2**31 + 5])
def test_fold(key, n):
    for draws in (by_ops, route.draws):
        folded = draws.fold(words(key), n)
        expected = key.fold(n).words
        assert tuple(int(word) % 2**32 for word in folded) == expected


def test_a_dropped_nan_is_zero(either_route, see):
    x = see.tensor(np.full(8, np.nan))
    y = see.array(dsk.Dropout(0.5, seed=0)(x, training=True))
    assert np.array_equal(np.isnan(y), dropseed.keep(Key(0), 0.5, 8))
    assert (y[~np.isnan(y)] == 0).all()


@pytest.mark.parametrize(
    ("shape", "shared", "normalization"),
    [
        ((3, 4, 9), False, "expectation"),
        ((2, 3, 6, 7), False, "sample"),
        ((2, 3, 6, 7), True, "batch"),
        ((2, 2, 4, 5, 6), True, "sample"),
    ],
)
def test_drop_block(either_route, see, key, shape, shared, normalization):
    rank = len(shape) - 2
    cls = (dsk.DropBlock1D, dsk.DropBlock2D, dsk.DropBlock3D)[rank - 1]
    layer = cls(
        0.3, 2, "channels_first", seed=key, shared=shared, normalization=normalization, exact=True
    )
    y = see.array(layer(see.tensor(np.ones(shape)), training=True))
    gamma, scale = by_ops._gamma(0.3, shape[2:], (2,) * rank, True)
    mask = dropseed.drop_block(key, gamma.value, shape, 2, shared=shared)
    axes = tuple(range(1, rank + 2)) if normalization == "sample" else None
    factor = scale if normalization == "expectation" else 1 / mask.mean(axes, keepdims=True)
    assert np.array_equal(y != 0, mask)
    assert np.allclose(y, mask * factor, rtol=1e-6)


def test_drop_block_leaves_zeros_where_all_is_dropped(either_route, see):
    for normalization in ("sample", "batch", "expectation"):
        layer = dsk.DropBlock1D(1.0, 2, seed=0, normalization=normalization, exact=True)
        assert (see.array(layer(see.tensor(np.ones((2, 5, 3))), training=True)) == 0).all()


@pytest.mark.parametrize(
    ("shape", "drop_bias", "mode"),
    [
        ((5, 4), False, "sample"),
        ((5, 3, 4), True, "sample"),
        ((5, 3, 4), False, "batch"),
        ((5, 4), True, "batch"),
    ],
)
def test_drop_connect_dense(either_route, see, key, shape, drop_bias, mode):
    layer = dsk.DropConnectDense(
        3, "relu", rate=0.4, seed=key, mode=mode, drop_bias=drop_bias, bias_initializer="normal"
    )
    x = np.random.default_rng(3).normal(size=shape)
    y = see.array(layer(see.tensor(x), training=True))
    kernel, bias = (see.array(weight) for weight in layer.weights)
    sizes = (5,) if mode == "sample" else (1,)
    scale = Rate(0.4).scale
    weight = dropseed.keep(key, 0.4, (*sizes, 3, 4)) * kernel.T * scale
    if drop_bias:
        bias = dropseed.keep(key.fold(1), 0.4, (*sizes, 3)) * bias * scale
    bias = np.broadcast_to(bias, (5, 3)).reshape(5, *[1] * (len(shape) - 2), 3)
    weight = np.broadcast_to(weight, (5, 3, 4))
    expected = np.maximum(np.einsum("n...i,noi->n...o", x, weight) + bias, 0)
    assert np.allclose(y, expected, atol=1e-5)


def test_drop_connect_of_a_convolution_has_the_mask_of_pytorchs_weight(either_route, see, key):
    conv = keras.layers.Conv2D(4, (2, 3), use_bias=False)
    layer = dsk.DropConnect(conv, 0.4, seed=key)
    x = see.tensor(np.random.default_rng(4).normal(size=(2, 5, 6, 3)))
    y = see.array(layer(x, training=True))
    kernel = see.array(conv.kernel)
    mask = dropseed.keep(key, 0.4, (4, 3, 2, 3)).transpose(2, 3, 1, 0)
    conv.kernel.assign((kernel * mask * Rate(0.4).scale).astype(np.float32))
    assert np.allclose(y, see.array(conv(x)), atol=1e-5)
