"""JAX's transformations: the same masks under all of them, and nothing of the input's size kept."""

import numpy as np
import pytest

from dropseed import Key, keep
from test_jax.checks import expected

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")
saved_residuals = pytest.importorskip("jax._src.ad_checkpoint").saved_residuals

X = np.random.default_rng(0).standard_normal((6, 35)).astype(np.float32)
KEY = Key(7, 8, 9)
WORDS = dsj.key(KEY)


def drop(x, rate=0.3):
    return dsj.dropout(KEY, x, rate)


WANT = expected(KEY, X, 0.3)
SLOPE = expected(KEY, np.ones_like(X), 0.3)


@pytest.mark.usefixtures("each_route")
def test_first_derivatives():
    x = jnp.asarray(X)
    output, tangent = jax.jvp(drop, (x,), (x,))
    assert np.array_equal(output, WANT)
    assert np.array_equal(tangent, WANT)
    assert np.array_equal(jax.grad(lambda x: drop(x).sum())(x), SLOPE)
    assert np.array_equal(jax.jit(jax.grad(lambda x: drop(x).sum()))(x), SLOPE)
    assert np.array_equal(jax.linearize(drop, x)[1](x), WANT)
    transposed = jax.linear_transpose(lambda x: jax.linearize(drop, X)[1](x), x)(x)[0]
    assert np.array_equal(transposed, WANT)
    diagonal = np.diag(SLOPE[0])
    for jacobian in (jax.jacfwd, jax.jacrev):
        assert np.array_equal(jacobian(drop)(x[:1])[0, :, 0], diagonal)


def test_second_derivatives():
    x = jnp.asarray(X[0])

    def cube(x):
        return (drop(x) ** 3).sum()

    slope = np.asarray(SLOPE[0])
    want = np.diag(6 * WANT[0] * slope**2)
    for hessian in (jax.hessian(cube), jax.jacrev(jax.grad(cube)), jax.jacfwd(jax.jacfwd(cube))):
        assert np.allclose(hessian(x), want, rtol=1e-6)


def test_numerical_derivatives():
    from jax.test_util import check_grads

    for function in (drop, lambda x: dsj.alpha(KEY, x, 0.3), lambda x: dsj.gaussian(KEY, x, 0.3)):
        check_grads(function, (jnp.asarray(X),), order=2, modes=["fwd", "rev"], atol=0.1, rtol=0.1)


FUNCTIONS = {
    "dropout": drop,
    "alpha": lambda x: dsj.alpha(KEY, x, 0.3),
    "gaussian": lambda x: dsj.gaussian(KEY, x, 0.3),
    "spatial": lambda x: dsj.spatial(KEY, x.reshape(50, 2, 100), 0.3),
    "drop_path": lambda x: dsj.drop_path(KEY, x, 0.3),
    "drop_block": lambda x: dsj.drop_block(KEY, x.reshape(5, 10, 10, 20), 0.3, 3),
    "traced rate": lambda x: jax.jit(lambda x, rate: dsj.dropout(KEY, x, rate))(x, 0.3),
    "batched keys": lambda x: jax.vmap(drop_with)(jnp.stack([WORDS] * 100), x),
    "jit": jax.jit(drop),
    "checkpoint": jax.checkpoint(drop),
}


def drop_with(words, x, rate=0.3):
    return dsj.dropout(words, x, rate)


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_nothing_of_the_input_s_size_is_kept(each_route, name):
    x = jnp.ones((100, 100))
    kept = saved_residuals(FUNCTIONS[name], x)
    sizes = {str(aval): aval.size * aval.dtype.itemsize for aval, _ in kept}
    assert max(sizes.values(), default=0) <= 100 * 16, sizes


def test_what_is_kept_is_seen():
    x = jnp.ones((100, 100))
    mask = jnp.asarray(keep(KEY, 0.3, (100, 100)))
    kept = saved_residuals(lambda x: jnp.where(mask, x * jnp.sin(x), 0), x)
    assert max(aval.size for aval, _ in kept) == x.size


@pytest.mark.usefixtures("each_route")
def test_vmap():
    x, keys = jnp.asarray(X), [Key(i, 5, 6) for i in range(6)]
    words = jnp.stack([dsj.key(key) for key in keys])
    one = keep(KEY, 0.3, 35)
    assert np.array_equal(np.asarray(jax.vmap(drop)(x)) != 0, np.broadcast_to(one, X.shape))
    own = np.stack([expected(key, row, 0.3) for key, row in zip(keys, X, strict=True)])
    assert np.array_equal(jax.vmap(drop_with)(words, x), own)
    assert np.array_equal(jax.vmap(drop_with, (0, 1), 1)(words, x.T), own.T)
    assert np.array_equal(jax.vmap(drop_with, (0, None))(words, x)[2], expected(keys[2], X, 0.3))
    both = jax.vmap(jax.vmap(drop_with, (None, 0)), (0, None))(words[:3], x)
    assert np.array_equal(both[2, 4], expected(keys[2], X[4], 0.3))
    grid = jax.vmap(jax.vmap(drop_with))(words.reshape(2, 3, 4), x.reshape(2, 3, 35))
    assert np.array_equal(grid.reshape(6, 35), own)
    slopes = jax.grad(lambda x: jax.vmap(drop_with)(words, x).sum())(x)
    inside = jax.vmap(jax.grad(lambda x, w: drop_with(w, x).sum()))(x, words)
    assert np.array_equal(slopes, inside)
    assert np.array_equal(np.asarray(slopes) != 0, own != 0)


