"""Token dropout against the NumPy reference: a fixed subset of the tokens, and Bernoulli draws."""

import copy
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, vmap

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import subset
from dropseed.torch import key_tensor
from dropseed.torch.schedule import set_rate
from dropseed.torch.tokens import PatchDropout, TokenDropout, token_dropout

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def places(shape, size, key, prefix):
    """Where the kept tokens come from: the prefix, then the reference's subset of each row."""
    rows = [subset(key, shape[1] - prefix, size, row=i) + prefix for i in range(shape[0])]
    return torch.from_numpy(np.array([[*range(prefix), *row] for row in rows]))


def fixed(x, size, key, prefix=0):
    rows = zip(x, places(x.shape, size, key, prefix), strict=True)
    return torch.stack([tokens[row] for tokens, row in rows])


def bernoulli(x, p, key, prefix=0, scaling="inverted"):
    factors = torch.from_numpy(keep(key, p, x.shape[:2]) * Rate(p).factors(scaling).training)
    factors[:, :prefix] = 1
    return x * factors[..., None].to(x.dtype)


# ---- a fixed number --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("way", ["contiguous", "transposed", "view"])
def test_fixed_is_the_reference(dtype, prefix, way, key, same_bits):
    base = torch.randn(3, 11, 4).to(dtype)
    x = {
        "contiguous": base,
        "transposed": base.transpose(0, 2).contiguous().transpose(0, 2),
        "view": torch.cat([base, base], 2)[..., :4],
    }[way].requires_grad_()
    output, indices = token_dropout(x, 0.4, key=key, prefix=prefix, return_indices=True)
    size = {0: 6, 1: 6, 2: 5}[prefix]
    assert same_bits(output, fixed(x, size, key, prefix))
    assert torch.equal(indices, places(x.shape, size, key, prefix))
    assert torch.equal(output, x.gather(1, indices[..., None].expand(-1, -1, 4)))
    v = torch.randn(output.shape).to(dtype)
    ours, theirs = (torch.autograd.grad(y, x, v)[0] for y in (output, fixed(x, size, key, prefix)))
    assert same_bits(ours, theirs)
    assert (ours.abs().sum(-1) > 0).sum(1).tolist() == [prefix + size] * 3


@pytest.mark.parametrize(
    ("tokens", "p", "size"),
    [
        (196, 0.5, 98),
        (7, 0.5, 3),
        (10, 0.8, 2),  # in floating point 10 * (1 - 0.8) is less than 2
        (10, 0.99, 1),
        (100, 0.29, 71),
        (10, 1.0, 0),
        (10, 1e-6, 9),
        (10, 0.0, 10),
        (0, 0.5, 0),
        (1, 0.5, 1),
    ],
)
def test_how_many_stay(tokens, p, size):
    x = torch.randn(2, tokens + 1, 3)
    output = token_dropout(x, p, prefix=1)
    assert output.shape == (2, 1 + size, 3)
    assert torch.equal(output[:, :1], x[:, :1])
    assert (output is x) == (size == tokens)


def test_an_explicit_number(key):
    x = torch.randn(3, 9, 2)
    for size in range(9):
        output = token_dropout(x, key=key, prefix=1, num_keep=size)
        assert torch.equal(output, fixed(x, size, key, 1))
    assert token_dropout(x, key=key, prefix=1, num_keep=8) is x
    assert token_dropout(x, 0.5, False, num_keep=3) is x


def test_rows_are_samples(key):
    x = torch.randn(6, 9, 2)
    assert torch.equal(token_dropout(x, key=key)[:4], token_dropout(x[:4], key=key))
    _, indices = token_dropout(x, key=key, return_indices=True)
    assert (indices.diff(dim=1) > 0).all()
    assert len({tuple(row) for row in indices.tolist()}) > 1


