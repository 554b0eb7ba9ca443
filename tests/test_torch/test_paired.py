"""Paired masks, against the masks of two calls; R-Drop's loss, against torch's `kl_div`."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.nn.functional import kl_div

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.paired import PairedDropout, dropout_pair, r_drop_loss
from generators import seeds_drawn

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])


def dense(x, p, key, equal, scaling="inverted"):
    """The definition: each half under its own key."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    factor = torch.tensor(
        Rate(p).factors(scaling).training, dtype=torch.float32 if half else x.dtype
    )
    shape = (len(x) // 2, *x.shape[1:])
    masks = [keep(key.fold(0 if equal else i), p, shape) for i in (0, 1)]
    mask = torch.from_numpy(np.concatenate(masks))
    return torch.where(mask, (x * factor).to(x.dtype), 0.0)


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
@pytest.mark.parametrize("p", [0.3, 0.5, 1.0])
@pytest.mark.parametrize("equal", [False, True])
def test_equals_the_masks_of_two_calls(dtype, scaling, p, equal, key, same_bits):
    x = torch.randn(6, 35).to(dtype).requires_grad_()
    output = dropout_pair(x, p, key=key, scaling=scaling, equal=equal)
    assert same_bits(output, dense(x, p, key, equal, scaling))
    v = torch.randn(6, 35).to(dtype)
    output.backward(v)
    assert same_bits(x.grad, dense(v, p, key, equal, scaling))


@pytest.mark.parametrize("shape", [(2,), (0, 3), (2, 0), (4, 3, 2), (2, 3, 4, 5)])
@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_shape_and_strides(shape, equal, transposed, key, same_bits):
    x = torch.randn(shape)
    if transposed:
        x = x.mT.contiguous().mT if len(shape) > 1 else x.repeat_interleave(2)[::2]
    assert same_bits(dropout_pair(x, 0.3, key=key, equal=equal), dense(x, 0.3, key, equal))


@pytest.mark.parametrize("equal", [False, True])
def test_what_the_halves_share(equal):
    x = torch.ones(1, 200)
    a, b = dropout_pair(torch.cat([x, x]), equal=equal).chunk(2)
    assert torch.equal(a, b) == equal
    if not equal:
        assert abs(float((a == b).double().mean()) - 0.5) < 0.18  # 5 sigma: 200 draws


def test_a_pass_has_the_mask_of_its_own_call(key, same_bits):
    x = torch.randn(3, 5)
    halves = dropout_pair(torch.cat([x, x]), 0.3, key=key).chunk(2)
    for i, half in enumerate(halves):
        assert same_bits(half, dst.functional.dropout(x, 0.3, key=key.fold(i)))


@pytest.mark.parametrize("equal", [False, True])
def test_gradcheck(equal, key):
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def f(x):
        return dropout_pair(x, 0.3, key=key, equal=equal) ** 3

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize("equal", [False, True])
def test_backward_keeps_the_keys_alone(equal):
    sizes = []
    x = torch.randn(64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        dropout_pair(x, equal=equal)
    assert sum(sizes) == (16 if equal else 32)


def test_a_dropped_element_may_be_nan(key):
    for equal in (False, True):
        mask = dense(torch.ones(4, 9), 0.5, key, equal) != 0
        x = torch.where(mask, 1.0, torch.nan)
        assert torch.equal(dropout_pair(x, 0.5, key=key, equal=equal), 2.0 * mask)


# ---- when nothing is dropped -----------------------------------------------------------------


@pytest.mark.parametrize("equal", [False, True])
def test_inference_and_rates_0_and_1(equal, same_bits):
    x = torch.randn(4, 5)
    assert dropout_pair(x, 0.3, training=False, equal=equal) is x
    assert dropout_pair(x, 0.0, equal=equal) is x
    assert same_bits(dropout_pair(x, 1.0, equal=equal), torch.zeros(4, 5))
    scaled = dropout_pair(x, 0.25, training=False, scaling="original", equal=equal)
    assert same_bits(scaled, x * 0.75)
    odd = x[:3]
    assert dropout_pair(odd, 0.3, training=False, equal=equal) is odd


@pytest.mark.parametrize("make", [lambda p: p, torch.tensor])
@pytest.mark.parametrize("equal", [False, True])
def test_seeds(make, equal):
    layer, x = PairedDropout(equal=equal), torch.randn(2, 5)
    tensor = isinstance(make(0.5), torch.Tensor)
    for p, count in ((0.0, int(tensor)), (0.3, 1), (1.0, int(tensor))):
        layer.p = make(p)
        assert seeds_drawn(lambda: layer.train()(x)) == count
        assert seeds_drawn(lambda: layer.eval()(x)) == 0
    layer.train().p = 0.5
    dst.set_key(layer, 0)
    assert seeds_drawn(lambda: layer(x)) == 0


@pytest.mark.parametrize("equal", [False, True])
def test_a_rate_that_is_a_tensor(equal, key, same_bits):
    x = torch.randn(4, 5)
    for p in (0.0, 0.3, 1.0):
        for training in (True, False):
            results = [
                dropout_pair(x, rate, training, key=key, scaling="original", equal=equal)
                for rate in (p, torch.tensor(p, dtype=torch.float64))
            ]
            assert same_bits(*results)


# ---- the layer -------------------------------------------------------------------------------


def test_the_layer_calls_its_function(same_bits):
    x = torch.randn(4, 5)
    for equal in (False, True):
        layer = PairedDropout(0.3, scaling="original", equal=equal)
        dst.set_key(layer, 7)
        want = dropout_pair(x, 0.3, key=Key(7).at(""), scaling="original", equal=equal)
        assert same_bits(layer(x), want)
        assert same_bits(layer.eval()(x), dst.functional.dropout(x, 0.3, False, scaling="original"))


def test_two_sentences_of_a_model(same_bits):
    """SimCSE's two uses of a model: the positive pair differs, under equal masks it doesn't."""
    x = torch.randn(3, 8)
    for equal in (False, True):
        net = nn.Sequential(
            PairedDropout(0.5, equal=equal), nn.Linear(8, 8), PairedDropout(0.5, equal=equal)
        )
        dst.set_key(net, 9, 4)
        first, second = net(torch.cat([x, x])).chunk(2)
        assert torch.equal(first, second) == equal
        hidden = net[1](dense(torch.cat([x, x]), 0.5, Key(9, step=4).at("0"), equal))
        want = dense(hidden, 0.5, Key(9, step=4).at("2"), equal)
        assert same_bits(torch.cat([first, second]), want)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.randn(2, 5)
    layer = PairedDropout(0.3, scaling="original", equal=True)
    assert repr(layer) == "PairedDropout(p=0.3, equal=True, scaling='original')"
    assert repr(PairedDropout()) == "PairedDropout(p=0.5, equal=False)"
    assert list(layer.state_dict()) == []
    dst.set_key(layer, 3)
    twin = copied(layer)
    assert list(twin.state_dict()) == []
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize(("keyed", "rate"), [(False, 0.5), (True, torch.tensor(0.5))])
@pytest.mark.parametrize("equal", [False, True])
def test_compiled(keyed, equal, rate):
    layer = PairedDropout(equal=equal)
    layer.p = rate
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.ones(2, 100, requires_grad=True)
    output = call(x)
    output.sum().backward()
    assert set(output.unique().tolist()) == {0, 2}
    assert torch.equal(x.grad, output.detach())
    assert torch.equal(*output.chunk(2)) == equal
    if keyed:
        assert torch.equal(output, layer(x))
    layer.eval()
    assert torch.equal(call(x), x)


@pytest.mark.parametrize("equal", [False, True])
def test_vmap(equal, words, same_bits):
    batch = torch.randn(4, 2, 5)

    def f(x, k=words):
        return dropout_pair(x, 0.3, key=k, equal=equal)

    assert same_bits(vmap(f)(batch), torch.stack([f(x) for x in batch]))
    want = torch.stack([f(x, k) for x, k in zip(batch, KEYS, strict=True)])
    assert same_bits(vmap(f)(batch, KEYS), want)
    want = torch.stack([f(batch[0], k) for k in KEYS])
    assert same_bits(vmap(f, in_dims=(None, 0))(batch[0], KEYS), want)
    value, derivative = jvp(f, (batch[0],), (batch[1],))
    assert same_bits(value, f(batch[0]))
    assert same_bits(derivative, f(batch[1]))


# ---- R-Drop's loss ---------------------------------------------------------------------------


def divergences(a, b):
    """Equation 2 for each distribution, term by term, by torch's divergence."""
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    a_from_b = kl_div(log_b, log_a, reduction="none", log_target=True)
    b_from_a = kl_div(log_a, log_b, reduction="none", log_target=True)
    return (a_from_b + b_from_a).sum(-1) / 2


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 5), (1, 2), (4, 1), (5,)])
def test_loss_is_equation_2(shape):
    a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    want = divergences(a, b)
    assert torch.allclose(r_drop_loss(a, b, "none"), want)
    assert torch.allclose(r_drop_loss(a, b, "sum"), want.sum())
    assert torch.allclose(r_drop_loss(a, b), want.sum() / (shape[0] if len(shape) > 1 else 1))
    assert torch.equal(r_drop_loss(a, b), r_drop_loss(b, a))
    ours, theirs = (
        torch.autograd.grad(loss, (a, b)) for loss in (r_drop_loss(a, b, "sum"), want.sum())
    )
    assert torch.allclose(torch.stack(ours), torch.stack(theirs))


