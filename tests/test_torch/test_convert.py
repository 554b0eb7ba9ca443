"""Swapping the dropout layers of models that somebody else wrote."""

import copy
import pickle
import re
import zlib
from functools import wraps

import pytest
import torch
import torch._dynamo.testing
import torch.ao.nn.quantized
from torch import nn
from torch.nn import functional
from torch.nn.functional import dropout as renamed
from torch.nn.functional import scaled_dot_product_attention

import dropseed.torch as dst
from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch import layers, paths
from dropseed.torch.convert import Report, convert, revert, sites
from dropseed.torch.keyed import KeyedLayer
from dropseed.torch.schedule import set_rate
from dropseed.torch.weights import drop_weights, remove


class DropPath(nn.Module):
    """Looks like timm's."""

    __module__ = "timm.layers.drop"

    def __init__(self, drop_prob=0.0, scale_by_keep=True):
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, x):
        return x


class StochasticDepth(nn.Module):
    """Looks like torchvision's."""

    __module__ = "torchvision.ops.stochastic_depth"

    def __init__(self, p, mode):
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, x):
        raise NotImplementedError


class SwinDropPath(nn.Module):
    """Looks like transformers', which always scales."""

    __module__ = "transformers.models.swin.modeling_swin"

    def __init__(self, drop_prob=None):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states):
        raise NotImplementedError


class MonaiDropPath(DropPath):
    """Looks like MONAI's."""

    __module__ = "monai.networks.layers.drop_path"

    def forward(self, x):
        raise NotImplementedError


MonaiDropPath.__name__ = "DropPath"


class Block(nn.Module):
    def __init__(self, drop=0.1):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = nn.Dropout(drop)
        self.path = DropPath(0.2)

    def forward(self, x):
        return x + self.path(self.drop(self.linear(x)))


def model():
    return nn.Sequential(Block(), nn.ReLU(), nn.Sequential(Block(0.5), nn.Dropout1d(0.3)))


NAMES = ["0.drop", "0.path", "2.0.drop", "2.0.path", "2.1"]


def crcs(names):
    return {name: zlib.crc32(name.encode()) for name in names}


def only(old, **arguments):
    """A layer converted inside a model, and the report."""
    net = nn.Sequential(old)
    report = convert(net, **arguments)
    return net[0], report


def same(module, before):
    """Whether a model's modules are the very ones that they were."""
    assert [id(m) for m in module.modules()] == before


def identities(module):
    return [id(m) for m in module.modules()]


@pytest.mark.parametrize(
    ("old", "shown"),
    [
        (nn.Dropout(0.2), "Dropout(p=0.2, inplace=False)"),
        (nn.Dropout(0, inplace=True), "Dropout(p=0.0, inplace=True)"),
        (nn.Dropout1d(1), "Dropout1d(p=1.0, inplace=False)"),
        (nn.Dropout2d(0.2, True), "Dropout2d(p=0.2, inplace=True)"),
        (nn.Dropout3d(0.2), "Dropout3d(p=0.2, inplace=False)"),
        (nn.AlphaDropout(0.2), "AlphaDropout(p=0.2, inplace=False)"),
        # Torch's ignores it, and what it doesn't overwrite may be needed for backward.
        (nn.AlphaDropout(0.2, inplace=True), "AlphaDropout(p=0.2, inplace=False)"),
        (nn.FeatureAlphaDropout(0.2, True), "FeatureAlphaDropout(p=0.2, inplace=False)"),
        (DropPath(0.2), "DropPath(p=0.2, inplace=False)"),
        (DropPath(0.2, False), "DropPath(p=0.2, inplace=False, scaling='none')"),
        (MonaiDropPath(0.2), "DropPath(p=0.2, inplace=False)"),
        (SwinDropPath(0.2), "DropPath(p=0.2, inplace=False)"),
        (StochasticDepth(0.2, "row"), "DropPath(p=0.2, inplace=False)"),
        (StochasticDepth(0.2, "batch"), "DropPath(p=0.2, inplace=False, mode='batch')"),
    ],
    ids=repr,
)
def test_each_layer_keeps_its_kind_and_settings(old, shown):
    new, report = only(old)
    assert isinstance(new, KeyedLayer)
    assert repr(new) == shown
    assert len(report.replaced) == 1
    assert not report.not_replaced
    assert not report.notes
    assert new.site == report.replaced[0].site == zlib.crc32(b"0")


class Named(nn.Dropout):
    """Adds nothing that matters."""

    def __init__(self, name):
        super().__init__(0.25)
        self.name = name

    def extra_repr(self):
        return self.name


def test_a_subclass_with_the_same_forward_is_replaced():
    new, report = only(Named("it"))
    assert type(new) is dst.Dropout
    assert new.p == 0.25
    assert report.replaced[0].old.endswith(".Named")


class Always(nn.Dropout):
    def forward(self, x):
        return functional.dropout(x, self.p, training=True)


class Sampling(nn.Dropout):
    def train(self, mode=True):
        return super().train(True)


class Timed(nn.Dropout2d):
    def __call__(self, x):
        return super().__call__(x)


class Learned(nn.Dropout):
    def __init__(self):
        super().__init__()
        self.rate = nn.Parameter(torch.zeros(()))


