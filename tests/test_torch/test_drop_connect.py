"""DropConnect, against explicit masks and einsum, or a convolution for each sample."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import cpu
from dropseed.mask import gaussian
from dropseed.mask.schedule import Linear
from dropseed.torch import launch
from generators import seeds_drawn

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
LAYERS = {1: dst.DropConnectConv1d, 2: dst.DropConnectConv2d, 3: dst.DropConnectConv3d}
ours = dst.functional
linear, conv = ours.drop_connect_linear, ours.drop_connect_conv


def masks(key, p, shape, shard=(0, 1)):
    return torch.from_numpy(np.array(keep(key, p, shape, start=shard[0], stride=shard[1])))


def left(tensor, mask, p, scaling="inverted"):
    """What a mask leaves of a tensor, in its own type."""
    factor = torch.tensor(Rate(p).factors(scaling).training, dtype=tensor.dtype)
    return torch.where(mask, tensor * factor, 0.0)


def dense_linear(x, w, b, p, key, *, drop_bias=False, scaling="inverted", shard=(0, 1)):
    n, (o, i) = x.shape[0], w.shape
    weights = left(w, masks(key, p, (n, o, i), shard), p, scaling)
    output = torch.einsum("n...i,noi->n...o", x, weights)
    if b is None:
        return output
    if drop_bias:
        b = left(b, masks(key.fold(1), p, (n, o), shard), p, scaling)
        b = b.reshape(n, *[1] * (x.dim() - 2), o)
    return output + b


def dense_conv(x, w, b, p, key, *, drop_bias=False, shard=(0, 1), **geometry):
    weights = left(w, masks(key, p, (len(x), *w.shape), shard), p)
    convolution = CONVOLUTIONS[w.dim() - 2]
    rows = [
        convolution(one, weight, None, **geometry) for one, weight in zip(x, weights, strict=True)
    ]
    output = torch.stack(rows)
    if b is None:
        return output
    if drop_bias:
        b = left(b, masks(key.fold(1), p, (len(x), len(b)), shard), p)
    return output + b.reshape(-1, w.shape[0], *[1] * (w.dim() - 2))


def close(actual, want, dtype):
    """Equal to a few roundings of sums of products of size one, in a type's own measure."""
    eps = torch.finfo(dtype).eps
    actual, want = actual.detach().double(), want.detach().double()
    scale = float(want.abs().max()) + 1
    assert (actual - want).abs().max() <= 40 * eps * scale


def leaves(*shapes, dtype=torch.float64):
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


