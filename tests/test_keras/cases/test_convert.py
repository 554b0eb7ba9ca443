"""Swapping the dropout layers of models that somebody else wrote."""

from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import layers

import dropseed.keras as dsk
from dropseed import Key
from dropseed.mask import site_number


class Block(layers.Layer):
    """Layers as attributes, in lists, dictionaries and tuples."""

    def __init__(self, width=6, **options):
        super().__init__(**options)
        self.width = width
        self.dense = layers.Dense(width)
        self.drop = layers.Dropout(0.1, name="drop")
        self.many = [layers.Dropout(0.2, name="in_list"), layers.Dense(width)]
        self.named = {"a": layers.GaussianDropout(0.3, name="in_dict")}
        self.pair = (layers.AlphaDropout(0.4, name="in_tuple"), self.drop)
        self.number = 3

    def build(self, shape):
        self.dense.build(shape)
        self.many[1].build((None, self.width))

    def call(self, x, training=False):
        x = self.drop(self.dense(x), training=training)
        for layer in (*self.many, *self.named.values(), *self.pair):
            x = layer(x, training=training) if isinstance(layer, layers.Dropout) else layer(x)
        return x

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.width)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Pair(NamedTuple):
    layer: Any
    number: int


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.block = Block(name="block")
        self.inner = keras.Sequential(
            [keras.Input((6,)), layers.Dense(6), layers.Dropout(0.5, seed=3, name="drop")],
            name="inner",
        )
        self.last = layers.Dense(1)

    def call(self, x, training=False):
        return self.last(self.inner(self.block(x, training=training), training=training))


def sequential():
    return keras.Sequential(
        [
            keras.Input((8, 6)),
            layers.Dense(6),
            layers.Dropout(0.1, noise_shape=(None, 1, None), seed=5, name="drop"),
            layers.SpatialDropout1D(0.2, seed=7, name="spatial"),
            layers.AlphaDropout(0.3, name="alpha"),
            layers.GaussianDropout(0.4, name="gaussian", dtype="mixed_bfloat16"),
            layers.Dense(1),
        ],
        name="stack",
    )


def functional():
    inputs = keras.Input((8, 6))
    shared = layers.Dropout(0.2, name="shared")
    x = shared(layers.Dense(6)(shared(inputs)))
    x = layers.MultiHeadAttention(2, 3, dropout=0.25, name="attention")(x, x)
    x = sequential()(x)
    x = Block(name="block")(x)
    x = layers.Reshape((8, 2, 3))(x)
    x = layers.SpatialDropout2D(0.5, data_format="channels_first", name="spatial")(x)
    return keras.Model(inputs, layers.TimeDistributed(layers.Dropout(0.3, name="in"))(x))


def classes(report):
    return {row.name: (row.old, row.new, row.rate) for row in report.replaced}


def ours(model):
    return [
        layer.rate for layer in model._flatten_layers() if isinstance(layer, dsk.base.KeyedLayer)
    ]


def theirs(model):
    kinds = (layers.Dropout, layers.AlphaDropout, layers.GaussianDropout)
    return [layer for layer in model._flatten_layers() if isinstance(layer, kinds)]


def test_sequential():
    model = sequential()
    x = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    report = dsk.convert(model)
    new = report.model
    assert isinstance(new, keras.Sequential)
    assert new.name == "stack"
    assert classes(report) == {
        "drop": ("keras.Dropout", "dropseed.Dropout", 0.1),
        "spatial": ("keras.SpatialDropout1D", "dropseed.SpatialDropout1D", 0.2),
        "alpha": ("keras.AlphaDropout", "dropseed.AlphaDropout", 0.3),
        "gaussian": ("keras.GaussianDropout", "dropseed.GaussianDropout", 0.4),
    }
    assert report.replaced[0].site == site_number("drop") == dsk.sites(new)["drop"]
    assert report.not_replaced == report.notes == ()
    assert new.get_layer("drop").noise_shape == (None, 1, None)
    assert new.get_layer("drop").key == Key(5)
    assert new.get_layer("spatial").key == Key(7)
    assert new.get_layer("gaussian").dtype_policy.name == "mixed_bfloat16"
    assert np.array_equal(new.predict(x, verbose=0), model.predict(x, verbose=0))
    assert len(theirs(model)) == 4  # the original is as it was
    assert theirs(new) == []


