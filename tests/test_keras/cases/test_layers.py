"""When the layers drop, how they are saved, and what they refuse."""

import json

import keras
import numpy as np
import pytest

import dropseed
import dropseed.keras as dsk
from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError

LAYERS = {
    "Dropout": (lambda **options: dsk.Dropout(0.4, (None, 1, None, None), **options), 4),
    "AlphaDropout": (lambda **options: dsk.AlphaDropout(0.4, **options), 4),
    "GaussianDropout": (lambda **options: dsk.GaussianDropout(0.4, **options), 4),
    "DropPath": (lambda **options: dsk.DropPath(0.4, **options), 4),
    "SpatialDropout1D": (lambda **options: dsk.SpatialDropout1D(0.4, **options), 3),
    "SpatialDropout2D": (lambda **options: dsk.SpatialDropout2D(0.4, **options), 4),
    "SpatialDropout3D": (lambda **options: dsk.SpatialDropout3D(0.4, **options), 5),
    "DropBlock1D": (lambda **options: dsk.DropBlock1D(0.4, 2, **options), 3),
    "DropBlock2D": (lambda **options: dsk.DropBlock2D(0.4, (2, 1), **options), 4),
    "DropBlock3D": (lambda **options: dsk.DropBlock3D(0.4, 2, **options), 5),
    "DropConnectDense": (lambda **options: dsk.DropConnectDense(3, rate=0.4, **options), 4),
    "DropConnect": (lambda **options: dsk.DropConnect(keras.layers.Dense(3), 0.4, **options), 4),
}
each_layer = pytest.mark.parametrize(("make", "rank"), LAYERS.values(), ids=LAYERS)
SHAPE = (8, 4, 5, 6, 3)


def shape_of(rank):
    return (*SHAPE[: rank - 1], SHAPE[-1])


class Differs(keras.metrics.Metric):
    """Counts the outputs that differ from the targets."""

    def __init__(self):
        super().__init__(name="differs")
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        different = keras.ops.cast(y_true != y_pred, "float32")
        self.count.assign_add(keras.ops.sum(different))

    def result(self):
        return keras.ops.convert_to_tensor(self.count)


@each_layer
def test_on_in_fit_and_off_in_predict_and_evaluate(make, rank, see):
    """Through the public interface alone: the targets are what the model gives in inference."""
    x = np.random.default_rng(0).normal(size=shape_of(rank)).astype(np.float32)
    inputs = keras.Input(x.shape[1:])
    hidden = keras.layers.Dense(3)(inputs)
    model = keras.Model(inputs, make(seed=1)(hidden))
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[Differs()])
    y = model.predict(x, verbose=0)
    if not isinstance(model.layers[-1], dsk.DropConnect | dsk.DropConnectDense):
        assert np.array_equal(y, keras.Model(inputs, hidden).predict(x, verbose=0))
    assert np.array_equal(model.predict(x, verbose=0), y)
    assert model.evaluate(x, y, verbose=0)[1] == 0
    fitted = model.fit(x, y, batch_size=8, epochs=2, verbose=0)
    first, second = fitted.history["differs"]
    assert first > y.size / 8
    assert second > y.size / 8
    losses = fitted.history["loss"]
    assert losses[0] != losses[1]  # each step has its own mask
    assert model.evaluate(x, y, verbose=0)[1] == 0
    assert model.layers[-1].key.step == 2


@each_layer
def test_calls_and_training(make, rank, see):
    x = see.tensor(np.random.default_rng(0).normal(size=shape_of(rank)))
    layer = make(seed=3)
    off = see.array(layer(x))
    assert np.array_equal(see.array(layer(x, training=False)), off)
    on, again = (see.array(layer(x, training=True)) for _ in range(2))
    assert not np.array_equal(on, off)
    assert not np.array_equal(on, again)
    layer.key = Key(3)
    assert np.array_equal(see.array(layer(x, training=True)), on)
    model = keras.Sequential([layer])
    layer.key = Key(3)
    assert np.array_equal(see.array(model(x, training=True)), on)
    assert np.array_equal(see.array(model(x, training=False)), off)


