"""The convnet in Keras 3, on whatever back end it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

if "keras" not in sys.modules:
    os.environ.setdefault("KERAS_BACKEND", "torch")  # the lab has it

import keras

import dropseed.keras as dsk
from dropseed.lab.channels_last import from_torch, to_torch
from dropseed.lab.learner import first_model, scheduled
from dropseed.lab.models import DROPOUT_SITE, normalise
from dropseed.lab.settings import Settings


class KerasLearner:
    """A `Learner` in Keras.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.seed = settings.seed
        self.model = convnet(settings.rate)
        self.layers = {at.name: at for at in self.model.layers if at.weights}
        first = from_torch(first_model(settings).state_dict())
        for name, layer in self.layers.items():
            layer.set_weights([first[f"{name}.weight"], first[f"{name}.bias"]])
        self.model.compile(
            OneCycleAdam(*scheduled(settings)),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        self.model.optimizer.build(self.model.trainable_variables)

    def step(self, images: Tensor, labels: Tensor, step: int) -> tuple[float, int]:
        """As `Learner.step`."""
        dsk.set_key(self.model, self.seed, step)
        loss, accuracy = self.model.train_on_batch(_images(images), labels.numpy())
        return float(loss), round(float(accuracy) * len(labels))

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """As `Learner.evaluate`."""
        loss, accuracy = self.model.test_on_batch(_images(images), labels.numpy())
        return float(loss) * len(labels), round(float(accuracy) * len(labels))

    def weights(self) -> dict[str, Tensor]:
        """As `Learner.weights`."""
        found = {}
        for name, layer in self.layers.items():
            found[f"{name}.weight"], found[f"{name}.bias"] = map(_array, layer.weights)
        return to_torch(found)

    @property
    def _variables(self) -> list[Any]:
        return [*self.model.trainable_variables, *self.model.optimizer.variables]

    def state(self) -> dict[str, Any]:
        """As `Learner.state`."""
        return {"variables": [torch.from_numpy(_array(at)) for at in self._variables]}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """As `Learner.restore`."""
        for variable, value in zip(self._variables, state["variables"], strict=True):
            variable.assign(value.numpy())


def convnet(rate: float) -> Any:
    """The network of `mnist_convnet`, from float32 (N, 28, 28, 1); its layers have their names.

    Keras's maps have their channels last. They are brought first before they are flattened: a
    mask's indices follow the axes, and in PyTorch's order the values have PyTorch's masks.

    Args:
        rate: the fraction dropped.

    Returns:
        A `keras.Sequential`.
    """
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, activation="relu", name="conv1"),
            keras.layers.MaxPooling2D(2, name="pool1"),
            keras.layers.Conv2D(64, 3, activation="relu", name="conv2"),
            keras.layers.MaxPooling2D(2, name="pool2"),
            keras.layers.Permute((3, 1, 2), name="channels_first"),
            keras.layers.Flatten(name="flatten"),
            dsk.Dropout(rate, name=DROPOUT_SITE),
            keras.layers.Dense(10, name="dense"),
        ]
    )


class OneCycleAdam(keras.optimizers.Adam):
    """Keras's Adam, whose learning rate and first moment's decay follow a schedule.

    Keras adds epsilon before the correction of the second moment's bias, and torch behind it:
    epsilon follows, so that the steps are the same.

    Args:
        rates: the learning rate of each step.
        decays: `beta_1` of each step.
    """

    def __init__(self, rates: Sequence[float], decays: Sequence[float]) -> None:
        super().__init__(learning_rate=_Schedule(rates))
        self._decays = _Schedule(decays)

    @property
    def beta_1(self) -> Any:
        """The first moment's decay at this step."""
        return self._decays(self.iterations)

    @beta_1.setter
    def beta_1(self, value: float) -> None:
        """Keras's constructor sets one for all steps."""

    @property
    def epsilon(self) -> Any:
        """What is added to the root of the second moment."""
        done = keras.ops.cast(self.iterations + 1, "float32")
        return 1e-8 * keras.ops.sqrt(1 - keras.ops.power(self.beta_2, done))

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        """As of `beta_1`."""


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, values: Sequence[float]) -> None:
        super().__init__()
        self.values = np.array(values, np.float32)

    def __call__(self, step: Any) -> Any:
        return keras.ops.take(keras.ops.convert_to_tensor(self.values), step)

    def get_config(self) -> dict[str, Any]:
        return {"values": self.values.tolist()}


def _array(variable: Any) -> np.ndarray[Any, Any]:
    return np.array(keras.ops.convert_to_numpy(variable.value))


def _images(images: Tensor) -> np.ndarray[Any, Any]:
    return normalise(images).permute(0, 2, 3, 1).numpy()
