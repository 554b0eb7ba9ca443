"""Multi-sample dropout, against one pass of the head for each mask of the NumPy reference."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn.functional import cross_entropy

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.multi_sample import MultiSampleDropout, multi_sample_dropout
from generators import seeds_drawn

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])


def dense(x, head, p, samples, key, scaling="inverted"):
    """The definition: the head of each dropped copy in turn."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    factor = torch.tensor(
        Rate(p).factors(scaling).training, dtype=torch.float32 if half else x.dtype
    )
    outputs = []
    for i in range(samples):
        mask = torch.from_numpy(np.array(keep(key.fold(i), p, tuple(x.shape))))
        outputs.append(head(torch.where(mask, (x * factor).to(x.dtype), 0.0)))
    return torch.stack(outputs)


def head_and_calls(**settings):
    """A linear head, and the batch sizes it is called with."""
    head, calls = nn.Linear(5, 3, **settings), []
    head.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    return head, calls


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
@pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
def test_copies_are_those_of_the_reference(dtype, scaling, p, key, same_bits):
    x = torch.randn(4, 5).to(dtype)
    settings = {"samples": 3, "key": key, "scaling": scaling, "reduce": "none"}
    output = multi_sample_dropout(x, lambda copies: copies, p, **settings)
    assert same_bits(output, dense(x, lambda copy: copy, p, 3, key, scaling))


@pytest.mark.parametrize("shape", [(6, 5), (1, 5), (0, 5), (2, 3, 5), (2, 0, 5)])
@pytest.mark.parametrize("samples", [1, 4])
def test_equals_one_pass_for_each_mask(shape, samples, key):
    head, calls = head_and_calls(dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    want = dense(x, head, 0.4, samples, key)
    gradients = []
    for reduce in ("mean", "none"):
        calls.clear()
        output = multi_sample_dropout(x, head, 0.4, samples=samples, key=key, reduce=reduce)
        assert calls == [samples * shape[0]]  # one pass
        expected = want.mean(0) if reduce == "mean" else want
        assert torch.allclose(output, expected)
        v = torch.randn_like(output)
        gradients = [
            torch.autograd.grad(y, (x, head.weight), v, retain_graph=True)
            for y in (output, expected)
        ]
        assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_gradcheck(key):
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def f(x, w):
        return multi_sample_dropout(x, lambda c: (c @ w.T).tanh(), 0.3, samples=3, key=key)

    assert torch.autograd.gradcheck(f, (x, weight), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x, weight))


def test_the_paper_s_loss(key):
    """The average of the losses, as a function of the outputs that "none" gives."""
    head, (x, y) = nn.Linear(5, 3), (torch.randn(6, 5), torch.randint(3, (6,)))
    outputs = multi_sample_dropout(x, head, 0.5, samples=4, key=key, reduce="none")
    loss = cross_entropy(outputs.flatten(0, 1), y.repeat(4))
    alone = [
        cross_entropy(head(dst.functional.dropout(x, 0.5, key=key.fold(i))), y) for i in range(4)
    ]
    assert torch.allclose(loss, torch.stack(alone).mean())
    mean = multi_sample_dropout(x, head, 0.5, samples=4, key=key)
    assert torch.allclose(mean, outputs.mean(0))
    assert cross_entropy(mean, y) < loss


def test_a_batch_norm_sees_all_copies(key):
    head = nn.BatchNorm1d(5)
    x = torch.randn(6, 5)
    output = multi_sample_dropout(x, head, 0.5, samples=4, key=key, reduce="none")
    assert torch.allclose(output.mean((0, 1)), torch.zeros(5), atol=1e-6)


