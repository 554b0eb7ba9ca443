"""The variants that act on activations, against dense references, by every route."""

import math
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch._dynamo.testing

import dropseed.torch as dst
from dropseed import Key, gaussian, keep
from dropseed.mask.shape import VARIANTS as NOISE_SHAPES
from dropseed.torch import autograd, key_tensor, launch, variants
from dropseed.torch import functional as ours
from dropseed.torch.keyed import KeyedLayer

KEY = Key(99, 3, 4)
WORDS = key_tensor(KEY)
SATURATION = 1.7580993408473766


def mask_of(p, shape, noise_shape):
    """The reference's mask over the noise shape, broadcast."""
    return torch.from_numpy(np.array(keep(KEY, p, noise_shape))).expand(shape)


def bernoulli(x, p, noise_shape, scaling="inverted"):
    factor = {"inverted": 1 / (1 - p) if p < 1 else 0.0}.get(scaling, 1.0)
    return torch.where(mask_of(p, x.shape, noise_shape), x * factor, 0.0)


def alpha(x, p, noise_shape):
    """The formula of the paper: affine after dropping to the saturation."""
    if p == 1:
        return x * 0
    a = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
    b = a * p * SATURATION
    dropped = torch.where(mask_of(p, x.shape, noise_shape), x, torch.tensor(-SATURATION).to(x))
    return a * dropped + b


def gauss(x, p, noise_shape):
    if p == 1:
        return x * 0
    z = torch.from_numpy(gaussian(KEY, tuple(noise_shape))).to(x)
    return x * (1 + math.sqrt(p / (1 - p)) * z)


def close(dtype):
    return {torch.float64: 5e-6, torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 8e-2}[
        dtype
    ]


VARIANTS = {
    "noise_shape": (
        lambda x, p, **k: ours.dropout(x, p, noise_shape=(None, 1, None), **k),
        bernoulli,
        (4, 6, 5),
        (4, 1, 5),
    ),
    "noise_shape of fewer axes": (
        lambda x, p, **k: ours.dropout(x, p, noise_shape=(5,), **k),
        bernoulli,
        (4, 6, 5),
        (1, 1, 5),
    ),
    "spatial1d": (ours.spatial_dropout1d, bernoulli, (3, 4, 7), (3, 4, 1)),
    "spatial2d": (ours.spatial_dropout2d, bernoulli, (3, 4, 5, 2), (3, 4, 1, 1)),
    "spatial3d": (ours.spatial_dropout3d, bernoulli, (3, 4, 2, 3, 2), (3, 4, 1, 1, 1)),
    "spatial1d, last": (
        lambda x, p, **k: ours.spatial_dropout1d(x, p, channels_last=True, **k),
        bernoulli,
        (3, 7, 4),
        (3, 1, 4),
    ),
    "spatial2d, last": (
        lambda x, p, **k: ours.spatial_dropout2d(x, p, channels_last=True, **k),
        bernoulli,
        (3, 5, 2, 4),
        (3, 1, 1, 4),
    ),
    "spatial3d, last": (
        lambda x, p, **k: ours.spatial_dropout3d(x, p, channels_last=True, **k),
        bernoulli,
        (3, 2, 3, 2, 4),
        (3, 1, 1, 1, 4),
    ),
    "locked": (ours.locked_dropout, bernoulli, (3, 6, 5), (3, 1, 5)),
    "locked, time first": (
        lambda x, p, **k: ours.locked_dropout(x, p, batch_first=False, **k),
        bernoulli,
        (6, 3, 5),
        (1, 3, 5),
    ),
    "alpha": (ours.alpha_dropout, alpha, (3, 50), (3, 50)),
    "feature_alpha": (ours.feature_alpha_dropout, alpha, (3, 8, 5), (3, 8, 1)),
    "gaussian": (ours.gaussian_dropout, gauss, (3, 50), (3, 50)),
}
SCALED = [name for name in VARIANTS if "alpha" not in name and name != "gaussian"]


