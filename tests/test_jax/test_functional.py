"""The functions: values by the specification, to the bit, and what they refuse."""

import hashlib

import numpy as np
import pytest

import vectors
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from test_jax.checks import expected, same_bits, values

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")
rates = pytest.importorskip("dropseed.jax.rates")

TYPES = ["float32", "float64", "float16", "bfloat16"]


# ---- the bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_output_and_gradient_are_the_specification_s(each_route, dtype, key):
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(values((5, 21), jnp.dtype(dtype)))
        for rate in (0.1, 0.999, 1.0):
            for scaling in ("inverted", "original", "none"):
                output, back = jax.vjp(
                    lambda x, r=rate, s=scaling: dsj.dropout(key, x, r, scaling=s), x
                )
                want = expected(key, x, rate, scaling=scaling)
                assert same_bits(output, want)
                assert same_bits(back(x)[0], want)


@pytest.mark.parametrize(
    "case", vectors.cases("output_16_bit"), ids=lambda c: f"{c.dtype}-{c.rate}"
)
def test_all_patterns_of_the_16_bit_types(case):
    """Against the published digest; where XLA makes a subnormal number 0, that is put back."""
    x = jax.lax.bitcast_convert_type(jnp.arange(65536, dtype=jnp.uint16), jnp.dtype(case.dtype))
    output = dsj.dropout(case.key, x, case.rate)
    want = expected(case.key, x, case.rate)
    assert same_bits(output, want)
    bits = want.view(np.uint16).copy()
    bits[np.isnan(want.astype(np.float32))] = 0x7E00 if case.dtype == "float16" else 0x7FC0
    assert hashlib.sha256(bits.astype("<u2").tobytes()).hexdigest() == case.sha256


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pytorch_s_output_is_the_same(dtype, key):
    torch = pytest.importorskip("torch", reason="needs dropseed[torch]")
    import dropseed.torch as dst

    x = np.random.default_rng(0).standard_normal((40, 33)).astype(np.float32)
    theirs = torch.from_numpy(x).to(getattr(torch, dtype))
    ours = jnp.asarray(x).astype(dtype)
    for rate in (0.1, 0.5):
        ours_, theirs_ = dsj.dropout(key, ours, rate), dst.functional.dropout(theirs, rate, key=key)
        assert np.array_equal(np.asarray(ours_, np.float32), theirs_.float().numpy())
    ours_ = dsj.alpha(key, ours, 0.3)
    theirs_ = dst.functional.alpha_dropout(theirs, 0.3, key=key)
    limit = 1e-6 if dtype == "float32" else 2e-2  # XLA may fuse the product and the sum
    assert np.abs(np.asarray(ours_, np.float32) - theirs_.float().numpy()).max() < limit


@pytest.mark.parametrize(
    ("noise_shape", "noise"),
    [
        ((None, 1, None), (4, 1, 6)),
        ((4, 5, 1), (4, 5, 1)),
        ((1, 1, 1), (1, 1, 1)),
        ((6,), (1, 1, 6)),
    ],
)
def test_noise_shapes(noise_shape, noise, key):
    x = values((4, 5, 6), np.float32)
    output = dsj.dropout(key, jnp.asarray(x), 0.4, noise_shape=noise_shape)
    assert same_bits(output, expected(key, x, 0.4, noise=noise))


def test_spatial_draws_are_those_of_its_channels(key):
    x = np.ones((4, 3, 3, 5), np.float32)
    kept = np.asarray(dsj.spatial(key, jnp.asarray(x), 0.4))[:, 0, 0] != 0
    assert np.array_equal(kept, keep(key, 0.4, (4, 5)))
    first = dsj.spatial(
        key, jnp.asarray(x.transpose(0, 3, 1, 2)), 0.4, data_format="channels_first"
    )
    assert np.array_equal(np.moveaxis(first, 1, -1), dsj.spatial(key, jnp.asarray(x), 0.4))
    shard = dsj.spatial(key, jnp.asarray(x[2:, ..., 1:3]), 0.4, start=(2, 1), of=(4, 5))
    assert np.array_equal(np.asarray(shard)[:, 0, 0] != 0, kept[2:, 1:3])


