"""DropConnect: weights dropped instead of values, in a dense layer or in any layer."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from dropseed.errors import InvalidValueError
from dropseed.keras.base import PACKAGE, KeyedLayer
from dropseed.keras.checks import check_inputs
from dropseed.keras.route import draws
from dropseed.mask import Key

_MODES = ("sample", "batch")


@keras.saving.register_keras_serializable(PACKAGE)
class DropConnectDense(KeyedLayer, keras.layers.Dense):
    """A dense layer that drops weights in training, each sample's by a mask of its own.

    Wan, Zeiler, Zhang, LeCun and Fergus 2013, "Regularization of neural networks using
    DropConnect", section 3. In inference the weights are their mean.

    Draws are numbered as PyTorch lays out the weight, (O, I), though Keras stores (I, O): a ported
    layer has the same mask.

    Args:
        units: as in `keras.layers.Dense`, whose other arguments it takes too.
        *args: Dense's.
        rate: the fraction of the weights dropped, in [0, 1].
        mode: "sample" (draws (N, O, I), as in the paper) or "batch" (one mask for all, (O, I)).
        drop_bias: whether the bias drops out too, by the derived key ``fold(1)``.
        seed: as in `Dropout`.
        site: as in `Dropout`.
        **kwargs: Dense's.

    Call arguments:
        inputs: (N, *, I). What lies between the first dimension and the last shares its sample's
            mask.
        training: whether to drop.

    Raises:
        TypeError: `rate` is no number.
        ValueError: `rate` is outside [0, 1], or `mode` unknown.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.DropConnectDense(3, kernel_initializer="ones", rate=0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((2, 4)), training=True)).round()
        array([[4., 6., 4.],
               [6., 8., 4.]], dtype=float32)
    """

    def __init__(
        self,
        units: int,
        *args: Any,
        rate: float = 0.5,
        mode: str = "sample",
        drop_bias: bool = False,
        seed: int | Key | None = None,
        site: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        if mode not in _MODES:
            raise InvalidValueError(f'`mode` must be "sample" or "batch"; got {mode!r}.')
        super().__init__(units, *args, rate=rate, seed=seed, site=site, **kwargs)
        self.mode = mode
        self.drop_bias = drop_bias

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drop weights in training, be a dense layer otherwise."""
        if not training or self.rate == 0:
            return super().call(inputs)
        check_inputs(inputs)
        words = self.seed_generator.next()
        weight = ops.transpose(ops.convert_to_tensor(self.kernel))
        if self.mode == "sample":
            output = draws.drop_connect(inputs, weight, words, self.rate)
        else:
            output = ops.matmul(inputs, ops.transpose(draws.dropout(weight, words, self.rate)))
        if self.bias is not None:
            output = output + self._bias(inputs, words)
        return output if self.activation is None else self.activation(output)

    def _bias(self, inputs: Any, words: Any) -> Any:
        bias = ops.convert_to_tensor(self.bias)
        if not self.drop_bias:
            return bias
        key = draws.fold(words, 1)
        if self.mode == "batch":
            return draws.dropout(bias, key, self.rate)
        samples = ops.shape(inputs)[0]
        rows = draws.dropout(ops.broadcast_to(bias, (samples, self.units)), key, self.rate)
        return ops.reshape(rows, (samples, *[1] * (len(inputs.shape) - 2), self.units))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "mode": self.mode, "drop_bias": self.drop_bias}


@keras.saving.register_keras_serializable(PACKAGE)
class DropConnect(KeyedLayer, keras.layers.Wrapper):
    r"""Any layer with a kernel, of which a random fraction is dropped in training.

    One mask a call serves all samples and time steps: on the ``recurrent_kernel`` of an LSTM it is
    the weight drop of Merity et al. 2018, "Regularizing and optimizing LSTM language models". For
    two weights, wrap twice. In inference the weights are their mean.

    Draws are numbered as PyTorch lays out a weight: of a kernel (\*K, I, O), (O, I, \*K).

    Args:
        layer: the layer, built or not.
        rate: the fraction of the weight's elements dropped, in [0, 1].
        weight: the weight's name, or as much of the end of its path as tells it from others.
        seed: as in `Dropout`.
        site: as in `Dropout`.
        **kwargs: `name` and `dtype`.

    Call arguments:
        inputs: what the layer takes.
        training: whether to drop.
        **kwargs: what the layer takes besides.

    Raises:
        TypeError: `rate` is no number.
        ValueError: `rate` is outside [0, 1], `layer` no layer; once it is built, that it has no
            such weight, or several.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> dense = keras.layers.Dense(3, kernel_initializer="ones")
        >>> layer = dsk.DropConnect(dense, 0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 4)), training=True)).round()
        array([[4., 6., 4.]], dtype=float32)
    """

    def __init__(
        self,
        layer: Any,
        rate: float = 0.5,
        weight: str = "kernel",
        seed: int | Key | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, rate=rate, seed=seed, **kwargs)
        self.weight = weight
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any = None) -> None:
        """Build the layer, and find its weight."""
        super().build(input_shape)
        self._dropped_weight()

    def _dropped_weight(self) -> Any:
        """The variable that is dropped."""
        variables = self.layer.trainable_variables + self.layer.non_trainable_variables
        found = [v for v in variables if f"/{v.path}".endswith(f"/{self.weight}")]
        if len(found) != 1:
            paths = [variable.path for variable in found or variables]
            raise InvalidValueError(
                f"`weight` must name one weight of {self.layer.name!r}; got {self.weight!r}, and "
                f"there {'are' if found else 'is none among'} {paths}."
            )
        return found[0]

    def call(self, inputs: Any, training: bool = False, **kwargs: Any) -> Any:
        """Call the layer, in training with a dropped weight."""
        if not training or self.rate == 0:
            return self.layer(inputs, **kwargs)
        dropped = self._dropped_weight()
        values = [(v, v.value) for v in self.layer.variables if v is not dropped]
        values.append((dropped, self._drop(dropped.value)))
        with keras.StatelessScope(values, collect_losses=True) as scope:
            output = self.layer(inputs, **kwargs)
        for loss in scope.losses:
            self.layer.add_loss(loss)
        for variable in self.layer.non_trainable_variables:
            variable.assign(scope.get_current_value(variable))
        return output

    def _drop(self, kernel: Any) -> Any:
        words, rank = self.seed_generator.next(), len(kernel.shape)
        if rank < 2:
            return draws.dropout(kernel, words, self.rate)
        weight = ops.transpose(kernel, (rank - 1, rank - 2, *range(rank - 2)))
        dropped = draws.dropout(weight, words, self.rate)
        return ops.transpose(dropped, (*range(2, rank), 1, 0))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the layer's output."""
        return self.layer.compute_output_shape(input_shape)

    def compute_output_spec(self, inputs: Any, training: bool = False, **kwargs: Any) -> Any:
        """The layer's output, as a symbol."""
        return self.layer.compute_output_spec(inputs, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> Any:
        """The layer's mask of time steps."""
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "weight": self.weight}