def test_backward_keeps_what_the_head_keeps():
    head, x = nn.Linear(64, 3), torch.randn(32, 64, requires_grad=True)

    def kept(call):
        storages = {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        return sum(storages.values())

    copies = torch.randn(4 * 32, 64, requires_grad=True)
    ours = kept(lambda: multi_sample_dropout(x, head, samples=4))
    assert ours <= kept(lambda: head(copies)) + 4 * 16


# ---- when nothing is dropped -----------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["mean", "none"])
def test_alike_copies_are_one(reduce, same_bits):
    head, calls = head_and_calls()
    x = torch.randn(6, 5)
    cases = [
        (head(x), {"p": 0.3, "training": False}),
        (head(x), {"p": 0.0}),
        (head(torch.zeros(6, 5)), {"p": 1.0}),
        (head(x * 0.75), {"p": 0.25, "training": False, "scaling": "original"}),
        (head(x), {"p": torch.tensor(0.3), "training": False}),
    ]
    for want, settings in cases:
        calls.clear()
        output = multi_sample_dropout(x, head, samples=3, reduce=reduce, **settings)
        assert calls == [6]
        assert same_bits(output, want if reduce == "mean" else torch.stack([want] * 3))


@pytest.mark.parametrize("make", [lambda p: p, torch.tensor])
def test_seeds(make):
    layer, x = MultiSampleDropout(nn.Linear(5, 3)), torch.randn(2, 5)
    tensor = isinstance(make(0.5), torch.Tensor)
    for p, count in ((0.0, int(tensor)), (0.3, 1), (1.0, int(tensor))):
        layer.p = make(p)
        assert seeds_drawn(lambda: layer.train()(x)) == count
        assert seeds_drawn(lambda: layer.eval()(x)) == 0
    layer.train().p = 0.5
    dst.set_key(layer, 0)
    assert seeds_drawn(lambda: layer(x)) == 0


def test_a_rate_that_is_a_tensor(key, same_bits):
    head, x = nn.Linear(5, 3), torch.randn(6, 5)
    for p in (0.0, 0.3, 1.0):
        results = [
            multi_sample_dropout(x, head, rate, samples=3, key=key)
            for rate in (p, torch.tensor(p, dtype=torch.float64))
        ]
        assert torch.allclose(*results, atol=1e-6)
    assert not torch.equal(*(multi_sample_dropout(x, head, torch.tensor(0.5)) for _ in range(2)))


# ---- the layer -------------------------------------------------------------------------------


def test_the_layer_calls_its_function(same_bits):
    x = torch.randn(6, 5)
    settings = {"samples": 3, "scaling": "original", "reduce": "none"}
    layer = MultiSampleDropout(nn.Linear(5, 3), 0.3, **settings)
    dst.set_key(layer, 7)
    want = multi_sample_dropout(x, layer.head, 0.3, key=Key(7).at(""), **settings)
    assert same_bits(layer(x), want)
    layer.eval()
    assert same_bits(
        layer(x), layer.head(x * Rate(0.3).factors("original").inference).expand(3, 6, 3)
    )


def test_the_key_of_a_site(same_bits):
    net = nn.Sequential(nn.Linear(5, 5), MultiSampleDropout(nn.Linear(5, 3), 0.5, 2))
    assert dst.set_key(net, 9, 4) == 1
    x = torch.randn(2, 5)
    want = dense(net[0](x), net[1].head, 0.5, 2, Key(9, step=4).at("1")).mean(0)
    assert torch.allclose(net(x), want, atol=1e-6)
    assert same_bits(net(x), net(x))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.randn(2, 5)
    layer = MultiSampleDropout(nn.Linear(5, 3), 0.3, 4, scaling="original", reduce="none")
    settings = "p=0.3, samples=4, scaling='original', reduce='none'"
    assert repr(layer).splitlines()[1].strip() == settings
    assert MultiSampleDropout(nn.Linear(5, 3)).extra_repr() == "p=0.5, samples=8"
    for key in (None, 3):
        dst.set_key(layer, key)
        assert list(layer.state_dict()) == ["head.weight", "head.bias"]
        twin = copied(layer)
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.eval()(x), layer.eval()(x))
        if key is not None:
            assert torch.equal(twin.train()(x), layer.train()(x))


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize(("keyed", "rate"), [(False, 0.5), (True, torch.tensor(0.5))])
def test_compiled(keyed, rate):
    layer = MultiSampleDropout(nn.Identity(), samples=2, reduce="none")
    layer.p = rate
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.ones(4, 50, requires_grad=True)
    output = call(x)
    output.sum().backward()
    assert set(output.unique().tolist()) == {0, 2}
    assert torch.equal(x.grad, output.sum(0).detach())
    assert not torch.equal(*output.unbind())
    if keyed:
        assert torch.equal(output, layer(x))
    layer.eval()
    assert torch.equal(call(x), torch.ones(2, 4, 50))


