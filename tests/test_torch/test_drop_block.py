"""DropBlock, against masks dilated by max-pooling and by the NumPy reference."""

import copy
import math
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
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import dropseed.torch as dst
from dropseed import Key, Rate, drop_block, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.block import coverage, exact_gamma, gamma_factor, kept_fraction
from dropseed.mask.schedule import Linear
from dropseed.torch import launch
from generators import seeds_drawn

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])
ours = dst.functional
FUNCTIONS = {1: ours.drop_block1d, 2: ours.drop_block2d, 3: ours.drop_block3d}
LAYERS = {1: dst.DropBlock1d, 2: dst.DropBlock2d, 3: dst.DropBlock3d}
POOLS = {1: nn.functional.max_pool1d, 2: nn.functional.max_pool2d, 3: nn.functional.max_pool3d}


def edges_of(block, rank):
    return (block,) * rank if isinstance(block, int) else block


def gamma_of(p, sizes, block, exact=False):
    edges = edges_of(block, len(sizes))
    return exact_gamma(p, coverage(sizes, edges)) if exact else p * gamma_factor(sizes, edges)


def pooled_mask(shape, gamma, block, key, shared=False, shard=(0, 1)):
    """Where the paper's picture keeps: draws padded all around, their maximum over a block."""
    n, channels, *sizes = shape
    edges = edges_of(block, len(sizes))
    places = [size - edge + 1 for size, edge in zip(sizes, edges, strict=True)]
    noise = [n, *places] if shared else [n, channels, *places]
    kept = keep(key, gamma, noise, start=shard[0], stride=shard[1])
    hit = torch.from_numpy(~np.array(kept)).double()
    hit = hit.unsqueeze(1).expand(n, channels, *places) if shared else hit
    around = [side for edge in reversed(edges) for side in (edge - 1, edge - 1)]
    return POOLS[len(sizes)](nn.functional.pad(hit, around), edges, 1) == 0


def dense(x, mask, normalization, gamma, block):
    """What is kept times its factor, rounded as the specification says."""
    size, kept = math.prod(x.shape[1:]), mask.flatten(1).sum(1).tolist()
    if normalization == "batch":
        size, kept = size * len(x), [sum(kept)] * len(x)
    factors = torch.tensor([size / one if one else 0.0 for one in kept], dtype=torch.float64)
    if normalization == "expectation":
        fraction = kept_fraction(
            Rate(gamma).threshold / 2**32, coverage(x.shape[2:], edges_of(block, x.dim() - 2))
        )
        factors = torch.tensor([1 / fraction if fraction else 0.0] * len(x), dtype=torch.float64)
    wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    factors = factors.to(wide).reshape(-1, *[1] * (x.dim() - 1))
    return torch.where(mask, (x.to(wide) * factors).to(x.dtype), 0.0)


def expected(x, p, block, key, *, exact=False, shared=False, normalization="sample", shard=(0, 1)):
    gamma = gamma_of(p, x.shape[2:], block, exact)
    mask = pooled_mask(x.shape, gamma, block, key, shared, shard)
    return dense(x, mask, normalization, gamma, block)


# ---- values and gradients --------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_dense_picture(data):
    """Shapes, blocks, strides, dtypes, shards and thread counts, forward and backward."""
    rank = data.draw(st.integers(1, 3))
    top = {1: 150, 2: 20, 3: 8}[rank]
    sizes = data.draw(st.lists(st.integers(1, top), min_size=rank, max_size=rank))
    block = tuple(data.draw(st.integers(1, size)) for size in sizes)
    shape = (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5)), *sizes)
    dtype = data.draw(st.sampled_from(TYPES))
    order = data.draw(st.permutations(range(rank + 2)))
    options = {
        "shared": data.draw(st.booleans()),
        "exact": data.draw(st.booleans()),
        "normalization": data.draw(st.sampled_from(["sample", "batch", "expectation"])),
    }
    if options["normalization"] != "batch":
        options["shard"] = (data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 3)))
    p = data.draw(st.one_of(st.sampled_from([0.001, 0.1, 0.5, 1.0]), st.floats(1e-6, 1)))
    key = Key(data.draw(st.integers(0, 2**64 - 1)), 3, 4)
    x = torch.randn([shape[axis] for axis in order]).to(dtype)
    x = x.permute([order.index(axis) for axis in range(rank + 2)]).requires_grad_()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(data.draw(st.integers(1, 3)))
        output = FUNCTIONS[rank](x, p, block, key=key, **options)
        v = torch.randn(shape).to(dtype)
        output.backward(v)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(output, expected(x.detach(), p, block, key, **options))
    assert output.stride() == torch.empty_like(x).stride()
    assert torch.equal(x.grad, expected(v, p, block, key, **options))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shared", [False, True])