# ---- values and gradients --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_linear_equals_the_dense_product(data):
    """Shapes, strides, dtypes, shards and thread counts, forward and both gradients."""
    n, o, i = (data.draw(st.integers(1, top)) for top in (6, 40, 200))
    dtype = data.draw(st.sampled_from(TYPES))
    p = data.draw(st.one_of(st.sampled_from([0.001, 0.3, 0.5]), st.floats(1e-6, 0.95)))
    options = {
        "drop_bias": data.draw(st.booleans()),
        "scaling": data.draw(st.sampled_from(["inverted", "original", "none"])),
        "shard": (data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 3))),
    }
    key = Key(data.draw(st.integers(0, 2**64 - 1)), 3, 4)
    x, w, b = leaves((n, 2 * i), (i, o), (o,), dtype=dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        output = linear(x[:, ::2], w.T, b, p, key=key, **options)
        v = torch.randn(output.shape).to(dtype)
        gradients = torch.autograd.grad(output, (x, w, b), v)
    finally:
        torch.set_num_threads(threads)
    assert output.dtype == dtype
    wide = [t.detach().double().requires_grad_() for t in (x, w, b)]
    want = dense_linear(wide[0][:, ::2], wide[1].T, wide[2], p, key, **options)
    close(output, want, dtype)
    for actual, one in zip(gradients, torch.autograd.grad(want, wide, v.double()), strict=True):
        assert actual.dtype == dtype
        close(actual, one, dtype)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_convolutions_equal_one_for_each_sample(data):
    rank, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    n, c, o = data.draw(st.integers(1, 4)), 2 * groups, 3 * groups
    kernel = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    geometry = {
        "stride": data.draw(st.integers(1, 2)),
        "padding": data.draw(st.integers(0, 2)),
        "dilation": data.draw(st.integers(1, 2)),
        "groups": groups,
    }
    options = {"drop_bias": data.draw(st.booleans()), "shard": (data.draw(st.integers(0, 99)), 2)}
    p, key = data.draw(st.floats(0.01, 0.9)), Key(data.draw(st.integers(0, 2**64 - 1)))
    x, w, b = leaves((n, c, *[7] * rank), (o, c // groups, *kernel), (o,), dtype=dtype)
    output = conv(x, w, b, **geometry, p=p, key=key, **options)
    want = dense_conv(x, w, b, p, key, **options, **geometry)
    close(output, want, dtype)
    v = torch.randn(output.shape, dtype=dtype)
    gradients = torch.autograd.grad(output, (x, w, b), v)
    for actual, one in zip(gradients, torch.autograd.grad(want, (x, w, b), v), strict=True):
        close(actual, one, dtype)


@pytest.mark.parametrize(
    ("n", "o", "i"), [(3, 2, 40_000), (5, 70, 1023), (2, 33, 1000), (64, 3, 5), (1, 300, 300)]
)
@pytest.mark.parametrize("p", [0.5, 0.3, 0.001])
def test_large_layers(n, o, i, p, key):
    """Rows of more than a chunk, several tiles and lanes, widths of no whole vector."""
    x, w = leaves((n, i), (o, i), dtype=torch.float32)
    output = linear(x, w, p=p, key=key)
    v = torch.randn(n, o)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    want = dense_linear(*wide, None, p, key)
    close(output, want, torch.float32)
    pairs = zip(
        torch.autograd.grad(output, (x, w), v),
        torch.autograd.grad(want, wide, v.double()),
        strict=True,
    )
    for actual, one in pairs:
        close(actual, one, torch.float32)


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_change_no_bit(threads, key, same_bits):
    x, w = leaves((33, 300), (200, 300), dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for count in (1, threads):
            torch.set_num_threads(count)
            output = linear(x, w, p=0.3, key=key)
            results.append((output, *torch.autograd.grad(output.sum(), (x, w))))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        assert same_bits(one, other)


def test_gradients_of_many_samples_are_summed_in_blocks(key, monkeypatch, same_bits):
    monkeypatch.setattr(cpu, "LANE_ELEMENTS", 1)  # blocks of 64
    x, w = leaves((150, 40), (30, 40))
    v = torch.randn(150, 30, dtype=torch.float64)
    want = torch.autograd.grad(dense_linear(x, w, None, 0.3, key), (x, w), v)
    for actual, one in zip(
        torch.autograd.grad(linear(x, w, p=0.3, key=key), (x, w), v), want, strict=True
    ):
        close(actual, one, torch.float64)


NO_MASKS = """
import resource, torch
import dropseed.torch as dst

def step(n, o, i, kind):
    x, w = torch.ones(n, i, requires_grad=True), torch.ones(o, i, requires_grad=True)
    if kind == "linear":
        y = dst.functional.drop_connect_linear(x, w)
    elif kind == "positions":
        y = dst.functional.drop_connect_linear(x.reshape(n, 2, i // 2), w[:, : i // 2])
    else:
        y = dst.functional.drop_connect_conv(x.reshape(n, i // 4, 4), w.reshape(o, i // 4, 4))
    g = torch.autograd.grad(y.sum(), (x, w), create_graph=True)
    (g[0].sum() + g[1].sum()).backward()

for kind in ("linear", "positions", "convolution"):
    step(2, 8, 8, kind)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for kind in ("linear", "positions", "convolution"):
    step(128, 512, 1024, kind)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert grown < 64 * 1024, grown
"""


def test_no_mask_of_every_sample_is_formed():
    """It would take 64 MiB as bytes, and every sample's weight 256, in each of three passes."""
    done = subprocess.run([sys.executable, "-c", NO_MASKS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_position_is_none(key, same_bits):
    x, w, b = leaves((3, 7), (6, 7), (6,), dtype=torch.float32)
    options = {"p": 0.4, "key": key, "drop_bias": True}
    assert same_bits(linear(x[:, None], w, b, **options)[:, 0], linear(x, w, b, **options))


@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7), (0, 2, 7)])
@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_nothing_to_multiply(shape, mode, key):
    w, b = leaves((6, 7), (6,), dtype=torch.float32)
    output = linear(torch.ones(shape), w, b, 0.4, key=key, mode=mode, drop_bias=True)
    assert output.shape == (*shape[:-1], 6)
    output.sum().backward()


def test_positions_share_their_sample_s_mask(key):
    x, w, b = leaves((3, 4, 5, 7), (6, 7), (6,))
    output = linear(x, w, b, 0.4, key=key, drop_bias=True)
    want = dense_linear(x, w, b, 0.4, key, drop_bias=True)
    close(output, want, torch.float64)
    v = torch.randn(output.shape, dtype=torch.float64)
    pairs = zip(
        torch.autograd.grad(output, (x, w, b), v),
        torch.autograd.grad(want, (x, w, b), v),
        strict=True,
    )
    for actual, one in pairs:
        close(actual, one, torch.float64)


def test_a_sample_without_a_batch(key):
    x, w, b = leaves((1, 7), (6, 7), (6,))
    options = {"p": 0.4, "key": key, "drop_bias": True}
    assert torch.equal(linear(x[0], w, b, **options), linear(x, w, b, **options)[0])
    x, w, b = leaves((1, 2, 8, 9), (6, 2, 3, 3), (6,))
    assert torch.equal(conv(x[0], w, b, **options), conv(x, w, b, **options)[0])


@pytest.mark.parametrize("drop_bias", [False, True])
def test_one_mask_a_batch(drop_bias, key):
    x, w, b = leaves((5, 7), (6, 7), (6,))
    output = linear(x, w, b, 0.4, key=key, mode="batch", drop_bias=drop_bias)
    kept = left(b, masks(key.fold(1), 0.4, (6,)), 0.4) if drop_bias else b
    close(output, functional.linear(x, left(w, masks(key, 0.4, (6, 7)), 0.4), kept), torch.float64)
    x, w, b = leaves((5, 2, 8), (6, 2, 3), (6,))
    output = conv(x, w, b, p=0.4, key=key, mode="batch", padding=1)
    want = functional.conv1d(x, left(w, masks(key, 0.4, (6, 2, 3)), 0.4), b, padding=1)
    close(output, want, torch.float64)


def test_any_split_of_the_batch(key, same_bits):
    x, w, b = leaves((7, 9), (6, 9), (6,), dtype=torch.float32)
    options = {"p": 0.3, "key": key, "drop_bias": True}
    whole = linear(x, w, b, **options)
    for start, stride in ((0, 2), (1, 2), (3, 1), (2, 3)):
        part = linear(x[start::stride], w, b, shard=(start, stride), **options)
        assert same_bits(part, whole[start::stride].contiguous())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_dropped_weight_may_be_anything(bad, key):
    """A weight that every sample drops counts nowhere: forward, backward, in a convolution."""
    mask = masks(key, 0.5, (2, 3, 70)).any(0)
    w = torch.where(mask, 1.0, bad).requires_grad_()
    assert not w.isfinite().all()
    for x, weight, function in (
        (torch.ones(2, 70), w, linear),
        (torch.ones(2, 5, 70), w, linear),
        (torch.ones(2, 10, 7), w.reshape(3, 10, 7), conv),
    ):
        x.requires_grad_()
        output = function(x, weight, p=0.5, key=key)
        gradients = torch.autograd.grad(output.sum(), (x, w))
        assert all(tensor.isfinite().all() for tensor in (output, *gradients))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, w, **options: linear(x, w, p=0.4, **options),
        lambda x, w, **options: conv(
            x.reshape(2, 1, 6), w.reshape(5, 1, 6)[:, :, :3], p=0.4, padding=1, **options
        ),
        lambda x, w, **options: linear(x.reshape(1, 2, 6), w, p=0.4, **options),
    ],
    ids=["linear", "convolution", "positions"],
)
def test_gradcheck(call, key):
    x, w = leaves((2, 6), (5, 6))

    def f(x, w):
        return call(x, w, key=key) ** 2

    assert torch.autograd.gradcheck(f, (x, w), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x, w))


