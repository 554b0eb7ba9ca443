"""Which route each transform takes, forward and backward; the table in the docs is printed here.

After a change, write the table anew: `DROPSEED_WRITE=1 pytest tests/test_torch/test_routes.py`.
"""

import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from dropseed import Key
from dropseed.torch import autograd
from dropseed.torch.functional import dropout

PAGE = Path(__file__).parents[2] / "docs" / "autograd.md"
BEGIN, END = "<!-- routes: begin -->\n", "<!-- routes: end -->\n"

# torch's own linearize, inductor and jit.trace warn about themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


def backward(output):
    """Backward of an output, told apart from its forward."""
    _calls.append("then")
    output.sum().backward()


def leaf(*shape):
    return torch.ones(shape or (4, 3), requires_grad=True)


def double_backward(f):
    x = leaf()
    (first,) = torch.autograd.grad((f(x) ** 2).sum(), x, create_graph=True)
    backward(first)


def dual(f):
    with forward_ad.dual_level():
        f(forward_ad.make_dual(torch.ones(3), torch.ones(3)))


def batched_gradients(f):
    x = leaf(3)
    output = f(x)
    _calls.append("then")
    torch.autograd.grad(output, x, torch.eye(3), is_grads_batched=True)


def vmap_of_a_backward(f):
    x = leaf(3)
    output = f(x)
    _calls.append("then")
    vmap(lambda g: torch.autograd.grad(output, x, g, retain_graph=True))(torch.eye(3))


def without(mode):
    def run(f):
        with mode():
            f(torch.ones(3))

    return run


def in_flop_counter(f):
    with FlopCounterMode(display=False):
        backward(f(leaf()))


def forward_in_flop_counter(f):
    with FlopCounterMode(display=False):
        output = f(leaf())
    backward(output)


def fake(f):
    with FakeTensorMode():
        backward(f(leaf()))


def traced_by_jit(f):
    torch.jit.trace(f, (torch.ones(3),), check_trace=False)


class Named(torch.Tensor):
    pass


def compiled(f):
    torch._dynamo.reset()
    return torch.compile(f, backend="aot_eager", fullgraph=True)


def exported(f):
    class Model(nn.Module):
        def forward(self, x):
            return f(x)

    torch.export.export(Model(), (torch.ones(3),))


ONES = torch.ones(4, 3)

# What is done, how, and the routes expected forward and backward.
CASES = {
    "plain eager": (lambda f: backward(f(leaf())), "function", "function"),
    "no_grad": (without(torch.no_grad), "function", ""),
    "inference_mode": (without(torch.inference_mode), "function", ""),
    "double backward": (double_backward, "function", "function"),
    "checkpoint, reentrant": (
        lambda f: backward(checkpoint(f, leaf(), use_reentrant=True)),
        "function",
        "function",
    ),
    "checkpoint, non-reentrant": (
        lambda f: backward(checkpoint(f, leaf(), use_reentrant=False)),
        "function",
        "function",
    ),
    "is_grads_batched": (batched_gradients, "function", "op"),
    "func.vmap of autograd.grad": (vmap_of_a_backward, "function", "mask"),
    "forward_ad.dual_level": (dual, "mask", ""),
    "func.jvp": (lambda f: jvp(f, (ONES,), (ONES,)), "mask", ""),
    "func.linearize": (lambda f: linearize(f, ONES)[1](ONES), "function, mask", ""),
    "func.grad": (lambda f: grad(lambda x: f(x).sum())(ONES), "mask", ""),
    "func.vjp": (lambda f: vjp(f, ONES)[1](ONES), "mask", ""),
    "func.jacrev": (lambda f: jacrev(f)(ONES), "mask", ""),
    "func.jacfwd": (lambda f: jacfwd(f, randomness="same")(ONES), "mask", ""),
    "func.hessian": (lambda f: hessian(lambda x: (f(x) ** 2).sum())(ONES), "mask", ""),
    "func.functionalize": (lambda f: functionalize(f)(ONES), "mask", ""),
    "func.vmap": (lambda f: vmap(f)(ONES), "mask", ""),
    "func.vmap of func.grad": (lambda f: vmap(grad(lambda x: f(x).sum()))(ONES), "mask", ""),
    "compile": (lambda f: backward(compiled(f)(leaf())), "op", ""),
    "compile of func.vmap": (lambda f: compiled(vmap(f))(ONES), "mask", ""),
    "compile of func.jvp": (lambda f: compiled(lambda x: jvp(f, (x,), (x,)))(ONES), "mask", ""),
    "export": (exported, "op", ""),
    "make_fx, real": (lambda f: make_fx(f)(ONES), "op", ""),
    "make_fx, symbolic": (lambda f: make_fx(f, tracing_mode="symbolic")(ONES), "op", ""),
    "make_fx of func.vmap": (lambda f: make_fx(vmap(f))(ONES), "mask", ""),
    "jit.trace": (traced_by_jit, "op", ""),
    "FakeTensorMode": (fake, "op", "op"),
    "TorchDispatchMode": (in_flop_counter, "op", "op"),
    "TorchDispatchMode, forward only": (forward_in_flop_counter, "op", "function"),
    "meta tensor": (
        lambda f: backward(f(torch.ones(3, device="meta").requires_grad_())),
        "op",
        "op",
    ),
    "subclass, __torch_function__": (lambda f: f(torch.ones(3).as_subclass(Named)), "op", ""),
    "subclass, __torch_dispatch__": (
        lambda f: backward(f(TwoTensor(ONES.clone(), ONES.clone()).requires_grad_())),
        "op",
        "op",
    ),
}

