"""One event for every dropout call, and a program that doesn't notice."""

import contextlib
import inspect
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _len_torch_function_stack
from torch.utils._python_dispatch import TorchDispatchMode, is_in_torch_dispatch_mode
from torch.utils.checkpoint import checkpoint

import dropseed
import dropseed.torch as dst
from dropseed import Key
from dropseed.audit.running import places
from dropseed.audit.running.watch import watch

SIZE = (64, 10, 16)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def events_of(model, *inputs):
    with watch(model) as events:
        model(*inputs)
    return events


def only(events):
    (event,) = events
    return event


# ---- models of every kind ---------------------------------------------------------------------


class Call(nn.Module):
    """A module whose forward is a function of it and the input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(self, x)


class DropPath(nn.Module):
    """As timm and its descendants write it."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return drop_path(x, self.drop_prob, self.training)


def drop_path(x, drop_prob, training):
    if drop_prob == 0.0 or not training:
        return x
    keep = 1 - drop_prob
    mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
    return x.div(keep) * mask


class NumpyDropout(nn.Module):
    def __init__(self, rate):
        super().__init__()
        self.rate = rate
        self.generator = np.random.default_rng(0)

    def forward(self, x):
        keep = torch.from_numpy(self.generator.random(x.shape) > self.rate)
        return torch.where(keep, x / (1 - self.rate), 0) if self.training else x


class BiasDropoutAdd(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x, residual):
        return residual + functional.dropout(x, self.p, self.training)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = BiasDropoutAdd(0.2)

    def forward(self, x):
        return self.layer(x, x)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class SelfAttention(nn.Module):
    def __init__(self, p, **kwargs):
        super().__init__()
        self.layer = nn.MultiheadAttention(16, 2, p, batch_first=True)
        self.kwargs = kwargs

    def forward(self, x):
        return self.layer(x, x, x, **self.kwargs)[0]


def attention(module, x):
    q = x[:, None]
    return functional.scaled_dot_product_attention(q, q, q, dropout_p=0.2 * module.training)[:, 0]


def heads(module, x):
    """As a module that is no `MultiheadAttention` calls it."""
    weight, bias = torch.eye(48, 16), torch.zeros(48)
    x = x.transpose(0, 1)
    output, _ = functional.multi_head_attention_forward(
        *(x, x, x, 16, 2, weight, bias, None, None, False, 0.2, torch.eye(16), torch.zeros(16)),
        training=module.training,
    )
    return output


def call(function):
    return lambda: Call(function)


