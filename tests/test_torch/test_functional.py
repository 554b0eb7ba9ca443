"""The functions: torch's interface and strides, the reference's bits."""

import inspect
import itertools
import re
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as theirs

from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch import functional as ours
from dropseed.torch import key_tensor

NAMES = ["dropout", "dropout1d", "dropout2d", "dropout3d"]
SHARED = {"dropout": (), "dropout1d": (2,), "dropout2d": (2, 3), "dropout3d": (2, 3, 4)}
SHAPES = {"dropout": (5, 7), "dropout1d": (5, 7, 3), "dropout2d": (5, 7, 3, 2)}
SHAPES["dropout3d"] = (5, 7, 3, 2, 2)
TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


# ---- torch's interface -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_torch_s(name):
    parameters = inspect.signature(getattr(ours, name)).parameters.values()
    positional = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    torch_s = inspect.signature(getattr(theirs, name)).parameters.values()
    assert positional == [(p.name, p.default) for p in torch_s]
    ours_alone = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert ours_alone == ["key", "scaling", "noise_shape"][: 3 if name == "dropout" else 2]


def outcome(function, *args):
    """Whether a call raises and whether it warns, by type."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            function(*args)
            raised = None
        except Exception as error:
            raised = type(error)
    return raised, [w.category for w in caught]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", range(1, 7))
def test_ranks_raise_and_warn_as_in_torch(name, rank):
    x = torch.ones((2,) * rank)
    theirs_, ours_ = outcome(getattr(theirs, name), x), outcome(getattr(ours, name), x)
    if name != "dropout" and rank == 1 and theirs_[0] is RuntimeError:
        assert ours_[0] is RuntimeError  # no channels; the warning before it doesn't matter
    else:
        assert ours_ == theirs_


@pytest.mark.parametrize(
    ("name", "shape", "own"),
    [
        ("dropout1d", (64, 3), (0,)),
        ("dropout1d", (8, 8, 3), (0, 1)),
        ("dropout2d", (8, 8, 3, 2), (0, 1)),
        ("dropout2d", (8, 8, 3), (0, 1)),
        ("dropout3d", (64, 3, 2, 2), (0,)),
        ("dropout3d", (8, 8, 3, 2, 2), (0, 1)),
    ],
)
@pytest.mark.filterwarnings("ignore:.*dropout2d")
def test_what_shares_a_draw_is_torch_s_too(name, shape, own, key, expected, same_bits):
    x = torch.ones(shape)
    shared = tuple(axis for axis in range(len(shape)) if axis not in own)
    for function in (getattr(ours, name), getattr(theirs, name)):
        output = function(x)
        channels = output.flatten(len(own))
        assert bool((channels == channels[..., :1]).all())
        assert 0 < int((channels[..., 0] == 0).sum()) < 64
    assert same_bits(getattr(ours, name)(x, 0.3, key=key), expected(x, 0.3, key, shared))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("p", [-0.1, 1.1, float("inf"), float("nan"), torch.tensor(-0.1)])
def test_rates_out_of_range_are_refused(name, p):
    x = torch.ones(SHAPES[name])
    with pytest.raises(ValueError, match="`p` must be in"):
        getattr(ours, name)(x, p)


def test_torch_refuses_those_rates_by_the_same_type():
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="has to be between"):
            theirs.dropout(torch.ones(2), p)


@pytest.mark.parametrize("p", ["0.5", None, [0.5], 1j, True, torch.tensor([0.5]), torch.tensor(1)])
def test_what_is_no_rate_is_refused(p):
    with pytest.raises(InvalidTypeError, match="`p` must be a"):
        ours.dropout(torch.ones(2), p)


@pytest.mark.parametrize("p", [0.25, np.float32(0.25), np.float64(0.25), torch.tensor(0.25)])
def test_any_real_number_is_a_rate(p, key, same_bits, expected):
    assert same_bits(ours.dropout(torch.ones(9), p, key=key), expected(torch.ones(9), 0.25, key))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
def test_input_that_is_no_float_tensor_is_refused(name, training):
    shape = SHAPES[name]
    others = [[1.0], None, 3.0, np.ones(shape), torch.ones(shape, dtype=torch.int64)]
    for value in [*others, torch.ones(shape, dtype=torch.bool)]:
        with pytest.raises(InvalidTypeError, match="`input` must be a"):
            getattr(ours, name)(value, 0.5, training)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, torch.tensor(0.5)])
@pytest.mark.parametrize("training", [True, False])
def test_unknown_scaling_is_refused(p, training):
    with pytest.raises(InvalidValueError, match="`scaling`"):
        ours.dropout(torch.ones(2), p, training, scaling="inverse")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (7, InvalidTypeError),
        ((1, 2), InvalidTypeError),
        (torch.tensor(7), InvalidValueError),
        (torch.tensor([1, 2, 3]), InvalidValueError),
        (torch.tensor([1.0, 2.0]), InvalidValueError),
        (torch.tensor([1, 2], dtype=torch.int32), InvalidValueError),
    ],
)
def test_wrong_keys_are_refused(wrong, error):
    with pytest.raises(error, match="`key` must be"):
        ours.dropout(torch.ones(2), 0.5, key=wrong)


# ---- the bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
def test_output_is_the_reference_s(name, dtype, scaling, key, expected, same_bits):
    x = torch.randn(SHAPES[name]).to(dtype)
    for p in (0.1, 0.5, 0.999):
        output = getattr(ours, name)(x, p, key=key, scaling=scaling)
        assert same_bits(output, expected(x, p, key, SHARED[name], scaling))


def test_key_and_key_tensor_are_one(key, words, same_bits):
    x = torch.randn(4, 5)
    assert same_bits(ours.dropout(x, key=key), ours.dropout(x, key=words))
    assert words.tolist() == [key.seed - 2**64, key.site + 2**32 * key.step - 2**64]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_dropped_is_plus_zero_whatever_the_input(dtype, p, key):
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, -1.0, -0.0], dtype=dtype)
    x = odd.repeat(20).requires_grad_()
    output = ours.dropout(x, p, key=key)
    output.backward(x.detach())
    dropped = torch.from_numpy(np.array(~keep(key, p, 100)))
    assert dropped.any()
    for tensor in (output, x.grad):
        assert bool((tensor[dropped] == 0).all())
        assert not torch.signbit(tensor[dropped]).any()
        kept = x.detach()[~dropped] * Rate(p).scale
        assert torch.equal(tensor[~dropped].nan_to_num(7), kept.nan_to_num(7))


@pytest.mark.parametrize("p", [1, 1.0, torch.tensor(1.0)])
def test_rate_one_gives_zeros_and_zero_gradients(p, forced):
    x = torch.tensor([torch.nan, torch.inf, 3.0], requires_grad=True)
    output = ours.dropout(x, p)
    output.backward(torch.tensor([1.0, torch.nan, torch.inf]))
    assert output.tolist() == x.grad.tolist() == [0, 0, 0]


def test_complex_and_lazily_negated_input(key, expected, same_bits):
    z = torch.randn(4, 3, dtype=torch.complex64)
    mask = torch.from_numpy(np.array(keep(key, 0.5, (4, 3))))
    for value in (z, z.conj(), torch._neg_view(z)):
        result = ours.dropout(value, 0.5, key=key)
        assert torch.equal(result, torch.where(mask, value * 2, 0))
    imaginary = z.conj().imag
    for negated in (imaginary, torch._neg_view(torch.randn(4, 3))):
        assert negated.is_neg()
        assert same_bits(ours.dropout(negated, 0.5, key=key), expected(negated, 0.5, key))
    before = imaginary.clone()
    assert ours.dropout(imaginary, 0.5, inplace=True, key=key) is imaginary
    assert same_bits(imaginary + 0, expected(before, 0.5, key))
    z = torch.randn(3, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ours.dropout(z, 0.5, key=key), z)


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0, 2)])
@pytest.mark.parametrize("p", [0.5, 1.0, torch.tensor(0.5)])
@pytest.mark.parametrize("inplace", [False, True])
def test_scalars_and_empty_tensors(shape, p, inplace, forced, key, expected, same_bits):
    x = torch.ones(shape, requires_grad=True)
    output = ours.dropout(x * 1, p, inplace=inplace, key=key)
    output.sum().backward()
    assert same_bits(output, x.grad, expected(x, float(p), key))


def test_zero_tensors_of_autograd():
    zero = torch._efficientzerotensor((3,))
    assert ours.dropout(zero, 0.5).tolist() == [0, 0, 0]


def test_sparse_and_float8_tensors_raise():
    for broken in (torch.eye(3).to_sparse(), torch.ones(3).to(torch.float8_e4m3fn)):
        with pytest.raises((TypeError, NotImplementedError)):
            ours.dropout(broken, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_no_type(dtype):
    x = torch.ones(4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours.dropout(x).dtype == theirs.dropout(x).dtype == dtype
        mixed = torch.nn.functional.linear(ours.dropout(x.float(), 0.5), torch.ones(2, 4))
        assert ours.dropout(mixed).dtype == theirs.dropout(mixed).dtype == torch.bfloat16


def test_default_device_does_not_matter(key, expected, same_bits):
    x, p = torch.ones(6), torch.tensor(0.5)
    with torch.device("meta"):
        plain = ours.dropout(x, 0.5, key=key)
        batched = torch.vmap(lambda x: ours.dropout(x, 0.5, key=key))(x[None])[0]
        by_tensor = ours.dropout(x, p, key=key)
        assert ours.dropout(x).device == x.device
    assert same_bits(plain, batched, by_tensor, expected(x, 0.5, key))


# ---- inference -------------------------------------------------------------------------------


@pytest.mark.parametrize("inplace", [False, True])
def test_what_does_not_drop_returns_the_input(inplace):
    leaf = torch.ones(3, requires_grad=True)
    assert ours.dropout(leaf, 0.0, inplace=inplace) is leaf
    assert ours.dropout(leaf, 0, inplace=inplace, key=Key(0)) is leaf
    for scaling in ("inverted", "none"):
        for p in (0.5, 1.0, torch.tensor(0.5)):
            assert ours.dropout(leaf, p, False, inplace, scaling=scaling) is leaf


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (100,)])
@pytest.mark.parametrize("inplace", [False, True])
def test_original_scaling_multiplies_in_inference(dtype, shape, inplace, same_bits):
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    factor = torch.tensor(1 - Rate(0.1).threshold / 2**32, dtype=wide)
    for p in (0.1, torch.tensor(0.1, dtype=torch.float64)):
        value = x.clone()
        output = ours.dropout(value, p, False, inplace, scaling="original")
        assert (output is value) == inplace
        assert same_bits(output, (x.to(wide) * factor).to(dtype))


# ---- strides ---------------------------------------------------------------------------------


def _views():
    base = torch.randn(2, 3, 4, 5)
    for order in itertools.permutations(range(4)):
        yield base.permute(order)
    yield base.to(memory_format=torch.channels_last)
    yield base[:1].to(memory_format=torch.channels_last)
    yield base[:, ::2]
    yield base.permute(3, 1, 0, 2)[1:, :, :, ::2]
    yield base[..., 1:]
    yield base.flip(0)
    yield torch.randn(3, 1).expand(3, 4)
    yield torch.randn(4).expand(3, 4)
    yield torch.randn(1, 4, 1).expand(3, 4, 2)
    yield torch.randn(1, 3, 1, 1).expand(2, 3, 4, 4)
    yield torch.randn(20).as_strided((3, 4), (2, 1))
    yield torch.randn(20).as_strided((4, 3), (1, 2))
    yield torch.randn(20).as_strided((3, 1, 4), (4, 77, 1))
    yield torch.randn(20).as_strided((3, 1, 4), (1, 2, 5))


def strides(tensor):
    """The strides that say where an element is: those of a single one are arbitrary."""
    return [s for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1]


@pytest.mark.parametrize(
    "view", [pytest.param(v, id=f"{list(v.shape)}{v.stride()}") for v in _views()]
)
def test_strides_are_torch_s(view, forced, key, expected, same_bits):
    assert strides(ours.dropout(view, 0.5)) == strides(theirs.dropout(view, 0.5))
    x = view.detach().requires_grad_()
    output = ours.dropout(x, 0.5, key=key)
    output.backward(view)
    assert same_bits(output, x.grad, expected(view, 0.5, key))
    if view.dim() == 4:
        torch_s = theirs.dropout2d(view, 0.5)
        output = ours.dropout2d(view, 0.5, key=key)
        assert output.is_contiguous() or strides(output) == strides(torch_s)
        assert same_bits(output, expected(view, 0.5, key, (2, 3)))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_tiny_rate_gives_a_new_dense_tensor(order, forced):
    view = torch.randn(2, 3, 4, 5).permute(order)[1:, 1:]
    output = ours.dropout(view, 1e-10)
    assert output is not view
    assert output.data_ptr() != view.data_ptr()
    assert torch.equal(output, view)
    assert strides(output) == strides(theirs.dropout(view, 1e-10))


# ---- in place --------------------------------------------------------------------------------


def test_in_place_returns_the_same_object(forced, key, expected, same_bits):
    x = torch.randn(6, 10)
    before, leaf = x.clone(), torch.ones(6, 10, requires_grad=True)
    assert ours.dropout(x, 0.3, inplace=True, key=key) is x
    assert same_bits(x, expected(before, 0.3, key))
    inner = leaf * 1
    assert ours.dropout(inner, 0.3, inplace=True, key=key) is inner
    inner.backward(before)
    assert same_bits(leaf.grad, x)


def refuses(function, tensor):
    before = tensor.detach().clone()
    with pytest.raises(RuntimeError) as error:
        function(tensor, 0.5, inplace=True)
    assert torch.equal(tensor, before)
    return re.split(r"[.,]|\d", str(error.value))[0]


def test_in_place_is_refused_where_torch_refuses(forced):
    def leaf():
        return torch.ones(6, requires_grad=True)

    for make in (
        leaf,
        lambda: leaf()[::2],
        lambda: leaf()[:3],
        lambda: leaf().view(2, 3),
        lambda: (leaf() * 1).view(2, 3).unbind()[0],
        lambda: torch.ones(3, 1).expand(3, 4),
    ):
        assert refuses(ours.dropout, make()) == refuses(theirs.dropout, make())


@pytest.mark.parametrize("part", [(..., slice(None, None, 2)), (slice(2, 4),), (slice(None), 3)])
def test_in_place_on_views(part, forced, key, expected, same_bits):
    leaf = torch.randn(6, 10, requires_grad=True)
    base = leaf * 1
    view = base[part]
    before = base.detach().clone()
    assert ours.dropout(view, 0.3, inplace=True, key=key) is view
    after, gradient = before.clone(), torch.ones(6, 10)
    after[part] = expected(before[part], 0.3, key)
    gradient[part] = expected(gradient[part], 0.3, key)
    base.sum().backward()
    assert same_bits(base, after)
    assert same_bits(leaf.grad, gradient)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("part", [..., slice(None, None, 2)])
def test_autograd_notices_what_is_changed_in_place(mode, part):
    for function in (ours.dropout, theirs.dropout):
        x = torch.ones(6, requires_grad=True)
        saved = x.exp()
        with mode():
            function(saved[part], 0.5, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            saved.sum().backward()


def test_autograd_notices_a_key_that_changes(words):
    x = torch.ones(6, requires_grad=True)
    output = ours.dropout(x, 0.5, key=words)
    words += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# ---- rates that are tensors ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
def test_tensor_rate_is_the_number_s(dtype, scaling, forced, key, same_bits):
    x = torch.randn(20, 5).to(dtype)
    for rate in (0.0, 1e-9, 0.1, 1 / 3, 0.5, 0.875, 1.0):
        p = torch.tensor(rate, dtype=torch.float64)
        for training in (True, False):
            a, b = (ours.dropout(x, r, training, key=key, scaling=scaling) for r in (rate, p))
            assert same_bits(a, b)
    float32 = ours.dropout(x, torch.tensor(0.1), key=key)
    assert same_bits(float32, ours.dropout(x, float(np.float32(0.1)), key=key))


@pytest.mark.parametrize("rate", [-1e-12, 1 + 1e-12, 1e30, -1e30, torch.nan, torch.inf])
def test_tensor_rate_out_of_range(rate, forced, key):
    p = torch.tensor(rate, dtype=torch.float64)
    with pytest.raises(InvalidValueError, match="`p` must be in"):
        ours.dropout(torch.ones(4), p, key=key)
    assert ours.dropout(torch.ones(4), p, False, scaling="original").isnan().all()


def test_a_rate_has_no_gradient_and_says_so(key):
    def f(p):
        return ours.dropout(torch.ones(4), p, key=key).sum()

    p = torch.tensor(0.5)
    with pytest.raises(InvalidValueError, match="no gradient"):
        f(p.clone().requires_grad_())
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        with pytest.raises(InvalidValueError, match="no gradient"):
            transform(f)(p)


# ---- what is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize("forced", ["function", "op"], indirect=True)
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("p", [0.5, 1.0, torch.tensor(0.5)])
@pytest.mark.parametrize("name", ["dropout", "dropout2d"])
def test_bytes_kept_for_backward(forced, explicit, p, name, words):
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    for size in (1, 100_000):
        x = torch.ones(size, 2, 1, 1, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = getattr(ours, name)(x * 1, p, inplace=True, key=words if explicit else None)
            assert 0 < sum(kept) <= 16
        output.sum().backward()
        kept.clear()


def test_bytes_are_counted_right():
    kept = []
    x = torch.ones(1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes), lambda _: None):
        theirs.dropout(x)
    assert sum(kept) == 4000


def test_key_tensor_takes_only_keys():
    with pytest.raises(InvalidTypeError, match="`key`"):
        key_tensor(7)