_calls = []


@pytest.fixture(autouse=True)
def _spies(monkeypatch):
    """Each route notes its name and goes on."""
    for name in ("mask", "op", "function"):
        route = getattr(autograd, f"_by_{name}")
        monkeypatch.setattr(autograd, f"_by_{name}", partial(_noted, name, route))
    _calls.clear()


def _noted(name, route, *args):
    _note(name)
    return route(*args)


@torch.compiler.assume_constant_result
def _note(name):
    _calls.append(name)


def routes_of(case):
    """The routes that a case takes, and those of a backward pass that runs by itself."""
    _calls.clear()
    CASES[case][0](lambda x: dropout(x, 0.3, key=Key(7)))
    split = _calls.index("then") if "then" in _calls else len(_calls)
    return tuple(", ".join(sorted(set(part))) for part in (_calls[:split], _calls[split + 1 :]))


def table():
    yield "| what is done | route | route of a backward pass by itself |"
    yield "| --- | --- | --- |"
    for case in CASES:
        yield "| {} | {} | {} |".format(case, *routes_of(case))


@pytest.mark.parametrize("case", CASES)
def test_route(case):
    assert routes_of(case) == CASES[case][1:]


def test_the_docs_show_the_table_that_is_printed():
    printed = "\n".join(table()) + "\n"
    print(printed)
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    shown, after = rest.split(END)
    if os.environ.get("DROPSEED_WRITE"):
        PAGE.write_text(before + BEGIN + printed + END + after, encoding="utf-8")
    else:
        assert shown == printed


def test_what_the_picker_needs_of_torch_exists():
    """Some of these calls are not public: should torch rename one, this says which."""
    assert torch._C._are_functorch_transforms_active() is False
    assert forward_ad._current_level == -1
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0
    assert is_in_torch_dispatch_mode() is False
    assert torch._C._get_tracing_state() is None
    assert torch._C._functorch.is_legacy_batchedtensor(ONES) is False
    assert torch.compiler.is_compiling() is False
    assert ONES._is_zerotensor() is False
    assert ONES._is_view() is False
    assert torch.autograd.graph.increment_version(ONES) is None
    assert vmap(lambda x: x * torch._C._are_functorch_transforms_active())(ONES).all()


def test_another_route_is_seen(monkeypatch):
    monkeypatch.setattr(autograd, "route", lambda _: autograd._by_op)
    assert routes_of("plain eager") == ("op", "op")
