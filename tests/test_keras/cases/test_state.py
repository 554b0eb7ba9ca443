"""The key is a model's state: it is saved, resumed, seeded and compiled."""

import keras
import numpy as np
import pytest

import dropseed
import dropseed.keras as dsk
from dropseed import Key


def build(dropout=dsk.Dropout, **options):
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(16, "relu", kernel_initializer=keras.initializers.GlorotUniform(1)),
            dropout(0.5, name="drop", **options),
            keras.layers.Dense(1, kernel_initializer=keras.initializers.GlorotUniform(2)),
        ]
    )
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, data, epochs, **options):
    return model.fit(*data, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **options)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def seconds(model):
    return [layer.key for layer in model.layers if hasattr(layer, "key")]


@pytest.mark.parametrize("layer", [dsk.Dropout, dsk.MonteCarloDropout])
def test_a_saved_model_goes_on_with_its_masks(data, layer, tmp_path):
    straight = build(layer)
    key = straight.layers[1].key
    fit(straight, data, 2)
    halves = build(layer)
    halves.layers[1].key = key
    fit(halves, data, 1)
    halves.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[1]) is layer
    assert seconds(loaded) == [Key(key.seed, key.site, 3)]
    fit(loaded, data, 1)
    assert same(loaded.get_weights(), straight.get_weights())
    assert seconds(loaded) == seconds(straight)


def test_a_forgotten_step_would_be_seen(data):
    straight, halves = build(seed=1), build(seed=1)
    fit(straight, data, 2)
    fit(halves, data, 1)
    halves.layers[1].key = Key(1)
    fit(halves, data, 1)
    assert not same(halves.get_weights(), straight.get_weights())


def test_weights_carry_the_key(data, tmp_path):
    model = build(seed=2**64 - 3, site="drop")
    fit(model, data, 1)
    model.save_weights(tmp_path / "it.weights.h5")
    other = build()
    other.load_weights(tmp_path / "it.weights.h5")
    assert seconds(other) == seconds(model) == [Key(2**64 - 3, step=3).at("drop")]


def test_keras_and_our_layers_load_each_others_weights(data, tmp_path):
    ours, theirs = build(seed=5), build(keras.layers.Dropout)
    fit(ours, data, 1)
    ours.save_weights(tmp_path / "ours.weights.h5")
    theirs.load_weights(tmp_path / "ours.weights.h5")
    assert same(theirs.get_weights(), ours.get_weights())
    fit(theirs, data, 1)
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    ours.load_weights(tmp_path / "theirs.weights.h5")
    assert same(theirs.get_weights(), ours.get_weights())
    assert seconds(ours) == [Key(5, step=3)]


