"""The recorded dataflow of a pass."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed.audit.running.graph import record
from test_audit.nets import Net


def flow(model, *args, **kwargs):
    """Name, and the names of the sources, of each call."""
    calls = record(model, args, kwargs).calls
    return [(call.name, [one and one.name for one in call.sources]) for call in calls]


def dropout_call(model, *args, **kwargs):
    (call,) = [call for call in record(model, args, kwargs).calls if call.events]
    return call


def around(call):
    return [one and one.name for one in call.sources], [user.name for user in call.users]


def test_layers_and_functions_are_one_call_each():
    model = Net(
        lambda net, x: functional.relu(net.conv(x)).flatten(1) + 1,
        conv=nn.Conv2d(1, 2, 3),
    )
    assert flow(model, torch.ones(2, 1, 4, 4)) == [
        ("input", []),
        ("Conv2d", ["input"]),
        ("relu", ["Conv2d"]),
        ("flatten", ["relu"]),
        ("add", ["flatten"]),
        ("output", ["add"]),
    ]


def test_in_place_changes_are_followed():
    def forward(net, x):
        y = net.linear(x)
        functional.relu_(y)
        y[0] = 1.0
        y += x
        return y

    model = Net(forward, linear=nn.Linear(2, 2))
    assert flow(model, torch.ones(2, 2))[1:] == [
        ("Linear", ["input"]),
        ("relu", ["Linear"]),
        ("setitem", ["relu"]),
        ("add", ["setitem", "input"]),
        ("output", ["add"]),
    ]


def test_an_in_place_layer_takes_from_the_call_before():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True))
    call = dropout_call(model, torch.ones(2, 2))
    assert around(call) == (["ReLU"], ["output"])


def test_a_call_that_hands_on_its_input_gave_nothing():
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Tanh())
    assert ("Tanh", ["Linear"]) in flow(model, torch.ones(2, 2))


def test_a_dropout_that_is_off_is_a_call_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.Tanh()).eval()
    assert around(dropout_call(model, torch.ones(2, 2))) == (["Linear"], ["Tanh"])


@pytest.mark.parametrize("functions", [functional, dst.functional])
def test_functions_that_drop(functions):
    model = Net(
        lambda net, x: net.b(functions.dropout(net.a(x), 0.5)),
        a=nn.Linear(2, 2),
        b=nn.Linear(2, 2),
    )
    call = dropout_call(model, torch.ones(2, 2))
    assert (call.path, call.module) == ("", None)
    assert around(call) == (["Linear"], ["Linear"])


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return drop_path(x, self.drop_prob)


def drop_path(x, drop_prob):
    kept = x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(1 - drop_prob)
    kept.div_(1 - drop_prob)
    return x * kept


def test_other_peoples_dropout_layers_are_one_call():
    model = nn.Sequential(nn.Linear(2, 2), DropPath(0.5), nn.Tanh())
    call = dropout_call(model, torch.ones(4, 2))
    assert (call.name, call.path) == ("DropPath", "1")
    assert around(call) == (["Linear"], ["Tanh"])


def test_dropout_by_hand_is_the_product_with_the_mask():
    model = Net(lambda net, x: torch.tanh(drop_path(net.linear(x), 0.5)), linear=nn.Linear(2, 2))
    call = dropout_call(model, torch.ones(4, 2))
    assert call.name == "mul"
    assert around(call) == (["Linear"], ["tanh"])


def test_dropseeds_layers_are_one_call():
    model = nn.Sequential(nn.Linear(2, 2), dst.Dropout(0.5), nn.Tanh())
    assert around(dropout_call(model, torch.ones(4, 2))) == (["Linear"], ["Tanh"])


def test_named_arguments():
    model = Net(lambda net, x: net.drop(input=net.linear(input=x)), linear=nn.Linear(2, 2))
    model.drop = nn.Dropout(0.5)
    assert around(dropout_call(model, torch.ones(4, 2))) == (["Linear"], ["output"])


def test_attention_is_one_call():
    model = Net(
        lambda net, x: net.attention(query=x, key=x, value=x)[0],
        attention=nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
    )
    call = dropout_call(model, torch.ones(2, 3, 4))
    assert call.name == "MultiheadAttention"
    assert set(around(call)[0]) == {"input"}


def test_what_nobody_sees_is_the_modules_that_returns_it():
    class Outside(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.detach().numpy() * 2)

    model = nn.Sequential(nn.Linear(2, 2), Outside(), nn.Dropout(0.5))
    assert around(dropout_call(model, torch.ones(2, 2))) == (["Outside"], ["output"])
    assert ("Outside", ["Linear"]) in flow(model, torch.ones(2, 2))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_are_looked_into(reentrant):
    model = Net(
        lambda net, x: checkpoint(lambda y: net.drop(net.linear(y)), x, use_reentrant=reentrant),
        linear=nn.Linear(2, 2),
        drop=nn.Dropout(0.5),
    )
    call = dropout_call(model, torch.ones(2, 2, requires_grad=True))
    assert around(call) == (["Linear"], ["output"])


def test_control_flow_that_depends_on_values():
    model = Net(
        lambda net, x: net.drop(net.a(x)) if x.sum() > 0 else net.b(x),
        a=nn.Linear(2, 2),
        b=nn.Linear(2, 2),
        drop=nn.Dropout(0.5),
    )
    assert ("Dropout", ["Linear"]) in flow(model, torch.ones(2, 2))
    assert all(name != "Dropout" for name, _ in flow(model, -torch.ones(2, 2)))


@dataclass
class Output:
    loss: torch.Tensor | None
    logits: torch.Tensor
    hidden: torch.Tensor


@pytest.mark.parametrize(
    "pack",
    [
        lambda loss, y, h: y,
        lambda loss, y, h: (y, h),
        lambda loss, y, h: [loss, y, h],
        lambda loss, y, h: {"loss": loss, "y": y, "hidden": h},
        lambda loss, y, h: OrderedDict(mlm_loss=h, y=y),
        lambda loss, y, h: Output(loss, y, h),
        lambda loss, y, h: Output(None, y, h),
        lambda loss, y, h: {"result": (y, h)},
    ],
)
def test_main_result(pack):
    def forward(net, x):
        hidden = net.linear(x)
        logits = hidden.tanh()
        return pack(logits.mean(), logits, hidden)

    model = Net(forward, linear=nn.Linear(2, 2))
    assert flow(model, torch.ones(2, 2))[-1] == ("output", ["tanh"])


@pytest.mark.parametrize("result", [None, 3, "text", torch.tensor(1.0), {"loss": torch.ones(3)}])
def test_no_main_result(result):
    assert flow(Net(lambda net, x: result), torch.ones(2))[-1] == ("output", [])


def test_modules_that_the_model_does_not_hold():
    ran = record(Net(lambda net, x: nn.Dropout(0.5)(x)), [torch.ones(2)], {}).modules
    assert [type(module).__name__ for name, module in ran.items() if "<" in name] == ["Dropout"]


def test_what_is_read_of_a_dropout_is_no_call():
    names = [name for name, _ in flow(nn.Sequential(dst.Dropout(0.5)), torch.ones(4))]
    assert names == ["input", "Dropout", "output"]


def test_a_pass_draws_what_it_draws_unrecorded():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), dst.Dropout(0.5), DropPath(0.5))
    x = torch.ones(4, 8)
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    outputs = []
    record(model, [x], {}, lambda call, given, gave: outputs.extend(gave))
    assert torch.equal(outputs[-1], expected)
    torch.manual_seed(0)
    model(x)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    record(model, [x], {})
    assert torch.equal(torch.get_rng_state(), state)
