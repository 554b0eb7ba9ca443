"""Rematerialisation finds the same masks, where Keras can do it at all."""

import keras
import numpy as np
import pytest

import dropseed.keras as dsk
from dropseed.keras import route


class Block(keras.layers.Layer):
    def __init__(self, remat, dropout):
        super().__init__()
        self.remat = remat
        self.first = keras.layers.Dense(8, "tanh")
        self.drop = dropout
        self.last = keras.layers.Dense(1, "tanh")

    def build(self, shape):
        self.first.build(shape)
        self.last.build((None, 8))

    def call(self, x, training=False):
        def calls(x):  # twice the same layer: the recomputation needs the right one of its calls
            hidden = self.drop(self.first(x), training=training)
            return self.last(self.drop(hidden, training=training))

        return keras.remat(calls)(x) if self.remat else calls(x)


def trained(data, remat, scope=None):
    keras.utils.set_random_seed(1)
    with keras.RematScope(mode=scope):
        blocks = [Block(remat, dsk.Dropout(0.5, seed=i)) for i in range(2)]
    model = keras.Sequential([keras.Input((6,)), *blocks])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(*data, batch_size=8, shuffle=False, verbose=0)
    return model.get_weights(), [block.drop.key for block in blocks]


def same(weights, expected):
    return all(np.array_equal(a, b) for a, b in zip(weights, expected, strict=True))


if keras.backend.backend() == "torch":

    @pytest.mark.parametrize(("remat", "scope"), [(True, None), (False, "full")])
    def test_a_recomputed_block_has_the_same_masks(data, remat, scope):
        expected, keys = trained(data, False)
        weights, again = trained(data, remat, scope)
        assert same(weights, expected)
        assert again == keys

    def test_other_masks_would_be_seen(data, monkeypatch):
        monkeypatch.setattr(route.draws, "once", lambda _, draw: draw())
        expected, _ = trained(data, False)
        weights, _ = trained(data, True)
        assert not same(weights, expected)


if keras.backend.backend() == "jax":

    def test_jax_refuses_to_recompute_what_changes_state(data):
        with pytest.raises(Exception, match="Encountered an unexpected tracer"):
            trained(data, True)


def test_a_layer_of_its_own_needs_no_rematerialisation(data):
    with keras.RematScope(mode="full"):
        drop = dsk.Dropout(0.5, seed=1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1), drop])
    model.compile("sgd", "mse")
    model.fit(*data, batch_size=8, verbose=0)
    assert drop.key.step == 3