def test_paths_have_one_draw_a_sample(key):
    x = jnp.ones((50, 2, 3))
    output = np.asarray(dsj.drop_path(key, x, 0.3))
    assert np.array_equal(output[:, 1, 2] != 0, keep(key, 0.3, 50))
    assert (output == output[:, :1, :1]).all()
    part = dsj.drop_path(key, x[3:9:2], 0.3, start=3, stride=2)
    assert np.array_equal(part, output[3:9:2])


def test_alpha_keeps_mean_and_variance(key):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(100_000), jnp.float32)
    output = np.asarray(dsj.alpha(key, x, 0.2))
    assert abs(output.mean()) < 0.02
    assert abs(output.std() - 1) < 0.02
    fill = output[~keep(key, 0.2, 100_000)][0]
    assert np.array_equal(output != fill, keep(key, 0.2, 100_000))
    locked = np.asarray(dsj.alpha(key, x.reshape(100, 100, 10), 0.2, noise_shape=(None, 1, None)))
    assert np.array_equal((locked != fill).all(1), keep(key, 0.2, (100, 10)))


def test_gaussian_is_its_formula(each_route, key):
    from dropseed import gaussian

    x = jnp.full((70, 3), 2.0)
    want = 2 * (1 + 0.5 * gaussian(key, (70, 3)))
    assert np.abs(dsj.gaussian(key, x, 0.2) - want).max() < 2**-16
    part = dsj.gaussian(key, x[:8], 0.2, start=5, stride=2)
    assert np.abs(part - want[5:21:2]).max() < 2**-16


# ---- what does not drop ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "spatial", "drop_path", "alpha", "gaussian"])
def test_inference_and_rate_zero_return_the_input(name, key):
    function, x = getattr(dsj, name), jnp.full((2, 3), jnp.nan)
    assert function(key, x, 0.5, training=False) is x
    assert function(key, x, 0) is x
    assert not np.asarray(function(key, x, 1)).any()
    traced = jax.jit(lambda rate: function(key, x, rate))
    assert np.isnan(traced(0.0)).all()
    assert not np.asarray(traced(1.0)).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_original_scaling_multiplies_in_inference(dtype, key):
    x = jnp.asarray(np.random.default_rng(0).standard_normal(100), dtype)
    factor = np.float32(1 - Rate(0.1).threshold / 2**32)
    want = (np.asarray(x).astype(np.float32) * factor).astype(x.dtype)
    output = dsj.dropout(key, x, 0.1, training=False, scaling="original")
    assert same_bits(output, want)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_scalars_and_empty_arrays(each_route, shape, key):
    x = jnp.ones(shape)
    for rate in (0.5, 1.0):
        assert same_bits(dsj.dropout(key, x, rate), expected(key, x, rate))
    assert jax.grad(lambda x: dsj.dropout(key, x, 0.5).sum())(x).shape == shape


def test_complex_input(key):
    x = jnp.array([1 + 2j, 3 - 1j, jnp.nan + 1j, 2j] * 4, jnp.complex64)
    kept = keep(key, 0.5, 16)
    output = np.asarray(dsj.dropout(key, x, 0.5))
    assert output.dtype == np.complex64
    assert not output[~kept].any()
    finite = kept & ~np.isnan(np.asarray(x))
    assert np.array_equal(output[finite], 2 * np.asarray(x)[finite])


# ---- rates that are traced -----------------------------------------------------------------------


