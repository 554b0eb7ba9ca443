"""torch.compile: whole graphs, one compilation, the same bits."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, hessian, jvp, vmap
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key
from dropseed.torch import functional as ours

# Torch's inductor calls what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

X = torch.linspace(-2, 3, 30).reshape(6, 5)


@pytest.fixture
def counter():
    return CompileCounterWithBackend("aot_eager")


@pytest.fixture
def compiled(counter):
    return lambda function: torch.compile(function, backend=counter, fullgraph=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["dropout", "dropout2d"])
def test_output_and_gradients(name, dtype, compiled, words, same_bits):
    def f(x):
        return getattr(ours, name)(x, 0.3, key=words)

    x = torch.randn(2, 3, 4, 5).to(dtype).to(memory_format=torch.channels_last)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [f(leaves[0]), compiled(f)(leaves[1])]
    assert outputs[0].stride() == outputs[1].stride()
    for output in outputs:
        output.backward(x)
    assert same_bits(*outputs)
    assert same_bits(*(leaf.grad for leaf in leaves))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("scaling", ["inverted", "original", "none"])
def test_scalings_and_inference(training, scaling, compiled, words, same_bits):
    def f(x):
        return ours.dropout(x, 0.3, training, key=words, scaling=scaling)

    assert same_bits(compiled(f)(X), f(X))


def test_in_place(compiled, words, same_bits):
    def f(x):
        return ours.dropout(x, 0.3, inplace=True, key=words)

    x, y = X.clone(), X.clone()
    assert compiled(f)(x) is x
    assert same_bits(x, f(y))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_drawn_masks_are_fresh_and_fair(backend):
    x = torch.ones(100_000, requires_grad=True)
    call = torch.compile(lambda x: ours.dropout(x, 0.3), backend=backend, fullgraph=True)
    first, second = call(x), call(x)
    for output in (first, second):
        assert abs(float((output == 0).double().mean()) - 0.3) < 0.0073  # 5 sigma
    assert 0.4 < float(((first == 0) == (second == 0)).double().mean()) < 0.65
    second.sum().backward()
    assert torch.equal(x.grad, second)
    torch.manual_seed(8)
    again = call(x)
    torch.manual_seed(8)
    assert torch.equal(call(x), again)


def test_inductor_draws_seeds_from_the_whole_range():
    def draw():
        return torch.randint(-(2**63), 2**63 - 1, (1000,))

    seeds = torch.compile(draw, fullgraph=True)()
    assert len(seeds.unique()) == 1000
    for shift in (63, 62, 33, 32, 31, 1, 0):  # each bit is a fair coin: 5 sigma is 79 of 1000
        assert abs(int((seeds >> shift & 1).sum()) - 500) < 80


def test_inductor_gives_the_same_bits(words, same_bits):
    net = nn.Sequential(nn.Linear(5, 5), dst.Dropout(0.3), nn.ReLU(), dst.Dropout1d(0.5))
    dst.set_key(net, 1, 2)
    call = torch.compile(net, fullgraph=True)
    leaves = [X.clone().requires_grad_() for _ in range(2)]
    outputs = [net(leaves[0]), call(leaves[1])]
    for output in outputs:
        output.sum().backward()
    assert torch.allclose(*outputs)
    assert torch.equal(outputs[0] == 0, outputs[1] == 0)
    assert torch.allclose(*(leaf.grad for leaf in leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_that_changes_as_a_tensor_compiles_once(dtype, compiled, counter, words, same_bits):
    call, counts = compiled(lambda x, p: ours.dropout(x, p, key=words)), []
    for i in range(13):
        x = X.clone().requires_grad_()
        p = torch.tensor(i / 12, dtype=dtype)
        output = call(x, p)
        output.sum().backward()
        assert same_bits(output, ours.dropout(X, float(p), key=words))
        assert same_bits(x.grad, ours.dropout(torch.ones(6, 5), float(p), key=words))
        counts.append(counter.frame_count)
    # Dynamo begins any graph twice that has a 0-d float64 argument on a CPU, at the first call.
    assert set(counts) == {1 if dtype == torch.float32 else 2}


def test_a_layer_whose_rate_is_a_tensor_compiles_once(compiled, counter):
    layer = dst.Dropout()
    call = compiled(layer)
    for i in range(12):
        layer.p = torch.tensor(i / 12)
        dst.set_key(layer, 0, i)
        assert torch.equal(call(X), ours.dropout(X, torch.tensor(i / 12), key=layer.key))
    assert counter.frame_count == 1


def test_a_tensor_rate_out_of_range(compiled):
    call = compiled(ours.dropout)
    call(X, torch.tensor(0.5))
    with pytest.raises(ValueError, match="`p` must be in"):
        call(X, torch.tensor(1.5))


def test_a_number_may_change_too(compiled, words, same_bits):
    call = compiled(lambda x, p: ours.dropout(x, p, key=words))
    for p in (0.1, 0.2, 0.3, 0.7, 0.0, 1.0):
        assert same_bits(call(X, p), ours.dropout(X, p, key=words))


def test_wrong_arguments_raise(compiled):
    with pytest.raises(Exception, match="`p` must be in"):
        compiled(lambda x: ours.dropout(x, 1.5))(X)
    with pytest.raises(Exception, match="`input` must be"):
        compiled(lambda x: ours.dropout(x.long(), 0.5))(X)


def test_keys_as_arguments(compiled, counter, same_bits):
    call = compiled(lambda x, key: ours.dropout(x, 0.3, key=key))
    for seed, step in [(0, 0), (0, 1), (2**63, 2), (2**64 - 1, 2**32 - 1)]:
        key = Key(seed, 2**32 - 1, step)
        want = ours.dropout(X, 0.3, key=key)
        assert same_bits(call(X, key), want)
        assert same_bits(call(X, dst.key_tensor(key)), want)
    counter.frame_count = 0
    for step in range(12):
        call(X, dst.key_tensor(Key(1, 2, step)))
    assert counter.frame_count == 0


def test_one_compilation_for_several_sizes(compiled, counter, words, same_bits):
    call = compiled(lambda x: ours.dropout(ours.dropout1d(x, 0.5, key=words), 0.3, key=words))
    for size in (3, 7, 11, 20):
        x = torch.randn(size, 5, 4, requires_grad=True)
        torch._dynamo.mark_dynamic(x, 0)
        output = call(x)
        want = ours.dropout(ours.dropout1d(x.detach(), 0.5, key=words), 0.3, key=words)
        assert same_bits(output, want)
        output.sum().backward()
        assert torch.equal(x.grad == 0, want == 0)
    assert counter.frame_count == 1


TRANSFORMS = {
    "jvp": lambda f: lambda x: jvp(f, (x,), (x,)),
    "grad": lambda f: grad(lambda x: f(x).pow(2).sum()),
    "vmap": vmap,
    "vmap, in_dims": lambda f: vmap(f, in_dims=1, out_dims=1),
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x).pow(2).sum())),
    "hessian": lambda f: hessian(lambda x: f(x).pow(3).sum()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_functorch_compiled(name, compiled, words):
    transformed = TRANSFORMS[name](lambda x: ours.dropout(x, 0.3, key=words))
    for result, want in zip(compiled(transformed)(X), transformed(X), strict=True):
        assert torch.equal(result, want)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_vmap_randomness_compiled(backend):
    rows = {}
    for randomness in ("same", "different"):
        call = torch.compile(
            lambda x, r=randomness: vmap(ours.dropout, randomness=r)(x),
            backend=backend,
            fullgraph=True,
        )
        rows[randomness] = len({row.numpy().tobytes() for row in call(torch.ones(8, 64))})
    assert rows == {"same": 1, "different": 8}


def test_vmap_over_keys_compiled(compiled):
    keys = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(6)])
    f = vmap(grad(lambda x, k: ours.dropout(x, 0.3, key=k).pow(2).sum()))
    assert torch.equal(compiled(f)(X, keys), f(X, keys))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("keyed", [False, True])
def test_checkpoint_inside_compile(backend, keyed):
    drop, linear = dst.Dropout(0.5), nn.Linear(5, 5)
    if keyed:
        dst.set_key(drop, 0)

    def block(x):
        return linear(drop(x)).relu()

    def call(x):
        return checkpoint(block, x, use_reentrant=False)

    x = torch.ones(60, 5, requires_grad=True)
    output = torch.compile(call, backend=backend, fullgraph=True)(x)
    output.square().sum().backward()
    # Backward's masks are seen in the gradients of the input and, by what the linear layer was
    # given, in those of its weights: both must be the mask that made the output.
    mask = x.grad != 0
    assert 0.3 < float(mask.double().mean()) < 0.7
    weight, given = linear.weight.grad, (mask * 2.0).requires_grad_()
    linear.zero_grad()
    again = linear(given).relu()
    again.square().sum().backward()
    assert torch.allclose(again, output)
    assert torch.allclose(linear.weight.grad, weight)


def test_compiled_autograd(words, same_bits):
    x = X.clone().requires_grad_()
    loss = ours.dropout(x * 1, 0.3, key=words).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")):
        loss.backward()
    assert same_bits(x.grad, ours.dropout(torch.ones(6, 5), 0.3, key=words))