class Holding(nn.Dropout):
    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()


class WeightDrop(nn.Module):
    def forward(self, x):
        return x


class Own(nn.modules.dropout._DropoutNd):
    def forward(self, x):
        return x


def patched():
    layer = nn.Dropout(0.5)
    layer.forward = lambda x: x
    return layer


def with_rate(p):
    layer = nn.Dropout(0.5)
    layer.p = p
    return layer


@pytest.mark.parametrize(
    ("old", "reason"),
    [
        (Always(), "its own `forward`"),
        (Sampling(), "its own `train`"),
        (Timed(), "its own `__call__`"),
        (patched(), "its own `forward`"),
        (Learned(), "parameters"),
        (Holding(), "modules"),
        (with_rate(torch.tensor(0.5)), r"`p` is tensor\(0.5000\), not a number"),
        (with_rate(None), "`p` is None"),
        (with_rate("0.5"), "`p` is '0.5'"),
        (with_rate(True), "`p` is True"),
        (with_rate(1.5), "`p` is 1.5"),
        (with_rate(float("nan")), "`p` is nan"),
        (SwinDropPath(), "`drop_prob` is None"),
        (WeightDrop(), "not a known one"),
        (Own(0.5), "not a known one"),
        (torch.ao.nn.quantized.Dropout(0.5), "`forward` of a quantized model"),
        (nn.MultiheadAttention(4, 2, dropout=0.25), "its rate, 0.25, is a number inside it"),
        (nn.LSTM(4, 4, 2, dropout=0.25), "its rate, 0.25, is a number inside it"),
        (nn.GRU(4, 4, 2, dropout=0.25), "its rate, 0.25, is a number inside it"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
@pytest.mark.parametrize("kind", [None, "gaussian"])
def test_what_cannot_be_replaced_is_reported(old, reason, kind):
    new, report = only(old, kind=kind)
    assert new is old
    assert not report.replaced
    (entry,) = report.not_replaced
    assert entry.name == "0"
    assert re.search(reason, entry.reason)
    assert "nothing to convert" in report.notes[0]


def test_an_odd_mode_is_reported_where_it_matters():
    net = nn.Sequential(StochasticDepth(0.5, "column"))
    assert "`mode` is 'column'" in convert(net).not_replaced[0].reason
    assert convert(net, kind="dropout").replaced


@pytest.mark.parametrize("old", [nn.MultiheadAttention(4, 2), nn.LSTM(4, 4), nn.RReLU()])
def test_what_drops_nothing_is_not_reported(old):
    assert not only(old)[1].not_replaced


def test_an_odd_rate_is_no_matter_where_another_is_given():
    net = nn.Sequential(with_rate(None))
    convert(net, rate=0.5)
    assert net[0].p == 0.5
    assert "None" in str(revert(net))
    assert net[0].p is None


def test_a_rate_for_all():
    net = model()
    report = convert(net, rate=0.75)
    assert {row.rate for row in report.replaced} == {0.75}
    assert {m.p for m in net.modules() if isinstance(m, KeyedLayer)} == {0.75}


CLASSES = {
    "dropout": layers.Dropout,
    "alpha": layers.AlphaDropout,
    "feature_alpha": layers.FeatureAlphaDropout,
    "gaussian": layers.GaussianDropout,
    "locked": layers.LockedDropout,
    "path": paths.DropPath,
}


@pytest.mark.parametrize("kind", CLASSES)
def test_a_kind_for_all(kind):
    net = nn.Sequential(nn.Dropout(0.2), nn.AlphaDropout(0.3), DropPath(0.4))
    report = convert(net, kind=kind)
    assert [type(m) for m in net] == [CLASSES[kind]] * 3
    assert [m.p for m in net] == [0.2, 0.3, 0.4]
    assert len(report.replaced) == 3
    x = torch.randn(4, 5, 6)
    assert torch.isfinite(net(x)).all()
    assert torch.equal(net.eval()(x), x)


def test_the_kind_path_keeps_the_settings_of_paths():
    net = nn.Sequential(StochasticDepth(0.2, "batch"), DropPath(0.2, False), Named("mode"))
    net[2].mode = "batch"
    convert(net, kind="path")
    assert [(m.mode, m.scaling) for m in net] == [
        ("batch", "inverted"),
        ("sample", "none"),
        ("sample", "inverted"),
    ]


CONV = nn.Conv2d(3, 3, 1)


@pytest.mark.parametrize(
    ("before", "old", "number"),
    [
        ([], nn.Dropout1d(), 1),
        ([], nn.Dropout2d(), 2),
        ([], nn.Dropout3d(), 3),
        ([nn.Linear(3, 3)], nn.Dropout2d(), 2),
        ([nn.Conv1d(3, 3, 1)], nn.Dropout(), 1),
        ([nn.ConvTranspose3d(3, 3, 1), nn.BatchNorm3d(3), nn.ReLU()], nn.Dropout(), 3),
        ([nn.Linear(3, 3), CONV], nn.AlphaDropout(), 2),
        ([nn.Sequential(nn.Linear(3, 3), nn.Sequential(CONV, nn.ReLU()))], nn.Dropout(), 2),
        ([nn.Sequential()], nn.Dropout(), "no convolution"),
        ([CONV, nn.Flatten()], nn.Dropout(), "follows torch.Flatten"),
        ([nn.Sequential(CONV, nn.Flatten(), nn.Linear(3, 3))], nn.Dropout(), "follows torch.Lin"),
        ([nn.LSTM(3, 3)], nn.Dropout(), "follows torch.LSTM"),
        ([], DropPath(0.5), "no convolution"),
    ],
)
def test_spatial_where_the_shape_is_known(before, old, number):
    net = nn.Sequential(*before, old, nn.Conv3d(3, 3, 1))
    report = convert(net, kind="spatial")
    new = net[len(before)]
    if isinstance(number, int):
        assert type(new) is getattr(layers, f"SpatialDropout{number}d")
        assert new.p == 0.5
    else:
        assert new is old
        assert number in report.not_replaced[0].reason


def test_spatial_with_children_that_are_none():
    net = nn.Module()
    net.conv = nn.Conv1d(3, 3, 1)
    net.register_module("gap", None)
    net.drop = nn.Dropout()
    convert(net, kind="spatial")
    assert type(net.drop) is layers.SpatialDropout1d


def test_spatial_with_one_layer_behind_different_convolutions():
    drop = nn.Dropout()
    net = nn.Sequential(nn.Sequential(CONV, drop), nn.Sequential(nn.Conv1d(3, 3, 1), drop))
    (entry,) = convert(net, kind="spatial").not_replaced
    assert "different convolutions" in entry.reason
    assert net[0][1] is net[1][1] is drop


def test_locked_reads_the_layout_beside_it():
    net = nn.ModuleList(
        [
            nn.Sequential(nn.Embedding(5, 4), nn.Dropout(), nn.LSTM(4, 4)),
            nn.Sequential(nn.Dropout(), nn.LSTM(4, 4, batch_first=True)),
            nn.Sequential(nn.Linear(4, 4), nn.Dropout()),
            nn.Sequential(CONV, nn.Dropout()),
            nn.Sequential(nn.Dropout2d()),
        ]
    )
    report = convert(net, kind="locked")
    assert [net[0][1].batch_first, net[1][0].batch_first, net[2][1].batch_first] == [0, 1, 1]
    assert [entry.name for entry in report.not_replaced] == ["3.1", "4.0"]
    assert all("(N, C, *)" in entry.reason for entry in report.not_replaced)


def perceptron(drop=None):
    drop = nn.Dropout(0.4) if drop is None else drop
    return nn.Sequential(nn.Linear(8, 6), drop, nn.ReLU(), nn.Linear(6, 2))


def names_of(net):
    return [name for name, _ in net.named_modules()]


def test_dropconnect_drops_the_weight_behind_the_layer(expected, same_bits):
    net, x = perceptron(), torch.randn(5, 8)
    twin, state = copy.deepcopy(net), list(net.state_dict())
    report = convert(net, kind="dropconnect")
    assert str(report).splitlines() == [
        "replaced  was            is                   rate  site",
        "1         torch.Dropout  dropseed.WeightDrop  0.4   2212294583",
    ]
    assert net[1] is net[3].drop_weights.weight
    assert list(net.state_dict()) == state
    assert sites(net) == crcs(["1"])
    assert dst.set_key(net, 3, 4) == 1
    twin[1], twin[3].weight.data = (
        nn.Identity(),
        expected(net[3].weight, 0.4, Key(3, step=4).at("1")),
    )
    for output in (net(x), twin(x)):
        output.square().sum().backward()
    assert same_bits(net(x), twin(x))
    kept = twin[3].weight.grad * (twin[3].weight != 0) / 0.6
    torch.testing.assert_close(net[3].weight.grad, kept)
    assert same_bits(net[0].weight.grad, twin[0].weight.grad)
    assert set_rate(net, 1.0) == 1
    assert torch.equal(net(x), net[3].bias.expand(5, 2))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(net.eval()(x), twin(x))


LINEAR = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("old", "after", "found"),
    [
        (nn.Dropout(), [LINEAR], 0),
        (nn.Dropout(), [nn.ReLU(), nn.Flatten(), nn.Sequential(nn.MaxPool2d(2)), LINEAR], 3),
        (nn.Dropout2d(), [CONV, LINEAR], 0),
        (nn.AlphaDropout(), [nn.SELU(), nn.ConvTranspose1d(3, 3, 1)], 1),
        (DropPath(0.5), [nn.modules.linear.NonDynamicallyQuantizableLinear(3, 3)], 0),
        (nn.Dropout(), [], "nothing with weights follows it under its parent"),
        (nn.Dropout(), [nn.ReLU(), nn.Softmax(-1)], "nothing with weights"),
        (nn.Dropout(), [nn.BatchNorm1d(3), LINEAR], "torch.BatchNorm1d follows it, neither"),
        (nn.Dropout(), [nn.PReLU(), LINEAR], "torch.PReLU follows it"),
        (nn.Dropout(), [nn.LSTM(3, 3)], "torch.LSTM follows it"),
        (nn.Dropout(), [nn.Sequential(LINEAR)], "torch.Sequential follows it"),
        (nn.Dropout(), [nn.Bilinear(3, 3, 3)], "torch.Bilinear follows it"),
        (nn.Dropout(), [nn.LazyLinear(3)], "the torch.LazyLinear that follows it isn't init"),
        (nn.Dropout(), [dst.max_norm(nn.Linear(3, 3), 1)], "follows it is no parameter"),
        (
            nn.Dropout(),
            [drop_weights(nn.Linear(3, 3), "weight", 0.5)],
            "the weight of the torch.Linear that follows it is dropped already",
        ),
    ],
)
def test_dropconnect_where_the_weight_is_known(old, after, found):
    net = copy.deepcopy(nn.Sequential(LINEAR, old, *after))
    before = identities(net)
    report = convert(net, kind="dropconnect")
    if isinstance(found, int):
        assert net[2 + found].drop_weights.weight is net[1]
        assert [row.name for row in report.replaced] == ["1"]
    else:
        same(net, before)
        assert not report.replaced
        assert found in report.not_replaced[0].reason
        assert report.not_replaced[0].name == "1"


def test_dropconnect_with_children_that_are_none():
    net = nn.Module()
    net.drop = nn.Dropout()
    net.register_module("gap", None)
    net.linear = nn.Linear(3, 3)
    assert convert(net, kind="dropconnect").replaced
    assert net.linear.drop_weights.weight is net.drop


def test_dropconnect_drops_a_weight_once():
    net = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2), nn.Linear(3, 3))
    report = convert(net, kind="dropconnect")
    assert [row.name for row in report.replaced] == ["0"]
    (entry,) = report.not_replaced
    assert entry.name == "1"
    assert "before it drops the weight of the torch.Linear already" in entry.reason
    assert net[2].drop_weights.weight.p == 0.1
    assert type(net[1]) is nn.Dropout