def test_only_indices_are_saved(key):
    sizes = []
    x = torch.randn(4, 10, 50, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        token_dropout(x, key=key)
        assert sum(sizes) <= 4 * 5 * 8
        sizes.clear()
        token_dropout(x, key=key, mode="bernoulli", prefix=1)
        assert sum(sizes) <= 16


# ---- Bernoulli -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("prefix", [0, 1, 11])
@pytest.mark.parametrize("scaling", [None, "inverted", "original", "none"])
def test_bernoulli_is_the_reference(dtype, prefix, scaling, key, expected, same_bits):
    x, v = torch.randn(2, 3, 11, 4).to(dtype)
    x.requires_grad_()
    output = token_dropout(x, 0.4, key=key, mode="bernoulli", prefix=prefix, scaling=scaling)
    (gradient,) = torch.autograd.grad(output, x, v)
    for got, value in ((output, x), (gradient, v)):
        want = expected(value, 0.4, key, (2,), scaling or "inverted")
        want[:, :prefix] = value.detach()[:, :prefix]
        assert same_bits(got, want)
    if dtype == torch.float64:
        assert torch.allclose(output, bernoulli(x, 0.4, key, prefix, scaling or "inverted"))


def test_bernoulli_in_evaluation():
    x = torch.randn(2, 5, 3)
    assert token_dropout(x, 0.4, False, mode="bernoulli", prefix=1) is x
    halved = token_dropout(x, 0.4, False, mode="bernoulli", prefix=1, scaling="original")
    assert torch.equal(halved[:, :1], x[:, :1])
    assert torch.allclose(halved[:, 1:], 0.6 * x[:, 1:])


def test_bernoulli_takes_a_tensor_rate(key, same_bits):
    x = torch.randn(2, 5, 3)
    p = torch.tensor(0.4, dtype=torch.float64)
    outputs = [token_dropout(x, q, key=key, mode="bernoulli", prefix=1) for q in (0.4, p)]
    assert same_bits(*outputs)
    with pytest.raises(InvalidTypeError, match="`p` must be a real number"):
        token_dropout(x, p, key=key)


# ---- both ------------------------------------------------------------------------------------

MODES = ["fixed", "bernoulli"]


@pytest.mark.parametrize("mode", MODES)
def test_gradcheck(mode, key):
    x = torch.randn(2, 5, 2, dtype=torch.float64, requires_grad=True)

    def run(x):
        return token_dropout(x, key=key, mode=mode, prefix=1) ** 2

    assert torch.autograd.gradcheck(run, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(run, x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0.0, 1.0, 0.4])
def test_the_generator_moves_by_one_seed_and_only_to_drop(mode, p, same_bits):
    x = torch.randn(3, 8, 2)
    before = torch.get_rng_state()
    assert token_dropout(x, p, False, mode=mode) is x
    if p == 0:
        assert token_dropout(x, p, mode=mode) is x
    if p == 1:
        assert token_dropout(x, p, mode=mode).count_nonzero() == 0
    assert torch.equal(torch.get_rng_state(), before)
    if p == 0.4:
        output = token_dropout(x, p, mode=mode)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        seed = int(torch.randint(-(2**63), 2**63 - 1, ()))
        assert torch.equal(torch.get_rng_state(), after)
        assert same_bits(output, token_dropout(x, p, key=Key(seed % 2**64), mode=mode))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 5, 0)])
def test_empty_inputs(mode, shape):
    x = torch.empty(shape, requires_grad=True)
    for p in (0.0, 0.5, 1.0):
        output = token_dropout(x, p, mode=mode)
        assert (output.shape[0], output.shape[2]) == (shape[0], shape[2])
        assert output.numel() == 0
        if output.requires_grad:
            output.sum().backward()


def test_indices_without_dropping():
    x = torch.randn(2, 5, 3)
    for training, p in ((False, 0.5), (True, 0.0)):
        output, indices = token_dropout(x, p, training, return_indices=True)
        assert output is x
        assert torch.equal(indices, torch.arange(5).expand(2, 5))


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"input": torch.ones(4, 3)}, InvalidValueError, "`input` must be (N, T, D); got shape (4"),
        ({"input": torch.ones(1, 2, 3, 4)}, InvalidValueError, "got shape (1, 2, 3, 4)"),
        (
            {"input": torch.ones(1, 2, 3).int()},
            InvalidTypeError,
            "`input` must be a floating-point",
        ),
        ({"p": -0.5}, InvalidValueError, "`p` must be in [0, 1]; got -0.5"),
        ({"p": 1.5, "training": False}, InvalidValueError, "`p` must be in [0, 1]; got 1.5"),
        ({"prefix": 6}, InvalidValueError, "`prefix` must be at most the number of tokens; got 6"),
        ({"prefix": -1}, InvalidValueError, "`prefix` must be in"),
        ({"prefix": 1.0}, InvalidTypeError, "`prefix` must be an integer; got 1.0"),
        ({"num_keep": 6}, InvalidValueError, "`num_keep` must be at most the number of tokens"),
        ({"num_keep": 5, "prefix": 1}, InvalidValueError, "after the prefix, 4; got 5"),
        ({"num_keep": 2.5}, InvalidTypeError, "`num_keep` must be an integer; got 2.5"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
        ({"mode": "any"}, InvalidValueError, '`mode` must be "fixed" or "bernoulli"; got \'any\''),
        ({"scaling": "none"}, InvalidValueError, '`scaling` has no meaning in mode "fixed"'),
        ({"mode": "bernoulli", "num_keep": 2}, InvalidValueError, "`num_keep` has no meaning"),
        ({"mode": "bernoulli", "return_indices": True}, InvalidValueError, "`return_indices` has"),
        ({"mode": "bernoulli", "scaling": "x"}, InvalidValueError, "`scaling` must be"),
    ],
)
def test_bad_input(bad, error, message):
    with pytest.raises(error, match=re.escape(message)):
        token_dropout(**{"input": torch.ones(2, 5, 3), **bad})


