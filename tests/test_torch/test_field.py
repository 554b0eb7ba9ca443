"""The worked numbers of the field, and what many draws must be on average.

The tests of averages fix their seeds and allow 5 standard deviations: with other seeds each of
their comparisons would fail once in 1.7 million.
"""

import numpy as np
import pytest
import torch
from torch import nn

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.torch import functional as ours

INPUT = [0.8, 1.2, 0.3, 0.5, 0.9, 1.1, 0.4, 0.7]


def key_of(mask, rate=0.5):
    """The first seed that draws a mask."""
    return next(
        Key(seed) for seed in range(10_000) if keep(Key(seed), rate, len(mask)).tolist() == mask
    )


@pytest.mark.parametrize(
    ("mask", "output"),
    [
        ([1, 0, 1, 0, 1, 0, 1, 0], [1.6, 0, 0.6, 0, 1.8, 0, 0.8, 0]),
        ([0, 1, 0, 1, 1, 1, 0, 0], [0, 2.4, 0, 1.0, 1.8, 2.2, 0, 0]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_worked_activations(mask, output, dtype, forced):
    x = torch.tensor(INPUT, dtype=dtype)
    assert (
        ours.dropout(x, 0.5, key=key_of(mask)).tolist()
        == torch.tensor(output, dtype=dtype).tolist()
    )
    assert ours.dropout(x, 0.5, training=False) is x


def test_the_worked_gradient(forced):
    x = torch.ones(3, requires_grad=True)
    ours.dropout(x, 0.5, key=key_of([1, 0, 1])).backward(torch.tensor([0.5, 0.3, 0.1]))
    assert x.grad.tolist() == torch.tensor([1.0, 0, 0.2]).tolist()


def test_two_passes_differ_in_training_and_not_in_inference():
    layer, x = dst.Dropout(0.5), torch.ones(64)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert layer(x) is x


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
def test_every_unit_gets_the_same_expected_gradient(rate):
    units, steps = 64, 4000
    layer = dst.Dropout(rate)
    x = torch.ones(units, requires_grad=True)
    for step in range(steps):
        dst.set_key(layer, 1, step)
        layer(x).sum().backward()
    scale = Rate(rate).scale
    error = scale * (rate * (1 - rate) / steps) ** 0.5
    assert float((x.grad / steps - 1).abs().max()) < 5 * error


@pytest.mark.parametrize("rate", [0.0, 2**-12, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("keyed", [False, True])
def test_the_expected_output_is_the_input(rate, keyed):
    n = 1_000_000
    output = ours.dropout(torch.ones(n), rate, key=Key(5) if keyed else None)
    kept = int((output != 0).sum())
    assert abs(kept - n * (1 - rate)) <= 5 * (n * rate * (1 - rate)) ** 0.5
    survivor = float(output.max())
    assert survivor == float(np.float32(Rate(rate).scale))
    # The mean is off by the binomial error and by one rounding of the scale, nothing else.
    assert abs(survivor * (1 - Rate(rate).threshold / 2**32) - 1) <= 2**-24


def test_original_scaling_has_the_same_expectation():
    x = torch.ones(1_000_000)
    training = ours.dropout(x, 0.3, key=Key(5), scaling="original").mean()
    inference = ours.dropout(x, 0.3, False, scaling="original").mean()
    assert abs(float(training - inference)) < 5 * (0.3 * 0.7 / 1e6) ** 0.5


def test_a_dropped_unit_learns_nothing():
    """The weights of a unit that is dropped have a gradient of exactly zero."""
    linear, drop = nn.Linear(4, 16), dst.Dropout(0.5)
    dst.set_key(drop, 2)
    drop(linear(torch.ones(1, 4))).sum().backward()
    kept = torch.from_numpy(keep(Key(2).at(""), 0.5, 16))
    assert torch.equal((linear.weight.grad != 0).all(1), kept)
    assert torch.equal((linear.weight.grad == 0).all(1), ~kept)