def test_large_maps(memory_format, shared, key):
    """More draws than a chunk, rows of several words, and a block that spans words."""
    x = torch.randn(3, 5, 90, 150).to(memory_format=memory_format)
    output = ours.drop_block2d(x, 0.2, (5, 70), key=key, shared=shared)
    assert torch.equal(output, expected(x, 0.2, (5, 70), key, shared=shared))
    assert output.is_contiguous(memory_format=memory_format)
    assert torch.equal(
        output == 0,
        ~torch.from_numpy(
            np.array(
                drop_block(key, gamma_of(0.2, (90, 150), (5, 70)), x.shape, (5, 70), shared=shared)
            )
        ),
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_blocks_of_one_are_dropout(rank, key, same_bits):
    x = torch.randn(3, 2, *[7] * rank)
    for p in (0.1, 0.5, 1.0):
        output = FUNCTIONS[rank](x, p, 1, key=key, normalization="expectation")
        assert same_bits(output, ours.dropout(x, p, key=key))
        exact = FUNCTIONS[rank](x, p, 1, key=key, normalization="expectation", exact=True)
        assert same_bits(exact, output)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("exact", [False, True])
def test_blocks_of_the_map_s_size_are_spatial_dropout(rank, exact, key):
    x = torch.randn(5, 4, *range(3, 3 + rank))
    block = tuple(range(3, 3 + rank))
    spatial = ours.dropout(x, 0.4, key=key, noise_shape=(None, None, *[1] * rank))
    output = FUNCTIONS[rank](x, 0.4, block, key=key, exact=exact)
    assert torch.equal(output == 0, spatial == 0)
    by_expectation = FUNCTIONS[rank](
        x, 0.4, block, key=key, exact=exact, normalization="expectation"
    )
    assert torch.equal(by_expectation, spatial)


def test_one_number_is_a_square(key, same_bits):
    x = torch.randn(2, 3, 8, 9)
    assert same_bits(
        ours.drop_block2d(x, 0.2, 3, key=key), ours.drop_block2d(x, 0.2, (3, 3), key=key)
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_sample_without_a_batch(rank, key, same_bits):
    x = torch.randn(3, *[6] * rank)
    assert same_bits(
        FUNCTIONS[rank](x, 0.3, 2, key=key), FUNCTIONS[rank](x[None], 0.3, 2, key=key)[0]
    )


def test_what_is_dropped_may_be_nan(key):
    mask = pooled_mask((2, 3, 8, 9), gamma_of(0.3, (8, 9), 3), 3, key)
    x = torch.where(mask, 1.0, torch.nan)
    for layout in (x, x.to(memory_format=torch.channels_last)):
        output = ours.drop_block2d(layout, 0.3, 3, key=key)
        assert torch.equal(output != 0, mask)
        assert not output.isnan().any()


def test_where_nothing_is_left_all_is_zero(key):
    x = torch.ones(4, 1, 4, 4, requires_grad=True)
    for normalization in ("sample", "batch", "expectation"):
        output = ours.drop_block2d(x, 1.0, 4, key=key, normalization=normalization)
        output.sum().backward()
        assert torch.equal(output, torch.zeros(4, 1, 4, 4))
        assert torch.equal(x.grad, torch.zeros(4, 1, 4, 4))
    some = ours.drop_block2d(x.detach(), 0.5, 4, key=Key(1))  # whole samples: all or nothing
    assert set(some.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("normalization", ["sample", "expectation"])
@pytest.mark.parametrize("shared", [False, True])
def test_any_split_of_the_batch(normalization, shared, key, same_bits):
    x = torch.randn(7, 2, 8, 9)
    options = {"key": key, "normalization": normalization, "shared": shared}
    whole = ours.drop_block2d(x, 0.3, 3, **options)
    for start, stride in ((0, 2), (1, 2), (3, 1), (2, 3)):
        part = ours.drop_block2d(x[start::stride], 0.3, 3, shard=(start, stride), **options)
        assert same_bits(part, whole[start::stride].contiguous())


def test_the_batch_s_normalization_needs_a_group_under_a_shard():
    x = torch.randn(3, 2, 8, 9)
    with pytest.raises(InvalidValueError, match=r"\"batch\" under the shard \(3, 1\).*`group`"):
        ours.drop_block2d(x, 0.3, 3, shard=(3, 1), normalization="batch")


RANK = """
import sys
import torch
import torch.distributed as dist
import dropseed.torch as dst
from dropseed import Key

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
x = torch.load(f"{folder}/x.pt")[rank::2].requires_grad_(rank == 0)
y = dst.functional.drop_block2d(
    x, 0.3, 3, key=Key(1), normalization="batch", shard=(rank, 2), group=dist.group.WORLD
)
if rank == 0:  # backward must not wait for the others
    y.sum().backward()
torch.save((y.detach(), x.grad), f"{folder}/{rank}.pt")
empty = x[: 0 if rank else 2]  # nor a rank with samples for one without
z = dst.functional.drop_block2d(
    empty, 0.3, 3, key=Key(1), normalization="batch", group=dist.group.WORLD
)
assert z.shape == empty.shape
dist.destroy_process_group()
"""


def test_a_group_normalizes_over_its_batch(tmp_path, same_bits):
    x = torch.randn(5, 2, 8, 9, requires_grad=True)
    torch.save(x.detach(), tmp_path / "x.pt")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(120) for process in ranks] == [0, 0]
    y = ours.drop_block2d(x, 0.3, 3, key=Key(1), normalization="batch")
    y.sum().backward()
    for rank in range(2):
        output, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert same_bits(output, y[rank::2].contiguous())
        assert gradient is None or same_bits(gradient, x.grad[rank::2].contiguous())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("sizes", "block"), [((28, 28), 7), ((9,), 4), ((6, 5, 4), (2, 3, 4))])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_the_fraction_dropped(sizes, block, p, exact):
    """Maps are independent: their mean is within 4.5 standard errors, or one seed in 10^5 fails."""
    rank = len(sizes)
    maps = torch.ones(3000, 1, *sizes)
    output = FUNCTIONS[rank](maps, p, block, exact=exact, key=Key(77), normalization="expectation")
    dropped = (output == 0).double().flatten(1).mean(1)
    gamma = gamma_of(p, sizes, block, exact)
    want = p if exact else 1 - kept_fraction(gamma, coverage(sizes, edges_of(block, rank)))
    assert abs(float(dropped.mean()) - want) < 4.5 * float(dropped.std()) / len(maps) ** 0.5
    assert exact or want <= p
    assert abs(float(output.double().mean()) - 1) < 0.05 / (1 - p)


@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
@pytest.mark.parametrize("shape", [(2, 2, 7), (2, 2, 3, 4), (1, 2, 3, 3, 2)])
def test_gradcheck(shape, normalization, key):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def f(x):
        function = FUNCTIONS[x.dim() - 2]
        return function(x, 0.4, 2, key=key, normalization=normalization) ** 3

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, x)


