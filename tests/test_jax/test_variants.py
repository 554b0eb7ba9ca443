"""DropBlock, DropConnect and attention: against their formulas written out."""

import numpy as np
import pytest

import vectors
from dropseed import Key, Rate, drop_block, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.block import coverage, exact_gamma, gamma_factor, kept_fraction

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")
connect = pytest.importorskip("dropseed.jax.drop_connect")


# ---- DropBlock ---------------------------------------------------------------------------------


def blocks(key, x, rate, block, *, shared=False, exact=False, normalization="sample"):
    """DropBlock of (N, C, *) by the reference's mask."""
    sizes, edges = x.shape[2:], (block,) * (x.ndim - 2)
    covered = coverage(sizes, edges)
    gamma = exact_gamma(rate, covered) if exact else rate * gamma_factor(sizes, edges)
    mask = drop_block(key, gamma, x.shape, block, shared=shared)
    axes = tuple(range(1 if normalization == "sample" else 0, x.ndim))
    kept = mask.sum(axes, keepdims=True)
    factor = np.divide(mask.size / kept.size, kept, where=kept > 0, out=np.zeros(kept.shape))
    if normalization == "expectation":
        factor = 1 / kept_fraction(Rate(gamma).threshold / 2**32, covered)
    return np.where(mask, x * np.asarray(factor, np.float32), np.float32(0))


@pytest.mark.parametrize("shape", [(3, 4, 15), (3, 4, 8, 9), (2, 3, 5, 4, 6)])
@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
@pytest.mark.parametrize(("shared", "exact"), [(False, True), (True, False)])
def test_blocks(shape, normalization, shared, exact, key):
    options = {"shared": shared, "exact": exact, "normalization": normalization}
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    want = blocks(key, x, 0.3, 3, **options)
    first = dsj.drop_block(key, jnp.asarray(x), 0.3, 3, data_format="channels_first", **options)
    assert np.array_equal(first, want)
    last = dsj.drop_block(key, jnp.asarray(np.moveaxis(x, 1, -1)), 0.3, 3, **options)
    assert np.array_equal(np.moveaxis(last, -1, 1), want)
    traced = jax.jit(
        lambda rate: dsj.drop_block(key, x, rate, 3, data_format="channels_first", **options)
    )
    assert (np.isclose(traced(0.3), want, rtol=1e-5) | ((want == 0) != (traced(0.3) == 0))).all()
    assert ((np.asarray(traced(0.3)) == 0) == (want == 0)).mean() > 0.95


@pytest.mark.parametrize("case", vectors.cases("drop_block"), ids=str)
def test_block_vectors(case):
    edges = (case.block_size,) * (len(case.shape) - 2)
    rate = case.gamma / gamma_factor(case.shape[2:], edges)
    if Rate(rate * gamma_factor(case.shape[2:], edges)).threshold != Rate(case.gamma).threshold:
        rate = np.nextafter(rate, 1)
    output = dsj.drop_block(
        case.key,
        jnp.ones(case.shape),
        rate,
        case.block_size,
        data_format="channels_first",
        shared=case.shared,
    )
    assert np.array_equal(np.asarray(output) != 0, case.keep)


def test_blocks_of_one_element_are_dropout(key):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 5, 6)), jnp.float32)
    options = {"data_format": "channels_first", "normalization": "expectation"}
    assert np.array_equal(dsj.drop_block(key, x, 0.3, 1, **options), dsj.dropout(key, x, 0.3))


def test_samples_of_a_larger_batch(key):
    x = jnp.ones((9, 8, 8, 2))
    whole = dsj.drop_block(key, x, 0.3, 3)
    assert np.array_equal(dsj.drop_block(key, x[1::3], 0.3, 3, start=1, stride=3), whole[1::3])
    traced = jax.jit(lambda start: dsj.drop_block(key, x[2:5], 0.3, 3, start=start))
    assert np.array_equal(traced(2), whole[2:5])