def test_loss_gradcheck():
    a, b = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for reduction in ("batchmean", "sum", "none"):
        assert torch.autograd.gradcheck(r_drop_loss, (a, b, reduction), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(r_drop_loss, (a, b))
    assert torch.autograd.gradgradcheck(r_drop_loss, (a, a.detach().clone().requires_grad_()))


def test_loss_of_like_predictions_is_0():
    a = torch.randn(3, 4, requires_grad=True)
    for loss in (r_drop_loss(a, a.detach()), r_drop_loss(a, a.detach() + 64)):
        assert abs(float(loss.detach())) < 1e-6
        assert float(torch.autograd.grad(loss, a)[0].abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1e4, 6e4])
def test_loss_of_large_logits(dtype, size):
    a = (torch.tensor([[size, 0.0, -size], [0.0, 0.0, size]])).to(dtype).requires_grad_()
    b = a.detach().flip(1).requires_grad_()
    loss = r_drop_loss(a, b, "none")
    assert loss.dtype == dtype
    assert torch.allclose(loss.float(), torch.tensor([2 * size, size]).to(dtype).float())
    loss.float().sum().backward()
    assert a.grad.isfinite().all()
    assert a.grad.abs().sum() > 0 or dtype is torch.float16


def test_loss_leaves_out_impossible_classes():
    a, b = torch.randn(2, 3, 4)
    want = r_drop_loss(a, b)
    masked = [torch.cat([x, torch.full((3, 2), -torch.inf)], 1).requires_grad_() for x in (a, b)]
    loss = r_drop_loss(*masked)
    assert torch.allclose(loss, want)
    loss.backward()
    for x in masked:
        assert x.grad.isfinite().all()
        assert not x.grad[:, 4:].any()
    assert r_drop_loss(masked[0].detach(), torch.zeros(3, 6)) == torch.inf