KINDS = {
    "Dropout": (lambda: nn.Sequential(nn.Dropout(0.2)), "0"),
    "Dropout in place": (lambda: nn.Sequential(nn.Dropout(0.2, inplace=True)), "0"),
    "Dropout1d": (lambda: nn.Sequential(nn.Dropout1d(0.2)), "0"),
    "Dropout2d": (
        call(lambda m, x: functional.dropout2d(x[..., None], 0.2, m.training)[..., 0]),
        "dropout2d",
    ),
    "Dropout3d": (
        call(lambda m, x: functional.dropout3d(x[..., None, None], 0.2, m.training)),
        "dropout3d",
    ),
    "AlphaDropout": (lambda: nn.Sequential(nn.AlphaDropout(0.2)), "0"),
    "FeatureAlphaDropout": (lambda: nn.Sequential(nn.FeatureAlphaDropout(0.2)), "0"),
    "dropout": (call(lambda m, x: functional.dropout(x, 0.2, m.training)), "dropout"),
    "dropout by position": (call(lambda m, x: torch.dropout(x, 0.2, m.training)), "dropout"),
    "dropout by name": (
        call(lambda m, x: torch.dropout(x, p=0.2, train=m.training)),
        "dropout",
    ),
    "multi_head_attention_forward": (call(heads), "multi_head_attention_forward"),
    "dropout_": (call(lambda m, x: torch.dropout_(x, 0.2, m.training)), "dropout_"),
    "native_dropout": (
        call(lambda m, x: torch.native_dropout(x, 0.2, m.training)[0]),
        "native_dropout",
    ),
    "alpha_dropout": (
        call(lambda m, x: functional.alpha_dropout(x, 0.2, m.training)),
        "alpha_dropout",
    ),
    "attention": (call(attention), "scaled_dot_product_attention"),
    "MultiheadAttention": (lambda: SelfAttention(0.2), "layer"),
    "MultiheadAttention without weights": (lambda: SelfAttention(0.2, need_weights=False), "layer"),
    "LSTM": (lambda: Recurrent(nn.LSTM(16, 4, 3, dropout=0.2)), "layer"),
    "GRU": (lambda: Recurrent(nn.GRU(16, 4, 2, dropout=0.2, bidirectional=True)), "layer"),
    "DropPath": (lambda: nn.Sequential(DropPath(0.2)), "0"),
    "NumPy": (lambda: nn.Sequential(NumpyDropout(0.2)), "0"),
    "with a residual": (Residual, "layer"),
    "dropseed": (lambda: nn.Sequential(dst.Dropout(0.2)), "0"),
    "dropseed, spatial": (lambda: nn.Sequential(dst.SpatialDropout1d(0.2)), "0"),
    "dropseed, path": (lambda: nn.Sequential(dst.DropPath(0.2)), "0"),
    "dropseed, block": (
        lambda: Call(lambda m, x: dst.functional.drop_block1d(x, 0.2, 3, m.training)),
        "drop_block1d",
    ),
    "dropseed, function": (
        call(lambda m, x: dst.functional.dropout(x, 0.2, m.training)),
        "dropout",
    ),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_call_in_training(name):
    make, site = KINDS[name]
    event = only(events_of(make(), torch.randn(SIZE)))
    assert (event.site, event.active) == (site, True)
    assert event.rate == pytest.approx(0.2)
    # The fewest draws are 64 paths: 5 standard deviations, but each has one seed.
    assert event.realised == pytest.approx(0.2, abs=0.25)
    if event.draws:
        assert event.realised == pytest.approx(0.2, abs=5 * math.sqrt(0.16 / event.draws))


@pytest.mark.parametrize("name", KINDS)
def test_a_call_in_evaluation(name):
    make, site = KINDS[name]
    event = only(events_of(make().eval(), torch.randn(SIZE)))
    assert (event.site, event.active, event.realised, event.ratio) == (site, False, None, None)
    assert "False" in event.why or "dropout_p=0 passed, the module is in eval mode" in event.why


PROGRAMS = {
    **{name: make for name, (make, _) in KINDS.items()},
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True), 2
    ),
    "gaussian": lambda: nn.Sequential(dst.GaussianDropout(0.2), nn.Dropout(0.1)),
    "paths": lambda: dst.DropPath.wrap(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3)), 0.5),
    "checkpoint": lambda: Call(
        lambda m, x: checkpoint(functional.dropout, x * 2, 0.3, use_reentrant=False).relu()
    ),
    "reentrant": lambda: Call(
        lambda m, x: checkpoint(functional.dropout, x * 2, 0.3, use_reentrant=True).relu()
    ),
}


@pytest.mark.filterwarnings("ignore:.*nested tensors.*:UserWarning")
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", PROGRAMS)
def test_bits_and_the_random_stream_are_those_of_an_unwatched_program(name, training, grad):
    def run(watched):
        torch.manual_seed(1)
        model = PROGRAMS[name]().train(training)
        x = torch.randn(SIZE).requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            if watched:
                with watch(model):
                    return results(model, x, grad)
            return results(model, x, grad)

    def results(model, x, grad):
        output = model(x * 1)
        gradient = torch.zeros(())
        if grad:
            output.square().sum().backward()
            gradient = x.grad
        return output, gradient, torch.rand(3)

    for plain, watched in zip(run(False), run(True), strict=True):
        assert torch.equal(plain, watched)