@pytest.mark.parametrize("rate", [1.0, jnp.float32(1.0)])
def test_blocks_at_rate_one(rate, key):
    for normalization in ("sample", "batch", "expectation"):
        x = jnp.full((2, 6, 6, 3), jnp.nan)
        options = {"exact": True, "normalization": normalization}
        assert not np.asarray(dsj.drop_block(key, x, rate, 3, **options)).any()
        by_the_paper = dsj.drop_block(key, jnp.ones((9, 6, 6, 3)), rate, 3)
        assert np.asarray(by_the_paper).any()  # its gamma is below 1


def test_what_drops_no_block(key):
    x = jnp.ones((2, 6, 6, 3))
    assert dsj.drop_block(key, x, 0.3, 3, training=False) is x
    assert dsj.drop_block(key, x, 0.0, 3) is x
    for shape in ((0, 6, 6, 3), (2, 6, 6, 0), (2, 0, 6, 3)):
        assert dsj.drop_block(key, jnp.ones(shape), 0.3, 3).shape == shape


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"block_size": 7}, InvalidValueError, "`block_size` must be between 1 and the map"),
        ({"block_size": 0}, InvalidValueError, "`block_size`"),
        ({"block_size": (3, 3, 3)}, InvalidValueError, "`block_size`"),
        ({"block_size": 2.5}, InvalidTypeError, "`block_size`"),
        ({"normalization": "layer"}, InvalidValueError, "`normalization`"),
        ({"axis_name": "a"}, InvalidValueError, "`axis_name`"),
        ({"start": (1, 2)}, InvalidValueError, "`start`"),
        ({"start": -1}, InvalidValueError, "`start`"),
        ({"stride": 0}, InvalidValueError, "`stride`"),
    ],
)
def test_blocks_that_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        dsj.drop_block(Key(0), jnp.ones((2, 6, 6, 3)), 0.3, **{"block_size": 3, **options})


# ---- DropConnect -------------------------------------------------------------------------------


def arrays(*shapes, dtype="float32"):
    generator = np.random.default_rng(0)
    return [jnp.asarray(generator.standard_normal(shape), dtype) for shape in shapes]


def turned(masks):
    """Draws (N, O, I) for a weight (I, O)."""
    return masks.transpose(0, 2, 1)


def test_pytorch_s_layer_has_the_same_masks(key):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'dropseed[torch]'")
    import dropseed.torch as dst

    x, w, b = arrays((5, 12), (12, 7), (7,))
    theirs = [torch.from_numpy(np.array(at)) for at in (x, w.T, b)]
    for options in ({}, {"drop_bias": True}):
        ours = dsj.drop_connect(key, x, w, b, 0.3, **options)
        other = dst.functional.drop_connect_linear(*theirs, 0.3, key=key, **options)
        assert np.allclose(ours, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [2**22, 64])
@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_each_sample_has_weights_of_its_own(at_once, scaling, key, monkeypatch):
    """Also where a part of them exists at a time."""
    monkeypatch.setattr(connect, "AT_ONCE", at_once)
    jax.clear_caches()
    x, w, b = arrays((5, 12), (12, 7), (7,))
    masks = turned(keep(key, 0.3, (9, 7, 12)))[2:7]
    scale = np.float32(Rate(0.3).factors(scaling).training)
    want = np.einsum("ni,nio->no", x, np.where(masks, np.asarray(w) * scale, 0))
    kept = keep(key.fold(1), 0.3, (9, 7))[2:7]
    options = {"scaling": scaling, "start": 2}
    output = dsj.drop_connect(key, x, w, b, 0.3, **options)
    assert np.allclose(output, want + b, rtol=1e-4, atol=1e-5)
    output = dsj.drop_connect(key, x, w, b, 0.3, drop_bias=True, **options)
    assert np.allclose(output, want + np.where(kept, b * scale, 0), rtol=1e-4, atol=1e-5)
    traced = jax.jit(lambda s, r: dsj.drop_connect(key, x, w, b, r, start=s, scaling=scaling))
    assert np.allclose(traced(2, 0.3), want + b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [2**22, 64])