@each_layer
def test_configuration(make, rank):
    layer = make(name="one", seed=7, site="features.3")
    config = json.loads(json.dumps(layer.get_config()))
    copy = type(layer).from_config(config)
    assert json.loads(json.dumps(copy.get_config())) == config
    assert copy.name == "one"
    assert copy.key == layer.key == Key(7).at("features.3")
    registered = keras.saving.get_registered_name(type(layer))
    assert registered == f"dropseed>{type(layer).__name__}"


def test_a_key_as_seed_is_saved():
    layer = dsk.Dropout(0.5, seed=Key(2**64 - 1, 5, 2**32 - 1))
    config = json.loads(json.dumps(layer.get_config()))
    assert dsk.Dropout.from_config(config).key == Key(2**64 - 1, 5, 2**32 - 1)
    assert dsk.Dropout(0.5, seed=Key(1, 2, 3), site=9).key == Key(1, 9, 3)


@each_layer
def test_symbolic_calls_have_the_shape(make, rank):
    x = keras.Input(batch_shape=(None, *shape_of(rank)[1:]))
    y = make()(x, training=True)
    outputs = (*x.shape[:-1], 3)
    assert y.shape == outputs
    layer = make()
    layer.build(x.shape)
    assert tuple(layer.compute_output_shape(x.shape)) == outputs
    assert layer.key.step == 0


