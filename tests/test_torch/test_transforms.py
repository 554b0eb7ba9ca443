"""Derivatives of every kind and functorch's transforms, by every route with the same bits."""

import pytest
import torch
import torch.nn.functional as theirs
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

from dropseed import Key
from dropseed.torch import autograd, key_tensor
from dropseed.torch import functional as ours

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SPATIAL = {"dropout": (), "dropout1d": (2,), "dropout2d": (2, 3)}
SHAPES = {"dropout": (3, 5), "dropout1d": (3, 5, 2), "dropout2d": (3, 5, 2, 2)}


# ---- the three routes ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaling", ["inverted", "original"])
@pytest.mark.parametrize("name", SPATIAL)
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_routes_agree_with_the_reference(
    dtype, scaling, name, tensor_rate, forced, key, expected, same_bits
):
    p = torch.tensor(0.3, dtype=torch.float64) if tensor_rate else 0.3
    function = getattr(ours, name)

    def want(tensor):
        return expected(tensor, 0.3, key, SPATIAL[name], scaling)

    x = torch.randn(SHAPES[name]).to(dtype).requires_grad_()
    v = torch.randn(SHAPES[name]).to(dtype).requires_grad_()
    output = function(x, p, key=key, scaling=scaling)
    assert same_bits(output, want(x))
    (first,) = torch.autograd.grad(output, x, v, create_graph=True)
    assert same_bits(first, want(v))
    (second,) = torch.autograd.grad(first, v, x.detach(), create_graph=True)
    assert same_bits(second, want(x))
    in_place = function(x * 1, p, inplace=True, key=key, scaling=scaling)
    (gradient,) = torch.autograd.grad(in_place, x, v)
    assert same_bits(in_place, output)
    assert same_bits(gradient, first)


@pytest.mark.parametrize("name", SPATIAL)
def test_gradcheck(name, forced, key):
    function = getattr(ours, name)
    x = torch.randn(SHAPES[name], dtype=torch.float64)[:2, :2].requires_grad_()
    for f in (lambda x: function(x, 0.5, key=key), lambda x: function(x, 0.3, key=key) ** 3):
        forward = forced == "mask"
        assert torch.autograd.gradcheck(f, x, check_forward_ad=forward)
        assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=forward)


def test_all_kinds_of_derivatives_by_the_picker(key):
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: ours.dropout(x, 0.3, key=key) ** 2,
        x,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        lambda x: ours.dropout(x, 0.3, key=key) ** 3,
        x,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
    )


# ---- forward mode ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch's linearize
@pytest.mark.parametrize("dtype", TYPES)
def test_forward_mode(dtype, key, expected, same_bits):
    x, t = torch.randn(2, 30, dtype=torch.float64).to(dtype)
    want = expected(x, 0.3, key), expected(t, 0.3, key)
    with forward_ad.dual_level():
        dual = ours.dropout(forward_ad.make_dual(x, t), 0.3, key=key)
        assert same_bits(torch.stack(tuple(forward_ad.unpack_dual(dual))), torch.stack(want))
        in_place = ours.dropout(forward_ad.make_dual(x.clone(), t), 0.3, inplace=True, key=key)
        assert same_bits(torch.stack(tuple(forward_ad.unpack_dual(in_place))), torch.stack(want))
    pair = jvp(lambda x: ours.dropout(x, 0.3, key=key), (x,), (t,))
    assert same_bits(torch.stack(pair), torch.stack(want))
    output, derivative = linearize(lambda x: ours.dropout(x, 0.3, key=key), x)
    assert same_bits(torch.stack([output, derivative(t)]), torch.stack(want))


def test_forward_mode_over_a_gradient_of_an_eager_graph(key, expected, same_bits):
    x = torch.randn(20, requires_grad=True)
    output = ours.dropout(x, 0.3, key=key)
    g, t = torch.randn(2, 20)
    with forward_ad.dual_level():
        (gradient,) = torch.autograd.grad(output, x, forward_ad.make_dual(g, t))
        pair = forward_ad.unpack_dual(gradient)
    want = expected(g, 0.3, key), expected(t, 0.3, key)
    assert same_bits(torch.stack(tuple(pair)), torch.stack(want))


