"""The convnet in JAX: plain functions, and Optax's Adam."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import Array
from torch import Tensor

import dropseed.jax as dsj
from dropseed.lab.channels_last import from_torch, to_torch
from dropseed.lab.learner import first_model, scheduled
from dropseed.lab.models import DROPOUT_SITE, normalise
from dropseed.lab.settings import Settings

Weights = dict[str, Array]


class JaxLearner:
    """A `Learner` in JAX, on its default device.

    Args:
        settings: of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.seed, self.rate = settings.seed, settings.rate
        first = from_torch(first_model(settings).state_dict())
        self.params = {name: jnp.asarray(value) for name, value in first.items()}
        self.rates, self.decays = scheduled(settings)
        self.optimiser = optax.inject_hyperparams(optax.adam)(learning_rate=0.0, b1=0.9)
        self.moments = self.optimiser.init(self.params)
        self._step = jax.jit(partial(_step, self.optimiser, self.rate))

    def step(self, images: Tensor, labels: Tensor, step: int) -> tuple[float, int]:
        """As `Learner.step`."""
        hyperparameters = self.moments.hyperparams
        hyperparameters["learning_rate"] = jnp.float32(self.rates[step])
        hyperparameters["b1"] = jnp.float32(self.decays[step])
        key = dsj.key(self.seed, DROPOUT_SITE, step)
        self.params, self.moments, loss, correct = self._step(
            self.params, self.moments, _images(images), labels.numpy(), key
        )
        return float(loss), int(correct)

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[float, int]:
        """As `Learner.evaluate`."""
        loss, correct = _evaluate(self.params, _images(images), labels.numpy())
        return float(loss), int(correct)

    def weights(self) -> dict[str, Tensor]:
        """As `Learner.weights`."""
        return to_torch({name: np.asarray(value) for name, value in self.params.items()})

    def state(self) -> dict[str, Any]:
        """As `Learner.state`."""
        leaves = [self.params, self.moments]
        return {"leaves": [torch.from_numpy(np.array(at)) for at in jax.tree.leaves(leaves)]}

    def restore(self, state: Mapping[str, Any], step: int) -> None:
        """As `Learner.restore`."""
        kinds, tree = jax.tree.flatten([self.params, self.moments])
        found = zip(state["leaves"], kinds, strict=True)
        leaves = [jnp.asarray(at.numpy(), kind.dtype).reshape(kind.shape) for at, kind in found]
        self.params, self.moments = jax.tree.unflatten(tree, leaves)


def logits(params: Weights, images: Array, key: Array | None = None, rate: float = 0.0) -> Array:
    """The convnet's forward pass.

    Args:
        params: the weights, convolutions as (height, width, in, out), the last layer as (in, out).
        images: float32 (N, 28, 28, 1).
        key: of the mask; None in inference.
        rate: the fraction dropped.

    Returns:
        float32 (N, 10).
    """
    x = images
    for name in ("conv1", "conv2"):
        x = jax.lax.conv_general_dilated(
            x, params[f"{name}.weight"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params[f"{name}.bias"])
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    # A mask's indices follow the axes: in PyTorch's order the values have PyTorch's masks.
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    if key is not None:
        x = dsj.dropout(key, x, rate)
    return x @ params["dense.weight"] + params["dense.bias"]


def _judged(params: Weights, images: Array, labels: Array, **dropout: Any) -> tuple[Array, Array]:
    """The loss of each image, and how many are classified correctly."""
    answers, labels = logits(params, images, **dropout), labels.astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(answers, labels)
    return losses, (answers.argmax(1) == labels).sum()


@jax.jit
def _evaluate(params: Weights, images: Array, labels: Array) -> tuple[Array, Array]:
    losses, correct = _judged(params, images, labels)
    return losses.sum(), correct


def _step(
    optimiser: Any,
    rate: float,
    params: Weights,
    moments: Any,
    images: Array,
    labels: Array,
    key: Array,
) -> tuple[Weights, Any, Array, Array]:
    def loss(params: Weights) -> tuple[Array, Array]:
        losses, correct = _judged(params, images, labels, key=key, rate=rate)
        return losses.mean(), correct

    (value, correct), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    updates, moments = optimiser.update(gradient, moments)
    return optax.apply_updates(params, updates), moments, value, correct


def _images(images: Tensor) -> np.ndarray[Any, Any]:
    return normalise(images).permute(0, 2, 3, 1).numpy()
