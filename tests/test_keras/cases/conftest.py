"""What the cases share."""

import keras
import numpy as np
import pytest

from dropseed import Key, Rate, keep
from dropseed.keras import by_ops, drop_block, drop_connect, layers, route


@pytest.fixture(autouse=True)
def _fresh():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def key():
    """A key whose every part is large: each word has its sign bit set."""
    return Key(2**63 + 2**31 + 7, 2**32 - 5, 2**32 - 2)


# That through `keras.ops` works on any back end, but is slow to compile on JAX, operation by
# operation; there its doctests and the tests of its draws do.
ROUTES = {"torch": ["own", "ops"], "jax": ["own"]}.get(keras.backend.backend(), ["ops"])


@pytest.fixture(params=ROUTES)
def either_route(request, monkeypatch):
    """The back end's own route, and that through `keras.ops`."""
    if request.param == "ops":
        for module in (layers, drop_block, drop_connect):
            monkeypatch.setattr(module, "draws", by_ops)
    else:
        assert route.draws is not by_ops


def array(tensor):
    """A tensor's values as float64, which holds those of any type."""
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")), np.float64)


def tensor(values, dtype="float32"):
    return keras.ops.cast(keras.ops.convert_to_tensor(np.asarray(values, np.float32)), dtype)


def dropped(x, rate, key, shared=(), dtype="float32"):
    """What dropout must give, bit for bit, by the NumPy reference."""
    shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
    product = array(x).astype(np.float32) * np.float32(Rate(rate).scale)
    product = array(tensor(product, dtype))
    return np.where(keep(key, rate, shape), product, 0.0)


class Helpers:
    array, tensor, dropped = staticmethod(array), staticmethod(tensor), staticmethod(dropped)


@pytest.fixture
def see():
    return Helpers


def toy_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 6)).astype(np.float32)
    return x, x[:, :1] * 2


@pytest.fixture
def data():
    return toy_data()