# ---- one call, one event ----------------------------------------------------------------------


def test_a_transformer_layer_has_an_event_for_each_of_its_four():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
    events = events_of(layer, torch.randn(4, 8, 16))
    assert [e.site for e in events] == ["self_attn", "dropout1", "dropout", "dropout2"]
    assert [e.kind for e in events] == ["MultiheadAttention", "Dropout", "Dropout", "Dropout"]


def test_the_fast_path_is_left_to_torch():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True).eval()
    x = torch.randn(4, 8, 16)
    with torch.no_grad():
        assert events_of(layer, x) == []  # it calls none of them
    assert len(events_of(layer, x)) == 4  # with gradients there is no fast path


def test_functions_inside_of_a_fast_path_are_seen():
    class Own(nn.TransformerEncoderLayer):
        def forward(self, *args, **kwargs):
            return functional.dropout(super().forward(*args, **kwargs), 0.5)

    encoder = nn.TransformerEncoder(
        Own(16, 2, 32, 0.0, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    with torch.no_grad():
        events = events_of(encoder, torch.randn(4, 8, 16))
    assert [e.site for e in events if e.active] == ["layers.0:dropout", "layers.1:dropout"]


def test_what_a_layer_holds_has_its_own_events():
    inner = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3))
    block = dst.DropPath.wrap(inner, 0.5)
    assert [e.site for e in events_of(block, torch.randn(SIZE))] == ["branch.1", "DropPathResidual"]


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(16, 16),
        nn.LSTM(16, 16),
        nn.LSTM(16, 16, 2),
        nn.BatchNorm1d(10),
        nn.RReLU(),
        Call(lambda m, x: x + torch.randn_like(x)),
        Call(lambda m, x: x * torch.rand_like(x).round()),
    ],
)
def test_what_is_no_dropout_has_no_event(model):
    assert events_of(model, torch.randn(SIZE)) == []


def test_a_container_whose_name_says_drop_has_none():
    class DropoutBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.drop = nn.Dropout(0.1)

        def forward(self, x):
            return self.drop(self.linear(x))

    class DropoutWrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Dropout(0.1)

        def forward(self, x):
            return self.inner(x)

    model = nn.Sequential(DropoutBlock(), DropoutWrapper())
    assert [e.site for e in events_of(model, torch.randn(SIZE))] == ["0.drop", "1.inner"]


def test_a_function_by_hand_is_seen_while_it_draws():
    model = Call(lambda m, x: drop_path(x, 0.25, m.training))
    event = only(events_of(model, torch.randn(400, 4)))
    assert (event.site, event.kind, event.rate) == ("drop_path", "drop_path", 0.25)
    assert event.realised == pytest.approx(0.25, abs=0.11)  # 5 standard deviations
    assert events_of(model.eval(), torch.randn(400, 4)) == []


