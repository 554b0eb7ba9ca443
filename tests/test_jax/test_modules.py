"""The modules of Flax NNX and of Equinox: their libraries' switches, our masks."""

import inspect

import numpy as np
import pytest

from dropseed import Key, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from test_jax.checks import expected

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")

NAMES = ["Dropout", "SpatialDropout", "DropPath", "AlphaDropout", "GaussianDropout", "DropBlock"]
KEY = Key(3, 4, 5)
WORDS = dsj.key(KEY)


# ---- Flax NNX ----------------------------------------------------------------------------------


@pytest.fixture
def flax():
    """`flax.nnx`, and our modules for it."""
    theirs = pytest.importorskip("flax.nnx", reason="needs flax")
    return theirs, dsj.nnx


def nnx_layer(flax, name, rate=0.5, **options):
    extra = {"block_size": 3} if name == "DropBlock" else {}
    return getattr(flax[1], name)(rate, **extra, **options)


def test_nnx_arguments_are_flax_s(flax):
    theirs, ours = flax
    for method in ("__init__", "__call__"):
        one, other = (
            {
                p.name: p.default
                for p in inspect.signature(getattr(m.Dropout, method)).parameters.values()
            }
            for m in (theirs, ours)
        )
        assert list(one) == list(other)
        assert {n: d for n, d in one.items() if n != "broadcast_dims"} == {
            n: d for n, d in other.items() if n != "broadcast_dims"
        }


def test_nnx_dropout_is_the_function(flax):
    x = jnp.ones((4, 5, 6))
    layer = flax[1].Dropout(0.3, broadcast_dims=(-2,))
    output = layer(x, rngs=WORDS)
    assert np.array_equal(output, expected(KEY, x, 0.3, noise=(4, 1, 6)))
    assert np.array_equal(layer(x, rngs=KEY), output)


@pytest.mark.parametrize("name", NAMES)
def test_nnx_keys_come_from_the_stream(flax, name):
    nnx, _ = flax
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 6)), jnp.float32)
    layer, twin = (nnx_layer(flax, name, rngs=nnx.Rngs(0, dropout=1)) for _ in range(2))
    first, second = layer(x), layer(x)
    assert not np.array_equal(first, second)
    assert np.array_equal(twin(x), first)
    stream = nnx.Rngs(0, dropout=1)["dropout"].fork()
    assert np.array_equal(layer(x, rngs=stream()), first)
    assert np.array_equal(layer(x, rngs=nnx.Rngs(dropout=9)), layer(x, rngs=nnx.Rngs(dropout=9)))


@pytest.mark.parametrize("name", NAMES)
def test_nnx_switches(flax, name):
    nnx, _ = flax

    class Net(nnx.Module):
        def __init__(self):
            self.drop = nnx_layer(flax, name, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.drop(x)

    x, net = jnp.ones((4, 8, 6)), Net()
    assert not np.array_equal(net(x), x)
    net.eval()
    assert net(x) is x
    assert not np.array_equal(net.drop(x, deterministic=False), x)
    net.train()
    assert net.drop(x, deterministic=True) is x
    assert not np.array_equal(net(x), x)
    assert nnx.view(net, deterministic=True)(x) is x
    assert not np.array_equal(net(x), x)


def test_nnx_under_jit_and_grad(flax):
    nnx, ours = flax

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(6, 6, rngs=rngs)
            self.drop = ours.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.linear(x))

    net, x = Net(nnx.Rngs(0)), jnp.ones((4, 6))

    @nnx.jit
    def step(net, x):
        return nnx.value_and_grad(lambda net: net(x).sum())(net)

    losses = {float(step(net, x)[0]) for _ in range(4)}
    assert len(losses) == 4  # the stream goes on through jit


def test_nnx_bad_input(flax):
    _, ours = flax
    for name in NAMES:
        with pytest.raises(InvalidValueError, match="`rate`"):
            nnx_layer(flax, name, 1.5)
        with pytest.raises(InvalidTypeError, match="`rngs`"):
            nnx_layer(flax, name, rngs=3)
        with pytest.raises(InvalidValueError, match="`rngs` must be given"):
            nnx_layer(flax, name)(jnp.ones((2, 8, 3)))
        with pytest.raises(InvalidTypeError, match="`rngs`"):
            nnx_layer(flax, name)(jnp.ones((2, 8, 3)), rngs="dropout")
    with pytest.raises(InvalidValueError, match="`deterministic` must be given"):
        ours.Dropout(0.5, deterministic=None)(jnp.ones(3), rngs=WORDS)
    with pytest.raises(InvalidValueError, match="`data_format`"):
        ours.SpatialDropout(0.5, data_format="NHWC")
    with pytest.raises(InvalidValueError, match="`normalization`"):
        ours.DropBlock(0.5, normalization="layer")
    with pytest.raises(InvalidValueError, match="`rngs` must be given"):
        ours.DropBlock(1.0, 3)(jnp.ones((2, 8, 3)))
    assert not ours.DropBlock(1.0, 3, exact=True)(jnp.ones((2, 8, 3))).any()
    assert not ours.Dropout(1.0)(jnp.ones(3)).any()