def test_dropconnect_with_a_layer_in_two_places():
    drop, linear = nn.Dropout(), nn.Linear(3, 3)
    net = nn.Sequential(nn.Sequential(drop, nn.Linear(3, 3)), nn.Sequential(drop, nn.Linear(3, 3)))
    assert "different layers" in convert(net, kind="dropconnect").not_replaced[0].reason
    net = nn.Sequential(linear, nn.Sequential(drop, linear), nn.Sequential(drop, nn.ReLU(), linear))
    report = convert(net, kind="dropconnect")
    assert [row.name for row in report.replaced] == ["1.0"]
    assert net[1][0] is net[2][0] is linear.drop_weights.weight
    assert list(sites(net).values()) == [zlib.crc32(b"1.0")]
    revert(net)
    assert net[1][0] is net[2][0] is drop
    assert not linear._modules


def test_dropconnect_leaves_what_is_no_module_alone():
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    report = convert(net, kind="dropconnect")
    assert [row.name for row in report.replaced] == ["dropout"]
    assert net.linear2.drop_weights.weight is net.dropout
    assert [entry.name for entry in report.not_replaced] == ["self_attn", "dropout1", "dropout2"]
    net(torch.randn(2, 3, 8)).sum().backward()


@pytest.mark.parametrize("training", [True, False])
def test_dropconnect_keeps_the_layer_s_mode_and_hooks(training):
    net, calls = perceptron(), []
    net[1].train(training)
    handle = net[1].register_forward_hook(lambda *_: calls.append(1))
    convert(net, kind="dropconnect", rate=1.0)
    output = net(torch.ones(1, 8))[0]
    assert torch.equal(output, net[3].bias) == training
    assert calls == [1]
    assert [m.training for m in net[3].modules()][-1] == training
    revert(net)
    assert net[1].training == training
    handle.remove()
    net(torch.ones(1, 8))
    assert calls == [1]


