"""Recomputations that draw another mask are found, and others are not called so."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch._functorch.config
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import dropseed.torch as dst
from dropseed.audit.running.finite import gradient_error
from dropseed.audit.running.recompute import check_recompute
from dropseed.audit.running.sketch import are_close, sketches
from dropseed.errors import InvalidTypeError, InvalidValueError

KEEP = [{"use_reentrant": False}, {"use_reentrant": True}]
LOSE = [kwargs | {"preserve_rng_state": False} for kwargs in KEEP]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# ---- layers -----------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A part that is recomputed, by a method of this module."""

    def __init__(self, *layers, **kwargs):
        super().__init__()
        self.body = nn.Sequential(*layers)
        self.kwargs = kwargs

    def forward(self, x):
        return checkpoint(self._run, x, **self.kwargs)

    def _run(self, x):
        return self.body(x)


class Bare(nn.Module):
    """Functions that are recomputed, with no module around them."""

    def __init__(self, **kwargs):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.kwargs = kwargs

    def forward(self, x):
        return checkpoint(self._run, x, **self.kwargs)

    def _run(self, x):
        return functional.dropout(x * self.linear.weight[0], 0.5)


class Attention(nn.Module):
    def forward(self, x):
        q = x[None]
        p = 0.3 if self.training else 0.0
        return functional.scaled_dot_product_attention(q, q, q, dropout_p=p)[0]


class Twice(nn.Module):
    def forward(self, x):
        return functional.dropout(functional.dropout(x, 0.3, self.training), 0.2, self.training)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(8, 8, 2, dropout=0.5)

    def forward(self, x):
        return self.layer(x)[0]


class Masked(torch.autograd.Function):
    """Dropout as a custom function, by one generator or another."""

    @staticmethod
    def forward(ctx, x, draw):
        keep = draw(x.shape)
        ctx.save_for_backward(keep)
        return x * keep

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