@pytest.fixture(params=VARIANTS)
def variant(request):
    return VARIANTS[request.param]


@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_route_gives_the_reference(variant, p, dtype, forced):
    function, reference, shape, noise_shape = variant
    x = torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    wide = x.detach().double().requires_grad_()
    output, wanted = function(x, p, key=WORDS), reference(wide, p, noise_shape)
    assert output.dtype == dtype
    assert torch.allclose(output.double(), wanted, rtol=close(dtype), atol=close(dtype))
    gradient = torch.randn(shape, dtype=torch.float64)
    (ours_,) = torch.autograd.grad(output, x, gradient.to(dtype))
    (theirs,) = torch.autograd.grad(wanted, wide, gradient)
    assert torch.allclose(ours_.double(), theirs, rtol=close(dtype), atol=close(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tensor_rate", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "step", "expanded"])
def test_routes_agree_bit_for_bit(variant, dtype, tensor_rate, layout, monkeypatch, same_bits):
    function, _, shape, _ = variant
    x = torch.randn(shape).to(dtype)
    if layout == "transposed":
        x = torch.randn(shape[::-1]).to(dtype).permute(tuple(reversed(range(len(shape)))))
    elif layout == "step":
        x = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]
    elif layout == "expanded":
        x = torch.randn(1, *shape[1:]).to(dtype).expand(shape)
    p = torch.tensor(0.3, dtype=torch.float64) if tensor_rate else 0.3
    outputs = []
    for route in (autograd._by_function, autograd._by_op, autograd._by_mask):
        monkeypatch.setattr(autograd, "route", lambda _, route=route: route)
        outputs.append(function(x, p, key=WORDS))
        assert outputs[-1].stride() == outputs[0].stride()
    outputs.append(function(x.clone(), p, key=WORDS, inplace=True))
    assert same_bits(*outputs)
    if function is not ours.gaussian_dropout:  # its eager kernel draws in double precision
        monkeypatch.setattr(launch, "LIKE", {})
        assert same_bits(outputs[0], function(x, p, key=WORDS))


def test_gradcheck(variant):
    function, _, shape, _ = variant
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(x):
        return function(x, 0.4, key=WORDS)

    assert torch.autograd.gradcheck(call, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, x)


def test_inference_and_rate_zero_return_the_input(variant):
    function, _, shape, _ = variant
    x = torch.randn(shape)
    state = torch.get_rng_state()
    assert function(x, 0.4, training=False) is x
    assert function(x, 0.0) is x
    assert torch.equal(function(x, 1.0), torch.zeros(shape))
    assert torch.equal(torch.get_rng_state(), state)
    function(x, 0.4)
    moved = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.randint(-(2**63), 2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), moved)


@pytest.mark.parametrize("name", SCALED)
def test_original_scaling(name):
    function, reference, shape, noise_shape = VARIANTS[name]
    x = torch.randn(shape)
    trained = function(x, 0.4, key=WORDS, scaling="original")
    assert torch.equal(trained, reference(x, 0.4, noise_shape, "original"))
    assert torch.allclose(function(x, 0.4, training=False, scaling="original"), 0.6 * x)


def test_vmap_equals_a_stack(variant):
    function, _, shape, _ = variant
    xs = torch.randn(3, *shape)
    stacked = torch.stack([function(x, 0.4, key=WORDS) for x in xs])
    assert torch.equal(torch.vmap(lambda x: function(x, 0.4, key=WORDS))(xs), stacked)
    keys = torch.stack([key_tensor(KEY.fold(i)) for i in range(3)])
    mapped = torch.vmap(lambda x, k: function(x, 0.4, key=k))(xs, keys)
    wanted = torch.stack([function(x, 0.4, key=k) for x, k in zip(xs, keys, strict=True)])
    assert torch.equal(mapped, wanted)