def test_dropconnect_changes_nothing_on_an_error():
    net = nn.Sequential(perceptron(), perceptron())
    before, names = identities(net), names_of(net)
    for given in ({"0.1": 7, "1.1": 7}, {"0.3": 7}):
        with pytest.raises(InvalidValueError):
            convert(net, kind="dropconnect", sites=given)
        same(net, before)
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    convert(net, kind="dropconnect", sites={"0.1": 7})
    assert sites(net) == {"0.1": 7, "1.1": zlib.crc32(b"1.1")}
    revert(net)
    assert names_of(net) == names


@pytest.mark.parametrize(
    "duplicate", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))]
)
def test_dropconnect_and_back(duplicate):
    net = perceptron(Named("it"))
    state = net.state_dict()
    convert(net, kind="dropconnect", rate=0.5)
    first = net[1]
    assert not convert(net, kind="dropconnect").replaced
    assert not convert(net).replaced
    assert net[1] is first
    net = duplicate(net)
    assert net[1] is net[3].drop_weights.weight
    dst.set_key(net, 1)
    x = torch.randn(2, 8)
    assert torch.equal(net(x), net(x))
    net[1].p = 0.75
    report = revert(net)
    assert str(report).splitlines()[1].split()[:2] == ["1", "dropseed.WeightDrop"]
    assert report.replaced[0].rate == 0.75
    assert (type(net[1]), net[1].p, net[1].name) == (Named, 0.75, "it")
    assert names_of(net) == names_of(perceptron())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())
    assert net.state_dict().keys() == state.keys()
    assert "nothing to revert" in str(revert(net))


