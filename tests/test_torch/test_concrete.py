"""Concrete dropout, against the paper's formula of the NumPy reference's uniform draws."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import uniform
from dropseed.torch.concrete import ConcreteDropout, concrete_dropout, concrete_regularization
from generators import seeds_drawn

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])


def dense(x, logit, key, temperature=0.1, spatial=False):
    """Equation 5 as the paper writes it, in double precision."""
    shape = (*x.shape[:2], *[1] * (x.dim() - 2)) if spatial else tuple(x.shape)
    u = torch.from_numpy(np.array(uniform(key, shape)))
    p = torch.sigmoid(logit.double())
    z = torch.sigmoid(
        (torch.log(p) - torch.log(1 - p) + torch.log(u) - torch.log(1 - u)) / temperature
    )
    return x * (1 - z) / (1 - p)


# ---- values and gradients --------------------------------------------------------------------


@pytest.mark.parametrize("logit", [-4.0, -0.3, 0.0, 3.0])
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("spatial", [False, True])
def test_equals_equation_5(logit, temperature, spatial, key):
    x = torch.randn(3, 5, 2, 4, dtype=torch.float64, requires_grad=True)
    logit = torch.tensor(logit, dtype=torch.float64, requires_grad=True)
    output = concrete_dropout(x, logit, key=key, temperature=temperature, spatial=spatial)
    want = dense(x, logit, key, temperature, spatial)
    assert torch.allclose(output, want)
    v = torch.randn_like(x)
    gradients = [torch.autograd.grad(y, (x, logit), v) for y in (output, want)]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [*TYPES, torch.complex64])
@pytest.mark.parametrize("shape", [(), (7,), (0, 3), (3, 0, 2), (4, 6)])
def test_types_and_shapes(dtype, shape, key):
    x = torch.randn(shape).to(dtype).requires_grad_()
    logit = torch.tensor([-1.0], requires_grad=True)
    output = concrete_dropout(x, logit, key=key)
    assert (output.dtype, output.shape) == (x.dtype, x.shape)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    want = dense(x.detach().to(wide), logit, key)
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-5)
    assert torch.allclose(output.detach().to(wide), want.detach(), rtol=tolerance, atol=tolerance)
    output.abs().sum().backward()
    assert (x.grad.dtype, logit.grad.dtype) == (dtype, torch.float32)
    assert logit.grad.shape == (1,)
    assert bool(logit.grad != 0) == (x.numel() > 0)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradcheck(spatial, dtype, key):
    x = torch.randn(1, 2, 2, dtype=dtype, requires_grad=True)
    logit = torch.tensor([-0.4], dtype=torch.float64, requires_grad=True)

    def f(x, logit):
        return concrete_dropout(x, logit, key=key, temperature=0.7, spatial=spatial)

    assert torch.autograd.gradcheck(
        f, (x, logit), check_forward_ad=True, check_batched_grad=not dtype.is_complex
    )
    assert torch.autograd.gradgradcheck(f, (x, logit))


@pytest.mark.parametrize("logit", [-1e30, -1000.0, -60.0, -18.0, 18.0, 25.0, 60.0, 1000.0, 1e30])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_extreme_rates(logit, temperature, dtype, key):
    x = torch.randn(400).to(dtype).requires_grad_()
    logit = torch.tensor(logit, requires_grad=True)
    with torch.no_grad():
        by_mask = vmap(lambda x: concrete_dropout(x, logit, key=key, temperature=temperature))(
            x[None]
        )
    output = concrete_dropout(x, logit, key=key, temperature=temperature)
    slopes = torch.autograd.grad(output.float().square().sum(), (x, logit), create_graph=True)
    second = torch.autograd.grad(sum(slope.float().sum() for slope in slopes), logit)
    for result in (output, by_mask[0], *slopes, *second):
        assert not result.isnan().any()
    if logit < -40:
        assert torch.equal(output, x)
    if logit > 40 and temperature < 1:
        assert not output.any()


def test_the_limit_is_bernoulli():
    x, p = torch.ones(20_000), 0.3
    logit = torch.tensor(p).logit()
    output = concrete_dropout(x, logit, key=Key(1), temperature=1e-6)
    kept = torch.from_numpy(np.array(uniform(Key(1), 20_000))) < 1 - p
    assert torch.allclose(output, kept / (1 - torch.tensor(p)), atol=1e-4)
    assert abs(float(kept.double().mean()) - 0.7) < 0.017  # 5 sigma


def test_backward_keeps_the_input_and_the_key():
    sizes = []
    x, logit = torch.randn(64, 64, requires_grad=True), torch.zeros(1, requires_grad=True)

    def pack(tensor):
        if tensor.data_ptr() != x.data_ptr():
            sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        concrete_dropout(x, logit)
    assert sum(sizes) <= 24


# ---- when nothing is dropped -----------------------------------------------------------------


def test_inference_is_the_identity():
    x, logit = torch.randn(2, 3), torch.zeros(1)
    assert concrete_dropout(x, logit, training=False) is x
    for layer, shape in ((nn.Linear(3, 2), (4, 3)), (nn.Conv1d(3, 2, 1), (4, 3, 5))):
        x = torch.randn(shape)
        assert torch.equal(ConcreteDropout(layer).eval()(x), layer(x))


def test_seeds():
    layer, x = ConcreteDropout(nn.Linear(5, 3)), torch.randn(2, 5)
    assert seeds_drawn(lambda: layer.train()(x)) == 1
    assert seeds_drawn(lambda: layer.eval()(x)) == 0
    dst.set_key(layer.train(), 0)
    assert seeds_drawn(lambda: layer(x)) == 0


# ---- the layer -------------------------------------------------------------------------------

LAYERS = {
    "linear": (nn.Linear(6, 2), [(6,), (3, 6), (2, 3, 6), (0, 6)]),
    "conv1d": (nn.Conv1d(6, 2, 2), [(3, 6, 4), (6, 4)]),
    "conv2d": (nn.Conv2d(6, 4, 1, groups=2), [(3, 6, 2, 2), (6, 2, 2)]),
    "conv3d": (nn.Conv3d(6, 2, 1), [(2, 6, 1, 2, 2), (6, 1, 2, 2)]),
    "transposed": (nn.ConvTranspose1d(6, 2, 2), [(3, 6, 4), (6, 4)]),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_noise_of_each_layer(name):
    inner, shapes = LAYERS[name]
    layer = ConcreteDropout(copy.deepcopy(inner).double(), 0.3, temperature=0.2)
    assert layer.p_logit.dtype == torch.float64
    dst.set_key(layer, 7)
    for shape in shapes:
        x = torch.randn(shape, dtype=torch.float64)
        batched = name == "linear" or x.dim() == inner.weight.dim()
        dropped = dense(
            x if batched else x[None], layer.p_logit, Key(7).at(""), 0.2, name != "linear"
        )
        want = layer.layer(dropped if batched else dropped[0])
        assert torch.allclose(layer(x), want)


@pytest.mark.parametrize("name", LAYERS)
def test_regularization(name):
    inner = copy.deepcopy(LAYERS[name][0]).double()
    layer = ConcreteDropout(inner, 0.3, weight_regularizer=0.2, dropout_regularizer=0.7)
    p = torch.sigmoid(layer.p_logit).squeeze()
    weights = 0.2 * inner.weight.square().sum() / (1 - p)
    want = weights + 0.7 * 6 * (p * p.log() + (1 - p) * (1 - p).log())
    assert torch.allclose(layer.regularization(), want)
    assert layer.regularization().shape == ()
    parameters = (layer.p_logit, inner.weight)
    gradients = [torch.autograd.grad(y, parameters) for y in (layer.regularization(), want)]
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_regularization_gradcheck():
    layer = ConcreteDropout(nn.Linear(3, 2).double(), 0.3, dropout_regularizer=0.5)

    def f(logit, weight):
        parameters = {"p_logit": logit, "layer.weight": weight}
        with torch.nn.utils.stateless._reparametrize_module(layer, parameters):
            return layer.regularization()

    parameters = [p.detach().clone().requires_grad_() for p in (layer.p_logit, layer.layer.weight)]
    assert torch.autograd.gradcheck(f, parameters)
    assert torch.autograd.gradgradcheck(f, parameters)


@pytest.mark.parametrize("logit", [-1e30, -1000.0, -60.0, 30.0, 60.0, 80.0])
def test_regularization_at_extreme_rates(logit):
    layer = ConcreteDropout(nn.Linear(3, 2), weight_regularizer=1e-3)
    nn.init.constant_(layer.p_logit, logit)
    layer.regularization().backward()
    assert layer.regularization().isfinite()
    assert layer.p_logit.grad.isfinite().all()
    assert layer.layer.weight.grad.isfinite().all()
    if logit < 0:
        squares = layer.layer.weight.square().sum()
        assert torch.allclose(layer.regularization(), 1e-3 * squares)


def test_the_model_s_regularization():
    shared = ConcreteDropout(nn.Linear(4, 4))
    model = nn.Sequential(
        shared, nn.ReLU(), shared, nn.ModuleList([ConcreteDropout(nn.Linear(4, 1))])
    )
    want = shared.regularization() + model[3][0].regularization()
    assert torch.equal(concrete_regularization(model), want)
    assert torch.equal(concrete_regularization(torch.compile(model, backend="eager")), want)
    assert concrete_regularization(nn.Linear(2, 2)) == 0
    assert concrete_regularization(shared.double()).dtype == torch.float64
    with pytest.raises(InvalidTypeError, match="`model` must be"):
        concrete_regularization(3)


def test_the_rate_is_learned():
    """Noise hurts a linear fit of many samples: the rate falls; with a strong prior it rises."""
    x = torch.randn(256, 4)
    y = x.sum(1, keepdim=True)
    rates = []
    for strength in (0.0, 10.0):
        torch.manual_seed(1)
        layer = ConcreteDropout(
            nn.Linear(4, 1), 0.2, weight_regularizer=0, dropout_regularizer=strength
        )
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for step in range(60):
            dst.set_key(layer, 3, step)
            optimizer.zero_grad()
            loss = (layer(x) - y).square().mean() + concrete_regularization(layer)
            loss.backward()
            optimizer.step()
        rates.append(float(layer.rate.detach()))
    assert rates[0] < 0.1
    assert rates[1] > 0.3


@pytest.mark.parametrize("p", [0.0, 1e-20, 0.1, 0.5, 1.0])
def test_the_first_rate(p):
    layer = ConcreteDropout(nn.Linear(3, 2), p, dropout_regularizer=1.0)
    assert abs(float(layer.rate.detach()) - p) < 1e-6
    assert layer.p_logit.shape == (1,)
    x = torch.randn(50, 3)
    layer(x).sum().backward()
    layer.regularization().backward()
    assert layer.p_logit.grad.isfinite().all()
    assert layer.p_logit.grad.any()
    if p == 1:
        assert torch.allclose(layer(x), layer.layer.bias.expand(50, 2))
    if p == 0:
        assert torch.allclose(layer(x), layer.layer(x))


def test_types_of_the_logit():
    for dtype, want in zip(
        TYPES, [torch.float32, torch.float64, torch.float32, torch.float32], strict=True
    ):
        layer = ConcreteDropout(nn.Linear(3, 2, dtype=dtype))
        assert layer.p_logit.dtype == want
        x = torch.randn(4, 3).to(dtype)
        layer(x).float().sum().backward()
        (layer.regularization() * 100).backward()
        assert layer.p_logit.grad.any()
    half = ConcreteDropout(nn.Linear(3, 2)).half()
    assert half.p_logit.dtype == torch.float16
    assert half(torch.randn(4, 3).half()).dtype == torch.float16
    assert half.regularization().dtype == torch.float32


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.randn(2, 5)
    layer = ConcreteDropout(nn.Linear(5, 3), 0.3, temperature=0.2)
    assert layer.extra_repr() == (
        "rate=0.3, weight_regularizer=1e-06, dropout_regularizer=1e-05, temperature=0.2"
    )
    assert "rate=?" in repr(copy.deepcopy(layer).to("meta"))
    for key in (None, 3):
        dst.set_key(layer, key)
        assert list(layer.state_dict()) == ["p_logit", "layer.weight", "layer.bias"]
        twin = copied(layer)
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.eval()(x), layer.eval()(x))
        if key is not None:
            assert torch.equal(twin.train()(x), layer.train()(x))


def test_the_key_of_a_site():
    net = nn.Sequential(nn.Linear(5, 5), ConcreteDropout(nn.Linear(5, 3).double()))
    assert dst.set_key(net, 9, 4) == 1
    x = torch.randn(2, 5, dtype=torch.float64)
    want = net[1].layer(dense(x, net[1].p_logit, Key(9, step=4).at("1")))
    assert torch.allclose(net[1](x), want)
    assert torch.equal(net[1](x), net[1](x))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("keyed", [False, True])
def test_checkpointing_replays_the_noise(use_reentrant, keyed):
    net = nn.Sequential(ConcreteDropout(nn.Linear(5, 5)), nn.Linear(5, 5))
    dst.set_key(net, 0 if keyed else None)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        net.zero_grad()
        x = torch.ones(4, 5, requires_grad=True)
        y = checkpoint(net, x, use_reentrant=use_reentrant) if checkpointed else net(x)
        y.square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# ---- compiled, and functorch -----------------------------------------------------------------


@pytest.mark.parametrize("keyed", [False, True])
def test_compiled(keyed):
    layer = ConcreteDropout(nn.Linear(5, 3), 0.4)
    dst.set_key(layer, 1 if keyed else None)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = torch.randn(20, 5)
    results = []
    for function in (call, layer):
        layer.zero_grad()
        output = function(x)
        output.square().sum().backward()
        results.append([output, layer.p_logit.grad, layer.layer.weight.grad])
    assert results[0][1].any()
    if keyed:
        assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(*results, strict=True))
    else:
        assert not torch.equal(results[0][0], results[1][0])
    nn.init.constant_(layer.p_logit, -1.0)  # another rate compiles nothing
    with torch._dynamo.config.patch(error_on_recompile=True):
        call(x).sum().backward()
    layer.eval()
    assert torch.equal(call(x), layer.layer(x))


@pytest.mark.parametrize("spatial", [False, True])
def test_the_op_keeps_torch_s_rules(spatial, words):
    x = torch.randn(2, 3, 4).mT.requires_grad_()
    logit = torch.zeros(1, requires_grad=True)
    torch.library.opcheck(torch.ops.dropseed.concrete, (x, logit, words, 0.1, spatial))


def test_traced_noise_follows_the_key(words):
    x, logit = torch.randn(3, 4), torch.zeros(1)

    def f(x, logit, k):
        return concrete_dropout(x, logit, key=k)

    traced = make_fx(f)(x, logit, words)
    assert torch.equal(traced(x, logit + 1, KEYS[0]), f(x, logit + 1, KEYS[0]))
    assert f(x.to("meta"), logit, words).is_meta


def test_vmap(words):
    batch, logit = torch.randn(4, 5), torch.tensor(-0.5)

    def f(x, k=words, logit=logit):
        return concrete_dropout(x, logit, key=k, temperature=0.5)

    assert torch.equal(vmap(f)(batch), torch.stack([f(x) for x in batch]))
    want = torch.stack([f(x, k) for x, k in zip(batch, KEYS, strict=True)])
    assert torch.equal(vmap(f)(batch, KEYS), want)
    logits = torch.linspace(-2, 2, 4)
    want = torch.stack([f(batch[0], words, one) for one in logits])
    assert torch.allclose(vmap(f, (None, None, 0))(batch[0], words, logits), want)
    different = vmap(lambda _: concrete_dropout(torch.ones(50), logit), randomness="different")
    assert len({row.numpy().tobytes() for row in different(torch.zeros(4))}) == 4


def test_functorch_s_derivatives(words):
    x, logit = torch.randn(3, 5), torch.tensor(-0.5)

    def f(x, logit):
        return concrete_dropout(x, logit, key=words, temperature=0.5).square().sum()

    leaves = [t.clone().requires_grad_() for t in (x, logit)]
    slopes = torch.autograd.grad(f(*leaves), leaves)
    for ours, want in zip(grad(f, (0, 1))(x, logit), slopes, strict=True):
        assert torch.allclose(ours, want, rtol=1e-4)
    _, derivative = jvp(f, (x, logit), (torch.zeros_like(x), torch.ones(())))
    assert torch.allclose(derivative, slopes[1], rtol=1e-4)


# ---- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input": torch.ones(3).long()}, InvalidTypeError, "`input` must.*int64"),
        ({"input": [1.0]}, InvalidTypeError, "`input` must.*list"),
        ({"input": torch.ones(3), "spatial": True}, InvalidValueError, r"`input` must be \(N, C"),
        ({"logit": 0.5}, InvalidTypeError, "`logit` must be.*float"),
        ({"logit": torch.ones(1).long()}, InvalidTypeError, "`logit` must be.*int64"),
        ({"logit": torch.ones(2)}, InvalidValueError, r"`logit` must have one.*\(2,\)"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
        ({"temperature": 0}, InvalidValueError, "`temperature` must be above 0.*0"),
        ({"temperature": 1.5}, InvalidValueError, "`temperature` must be.*1.5"),
        ({"temperature": float("nan")}, InvalidValueError, "`temperature` must be.*nan"),
        ({"temperature": "cold"}, InvalidTypeError, "`temperature` must be.*'cold'"),
    ],
)
def test_bad_input_changes_nothing(arguments, error, match):
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        concrete_dropout(**{"input": torch.ones(2, 5), "logit": torch.zeros(1)} | arguments)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(), (6,), (1, 2, 6, 3, 3)])
def test_wrong_ranks(shape):
    before = torch.get_rng_state()
    with pytest.raises(InvalidValueError, match=r"`input` must be \(N, C, \*\) or"):
        ConcreteDropout(nn.Conv2d(6, 2, 1))(torch.ones(shape))
    with pytest.raises(InvalidTypeError, match="`input` must be a torch"):
        ConcreteDropout(nn.Conv2d(6, 2, 1))(3)
    assert not torch.equal(torch.get_rng_state(), before)  # the layers' weights


@pytest.mark.parametrize(
    "layer",
    [None, nn.ReLU(), nn.Embedding(3, 3), nn.LayerNorm(3), nn.Linear(2, 2, dtype=torch.cfloat)],
)
def test_what_can_not_be_wrapped(layer):
    with pytest.raises(InvalidTypeError, match="`layer` must be a module with a `weight`"):
        ConcreteDropout(layer)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": "half"}, InvalidTypeError, "`p` must be"),
        ({"weight_regularizer": -1}, InvalidValueError, "`weight_regularizer` must be.*-1"),
        ({"dropout_regularizer": float("inf")}, InvalidValueError, "`dropout_regularizer`.*inf"),
        ({"dropout_regularizer": None}, InvalidTypeError, "`dropout_regularizer` must be a real"),
        ({"temperature": 0.0}, InvalidValueError, "`temperature` must be above 0"),
        ({"temperature": True}, InvalidTypeError, "`temperature` must be a real"),
    ],
)
def test_bad_layers(arguments, error, match):
    with pytest.raises(error, match=match):
        ConcreteDropout(nn.Linear(2, 2), **arguments)