def test_functional_with_all_that_can_be_nested(tmp_path):
    model = functional()
    x = np.random.default_rng(0).normal(size=(4, 8, 6)).astype(np.float32)
    report = dsk.convert(model)
    new = report.model
    assert np.array_equal(new.predict(x, verbose=0), model.predict(x, verbose=0))
    assert theirs(new) == []
    rates = [0.2, 0.25, 0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.3, 0.4, 0.5, 0.3]
    assert sorted(ours(new)) == sorted(rates)
    assert sorted(row.rate for row in report.replaced) == sorted(rates)
    names = {row.name for row in report.replaced}
    expected = {"shared", "stack.drop", "stack.spatial", "block.drop", "block.in_list", "spatial"}
    assert expected < names
    assert new.get_layer("spatial").data_format == "channels_first"
    assert len(new.get_layer("shared")._inbound_nodes) == 2
    assert len(theirs(model)) == 12
    new(x, training=True)
    assert new.get_layer("shared").key.step == 2
    assert new.get_layer("block").drop.key.step == 2


def test_a_converted_functional_model_is_saved_and_loaded(tmp_path):
    model = dsk.convert(sequential()).model
    model.get_layer("drop").key = Key(5, step=9)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("drop").key == Key(5, step=9)
    assert theirs(loaded) == []


def test_subclassed_models_change_in_place(see):
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    before = model.predict(x, verbose=0)
    weights = [w.path for w in model.weights]
    report = dsk.convert(model)
    assert report.model is model
    assert np.array_equal(model.predict(x, verbose=0), before)
    assert [w.path for w in model.weights] == weights
    assert theirs(model) == []
    assert {row.name for row in report.replaced} == {
        "block.drop",
        "block.in_list",
        "block.in_dict",
        "block.in_tuple",
        "inner.drop",
    }
    assert model.block.pair[1] is model.block.drop  # what was shared is shared
    assert type(model.block.many[0]) is dsk.Dropout
    assert type(model.block.named["a"]) is dsk.GaussianDropout
    assert type(model.block.pair[0]) is dsk.AlphaDropout
    assert model.inner.layers[1].key == Key(3)
    assert isinstance(model.block.number, int)
    features = keras.Model(model.inner.inputs, model.inner.layers[0].output)
    assert features.predict(x, verbose=0).shape == (4, 6)


def test_a_model_that_has_trained_trains_on_with_the_new_layers(see):
    """What was compiled with the old layers is compiled anew."""
    model = Subclassed()
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    model.compile("sgd", "mse")
    model.fit(x, x[:, :1], verbose=0, batch_size=4)
    iterations = int(model.optimizer.iterations)
    dsk.convert(model)
    model.fit(x, x[:, :1], verbose=0, batch_size=4)
    assert int(model.optimizer.iterations) == iterations + 2
    assert model.block.drop.key.step == 4
    assert model.inner.layers[1].key.step == 2
    if keras.backend.backend() == "torch":
        ours_there = [name for name in model.torch_params if name.endswith("words")]
        assert len(ours_there) == len(ours(model)) == 5


def test_a_graph_without_dropout_is_not_copied():
    inputs = keras.Input((6,))
    model = keras.Model(inputs, Block(name="block")(inputs))
    report = dsk.convert(model)
    assert report.model is model
    assert len(report.replaced) == 4


def test_a_compiled_copy_is_compiled(data):
    model = keras.Sequential([keras.Input((6,)), layers.Dense(1), layers.Dropout(0.5)])
    model.compile("adam", "mae")
    new = dsk.convert(model).model
    new.fit(*data, verbose=0)
    assert new.optimizer.name == "adam"
    assert new.layers[1].key.step == 1