def test_backward_keeps_the_key_alone():
    sizes = []
    x = torch.randn(3, 8, 64, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tensor.nbytes) or tensor, lambda tensor: tensor
    ):
        ours.drop_block2d(x, 0.1, 7)
    assert sum(sizes) == 8 + 16  # a seed, a threshold and a scale


@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
def test_routes_and_devices_agree(normalization, key, forced, monkeypatch, same_bits):
    x = torch.randn(3, 2, 8, 9).requires_grad_()
    v = torch.randn(x.shape)
    results = []
    for with_kernel in (True, False):
        monkeypatch.setattr(launch, "has_kernel", lambda _, with_kernel=with_kernel: with_kernel)
        output = ours.drop_block2d(x, 0.3, 3, key=key, normalization=normalization)
        results.append((output, torch.autograd.grad(output, x, v)[0]))
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1], results[1][1])
    assert same_bits(results[0][0], expected(x.detach(), 0.3, 3, key, normalization=normalization))


def test_complex_maps(key):
    x = torch.randn(3, 2, 8, 9, dtype=torch.complex64)
    output = ours.drop_block2d(x, 0.3, 3, key=key)
    assert torch.equal(output.real, ours.drop_block2d(x.real, 0.3, 3, key=key))
    assert torch.equal(output.imag, ours.drop_block2d(x.imag, 0.3, 3, key=key))