def test_nnx_drop_connect(flax):
    nnx, ours = flax
    layer = ours.DropConnectLinear(4, 3, 0.5, rngs=nnx.Rngs(0))
    x, kernel = jnp.ones((2, 4)), layer.linear.kernel[...]
    want = dsj.drop_connect(KEY, x, kernel, layer.linear.bias[...], 0.5)
    assert np.array_equal(layer(x, rngs=KEY), want)
    layer.eval()
    assert np.array_equal(layer(x), layer.linear(x))


# ---- Equinox -----------------------------------------------------------------------------------


@pytest.fixture
def eqx():
    """`equinox`, and our modules for it."""
    theirs = pytest.importorskip("equinox", reason="needs equinox")
    return theirs, dsj.equinox


def eqx_layer(eqx, name, p=0.5, **options):
    return getattr(eqx[1], name)(p, *([3] if name == "DropBlock" else []), **options)


def test_equinox_dropout_is_the_function(eqx):
    x = jnp.ones((5, 6))
    layer = eqx[1].Dropout(0.3)
    assert np.array_equal(layer(x, key=WORDS), expected(KEY, x, 0.3))
    assert np.array_equal(layer(x, key=jax.random.key(1)), dsj.dropout(jax.random.key(1), x, 0.3))
    keys = jax.random.split(jax.random.key(0), 5)
    rows = jax.vmap(lambda x, key: layer(x, key=key))(x, keys)
    assert np.array_equal(rows[3], dsj.dropout(keys[3], x[3], 0.3))


@pytest.mark.parametrize("name", NAMES)
def test_equinox_switches(eqx, name):
    theirs, _ = eqx
    x, layer = jnp.ones((4, 8)), eqx_layer(eqx, name)
    if name != "DropPath":  # which keeps or drops all of it
        assert not np.array_equal(layer(x, key=WORDS), x)
    assert layer(x, inference=True) is x
    off = theirs.nn.inference_mode(layer)
    assert off(x) is x
    assert off.inference is True
    assert not np.array_equal(off(x, key=WORDS, inference=False), x)
    assert eqx_layer(eqx, name, inference=True)(x) is x
    assert eqx_layer(eqx, name, 0.0)(x) is x
    options = {"exact": True} if name == "DropBlock" else {}
    assert not np.asarray(eqx_layer(eqx, name, 1.0, **options)(x)).any()


def test_equinox_rates_may_be_arrays(eqx):
    theirs, ours = eqx
    layer = ours.Dropout(jnp.float32(0.5))
    other = theirs.tree_at(lambda layer: layer.p, layer, jnp.float32(0.25))
    call = theirs.filter_jit(lambda layer, x: layer(x, key=WORDS))
    for one, rate in ((layer, 0.5), (other, 0.25)):
        assert np.array_equal(call(one, jnp.ones(50)), expected(KEY, np.ones(50, np.float32), rate))
    slope = theirs.filter_grad(lambda layer, x: layer(x, key=WORDS).sum())(layer, jnp.ones(50))
    assert float(slope.p) == 0


def test_equinox_bad_input(eqx):
    for name in NAMES:
        with pytest.raises(InvalidValueError, match="`p`"):
            eqx_layer(eqx, name, 1.5)
        with pytest.raises(InvalidTypeError, match="`p`"):
            eqx_layer(eqx, name, "half")
        with pytest.raises(InvalidValueError, match="`key` must be given"):
            eqx_layer(eqx, name)(jnp.ones((4, 8)))


def test_equinox_spatial_and_connect(eqx):
    theirs, ours = eqx
    output = ours.SpatialDropout(0.5)(jnp.ones((50, 3, 3)), key=WORDS)
    assert np.array_equal(output[:, 1, 2] != 0, keep(KEY, 0.5, (1, 50))[0])
    linear = theirs.nn.Linear(4, 3, key=jax.random.key(0))
    layer = ours.DropConnectLinear(linear, 0.5)
    x = jnp.ones(4)
    masks = keep(KEY, 0.5, (1, 3, 4))[0] * np.float32(2)
    assert np.allclose(layer(x, key=WORDS), (masks * linear.weight) @ x + linear.bias, rtol=1e-5)
    assert np.array_equal(layer(x, inference=True), linear(x))