@pytest.mark.parametrize("shape", [(0, 4), (0, 2, 4), (2, 0, 4)])
def test_loss_of_an_empty_batch(shape):
    a, b = torch.randn(2, *shape)
    assert r_drop_loss(a.requires_grad_(), b) == 0
    r_drop_loss(a, b).backward()
    assert r_drop_loss(a, b, "none").shape == shape[:-1]


def test_loss_compiled_and_mapped():
    a, b = torch.randn(2, 3, 4, 5)
    want = torch.stack([r_drop_loss(x, y) for x, y in zip(a, b, strict=True)])
    assert torch.allclose(vmap(r_drop_loss)(a, b), want)
    leaf = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(r_drop_loss(leaf, b), leaf)
    assert torch.allclose(grad(r_drop_loss)(a, b), slope)
    compiled = torch.compile(r_drop_loss, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(a, b), r_drop_loss(a, b))


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(3, 5)}, InvalidValueError, r"`input` must hold two.*\(3, 5\)"),
        ({"input": torch.ones(())}, InvalidValueError, r"`input` must hold two.*\(\)"),
        ({"input": torch.ones(3, 5), "p": 0.0}, InvalidValueError, "`input` must hold two"),
        ({"input": torch.ones(2).long()}, InvalidTypeError, "`input` must.*int64"),
        ({"input": [1.0, 2.0]}, InvalidTypeError, "`input` must.*list"),
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": "half"}, InvalidTypeError, "`p` must be"),
        ({"p": torch.ones(2)}, InvalidTypeError, "`p` must be"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
        ({"scaling": "half"}, InvalidValueError, "`scaling` must be"),
    ],
)
@pytest.mark.parametrize("equal", [False, True])
def test_bad_input_changes_nothing(arguments, error, match, equal):
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        dropout_pair(**{"input": torch.ones(2, 5), "equal": equal} | arguments)
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_layers():
    with pytest.raises(InvalidValueError, match=r"`p` must be in .*-0.1"):
        PairedDropout(-0.1)
    with pytest.raises(InvalidValueError, match="`scaling`"):
        PairedDropout(scaling="half")


@pytest.mark.parametrize(
    ("a", "b", "reduction", "error", "match"),
    [
        (torch.ones(2, 3), torch.ones(3, 3), "sum", InvalidValueError, r"of one shape.*\(3, 3\)"),
        (torch.ones(()), torch.ones(()), "sum", InvalidValueError, r"must be \(\*, C\)"),
        (torch.ones(2, 3).long(), torch.ones(2, 3), "sum", InvalidTypeError, "`logits_a`.*int64"),
        (torch.ones(2, 3), [[1.0]], "sum", InvalidTypeError, "`logits_b`.*list"),
        (torch.ones(2, 3), torch.ones(2, 3), "mean", InvalidValueError, "`reduction`.*'mean'"),
    ],
)
def test_bad_logits(a, b, reduction, error, match):
    with pytest.raises(error, match=match):
        r_drop_loss(a, b, reduction)