def test_one_compilation_for_steps_and_rates(variant, same_bits):
    function, _, shape, _ = variant
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter)
    def compiled(x, p, key):
        return function(x, p, key=key)

    x = torch.randn(shape)
    frames = []
    for step in range(4):
        key = key_tensor(Key(1, 2, step))
        p = torch.tensor(0.1 * (step + 1), dtype=torch.float64)
        assert torch.allclose(compiled(x, p, key), function(x, p, key=key), atol=1e-6)
        frames.append(counter.frame_count)
    assert frames[1:] == frames[1:2] * 3


def test_nothing_of_the_input_s_size_is_saved(variant):
    function, _, shape, _ = variant
    saved = []
    x = torch.randn(shape, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.nbytes) or t, lambda t: t
    ):
        function(x, 0.4)
        function(x, 0.4, key=WORDS)
    assert sum(saved) <= 8 + 16


def test_empty_input(variant):
    function, _, shape, _ = variant
    empty = torch.empty(0, *shape[1:], requires_grad=True)
    output = function(empty, 0.4)
    assert output.shape == empty.shape
    output.sum().backward()


def test_integer_input_and_bad_rates(variant):
    function, _, shape, _ = variant
    with pytest.raises(TypeError, match="`input`"):
        function(torch.ones(shape, dtype=torch.int64), 0.4)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="`p`"):
            function(torch.ones(shape), p)
    with pytest.raises(TypeError, match="`p`"):
        function(torch.ones(shape), "0.4")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ours.dropout(x, noise_shape=(3, 1)), "noise_shape"),
        (lambda x: ours.dropout(x, noise_shape=(1, 1, 1)), "noise_shape"),
        (lambda x: ours.dropout(x, noise_shape=(0, 1)), "noise_shape"),
        (ours.spatial_dropout1d, r"\(N, C, L\)"),
        (ours.spatial_dropout2d, r"\(N, C, H, W\)"),
        (lambda x: ours.spatial_dropout3d(x, channels_last=True), r"\(N, D, H, W, C\)"),
        (ours.locked_dropout, r"\(N, T, D\)"),
        (lambda x: ours.locked_dropout(x, batch_first=False), r"\(T, N, D\)"),
        (lambda x: ours.feature_alpha_dropout(x[0]), r"\(N, C, \*\)"),
    ],
)
def test_wrong_shapes_name_what_was_expected(call, words):
    x = torch.ones(4, 5)
    with pytest.raises(ValueError, match=words):
        call(x)
    assert torch.equal(x, torch.ones(4, 5))


@pytest.mark.parametrize("function", [ours.alpha_dropout, ours.feature_alpha_dropout])
@pytest.mark.parametrize("p", [0.05, 0.3])
def test_alpha_keeps_mean_and_variance(function, p):
    x = torch.randn(2000, 200)
    y = function(x, p)
    assert abs(y.mean()) < 0.02
    assert abs(y.var() - 1) < 0.02


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_gaussian_has_dropout_s_moments(p):
    factors = ours.gaussian_dropout(torch.ones(400_000), p)
    deviation = math.sqrt(p / (1 - p))
    assert abs(factors.mean() - 1) < 5 * deviation / math.sqrt(400_000)
    assert abs(factors.std() / deviation - 1) < 0.01


def test_alpha_is_torch_s_formula():
    """On the same mask: torch's `_alpha_dropout_impl`, written out."""
    x, p = torch.randn(100, dtype=torch.float64), 0.3
    mask = torch.from_numpy(np.array(keep(KEY, p, 100))).double()
    a = 1 / math.sqrt((SATURATION**2 * p + 1) * (1 - p))
    b = (mask - 1) * SATURATION * a + SATURATION * a * p
    assert torch.allclose(ours.alpha_dropout(x, p, key=WORDS), x * (mask * a) + b, rtol=1e-9)


# ---- the table -------------------------------------------------------------------------------

PAGE = Path(__file__).parents[2] / "docs" / "variants.md"
BEGIN, END = "<!-- variants: begin -->\n", "<!-- variants: end -->\n"