class Custom(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return Masked.apply(x, self.draw)


def by_torch(shape):
    return (torch.rand(shape) > 0.3).float()


def by_numpy():
    generator = np.random.default_rng(0)
    return lambda shape: torch.from_numpy((generator.random(shape) > 0.3).astype(np.float32))


class Counter(nn.Module):
    """A seed that runs on with each call."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        return x * (torch.rand(x.shape, generator=generator) > 0.5)


class NumpyMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.draw = by_numpy()

    def forward(self, x):
        return x * self.draw(x.shape)


def linear():
    return nn.Linear(8, 8)


def transformer():
    return nn.TransformerEncoderLayer(8, 2, 16, 0.3)


RANDOM = {
    "Dropout": (lambda: [linear(), nn.Dropout(0.5)], "1.body.1"),
    "AlphaDropout": (lambda: [linear(), nn.AlphaDropout(0.5)], "1.body.1"),
    "Dropout in place": (lambda: [linear(), nn.Dropout(0.5, inplace=True)], "1.body.1"),
    "functions": (lambda: [linear(), Twice()], "1.body.1:dropout"),
    "attention": (
        lambda: [linear(), Attention()],
        "1.body.1:scaled_dot_product_attention",
    ),
    "LSTM": (lambda: [Recurrent()], "1.body.0.layer"),
    "transformer": (lambda: [transformer()], "1.body.0.self_attn"),
    "dropseed": (lambda: [linear(), dst.Dropout(0.5)], "1.body.1"),
    "dropseed, gaussian": (lambda: [linear(), dst.GaussianDropout(0.5)], "1.body.1"),
    "dropseed, path": (lambda: [dst.DropPath.wrap(linear(), 0.5)], "1.body.0"),
    "custom function": (lambda: [linear(), Custom(by_torch)], "1.body.1:rand"),
}


def checked(*layers, **kwargs):
    """The report on a part between two layers; that nothing need come after is tested beside it."""
    model = nn.Sequential(linear(), Checkpointed(*layers, **kwargs), linear())
    return check_recompute(model, torch.randn(16, 8))


def sites(report):
    return [note.site for note in report.findings]


# ---- draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kwargs", KEEP)
@pytest.mark.parametrize("name", RANDOM)
def test_a_checkpoint_that_keeps_the_random_state(name, kwargs):
    make, _ = RANDOM[name]
    for after in ([], [linear()]):
        report = checked(*make(), *after, **kwargs)
        assert report.findings == ()
        assert report.random_calls >= 1
        assert report.sites
        assert all(site.forward == site.recomputed for site in report.sites)


@pytest.mark.parametrize("kwargs", LOSE)
@pytest.mark.parametrize("name", RANDOM)
def test_a_checkpoint_that_does_not(name, kwargs):
    """OLMo-core pull request 828."""
    make, site = RANDOM[name]
    for after in ([], [linear()]):
        report = checked(*make(), *after, **kwargs)
        assert sites(report)[0] == site
        assert {note.code for note in report.findings} == {"DS508"}
        assert "gradients are wrong" in report.findings[0].message
        assert next(s for s in report.sites if s.differs).site == site


@pytest.mark.parametrize("kwargs", KEEP)
def test_functions_without_a_module_around(kwargs):
    assert check_recompute(nn.Sequential(Bare(**kwargs)), grown(16, 8)).findings == ()
    broken = Bare(**kwargs, preserve_rng_state=False)
    report = check_recompute(nn.Sequential(broken), grown(16, 8))
    assert sites(report) == ["0:dropout"]


def grown(*shape):
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("kwargs", KEEP)
def test_a_lambda_and_a_function_of_nobodys(kwargs):
    def lost(x):
        return functional.dropout(x * 2, 0.5)

    class Model(nn.Module):
        def __init__(self, keep):
            super().__init__()
            self.kwargs = kwargs | {"preserve_rng_state": keep}

        def forward(self, x):
            x = checkpoint(lambda x: functional.dropout(x * 2, 0.3), x, **self.kwargs)
            return checkpoint(lost, x, **self.kwargs)

    assert check_recompute(nn.Sequential(Model(True)), grown(16, 8)).findings == ()
    report = check_recompute(nn.Sequential(Model(False)), grown(16, 8))
    assert sites(report) == ["0:dropout", "0:dropout#2"]


@pytest.mark.parametrize("kwargs", LOSE)
def test_keys_make_it_right(kwargs):
    model = nn.Sequential(linear(), Checkpointed(linear(), dst.Dropout(0.5), linear(), **kwargs))
    dst.set_key(model, seed=3)
    report = check_recompute(model, torch.randn(16, 8))
    assert (report.findings, [site.site for site in report.sites]) == ((), ["1.body.1"])


@pytest.mark.parametrize("kwargs", LOSE)
@pytest.mark.parametrize(
    "layers",
    [
        lambda: [linear(), nn.ReLU(inplace=True), linear()],
        lambda: [linear(), nn.BatchNorm1d(8), nn.GELU()],
        lambda: [linear(), nn.Dropout(0.0), linear()],
        lambda: [linear(), Custom(lambda shape: torch.ones(shape))],
        lambda: [nn.GRU(8, 8), First(), linear()],
    ],
)
def test_what_draws_nothing_is_right_without_the_random_state(kwargs, layers):
    assert checked(*layers(), **kwargs).findings == ()


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


@pytest.mark.parametrize("kwargs", LOSE)
def test_in_evaluation_nothing_differs(kwargs):
    model = Checkpointed(linear(), nn.Dropout(0.5), dst.Dropout(0.5), **kwargs).eval()
    report = check_recompute(model, grown(16, 8))
    assert (report.findings, report.random_calls) == ((), 0)
    assert "Is the model in training mode?" in str(report)


def test_layers_that_are_not_recomputed_are_left_out():
    model = nn.Sequential(linear(), nn.Dropout(0.5), dst.Dropout(0.5))
    report = check_recompute(model, torch.randn(16, 8))
    assert (report.sites, report.findings, report.random_calls) == ((), (), 2)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_checkpoints_in_checkpoints():
    for keep in (True, False):
        inner = Checkpointed(nn.Dropout(0.5), linear(), use_reentrant=True)
        report = checked(linear(), inner, use_reentrant=True, preserve_rng_state=keep)
        assert bool(report.findings) is not keep


@pytest.mark.parametrize(
    ("saved", "keep", "wrong"),
    [("aten.mul.Tensor", True, False), ("", True, False), ("", False, True)],
)
def test_selective_checkpoints(saved, keep, wrong):
    def policy(context, operation, *args, **kwargs):
        must = str(operation) == saved
        return CheckpointPolicy.MUST_SAVE if must else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = partial(create_selective_checkpoint_contexts, policy)
    report = checked(
        linear(),
        nn.Dropout(0.5),
        linear(),
        use_reentrant=False,
        context_fn=contexts,
        preserve_rng_state=keep,
    )
    assert bool(report.findings) is wrong


# ---- masks that torch doesn't draw ------------------------------------------------------------


@pytest.mark.parametrize("kwargs", KEEP)
@pytest.mark.parametrize(
    ("make", "site"),
    [
        (Counter, "1.body.1:rand"),
        (NumpyMask, "1.body.1"),
        (lambda: Custom(by_numpy()), "1.body.1:Masked"),
    ],
)
def test_state_that_runs_on(make, site, kwargs):
    for after in ([], [linear()]):
        assert sites(checked(linear(), make(), *after, **kwargs)) == [site]


@pytest.mark.parametrize("kwargs", KEEP)
def test_a_custom_function_without_a_module_around(kwargs):
    class Model(nn.Module):
        def __init__(self, draw):
            super().__init__()
            self.draw = draw

        def forward(self, x):
            return checkpoint(lambda x: Masked.apply(x * 2, self.draw), x, **kwargs)

    assert check_recompute(Model(by_torch), grown(16, 8)).findings == ()
    assert sites(check_recompute(Model(by_numpy()), grown(16, 8))) == ["Masked"]


@pytest.mark.parametrize("kwargs", KEEP)
def test_a_dropout_that_is_on_in_one_pass_only(kwargs):
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return functional.dropout(x, 0.5, self.calls == self.on) * 1

    for on, said in ((1, "and not when it is recomputed"), (2, "and not in the forward pass")):
        layer = Once()
        layer.on = on
        note = checked(linear(), layer, linear(), **kwargs).findings[0]
        assert (note.site, said in note.message) == ("1.body.1:dropout", True)


def test_what_torchs_checkpoint_notices_itself_is_a_finding():
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            for _ in range(self.calls):
                x = x.sin()
            return x

    (note,) = [n for n in checked(Grows(), use_reentrant=False).findings if n.site == ""]
    assert note.message.startswith("torch's checkpoint stops the recomputation")


# ---- the report, the loss, and what is put back ------------------------------------------------


def test_the_report_in_words():
    report = checked(linear(), nn.Dropout(0.5), nn.Dropout(0.2), **LOSE[0])
    first, *others = str(report).splitlines()
    assert first == "2 random calls in the forward pass, 2 sites recomputed"
    assert [line.partition(":")[0] for line in others] == ["DS508 1.body.1", "DS508 1.body.2"]
    assert str(checked(linear(), **KEEP[0])).endswith("nothing differs")


def test_inputs_by_position_and_by_name():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = linear()

        def forward(self, x, scale, *, shift=0.0):
            return {"out": [functional.dropout(self.linear(x), 0.5) * scale + shift], "n": 3}

    x = torch.randn(4, 8)
    assert check_recompute(Model(), (x, 2.0)).random_calls == 1
    assert check_recompute(Model(), {"x": x, "scale": 2.0, "shift": 1.0}).random_calls == 1


def test_a_loss_of_ones_own():
    called = []

    def loss(output):
        called.append(output.shape)
        return output.square().mean()

    report = check_recompute(Checkpointed(linear(), **KEEP[0]), grown(16, 8), loss=loss)
    assert (called, report.findings) == ([(16, 8)], ())


@pytest.mark.parametrize(
    ("model", "loss"),
    [
        (nn.Dropout(0.5), None),
        (Bare(use_reentrant=False), lambda output: output),
        (Bare(use_reentrant=False), lambda output: output.sum().item()),
    ],
)
def test_no_loss_to_differentiate(model, loss):
    with pytest.raises(InvalidValueError, match="`loss` must give a 0-d tensor"):
        check_recompute(model, torch.randn(16, 8), loss=loss)


def test_no_model():
    with pytest.raises(
        InvalidTypeError, match=r"`model` must be a torch\.nn\.Module; got function"
    ):
        check_recompute(linear, torch.randn(16, 8))


@pytest.mark.parametrize("kwargs", [*KEEP, *LOSE])
def test_everything_is_put_back(kwargs):
    model = nn.Sequential(
        linear(), nn.BatchNorm1d(8), Checkpointed(linear(), nn.Dropout(0.5), **kwargs)
    )
    x = grown(16, 8)
    model[0].weight.grad = torch.ones(8, 8)
    x.grad = torch.ones(16, 8)
    before = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()
    check_recompute(model, x)
    assert torch.equal(torch.get_rng_state(), before[1])
    for value, old in zip(model.state_dict().values(), before[0], strict=True):
        assert torch.equal(value, old)
    assert torch.equal(model[0].weight.grad, torch.ones(8, 8))
    assert torch.equal(x.grad, torch.ones(16, 8))
    assert model[2].body[0].weight.grad is None
    assert torch.autograd.Function.__dict__["apply"].__func__.__name__ == "apply"
    assert not hasattr(torch.autograd.Function.__dict__["apply"].__func__, "__wrapped__")


# ---- compiled code ----------------------------------------------------------------------------


def compiled(*layers, budget, double=False):
    """A report on code whose backward pass recomputes what `budget` leaves it to."""
    torch._dynamo.reset()
    with (
        torch._functorch.config.patch(activation_memory_budget=budget),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # torch calls what it has deprecated
        model = nn.Sequential(*layers)
        x = torch.randn(32, 8)
        if double:
            model, x = model.double(), x.double()
        return check_recompute(torch.compile(model, backend="aot_eager_decomp_partition"), x)


@pytest.mark.parametrize("layer", [nn.ReLU, nn.GELU, partial(nn.BatchNorm1d, 8)])
@pytest.mark.parametrize("rate", [0.01, 0.5])
@pytest.mark.parametrize("double", [False, True])
def test_compiled_gradients_that_are_right(layer, rate, double):
    report = compiled(linear(), layer(), nn.Dropout(rate), linear(), budget=1.0, double=double)
    assert (report.findings, report.compiled) == ((), True)
    assert report.gradient_error < 2e-4
    assert "the compiled gradient is off by" in str(report)


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_compiled_gradients_of_another_mask(rate):
    """PyTorch issues 190717 and 190758: a memory budget makes the mask be drawn again."""
    report = compiled(linear(), nn.GELU(), nn.Dropout(rate), linear(), budget=0.0)
    (note,) = report.findings
    assert (note.code, note.site) == ("DS508", "")
    assert note.message.startswith("the compiled gradient is off by")


def test_keys_make_compiled_code_right_too():
    layers = [linear(), nn.GELU(), dst.Dropout(0.5), linear()]
    dst.set_key(nn.Sequential(*layers), seed=1)
    assert compiled(*layers, budget=0.0).findings == ()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_loss_that_does_not_repeat_is_not_judged():
    report = compiled(linear(), NumpyMask(), linear(), budget=1.0)
    assert (report.findings, report.gradient_error) == ((), None)
    assert "can't be measured" in str(report)


def test_gradients_by_finite_differences():
    weight = torch.linspace(-1, 1, 50, requires_grad=True)

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return functional.dropout(x, 0.3)

        @staticmethod
        def backward(ctx, gradient):
            return functional.dropout(gradient, 0.3)

    assert gradient_error(lambda: weight.sin().sum(), [weight]) < 1e-4
    assert gradient_error(lambda: functional.dropout(weight, 0.5).sum(), [weight]) < 1e-4
    assert gradient_error(lambda: Wrong.apply(weight.sin()).sum(), [weight]) > 0.1
    assert gradient_error(lambda: (weight * 0).sum(), [weight]) is None
    assert gradient_error(lambda: weight.bfloat16().sin().sum().float(), [weight]) is None
    assert weight.grad is None
    assert torch.equal(weight, torch.linspace(-1, 1, 50))


def test_a_loss_that_does_not_repeat_costs_two_runs():
    weight, calls = torch.ones(3, requires_grad=True), []

    def run():
        calls.append(None)
        return weight.sum() * len(calls)

    assert gradient_error(run, [weight]) is None
    assert len(calls) == 2


# ---- sketches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("size", [1, 7, 1009, 5000])
def test_sketches_tell_masks_from_rounding(dtype, size):
    x = torch.randn(size, dtype=dtype)
    rounded = (
        (x.to(torch.complex128) * (1 + 1e-7)).to(dtype)
        if x.is_complex()
        else ((x.double() * (1 + 1e-7)).to(dtype))
    )
    changed = x.clone()
    changed[size // 2] += x.abs().double().norm().item()
    assert are_close(sketches(x), sketches(rounded))
    assert not are_close(sketches(x), sketches(changed))
    assert not are_close(sketches(x), sketches([x, x]))
    assert not are_close(sketches(x), sketches(torch.cat([x, x[:1]])))


def test_sketches_of_what_is_not_finite_and_of_nothing():
    x = torch.tensor([1.0, float("nan"), float("inf")])
    assert are_close(sketches(x), sketches(x.clone()))
    assert are_close(sketches(torch.ones(0)), sketches(torch.ones(0)))
    assert sketches(["text", 3, None]) == ()
    assert are_close(sketches(torch.arange(5)), sketches(torch.arange(5)))
    assert not are_close(sketches(torch.arange(5)), sketches(torch.arange(5).flip(0)))