def thresholds(numbers, dtype):
    """The threshold of each traced rate, 2^32 where everything drops."""

    def one(rate):
        force = rates.strength(rate)
        return force.threshold, force.everything

    low, everything = jax.jit(jax.vmap(one))(jnp.asarray(numbers, dtype))
    return np.asarray(low).astype(np.int64) + (np.asarray(everything).astype(np.int64) << 32)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_traced_rates_are_exact(dtype):
    """At every exponent, at halves between thresholds, and at the ends."""
    with jax.enable_x64(dtype == "float64"):
        generator = np.random.default_rng(0)
        rates_ = np.ldexp(1 + generator.random(20_000), generator.integers(-45, 0, 20_000))
        halves = (np.arange(200) + 0.5) / 2**32
        near = 1 - np.arange(100) / 2**26
        some = np.concatenate([rates_, halves, np.arange(257) / 256, near, [0, 0.1, 1]])
        some = some.clip(0, 1).astype(jnp.dtype(dtype))
        want = [Rate(float(rate)).threshold for rate in some]
        assert np.array_equal(thresholds(some, dtype), want)


def test_float32_rates_are_not_the_double_s():
    assert thresholds([0.1], "float32")[0] == 429496736
    assert Rate(0.1).threshold == 429496730


def test_a_traced_rate_gives_the_mask_of_its_number(each_route, key):
    x = jnp.ones(3000)
    traced = jax.jit(lambda rate: dsj.dropout(key, x, rate))
    for number in (0.1, 0.5, 1 / 3, 0.999):
        rate = np.float32(number)
        want = expected(key, x, rate)
        assert np.allclose(traced(rate), want, rtol=2e-7, atol=0)
        assert np.array_equal(np.asarray(traced(rate)) != 0, want != 0)
    assert traced._cache_size() == 1


@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_traced_rates_in_every_scaling(scaling, training, key):
    x = jnp.arange(1.0, 50)

    def call(rate):
        return dsj.dropout(key, x, rate, training=training, scaling=scaling)

    assert np.allclose(jax.jit(call)(0.25), call(0.25), rtol=2e-7, atol=0)


@pytest.mark.parametrize("rate", [-0.1, 1.1, np.nan, np.inf])
def test_traced_rates_out_of_range_give_nan(rate, key):
    for scaling in ("inverted", "original", "none"):
        call = jax.jit(lambda rate, s=scaling: dsj.dropout(key, jnp.ones(9), rate, scaling=s))
        assert np.isnan(call(rate)).all()
    for name in ("alpha", "gaussian", "drop_block"):
        call = jax.jit(lambda rate, n=name: getattr(dsj, n)(key, jnp.ones((1, 9, 2)), rate))
        assert np.isnan(call(rate)).any()


def test_rates_have_no_gradient(key):
    with pytest.raises(InvalidValueError, match="`rate` must not be differentiated"):
        jax.grad(lambda rate: dsj.dropout(key, jnp.ones(3), rate).sum())(0.5)
    stopped = jax.grad(lambda r: dsj.dropout(key, r * jnp.ones(3), jax.lax.stop_gradient(r)).sum())
    assert np.isfinite(stopped(0.5))


# ---- bad input ---------------------------------------------------------------------------------

NAMES = ["dropout", "spatial", "drop_path", "alpha", "gaussian", "drop_block"]