@each_layer
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(make, rank, policy, see):
    layer = make(dtype=policy, seed=1)
    x = see.tensor(np.ones(shape_of(rank)))
    if isinstance(layer, dsk.DropConnect):
        layer = dsk.DropConnect(keras.layers.Dense(3, dtype=policy), dtype=policy)
    y = layer(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
    assert layer(keras.KerasTensor(x.shape), training=True).dtype == policy.removeprefix("mixed_")
    assert all(w.dtype == "float32" for w in layer.weights)


def test_mixed_precision_trains():
    keras.config.set_dtype_policy("mixed_bfloat16")
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    model = keras.Sequential([keras.layers.Dense(8), dsk.Dropout(0.5), dsk.DropConnectDense(1)])
    model.compile("sgd", "mse")
    history = model.fit(x, x[:, :1], verbose=0).history
    assert np.isfinite(history["loss"][0])


@pytest.mark.parametrize("rate", [0, 0.0])
def test_rate_0_changes_nothing(rate, see):
    x = see.tensor(np.ones((2, 3)))
    for cls in (dsk.Dropout, dsk.AlphaDropout, dsk.GaussianDropout, dsk.DropPath):
        layer = cls(rate)
        assert layer(x, training=True) is x or np.array_equal(see.array(layer(x)), see.array(x))
        assert layer.key.step == 0


@each_layer
def test_rate_1_gives_finite_values(make, rank, see):
    layer = make(seed=0)
    layer.rate = 1.0
    y = see.array(layer(see.tensor(np.ones(shape_of(rank))), training=True))
    assert np.isfinite(y).all()
    if not isinstance(layer, dsk.DropBlock1D | dsk.DropBlock2D | dsk.DropBlock3D):
        assert (y == 0).all()


def test_monte_carlo_dropout_is_on_in_inference(data):
    x, _ = data
    model = keras.Sequential([keras.Input((6,)), dsk.MonteCarloDropout(0.5, seed=1)])
    model.compile("sgd", "mse", metrics=[Differs()])
    first, second = (model.predict(x, batch_size=8, verbose=0) for _ in range(2))
    masks = [dropseed.keep(Key(1, step=step), 0.5, (8, 6)) for step in range(6)]
    assert np.array_equal(first, x * 2 * np.concatenate(masks[:3]))
    assert np.array_equal(second, x * 2 * np.concatenate(masks[3:]))
    assert model.evaluate(x, x, verbose=0)[1] > 0


def test_gradients_see_the_mask(see):
    """One step of descent on the sum of the outputs: the gradient is the mask, scaled."""

    class Shift(keras.layers.Layer):
        def build(self, shape):
            self.shift = self.add_weight(shape=(8, 5), initializer="zeros")

        def call(self, x):
            return x + self.shift

    model = keras.Sequential([Shift(), dsk.Dropout(0.5, seed=4)])
    model.compile(keras.optimizers.SGD(1.0), lambda y, out: keras.ops.sum(out, -1))
    x = np.ones((8, 5), np.float32)
    model.fit(x, x, batch_size=8, verbose=0)
    shift = see.array(model.layers[0].shift)
    assert np.allclose(shift, -2 / 8 * dropseed.keep(Key(4), 0.5, (8, 5)))


def test_masks_of_time_steps_pass_through():
    inputs = keras.Input((None,), dtype="int32")
    embedded = keras.layers.Embedding(9, 4, mask_zero=True)(inputs)
    for layer in (dsk.Dropout(0.5), dsk.SpatialDropout1D(0.5), dsk.DropBlock1D(0.1, 1)):
        assert layer.supports_masking
        assert layer(embedded)._keras_mask is not None
    lstm = dsk.DropConnect(keras.layers.LSTM(3, return_sequences=True), weight="recurrent_kernel")
    assert lstm.supports_masking
    assert lstm(embedded)._keras_mask is not None


def test_masked_steps_do_not_matter_to_a_wrapped_lstm(see):
    lstm = dsk.DropConnect(keras.layers.LSTM(3), 0.5, "recurrent_kernel", seed=1)
    x = np.random.default_rng(0).normal(size=(2, 4, 5))
    mask = np.array([[1, 1, 0, 0]] * 2, bool)
    one = see.array(lstm(see.tensor(x), mask=keras.ops.convert_to_tensor(mask), training=True))
    x[:, 2:] = 7
    lstm.key = Key(1)
    other = see.array(lstm(see.tensor(x), mask=keras.ops.convert_to_tensor(mask), training=True))
    assert np.array_equal(one, other)


def test_drop_connect_leaves_the_layer_as_it_was(see):
    dense = keras.layers.Dense(3, activity_regularizer="l2")
    layer = dsk.DropConnect(dense, 0.5, seed=1)
    x = see.tensor(np.ones((2, 4)))
    before = see.array(layer(x))
    on = see.array(layer(x, training=True))
    assert len(layer.losses) == 1  # that of the latest call
    assert np.allclose(see.array(layer.losses[0]), 0.01 * (on**2).sum() / 2)
    assert np.array_equal(see.array(layer(x)), before)


def test_drop_connect_updates_the_layers_state(see):
    inner = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    inner.build((None, 4))
    path = inner.layers[0].kernel.path
    layer = dsk.DropConnect(inner, 0.5, weight=path, seed=1)
    layer(see.tensor(np.ones((2, 4))), training=True)
    assert not np.allclose(see.array(inner.layers[1].moving_mean), 0)


def test_two_weights_of_an_lstm_are_dropped_by_two_wrappers(see):
    lstm = keras.layers.LSTM(3)
    inner = dsk.DropConnect(lstm, 1.0, "recurrent_kernel")
    layer = dsk.DropConnect(inner, 1.0, "lstm_cell/kernel")
    y = layer(see.tensor(np.ones((2, 4, 5))), training=True)
    assert (see.array(y) == 0).all()
    assert layer.key.step == inner.key.step == 1


# ---- what is refused -------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan"), "0.5", None, True, [0.5]])
def test_bad_rates(make, rank, rate):
    kind = ValueError if isinstance(rate, float) else TypeError
    cls = type(make())
    first = {dsk.DropConnectDense: (3,), dsk.DropConnect: (keras.layers.Dense(3),)}.get(cls, ())
    with pytest.raises(kind, match="Expected a float value between 0 and 1") as caught:
        cls(*first, rate=rate)
    assert repr(rate) in str(caught.value)
    assert isinstance(caught.value, InvalidTypeError | InvalidValueError)


@pytest.mark.parametrize("seed", [-1, 2**64, 0.5, "a", True])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="`seed`"):
        dsk.Dropout(0.5, seed=seed)


