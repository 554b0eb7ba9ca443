"""The models of the laboratory: plain torch modules whose dropout is dropseed's."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

import dropseed.torch as dst

DROPOUT_SITE = "dropout"
"""The qualified name of the convnet's dropout layer, which is the site of its masks."""

_MEAN, _DEVIATION = 0.1307, 0.3081


def mnist_convnet(rate: Any = 0.5) -> nn.Sequential:
    """The convolutional network for MNIST, with dropout in front of its last layer.

    Conv(32, 3x3) ReLU MaxPool 2, Conv(64, 3x3) ReLU MaxPool 2, Flatten (1,600), Dropout,
    Dense(10): 34,826 parameters. The layers are named conv1, relu1, pool1, conv2, relu2, pool2,
    flatten, dropout and dense, so that the site of the masks is "dropout".

    Args:
        rate: the fraction dropped, in [0, 1].

    Returns:
        A module from float32 images (N, 1, 28, 28), as `normalise` makes them, to logits (N, 10).

    Raises:
        TypeError: `rate` is not a real number.
        ValueError: `rate` is outside [0, 1].

    Example:
        >>> import torch
        >>> mnist_convnet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    layers: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(1, 32, 3)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flatten", nn.Flatten()),
        (DROPOUT_SITE, dst.Dropout(rate)),
        ("dense", nn.Linear(1600, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def normalise(images: Tensor) -> Tensor:
    """Turn bytes into what the convnet takes: MNIST's mean becomes 0, its deviation 1.

    Args:
        images: uint8 (N, 28, 28), 0 to 255.

    Returns:
        float32 (N, 1, 28, 28) on the same device.

    Example:
        >>> import torch
        >>> normalise(torch.zeros(1, 28, 28, dtype=torch.uint8)).unique()
        tensor([-0.4242])
    """
    return images.unsqueeze(1).float().div(255).sub(_MEAN).div(_DEVIATION)