# ---- functorch -------------------------------------------------------------------------------


def test_functorch_s_derivatives(key, expected, same_bits):
    x, v = torch.randn(2, 6)
    ones = torch.ones(6)

    def f(x):
        return ours.dropout(x, 0.3, key=key)

    slope = expected(ones, 0.3, key)
    assert same_bits(grad(lambda x: f(x).sum())(x), slope)
    output, pull = vjp(f, x)
    assert same_bits(output, expected(x, 0.3, key))
    assert same_bits(pull(v)[0], expected(v, 0.3, key))
    for jacobian in (jacrev(f)(x), jacfwd(f)(x)):
        assert torch.equal(jacobian, slope.diag())
    curvature = hessian(lambda x: (f(x) ** 3).sum())(x)
    assert torch.allclose(curvature, (6 * slope**3 * x).diag())
    twice = grad(lambda x: grad(lambda x: (f(x) ** 3).sum())(x).sum())(x)
    assert torch.allclose(twice, 6 * slope**3 * x)
    assert same_bits(
        functionalize(lambda x: ours.dropout(x * 1, 0.3, inplace=True, key=key))(x), f(x)
    )


def test_a_drawn_mask_serves_value_and_derivative():
    ones = torch.ones(100)
    value, tangent = jvp(ours.dropout, (ones,), (ones,))
    assert torch.equal(value, tangent)
    output, pull = vjp(ours.dropout, ones)
    assert torch.equal(pull(ones)[0], output)
    assert 0 < int((output == 0).sum()) < 100


def vmapped(function, randomness, p=0.5):
    """Whether every example has the same mask, or the error."""
    try:
        output = vmap(lambda x: function(x, p), randomness=randomness)(torch.ones(4, 60))
    except RuntimeError as error:
        return type(error), str(error)[:50]
    return bool((output == output[0]).all())


@pytest.mark.parametrize("randomness", ["error", "same", "different"])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_randomness_is_torch_s(randomness, p):
    result = vmapped(ours.dropout, randomness, p)
    assert result == vmapped(theirs.dropout, randomness, p)
    if p == 0.5 and randomness == "error":
        assert result[0] is RuntimeError
    elif p == 0.5:
        assert result == (randomness == "same")
    assert vmapped(ours.dropout, randomness, torch.tensor(0.5)) == vmapped(
        theirs.dropout, randomness
    )


def test_different_masks_are_independent_draws():
    output = vmap(ours.dropout, randomness="different")(torch.ones(50, 40))
    assert len({row.numpy().tobytes() for row in output}) == 50
    assert abs(float((output == 0).double().mean()) - 0.5) < 0.06  # 5 sigma: 2000 draws


@pytest.mark.parametrize("in_dim", [0, 1, 2, -1])
@pytest.mark.parametrize("randomness", ["error", "same", "different"])
def test_an_explicit_key_gives_every_example_its_mask(in_dim, randomness, words, same_bits):
    x = torch.randn(3, 4, 5)

    def f(x):
        return ours.dropout(x, 0.3, key=words)

    result = vmap(f, in_dims=in_dim, out_dims=in_dim, randomness=randomness)(x)
    assert same_bits(result, torch.stack([f(part) for part in x.unbind(in_dim)], in_dim))


KEYS = torch.stack([key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(6)])


@pytest.mark.parametrize("name", SPATIAL)
@pytest.mark.parametrize("key_dim", [0, 1])
def test_over_keys(name, key_dim, same_bits):
    x = torch.randn(6, *SHAPES[name])

    def f(x, k):
        return getattr(ours, name)(x, 0.3, key=k)

    keys = KEYS.movedim(0, key_dim)
    result = vmap(f, in_dims=(0, key_dim))(x, keys)
    assert same_bits(result, torch.stack([f(a, b) for a, b in zip(x, KEYS, strict=True)]))
    result = vmap(f, in_dims=(None, key_dim))(x[0], keys)
    assert same_bits(result, torch.stack([f(x[0], k) for k in KEYS]))


