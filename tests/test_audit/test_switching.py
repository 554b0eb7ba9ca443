"""Dropout that is on in evaluation, or never on in training."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import dropseed.torch as dst
from dropseed.audit.running.model import check_model
from dropseed.audit.running.passes import run
from test_audit.nets import Net, codes, found

X = torch.linspace(-1, 1, 6 * 8).reshape(6, 8)
SEQUENCES = torch.linspace(-1, 1, 4 * 6 * 8).reshape(4, 6, 8)


def linear():
    return nn.Linear(8, 8)


def message(model, inputs, code):
    (text,) = [note.message for note in check_model(model, inputs).findings if note.code == code]
    return text


class Kept(nn.Module):
    """A model that keeps a part in training mode."""

    def __init__(self, *layers):
        super().__init__()
        self.part = nn.Sequential(*layers)
        self.fc = linear()

    def train(self, mode=True):
        super().train(mode)
        self.part.train()
        return self

    def forward(self, x):
        return self.fc(self.part(x))


def test_a_submodule_left_in_training():
    model = Kept(nn.Dropout(0.5), nn.ReLU())
    assert {("DS501", "part"), ("DS502", "part.0")} == found(model, X)
    assert message(model, X, "DS501").endswith("with 2 modules in it")


def test_a_submodule_left_in_training_without_dropout():
    assert found(Kept(nn.ReLU()), X) == {("DS501", "part")}


def test_a_submodule_switched_on_by_the_forward_pass():
    def forward(net, x):
        net.drop.train()
        return net.fc(net.drop(x))

    assert {("DS501", "drop"), ("DS502", "drop")} == found(
        Net(forward, drop=nn.Dropout(0.5), fc=linear()), X
    )


@pytest.mark.parametrize(
    "model",
    [
        Net(lambda net, x: nn.Dropout(0.5)(x)),
        Net(lambda net, x: net.layers[0](x), layers=[nn.Dropout(0.5)]),
        Net(lambda net, x: net.layers["a"](x), layers={"a": nn.Sequential(nn.Dropout(0.5))}),
        Net(lambda net, x: net.layers[0](x), layers=[nn.BatchNorm1d(8)]),
    ],
)
def test_what_eval_does_not_reach(model):
    assert "DS501" in codes(model, X)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(linear(), nn.Dropout(0.5), linear()),
        nn.Sequential(linear(), nn.Dropout(0.5), linear()).eval(),
        Net(lambda net, x: nn.ReLU()(net.fc(x)), fc=linear()),
        Net(lambda net, x: nn.Dropout(0.5).eval()(net.fc(x)), fc=linear()),
        Net(lambda net, x: nn.Dropout(0.5).train(net.training)(net.fc(x)), fc=linear()),
        Net(lambda net, x: net.layers[0](x), layers=nn.ModuleList([nn.Dropout(0.5)])),
        Net(lambda net, x: net.fc(x), fc=linear(), layers=[nn.Dropout(0.5)]),
        Net(lambda net, x: net.layers[0](x), layers=[nn.BatchNorm1d(8).eval()]),
    ],
)
def test_what_eval_reaches(model):
    assert "DS501" not in codes(model, X)


@pytest.mark.parametrize(
    ("forward", "site"),
    [
        (lambda net, x: net.fc(functional.dropout(x, 0.5)), "dropout"),
        (lambda net, x: net.fc(functional.dropout(x, 0.5, training=True)), "dropout"),
        (lambda net, x: net.fc(dst.functional.dropout(x, 0.5)), "dropout"),
        (lambda net, x: net.fc(x) + torch.randn_like(x), "randn_like"),
        (lambda net, x: net.fc(x) * torch.from_numpy(np.random.rand(6, 8)), "mul"),  # noqa: NPY002
        (lambda net, x: net.fc(x) * random.random(), "mul"),
        (lambda net, x: net.fc(x[torch.randperm(6)]), "randperm"),
        (
            lambda net, x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
            "scaled_dot_product_attention",
        ),
    ],
)
def test_two_evaluation_passes_differ(forward, site):
    assert ("DS502", site) in found(Net(forward, fc=linear()), X)


def test_the_first_call_that_differs_is_named_with_its_line():
    def forward(net, x):
        x = net.fc(functional.dropout(x, 0.5, net.training))
        x = functional.dropout(x, 0.25)  # here
        return net.fc(x.tanh())

    text = message(Net(forward, fc=linear()), X, "DS502")
    line = forward.__code__.co_firstlineno + 2
    assert f"{__file__}:{line}" in text
    assert "training=True passed, the module is in eval mode" in text


def test_each_dropout_that_is_on_in_evaluation_is_named():
    model = Net(
        lambda net, x: net.fc(functional.dropout(net.fc(functional.dropout(x)))), fc=linear()
    )
    assert {("DS502", "dropout"), ("DS502", "dropout#2")} == found(model, X)


def test_a_module_with_a_key_drops_the_same_in_evaluation():
    model = Net(lambda net, x: net.fc(net.drop(x)), drop=dst.Dropout(0.5), fc=linear())
    model.train = lambda mode=True: model
    dst.set_key(model, 1)
    assert ("DS502", "drop") in found(model, X)


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.fc(functional.dropout(x, 0.5, net.training)),
        lambda net, x: net.fc(x + torch.randn_like(x)) if net.training else net.fc(x),
        lambda net, x: net.fc(x) + 0 * torch.empty_like(x).normal_().clamp(-9, 9),
        lambda net, x: (torch.randn_like(x), net.fc(x))[1],
        lambda net, x: torch.empty(6, 8).copy_(net.fc(x)),
        lambda net, x: net.fc(x) + torch.randn(8, generator=torch.Generator().manual_seed(0)),
        lambda net, x: net.fc(x) + torch.full_like(x, torch.nan),
        lambda net, x: functional.dropout(net.fc(x), 0.5, False),
    ],
)
def test_two_evaluation_passes_are_equal(forward):
    assert "DS502" not in codes(Net(forward, fc=linear()), X)


def test_the_model_is_put_back_between_the_passes():
    def forward(net, x):
        net.calls += 1
        return net.fc(x) + net.calls

    model = Net(forward, fc=linear())
    model.register_buffer("calls", torch.zeros(()))
    assert found(model, X) == set()


def test_memory_that_nobody_wrote_is_not_compared():
    model = Net(lambda net, x: torch.empty_like(x).copy_(x) + x.new_empty(8).zero_())
    calls = run(model, [X], {}).evaluation[0].digests
    assert [call.name for call in calls] == ["copy", "zero", "add", "output"]


@pytest.mark.parametrize(
    ("model", "site", "why"),
    [
        (nn.Sequential(nn.Dropout(0.0), linear()), "0", "p=0"),
        (Net(lambda net, x: net.fc(x), fc=linear(), drop=nn.Dropout(0.5)), "drop", "never called"),
        (
            Net(lambda net, x: net.used(x), used=nn.Dropout(0.5), drop=nn.Dropout(0.5)),
            "drop",
            "never called",
        ),
        (
            Net(lambda net, x: net.fc(x), fc=linear(), drops=nn.ModuleList([nn.Dropout()])),
            "drops.0",
            "never called",
        ),
        (
            Net(lambda net, x: net.fc(functional.dropout(x, 0.5, False)), fc=linear()),
            "dropout",
            "training=False",
        ),
        (
            Net(lambda net, x: net.fc(functional.alpha_dropout(x, 0.5)), fc=linear()),
            "alpha_dropout",
            "training=False",
        ),
        (
            Net(lambda net, x: net.fc(functional.dropout(x, 0.0, net.training)), fc=linear()),
            "dropout",
            "p=0",
        ),
        (
            Net(lambda net, x: x if net.training else net.drop(x), drop=nn.Dropout(0.5)),
            "drop",
            "in evaluation only",
        ),
        (Net(lambda net, x: net.drops(x), drops=dst.DropPath(0.0)), "drops", "p=0"),
        (nn.Sequential(dst.LayerDrop([linear()], 0.0)[0], dst.Dropout(0.0)), "1", "p=0"),
    ],
)
def test_sites_that_never_drop(model, site, why):
    assert ("DS503", site) in found(model, X)
    assert why in message(model, X, "DS503")


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
def test_one_recurrent_layer_never_drops():
    assert ("DS503", "0") in found(nn.Sequential(nn.LSTM(8, 8, dropout=0.5)), SEQUENCES)


def test_a_dropout_in_evaluation_mode_for_ever():
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.fc = nn.Dropout(0.5), linear()

        def train(self, mode=True):
            super().train(mode)
            self.drop.eval()
            return self

        def forward(self, x):
            return self.fc(self.drop(x))

    assert found(Frozen(), X) == {("DS503", "drop")}


def test_a_dropout_path_that_drops_nothing():
    class DropPath(nn.Module):
        drop_prob = 0.5

        def forward(self, x):
            return x * torch.empty(1000, 1, 1).bernoulli_(1.0)[: len(x)] if self.training else x

    assert "dropped nothing" in message(nn.Sequential(DropPath()), X[:, None], "DS503")


class Attention(nn.Module):
    """As other libraries write it: the layer holds the rate for the function."""

    def __init__(self, p=0.5):
        super().__init__()
        self.dropout = nn.Dropout(p)

    def forward(self, x):
        p = self.dropout.p if self.training else 0.0
        return functional.scaled_dot_product_attention(x, x, x, dropout_p=p)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Dropout(0.5), linear()), X),
        (Net(lambda net, x: net.fc(functional.dropout(x, 0.5, net.training)), fc=linear()), X),
        (nn.Sequential(Attention()), SEQUENCES),
        (nn.Sequential(nn.MultiheadAttention(8, 2, batch_first=True))[0], (SEQUENCES,) * 3),
        (nn.LSTM(8, 8, 2, dropout=0.5), SEQUENCES),
        (nn.LSTM(8, 8), SEQUENCES),
        (Net(lambda net, x: functional.scaled_dot_product_attention(x, x, x)), SEQUENCES),
        (Net(lambda net, x: net.fc(x), fc=linear(), other=Attention()), X),  # not called either
        (Net(lambda net, x: net.fc(x), fc=linear(), drop=nn.Dropout(0.0)), X),
        (dst.drop_weights(nn.Sequential(linear()), "0.weight", 0.5), X),
        (
            Net(
                lambda net, x: [x := one(x) for one in net.layers][-1],
                layers=dst.LayerDrop([linear()] * 9, 0.5),
            ),
            X,
        ),
        (nn.Sequential(dst.DropPath(0.01), linear()), X),
    ],
)
def test_sites_that_drop(model, inputs):
    assert "DS503" not in codes(model, inputs)


def test_a_layer_that_holds_another_functions_rate_is_unused():
    model = nn.Sequential(Attention())
    model.dropout = nn.Dropout(0.5)
    model.forward = lambda x: model[0](x)
    assert ("DS503", "dropout") in found(model, SEQUENCES)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_script_hides_its_layers():
    model = torch.jit.script(nn.Sequential(nn.Dropout(0.5), linear()))
    assert "DS503" not in codes(model, X)