def test_vmap_over_rates_and_steps():
    rates = jnp.array([0.0, 0.1, 0.5, 1.0])
    outputs = jax.vmap(lambda rate: dsj.dropout(KEY, jnp.asarray(X), rate))(rates)
    for rate, output in zip(rates, outputs, strict=True):
        assert np.array_equal(np.asarray(output) != 0, keep(KEY, float(rate), X.shape))
    steps = jax.vmap(lambda step: dsj.keep(dsj.key(7, "a", step), 0.5, 40))(jnp.arange(3))
    for step in range(3):
        assert np.array_equal(steps[step], keep(Key(7, 0, step).at("a"), 0.5, 40))


@pytest.mark.usefixtures("each_route")
def test_scan_over_steps():
    def layer(x, step):
        y = dsj.dropout(dsj.key(3, 1, step), x, 0.1)
        return y, y

    _, outputs = jax.lax.scan(layer, jnp.asarray(X), jnp.arange(3))
    x = X
    for step in range(3):
        x = expected(Key(3, 1, step), x, 0.1)
        assert np.array_equal(outputs[step], x)
    gradient = jax.grad(lambda x: jax.lax.scan(layer, x, jnp.arange(3))[0].sum())(jnp.asarray(X))
    assert np.array_equal(np.asarray(gradient) != 0, x != 0)


def test_checkpoint_draws_the_same_mask_again():
    @jax.checkpoint
    def block(x, w):
        return jnp.tanh(drop(jnp.sin(x @ w)))  # what is saved behind the dropout shows a wrong mask

    w = jnp.asarray(np.random.default_rng(1).standard_normal((35, 35)), jnp.float32)
    plain = jax.grad(lambda x: jnp.tanh(drop(jnp.sin(x @ w))).sum())(jnp.asarray(X))
    assert np.allclose(jax.grad(lambda x: block(x, w).sum())(jnp.asarray(X)), plain, rtol=1e-5)


def test_one_program_serves_all_keys_and_steps():
    step = jax.jit(
        lambda seed, site, step, rate: dsj.dropout(dsj.key(seed, site, step), jnp.ones(50), rate)
    )
    for seed, site, number in ((0, 0, 0), (5, 2, 3), (2**31 - 1, 7, 2**31 - 1)):
        output = step(seed, site, number, 0.5)
        assert np.array_equal(np.asarray(output) != 0, keep(Key(seed, site, number), 0.5, 50))
    assert step._cache_size() == 1


def test_while_loops_and_conditions():
    def body(state):
        i, x = state
        return i + 1, jax.lax.cond(
            i % 2 == 0, lambda x: dsj.dropout(dsj.key(1, 0, i), x, 0.2), lambda x: x, x
        )

    _, output = jax.lax.while_loop(lambda state: state[0] < 3, body, (0, jnp.asarray(X)))
    want = expected(Key(1, 0, 2), expected(Key(1), X, 0.2), 0.2)
    assert np.array_equal(output, want)


def test_without_jit():
    with jax.disable_jit():
        assert np.array_equal(drop(jnp.asarray(X)), WANT)
        assert np.array_equal(jax.grad(lambda x: drop(x).sum())(jnp.asarray(X)), SLOPE)


def test_x64_changes_no_mask():
    with jax.enable_x64(True):
        x = jnp.asarray(X)
        assert np.array_equal(drop(x), WANT)
        traced = jax.jit(lambda rate: dsj.keep(KEY, rate, 3000))
        assert np.array_equal(traced(0.1), keep(KEY, 0.1, 3000))  # a double's threshold
        start = jax.jit(lambda start: dsj.keep(KEY, 0.1, 30, start=start))
        assert np.array_equal(start(2**40 + 5), keep(KEY, 0.1, 30, start=2**40 + 5))
        assert np.array_equal(dsj.key(2**63 + 1, 2, 3), Key(2**63 + 1, 2, 3).words)
        seeds = jax.jit(dsj.key)(np.uint64(2**63 + 1))
        assert np.array_equal(seeds, Key(2**63 + 1).words)