def test_what_is_ours_is_left_alone():
    inner = dsk.Dropout(0.5, name="mine")
    inner.key = Key(1, 2, 3)
    model = keras.Sequential([keras.Input((6,)), inner, layers.Dropout(0.1, name="other")])
    report = dsk.convert(model)
    assert [row.name for row in report.replaced] == ["other"]
    assert "mine" in report.notes[0]
    assert report.model.get_layer("mine").key == Key(1, 2, 3)
    again = dsk.convert(report.model)
    assert again.model is report.model
    assert again.replaced == ()


def test_what_cannot_be_replaced_is_reported():
    class AlwaysOn(layers.Dropout):
        def call(self, inputs):
            return super().call(inputs, training=True)

    class Renamed(layers.Dropout):
        pass

    class MyDropout(layers.Layer):
        def call(self, x):
            return x

    inputs = keras.Input((8, 6))
    x = AlwaysOn(0.1, name="always")(Renamed(0.2, name="renamed")(inputs))
    x = layers.LSTM(6, dropout=0.3, return_sequences=True, name="lstm")(MyDropout(name="my")(x))
    x = layers.GRU(6, recurrent_dropout=0.3, return_sequences=True, name="gru")(x)
    x = layers.SimpleRNN(6, return_sequences=True, name="rnn")(x)
    x = layers.Attention(dropout=0.1, name="attention")([x, x])
    report = dsk.convert(keras.Model(inputs, x))
    assert classes(report) == {
        "renamed": (f"{Renamed.__module__.partition('.')[0]}.Renamed", "dropseed.Dropout", 0.2)
    }
    reasons = {row.name: row.reason for row in report.not_replaced}
    assert reasons["always"] == "its own `call` is not that of keras.layers.Dropout"
    assert reasons["my"] == "its class is not a known one"
    for name in ("lstm", "gru", "attention"):
        assert "is a number inside it, not a layer" in reasons[name]
    assert "rnn" not in reasons
    text = str(report)
    assert "not replaced" in text
    assert "always" in text


def test_a_layer_out_of_reach_is_reported():
    class Hidden(layers.Layer):
        def __init__(self):
            super().__init__()
            self.some = {layers.Dropout(0.1, name="in_set")}
            self.named = Pair(layers.Dropout(0.2, name="in_pair"), 3)

        def call(self, x):
            return x

    report = dsk.convert(Hidden())
    assert [row.name for row in report.replaced] == ["in_pair"]
    (row,) = report.not_replaced
    assert row.name == "in_set"
    assert "neither an attribute" in row.reason


def test_nothing_to_convert():
    report = dsk.convert(keras.Sequential([keras.Input((6,)), layers.Dense(1)]))
    assert report.notes == (
        "there is nothing to convert: no dropout layer was found that can be replaced.",
    )


def test_a_model_that_is_not_built_is_mentioned():
    report = dsk.convert(Subclassed())
    assert len(report.replaced) == 5
    assert "isn't built" in report.notes[-1]


@pytest.mark.parametrize("model", [None, "model", layers.Dropout, [layers.Dropout(0.1)]])
def test_no_model(model):
    with pytest.raises(TypeError, match="`model` must be a Keras model"):
        dsk.convert(model)


def test_a_dropout_layer_by_itself():
    with pytest.raises(ValueError, match=r"`model` is itself a dropout layer, keras\.Dropout"):
        dsk.convert(layers.Dropout(0.1))


def test_a_graph_that_cannot_be_copied_is_unchanged():
    class Needs(layers.Layer):
        def __init__(self, width):
            super().__init__()

        def call(self, x):
            return x

        def get_config(self):
            return {}

    inputs = keras.Input((6,))
    model = keras.Model(inputs, layers.Dropout(0.1)(Needs(3)(inputs)))
    with pytest.raises(ValueError, match=r"layer 'needs', .*Needs, can't be made"):
        dsk.convert(model)
    assert len(theirs(model)) == 1