def test_dropconnect_and_back_after_changes():
    net = perceptron()
    old = net[1]
    convert(net, kind="dropconnect")
    revert(net)
    assert net[1] is old
    convert(net, kind="dropconnect")
    net[3] = nn.Linear(6, 3)
    revert(net)
    assert net[1] is old
    convert(net, kind="dropconnect")
    net[1] = nn.Identity()
    revert(net)
    assert type(net[1]) is nn.Identity
    assert names_of(net) == names_of(perceptron())


def test_revert_leaves_weights_that_drop_weights_drops():
    net = perceptron()
    drop_weights(net[0], "weight", 0.5)
    convert(net, kind="dropconnect")
    (entry,) = revert(net).not_replaced
    assert entry.name == "0.drop_weights.weight"
    assert "dropseed.torch.remove" in entry.reason
    assert type(net[1]) is nn.Dropout
    remove(net[0])
    assert names_of(net) == names_of(perceptron())
    convert(net, kind="dropconnect")
    drop_weights(net[3], "bias", 0.5)
    revert(net)
    assert sites(net).keys() == {"3.drop_weights.bias"}
    assert names_of(net[3]) == ["", "drop_weights", "drop_weights.bias"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "block"}, InvalidValueError, "`kind`.*'block'"),
        ({"kind": nn.Dropout}, InvalidValueError, "`kind`"),
        ({"rate": 1.5}, InvalidValueError, "`rate`.*1.5"),
        ({"rate": float("nan")}, InvalidValueError, "`rate`.*nan"),
        ({"rate": "0.5"}, InvalidTypeError, "`rate`.*'0.5'"),
        ({"sites": ["0.drop"]}, InvalidTypeError, "`sites`"),
        ({"sites": {"0.drop": 2**32}}, InvalidValueError, r"`sites\['0.drop'\]`.*4294967296"),
        ({"sites": {"0.drop": -1}}, InvalidValueError, "-1"),
        ({"sites": {"0.drop": 0.5}}, InvalidTypeError, "0.5"),
        ({"sites": {"0.linear": 1}}, InvalidValueError, "'0.linear'.*'0.drop'"),
        ({"sites": {"0.drop": 1, "gone": 2, 3: 4}}, InvalidValueError, r"\['gone', 3\]"),
        ({"sites": {"0.drop": 1, "2.1": 1}}, InvalidValueError, "same site 1"),
    ],
)
def test_bad_arguments_change_nothing(arguments, error, message):
    net = model()
    before = identities(net)
    with pytest.raises(error, match=message):
        convert(net, **arguments)
    same(net, before)


@pytest.mark.parametrize("call", [convert, revert, sites])
@pytest.mark.parametrize("value", [None, nn.Dropout, lambda x: x])
def test_a_model_must_be_a_module(call, value):
    with pytest.raises(InvalidTypeError, match=r"`model` must be a torch\.nn\.Module"):
        call(value)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager")])
def test_a_root_that_is_a_layer_is_an_error_that_says_what_to_do(wrap):
    with pytest.raises(InvalidValueError, match=r"itself a dropout.*torch\.Dropout.*Sequential"):
        convert(wrap(nn.Dropout()))
    with pytest.raises(InvalidValueError, match=r"itself a dropout.*dropseed\.Dropout"):
        revert(wrap(dst.Dropout()))


def test_a_root_that_cannot_be_replaced_anyway_is_reported():
    assert "its own `forward`" in str(convert(Always()))
    assert "dropseed's already" in str(convert(dst.Dropout()))


@pytest.mark.parametrize("training", [True, False])
def test_modes_and_state_stay(training):
    net = model().train(training)
    net[2][1].training = not training
    state = {name: value.clone() for name, value in net.state_dict().items()}
    convert(net)
    modes = [m.training for m in net.modules() if isinstance(m, KeyedLayer)]
    assert modes == [training] * 4 + [not training]
    assert net.state_dict().keys() == state.keys()
    net.load_state_dict(state, strict=True)
    assert torch.equal(net.eval()(torch.ones(2, 4)), net(torch.ones(2, 4)))


HOOKS = {
    "forward": lambda m, f: m.register_forward_hook(f),
    "forward with kwargs": lambda m, f: m.register_forward_hook(f, with_kwargs=True),
    "forward always": lambda m, f: m.register_forward_hook(f, always_call=True),
    "pre": lambda m, f: m.register_forward_pre_hook(f),
    "pre with kwargs": lambda m, f: m.register_forward_pre_hook(f, with_kwargs=True),
    "backward": lambda m, f: m.register_full_backward_hook(f),
    "backward pre": lambda m, f: m.register_full_backward_pre_hook(f),
}


@pytest.mark.parametrize("register", HOOKS)
def test_hooks_stay_and_can_be_removed(register):
    net, calls = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), []
    handle = HOOKS[register](net[1], lambda *_: calls.append("before"))

    def run():
        calls.clear()
        net(torch.ones(2, 4)).sum().backward()
        return set(calls)

    convert(net)
    assert run() == {"before"}
    other = HOOKS[register](net[1], lambda *_: calls.append("between"))
    assert run() == {"before", "between"}
    revert(net)
    assert run() == {"before", "between"}
    handle.remove()
    assert run() == {"between"}
    convert(net)
    other.remove()
    assert run() == set()