def x_for(name):
    return jnp.ones((2, 8, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_rates_out_of_range_are_refused(name, training):
    for rate in (-0.1, 1.1, np.inf, np.nan, jnp.float32(1.5)):
        with pytest.raises(InvalidValueError, match=r"`rate` must be in \[0, 1\]"):
            getattr(dsj, name)(Key(0), x_for(name), rate, training=training)
    for rate in ("0.5", None, [0.5], 1j, True, jnp.ones(2), jnp.int32(1), np.array([0.5])):
        with pytest.raises(InvalidTypeError, match="`rate` must be a"):
            getattr(dsj, name)(Key(0), x_for(name), rate, training=training)


@pytest.mark.parametrize("name", NAMES)
def test_input_that_is_no_float_array_is_refused(name):
    for x in ([1.0], None, 3.0, jnp.ones((2, 8, 3), int), jnp.ones((2, 8, 3), bool), "x"):
        with pytest.raises(InvalidTypeError, match="`x` must be a"):
            getattr(dsj, name)(Key(0), x, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_keys_are_refused(name):
    for wrong in (7, None, (1, 2), "key"):
        with pytest.raises(InvalidTypeError, match="`key` must be"):
            getattr(dsj, name)(wrong, x_for(name), 0.5)
    for wrong in (jnp.zeros(4, jnp.int32), jnp.zeros(3, jnp.uint32), jnp.zeros((2, 4), jnp.uint32)):
        with pytest.raises(InvalidValueError, match="`key` must be"):
            getattr(dsj, name)(wrong, x_for(name), 0.5)


@pytest.mark.parametrize("training", [True, False])
def test_unknown_words_are_refused(training):
    x = jnp.ones((2, 8, 3))
    for rate in (0.0, 0.5, jnp.float32(0.5)):
        with pytest.raises(InvalidValueError, match="`scaling`"):
            dsj.dropout(Key(0), x, rate, training=training, scaling="inverse")
    with pytest.raises(InvalidValueError, match="`data_format`"):
        dsj.spatial(Key(0), x, training=training, data_format="NHWC")
    with pytest.raises(InvalidValueError, match="`data_format`"):
        dsj.drop_block(Key(0), x, training=training, data_format="NHWC")


@pytest.mark.parametrize("noise_shape", [(2, 8), (2, 8, 3, 1), (None, 2, None), (0, 1, 1)])
def test_noise_shapes_that_don_t_fit_are_refused(noise_shape):
    for function in (dsj.dropout, dsj.alpha):
        with pytest.raises(InvalidValueError, match="`noise_shape` must broadcast"):
            function(Key(0), jnp.ones((2, 8, 4)), 0.5, noise_shape=noise_shape)


def test_too_few_dimensions_are_refused():
    with pytest.raises(InvalidValueError, match="`x` must be"):
        dsj.drop_path(Key(0), jnp.ones(()), 0.5)
    with pytest.raises(InvalidValueError, match="`x` must be"):
        dsj.spatial(Key(0), jnp.ones(3), 0.5)
    with pytest.raises(InvalidValueError, match="`x` must be"):
        dsj.drop_block(Key(0), jnp.ones((3, 3)), 0.5)


@pytest.mark.parametrize(
    ("shard", "error", "match"),
    [
        ({"start": -1}, InvalidValueError, "`start`"),
        ({"stride": 0}, InvalidValueError, "`stride`"),
        ({"start": (0, 3), "of": (4, 6)}, InvalidValueError, "lead to"),
        ({"of": (4,)}, InvalidValueError, "`of`"),
        ({"start": 2**63}, InvalidValueError, "`start`"),
        ({"start": 1.5}, InvalidTypeError, "`start`"),
        ({"start": (0, 0, 0)}, InvalidValueError, "`start`"),
    ],
)
def test_shards_that_lead_nowhere_are_refused(shard, error, match):
    with pytest.raises(error, match=match):
        dsj.keep(Key(0), 0.5, (4, 4), **shard)
    with pytest.raises(error, match=match):
        dsj.dropout(Key(0), jnp.ones((4, 4)), 0.5, **shard)


def test_traced_starts_must_be_integers():
    with pytest.raises(InvalidTypeError, match="`start` must be integers"):
        jax.jit(lambda start: dsj.keep(Key(0), 0.5, (4, 4), start=start))(1.5)


@pytest.mark.parametrize("noise_shape", [5, (4.0, 1), "41"])
@pytest.mark.parametrize("function", [dsj.dropout, dsj.alpha])
def test_a_noise_shape_of_the_wrong_type(function, noise_shape):
    with pytest.raises(TypeError, match="`noise_shape` must be a sequence of integers and None"):
        function(Key(0), jnp.ones((4, 6)), 0.5, noise_shape=noise_shape)