@pytest.mark.parametrize(
    ("site", "kind"), [(-1, ValueError), (2**32, ValueError), (0.5, TypeError)]
)
def test_bad_sites(site, kind):
    with pytest.raises(kind, match="`site`"):
        dsk.Dropout(0.5, site=site)


@pytest.mark.parametrize("noise_shape", ["1", 3, (1, 0), (-1,), (1.5,), (True,), ("1",)])
def test_bad_noise_shapes(noise_shape):
    for cls in (dsk.Dropout, dsk.AlphaDropout, dsk.MonteCarloDropout):
        with pytest.raises(ValueError, match="`noise_shape`"):
            cls(0.5, noise_shape=noise_shape)


@pytest.mark.parametrize("noise_shape", [(3, 4), (None, 1, 1), (2, 3)])
def test_noise_shapes_that_do_not_broadcast(noise_shape, see):
    layer = dsk.Dropout(0.5, noise_shape=noise_shape)
    with pytest.raises(ValueError, match=r"`noise_shape` must broadcast .*\(2, 4\)"):
        layer(see.tensor(np.ones((2, 4))), training=True)


def test_inputs_of_another_rank():
    for layer, shape in (
        (dsk.SpatialDropout1D(0.5), (2, 3)),
        (dsk.SpatialDropout2D(0.5), (2, 3, 4)),
        (dsk.DropBlock2D(0.5), (2, 3, 4)),
        (dsk.DropPath(0.5), ()),
    ):
        with pytest.raises(ValueError, match="is incompatible with the layer"):
            layer(keras.ops.ones(shape))


def test_integers_are_refused_where_they_would_be_dropped():
    layer = dsk.Dropout(0.5, dtype="int32")
    x = keras.ops.ones((2, 3), dtype="int32")
    with pytest.raises(TypeError, match="`inputs` must be a floating-point tensor; got int32"):
        layer(x, training=True)


@pytest.mark.parametrize(
    ("options", "kind", "name"),
    [
        ({"block_size": 0}, ValueError, "block_size"),
        ({"block_size": 2.0}, TypeError, "block_size"),
        ({"block_size": (1, 2, 3)}, ValueError, "block_size"),
        ({"data_format": "NHWC"}, ValueError, "data_format"),
        ({"normalization": "mean"}, ValueError, "normalization"),
    ],
)
def test_bad_blocks(options, kind, name):
    with pytest.raises(kind, match=f"`{name}`"):
        dsk.DropBlock2D(0.1, **options)


def test_blocks_larger_than_the_map(see):
    with pytest.raises(ValueError, match=r"`block_size` must be between 1 and the map \(4, 5\)"):
        dsk.DropBlock2D(0.1, 5)(see.tensor(np.ones((1, 4, 5, 2))), training=True)


@pytest.mark.parametrize("make", [dsk.SpatialDropout2D, dsk.SpatialDropout3D])
def test_bad_data_formats(make):
    with pytest.raises(ValueError, match='`data_format` must be "channels_last"'):
        make(0.5, data_format="last")


def test_bad_modes_and_weights(see):
    with pytest.raises(ValueError, match='`mode` must be "sample" or "batch"'):
        dsk.DropConnectDense(3, mode="each")
    with pytest.raises(ValueError, match="isn't a supported layer type"):
        dsk.DropConnect("dense")
    x = see.tensor(np.ones((1, 2, 3)))
    for layer, weight in (
        (keras.layers.Flatten(), "kernel"),
        (keras.layers.Dense(3), "kernels"),
        (keras.layers.Bidirectional(keras.layers.LSTM(2)), "recurrent_kernel"),
    ):
        with pytest.raises(ValueError, match="`weight` must name one weight"):
            dsk.DropConnect(layer, weight=weight)(x)


def test_keys_are_keys():
    with pytest.raises(TypeError, match=r"`key` must be a dropseed\.Key; got 3"):
        dsk.Dropout(0.5).key = 3