def test_backup_and_restore(data, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    straight = build(seed=1)
    fit(straight, data, 2)
    stopped = build(seed=1)
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, data, 2, callbacks=[backup, Stop()])
    resumed = build(seed=99)
    fit(resumed, data, 2, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    assert same(resumed.get_weights(), straight.get_weights())
    assert seconds(resumed) == [Key(1, step=6)]


def test_the_step_is_no_weight_and_not_trained():
    layer = dsk.Dropout(0.5)
    assert layer.weights == layer.trainable_variables == []
    (variable,) = layer.non_trainable_variables
    assert variable.dtype.startswith("int")


def test_the_global_seed(data):
    keys = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        keys.append([dsk.Dropout(0.5).key, dsk.Dropout(0.5).key])
    assert keys[0] == keys[1]
    assert len({key.seed for pair in keys[1:] for key in pair}) == 4
    assert max(key.seed for pair in keys for key in pair) > 2**33


def test_every_batch_of_fit_has_the_mask_of_its_step(see):
    """A model that adds up what its dropout gives: the sum over the steps of their masks."""

    class Sum(keras.layers.Layer):
        def build(self, shape):
            self.total = self.add_weight(shape=shape, initializer="zeros", trainable=False)
            self.scale = self.add_weight(shape=(), initializer="ones")

        def call(self, x):
            self.total.assign(self.total + x)
            return x * self.scale

    model = keras.Sequential([keras.Input(batch_shape=(4, 6)), dsk.Dropout(0.5, seed=8), Sum()])
    model.compile("sgd", "mse")
    x = np.ones((20, 6), np.float32)
    model.fit(x, x, batch_size=4, verbose=0)
    masks = [dropseed.keep(Key(8, step=step), 0.5, (4, 6)) for step in range(5)]
    assert np.array_equal(see.array(model.layers[-1].total), 2.0 * sum(masks))


def test_a_model_that_is_compiled_once_has_fresh_masks(data):
    calls = []

    class Spy(keras.layers.Layer):
        def call(self, x):
            calls.append(1)
            return x

    model = keras.Sequential([Spy(), keras.layers.Dense(4), dsk.Dropout(0.5, seed=1)])
    jit = keras.backend.backend() != "torch"
    model.compile("sgd", "mse", jit_compile=jit)
    fit(model, (data[0], data[0][:, :4]), 1)
    traced = len(calls)
    fit(model, (data[0], data[0][:, :4]), 3)
    assert model.layers[-1].key.step == 12
    assert not jit or len(calls) == traced


def test_stateless_calls_leave_the_key_alone(see):
    layer = dsk.Dropout(0.5, seed=1)
    x = see.tensor(np.ones((2, 4)))
    before = [variable.value for variable in layer.non_trainable_variables]
    y, after = layer.stateless_call([], before, x, training=True)
    assert layer.key == Key(1)
    z, _ = layer.stateless_call([], after, x, training=True)
    assert np.array_equal(see.array(y), 2.0 * dropseed.keep(Key(1), 0.5, (2, 4)))
    assert np.array_equal(see.array(z), 2.0 * dropseed.keep(Key(1, step=1), 0.5, (2, 4)))


# ---- one key for a model ---------------------------------------------------------------------


def nested():
    inner = keras.Sequential([keras.Input((6,)), dsk.Dropout(0.5, name="drop")], name="inner")
    inputs = keras.Input((6,))
    x = dsk.DropPath(0.5, name="drop")(inner(inputs))
    connect = dsk.DropConnect(keras.layers.Dense(6), name="connect")
    return keras.Model(inputs, dsk.Dropout(0.5, name="last", site="features.3")(connect(x)))


def test_sites_are_names_in_the_model():
    model = nested()
    names = ["inner.drop", "drop", "connect"]
    expected = {name: dropseed.mask.site_number(name) for name in names}
    expected["last"] = dropseed.mask.site_number("features.3")
    assert dsk.sites(model) == expected
    assert dsk.set_key(model, 2**64 - 1, step=7) == 4
    assert model.get_layer("inner").layers[0].key == Key(2**64 - 1, step=7).at("inner.drop")
    assert model.get_layer("last").key == Key(2**64 - 1, step=7).at("features.3")


def test_set_key_decides_all_masks(see):
    x = see.tensor(np.ones((3, 6)))
    outputs = []
    for _ in range(2):
        model = keras.Sequential([keras.Input((6,)), dsk.Dropout(0.5, name="a")])
        dsk.set_key(model, 1, step=4)
        outputs.append(see.array(model(x, training=True)))
    expected = 2.0 * dropseed.keep(Key(1, step=4).at("a"), 0.5, (3, 6))
    assert np.array_equal(outputs[0], expected)
    assert np.array_equal(outputs[1], expected)


def test_two_layers_with_one_site_are_refused():
    for names, sites in (
        (("a", "a"), (None, None)),
        (("a", "b"), ("x", "x")),
        (("a", "x"), ("x", None)),
    ):
        block = keras.layers.Layer()
        block.layers = [dsk.Dropout(0.5, name=n, site=s) for n, s in zip(names, sites, strict=True)]
        before = [layer.key for layer in block.layers]
        with pytest.raises(ValueError, match="two layers with the same site"):
            dsk.set_key(block, 1)
        assert [layer.key for layer in block.layers] == before


def test_a_shared_layer_counts_once():
    layer = dsk.Dropout(0.5, name="shared")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, layer(layer(inputs)))
    assert dsk.set_key(model, 3) == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "name"),
    [
        (("model", 1), TypeError, "model"),
        ((None, -1), ValueError, "seed"),
        ((None, 2**64), ValueError, "seed"),
        ((None, 0.5), TypeError, "seed"),
        ((None, 1, 2**32), ValueError, "step"),
    ],
)
def test_bad_keys(arguments, kind, name):
    model, *numbers = arguments
    with pytest.raises(kind, match=f"`{name}`"):
        dsk.set_key(model or nested(), *numbers)
