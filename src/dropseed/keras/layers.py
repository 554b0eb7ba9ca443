"""Dropout as layers that stand in for those of `keras.layers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from dropseed.keras.base import PACKAGE, RateLayer
from dropseed.keras.checks import checked_data_format, checked_noise_shape, shared_axes
from dropseed.keras.route import draws
from dropseed.mask import Key


@keras.saving.register_keras_serializable(PACKAGE)
class Dropout(RateLayer):
    """Zero a random fraction of the elements in training, and scale the rest by 1 / (1 - rate).

    Hinton et al. 2012, "Improving neural networks by preventing co-adaptation of feature
    detectors"; Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from
    overfitting".

    Args:
        rate: the fraction dropped, in [0, 1].
        noise_shape: the shape of the draws, which are broadcast to the inputs: a size of 1 where
            the elements along an axis share a draw, None or the inputs' size elsewhere.
        seed: an integer in [0, 2**64), a `dropseed.Key`, or None for a seed from the generator
            that `keras.utils.set_random_seed` sets.
        site: the place in the network: a name or a number in [0, 2**32); by default 0.
        **kwargs: `name` and `dtype`.

    Call arguments:
        inputs: floating-point tensor of any shape.
        training: whether to drop.

    Raises:
        TypeError: `rate` is no number.
        ValueError: `rate` is outside [0, 1], `noise_shape` holds something else than positive
            integers and None, or `seed` is no seed.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.Dropout(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones(8), training=True))
        array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
    """

    def __init__(
        self,
        rate: float,
        noise_shape: Sequence[int | None] | None = None,
        seed: int | Key | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, seed=seed, **kwargs)
        self.noise_shape = checked_noise_shape(noise_shape)

    def _shared(self, inputs: Any) -> tuple[int, ...]:
        return () if self.noise_shape is None else shared_axes(self.noise_shape, inputs.shape)

    def _dropped(self, inputs: Any, words: Any) -> Any:
        return draws.dropout(inputs, words, self.rate, self._shared(inputs))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "noise_shape": self.noise_shape}


@keras.saving.register_keras_serializable(PACKAGE)
class AlphaDropout(Dropout):
    """Drop elements to SELU's saturation in training, and restore mean and variance.

    Klambauer et al. 2017, "Self-normalizing neural networks", section "New dropout technique". At
    a rate of 1 the output is 0.

    Args:
        rate: the fraction dropped, in [0, 1].
        noise_shape: the shape of the draws, as in `Dropout`.
        seed: as in `Dropout`.
        site: as in `Dropout`.
        **kwargs: `name` and `dtype`.

    Raises:
        TypeError, ValueError: as `Dropout` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.AlphaDropout(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.zeros(4), training=True)).round(4)
        array([ 0.7792,  0.7792, -0.7792, -0.7792], dtype=float32)
    """

    def _dropped(self, inputs: Any, words: Any) -> Any:
        return draws.alpha_dropout(inputs, words, self.rate, self._shared(inputs))


@keras.saving.register_keras_serializable(PACKAGE)
class GaussianDropout(RateLayer):
    """Multiply by normal draws of mean 1 and variance rate / (1 - rate) in training.

    Srivastava et al. 2014, "Dropout: a simple way to prevent neural networks from overfitting",
    section 10. At a rate of 1 the output is 0.

    Args:
        rate: the rate of the dropout that it stands for, in [0, 1].
        seed: as in `Dropout`.
        site: as in `Dropout`.
        **kwargs: `name` and `dtype`.

    Raises:
        TypeError, ValueError: as `Dropout` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.GaussianDropout(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones(2), training=True)).round(4)
        array([1.5981, 1.4363], dtype=float32)
    """

    def __init__(self, rate: float, seed: int | Key | None = None, **kwargs: Any) -> None:
        super().__init__(rate, seed=seed, **kwargs)

    def _dropped(self, inputs: Any, words: Any) -> Any:
        return draws.gaussian_dropout(inputs, words, self.rate)


@keras.saving.register_keras_serializable(PACKAGE)
class DropPath(RateLayer):
    """Drop the residual path of whole samples in training (stochastic depth).

    Huang et al. 2016, "Deep networks with stochastic depth", equation 2.

    Args:
        rate: the fraction of the paths dropped, in [0, 1].
        seed: as in `Dropout`.
        site: as in `Dropout`.
        **kwargs: `name` and `dtype`.

    Call arguments:
        inputs: (N, *), the output of a residual branch before it is added.
        training: whether to drop.

    Raises:
        TypeError, ValueError: as `Dropout` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.DropPath(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((3, 2)), training=True))
        array([[2., 2.],
               [2., 2.],
               [0., 0.]], dtype=float32)
    """

    def __init__(self, rate: float, seed: int | Key | None = None, **kwargs: Any) -> None:
        super().__init__(rate, seed=seed, **kwargs)
        self.input_spec = keras.layers.InputSpec(min_ndim=1)

    def _dropped(self, inputs: Any, words: Any) -> Any:
        return draws.dropout(inputs, words, self.rate, tuple(range(1, len(inputs.shape))))


@keras.saving.register_keras_serializable(PACKAGE)
class MonteCarloDropout(Dropout):
    """Dropout that is on in inference as well: ``predict`` draws, and so does ``evaluate``.

    Gal and Ghahramani 2016, "Dropout as a Bayesian approximation: representing model uncertainty
    in deep learning". Repeat ``predict`` and take the mean and the spread.

    Args:
        rate: the fraction dropped, in [0, 1].
        noise_shape: the shape of the draws, as in `Dropout`.
        seed: as in `Dropout`.
        site: as in `Dropout`.
        **kwargs: `name` and `dtype`.

    Raises:
        TypeError, ValueError: as `Dropout` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.MonteCarloDropout(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones(8), training=False))
        array([2., 2., 0., 0., 2., 2., 0., 2.], dtype=float32)
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drop, whatever `training` is."""
        return super().call(inputs, training=True)


class _SpatialDropout(RateLayer):
    """What the layers share: all but the number of dimensions, and the layout."""

    rank: int
    data_format: str = "channels_last"

    def __init__(
        self,
        rate: float,
        seed: int | Key | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, seed=seed, name=name, dtype=dtype, **kwargs)
        self.input_spec = keras.layers.InputSpec(ndim=self.rank)

    def _dropped(self, inputs: Any, words: Any) -> Any:
        last = self.data_format == "channels_last"
        shared = range(1, self.rank - 1) if last else range(2, self.rank)
        return draws.dropout(inputs, words, self.rate, tuple(shared))


class _SpatialDropoutOfLayout(_SpatialDropout):
    """The layers whose channels may come first."""

    def __init__(
        self,
        rate: float,
        data_format: str | None = None,
        seed: int | Key | None = None,
        name: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rate, seed, name, dtype, **kwargs)
        self.data_format = checked_data_format(data_format)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "data_format": self.data_format}


@keras.saving.register_keras_serializable(PACKAGE)
class SpatialDropout1D(_SpatialDropout):
    """Drop whole channels of sequences in training: one draw a sample and channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        rate: the fraction of the channels dropped, in [0, 1].
        seed: as in `Dropout`.
        name: the layer's name.
        dtype: the layer's type or policy.
        **kwargs: `site`, as in `Dropout`.

    Call arguments:
        inputs: (N, L, C).
        training: whether to drop.

    Raises:
        TypeError, ValueError: as `Dropout` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.SpatialDropout1D(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 2, 3)), training=True))
        array([[[2., 2., 0.],
                [2., 2., 0.]]], dtype=float32)
    """

    rank = 3


@keras.saving.register_keras_serializable(PACKAGE)
class SpatialDropout2D(_SpatialDropoutOfLayout):
    """Drop whole channels of images in training: one draw a sample and channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        rate: the fraction of the channels dropped, in [0, 1].
        data_format: "channels_last", "channels_first", or None for Keras's setting. Both have the
            same draws.
        seed: as in `Dropout`.
        name: the layer's name.
        dtype: the layer's type or policy.
        **kwargs: `site`, as in `Dropout`.

    Call arguments:
        inputs: (N, H, W, C), or (N, C, H, W) if the channels come first.
        training: whether to drop.

    Raises:
        TypeError, ValueError: as `Dropout` does; an unknown `data_format`.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.SpatialDropout2D(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 2, 2, 3)), training=True))[0, 0]
        array([[2., 2., 0.],
               [2., 2., 0.]], dtype=float32)
    """

    rank = 4


@keras.saving.register_keras_serializable(PACKAGE)
class SpatialDropout3D(_SpatialDropoutOfLayout):
    """Drop whole channels of volumes in training: one draw a sample and channel.

    Tompson et al. 2015, "Efficient object localization using convolutional networks", section 3.2.

    Args:
        rate: the fraction of the channels dropped, in [0, 1].
        data_format: as in `SpatialDropout2D`.
        seed: as in `Dropout`.
        name: the layer's name.
        dtype: the layer's type or policy.
        **kwargs: `site`, as in `Dropout`.

    Call arguments:
        inputs: (N, D, H, W, C), or (N, C, D, H, W) if the channels come first.
        training: whether to drop.

    Raises:
        TypeError, ValueError: as `SpatialDropout2D` does.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> layer = dsk.SpatialDropout3D(0.5, seed=0)
        >>> keras.ops.convert_to_numpy(layer(keras.ops.ones((1, 1, 1, 2, 3)), training=True))[0, 0]
        array([[[2., 2., 0.],
                [2., 2., 0.]]], dtype=float32)
    """

    rank = 5