def test_in_place(key, same_bits):
    for x in (torch.randn(3, 2, 8, 9), torch.randn(2, 8, 9)):
        twin = x.clone()
        assert ours.drop_block2d(twin, 0.3, 3, inplace=True, key=key) is twin
        assert same_bits(twin, ours.drop_block2d(x, 0.3, 3, key=key))
    leaf = torch.randn(3, 2, 8, 9, requires_grad=True)
    output = ours.drop_block2d(leaf * 1, 0.3, 3, inplace=True, key=key)
    output.sum().backward()
    assert same_bits(leaf.grad, ours.drop_block2d(torch.ones(3, 2, 8, 9), 0.3, 3, key=key))


# ---- rates -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("normalization", ["sample", "expectation"])
@pytest.mark.parametrize("p", [0.0, 1e-4, 0.1, 0.9, 1.0])
def test_a_rate_may_be_a_tensor(p, normalization, exact, key, same_bits):
    x = torch.randn(3, 2, 8, 9)
    options = {"key": key, "exact": exact, "normalization": normalization}
    output = ours.drop_block2d(x, torch.tensor(p, dtype=torch.float64), 3, **options)
    want = ours.drop_block2d(x, p, 3, **options)
    assert torch.equal(output == 0, want == 0)
    torch.testing.assert_close(output, want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
def test_a_ramp_compiles_once(exact, normalization):
    model = nn.Sequential(dst.DropBlock2d(0.3, 3, exact=exact, normalization=normalization))
    dst.set_key(model, 3)
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.ones(8, 4, 9, 9)
    fractions = []
    counts = set()
    for step in range(12):
        dst.set_rate(model, Linear(0, 0.6, steps=11), step)
        output = call(x)
        assert torch.equal(output, model(x))
        counts.add(counter.frame_count)
        fractions.append(float((output == 0).double().mean()))
    # Dynamo begins any graph twice that has a 0-d float64 argument on a CPU, at the first call.
    assert counts == {2}
    assert fractions[0] == 0
    assert fractions[-1] > 0.3
    assert fractions == sorted(fractions)  # under one key a larger rate drops more, never less


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rate_of_low_precision_is_widened_first(dtype, key, same_bits):
    x, p = torch.randn(8, 16, 28, 28), torch.tensor(0.1, dtype=dtype)
    assert same_bits(
        ours.drop_block2d(x, p, 7, key=key), ours.drop_block2d(x, float(p), 7, key=key)
    )


@pytest.mark.parametrize("exact", [False, True])
def test_a_bad_tensor_rate_shows_where_it_can_t_be_read(exact, key, monkeypatch):
    monkeypatch.setattr(launch, "has_kernel", lambda _: False)
    monkeypatch.setattr(launch, "number", lambda threshold: max(int(threshold), 0))
    for normalization in ("sample", "batch", "expectation"):
        options = {"key": key, "exact": exact, "normalization": normalization}
        assert (
            ours.drop_block2d(torch.ones(1, 1, 4, 4), torch.tensor(1.5), 2, **options).isnan().all()
        )


def test_a_tensor_rate_outside_is_refused():
    with pytest.raises(InvalidValueError, match="`p` must be in"):
        ours.drop_block2d(torch.ones(1, 1, 4, 4), torch.tensor(1.5), 2)


# ---- when nothing is drawn -------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [{"training": False}, {"p": 0}, {"p": 0.0}, {"training": False, "block_size": 9}]
)
def test_the_identity(arguments):
    x = torch.randn(2, 2, 8, 8)
    before = torch.get_rng_state()
    assert ours.drop_block2d(x, **{"p": 0.1} | arguments) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds():
    layer, x = dst.DropBlock2d(0.1, 3), torch.randn(2, 2, 8, 8)
    assert seeds_drawn(lambda: layer.train()(x)) == 1
    assert seeds_drawn(lambda: layer.eval()(x)) == 0
    layer.train().p = 1.0
    assert seeds_drawn(lambda: layer(x)) == 1  # gamma is less
    assert seeds_drawn(lambda: ours.drop_block2d(x, 1.0, 8)) == 0
    dst.set_key(layer, 0)
    assert seeds_drawn(lambda: layer(x)) == 0


