"""A model that was run leaves no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import dropseed.torch as dst
from dropseed.audit.running.model import check_model
from dropseed.audit.running.unchanged import unchanged
from dropseed.errors import InvalidValueError
from test_audit.nets import Net

X = torch.linspace(-1, 1, 6 * 8).reshape(6, 8)


def state(model):
    """All that can be seen of a model."""
    return {
        name: (
            module.training,
            {key: id(value) for key, value in vars(module).items()},
            [list(getattr(module, hooks)) for hooks in vars(module) if "hooks" in hooks],
            [*module._parameters, *module._buffers, *module._modules],
        )
        for name, module in model.named_modules()
    }


def numbers(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


class Restless(nn.Module):
    """A model whose forward pass changes all it can."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(8, 4, max_norm=0.5)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.memory = None
        self.history = ["made"]
        self.seen = {"a": 1}
        self.plain = torch.zeros(2)
        self.norm.eval()

    def forward(self, x):
        self.calls += 1
        self.calls = self.calls + 1
        self.memory = x
        self.history.append(x)
        self.seen["b"] = x
        self.plain.add_(1)
        self.new = x
        self.drop.p = 0.25
        self.norm.weight.data.mul_(2)
        self.norm.train()
        self.register_forward_hook(lambda *_: None)
        self.extra = nn.Dropout(0.1)
        return self.norm(self.drop(self.words(x)))


def test_a_model_is_left_as_it_was():
    model = Restless()
    words = torch.arange(6)
    before, values = state(model), numbers(model)
    plain = model.plain.clone()
    check_model(model, words)
    assert state(model) == before
    after = numbers(model)
    assert list(after) == list(values)
    assert all(torch.equal(after[name], values[name]) for name in values)
    assert torch.equal(model.plain, plain)
    assert model.history == ["made"]
    assert model.seen == {"a": 1}
    assert model.memory is None


def test_the_control_can_fail():
    model = Restless()
    before, values = state(model), numbers(model)
    model(torch.arange(6))
    assert state(model) != before
    assert not torch.equal(numbers(model)["words.weight"], values["words.weight"])


@pytest.mark.parametrize("mode", [True, False])
def test_a_model_that_fails_is_left_as_it_was(mode):
    def forward(net, x):
        y = net.norm(net.drop(x))
        if net.training is mode:
            raise RuntimeError("never")
        return y

    model = Net(forward, norm=nn.BatchNorm1d(8), drop=nn.Dropout(0.5)).train()
    model.drop.eval()
    before, values = state(model), numbers(model)
    with pytest.raises(InvalidValueError, match="RuntimeError: never"):
        check_model(model, X)
    assert state(model) == before
    assert all(torch.equal(numbers(model)[name], value) for name, value in values.items())


@pytest.mark.parametrize("fails", [False, True])
def test_global_hooks_and_modes_are_gone(fails):
    from torch.nn.modules import module as hooks
    from torch.overrides import _get_current_function_mode_stack

    def forward(net, x):
        return 1 / 0 if fails else net.drop(x)

    functions = dict(vars(dst.functional))
    try:
        check_model(Net(forward, drop=nn.Dropout(0.5)), X)
    except InvalidValueError:
        assert fails
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert not _get_current_function_mode_stack()
    assert vars(dst.functional) == functions


def test_generators_are_left_as_they_were():
    legacy = np.random.mtrand._rand  # the one that NumPy's functions draw from

    def forward(net, x):
        return net.drop(x) + random.random() + torch.from_numpy(legacy.rand(6, 8))

    states = torch.get_rng_state(), random.getstate(), legacy.get_state()
    check_model(Net(forward, drop=nn.Dropout(0.5)), X)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(legacy.get_state()[1], states[2][1])


def test_a_report_depends_on_no_generator():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8))
    torch.manual_seed(1)
    report = check_model(model, X)
    torch.manual_seed(2)
    assert check_model(model, X) == report


def test_inputs_are_left_as_they_were():
    x, values = X.clone().requires_grad_(), [X.clone()]

    def forward(net, x, values):
        values.append(x)
        values[0].mul_(2)
        return net.drop((x * 1).mul_(3))

    check_model(Net(forward, drop=nn.Dropout(0.5, inplace=True)), (x * 1, values))
    assert torch.equal(values[0], X)
    assert len(values) == 1
    assert x.grad is None


def test_a_graph_from_before_can_still_go_backward():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    loss = model(X).sum()
    check_model(model, X)
    loss.backward()
    assert model[0].weight.grad is not None


def test_keys_are_left_as_they_were():
    model = nn.Sequential(dst.Dropout(0.5))
    dst.set_key(model, 3)
    key = model[0].key
    check_model(model, X)
    assert model[0].key is key


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradient_modes(context):
    with context():
        report = check_model(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.ReLU()), X)
        assert not torch.is_grad_enabled()
    assert [row.place for row in report.sites] == ["after Linear, before ReLU"]


def test_gradients_in_the_forward_pass():
    def forward(net, x):
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(net.drop(net.fc(x)).sum(), x)
        return slope

    with torch.no_grad():
        report = check_model(Net(forward, drop=nn.Dropout(0.5), fc=nn.Linear(8, 8)), X)
    assert len(report.sites) == 1


def test_restoring_in_between():
    norm = nn.BatchNorm1d(8)
    with unchanged(norm) as restore:
        norm(X)
        assert norm.num_batches_tracked == 1
        restore()
        assert norm.num_batches_tracked == 0