class Wrapped(nn.Module):
    """The form of DistributedDataParallel: everything in a child called `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args):
        return self.module(*args)


WRAPPERS = {
    "bare": lambda m: m,
    "compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DDP's form": Wrapped,
    "both": lambda m: Wrapped(torch.compile(m, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_is_converted_inside(wrap):
    inner = model()
    net = WRAPPERS[wrap](inner)
    report = convert(net)
    assert [row.name for row in report.replaced] == NAMES
    assert sites(net) == sites(inner) == crcs(NAMES)
    assert isinstance(inner[0].drop, dst.Dropout)
    assert len(revert(net).replaced) == 5
    assert type(inner[0].drop) is nn.Dropout
    assert sites(net) == {}


@pytest.mark.parametrize("compile_in_place", [False, True])
def test_a_model_that_is_already_compiled_and_used(compile_in_place):
    net = Block(0.5)
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    call = net if compile_in_place else torch.compile(net, backend=counter)
    if compile_in_place:
        net.compile(backend=counter)
    x = torch.ones(8, 4)
    call(x)
    convert(call)
    dst.set_key(call, 3)
    assert torch.equal(call(x), net.forward(x))
    assert counter.frame_count == 2
    revert(call)
    assert not torch.equal(call(x), call(x))
    assert counter.frame_count <= 3  # the first one may fit again


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_dropconnect_inside_a_wrapper(wrap):
    inner, x = perceptron(), torch.ones(2, 8)
    net = WRAPPERS[wrap](inner)
    net(x)  # what is compiled is compiled already
    report = convert(net, kind="dropconnect", rate=1.0)
    assert [row.name for row in report.replaced] == ["1"]
    assert sites(net) == crcs(["1"])
    assert torch.equal(net(x), inner[3].bias.expand(2, 2))
    revert(net)
    inner[1].p = 0.0
    assert torch.equal(net(x), inner[3](torch.relu(inner[0](x))))


def test_data_parallel_around_a_layer():
    net = nn.DataParallel(nn.Dropout())
    report = convert(net)
    assert type(net.module) is dst.Dropout
    assert sites(net) == {"": 0}
    assert str(report).splitlines()[1].startswith(".")


def test_a_layer_compiled_by_itself_is_reported():
    net = nn.Sequential(torch.compile(nn.Dropout(), backend="eager"))
    (entry,) = convert(net).not_replaced
    assert entry.name == "0"
    assert "compiled it by itself" in entry.reason
    assert type(net[0]._orig_mod) is nn.Dropout


def test_sites_decide_the_masks_wherever_the_model_is():
    net = model()
    convert(net)
    whole = nn.ModuleDict({"encoder": net, "head": dst.Dropout(0.5)})
    assert sites(whole) == {f"encoder.{name}": crc for name, crc in crcs(NAMES).items()} | crcs(
        ["head"]
    )
    assert dst.set_key(whole, 5, 7) == 6
    x = torch.ones(9, 4)
    key = Key(5, step=7).at("2.0.drop")
    assert torch.equal(net[2][0].drop(x), dst.functional.dropout(x, 0.5, key=key))
    key = Key(5, step=7).at("head")
    assert torch.equal(whole["head"](x), dst.functional.dropout(x, 0.5, key=key))


def test_a_converted_model_equals_one_that_was_written_with_dropseed():
    theirs, ours = model(), model()
    ours.load_state_dict(theirs.state_dict())
    convert(theirs)
    for block, p in ((ours[0], 0.1), (ours[2][0], 0.5)):
        block.drop, block.path = dst.Dropout(p), paths.DropPath(0.2)
    ours[2][1] = dst.Dropout1d(0.3)
    x, results = torch.randn(6, 4), []
    for net in (theirs, ours):
        dst.set_key(net, 1, 2)
        net(x).square().sum().backward()
        results.append([net(x), *(p.grad for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_shared_layer_is_one_site():
    drop, block = nn.Dropout(), Block()
    net = nn.ModuleDict({"a": nn.Sequential(drop, drop), "b": block, "c": block, "d": drop})
    report = convert(net)
    assert [row.name for row in report.replaced] == ["a.0", "b.drop", "b.path"]
    assert net["a"][0] is net["a"][1] is net["d"]
    assert net["b"] is net["c"] is block
    assert sites(net) == crcs(["a.0", "b.drop", "b.path"])
    revert(net)
    assert net["a"][0] is net["a"][1] is net["d"] is drop


def test_names_that_hash_alike_raise_and_show_what_settles_it():
    def make():
        return nn.ModuleDict(
            {"x": nn.Dropout(), "plumless": nn.Dropout(), "buckeroo": nn.Dropout()}
        )

    for given in ({}, {"x": zlib.crc32(b"plumless") + 1}):
        net = make()
        before = identities(net)
        with pytest.raises(InvalidValueError, match="'plumless' and 'buckeroo'") as error:
            convert(net, sites=given)
        same(net, before)
        numbers = eval(re.search(r"sites=({.*?})", str(error.value))[1])
        assert numbers.items() > given.items()
        convert(net, sites=numbers)
        assert sites(net) == crcs(net) | numbers
        assert dst.set_key(net, 0) == 3
        x = torch.ones(64)
        assert not torch.equal(net["plumless"](x), net["buckeroo"](x))


def test_sites_settle_layers_that_were_dropseeds_before():
    net = nn.ModuleDict({"plumless": dst.Dropout(), "buckeroo": nn.Dropout()})
    with pytest.raises(InvalidValueError, match="'buckeroo' and 'plumless'"):
        convert(net)
    convert(net, sites={"plumless": 7})
    assert sites(net) == {"plumless": 7, "buckeroo": zlib.crc32(b"buckeroo")}
    assert dst.set_key(net, 0) == 2


def test_copies_of_a_converted_part_are_told_apart():
    block = nn.Sequential(nn.Dropout())
    convert(block)
    net = nn.Sequential(block, copy.deepcopy(block))
    with pytest.raises(InvalidValueError, match=r"'0\.0' and '1\.0'.*revert"):
        dst.set_key(net, 0)
    assert list(net.buffers()) == []
    revert(net)
    convert(net)
    assert dst.set_key(net, 0) == 2
    assert sites(net) == crcs(["0.0", "1.0"])


def test_converting_twice_changes_nothing():
    net = model()
    convert(net, sites={"2.1": 5})
    before, numbers = identities(net), sites(net)
    for arguments in ({}, {"kind": "gaussian", "rate": 0.9}):
        report = convert(net, **arguments)
        assert report == Report(notes=report.notes)
        assert "dropseed's already" in report.notes[0]
        assert "all layers" in report.notes[0]
        same(net, before)
        assert sites(net) == numbers == crcs(NAMES) | {"2.1": 5}
        assert net[0].drop.p == 0.1


def test_what_is_new_is_converted_beside_what_was_converted():
    net = nn.Sequential(nn.Dropout())
    convert(net)
    first = net[0]
    net.append(nn.Dropout())
    report = convert(net)
    assert net[0] is first
    assert [row.name for row in report.replaced] == ["1"]
    assert "1 layer." in report.notes[0]


def test_revert_brings_back_the_very_modules():
    net = model()
    before, was = identities(net), str(net)
    convert(net, kind="dropout", rate=0.9)
    net.eval()
    report = revert(net)
    same(net, before)
    assert str(net) == was
    assert not any(m.training for m in net.modules())
    assert [row.name for row in report.replaced] == NAMES
    assert [row.rate for row in report.replaced] == [0.1, 0.2, 0.5, 0.2, 0.3]
    assert [row.new for row in report.replaced][:2] == ["torch.Dropout", "timm.DropPath"]
    assert "nothing to revert" in str(revert(net))


def test_revert_takes_a_changed_rate_along():
    net = model()
    convert(net)
    net[0].drop.p, net[0].path.p = 0.35, 0.45
    set_rate(net, 0.5, sites=["2.1"])
    revert(net)
    assert (net[0].drop.p, net[0].path.drop_prob, net[2][1].p) == (0.35, 0.45, 0.5)
    assert all(type(p) is float for p in (net[0].drop.p, net[2][1].p))
    assert net[2][0].drop.p == 0.5


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (dst.Dropout(0.2, True), nn.Dropout(0.2, True)),
        (dst.Dropout1d(0.2), nn.Dropout1d(0.2)),
        (dst.Dropout2d(0.2), nn.Dropout2d(0.2)),
        (dst.Dropout3d(0.2), nn.Dropout3d(0.2)),
        (dst.Dropout(torch.tensor(0.25)), nn.Dropout(0.25)),
        (layers.SpatialDropout1d(0.2), nn.Dropout1d(0.2)),
        (layers.SpatialDropout2d(0.2), nn.Dropout2d(0.2)),
        (layers.SpatialDropout3d(0.2), nn.Dropout3d(0.2)),
        (layers.AlphaDropout(0.2), nn.AlphaDropout(0.2)),
        (layers.FeatureAlphaDropout(0.2), nn.FeatureAlphaDropout(0.2)),
        (layers.GaussianDropout(0.2), "no such layer"),
        (layers.LockedDropout(0.2), "no such layer"),
        (paths.DropPath(0.2), "no such layer"),
        (dst.Dropout(0.2, scaling="original"), "scaling='original'"),
        (dst.Dropout(0.2, noise_shape=(None, 1)), "noise_shape="),
        (layers.SpatialDropout2d(0.2, channels_last=True), "channels_last=True"),
    ],
    ids=repr,
)
def test_revert_of_what_was_not_converted(old, new):
    net = nn.Sequential(old.eval())
    report = revert(net)
    if isinstance(new, str):
        assert net[0] is old
        assert new in report.not_replaced[0].reason
    else:
        assert type(net[0]) is type(new)
        assert repr(net[0]) == repr(new)
        assert not net[0].training


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_of_a_converted_model(duplicate):
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.AlphaDropout(0.1))
    convert(net, rate=0.25)
    dst.set_key(net, 1)
    twin, x = duplicate(net), torch.ones(5, 4)
    assert torch.equal(twin(x), net(x))
    assert sites(twin) == sites(net)
    assert not convert(twin).replaced
    net[1].p = 0.9
    revert(twin)
    assert [type(m) for m in twin] == [nn.Linear, nn.Dropout, nn.AlphaDropout]
    assert [m.p for m in twin[1:]] == [0.5, 0.1]
    assert isinstance(net[1], KeyedLayer)
    assert net[1]._original[0] is not twin[1]


def test_the_kept_module_is_no_part_of_the_model():
    net = nn.Sequential(nn.Dropout())
    convert(net)
    assert len(list(net.modules())) == 2
    assert repr(net[0]) == "Dropout(p=0.5, inplace=False)"


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_transformer_gives_the_same_in_evaluation(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        before = net.eval()(x)
        report = convert(net)
        assert torch.equal(net(x), before)
    assert [row.name for row in report.replaced] == [
        f"layers.{i}.{name}" for i in (0, 1) for name in ("dropout", "dropout1", "dropout2")
    ]
    assert [entry.what for entry in report.not_replaced] == ["torch.MultiheadAttention"] * 2
    dst.set_key(net.train(), 0)
    net(x).sum().backward()
    with torch.no_grad():
        assert torch.allclose(net.eval()(x), before)


def test_in_a_quantized_model_only_dropout_is_touched():
    first, last = torch.ao.nn.quantized.ReLU6(), torch.ao.nn.quantized.Dropout()
    net = nn.Sequential(first, nn.Dropout(), last)
    report = convert(net)
    assert [type(net[1]), net[0], net[2]] == [dst.Dropout, first, last]
    assert [entry.what for entry in report.not_replaced] == ["torch.Dropout"]


def test_script_modules_are_reported():
    net = nn.Sequential(Block(), nn.Dropout())
    with pytest.warns(DeprecationWarning, match="jit.script"):
        net[0] = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Dropout()))
    report = convert(net)
    assert [row.name for row in report.replaced] == ["1"]
    (entry,) = report.not_replaced
    assert entry.name == "0"
    assert "TorchScript" in entry.reason
    assert not convert(net[0]).replaced


def test_graph_modules_are_modules():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x):
            return functional.dropout(self.drop(self.linear(x)), 0.1, self.training)

    net = torch.fx.symbolic_trace(Net())
    report = convert(net)
    assert type(net.drop) is dst.Dropout
    assert [entry.what for entry in report.not_replaced] == ["dropout()"]
    exported = torch.export.export(Net(), (torch.ones(2, 4),)).module()
    assert {entry.what for entry in convert(exported).not_replaced} == {"dropout()"}


def drop_path(x, p):
    return x


def attend(q, p):
    return helper(q, p)


def helper(q, p):
    return attend(q, p) if p > 1 else scaled_dot_product_attention(q, q, q, dropout_p=p)


def decorated(function):
    @wraps(function)
    def call(*args):
        return function(*args)

    return call


class Calling(nn.Module):
    """Calls functional dropout in every way that there is."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, x):
        x = functional.dropout(x, 0.1, self.training)
        x = torch.nn.functional.alpha_dropout(self.dropout(x), 0.1)
        x = [renamed(y) for y in torch.feature_dropout(x, 0.1, True)]
        return attend(x, 0.1)

    @decorated
    def other(self, x):
        return drop_path(x, 0.1)

    @staticmethod
    def static(x):
        return functional.dropout2d(x)