@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
@pytest.mark.parametrize("shape", [(0, 2, 8, 8), (2, 0, 8, 8), (2, 2, 0, 8), (0, 8, 8)])
def test_empty_input(shape, normalization, key):
    x = torch.ones(shape)
    assert ours.drop_block2d(x, 0.1, 3, key=key, normalization=normalization).shape == shape
    if 8 in shape[-2:-1]:
        with pytest.raises(InvalidValueError, match="`block_size` must be between"):
            ours.drop_block2d(x, 0.1, 9, key=key, normalization=normalization)


# ---- the layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_layers_call_their_functions(rank, same_bits):
    x = torch.randn(3, 2, *[6] * rank)
    options = {"shared": True, "exact": True, "normalization": "expectation"}
    net = nn.Sequential(nn.Identity(), LAYERS[rank](0.3, 2, **options))
    assert dst.set_key(net, 7, 4) == 1
    want = FUNCTIONS[rank](x, 0.3, 2, key=Key(7, step=4).at("1"), **options)
    assert same_bits(net(x), want)
    assert net.eval()(x) is x


def test_the_default_is_the_paper_s(key, same_bits):
    x = torch.randn(2, 2, 14, 14)
    layer = dst.DropBlock2d()
    dst.set_key(layer, 3)
    assert repr(layer) == "DropBlock2d(p=0.1, block_size=7, inplace=False)"
    assert same_bits(layer(x), ours.drop_block2d(x, 0.1, 7, key=Key(3)))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.randn(2, 2, 8, 8)
    layer = dst.DropBlock2d(0.3, (2, 3), shared=True, exact=True, normalization="batch")
    assert repr(layer) == (
        "DropBlock2d(p=0.3, block_size=(2, 3), inplace=False, shared=True, exact=True, "
        "normalization='batch')"
    )
    dst.set_key(layer, 3)
    assert list(layer.state_dict()) == []
    twin = copied(layer)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
@pytest.mark.parametrize("exact", [False, True])
def test_compiled(keyed, normalization, exact):
    layer = dst.DropBlock2d(0.3, 3, normalization=normalization, exact=exact)
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.ones(3, 2, 16, 16, requires_grad=True)
    output = call(x)
    output.sum().backward()
    assert (output == 0).any()
    assert torch.equal(x.grad, output.detach())
    if keyed:
        assert torch.equal(output, layer(x))
    layer.eval()
    assert torch.equal(call(x), x)