def test_vmap(words, same_bits):
    batch, weight = torch.randn(4, 2, 5), torch.randn(3, 5)

    def f(x, k=words):
        return multi_sample_dropout(x, lambda c: c * weight[0], 0.3, samples=2, key=k)

    assert same_bits(vmap(f)(batch), torch.stack([f(x) for x in batch]))
    want = torch.stack([f(x, k) for x, k in zip(batch, KEYS, strict=True)])
    assert same_bits(vmap(f)(batch, KEYS), want)
    different = vmap(
        lambda x: multi_sample_dropout(x, nn.Identity(), samples=2), randomness="different"
    )(torch.ones(4, 1, 50))
    assert len({row.numpy().tobytes() for row in different}) == 4


def test_functorch_s_derivatives(words):
    x, tangent = torch.randn(2, 3, 5)

    def f(x):
        return multi_sample_dropout(x, lambda c: c**2, 0.3, samples=3, key=words)

    value, derivative = jvp(f, (x,), (tangent,))
    assert torch.equal(value, f(x))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(f(leaf).sum(), leaf)
    assert torch.allclose(grad(lambda x: f(x).sum())(x), slope)
    assert torch.allclose(derivative.sum(), (slope * tangent).sum(), atol=1e-5)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(3).long()}, InvalidTypeError, "`input` must.*int64"),
        ({"input": [1.0]}, InvalidTypeError, "`input` must.*list"),
        ({"input": torch.ones(())}, InvalidValueError, r"`input` must be \(N, \*\)"),
        ({"head": 3}, InvalidTypeError, "`head` must be.*3"),
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": "half"}, InvalidTypeError, "`p` must be"),
        ({"p": torch.ones(2)}, InvalidTypeError, "`p` must be"),
        ({"samples": 0}, InvalidValueError, "`samples` must be.*0"),
        ({"samples": 2.0}, InvalidTypeError, "`samples` must be an integer"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
        ({"scaling": "half"}, InvalidValueError, "`scaling` must be"),
        ({"reduce": "sum"}, InvalidValueError, "`reduce` must be.*'sum'"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        multi_sample_dropout(**{"input": torch.ones(2, 5), "head": nn.Identity()} | arguments)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("head", [lambda x: x.sum(), lambda x: x[:1], lambda x: x.T])
@pytest.mark.parametrize("training", [True, False])
def test_a_head_must_keep_the_batch(head, training):
    with pytest.raises(InvalidValueError, match="`head` must keep the batch of"):
        multi_sample_dropout(torch.ones(2, 5), head, 0.5, training)


def test_bad_layers():
    with pytest.raises(InvalidTypeError, match="`head` must be a torch"):
        MultiSampleDropout(lambda x: x)
    with pytest.raises(InvalidValueError, match=r"`p` must be in .*-0.1"):
        MultiSampleDropout(nn.Identity(), -0.1)
    with pytest.raises(InvalidValueError, match="`samples`"):
        MultiSampleDropout(nn.Identity(), 0.5, 0)
    with pytest.raises(InvalidValueError, match="`scaling`"):
        MultiSampleDropout(nn.Identity(), scaling="half")
    with pytest.raises(InvalidValueError, match="`reduce`"):
        MultiSampleDropout(nn.Identity(), reduce="max")