def test_gradients_of_dropped_weights(at_once, key, monkeypatch):
    monkeypatch.setattr(connect, "AT_ONCE", at_once)
    jax.clear_caches()
    x, w, b, gy = arrays((5, 12), (12, 7), (7,), (5, 7))
    masks = turned(keep(key, 0.3, (5, 7, 12))) * np.float32(Rate(0.3).scale)
    gx, gw, gb = jax.vjp(lambda *a: dsj.drop_connect(key, *a, 0.3), x, w, b)[1](gy)
    assert np.allclose(gx, np.einsum("nio,no,io->ni", masks, gy, w), rtol=1e-4, atol=1e-5)
    assert np.allclose(gw, np.einsum("nio,no,ni->io", masks, gy, x), rtol=1e-4, atol=1e-5)
    assert np.allclose(gb, gy.sum(0), rtol=1e-5)


def test_positions_share_their_sample_s_weights(key):
    x, w = arrays((3, 4, 5), (5, 6))
    output = dsj.drop_connect(key, x, w, rate=0.5)
    masks = turned(keep(key, 0.5, (3, 6, 5))) * np.float32(2)
    assert np.allclose(output, np.einsum("nti,nio->nto", x, masks * w), rtol=1e-4, atol=1e-5)
    one = dsj.drop_connect(key, x[0, 0], w, rate=0.5)
    assert np.allclose(one, output[0, 0], rtol=1e-4, atol=1e-5)


def test_one_mask_for_all(key):
    x, w, b = arrays((3, 5), (5, 6), (6,))
    output = dsj.drop_connect(key, x, w, b, 0.5, per_sample=False, drop_bias=True)
    want = x @ dsj.dropout(key, w.T, 0.5).T + dsj.dropout(key.fold(1), b, 0.5)
    assert np.array_equal(output, want)


def test_weights_that_don_t_drop(key):
    x, w, b = arrays((3, 5), (5, 6), (6,))
    for options in ({"training": False}, {"rate": 0.0}):
        assert np.array_equal(dsj.drop_connect(key, x, w, b, **options), x @ w + b)
    original = dsj.drop_connect(key, x, w, b, 0.25, training=False, scaling="original")
    assert np.allclose(original, x @ (0.75 * w) + b, rtol=1e-6)
    assert np.array_equal(dsj.drop_connect(key, x, w, b, 1.0), jnp.broadcast_to(b, (3, 6)))
    assert not dsj.drop_connect(key, x, w, b, 1.0, drop_bias=True).any()
    for sizes in ((0, 5, 6), (3, 0, 6), (3, 5, 0)):
        n, i, o = sizes
        empty = dsj.drop_connect(key, jnp.ones((n, i)), jnp.ones((i, o)), rate=0.5)
        assert empty.shape == (n, o)


def test_halves_are_summed_in_float32(key):
    x, w = jnp.ones((1, 4096), jnp.bfloat16), jnp.ones((4096, 1), jnp.bfloat16)
    output = dsj.drop_connect(key, x, w, rate=0.5)
    assert output.dtype == jnp.bfloat16
    assert float(output[0, 0]) == pytest.approx(2 * keep(key, 0.5, 4096).sum(), rel=2**-8)


def test_weights_that_are_refused():
    x, w, b = arrays((3, 5), (5, 6), (6,))
    for bad in ((x, w.T), (x, w[0]), (jnp.ones(()), w)):
        with pytest.raises(InvalidValueError, match="`x` and `weight` must be"):
            dsj.drop_connect(Key(0), *bad)
    with pytest.raises(InvalidValueError, match="`bias` must have shape"):
        dsj.drop_connect(Key(0), x, w, b[:3])
    with pytest.raises(InvalidTypeError, match="`weight` must have the type of `x`"):
        dsj.drop_connect(Key(0), x, w.astype(jnp.float16))
    with pytest.raises(InvalidTypeError, match="`weight` must be a floating"):
        dsj.drop_connect(Key(0), x, w.astype(int))
    with pytest.raises(InvalidValueError, match="`rate`"):
        dsj.drop_connect(Key(0), x, w, rate=2)
    with pytest.raises(InvalidValueError, match="`start`"):
        dsj.drop_connect(Key(0), x, w, start=(0, 1))


# ---- attention ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((1, 1, 4, 5), bool)}, r"`mask` must broadcast to \(B, N, T, S\)"),
        ({"bias": np.ones((2, 1, 1, 5, 5))}, r"`bias` must broadcast to \(B, N, T, S\)"),
        ({"mask": np.ones((5, 5), int)}, "`mask` must be boolean"),
    ],
)
def test_a_mask_or_bias_that_is_refused(options, message):
    x = jnp.ones((2, 5, 4, 8))
    with pytest.raises((InvalidValueError, InvalidTypeError), match=message):
        dsj.scaled_dot_product_attention(x, x, x, **options)