# ---- active or not, and why -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "active", "why"),
    [
        (lambda m, x: functional.dropout(x), True, "training=True passed"),
        (lambda m, x: functional.dropout(x, training=False), False, "training=False passed"),
        (lambda m, x: functional.dropout(x, 0.0), False, "p=0 passed"),
        (lambda m, x: functional.alpha_dropout(x, 0.3), False, "training=False passed"),
        (lambda m, x: functional.dropout(x, p=1.0), True, "training=True passed"),
        (
            lambda m, x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
            True,
            "dropout_p=0.1 passed",
        ),
        (
            lambda m, x: functional.scaled_dot_product_attention(x, x, x, None, 0.1),
            True,
            "dropout_p=0.1 passed",
        ),
        (
            lambda m, x: functional.scaled_dot_product_attention(x, x, x),
            False,
            "dropout_p=0 passed",
        ),
        (lambda m, x: dst.functional.dropout(x, 0.0), False, "p=0 passed"),
        (lambda m, x: dst.functional.dropout(x, training=False), False, "training=False passed"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_why_a_function_is_active(function, active, why, training):
    event = only(events_of(Call(function).train(training), torch.randn(2, 8, 8)))
    mode = "training" if training else "eval"
    assert (event.active, event.why) == (active, f"{why}, the module is in {mode} mode")
    assert (event.training, event.root_training) == (training, training)


@pytest.mark.parametrize(
    ("layer", "training", "active", "why"),
    [
        (nn.Dropout(0.1), True, True, "module.training is True"),
        (nn.Dropout(0.1), False, False, "module.training is False"),
        (nn.Dropout(0.0), True, False, "p=0"),
        (nn.Dropout(0.0), False, False, "module.training is False"),
        (dst.Dropout(0.0), True, False, "p=0"),
        (dst.Dropout(0.1), False, False, "module.training is False"),
        (DropPath(0.1), False, False, "module.training is False"),
        (DropPath(0.0), True, False, "p=0"),
        (
            nn.GRU(16, 16, dropout=0.0),
            True,
            None,
            "",
        ),
        (nn.MultiheadAttention(16, 2), True, False, "p=0"),
    ],
)
def test_why_a_layer_is_active(layer, training, active, why):
    inputs = [torch.randn(64, 8, 16)] * (3 if isinstance(layer, nn.MultiheadAttention) else 1)
    events = events_of(layer.train(training), *inputs)
    if active is None:
        assert events == []
    else:
        assert (only(events).active, only(events).why) == (active, why)


@pytest.mark.filterwarnings("ignore:dropout option adds dropout:UserWarning")
def test_one_recurrent_layer_drops_nothing():
    event = only(events_of(nn.LSTM(16, 16, dropout=0.5), torch.randn(4, 8, 16)))
    assert (event.active, event.why) == (False, "one layer, and dropout goes between layers")


def test_somebody_elses_layer_that_stays_on_in_evaluation():
    class AlwaysDropout(nn.Module):
        def forward(self, x):
            return x * (torch.rand(x.shape) > 0.5)

    event = only(events_of(AlwaysDropout().eval(), torch.randn(SIZE)))
    assert (event.active, event.rate) == (True, None)
    assert event.why == "module.training is False, but it dropped"
    assert event.realised == pytest.approx(0.5, abs=0.02)


# ---- what was dropped -------------------------------------------------------------------------


@pytest.mark.parametrize("make", [nn.Dropout, dst.Dropout, NumpyDropout])
def test_zeros_of_the_input_count_as_nothing(make):
    x = torch.randn(100, 100).relu()  # half of it is 0
    event = only(events_of(make(0.2), x))
    assert event.realised == pytest.approx(0.2, abs=0.03)
    assert event.ratio == pytest.approx(1.0, abs=0.05)


def test_an_input_of_zeros():
    x = torch.zeros(100, 100)
    assert only(events_of(nn.Dropout(0.2), x)).realised == pytest.approx(0.2, abs=0.02)
    event = only(events_of(dst.Dropout(0.2), x))
    assert (event.realised, event.ratio) == (None, None)
    assert event.why.endswith("; what it dropped can't be seen")


@pytest.mark.parametrize("make", [nn.Dropout, dst.Dropout])
def test_everything_dropped(make):
    event = only(events_of(make(1.0), torch.ones(8)))
    assert (event.active, event.realised, event.ratio) == (True, 1.0, 0.0)


@pytest.mark.parametrize("layer", [nn.Dropout(0.2, inplace=True), dst.Dropout(0.2, inplace=True)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_in_place_and_in_other_types(layer, dtype):
    event = only(events_of(layer, torch.ones(100, 100, dtype=dtype)))
    assert event.realised == pytest.approx(0.2, abs=0.02)
    assert event.ratio == pytest.approx((1 - event.realised) / 0.8, rel=0.01)


def test_values_that_are_not_finite():
    x = torch.ones(1000)
    x[:300], x[300:600] = math.nan, math.inf
    event = only(events_of(dst.Dropout(0.5), x))
    assert event.draws == 400
    assert event.realised == pytest.approx(0.5, abs=0.125)


def test_an_empty_input_and_a_single_value():
    assert only(events_of(nn.Dropout(0.5), torch.ones(0, 3))).realised is None
    event = only(events_of(nn.Dropout(0.5), torch.ones(())))
    assert (event.shape, event.realised in (0.0, 1.0)) == ((), True)


@pytest.mark.parametrize("layer", [dst.GaussianDropout(0.5), dst.AlphaDropout(0.5)])
def test_noise_without_zeros_is_not_called_nothing_dropped(layer):
    event = only(events_of(layer, torch.randn(64, 64)))
    assert (event.active, event.realised) == (True, None)


def test_somebody_elses_gaussian_noise_is_not_called_nothing_dropped():
    class NoiseDropout(nn.Module):
        def forward(self, x):
            return x * (1 + torch.randn_like(x)) if self.training else x

    event = only(events_of(NoiseDropout(), torch.randn(64, 64)))
    assert (event.active, event.realised) == (True, None)


def test_draws_are_those_of_the_noise_shape():
    draws = {
        "dropout": only(events_of(nn.Dropout(0.5), torch.randn(8, 4, 5))).draws,
        "dropout1d": only(events_of(nn.Dropout1d(0.5), torch.randn(8, 4, 5))).draws,
        "dropseed": only(events_of(dst.Dropout(0.5), torch.randn(8, 4, 5))).draws,
        "path": only(events_of(dst.DropPath(0.5), torch.randn(8, 4, 5))).draws,
    }
    assert draws == {"dropout": 160, "dropout1d": 32, "dropseed": 160, "path": 0}


# ---- names, keys and lines --------------------------------------------------------------------


def test_several_calls_of_a_function_are_numbered_by_place_not_by_turn():
    def forward(module, x):
        for _ in range(3):
            x = functional.dropout(x, 0.1)
        return functional.dropout(functional.dropout(x, 0.2), 0.3)

    sites = [e.site for e in events_of(nn.Sequential(Call(forward)), torch.randn(8, 8))]
    assert sites == ["0:dropout"] * 3 + ["0:dropout#2", "0:dropout#3"]


def test_a_layer_built_in_forward_is_named_by_its_class():
    model = nn.Sequential(Call(lambda m, x: nn.Dropout(0.5)(x)))
    event = only(events_of(model.eval(), torch.randn(8, 8)))
    assert (event.site, event.known, event.active) == ("0.<Dropout>", True, True)
    assert (event.training, event.root_training) == (True, False)


def test_a_layer_of_another_model_is_not_known():
    model, other = nn.Sequential(nn.Dropout(0.1)), nn.Sequential(nn.Dropout(0.1))
    with watch(model) as events:
        model(torch.ones(8))
        other(torch.ones(8))
        functional.dropout(torch.ones(8))
    assert [(e.site, e.known) for e in events] == [
        ("0", True),
        ("<Sequential>.<Dropout>", False),
        ("dropout", True),
    ]


def test_without_a_model_the_first_one_gives_the_names():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1))
    with watch() as events:
        model(torch.ones(8))
    assert (only(events).site, only(events).root_training) == ("1", True)


def test_wrappers_are_no_part_of_a_name():
    inner = nn.Sequential(nn.Dropout(0.1))
    model = nn.Module()
    model.add_module("_orig_mod", inner)
    model.forward = lambda x: inner(x)
    assert only(events_of(model, torch.ones(8))).site == "0"


def test_the_line_that_called():
    def forward(module, x):
        return functional.dropout(x)

    line = inspect.getsourcelines(forward)[1] + 1
    assert only(events_of(Call(forward), torch.ones(8))).caller == f"{__file__}:{line}"


@pytest.mark.parametrize(
    ("module", "inside"),
    [
        (torch, True),
        (functional, True),
        (dst.functional, True),
        (places, True),
        (contextlib, True),
        (dropseed, False),
        (pytest, False),
    ],
)
def test_which_files_are_no_callers(module, inside):
    assert places._is_inside(module.__file__) is inside
    assert not places._is_inside(torch.__file__.replace("torch/", "torchvision/"))


def test_keys_of_dropseed():
    layer = dst.Dropout(0.5)
    dst.set_key(layer, seed=2**64 - 3, step=7)
    assert only(events_of(layer, torch.ones(8))).key.startswith(f"seed={2**64 - 3}, site=")
    assert only(events_of(layer, torch.ones(8))).key.endswith("step=7")
    with watch() as events:
        dst.functional.dropout(torch.ones(8), key=Key(5, site=6, step=2**32 - 1))
    assert only(events).key == f"seed=5, site=6, step={2**32 - 1}"
    assert only(events_of(nn.Dropout(0.5), torch.ones(8))).key is None


@pytest.mark.parametrize("layer", [dst.Dropout(0.5), dst.GaussianDropout(0.5)])
def test_the_key_that_was_drawn_makes_the_same_mask(layer):
    with watch(layer) as events:
        output = layer(torch.ones(64))
    seed = int(only(events).key.split(",")[0].removeprefix("seed="))
    dst.set_key(layer, seed)
    layer.key[1] = 0
    assert torch.equal(layer(torch.ones(64)), output)


def test_digests_tell_masks_apart():
    def digests(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Dropout(0.5), dst.Dropout(0.5), Recurrent(nn.LSTM(8, 8, 2, dropout=0.5))
        )
        with watch(model, digests=True) as events:
            torch.manual_seed(seed)
            model(torch.ones(4, 8, 8))
        return [event.digest for event in events]

    assert digests(1) == digests(1)
    assert all(one != other for one, other in zip(digests(1), digests(2), strict=True))
    assert all(digests(1))


# ---- modes ------------------------------------------------------------------------------------


def test_grad_modes():
    model = nn.Dropout(0.1)
    x = torch.ones(8)
    assert only(events_of(model, x)).grad == "grad"
    with torch.no_grad():
        assert only(events_of(model, x)).grad == "no_grad"
    with torch.inference_mode():
        assert only(events_of(model, x)).grad == "inference"


class Block(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.kwargs = kwargs

    def forward(self, x):
        return checkpoint(self._run, x, **self.kwargs)

    def _run(self, x):
        return functional.dropout(self.drop(self.linear(x)), 0.5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backward", ["method", "function", "grad"])
def test_what_is_recomputed_is_seen_and_said_to_be(reentrant, backward):
    if reentrant and backward == "grad":
        return  # which reentrant checkpoints refuse
    model = nn.Sequential(Block(use_reentrant=reentrant), nn.Linear(8, 8))
    x = torch.ones(4, 8, requires_grad=True)
    with watch(model, digests=True) as events:
        loss = model(x).sum()
        if backward == "method":
            loss.backward()
        elif backward == "function":
            torch.autograd.backward(loss)
        else:
            torch.autograd.grad(loss, x)
    assert [(e.site, e.backward, e.grad) for e in events] == [
        ("0.drop", False, "grad"),
        ("0:dropout", False, "grad"),
        ("0.drop", True, "grad"),
        ("0:dropout", True, "grad"),
    ]
    assert [e.digest for e in events[:2]] == [e.digest for e in events[2:]]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_a_reentrant_checkpoint_in_evaluation_is_without_gradients():
    model = nn.Sequential(Block(use_reentrant=True))
    with torch.no_grad(), watch(model) as events:
        model(torch.ones(4, 8))
    assert {e.grad for e in events} == {"no_grad"}


# ---- everything is put back -------------------------------------------------------------------


def keyed():
    layer = dst.Dropout(0.5)
    dst.set_key(layer, seed=1)
    return layer


def is_clean():
    modes = _len_torch_function_stack() > 0 or is_in_torch_dispatch_mode()
    return not modes and not _has_any_global_hook()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("place", [DropPath, nn.Dropout, dst.Dropout, nn.TransformerEncoderLayer])
def test_after_an_interrupt(error, place, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    original = dst.functional.dropout
    layer = place(16, 2) if place is nn.TransformerEncoderLayer else place(0.5)
    monkeypatch.setattr(layer, "forward", fail)
    for mode in (True, False):
        with pytest.raises(error), watch(layer):
            nn.Sequential(layer.train(mode))(torch.ones(8, 16))
        assert is_clean()
    assert dst.functional.dropout is original
    with watch() as events:
        nn.Dropout(0.5)(torch.ones(8))
    assert len(events) == 1


def test_wrong_calls_fail_as_they_do_unwatched():
    with watch() as events:
        for wrong in ({"p": 1.5}, {"nonsense": 1}, {"p": 2, "training": True}):
            with pytest.raises((ValueError, TypeError)):
                dst.functional.dropout(torch.ones(8), **wrong)
            with pytest.raises((ValueError, TypeError)):
                functional.dropout(torch.ones(8), **wrong)
    assert is_clean()
    assert all(event.realised is None for event in events)


class Log(TorchDispatchMode):
    """Somebody's mode, as a counter of operations is one."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("digests", [False, True])
def test_other_peoples_modes_see_the_same(digests):
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1), DropPath(0.1), dst.Dropout(0.1))
    x = torch.randn(SIZE)
    with Log() as plain:
        model(x)
    with Log() as around, watch(model, digests=digests):
        model(x)
    with watch(model, digests=digests), Log() as inside:
        model(x)
    assert plain.names == around.names == inside.names


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("layer", [nn.Dropout(0.5), dst.Dropout(0.5), keyed()])
def test_transformed_traced_and_meta_calls_go_through(layer):
    model = nn.Sequential(nn.Linear(8, 8), layer)
    x = torch.randn(4, 8)
    with watch(model) as events:
        torch.func.vmap(model, randomness="different")(x)
        torch.func.grad(lambda x: model(x).sum())(x)
        torch.export.export(model, (x,))
        torch.jit.trace(model.eval(), x, check_trace=False)
        model.to("meta")(x.to("meta"))
    assert [e.site for e in events[:2]] == ["1", "1"]
    assert all(e.site == "1" for e in events)


def test_compiled_code_runs_eagerly_and_is_seen():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    compiled = torch.compile(model, backend="eager")
    compiled(torch.ones(4, 8))
    event = only(events_of(model, torch.ones(4, 8)))
    with watch(model) as events:
        compiled(torch.ones(4, 8))
    assert (only(events).site, only(events).active) == (event.site, True)
    torch._dynamo.reset()


def test_watches_in_a_watch_see_the_same():
    model = nn.Sequential(nn.Dropout(0.5), dst.Dropout(0.5), DropPath(0.5), SelfAttention(0.5))
    with watch(model) as outer, watch(model) as inner:
        functional.dropout(dst.functional.dropout(model(torch.ones(SIZE)), 0.5), 0.5)
    assert inner == outer
    assert len(inner) == 6
    assert not is_in_torch_dispatch_mode()  # which would send dropseed another route


def test_compiling_inside():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    with watch(model) as events:
        torch.compile(model, backend="eager")(torch.ones(4, 8))
    assert (only(events).site, only(events).active) == ("1", True)


def test_the_programs_own_warning_filters_stay():
    before = list(warnings.filters)
    with watch():
        warnings.filterwarnings("ignore", "of the program")
    assert warnings.filters[1:] == before
    warnings.filters.pop(0)


def test_a_callback_gets_the_events_and_nothing_is_kept():
    taken = []
    with watch(None, taken.append) as events:
        nn.Dropout(0.5)(torch.ones(8))
    assert (len(taken), events) == (1, [])