def test_backward_keeps_the_layer_s_tensors_alone():
    """The input and the weight are there anyway; beside them a key, a threshold and a scale."""
    sizes = []
    x, w, b = leaves((64, 100), (50, 100), (50,), dtype=torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(0 if t is x or t is w else t.nbytes) or t, lambda t: t
    ):
        linear(x, w, b, 0.3)
    assert sum(sizes) == 8 + 16


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_devices_without_a_kernel_agree(kind, key, monkeypatch):
    if kind == "linear":
        x, w = leaves((3, 40), (5, 40), dtype=torch.float32)
    else:
        x, w = leaves((3, 4, 9), (5, 4, 3), dtype=torch.float32)
    function = linear if kind == "linear" else conv
    results = []
    for has in (True, False):
        monkeypatch.setattr(launch, "has_kernel", lambda _, has=has: has)
        output = function(x, w, p=0.3, key=key, shard=(5, 3))
        results.append((output, *torch.autograd.grad(output.pow(2).sum(), (x, w))))
    for one, other in zip(*results, strict=True):
        close(one, other, torch.float32)


# ---- rates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sample", "batch"])
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
def test_rate_zero_and_inference(mode, scaling):
    x, w, b = leaves((5, 7), (6, 7), (6,))
    before = torch.get_rng_state()
    plain = functional.linear(x, w, b)
    assert torch.equal(linear(x, w, b, 0, mode=mode, scaling=scaling), plain)
    output = linear(x, w, b, 0.25, False, mode=mode, scaling=scaling, drop_bias=True)
    factor = 0.75 if scaling == "original" else 1
    close(output, functional.linear(x, factor * w, factor * b), torch.float64)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_rate_one_leaves_the_bias(mode):
    x, w, b = leaves((5, 7), (6, 7), (6,))
    before = torch.get_rng_state()
    output = linear(x, w, b, 1.0, mode=mode)
    assert torch.equal(output, b.expand(5, 6))
    assert all(not g.any() for g in torch.autograd.grad(output.sum(), (x, w)))
    assert not linear(x, w, b, 1.0, mode=mode, drop_bias=True).any()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["sample", "batch"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_rate_may_be_a_tensor(mode, p, key):
    x, w, b = leaves((5, 7), (6, 7), (6,))
    rate = torch.tensor(p, dtype=torch.float64)
    options = {"mode": mode, "key": key, "drop_bias": True}
    close(linear(x, w, b, rate, **options), linear(x, w, b, p, **options), torch.float64)


def test_a_tensor_rate_outside_is_refused():
    with pytest.raises(InvalidValueError, match="`p` must be in"):
        linear(torch.ones(1, 4), torch.ones(2, 4), p=torch.tensor(1.5))


def test_a_schedule_compiles_once():
    model = nn.Sequential(dst.DropConnectLinear(8, 6, p=0.3))
    dst.set_key(model, 3)
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(5, 8)
    counts = set()
    for step in range(12):
        dst.set_rate(model, Linear(0, 0.6, steps=11), step)
        dst.set_key(model, 3, step)
        assert torch.equal(call(x), model(x))
        counts.add(counter.frame_count)
    # Dynamo begins any graph twice that has a 0-d float64 argument on a CPU, at the first call.
    assert counts == {2}


# ---- inference by moments ----------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
@pytest.mark.parametrize("drop_bias", [False, True])
def test_moments_are_those_of_the_masks(scaling, drop_bias):
    """A square makes both moments show: E[u^2] = mean^2 + variance. Masks are pinned by the key."""
    layer = dst.DropConnectLinear(
        50, 3, p=0.3, scaling=scaling, drop_bias=drop_bias, dtype=torch.float64,
        inference="moments", activation=torch.square, samples=20_000,
    )  # fmt: skip
    dst.set_key(layer, 5)
    x = torch.randn(1, 50, dtype=torch.float64)
    with torch.no_grad():
        by_moments = layer.eval()(x)
        layer.train()
        sampled = layer(x.expand(20_000, 50)).mean(0)
    torch.testing.assert_close(by_moments[0], sampled, rtol=0.05, atol=0.02)


def test_moments_follow_the_key():
    layer = dst.DropConnectLinear(
        5, 3, p=0.3, inference="moments", activation=torch.relu, samples=2
    ).eval()
    dst.set_key(layer, 5, 6)
    x = torch.randn(4, 5)
    mean = functional.linear(x, layer.weight, layer.bias)
    spread = (functional.linear(x**2, layer.weight**2) * 0.3 / 0.7).sqrt()
    draws = [torch.from_numpy(np.array(gaussian(Key(5, step=6).fold(z), (4, 3)))) for z in range(2)]
    want = sum(torch.relu(mean + spread * one) for one in draws) / 2
    torch.testing.assert_close(layer(x), want.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(x), layer(x))
    dst.set_key(layer, None)
    assert seeds_drawn(lambda: layer(x)) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_moments_of_halves_are_summed_in_float32(dtype, autocast):
    layer = dst.DropConnectLinear(
        100, 3, inference="moments", activation=torch.relu, samples=4000
    ).eval()
    nn.init.constant_(layer.weight, 0.01)
    nn.init.constant_(layer.bias, 1.0)
    x = torch.full((1, 100), 300.0)  # whose square is no float16
    layer = layer if autocast else layer.to(dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        output = layer(x if autocast else x.to(dtype))
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), torch.full((1, 3), 301.0), rtol=0.02, atol=0)


