"""The modules stand in for those of torch.nn."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import dropseed.torch as dst
from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError

NAMES = ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"]
INPUTS = {"Dropout": (4, 6), "Dropout1d": (4, 6, 3), "Dropout2d": (4, 6, 3, 2)}
INPUTS["Dropout3d"] = (4, 6, 3, 2, 2)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_constructor_is_torch_s(name):
    ours = inspect.signature(getattr(dst, name)).parameters.values()
    theirs = inspect.signature(getattr(nn, name)).parameters.values()
    shared = [(p.name, p.default) for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert shared == [(p.name, p.default) for p in theirs]
    ours_alone = [p.name for p in ours if p.kind is p.KEYWORD_ONLY]
    assert ours_alone == ["scaling", "noise_shape"][: 2 if name == "Dropout" else 1]


def test_stands_in_for_torch_s(name):
    layer = getattr(dst, name)(0.25, True)
    assert isinstance(layer, getattr(nn, name))
    assert (layer.p, layer.inplace, layer.training) == (0.25, True, True)
    assert repr(layer) == repr(getattr(nn, name)(0.25, True))
    assert list(layer.parameters()) == list(layer.buffers()) == list(layer.state_dict()) == []
    assert "scaling='original'" in repr(getattr(dst, name)(scaling="original"))


def test_the_layer_calls_its_function(name, key, same_bits):
    x = torch.randn(INPUTS[name])
    for scaling in ("inverted", "original"):
        layer = getattr(dst, name)(0.3, scaling=scaling)
        dst.set_key(layer, 7)
        function = getattr(dst.functional, name.lower())
        at = Key(7).at("")
        assert same_bits(layer(x), function(x, 0.3, key=at, scaling=scaling))
        layer.eval()
        assert same_bits(layer(x), function(x, 0.3, False, scaling=scaling))
    value = x.clone()
    assert getattr(dst, name)(0.3, inplace=True)(value) is value


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_rates_out_of_range(name, p):
    with pytest.raises(InvalidValueError, match="`p` must be in"):
        getattr(dst, name)(p)
    if p == p:
        with pytest.raises(ValueError, match="has to be between"):
            getattr(nn, name)(p)


@pytest.mark.parametrize("p", ["0.5", None, [0.5]])
def test_what_is_no_rate(name, p):
    with pytest.raises(InvalidTypeError, match="`p` must be"):
        getattr(dst, name)(p)


def test_unknown_scaling(name):
    with pytest.raises(InvalidValueError, match="`scaling`"):
        getattr(dst, name)(scaling="half")


def models():
    torch.manual_seed(1)
    layers = [nn.Linear(4, 4), None, nn.Linear(4, 2)]
    for module in (dst, nn):
        layers[1] = module.Dropout(0.5)
        yield nn.Sequential(*copy.deepcopy(layers))


@pytest.mark.parametrize("keyed", [False, True])
def test_weights_load_both_ways(keyed, same_bits):
    ours, theirs = models()
    if keyed:
        dst.set_key(ours, 0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    nn.init.ones_(theirs[0].weight)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(3, 4)
    assert same_bits(ours.eval()(x), theirs.eval()(x))
    theirs.load_state_dict(ours.state_dict(), strict=True)


def saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved,
    "half": lambda module: copy.deepcopy(module).half(),
    "double": lambda module: copy.deepcopy(module).to(torch.float64),
    "to": lambda module: copy.deepcopy(module).to("cpu", non_blocking=True),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_keep_their_arguments_and_their_key(name, way):
    layer = getattr(dst, name)(0.3, scaling="original")
    bare = COPIES[way](layer)
    assert bare.key is None
    dst.set_key(layer, 2**64 - 1, 2**32 - 1)
    twin = COPIES[way](layer)
    assert type(twin) is type(layer)
    assert repr(twin) == repr(layer)
    assert twin.key is not layer.key
    assert twin.key.dtype == torch.int64
    assert torch.equal(twin.key, layer.key)
    x = torch.ones(INPUTS[name])
    assert torch.equal(twin(x), layer(x))
    dst.set_key(twin, None)
    assert layer.key is not None


def test_the_key_moves_with_the_model(name):
    layer = getattr(dst, name)()
    dst.set_key(layer, 0)
    assert copy.deepcopy(layer).to("meta").key.is_meta
