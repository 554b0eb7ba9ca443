"""Rates that change with the step: set in place, compiled once, and taken away again."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import dropseed.torch as dst
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.schedule import Constant, Cosine, Curriculum, Early, Late, Linear
from dropseed.torch.keyed import KeyedLayer
from dropseed.torch.schedule import set_rate

RAMP = Linear(0.1, 0.9, 11)
X = torch.linspace(-2, 3, 30).reshape(6, 5)


def model():
    inner = nn.Sequential(nn.Linear(5, 5), dst.Dropout1d(0.2))
    return nn.Sequential(nn.Linear(5, 5), dst.Dropout(0.5), nn.ReLU(), inner, nn.Dropout(0.7))


def rates(net):
    return [float(net.get_submodule(name).p) for name in ("1", "3.1", "4")]


def state(net):
    """What `set_rate` can change: the rates themselves, and their types."""
    return [(type(m.p), float(m.p)) for m in net.modules() if hasattr(m, "p")]


@pytest.mark.parametrize(
    "schedule",
    [
        RAMP,
        Constant(0.3),
        Cosine(0, 1, 10),
        Early(0.4, 9),
        Late(0.4, 2),
        Curriculum(0.5, 0.1),
        lambda step: 1 / (1 + step),
    ],
    ids=lambda schedule: type(schedule).__name__,
)
def test_layers_have_the_schedules_rate(schedule):
    net = model()
    for step in (0, 7, 3, 100):
        assert set_rate(net, schedule, step) == 2
        assert rates(net) == [schedule(step), schedule(step), 0.7]


def test_a_number_is_a_schedule():
    net = model()
    assert set_rate(net, 0.25) == 2
    assert rates(net) == [0.25, 0.25, 0.7]


def test_sites_restrict():
    net = model()
    assert set_rate(net, RAMP, 0, sites={"3.1"}) == 1
    assert rates(net) == [0.5, 0.1, 0.7]
    assert set_rate(net, RAMP, 11, sites={"1": 123}) == 1  # `convert` takes names as keys
    assert rates(net) == [0.9, 0.1, 0.7]
    assert set_rate(net, None, sites=["1"]) == 1
    assert rates(net) == [0.5, 0.1, 0.7]
    assert set_rate(net, RAMP, 0, sites=()) == 0


def test_a_schedule_for_each_name():
    net = model()
    assert set_rate(net, {"1": RAMP, "3.1": lambda step: step / 10}, 5) == 2
    assert rates(net) == [RAMP(5), 0.5, 0.7]
    assert set_rate(net, {"1": 0.4}, 6) == 1
    assert rates(net) == [0.4, 0.5, 0.7]
    assert set_rate(net, {"1": None, "3.1": 0.3}) == 2
    assert rates(net) == [0.5, 0.3, 0.7]
    assert type(net[1].p) is float


def test_names_have_no_wrappers_prefix():
    net = nn.DataParallel(torch.compile(model(), backend="eager"))
    assert set_rate(net, {"3.1": 0.4}) == 1
    assert rates(net.module._orig_mod) == [0.5, 0.4, 0.7]


def test_a_model_without_layers():
    assert set_rate(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), RAMP, 3) == 0


def test_masks_are_those_of_the_float_rate(same_bits):
    net, plain = model().eval(), model().eval()
    plain.load_state_dict(net.state_dict())
    for drops in (net, plain):
        drops[1].train()
        drops[3][1].train()
    for step in range(12):
        set_rate(net, RAMP, step)
        plain[1].p = plain[3][1].p = RAMP(step)
        dst.set_key(net, 0, step)
        dst.set_key(plain, 0, step)
        leaves = [X.clone().requires_grad_() for _ in range(2)]
        outputs = [net(leaves[0]), plain(leaves[1])]
        for output in outputs:
            output.sum().backward()
        assert same_bits(*outputs)
        assert same_bits(*(leaf.grad for leaf in leaves))


def test_twelve_rates_compile_once(same_bits):
    counter = CompileCounterWithBackend("aot_eager")
    net, plain = (model()[:4] for _ in range(2))
    plain.load_state_dict(net.state_dict())
    call, counts = torch.compile(net, backend=counter, fullgraph=True), []
    for step in range(12):
        assert set_rate(call, RAMP, step) == 2
        plain[1].p = plain[3][1].p = RAMP(step)
        dst.set_key(call, 5, step)
        dst.set_key(plain, 5, step)
        leaves = [X.clone().requires_grad_() for _ in range(2)]
        outputs = [call(leaves[0]), plain(leaves[1])]
        for output in outputs:
            output.sum().backward()
        assert same_bits(*outputs)
        assert same_bits(*(leaf.grad for leaf in leaves))
        counts.append(counter.frame_count)
    # Dynamo begins any graph twice that has a 0-d float64 argument on a CPU, at the first call.
    assert set(counts) == {2}


def backward_after(write, call):
    """The output and gradient of a call whose rate is changed before its backward."""
    x = X.clone().requires_grad_()
    output = call(x)
    write()
    output.sum().backward()
    return output, x.grad


@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
def test_a_write_before_backward_leaves_it_alone(scaling, forced, same_bits):
    layer = dst.Dropout(0.3, scaling=scaling)
    dst.set_key(layer, 0)
    plain = backward_after(lambda: None, layer)
    set_rate(layer, 0.3)
    tensor = layer.p
    assert same_bits(plain[1], backward_after(lambda: set_rate(layer, 0.9), layer)[1])
    assert layer.p is tensor
    assert float(tensor) == 0.9


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_write_before_compiled_backward_leaves_it_alone(backend, same_bits):
    layer = dst.Dropout(0.3)
    dst.set_key(layer, 0)
    plain = backward_after(lambda: None, layer)
    call = torch.compile(layer, backend=backend, fullgraph=True)
    set_rate(layer, 0.3)
    for _ in range(2):
        late = backward_after(lambda: set_rate(layer, 0.9), call)
        assert same_bits(plain[1], late[1])
        set_rate(layer, 0.3)


def test_none_puts_the_own_rates_back():
    net = model()
    before = state(net)
    assert set_rate(net, None) == 2
    assert state(net) == before
    for step in range(3):
        set_rate(net, RAMP, step)
    assert set_rate(net, None) == 2
    assert state(net) == before
    assert vars(net[1]).keys() == vars(dst.Dropout()).keys()
    set_rate(net, RAMP, 5)
    set_rate(net, None)
    assert state(net) == before


def test_a_rate_assigned_by_hand_becomes_the_own_rate():
    net = model()
    set_rate(net, RAMP, 0)
    net[1].p = 0.8
    set_rate(net, None)
    assert rates(net)[:2] == [0.8, 0.2]
    set_rate(net, RAMP, 0)
    net[1].p = 0.6
    set_rate(net, RAMP, 1)
    assert rates(net)[:2] == [RAMP(1)] * 2
    set_rate(net, None)
    assert rates(net)[:2] == [0.6, 0.2]


def test_a_tensor_of_the_users_is_not_written():
    layer, own = dst.Dropout(), torch.tensor(0.4)
    layer.p = own
    set_rate(layer, 0.25)
    set_rate(layer, 0.75)
    assert own.equal(torch.tensor(0.4))
    set_rate(layer, None)
    assert layer.p is own


def test_nothing_is_saved():
    net = model()
    keys = list(net.state_dict())
    set_rate(net, RAMP, 3)
    assert list(net.state_dict()) == keys
    assert len(list(net.buffers())) == 0
    assert set_rate(dst.Dropout(), RAMP, 3) == 1
    net.load_state_dict(model().state_dict(), strict=True)


def saved_and_loaded(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "save": saved_and_loaded,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_have_a_rate_of_their_own(way):
    net = model()
    set_rate(net, RAMP, 3)
    other = COPIES[way](net)
    tensor = other[1].p
    assert rates(other) == rates(net)
    set_rate(other, RAMP, 11)
    assert other[1].p is tensor
    assert rates(other)[:2] == [0.9, 0.9]
    assert rates(net)[:2] == [RAMP(3)] * 2
    set_rate(other, None)
    assert rates(other) == [0.5, 0.2, 0.7]


class Shorten(KeyedLayer):
    """A layer whose shapes depend on its rate, which must therefore be a number."""

    tensor_rate = False

    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, x):
        return x[: round(len(x) * (1 - self.p))]


@pytest.mark.parametrize("way", ["none", *COPIES])
def test_a_layer_may_want_a_number(way):
    net = nn.Sequential(Shorten(), dst.Dropout())
    for step in (0, 5):
        assert set_rate(net, RAMP, step) == 2
        assert net(X).shape == (round(6 * (1 - RAMP(step))), 5)
        assert type(net[0].p) is float
        net = COPIES.get(way, lambda net: net)(net)
    set_rate(net, None)
    assert net[0].p == net[1].p == 0.5
    set_rate(net, RAMP, 3)
    net[0].p = 0.25
    set_rate(net, None)
    assert net[0].p == 0.25


def test_casting_the_model_does_not_round_the_rate():
    net = model()
    set_rate(net, 0.1)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert rates(net.to(dtype))[:2] == [0.1, 0.1]


def test_the_tensor_follows_the_model_to_another_device():
    net = model()
    set_rate(net, 0.1)
    net.to("meta")
    set_rate(net, 0.2)
    assert net[1].p.device.type == "meta"
    set_rate(net, None)
    assert rates(net) == [0.5, 0.2, 0.7]


def test_the_rate_prints_as_a_number():
    layer = dst.Dropout(0.5, scaling="original")
    set_rate(layer, 0.1)
    assert repr(layer) == "Dropout(p=0.1, inplace=False, scaling='original')"


def test_a_rate_set_in_inference_mode_serves_training(same_bits):
    layer = dst.Dropout()
    dst.set_key(layer, 0)
    with torch.inference_mode():
        set_rate(layer, 0.1)
    set_rate(layer, 0.3)
    output, gradient = backward_after(lambda: None, layer)
    assert same_bits(output, dst.functional.dropout(X, 0.3, key=layer.key))
    assert same_bits(gradient, dst.functional.dropout(torch.ones(6, 5), 0.3, key=layer.key))


def test_no_generator_moves():
    net = model()
    before = torch.get_rng_state()
    set_rate(net, RAMP, 3)
    set_rate(net, RAMP, 4)
    set_rate(net, None)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((lambda step: step / 2, 3), InvalidValueError, "got 1.5 at step 3"),
        ((lambda step: -0.1, 0), InvalidValueError, "got -0.1 at step 0"),
        ((lambda step: float("nan"),), InvalidValueError, "got nan at step 0"),
        ((1.5,), InvalidValueError, "`schedule` must give a rate .* got 1.5"),
        (("linear",), InvalidTypeError, "`schedule` must give a rate .* got 'linear'"),
        ((lambda step: "0.5",), InvalidTypeError, "got '0.5' at step 0"),
        (({"1": 0.1, "3.1": lambda step: 2.0},), InvalidValueError, "got 2.0 at step 0"),
        ((RAMP, -1), InvalidValueError, "`step` must be in .* got -1"),
        ((RAMP, 1.0), InvalidTypeError, "`step` must be an integer; got 1.0"),
        ((RAMP, 3, {"1", "4"}), InvalidValueError, r"`sites` .* got \['4'\]. .* \['1', '3.1'\]"),
        ((None, 0, ["nowhere"]), InvalidValueError, r"`sites` must name .* got \['nowhere'\]"),
        (({"1": RAMP, "0": RAMP},), InvalidValueError, r"`schedule` must name .* got \['0'\]"),
        ((RAMP, 3, "1"), InvalidTypeError, "`sites` must be a collection of names; .* '1'"),
        (({"1": RAMP}, 3, {"1"}), InvalidValueError, "`sites` must be None .* got {'1'}"),
    ],
)
@pytest.mark.parametrize("scheduled", [False, True])
def test_wrong_arguments_change_nothing(scheduled, arguments, error, words):
    net = model()
    if scheduled:
        set_rate(net, 0.25)
    before = state(net)
    with pytest.raises(error, match=words):
        set_rate(net, *arguments)
    assert state(net) == before


@pytest.mark.parametrize("make", [model, nn.Sequential])
def test_a_wrong_step_is_seen_without_layers_too(make):
    with pytest.raises(InvalidValueError, match="`step` must be"):
        set_rate(make(), RAMP, -1)