@pytest.mark.parametrize(("mode", "dynamic"), [*((mode, None) for mode in MODES), (MODES[1], True)])
def test_compiled(mode, dynamic, key, same_bits):
    words = key_tensor(key)
    function = torch.compile(token_dropout, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (9, 12) if dynamic else (9,):
        x = torch.randn(3, tokens, 2)
        outputs = (f(x, 0.3, key=words, mode=mode, prefix=1) for f in (function, token_dropout))
        assert same_bits(*outputs)


@pytest.mark.parametrize("mode", MODES)
def test_functorch(mode, key, same_bits):
    xs = torch.randn(4, 3, 6, 2)

    def run(x):
        return token_dropout(x, 0.4, key=key, mode=mode, prefix=1)

    assert same_bits(vmap(run)(xs), torch.stack([run(x) for x in xs]))
    keys = torch.stack([key_tensor(Key(seed)) for seed in range(4)])
    mapped = vmap(lambda key, x: token_dropout(x, 0.4, key=key, mode=mode))(keys, xs)
    each = [token_dropout(x, 0.4, key=key, mode=mode) for key, x in zip(keys, xs, strict=True)]
    assert same_bits(mapped, torch.stack(each))
    x = xs[0].clone().requires_grad_()
    (want,) = torch.autograd.grad((run(x) ** 2).sum(), x)
    assert same_bits(grad(lambda x: (run(x) ** 2).sum())(xs[0]), want)


# ---- the modules -----------------------------------------------------------------------------

OPTIONS = [
    {"mode": "fixed", "prefix": 1},
    {"num_keep": 3, "return_indices": True},
    {"mode": "bernoulli", "prefix": 1, "scaling": "original"},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_the_layer_calls_its_function(options):
    layer = TokenDropout(0.4, **options)
    dst.set_key(layer, 7, 2)
    x = torch.randn(3, 8, 2)
    for copied in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        for training in (True, False):
            got = copied.train(training)(x)
            want = token_dropout(x, 0.4, training, key=Key(7, step=2).at(""), **options)
            if options.get("return_indices"):
                assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
            else:
                assert torch.equal(got, want)
        assert repr(copied) == repr(layer)
    assert list(layer.state_dict()) == []


def test_patch_dropout_is_token_dropout_behind_a_class_token():
    layer, other = PatchDropout(0.25), TokenDropout(0.25, prefix=1)
    for each in (layer, other):
        dst.set_key(each, 3)
    x = torch.randn(2, 17, 3)
    assert torch.equal(layer(x), other(x))
    assert layer(x).shape == (2, 13, 3)
    assert PatchDropout(prefix=2, num_keep=4)(x).shape == (2, 6, 3)
    assert isinstance(layer, TokenDropout)
    assert isinstance(layer, nn.Module)


def test_a_scheduled_rate_is_a_number_where_shapes_depend_on_it():
    x = torch.randn(2, 9, 3)
    for mode, kind in (("fixed", float), ("bernoulli", torch.Tensor)):
        layer = TokenDropout(0.5, mode=mode)
        dst.set_key(layer, 3)
        set_rate(layer, 0.25)
        assert isinstance(layer.p, kind)
        assert torch.equal(layer(x), token_dropout(x, 0.25, key=Key(3).at(""), mode=mode))
    assert "p=0.25, prefix=0, mode='bernoulli'" in repr(layer)
    with pytest.raises(InvalidTypeError, match="`p` must be a real number"):
        TokenDropout(torch.tensor(0.5))


def test_repr():
    assert repr(PatchDropout(0.25)) == "PatchDropout(p=0.25, prefix=1, mode='fixed')"
    layer = TokenDropout(num_keep=0, return_indices=True)
    text = "TokenDropout(p=0.5, prefix=0, mode='fixed', num_keep=0, return_indices=True)"
    assert repr(layer) == text
    layer = TokenDropout(mode="bernoulli", scaling="none")
    assert repr(layer) == "TokenDropout(p=0.5, prefix=0, mode='bernoulli', scaling='none')"


@pytest.mark.parametrize(
    ("bad", "error", "name"),
    [
        ({"p": 2.0}, InvalidValueError, "p"),
        ({"p": "1"}, InvalidTypeError, "p"),
        ({"mode": "x"}, InvalidValueError, "mode"),
        ({"prefix": -1}, InvalidValueError, "prefix"),
        ({"num_keep": 1.5}, InvalidTypeError, "num_keep"),
        ({"mode": "bernoulli", "scaling": "x"}, InvalidValueError, "scaling"),
        ({"scaling": "none"}, InvalidValueError, "scaling"),
    ],
)
def test_bad_arguments(bad, error, name):
    with pytest.raises(error, match=f"`{name}`"):
        TokenDropout(**bad)