def table():
    yield "| layer | function | noise shape | law | enters at | source | its mask |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for layer, function, noise_shape, law, enters, source in variants.VARIANTS:
        picture = noise_shape.split(",")[0]
        drawn = (PAGE.parent / "pictures" / f"{picture}.png").exists()
        yield "| {} | {} | {} | {} | {} | {} | {} |".format(
            f"`{layer}`",
            f"`{function}`" if function else "",
            noise_shape,
            law,
            enters,
            source,
            f"![{picture}](pictures/{picture}.png)" if drawn else "",
        )


def test_the_docs_show_the_table_of_the_code():
    printed = "\n".join(table()) + "\n"
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    shown, after = rest.split(END)
    if os.environ.get("DROPSEED_WRITE"):
        PAGE.write_text(before + BEGIN + printed + END + after, encoding="utf-8")
    else:
        assert shown == printed


def test_the_table_is_whole():
    """Every layer that draws has a row; what the rows name exists; a noise shape has a picture."""
    layers = {
        name
        for name in dst.__all__
        if isinstance(getattr(dst, name), type) and issubclass(getattr(dst, name), KeyedLayer)
    }
    same_as_another = {"Dropout1d", "Dropout2d", "Dropout3d", "DropPathResidual"}
    assert {variant.layer for variant in variants.VARIANTS} == layers - same_as_another
    for variant in variants.VARIANTS:
        assert not variant.functional or variant.functional in ours.__all__
        known = variant.noise_shape.split(",")[0]
        drawn = known in NOISE_SHAPES or known == "drop_block"
        assert (PAGE.parent / "pictures" / f"{known}.png").exists() == drawn


LAYERS = {
    dst.Dropout: {"noise_shape": (None, 1, 1, None)},
    dst.SpatialDropout2d: {"channels_last": True},
    dst.LockedDropout: {"batch_first": False},
    dst.AlphaDropout: {},
    dst.FeatureAlphaDropout: {},
    dst.GaussianDropout: {},
}


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_layers_hand_on_what_they_have(layer, tmp_path):
    options = LAYERS[layer]
    module = layer(0.4, **options)
    x = torch.randn((3, 4, 5) if layer is dst.LockedDropout else (3, 4, 5, 6))
    dst.set_key(module, 5, 6)
    name = {
        dst.Dropout: "dropout",
        dst.SpatialDropout2d: "spatial_dropout2d",
        dst.LockedDropout: "locked_dropout",
        dst.AlphaDropout: "alpha_dropout",
        dst.FeatureAlphaDropout: "feature_alpha_dropout",
        dst.GaussianDropout: "gaussian_dropout",
    }[layer]
    wanted = getattr(ours, name)(x, 0.4, key=Key(5, step=6).at(""), **options)
    assert torch.equal(module(x), wanted)
    torch.save(module, tmp_path / "layer.pt")
    assert torch.equal(torch.load(tmp_path / "layer.pt", weights_only=False)(x), wanted)
    assert module.eval()(x) is x
    assert module.state_dict() == {}
    for option, value in options.items():
        assert f"{option}={value}" in repr(module)


def test_fx_traces_the_functions():
    for layer in (dst.Dropout(), dst.SpatialDropout2d(), dst.GaussianDropout()):
        net = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), layer)
        dst.set_key(net, 1)
        x = torch.randn(2, 2, 4, 4)
        assert torch.equal(torch.fx.symbolic_trace(net)(x), net(x))
        assert torch.equal(torch.fx.symbolic_trace(net.eval())(x), net(x))


@pytest.mark.parametrize("layout", ["nested", "jagged", "sparse", "csr"])
def test_what_has_no_dense_shape_is_refused(layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # prototypes, says torch
        x = {
            "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
            "jagged": lambda: torch.nested.nested_tensor(
                [torch.ones(2), torch.ones(3)], layout=torch.jagged
            ),
            "sparse": lambda: torch.eye(3).to_sparse(),
            "csr": lambda: torch.eye(3).to_sparse_csr(),
        }[layout]()
    with pytest.raises(TypeError, match="dense"):
        ours.dropout(x, 0.5)
    assert ours.dropout(x, 0.5, training=False) is x
