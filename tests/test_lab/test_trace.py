"""The walk through models: the convnet's numbers, and layers that would mislead a simpler walk."""

import math

import pytest
import torch
from torch import nn

import dropseed.torch as dst
from dropseed import Key, keep
from dropseed.lab.models import mnist_convnet
from dropseed.lab.trace import Drops, load_model, trace


def drops(model, shape, seed=0):
    return [row.drops for row in trace(model, shape, seed) if row.drops is not None]


def test_the_convnet():
    rows = trace(mnist_convnet(), (1, 28, 28))
    assert [(row.name, row.shape, row.parameters) for row in rows] == [
        ("conv1", (1, 32, 26, 26), 320),
        ("relu1", (1, 32, 26, 26), 0),
        ("pool1", (1, 32, 13, 13), 0),
        ("conv2", (1, 64, 11, 11), 18_496),
        ("relu2", (1, 64, 11, 11), 0),
        ("pool2", (1, 64, 5, 5), 0),
        ("flatten", (1, 1600), 0),
        ("dropout", (1, 1600), 0),
        ("dense", (1, 10), 16_010),
    ]


def test_the_convnets_dropout_is_the_mask_of_its_key():
    masks = [keep(Key(5, step=step).at("dropout"), 0.5, (1, 1600)) for step in (0, 1)]
    assert drops(mnist_convnet(), (1, 28, 28), 5) == [
        Drops(
            values=1600,
            dropped=int((~masks[0]).sum()),
            factor=2.0,
            changed=int((masks[0] != masks[1]).sum()),
            inert=True,
        )
    ]


def test_zeros_of_the_input_are_not_dropped_values():
    """Behind a ReLU that gives zeros only, the output is zero wherever one looks."""
    model = nn.Sequential(nn.Linear(8, 2000), nn.ReLU(), dst.Dropout(0.25))
    nn.init.constant_(model[0].weight, -1.0)
    nn.init.constant_(model[0].bias, -1.0)
    (found,) = drops(model, (8,))
    assert 400 < found.dropped < 600
    assert found.factor == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("layer", "factor"),
    [
        (nn.Dropout(0.5), 2.0),
        (nn.Dropout(0.5, inplace=True), 2.0),
        (dst.Dropout(0.5, inplace=True), 2.0),
        (dst.Dropout(0.5, scaling="none"), 1.0),
        (nn.AlphaDropout(0.5), 0.8864),
    ],
)
def test_other_layers(layer, factor):
    (found,) = drops(nn.Sequential(layer), (1600,))
    assert 700 < found.dropped < 900
    assert 700 < found.changed < 900
    assert found.factor == pytest.approx(factor, rel=1e-3)
    assert found.inert


def test_original_scaling_changes_values_in_inference():
    (found,) = drops(nn.Sequential(dst.Dropout(0.5, scaling="original")), (100,))
    assert not found.inert


@pytest.mark.parametrize("layer", [nn.Dropout(1.0), dst.Dropout(1.0)])
def test_no_survivors(layer):
    (found,) = drops(nn.Sequential(layer), (10,))
    assert (found.dropped, found.changed) == (10, 0)
    assert math.isnan(found.factor)


def test_the_model_stays_as_it_was():
    """Batch normalisation would refuse a batch of one in training, and move its averages."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    trace(model, (4,))
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks for module in model.modules())


def test_a_layer_that_is_called_twice_has_two_rows():
    layer = nn.Linear(3, 3)
    assert [row.name for row in trace(nn.Sequential(layer, nn.ReLU(), layer), (3,))] == [
        "0",
        "1",
        "0",
    ]


def test_an_input_that_the_model_refuses():
    with pytest.raises(ValueError, match="`--input` 3x3 is not what the model takes"):
        trace(mnist_convnet(), (3, 3))


@pytest.mark.parametrize(
    "address", ["torch.nn", ":f", "torch.nn:", "absent_module:f", "math:absent"]
)
def test_a_model_that_does_not_import(address):
    with pytest.raises(ValueError, match="`MODEL`"):
        load_model(address)


def test_a_factory_that_makes_something_else():
    with pytest.raises(TypeError, match=r"must make a torch\.nn\.Module; it made a dict"):
        load_model("builtins:dict")


def test_a_model_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_model.py").write_text("from torch import nn\nmake = nn.Identity\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(load_model("my_own_model:make"), nn.Identity)


class ByKeyword(nn.Module):
    """Calls its dropout by keyword, and in training only if asked."""

    def __init__(self, always):
        super().__init__()
        self.drop, self.always = dst.Dropout(0.5), always

    def forward(self, x):
        return self.drop(input=x) if self.always or self.drop.training else x


@pytest.mark.parametrize("always", [True, False])
def test_dropout_by_keyword_or_in_training_only(always):
    (row,) = [row for row in trace(ByKeyword(always), [100]) if row.name == "drop"]
    assert 20 < row.drops.dropped < 80


def test_the_users_keys_stay():
    model = nn.Sequential(nn.Linear(4, 4), dst.Dropout(0.5))
    dst.set_key(model, 1, 2)
    key = model[1].key
    trace(model, [4])
    assert model[1].key is key


def test_an_input_too_large_to_trace():
    with pytest.raises(ValueError, match="too large"):
        trace(nn.Identity(), [1, 10**8, 10**6])