def test_over_rates(words, same_bits):
    x, rates = torch.randn(6, 5), torch.linspace(0, 1, 6)

    def f(x, p, k=words):
        return ours.dropout(x, p, key=k)

    want = torch.stack([f(a, p) for a, p in zip(x, rates, strict=True)])
    assert same_bits(vmap(f)(x, rates), want)
    want = torch.stack([f(*three) for three in zip(x, rates, KEYS, strict=True)])
    assert same_bits(vmap(f)(x, rates, KEYS), want)


def test_nested(words, same_bits):
    x, keys = torch.randn(2, 3, 4), KEYS.reshape(2, 3, 2)

    def f(x, k):
        return ours.dropout(x, 0.3, key=k)

    def stacked(pick):
        return torch.stack(
            [torch.stack([f(x[i, j], pick(i, j)) for j in range(3)]) for i in range(2)]
        )

    assert same_bits(vmap(vmap(f))(x, keys), stacked(lambda i, j: keys[i, j]))
    assert same_bits(vmap(vmap(f, (0, None)))(x, keys[:, 0]), stacked(lambda i, _: keys[i, 0]))
    assert same_bits(vmap(vmap(f), (0, None))(x, keys[0]), stacked(lambda _, j: keys[0, j]))
    assert same_bits(vmap(vmap(f, (0, None)), (0, None))(x, words), stacked(lambda *_: words))
    drawn = vmap(vmap(ours.dropout, randomness="different"), randomness="different")
    assert len({row.numpy().tobytes() for row in drawn(torch.ones(4, 4, 64)).reshape(16, 64)}) == 16


def test_per_sample_gradients(words, same_bits):
    x = torch.randn(6, 5)

    def loss(x, k):
        return (ours.dropout(x, 0.3, key=k) * x).sum()

    want = torch.stack([grad(loss)(a, k) for a, k in zip(x, KEYS, strict=True)])
    assert same_bits(vmap(grad(loss))(x, KEYS), want)
    whole = grad(lambda x: vmap(loss)(x, KEYS).sum())(x)
    assert same_bits(whole, want)
    tangents = vmap(lambda x, k: jvp(lambda x: ours.dropout(x, 0.3, key=k), (x,), (x,))[1])(x, KEYS)
    assert same_bits(
        tangents, torch.stack([ours.dropout(a, 0.3, key=k) for a, k in zip(x, KEYS, strict=True)])
    )


def test_in_place_under_vmap(words, same_bits):
    x = torch.randn(6, 5)
    want = torch.stack([ours.dropout(row, 0.3, key=words) for row in x])
    assert same_bits(vmap(lambda x: ours.dropout(x, 0.3, inplace=True, key=words))(x), want)
    assert same_bits(x, want)


# ---- batches of gradients --------------------------------------------------------------------


@pytest.mark.parametrize("name", SPATIAL)
@pytest.mark.parametrize("route", ["function", "op"])
def test_batched_gradients(name, route, key, expected, same_bits, monkeypatch):
    x = torch.randn(SHAPES[name], requires_grad=True)
    with monkeypatch.context() as patch:
        patch.setattr(autograd, "route", lambda _: getattr(autograd, f"_by_{route}"))
        output = getattr(ours, name)(x, 0.3, key=key)
    batch = torch.randn(4, *SHAPES[name])
    want = torch.stack([expected(g, 0.3, key, SPATIAL[name]) for g in batch])
    (legacy,) = torch.autograd.grad(output, x, batch, is_grads_batched=True, retain_graph=True)
    assert same_bits(legacy, want)
    modern = vmap(lambda g: torch.autograd.grad(output, x, g, retain_graph=True)[0])(batch)
    assert same_bits(modern, want)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobians(strategy, key, expected):
    def f(x):
        return ours.dropout(x, 0.3, key=key)

    x = torch.randn(6)
    options = {"vectorize": True, "strategy": strategy}
    slope = expected(torch.ones(6), 0.3, key)
    assert torch.equal(torch.autograd.functional.jacobian(f, x, **options), slope.diag())
    curvature = torch.autograd.functional.hessian(
        lambda x: (f(x) ** 3).sum(), x, vectorize=True, outer_jacobian_strategy=strategy
    )
    assert torch.allclose(curvature, (6 * slope**3 * x).diag())
