"""One key, one mask: every framework that is installed against the reference, to the bit."""

from importlib.util import find_spec

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from dropseed import Key, Rate, keep

RATES = [0.0, 0.1, 0.25, 0.5, 1 / 3, 2**-32, 1 - 2**-32, 0.5 + 2**-20, 1.0]


def by_torch(key, rate, shape):
    """The PyTorch front end on a CPU tensor: the Numba kernel."""
    import torch

    import dropseed.torch as dst

    return dst.functional.dropout(torch.ones(shape), rate, key=key).numpy() != 0


def by_torch_operations(key, rate, shape):
    """The kernel of plain torch operations, for any device."""
    import dropseed.torch as dst
    from dropseed.kernels import eager

    return eager.keep(dst.key_tensor(key), Rate(rate).threshold, shape).numpy()


def by_jax(key, rate, shape):
    """The JAX front end, eager: the Numba kernel as a foreign function."""
    import dropseed.jax as dsj

    return np.asarray(dsj.dropout(key, np.ones(shape, np.float32), rate)) != 0


def by_jax_compiled(key, rate, shape):
    """... with a traced key, in a compiled function."""
    import jax

    import dropseed.jax as dsj

    def draw(words):
        return dsj.keep(words, rate, shape)

    return np.asarray(jax.jit(draw)(dsj.key(key)))


def by_keras(key, rate, shape):
    """A Keras layer on the back end of this process."""
    import keras

    import dropseed.keras as dsk

    ones = keras.ops.ones(shape)
    return keras.ops.convert_to_numpy(dsk.Dropout(rate, seed=key)(ones, training=True)) != 0


def by_keras_operations(key, rate, shape):
    """The kernel of plain Keras operations, for a back end without another."""
    import keras

    from dropseed.keras import by_ops
    from dropseed.keras.state import KeyState

    return keras.ops.convert_to_numpy(by_ops.keep(KeyState(key).next(), Rate(rate), shape))


def needs(package, extra):
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs {package}: pip install 'dropseed[{extra}]'")


FRAMEWORKS = [
    pytest.param(by_torch, marks=needs("torch", "torch")),
    pytest.param(by_torch_operations, marks=needs("torch", "torch")),
    pytest.param(by_jax, marks=needs("jax", "jax")),
    pytest.param(by_jax_compiled, marks=needs("jax", "jax")),
    pytest.param(by_keras, marks=needs("keras", "keras")),
    pytest.param(by_keras_operations, marks=needs("keras", "keras")),
]
KEYS = st.builds(
    Key, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize("draw", FRAMEWORKS)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=KEYS, rate=st.one_of(st.floats(0, 1), st.sampled_from(RATES)), shape=SHAPES)
def test_any_key_rate_and_shape(draw, key, rate, shape):
    assert np.array_equal(draw(key, rate, shape), keep(key, rate, shape))


@pytest.mark.parametrize("draw", FRAMEWORKS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=KEYS, rate=st.sampled_from(RATES), shape=SHAPES, data=st.data())
def test_a_shard_is_a_part_of_it(draw, key, rate, shape, data):
    """What a rank holds of a larger array has the draws of its place, in each framework."""
    start = [data.draw(st.integers(0, size - 1)) for size in shape]
    stride = [data.draw(st.integers(1, 3)) for _ in shape]
    part = tuple(slice(*given, s) for *given, s in zip(start, shape, stride, strict=True))
    mine = draw(key, rate, shape)[part]
    assert np.array_equal(mine, keep(key, rate, mine.shape, start=start, stride=stride, of=shape))


@needs("jax", "jax")
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=KEYS, rate=st.sampled_from(RATES), shape=SHAPES, data=st.data())
def test_a_shard_that_jax_draws_alone(key, rate, shape, data):
    import dropseed.jax as dsj

    start = [data.draw(st.integers(0, 9)) for _ in shape]
    stride = [data.draw(st.integers(1, 3)) for _ in shape]
    whole = [s + (n - 1) * t + 1 for s, n, t in zip(start, shape, stride, strict=True)]
    shard = {"start": start, "stride": stride, "of": whole}
    assert np.array_equal(dsj.keep(key, rate, shape, **shard), keep(key, rate, shape, **shard))


@pytest.mark.parametrize("draw", FRAMEWORKS)
def test_one_bit_of_a_key_is_another_mask(draw):
    """The control: a wrong key is seen."""
    for other in (Key(1, 2, 3), Key(0, 3, 3), Key(0, 2, 4), Key(2**32, 2, 3)):
        assert not np.array_equal(draw(other, 0.5, (64,)), keep(Key(0, 2, 3), 0.5, 64))
