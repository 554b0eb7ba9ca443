"""Export, make_fx, jit.trace, fake and meta tensors, subclasses and modes."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import dropseed.torch as dst
from dropseed.torch import functional as ours

X = torch.linspace(-2, 3, 30).reshape(6, 5)


def model(**kwargs):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 5), dst.Dropout(0.5, **kwargs), nn.Linear(5, 2))


def test_the_ops_pass_torch_s_own_checks(words):
    ops = torch.ops.dropseed
    threshold, scale = torch.tensor(2**31), torch.tensor(2.0, dtype=torch.float64)
    for x in (X.clone().requires_grad_(), X.half().t(), torch.ones(0, 3), torch.ones(())):
        axes = [1] if x.dim() else []
        torch.library.opcheck(ops.dropout, (x, words, 2**31, 2.0, None, None, axes))
        torch.library.opcheck(
            ops.dropout_tensor_rate, (x, words, threshold, scale, None, None, axes)
        )
    for shape in ([3, 4], [0], []):
        keys, thresholds = torch.stack([words, words + 1]), torch.stack([threshold, threshold])
        torch.library.opcheck(ops.keep, (keys, 2**31, shape, True))
        torch.library.opcheck(ops.keep, (words, 2**31, shape, False))
        torch.library.opcheck(ops.keep_tensor_rate, (keys[:, 0], thresholds, shape, True))
        torch.library.opcheck(ops.keep_tensor_rate, (words, threshold, shape, False))


# ---- export ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("scaling", ["inverted", "original"])
def test_export_in_eval(strict, scaling):
    net = model(scaling=scaling).eval()
    rows = torch.export.Dim("rows", min=2, max=100)
    program = torch.export.export(net, (X,), strict=strict, dynamic_shapes=({0: rows},))
    assert not any("dropseed" in str(node.target) for node in program.graph.nodes)
    for x in (X, torch.randn(11, 5)):
        assert torch.equal(program.module()(x), net(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("keyed", [False, True])
def test_export_in_training(strict, keyed):
    net = model()
    if keyed:
        dst.set_key(net, 3)
    call = torch.export.export(net, (X,), strict=strict).module()
    first, second = call(X), call(X)
    assert torch.equal(first, second) == keyed
    torch.manual_seed(4)
    exported = call(X)
    torch.manual_seed(4)
    assert torch.equal(exported, net(X))


# ---- make_fx and jit.trace -------------------------------------------------------------------


MODES = ["real", "fake", "symbolic"]


@pytest.mark.parametrize("mode", MODES)
def test_make_fx_draws_fresh_masks(mode):
    def plain(x):
        return ours.dropout(x, 0.5)

    for f in (plain, vmap(plain, randomness="different")):
        graph = make_fx(f, tracing_mode=mode)(X)
        first, second = graph(torch.ones(6, 5)), graph(torch.ones(6, 5))
        assert not torch.equal(first, second)
        torch.manual_seed(3)
        drawn = graph(X)
        torch.manual_seed(3)
        assert torch.equal(drawn, f(X))


@pytest.mark.parametrize("mode", MODES)
def test_make_fx_keeps_an_explicit_key(mode, key, expected, same_bits):
    def f(x):
        return ours.dropout(x, 0.3, key=key)

    def gradient(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(f(x).pow(2).sum(), x)[0]

    for function in (f, gradient, vmap(f), torch.func.grad(lambda x: f(x).pow(2).sum())):
        assert same_bits(make_fx(function, tracing_mode=mode)(X)(X), function(X))
    graph = make_fx(f, tracing_mode="symbolic")(X)
    assert same_bits(graph(torch.ones(9, 4)), expected(torch.ones(9, 4), 0.3, key))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that the key's shape is checked
def test_jit_trace_draws_fresh_masks(words, same_bits):
    traced = torch.jit.trace(ours.dropout, (X,), check_trace=False)
    ones = torch.ones(60, 5, requires_grad=True)
    output = traced(ones)
    assert 100 < int((output == 0).sum()) < 200
    assert not torch.equal(output, traced(ones))
    output.sum().backward()
    assert same_bits(output, ones.grad)
    traced = torch.jit.trace(lambda x: ours.dropout(x, 0.3, key=words), (X,))
    assert same_bits(traced(X), ours.dropout(X, 0.3, key=words))


# ---- tensors without data --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dropout", "dropout2d"])
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_meta(name, p, words):
    x = torch.empty(2, 3, 4, 5, device="meta", dtype=torch.half).permute(3, 0, 1, 2)
    for key in (None, words):
        leaf = x.detach().requires_grad_()
        output = getattr(ours, name)(leaf, p, key=key)
        output.backward(output)
        for result in (output, leaf.grad):
            assert result.is_meta
            assert result.dtype == torch.half
            assert (result.shape, result.stride()) == (x.shape, x.stride())
    assert vmap(lambda x: ours.dropout(x, p), randomness="same")(x).is_meta


@pytest.mark.parametrize("inplace", [False, True])
def test_fake_tensors(inplace, key):
    before = torch.get_rng_state()
    with FakeTensorMode() as mode:
        x = torch.randn(3, 4, requires_grad=True)
        for k in (None, key):
            output = ours.dropout(x * 1, 0.5, inplace=inplace, key=k)
            output.sum().backward()
            assert output.fake_mode is x.grad.fake_mode is mode
            assert x.grad.shape == (3, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fake_model():
    with FakeTensorMode():
        net = model()
        dst.set_key(net, 0)
        assert net(torch.ones(3, 5)).shape == (3, 2)


def test_a_fake_tensor_outside_its_mode_fails_loudly():
    fake = FakeTensorMode().from_tensor(X)
    with pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
        ours.dropout(fake, 0.5)


# ---- subclasses and modes --------------------------------------------------------------------


class Named(torch.Tensor):
    """A subclass that sees functions."""


class Logged(torch.Tensor):
    """A subclass that sees operators, and logs them."""

    seen: ClassVar[list] = []

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(str(func))
        unwrapped = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        return cls(func(*unwrapped, **(kwargs or {})))


def test_subclass_with_torch_function(key, expected, same_bits):
    x = X.clone().as_subclass(Named).requires_grad_()
    output = ours.dropout(x, 0.3, key=key)
    output.backward(x.detach())
    assert type(output) is Named
    for result in (output, x.grad):
        assert same_bits(result.as_subclass(torch.Tensor), expected(X, 0.3, key))
    value = X.clone().as_subclass(Named)
    assert ours.dropout(value, 0.3, inplace=True, key=key) is value
    assert same_bits(value.as_subclass(torch.Tensor), expected(X, 0.3, key))


def test_parameters_are_plain(key, expected, same_bits):
    parameter = nn.Parameter(X.clone())
    assert type(ours.dropout(parameter, 0.3, key=key)) is torch.Tensor
    assert same_bits(ours.dropout(parameter, 0.3, key=key), expected(X, 0.3, key))


def test_subclass_with_torch_dispatch(key, expected, same_bits):
    x = Logged(X)
    output = ours.dropout(x, 0.3, key=key)
    assert type(output) is Logged
    assert "dropseed.dropout.default" in Logged.seen
    assert same_bits(output.inner, expected(X, 0.3, key))


def test_two_tensors(key, expected, same_bits):
    x = TwoTensor(X.clone(), 2 * X).requires_grad_()
    output = ours.dropout(x, 0.3, key=key)
    output.sum().backward()
    assert type(output) is type(x.grad) is TwoTensor
    assert same_bits(output.a, expected(X, 0.3, key))
    assert same_bits(output.b, expected(2 * X, 0.3, key))
    assert same_bits(x.grad.a, x.grad.b, expected(torch.ones(6, 5), 0.3, key))


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("make", [Watch, lambda: FlopCounterMode(display=False)])
def test_dispatch_modes(make, key, expected, same_bits):
    x = X.clone().requires_grad_()
    with make() as mode:
        output = ours.dropout(x, 0.3, key=key)
        output.sum().backward()
    assert same_bits(output, expected(X, 0.3, key))
    assert same_bits(x.grad, expected(torch.ones(6, 5), 0.3, key))
    if isinstance(mode, Watch):
        assert mode.seen.count("dropseed.dropout.default") == 2


def test_a_graph_made_in_a_mode_is_differentiated_outside(key, expected, same_bits):
    x, ones = X.clone().requires_grad_(), torch.ones(6, 5)
    with Watch():
        output = ours.dropout(x, 0.3, key=key)
    (first,) = torch.autograd.grad(output, x, ones.requires_grad_(), create_graph=True)
    (second,) = torch.autograd.grad(first, ones, X)
    assert same_bits(first, expected(ones, 0.3, key))
    assert same_bits(second, expected(X, 0.3, key))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode, key, expected, same_bits):
    leaf = X.clone().requires_grad_()
    with mode():
        for x in (X.clone(), leaf):
            output = ours.dropout(x, 0.3, key=key)
            assert not output.requires_grad
            assert same_bits(output, expected(X, 0.3, key))
        assert not torch.equal(ours.dropout(X, 0.5), ours.dropout(X, 0.5))
        value = X.clone()
        assert ours.dropout(value, 0.3, inplace=True, key=key) is value
        assert same_bits(value, expected(X, 0.3, key))
