"""Cutout, against rectangles painted one by one at the NumPy reference's places."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import dropseed.torch as dst
from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import integers
from dropseed.torch.cutout import Cutout, cutout
from generators import seeds_drawn

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])


def dense(x, size, count, key, fill=0.0):
    """The paper's picture: each rectangle is painted, and clipped at the border."""
    n, _, h, w = x.shape
    rows = np.array(integers(key.fold(0), h, (n, count)))
    columns = np.array(integers(key.fold(1), w, (n, count)))
    output = x.clone()
    for i in range(n):
        for row, column in zip(rows[i], columns[i], strict=True):
            top, left = row - size[0] // 2, column - size[1] // 2
            rectangle = np.s_[max(top, 0) : top + size[0], max(left, 0) : left + size[1]]
            output[i][:, *rectangle] = fill
    return output


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (2, 5), (8, 9), (40, 1)])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("fill", [0.0, -1.5])
def test_equals_painted_rectangles(dtype, size, count, fill, key, same_bits):
    x = torch.randn(6, 2, 8, 9).to(dtype).requires_grad_()
    output = cutout(x, size, count, key=key, fill=fill)
    assert same_bits(output, dense(x.detach(), size, count, key, fill))
    v = torch.randn(x.shape).to(dtype)
    output.backward(v)
    assert same_bits(x.grad, dense(v, size, count, key))


def test_an_edge_is_a_square(key, same_bits):
    x = torch.randn(3, 2, 8, 9)
    assert same_bits(cutout(x, 3, key=key), cutout(x, (3, 3), key=key))


@pytest.mark.parametrize(
    ("area", "size"),
    [(0.25, (4, 8)), (0.5, (6, 11)), (1.0, (8, 16)), (1e-3, (0, 1)), (0.0, (0, 0))],
)
def test_an_area_has_the_image_s_proportions(area, size, key, same_bits):
    x = torch.randn(3, 2, 8, 16)
    assert same_bits(cutout(x, area=area, key=key), dense(x, size, 1, key))


@pytest.mark.parametrize("area", [0.25, 1.0])
def test_how_much_is_cut_on_average(area):
    """The draws are pinned by the seed; the tolerance is of the docstring's "about"."""
    output = cutout(torch.ones(4000, 1, 32, 32), area=area, key=Key(2))
    cut = float((output == 0).double().mean())
    edge = area**0.5
    assert abs(cut - (edge - edge**2 / 4) ** 2) < 0.01


@pytest.mark.parametrize("shape", [(0, 2, 4, 4), (2, 0, 4, 4), (2, 2, 0, 4), (2, 2, 4, 0)])
def test_empty_batches_and_images(shape, key):
    assert cutout(torch.ones(shape), 2, key=key).shape == shape
    assert cutout(torch.ones(shape), area=0.5, key=key).shape == shape


def test_one_image(key, same_bits):
    x = torch.randn(2, 8, 9)
    assert same_bits(cutout(x, 3, 2, key=key), dense(x[None], (3, 3), 2, key)[0])


def test_a_sample_s_rectangles_don_t_depend_on_its_channels(key):
    wide, narrow = (
        cutout(torch.ones(3, 4, 8, 9), 3, key=key),
        cutout(torch.ones(3, 1, 8, 9), 3, key=key),
    )
    assert torch.equal(wide, narrow.expand(3, 4, 8, 9))


def test_what_is_cut_may_be_nan(key):
    kept = dense(torch.ones(3, 1, 8, 9), (3, 3), 1, key)
    x = torch.where(kept == 1, 1.0, torch.nan)
    assert torch.equal(cutout(x, 3, key=key), kept)


@pytest.mark.parametrize("layout", ["channels last", "transposed", "sliced"])
def test_strides(layout, key, forced, same_bits):
    x = torch.randn(3, 2, 8, 9)
    if layout == "channels last":
        x = x.to(memory_format=torch.channels_last)
    else:
        x = x.mT.contiguous().mT if layout == "transposed" else torch.randn(3, 4, 8, 9)[:, ::2]
    output = cutout(x, 3, key=key)
    assert same_bits(output, dense(x, (3, 3), 1, key))
    if layout == "channels last":
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 2, 3, 4), (1, 3, 4)])
def test_gradcheck(shape, key):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def f(x):
        return cutout(x, 2, key=key, fill=0.5) ** 3

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x)


def test_backward_keeps_the_key_alone():
    sizes = []
    x = torch.randn(3, 1, 64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        cutout(x, 8, 2)
    assert sum(sizes) == 8  # a seed


def test_complex_images(key):
    x = torch.randn(3, 2, 8, 9, dtype=torch.complex64)
    assert torch.equal(cutout(x, 3, key=key), dense(x, (3, 3), 1, key))


# ---- when nothing is cut ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": 2, "training": False},
        {"size": 0},
        {"size": (3, 0)},
        {"size": 2, "count": 0},
        {"area": 0.0},
        {"area": 1e-6},
    ],
)
def test_the_identity(arguments):
    x = torch.randn(2, 2, 4, 4)
    before = torch.get_rng_state()
    assert cutout(x, **arguments) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds():
    layer, x = Cutout(3), torch.randn(2, 2, 4, 4)
    assert seeds_drawn(lambda: layer.train()(x)) == 1
    assert seeds_drawn(lambda: layer.eval()(x)) == 0
    dst.set_key(layer.train(), 0)
    assert seeds_drawn(lambda: layer(x)) == 0


# ---- the layer -------------------------------------------------------------------------------