def test_moments_at_the_ends():
    layer = dst.DropConnectLinear(
        4, 3, p=1.0, inference="moments", activation=torch.relu, samples=3
    )
    x = torch.randn(2, 4)
    assert torch.equal(layer.eval()(x), torch.relu(layer.bias).expand(2, 3))
    layer.p = 0.0
    torch.testing.assert_close(layer(x), torch.relu(functional.linear(x, layer.weight, layer.bias)))
    layer.p = torch.tensor(1.5)
    assert layer(x).isnan().all()
    with pytest.raises(InvalidTypeError, match="`weight` must have the type"):
        layer(x.double())


def test_moments_of_a_convolution(key):
    layer = dst.DropConnectConv1d(
        2, 3, 3, p=0.4, padding="same", inference="moments", activation=torch.relu, samples=4000
    )
    dst.set_key(layer, 1)
    x = torch.randn(1, 2, 9)
    with torch.no_grad():
        sampled = layer(x.expand(4000, 2, 9)).mean(0)
        torch.testing.assert_close(layer.eval()(x)[0], sampled, rtol=0, atol=0.06)


def test_moments_without_spread_have_a_gradient():
    layer = dst.DropConnectLinear(4, 3, inference="moments", activation=torch.relu).eval()
    x = torch.zeros(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.isfinite().all()
    assert layer.weight.grad.isfinite().all()


# ---- the layers ------------------------------------------------------------------------------


def test_the_linear_layer_calls_its_function(same_bits):
    x = torch.randn(3, 7)
    options = {"p": 0.3, "mode": "batch", "drop_bias": True, "scaling": "original"}
    net = nn.Sequential(nn.Identity(), dst.DropConnectLinear(7, 5, **options))
    assert dst.set_key(net, 7, 4) == 1
    w, b = net[1].weight, net[1].bias
    assert same_bits(net(x), linear(x, w, b, key=Key(7, step=4).at("1"), **options))
    assert same_bits(net.eval()(x), linear(x, w, b, training=False, **options))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_the_convolutions_are_torch_s(rank, padding_mode, padding, key):
    """At rate 0 and in inference, with the same weights; in training each sample is torch's too."""
    arguments = (4, 6, 3)
    options = {"padding": padding, "padding_mode": padding_mode, "groups": 2}
    layer = LAYERS[rank](*arguments, **options, p=0.3, dtype=torch.float64)
    theirs = getattr(nn, f"Conv{rank}d")(*arguments, **options, dtype=torch.float64)
    theirs.load_state_dict(layer.state_dict())
    x = torch.randn(2, 4, *[7] * rank, dtype=torch.float64)
    close(layer.eval()(x), theirs(x), torch.float64)
    dst.set_key(layer.train(), 5)
    weights = left(layer.weight, masks(Key(5), 0.3, (2, *layer.weight.shape)), 0.3)
    output = layer(x)
    for one, weight, row in zip(x, weights, output, strict=True):
        with torch.no_grad():
            theirs.weight.copy_(weight)
        close(row, theirs(one[None])[0], torch.float64)


def test_the_activation_comes_last(key):
    layer = dst.DropConnectLinear(7, 5, p=0.3, activation=nn.ReLU())
    dst.set_key(layer, 3)
    x = torch.randn(4, 7)
    want = torch.relu(linear(x, layer.weight, layer.bias, 0.3, key=Key(3)))
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.randn(4, 7)
    layer = dst.DropConnectLinear(7, 5, False, p=0.3, mode="batch", inference="moments",
                                  activation=torch.relu, samples=7, drop_bias=True)  # fmt: skip
    assert repr(layer) == (
        "DropConnectLinear(in_features=7, out_features=5, bias=False, p=0.3, mode='batch', "
        "drop_bias=True, inference='moments', samples=7)"
    )
    dst.set_key(layer, 3)
    assert list(layer.state_dict()) == ["weight"]
    twin = copied(layer)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))
    assert list(dst.DropConnectConv2d(1, 2, 3).state_dict()) == list(
        nn.Conv2d(1, 2, 3).state_dict()
    )


