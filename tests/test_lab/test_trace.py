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


class Net(nn.Module):
    """A model made of its forward function, a linear layer and two dropout layers."""

    def __init__(self, forward):
        super().__init__()
        self.linear, self.drop, self.last = nn.Linear(8, 8), dst.Dropout(0.5), dst.Dropout(0.5)
        self._forward = forward

    def forward(self, x):
        return self._forward(self, x)


def test_a_layer_that_only_training_calls():
    def forward(net, x):
        if net.drop.training:
            x = net.drop(net.drop(x))
        x = net.linear(x)
        return net.drop(net.last(x)) if net.drop.training else net.last(x)

    rows = trace(Net(forward), (8,), seed=4)
    assert [row.name for row in rows] == ["drop", "drop", "linear", "last", "drop"]
    mask = keep(Key(4).at("drop"), 0.5, 8)
    assert [row.drops.dropped for row in rows if row.name == "drop"] == [(~mask).sum()] * 3
    assert all(row.drops.inert for row in rows if row.drops)
    assert {row.shape for row in rows} == {(1, 8)}


def test_a_layer_that_only_inference_calls():
    rows = trace(Net(lambda net, x: x if net.drop.training else net.drop(net.linear(x))), (8,))
    assert [(row.name, row.drops) for row in rows] == [("linear", None), ("drop", None)]


def test_training_passes_that_cannot_be_compared():
    calls = iter(range(9))
    passing = Net(lambda net, x: net.drop(x) if next(calls) < 2 else x)
    with pytest.raises(ValueError, match="`MODEL` calls other dropout layers"):
        trace(passing, (8,))
    widths = iter((8, 8, 4))
    with pytest.raises(ValueError, match="or gives them other shapes, at each training pass"):
        trace(Net(lambda net, x: net.drop(x[:, : next(widths)])), (8,))


def test_an_input_given_by_name():
    (found,) = drops(Net(lambda net, x: net.drop(input=x)), (8,))
    assert found.dropped == (~keep(Key(0).at("drop"), 0.5, 8)).sum()
    assert found.inert


class Pairs(nn.Dropout):
    def forward(self, pair):
        return tuple(super(Pairs, self).forward(value) for value in pair)


def test_a_dropout_layer_of_something_else_than_a_tensor():
    model = Net(lambda net, x: net.last(net.drop((x, x))[0]))
    model.drop = Pairs(0.5)
    assert [(row.name, row.shape) for row in trace(model, (8,))] == [
        ("drop", None),
        ("last", (1, 8)),
    ]


def test_a_layer_with_both_parameters_and_children():
    rows = trace(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 8))
    assert {"self_attn", "dropout", "dropout1", "dropout2"} <= {row.name for row in rows}


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (nn.DataParallel, ["0", "1"]),
        (lambda model: nn.Sequential(nn.DataParallel(model)), ["0.0", "0.1"]),
    ],
)
def test_names_are_those_of_the_sites(wrap, names):
    wrapped = wrap(nn.Sequential(nn.Linear(8, 90), dst.Dropout(0.5)))
    rows = trace(wrapped, (8,))
    assert [row.name for row in rows] == names
    assert rows[-1].drops.dropped == (~keep(Key(0).at(names[-1]), 0.5, 90)).sum()


def test_the_keys_stay_also_where_the_model_fails():
    model = Net(lambda net, x: net.linear(x[:, :4] if net.drop.training else x))
    dst.set_key(model, seed=1, step=2)
    model.last.key = None
    key = model.drop.key
    with pytest.raises(ValueError, match="is not what the model takes"):
        trace(model, [8])
    assert (model.drop.key is key, model.last.key) == (True, None)


def test_a_large_size_among_no_values():
    with pytest.raises(ValueError, match="`--input` 0x99999999999 is too large"):
        trace(nn.Identity(), [0, 99999999999])


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
