"""Keys as JAX carries them."""

import numpy as np
import pytest

import vectors
from dropseed import Key, keep
from dropseed.errors import InvalidTypeError, InvalidValueError

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")


def test_words_of_any_spelling():
    want = Key(2**40 + 7, 3, 4).words
    pair = jnp.array([7, 256], jnp.uint32)
    for words in (
        dsj.key(2**40 + 7, 3, 4),
        dsj.key(Key(2**40 + 7, 3, 4)),
        dsj.key(pair, jnp.int32(3), np.uint32(4)),
        jax.jit(dsj.key)(pair, 3, 4),
    ):
        assert words.dtype == jnp.uint32
        assert tuple(words.tolist()) == want
    assert tuple(dsj.key(0, "features.3").tolist()) == Key(0).at("features.3").words
    assert tuple(dsj.key(2**64 - 1).tolist()) == Key(2**64 - 1).words


@pytest.mark.parametrize("case", vectors.cases("fold"))
def test_folds(case):
    child = dsj.fold(case.key, case.n)
    assert tuple(child.tolist()) == Key(case.seed_out, case.site, case.step).words
    assert tuple(dsj.fold(child, 1).tolist()) == case.key.fold(case.n).fold(1).words


def test_traced_folds():
    folds = jax.vmap(lambda n: dsj.fold(Key(5, 6, 7), n))(jnp.arange(4))
    assert [tuple(row) for row in folds.tolist()] == [Key(5, 6, 7).fold(n).words for n in range(4)]


def test_a_key_of_jax_stands_for_its_first_bits():
    typed, raw = jax.random.key(3), jax.random.PRNGKey(3)
    low, high = jax.random.bits(typed, (2,), jnp.uint32).tolist()
    seed = low + 2**32 * high
    for key in (typed, raw):
        assert np.array_equal(dsj.keep(key, 0.5, 100), keep(Key(seed), 0.5, 100))
    assert tuple(dsj.key(typed, "a", 2).tolist()) == Key(seed, 0, 2).at("a").words
    under_jit = jax.jit(lambda key: dsj.keep(key, 0.5, 100))(typed)
    assert np.array_equal(under_jit, keep(Key(seed), 0.5, 100))
    keys = jax.random.split(typed, 3)
    rows = jax.vmap(lambda key: dsj.keep(key, 0.5, 100))(keys)
    assert np.array_equal(rows[1], dsj.keep(keys[1], 0.5, 100))


def test_other_generators_of_jax():
    key = jax.random.key(3, impl="rbg")
    low, high = jax.random.bits(key, (2,), jnp.uint32).tolist()
    assert np.array_equal(dsj.keep(key, 0.5, 9), keep(Key(low + 2**32 * high), 0.5, 9))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((-1,), InvalidValueError, "`seed`"),
        ((2**64,), InvalidValueError, "`seed`"),
        ((0, 2**32), InvalidValueError, "`site`"),
        ((0, 0, 2**32), InvalidValueError, "`step`"),
        ((0, 0, -1), InvalidValueError, "`step`"),
        ((1.5,), InvalidTypeError, "`seed`"),
        (("seed",), InvalidTypeError, "`seed`"),
        ((0, 0, "step"), InvalidTypeError, "`step`"),
        ((jnp.float32(1),), InvalidTypeError, "`seed`"),
        ((jnp.zeros(3, jnp.uint32),), InvalidTypeError, "`seed`"),
        ((0, jnp.zeros(2, jnp.int32)), InvalidTypeError, "`site`"),
        ((0, jnp.int32(-1)), InvalidValueError, "`site`"),
        ((Key(0), 1), InvalidValueError, "`site`"),
        ((True,), InvalidTypeError, "`seed`"),
    ],
)
def test_what_is_no_key(arguments, error, match):
    with pytest.raises(error, match=match):
        dsj.key(*arguments)


def test_what_can_t_be_folded():
    for n, error in ((-1, InvalidValueError), (2**60, InvalidValueError), (1.5, InvalidTypeError)):
        with pytest.raises(error, match="`n`"):
            dsj.fold(Key(0), n)
    with pytest.raises(InvalidTypeError, match="`key`"):
        dsj.fold(3, 1)
    with pytest.raises(InvalidValueError, match="single key"):
        dsj.keep(jax.random.split(jax.random.key(0), 2), 0.5, 3)