class Quiet(nn.Module):
    """Names dropout, but drops through modules, or through dropseed."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()
        self.drop_path = DropPath(0.1)

    def forward(self, x):
        x = self.drop_path(self.dropout(functional.relu(x)))
        return dst.functional.dropout(x, 0.5)  # not functional.dropout(x)


def test_functional_calls_are_reported_and_never_fatal():
    net = nn.ModuleDict({"calling": Calling(), "quiet": Quiet()})
    report = convert(net)
    assert len(report.replaced) == 3
    assert {entry.name for entry in report.not_replaced} == {"calling"}
    assert sorted(entry.what for entry in report.not_replaced) == [
        "alpha_dropout()",
        "drop_path()",
        "dropout()",
        "dropout()",
        "dropout2d()",
        "dropout_p=",
        "feature_dropout()",
    ]
    assert all("test_convert.py:" in entry.reason for entry in report.not_replaced)


def test_code_without_source_is_read():
    names = {"nn": nn, "F": functional}
    exec("class Net(nn.Module):\n def forward(self, x):\n  return F.dropout(x)", names)
    assert [entry.what for entry in convert(names["Net"]()).not_replaced] == ["dropout()"]


def test_a_global_that_runs_code_when_asked_is_not_asked():
    class Proxy:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    names = {"nn": nn, "F": functional, "lazy": Proxy()}
    exec("class Net(nn.Module):\n def forward(self, x):\n  return lazy.dropout(x)", names)
    assert not convert(names["Net"]()).not_replaced


def test_the_report_is_a_table():
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), Always(), dst.Dropout())
    package = Always.__module__.partition(".")[0]
    what = f"{package}.Always"
    assert str(convert(net)).splitlines() == [
        "replaced  was            is                rate  site",
        "1         torch.Dropout  dropseed.Dropout  0.1   2212294583",
        f"not replaced  {'what':{len(what)}}  why",
        f"2             {what}  its own `forward` is not that of torch.Dropout",
        "Note: dropseed's already, and left as they are: 1 layer. To change them, revert first.",
    ]
    assert str(convert(nn.Linear(1, 1))).startswith("Note: there is nothing to convert")