def test_compiled_for_any_batch():
    layer = dst.DropBlock2d(0.3, 3)
    dst.set_key(layer, 1)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((3, 2, 16, 16), (4, 3, 9, 12)):
        x = torch.randn(shape)
        assert torch.equal(call(x), layer(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("by_sample", [False, True])
def test_the_op_keeps_torch_s_rules(memory_format, by_sample, words):
    x = torch.randn(2, 3, 4, 5).to(memory_format=memory_format).requires_grad_()
    scale, threshold = torch.tensor(1.25, dtype=torch.float64), torch.tensor(2**30)
    block = words, threshold, (2, 3), False, (0, 1)
    torch.library.opcheck(torch.ops.dropseed.drop_block, (x, scale, *block, by_sample))
    shape = words, threshold, x.shape, (2, 3), False, (0, 1)
    torch.library.opcheck(torch.ops.dropseed.drop_block_kept, shape)


def test_traced_blocks_follow_the_key(words):
    x = torch.randn(3, 2, 8, 9)

    def f(x, k):
        return ours.drop_block2d(x, 0.3, 3, key=k)

    assert torch.equal(make_fx(f)(x, words)(x, KEYS[0]), f(x, KEYS[0]))
    assert f(x.to("meta"), words).is_meta


@pytest.mark.parametrize("normalization", ["sample", "batch", "expectation"])
def test_vmap(normalization, words, same_bits):
    batch = torch.randn(4, 3, 2, 8, 9)

    def f(x, k=words):
        return ours.drop_block2d(x, 0.3, 3, key=k, normalization=normalization)

    assert same_bits(vmap(f)(batch), torch.stack([f(x) for x in batch]))
    want = torch.stack([f(x, k) for x, k in zip(batch, KEYS, strict=True)])
    assert same_bits(vmap(f)(batch, KEYS), want)
    different = vmap(lambda x: ours.drop_block2d(x, 0.3, 3), randomness="different")(
        torch.ones(4, 9, 1, 8, 9)
    )
    assert len({row.numpy().tobytes() for row in different}) == 4


def test_vmap_over_rates(words, same_bits):
    x, rates = torch.randn(3, 2, 8, 9), torch.tensor([0.0, 0.1, 0.5, 0.9], dtype=torch.float64)

    def f(p):
        return ours.drop_block2d(x, p, 3, key=words, exact=True)

    assert same_bits(vmap(f)(rates), torch.stack([f(p) for p in rates]))


@pytest.mark.parametrize("shared", [False, True])
def test_transforms_keep_the_strides(shared, words):
    x = torch.randn(3, 2, 8, 9).to(memory_format=torch.channels_last)

    def f(x):
        return ours.drop_block2d(x, 0.3, 3, key=words, shared=shared)

    assert jvp(f, (x,), (x,))[0].stride() == f(x).stride() == x.stride()


def test_a_compiled_shard_may_move(key):
    x = torch.randn(3, 2, 8, 9)

    def f(x, start):
        return ours.drop_block2d(x, 0.3, 3, key=key, shard=(start, 2))

    call = torch.compile(f, backend="aot_eager", fullgraph=True)
    for start in (0, 3, 5):
        assert torch.equal(call(x, start), f(x, start))


def test_views_with_a_sign(key, same_bits):
    x = torch.randn(3, 2, 8, 9, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    assert same_bits(
        ours.drop_block2d(x, 0.3, 3, key=key), ours.drop_block2d(x + 0, 0.3, 3, key=key)
    )


def test_functorch_s_derivatives(words, same_bits):
    x, tangent = torch.randn(2, 3, 2, 8, 9)

    def f(x):
        return ours.drop_block2d(x, 0.3, 3, key=words)

    value, derivative = jvp(f, (x,), (tangent,))
    assert same_bits(value, f(x))
    assert same_bits(derivative, f(tangent))
    assert same_bits(grad(lambda x: (f(x) * tangent).sum())(x), f(tangent))


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(2, 2, 4, 4).byte()}, InvalidTypeError, "`input` must.*uint8"),
        ({"input": [1.0]}, InvalidTypeError, "`input` must.*list"),
        ({"input": torch.ones(4, 4)}, InvalidValueError, r"\(N, C, H, W\) or.*\(4, 4\)"),
        ({"input": torch.ones(1, 1, 1, 4, 4)}, InvalidValueError, "`input` must be"),
        ({"input": torch.ones(2, 2, 4, 4).to_sparse()}, InvalidTypeError, "dense"),
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": "half"}, InvalidTypeError, "`p` must be.*'half'"),
        ({"p": torch.ones(2)}, InvalidTypeError, "0-d"),
        ({"block_size": 5}, InvalidValueError, r"between 1 and the map \(4, 4\).*got 5"),
        ({"block_size": (2, 5)}, InvalidValueError, r"between 1 and the map \(4, 4\)"),
        ({"block_size": 0}, InvalidValueError, "between 1 and the map"),
        (
            {"block_size": (1, 2, 3)},
            InvalidValueError,
            r"one for each dimension of the map \(4, 4\)",
        ),
        ({"block_size": 2.5}, InvalidTypeError, "`block_size` must be an integer.*2.5"),
        ({"normalization": "batchwise"}, InvalidValueError, "`normalization` must.*batchwise"),
        ({"shard": 3}, InvalidValueError, r"`shard` must be \(start, stride\)"),
        ({"shard": (-1, 1)}, InvalidValueError, r"`shard\[0\]` must be"),
        ({"shard": (0, 0)}, InvalidValueError, r"`shard\[1\]` must be"),
        ({"shard": (2**60, 1)}, InvalidValueError, r"leads to a draw beyond 2\*\*63"),
        ({"shard": (0, 2**62)}, InvalidValueError, r"leads to a draw beyond 2\*\*63"),
        ({"group": "world"}, InvalidTypeError, "`group` must be a process group.*'world'"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        ours.drop_block2d(**{"input": torch.ones(2, 2, 4, 4), "block_size": 2} | arguments)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"p": 2}, InvalidValueError),
        ({"block_size": 0}, InvalidValueError),
        ({"block_size": "7"}, InvalidTypeError),
        ({"block_size": (1, 2, 3)}, InvalidValueError),
        ({"normalization": "none"}, InvalidValueError),
    ],
)
def test_bad_layers(arguments, error):
    with pytest.raises(error):
        dst.DropBlock2d(**arguments)
