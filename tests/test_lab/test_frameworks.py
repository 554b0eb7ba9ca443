"""The convnet in PyTorch, Keras and JAX: one seed, the same losses."""

import io

import numpy as np
import pytest
import torch

import dropseed.jax as dsj
from dropseed import Key
from dropseed.lab.learner import make_learner
from dropseed.lab.models import DROPOUT_SITE
from dropseed.lab.settings import Settings

SETTINGS = Settings(epochs=3, seed=3, train_size=400, batch_size=50, threads=1)
FRAMEWORKS = ("keras", "jax")


def learner(framework, **changes):
    options = {**vars(SETTINGS), "framework": framework, **changes}
    return make_learner(Settings(**options))


def losses(framework, digits, steps, **changes):
    """The loss of each of the first steps, on one batch after another."""
    found = learner(framework, **changes)
    batches = zip(
        torch.from_numpy(digits.train_images).split(50),
        torch.from_numpy(digits.train_labels).split(50),
        strict=True,
    )
    given = list(batches)
    return [found.step(*given[step % len(given)], step) for step in range(steps)]


@pytest.fixture(scope="module")
def torchs(digits):
    return losses("torch", digits, 20)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_twenty_steps_have_the_same_losses(framework, digits, torchs):
    """They differ by the order of sums, and Keras by its powers in float32."""
    found, expected = ([at[0] for at in run] for run in (losses(framework, digits, 20), torchs))
    np.testing.assert_allclose(found[:5], expected[:5], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol={"jax": 2e-5, "keras": 2e-3}[framework])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_another_seed_of_the_masks_is_another_loss(framework, digits, torchs):
    """The control: the masks are what makes the losses agree."""
    found = learner(framework)
    found.seed = 4
    images, labels = (
        torch.from_numpy(at[:50]) for at in (digits.train_images, digits.train_labels)
    )
    assert abs(found.step(images, labels, 0)[0] - torchs[0][0]) > 1e-3


def test_without_the_transposition_the_masks_differ():
    """Channels last, flattened as they are, have the mask of other places."""
    maps = np.random.default_rng(0).normal(size=(4, 5, 5, 64)).astype(np.float32)
    key = Key(3).at(DROPOUT_SITE)
    first = np.asarray(dsj.dropout(key, maps.transpose(0, 3, 1, 2).reshape(4, -1), 0.5)) != 0
    last = np.asarray(dsj.dropout(key, maps.reshape(4, -1), 0.5)) != 0
    back = last.reshape(4, 5, 5, 64).transpose(0, 3, 1, 2).reshape(4, -1)
    assert 0.4 < (first != back).mean() < 0.6


@pytest.mark.parametrize("framework", ["torch", *FRAMEWORKS])
def test_the_first_weights_are_those_of_torch(framework):
    weights, expected = learner(framework).weights(), learner("torch").weights()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("framework", ["torch", *FRAMEWORKS])
def test_a_state_goes_on_as_if_nothing_had_happened(framework, digits):
    images, labels = (
        torch.from_numpy(at[:50]) for at in (digits.train_images, digits.train_labels)
    )
    whole, other = learner(framework), learner(framework)
    for step in range(2):
        whole.step(images, labels, step)
    file = io.BytesIO()
    torch.save(whole.state(), file)
    file.seek(0)
    other.restore(torch.load(file, weights_only=True), 2)
    assert whole.step(images, labels, 2) == other.step(images, labels, 2)
    assert str(whole.weights()) == str(other.weights())


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_device_is_torchs(framework):
    with pytest.raises(ValueError, match="`device` must be left out"):
        Settings(framework=framework, device="cuda")


def test_a_framework_must_be_known():
    with pytest.raises(
        ValueError, match="`framework` must be one of torch, keras, jax; got 'mxnet'"
    ):
        Settings(framework="mxnet")
