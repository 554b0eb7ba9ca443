"""The max-norm constraint: a projection, after each step or as a parametrization."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.max_norm import constrain, max_norm, max_norm_

DTYPES = {
    torch.float64: 1e-15,
    torch.float32: 1e-6,
    torch.float16: 2**-10,
    torch.bfloat16: 2**-7,
}


def norms(weight, dim=0):
    others = [axis for axis in range(weight.dim()) if axis != dim % weight.dim()]
    return weight.detach().double().square().sum(others).sqrt()


def dense(weight, c, dim=0):
    """The projection written out, unit by unit, in double precision."""
    units = [
        unit * (c / unit.norm()) if unit.norm() > c else unit
        for unit in weight.detach().double().unbind(dim)
    ]
    return torch.stack(units, dim).to(weight.dtype)


LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), 0),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3), 0),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), 0),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), 0),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), 1),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 3), 1),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 2), 1),
    "bilinear": (lambda: nn.Bilinear(3, 4, 5), 0),
}


@pytest.mark.parametrize(("make", "dim"), LAYERS.values(), ids=LAYERS)
def test_projection(make, dim):
    weight = make().weight
    c = float(norms(weight, dim).median())
    expected = dense(weight, c, dim)
    assert torch.equal(*(max_norm_(weight.clone(), c, d) for d in (dim, dim - weight.dim())))
    assert max_norm_(weight, c, dim) is weight
    torch.testing.assert_close(weight.detach(), expected)
    assert len(norms(weight, dim)) == make().bias.numel()  # a unit has one bias


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [0.49, 1, 3.0])
def test_norms_are_within_the_ball(c, dtype):
    weight = (torch.randn(64, 9) * torch.logspace(-2, 2, 64)[:, None]).to(dtype)
    inside = norms(weight) <= c
    assert 0 < inside.sum() < 64
    projected = max_norm_(weight.clone(), c)
    assert projected.dtype == dtype
    assert (norms(projected) <= c * (1 + DTYPES[dtype])).all()
    torch.testing.assert_close(
        norms(projected)[~inside],
        torch.full_like(norms(weight)[~inside], c),
        rtol=DTYPES[dtype],
        atol=0,
    )
    directions = nn.functional.cosine_similarity(projected.double(), weight.double())
    assert (directions > 1 - 1e-4).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_inside_keep_every_bit(dtype, same_bits):
    tiny = torch.finfo(dtype).tiny
    weight = torch.tensor([[0.0, -0.0, tiny / 2, 1.0], [3.0, 4.0, 0.0, 0.0]], dtype=dtype)
    for c in (5.0, 7.3, 49, 1e30, 1e300):
        assert same_bits(max_norm_(weight.clone(), c), weight)
    small = torch.randn(500, 4).to(dtype)
    for c in norms(small).max().item(), 1e3:
        assert same_bits(max_norm_(small.clone(), c), small)


def test_a_vector_on_the_sphere_stays_whatever_the_radius(same_bits):
    # 49 * (1 / 49) is not 1: a projection by the reciprocal would move these.
    for c in range(1, 200):
        weight = torch.diag(torch.full((3,), float(c), dtype=torch.float64))
        assert same_bits(max_norm_(weight.clone(), c), weight)


def test_zero_vectors_stay_zero_and_have_a_gradient():
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight[1] = 0
    assert not max_norm_(layer.weight, 0.01)[1].any()
    max_norm(layer, 0.01)
    layer(torch.ones(2, 4)).sum().backward()
    original = layer.parametrizations.weight.original
    assert not layer.weight[1].any()
    assert torch.isfinite(original.grad).all()
    assert torch.equal(original.grad[1], torch.full((4,), 2.0))


def test_large_and_small_numbers_do_not_overflow():
    weight = torch.tensor([[3.0, 4.0]])
    for size in (1e30, 1e-30):  # whose squares are infinite or 0 in float32
        for c in (size / 10, size):
            projected = max_norm_(weight * size, c)
            torch.testing.assert_close(projected, weight * (c / 5), rtol=1e-6, atol=0)
        assert torch.equal(max_norm_(weight * size, 6 * size), weight * size)


def test_empty_weights():
    for shape in ((0, 3), (3, 0), (0, 0)):
        assert max_norm_(torch.empty(shape), 1).shape == shape


def test_no_graph_and_no_generator():
    weight = nn.Linear(4, 3).weight
    before = torch.get_rng_state()
    max_norm_(weight, 0.1)
    assert weight.grad_fn is None
    assert weight.requires_grad
    assert torch.equal(torch.get_rng_state(), before)


# ---- as a parametrization --------------------------------------------------------------------


@pytest.mark.parametrize(("make", "dim"), LAYERS.values(), ids=LAYERS)
def test_parametrization_knows_what_a_unit_is(make, dim):
    layer = make()
    free = layer.weight.detach().clone()
    c = float(norms(free, dim).median())
    assert max_norm(layer, c) is layer
    torch.testing.assert_close(layer.weight.detach(), dense(free, c, dim))
    assert torch.equal(layer.parametrizations.weight.original, free)


def test_parametrization_is_undone():
    for leave in (True, False):
        layer = nn.Linear(4, 3)
        free = layer.weight.detach().clone()
        projected = max_norm(layer, 0.1).weight.detach().clone()
        assert not torch.equal(projected, free)
        expected = projected if leave else free
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave)
        assert type(layer) is nn.Linear
        assert layer.state_dict().keys() == nn.Linear(4, 3).state_dict().keys()
        assert torch.equal(layer.weight, expected)


def test_parametrization_may_be_copied_and_loaded():
    layer = max_norm(nn.Linear(4, 3), 0.1)
    other = copy.deepcopy(layer)
    fresh = max_norm(nn.Linear(4, 3), 0.1)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(fresh.weight, layer.weight)


def test_parametrization_takes_assignments():
    layer = max_norm(nn.Linear(4, 3), 1.0)
    layer.weight = torch.eye(3, 4) * 2
    assert torch.equal(layer.weight, torch.eye(3, 4))
    layer.weight = torch.eye(3, 4) / 2
    assert torch.equal(layer.weight, torch.eye(3, 4) / 2)


def test_parametrization_has_the_projections_gradient():
    def projected(weight):
        with parametrize.cached():
            return torch.func.functional_call(
                layer, {"parametrizations.weight.original": weight}, (torch.eye(4).double(),)
            )

    layer = max_norm(nn.Linear(4, 6, bias=False).double(), 0.4)
    weight = torch.randn(6, 4, dtype=torch.float64) * torch.logspace(-2, 1, 6)[:, None].double()
    assert 0 < (norms(weight) < 0.4).sum() < 6
    assert torch.autograd.gradcheck(projected, weight.requires_grad_())


def test_parametrization_compiles():
    layer = max_norm(nn.Linear(4, 3), 0.1)
    x = torch.randn(2, 4)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(call(x), layer(x))


def test_parametrization_of_another_name_and_dimension():
    layer = nn.LSTM(3, 4)
    max_norm(layer, 0.2, name="weight_hh_l0")
    assert (norms(layer.weight_hh_l0) < 0.2001).all()
    columns = max_norm(nn.Linear(4, 3), 0.2, dim=-1)
    assert (norms(columns.weight, 1) < 0.2001).all()
    assert (norms(columns.weight, 0) > 0.2001).any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parametrization_keeps_the_type(dtype):
    layer = max_norm(nn.Linear(4, 3).to(dtype), 0.1)
    assert layer.weight.dtype == dtype
    assert repr(layer.parametrizations.weight[0]) == "_MaxNorm(c=0.1, dim=0)"


# ---- after each step -------------------------------------------------------------------------


def model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3))


def train(net, optimizer, after=lambda: None, steps=4):
    for step in range(steps):
        x = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
        after()
    return [p.detach().clone() for p in net.parameters()]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_constrain_projects_after_each_step(kind):
    runs = []
    for ours in (True, False):
        net = model()
        optimizer = kind(net.parameters(), lr=0.1)
        weights = net[0].weight, net[3].weight

        def project(weights=weights):
            with torch.no_grad():
                for weight in weights:
                    weight.copy_(dense(weight, 0.4))

        if ours:
            constrain(optimizer, 0.4)
        runs.append(train(net, optimizer, (lambda: None) if ours else project))
        assert all((norms(weight) < 0.4001).all() for weight in weights)
        assert (norms(net[2].weight[:, None]) > 0.4001).any()  # 1-d parameters are free
    for ours, plain in zip(*runs, strict=True):
        torch.testing.assert_close(ours, plain)


def test_constrain_can_be_taken_off():
    runs = []
    for constrained in (True, False):
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        if constrained:
            constrain(optimizer, 0.1).remove()
        runs.append(train(net, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_constrain_takes_parameters_and_a_dimension():
    net = nn.Sequential(nn.ConvTranspose1d(3, 4, 2), nn.Flatten(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    constrain(optimizer, 0.1, (p for p in [net[0].weight]), dim=1)
    before = net[2].weight.detach().clone()
    for _ in range(2):
        net(torch.randn(5, 3, 2)).sum().backward()
        optimizer.step()
        assert (norms(net[0].weight, 1) < 0.1001).all()
    assert not torch.equal(net[2].weight, before)
    assert (norms(net[2].weight) > 0.1001).any()


def test_constrain_sees_parameters_that_come_later():
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    constrain(optimizer, 0.1)
    optimizer.add_param_group({"params": second.parameters()})
    optimizer.step()
    assert (norms(first.weight) < 0.1001).all()
    assert (norms(second.weight) < 0.1001).all()


# ---- wrong arguments -------------------------------------------------------------------------

WAYS = {
    "max_norm_": lambda weight, c, dim: max_norm_(weight, c, dim),
    "max_norm": lambda weight, c, dim: max_norm(holder(weight), c, dim=dim),
    "constrain": lambda weight, c, dim: constrain(
        torch.optim.SGD(nn.Linear(2, 2).parameters()), c, [weight], dim
    ),
}


def holder(weight):
    module = nn.Module()
    module.register_buffer("weight", weight)
    return module


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        *(({"c": c}, InvalidValueError, f"`c` must be .* got {c}") for c in (0, -1, 0.0, -2.5)),
        *(({"c": float(c)}, InvalidValueError, f"`c` must be .*{c}") for c in ("inf", "nan")),
        *(({"c": c}, InvalidTypeError, "`c` must be a real") for c in ("3", None, True, 1j)),
        *(({"dim": dim}, InvalidValueError, f"`dim` must be .* got {dim}") for dim in (2, -3)),
        *(({"dim": dim}, InvalidTypeError, "`dim` must be an int") for dim in (0.0, "0", True)),
        ({"weight": torch.ones(3)}, InvalidValueError, r"must have 2 or more .* \(3,\)"),
        ({"weight": torch.ones(())}, InvalidValueError, r"must have 2 or more .* \(\)"),
        ({"weight": torch.ones(2, 2).long()}, InvalidTypeError, "`.*` must be floating-point"),
        ({"weight": torch.ones(2, 2) * 1j}, InvalidTypeError, "`.*` must be floating-point"),
    ],
)
def test_wrong_arguments_change_nothing(way, change, error, words):
    arguments = {"weight": torch.full((2, 2), 9.0), "c": 1.0, "dim": 0} | change
    before = arguments["weight"].clone()
    with pytest.raises(error, match=words):
        way(**arguments)
    assert torch.equal(arguments["weight"], before)


def test_no_weight():
    with pytest.raises(InvalidTypeError, match=r"`weight` must be a torch.Tensor; got list"):
        max_norm_([[1.0]], 1.0)
    for name in ("kernel", "in_features", "", 0, None):
        with pytest.raises(InvalidValueError, match=r"`name` must be .* of Linear; got"):
            max_norm(nn.Linear(2, 2), 1.0, name)


def test_units_of_a_grouped_transposed_convolution():
    layer = nn.ConvTranspose2d(4, 4, 3, groups=2)
    with pytest.raises(InvalidValueError, match=r"`module` must not have several groups.*groups=2"):
        max_norm(layer, 1.0)
    assert not parametrize.is_parametrized(layer)
    max_norm(layer, 1.0, dim=1)


def test_wrong_optimizers_and_parameters():
    net = nn.Linear(4, 3)
    with pytest.raises(InvalidTypeError, match=r"`optimizer` must be .* got Linear"):
        constrain(net, 1.0)
    optimizer = torch.optim.SGD(net.parameters())
    with pytest.raises(InvalidTypeError, match="`parameters` must be an iterable"):
        constrain(optimizer, 1.0, net.weight)
    with pytest.raises(InvalidTypeError, match=r"`parameters` must be a torch.Tensor; got str"):
        constrain(optimizer, 1.0, ["weight"])
    with pytest.raises(InvalidValueError, match="`parameters` must have 2 or more"):
        constrain(optimizer, 1.0, net.parameters())
    assert not optimizer._optimizer_step_post_hooks