def test_seeds():
    layer, x = dst.DropConnectLinear(7, 5, drop_bias=True), torch.randn(4, 7)
    for mode in ("sample", "batch"):
        layer.mode = mode
        assert seeds_drawn(lambda: layer.train()(x)) == 1
        assert seeds_drawn(lambda: layer.eval()(x)) == 0
    dst.set_key(layer.train(), 0)
    assert seeds_drawn(lambda: layer(x)) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant):
    model = nn.Sequential(
        dst.DropConnectLinear(7, 5, p=0.4), nn.Tanh(), dst.DropConnectLinear(5, 3, p=0.4)
    )
    x = torch.randn(4, 7, requires_grad=True)
    torch.manual_seed(3)
    want = torch.autograd.grad(model(x).pow(2).sum(), (x, *model.parameters()))
    torch.manual_seed(3)
    checkpoint(model, x, use_reentrant=reentrant).pow(2).sum().backward()
    for actual, one in zip((x, *model.parameters()), want, strict=True):
        assert torch.equal(actual.grad, one)


@pytest.mark.parametrize("mode", ["sample", "batch"])
def test_autocast(mode):
    layer = dst.DropConnectLinear(7, 5, p=0.4, mode=mode)
    dst.set_key(layer, 3)
    x = torch.randn(4, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
        again = layer(x.bfloat16())
    assert output.dtype == again.dtype == torch.bfloat16
    close(output, layer(x), torch.bfloat16)
    output.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.double()(x.double()).dtype == torch.float64  # as torch's layers


def test_it_learns():
    """A mask for each sample hinders no simple task for long."""
    torch.manual_seed(1)
    x = torch.randn(256, 20)
    y = (x @ torch.randn(20, 1) > 0).float()
    model = nn.Sequential(dst.DropConnectLinear(20, 64, p=0.3), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for step in range(200):
        dst.set_key(model, 0, step)
        loss = functional.binary_cross_entropy_with_logits(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("mode", ["sample", "batch"])
@pytest.mark.parametrize("kind", ["linear", "positions", "convolution", "moments"])
def test_compiled(keyed, mode, kind):
    layer = dst.DropConnectLinear(7, 5, p=0.4, mode=mode, drop_bias=True)
    x = torch.randn(4, 3, 7) if kind == "positions" else torch.randn(4, 7)
    if kind == "convolution":
        layer, x = dst.DropConnectConv2d(2, 3, 3, p=0.4, mode=mode), torch.randn(4, 2, 8, 9)
    if kind == "moments":
        layer = dst.DropConnectLinear(
            7, 5, inference="moments", activation=torch.relu, samples=3
        ).eval()
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    output = call(x)
    output.sum().backward()
    if keyed:
        gradient = layer.weight.grad.clone()
        layer.weight.grad = None
        layer(x).sum().backward()
        torch.testing.assert_close(output, layer(x))
        torch.testing.assert_close(gradient, layer.weight.grad)
    elif kind != "moments":
        assert not torch.equal(call(x), output)
    assert torch.equal(call(x) != 0, call(x) != 0) or not keyed


def test_compiled_for_any_batch():
    layer = dst.DropConnectLinear(7, 5, p=0.4)
    dst.set_key(layer, 1)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (3, 5):
        x = torch.randn(n, 7)
        assert torch.equal(call(x), layer(x))


def test_the_ops_keep_torch_s_rules(words):
    numbers = words, torch.tensor(2**30), torch.tensor(1.25, dtype=torch.float64)
    ops, check = torch.ops.dropseed, torch.library.opcheck
    x, w, g = leaves((3, 7), (5, 7), (3, 5))
    check(ops.drop_connect, (x, w, *numbers, (0, 1)))
    check(ops.drop_connect_backward, (x, w, g, *numbers, (0, 1)))
    x, w, g = leaves((3, 4, 8), (6, 2, 3), (3, 6, 4))
    geometry = (2,), (1,), (1,), 2, (1, 2)
    check(ops.drop_connect_conv, (x, w, *numbers, *geometry))
    check(ops.drop_connect_conv_backward, (x, w, g, *numbers, *geometry))


def test_traced_products_follow_the_key(words):
    x, w = torch.randn(3, 7), torch.randn(5, 7)

    def f(x, w, k):
        return linear(x, w, p=0.3, key=k)

    assert torch.equal(make_fx(f)(x, w, words)(x, w, KEYS[0]), f(x, w, KEYS[0]))
    assert f(x.to("meta"), w.to("meta"), words).is_meta


def test_vmap(words):
    batch, w = torch.randn(4, 3, 7), torch.randn(5, 7)

    def f(x, w=w, k=words):
        return linear(x, w, p=0.3, key=k)

    torch.testing.assert_close(vmap(f)(batch), torch.stack([f(x) for x in batch]))
    want = torch.stack([f(x, w, k) for x, k in zip(batch, KEYS, strict=True)])
    torch.testing.assert_close(vmap(f, (0, None, 0))(batch, w, KEYS), want)
    models = torch.randn(4, 5, 7)
    want = torch.stack([f(batch[0], one) for one in models])
    torch.testing.assert_close(vmap(f, (None, 0))(batch[0], models), want)
    different = vmap(lambda x: linear(x, w, p=0.3), randomness="different")(torch.ones(4, 3, 7))
    assert len({row.numpy().tobytes() for row in different}) == 4


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_functorch_s_derivatives(kind, words):
    if kind == "linear":
        (x, w), (dx, dw) = (leaves((3, 7), (5, 7)) for _ in range(2))
        function = linear
    else:
        (x, w), (dx, dw) = (leaves((3, 2, 7), (5, 2, 3)) for _ in range(2))
        function = conv
    x, w, dx, dw = (t.detach() for t in (x, w, dx, dw))

    def f(x, w):
        return function(x, w, p=0.3, key=words)

    value, derivative = jvp(f, (x, w), (dx, dw))
    torch.testing.assert_close(value, f(x, w))
    torch.testing.assert_close(derivative, f(dx, w) + f(x, dw))
    v = torch.randn_like(value)
    by_functorch = grad(lambda x, w: (f(x, w) * v).sum(), (0, 1))(x, w)
    x, w = x.requires_grad_(), w.requires_grad_()
    for one, other in zip(by_functorch, torch.autograd.grad(f(x, w), (x, w), v), strict=True):
        torch.testing.assert_close(one, other)


def test_per_sample_gradients(words):
    """`vmap` of `grad`: with an explicit key every example has the mask that it has alone."""
    layer = dst.DropConnectLinear(7, 5, p=0.3)
    dst.set_key(layer, 3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    x = torch.randn(4, 7)

    def loss(parameters, x):
        return functional_call(layer, parameters, (x[None],)).pow(2).sum()

    rows = vmap(grad(loss), (None, 0))(parameters, x)
    for i, one in enumerate(x):
        want = grad(loss)(parameters, one)
        torch.testing.assert_close(rows["weight"][i], want["weight"])


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(2, 4).byte()}, InvalidTypeError, "`input` must.*uint8"),
        ({"input": [1.0]}, InvalidTypeError, "`input` must.*list"),
        ({"input": torch.ones(())}, InvalidValueError, r"\(N, \*, I\) and \(O, I\)"),
        ({"input": torch.ones(2, 5)}, InvalidValueError, r"got \(2, 5\) and \(3, 4\)"),
        ({"weight": torch.ones(3, 4, 1)}, InvalidValueError, r"\(N, \*, I\) and \(O, I\)"),
        ({"weight": torch.ones(3, 4).long()}, InvalidTypeError, "`weight` must.*int64"),
        ({"weight": torch.ones(3, 4).double()}, InvalidTypeError, "`weight` must have the type"),
        ({"bias": torch.ones(3).half()}, InvalidTypeError, "`bias` must have the type"),
        ({"bias": torch.ones(1)}, InvalidValueError, r"`bias` must have shape \(3,\).*\(1,\)"),
        ({"bias": torch.ones(2, 3)}, InvalidValueError, r"`bias` must have shape"),
        ({"bias": 0.5}, InvalidTypeError, "`bias` must be a torch.Tensor; got float"),
        ({"input": torch.ones(2, 4).cfloat()}, InvalidTypeError, "`input` must be real"),
        ({"shard": (2**60, 1)}, InvalidValueError, r"leads to a draw beyond 2\*\*63"),
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": True}, InvalidTypeError, "`p` must be"),
        ({"mode": "row"}, InvalidValueError, '`mode` must be "sample" or "batch".*row'),
        ({"scaling": "both"}, InvalidValueError, "`scaling` must"),
        ({"shard": (1,)}, InvalidValueError, "`shard` must"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        linear(**{"input": torch.ones(2, 4), "weight": torch.ones(3, 4)} | arguments)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("shapes", "groups", "match"),
    [
        (((2, 4, 5, 5), (3, 4, 3)), 1, "one to three dimensions"),
        (((2, 4), (3, 4)), 1, "one to three dimensions"),
        (((2, 4, 5), (3, 3, 3)), 1, "must have 3 channels"),
        (((2, 4, 5), (4, 4, 3)), 2, "must have 8 channels"),
    ],
)
def test_bad_convolutions(shapes, groups, match):
    with pytest.raises(InvalidValueError, match=match):
        conv(*(torch.ones(shape) for shape in shapes), groups=groups)


@pytest.mark.parametrize(
    ("geometry", "error", "match"),
    [
        ({"stride": (1,)}, None, ""),
        (
            {"stride": (1, 1, 1)},
            InvalidValueError,
            "`stride` must be one integer or one for each of 2",
        ),
        ({"stride": 0}, InvalidValueError, "`stride` must be in"),
        ({"padding": -1}, InvalidValueError, "`padding` must be in"),
        ({"padding": "same"}, InvalidTypeError, "`padding` must be integers.*'same'"),
        ({"dilation": 0.5}, InvalidTypeError, "`dilation` must be"),
        ({"dilation": 3}, InvalidValueError, "`weight` must fit into the padded `input`"),
    ],
)
def test_the_geometry_of_a_convolution(geometry, error, match):
    arguments = torch.ones(0, 2, 5, 5), torch.ones(3, 2, 3, 3)
    if error is None:
        assert conv(*arguments, **geometry).shape == (0, 3, 3, 3)
    else:
        with pytest.raises(error, match=match):
            conv(*arguments, **geometry)


@pytest.mark.parametrize(
    "build",
    [
        lambda: dst.DropConnectConv2d(3, 8, 3, 0.5),
        lambda: dst.DropConnectLinear(20, 10, 0.5),
        lambda: dst.DropConnectLinear(20, 10, True, 0.5),
    ],
)
def test_a_rate_in_another_s_place(build):
    with pytest.raises(InvalidTypeError, match=r"got 0\.5\. The rate is given by name: p="):
        build()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"p": 2}, InvalidValueError, "`p` must be in"),
        ({"bias": 0.5}, InvalidTypeError, "`bias` must be as in torch.nn.Linear; got 0.5"),
        ({"mode": "row"}, InvalidValueError, "`mode`"),
        ({"scaling": "both"}, InvalidValueError, "`scaling`"),
        ({"inference": "median"}, InvalidValueError, "`inference` must"),
        ({"inference": "moments"}, InvalidValueError, '"moments" needs the `activation`'),
        ({"samples": 0}, InvalidValueError, "`samples` must"),
        ({"rate": 0.5}, TypeError, "rate"),
    ],
)
def test_bad_layers(arguments, error, match):
    with pytest.raises(error, match=match):
        dst.DropConnectLinear(4, 3, **arguments)