def test_the_layer_calls_its_function(same_bits):
    x = torch.randn(3, 2, 8, 9)
    for arguments in ({"size": (2, 3), "count": 2, "fill": 0.5}, {"area": 0.3}):
        net = nn.Sequential(Cutout(**arguments), nn.Identity())
        assert dst.set_key(net, 7, 4) == 1
        assert same_bits(net(x), cutout(x, **arguments, key=Key(7, step=4).at("0")))
        assert net.eval()(x) is x


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.randn(2, 2, 4, 4)
    layer = Cutout((2, 3), 2, 0.5)
    assert repr(layer) == "Cutout(size=(2, 3), count=2, fill=0.5)"
    assert repr(Cutout(area=0.3)) == "Cutout(area=0.3)"
    dst.set_key(layer, 3)
    assert list(layer.state_dict()) == []
    twin = copied(layer)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("arguments", [{"size": 3, "count": 2}, {"area": 0.3}])
def test_compiled(keyed, arguments):
    layer = Cutout(**arguments)
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.ones(3, 2, 16, 16, requires_grad=True)
    output = call(x)
    output.sum().backward()
    assert set(output.unique().tolist()) == {0, 1}
    assert torch.equal(x.grad, output.detach())
    if keyed:
        assert torch.equal(output, layer(x))
    layer.eval()
    assert torch.equal(call(x), x)


@pytest.mark.parametrize("arguments", [{"size": 3, "count": 2}, {"area": 0.3}])
def test_compiled_for_any_size(arguments):
    layer = Cutout(**arguments)
    dst.set_key(layer, 1)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((3, 2, 16, 16), (4, 3, 9, 12)):
        x = torch.randn(shape)
        assert torch.equal(call(x), layer(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_op_keeps_torch_s_rules(memory_format, words):
    x = torch.randn(2, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(torch.ops.dropseed.cutout, (x, words, 2, (2, 3), 0.5))


def test_traced_rectangles_follow_the_key(words):
    x = torch.randn(3, 2, 8, 9)

    def f(x, k):
        return cutout(x, 3, key=k)

    assert torch.equal(make_fx(f)(x, words)(x, KEYS[0]), f(x, KEYS[0]))
    assert f(x.to("meta"), words).is_meta


@pytest.mark.parametrize("shape", [(4, 3, 2, 8, 9), (4, 2, 8, 9)])
def test_vmap(shape, words, same_bits):
    batch = torch.randn(shape)

    def f(x, k=words):
        return cutout(x, 3, 2, key=k)

    assert same_bits(vmap(f)(batch), torch.stack([f(x) for x in batch]))
    want = torch.stack([f(x, k) for x, k in zip(batch, KEYS, strict=True)])
    assert same_bits(vmap(f)(batch, KEYS), want)
    want = torch.stack([f(batch[0], k) for k in KEYS])
    assert same_bits(vmap(f, in_dims=(None, 0))(batch[0], KEYS), want)
    different = vmap(lambda x: cutout(x, 3), randomness="different")(torch.ones(4, 9, 1, 8, 9))
    assert len({row.numpy().tobytes() for row in different}) == 4


def test_functorch_s_derivatives(words, same_bits):
    x, tangent = torch.randn(2, 3, 2, 8, 9)

    def f(x):
        return cutout(x, 3, key=words, fill=2.0)

    value, derivative = jvp(f, (x,), (tangent,))
    zeros = cutout(tangent, 3, key=words)
    assert same_bits(value, f(x))
    assert same_bits(derivative, zeros)
    assert same_bits(grad(lambda x: (f(x) * tangent).sum())(x), zeros)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(2, 2, 4, 4).byte()}, InvalidTypeError, "`input` must.*uint8"),
        ({"input": [1.0]}, InvalidTypeError, "`input` must.*list"),
        (
            {"input": torch.ones(4, 4)},
            InvalidValueError,
            r"`input` must be \(N, C, H, W\).*\(4, 4\)",
        ),
        ({"input": torch.ones(1, 1, 1, 4, 4)}, InvalidValueError, "`input` must be"),
        ({"size": -1}, InvalidValueError, "`size` must be.*-1"),
        ({"size": (2, -1)}, InvalidValueError, "`size` must be.*-1"),
        ({"size": (2, 2, 2)}, InvalidValueError, r"`size` must be.*\(2, 2, 2\)"),
        ({"size": 2.0}, InvalidTypeError, "`size` must be an integer.*2.0"),
        ({"size": None}, InvalidValueError, "exactly one of `size` and `area`"),
        ({"area": 0.5}, InvalidValueError, "exactly one of `size` and `area`.*2 and 0.5"),
        ({"size": None, "area": 1.5}, InvalidValueError, "`area` must be in.*1.5"),
        ({"size": None, "area": "half"}, InvalidTypeError, "`area` must be.*'half'"),
        ({"count": -1}, InvalidValueError, "`count` must be.*-1"),
        ({"count": 1.5}, InvalidTypeError, "`count` must be an integer"),
        ({"fill": "mean"}, InvalidTypeError, "`fill` must be.*'mean'"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        cutout(**{"input": torch.ones(2, 2, 4, 4), "size": 2} | arguments)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "arguments", [{}, {"size": 2, "area": 0.5}, {"area": 2}, {"size": -1}, {"size": 2, "count": -1}]
)
def test_bad_layers(arguments):
    with pytest.raises(InvalidValueError):
        Cutout(**arguments)
    with pytest.raises(InvalidTypeError, match="`fill`"):
        Cutout(2, fill=None)