def qkv(keys=4, dtype="float32"):
    return arrays((2, 5, 4, 8), (2, 7, keys, 8), (2, 7, keys, 8), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", [4, 2, 1])
def test_attention_without_dropout_is_jax_s(heads, dtype):
    q, k, v = qkv(heads, dtype)
    mask = jnp.asarray(np.random.default_rng(1).random((2, 1, 5, 7)) < 0.8)
    (bias,) = arrays((1, 4, 5, 7), dtype=dtype)
    for options in ({}, {"bias": bias, "mask": mask, "scale": 0.3}, {"is_causal": True}):
        ours = dsj.scaled_dot_product_attention(q, k, v, **options)
        theirs = jax.nn.dot_product_attention(q, k, v, **options)
        assert ours.dtype == theirs.dtype
        assert np.allclose(
            ours.astype(float), theirs.astype(float), atol=2e-2 if dtype == "bfloat16" else 1e-5
        )


def test_probabilities_drop_out(key):
    q, k, v = qkv()
    output = dsj.scaled_dot_product_attention(q, k, v, dropout_rate=0.4, dropout_key=key)
    weights = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) * 8**-0.5)
    kept = keep(key, 0.4, (2, 4, 5, 7)) * np.float32(Rate(0.4).scale)
    want = np.einsum("bnts,bsnh->btnh", weights * kept, v)
    assert np.allclose(output, want, atol=1e-5)
    part = dsj.scaled_dot_product_attention(
        q[:, :, 1:3],
        k[:, :, 1:3],
        v[:, :, 1:3],
        dropout_rate=0.4,
        dropout_key=key,
        start=(0, 1, 0, 0),
        of=(2, 4, 5, 7),
    )
    assert np.allclose(part, want[:, :, 1:3], atol=1e-5)
    traced = jax.jit(
        lambda rate: dsj.scaled_dot_product_attention(q, k, v, dropout_rate=rate, dropout_key=key)
    )
    assert np.allclose(traced(0.4), want, atol=1e-5)


def test_pytorch_s_attention_drops_the_same(key):
    torch = pytest.importorskip("torch", reason="needs dropseed[torch]")
    import dropseed.torch as dst

    q, k, v = (torch.from_numpy(np.array(array)).transpose(1, 2) for array in qkv())
    weights = dst.functional.dropout(torch.softmax(q @ k.mT * 8**-0.5, -1), 0.4, key=key)
    theirs = (weights @ v).transpose(1, 2)
    ours = dsj.scaled_dot_product_attention(*qkv(), dropout_rate=0.4, dropout_key=key)
    assert np.allclose(ours, theirs, atol=1e-5)


def test_attention_that_does_not_drop(key):
    q, k, v = qkv()
    plain = dsj.scaled_dot_product_attention(q, k, v)
    for options in ({"dropout_rate": 0.4, "training": False}, {"dropout_key": key}):
        assert np.array_equal(dsj.scaled_dot_product_attention(q, k, v, **options), plain)


def test_attention_that_is_refused(key):
    q, k, v = qkv()
    with pytest.raises(InvalidValueError, match="`dropout_key` must be given"):
        dsj.scaled_dot_product_attention(q, k, v, dropout_rate=0.4)
    for training in (True, False):
        with pytest.raises(InvalidValueError, match="`dropout_rate` must be in"):
            dsj.scaled_dot_product_attention(
                q, k, v, dropout_rate=1.4, dropout_key=key, training=training
            )
    for bad in ((q[0], k, v), (q, k[:, :, :3], v[:, :, :3]), (q, k, v[:, :2]), (q, k[:1], v[:1])):
        with pytest.raises(InvalidValueError, match="`query`, `key` and `value`"):
            dsj.scaled_dot_product_attention(*bad)
    with pytest.raises(InvalidTypeError, match="`value` must be a"):
        dsj.scaled_dot_product_attention(q, k, v.astype(int))
