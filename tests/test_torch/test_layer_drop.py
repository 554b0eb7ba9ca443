"""LayerDrop against the NumPy reference, and as the `torch.nn.ModuleList` that it is."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch import key_tensor
from dropseed.torch.layer_drop import LayerDrop
from dropseed.torch.schedule import set_rate

DEPTH = 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


class Model(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.layers = LayerDrop([Block() for _ in range(DEPTH)], p)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def model():
    model = Model()
    dst.set_key(model, 7)
    return model


@pytest.fixture
def x():
    return torch.randn(4, 3, dtype=torch.float64, requires_grad=True)


def kept(seed, step=0, p=0.5):
    """The layers that the NumPy reference keeps at the site of `Model.layers`."""
    return keep(Key(seed, step=step).at("layers"), p, DEPTH).nonzero()[0].tolist()


def yielded(layers):
    return [list(layers._modules.values()).index(layer) for layer in layers]


def test_layer_i_has_draw_i(model):
    for step in range(10):
        dst.set_key(model, 3, step)
        assert yielded(model.layers) == kept(3, step)
    assert len({tuple(kept(3, step)) for step in range(10)}) > 5
    model.layers.p = 0.1
    assert yielded(model.layers) == kept(3, 9, 0.1)


def test_against_a_dense_reference(model, x):
    want = x
    for i in range(DEPTH):
        gate = float(i in kept(7))
        want = gate * model.layers[i](want) + (1 - gate) * want
    inputs = [x, *model.parameters()]
    ours, theirs = (
        torch.autograd.grad((y**2).sum(), inputs, allow_unused=True, materialize_grads=True)
        for y in (model(x), want)
    )
    assert torch.allclose(model(x), want)
    assert all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.autograd.gradcheck(model, x)


def test_evaluation_and_a_rate_of_0_yield_all(model, x):
    everything = list(range(DEPTH))
    assert yielded(model.layers.eval()) == everything
    assert yielded(LayerDrop(model.layers, 0.0)) == everything
    assert yielded(LayerDrop(model.layers, 1.0)) == yielded(LayerDrop()) == []
    assert Model(1.0).train()(x) is x


def test_the_generator_moves_by_one_seed_an_iteration():
    layers = LayerDrop([nn.Identity() for _ in range(DEPTH)], 0.5)
    before = torch.get_rng_state()
    layers.p = 1.0
    assert list(layers) == []
    layers.p = 0.0
    assert len(list(layers)) == DEPTH
    layers.p = 0.5
    assert len(list(layers.eval())) == DEPTH
    assert torch.equal(torch.get_rng_state(), before)
    iter(layers.train())
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    seed = int(torch.randint(-(2**63), 2**63 - 1, ()))
    assert torch.equal(torch.get_rng_state(), after)
    torch.set_rng_state(before)
    assert yielded(layers) == keep(Key(seed % 2**64), 0.5, DEPTH).nonzero()[0].tolist()


def test_a_second_iteration_repeats_only_under_a_key(model):
    assert yielded(model.layers) == yielded(model.layers)
    dst.set_key(model, None)
    assert len({tuple(yielded(model.layers)) for _ in range(10)}) > 1


def test_a_list_of_all_layers():
    blocks = [nn.Linear(2, n) for n in range(1, 6)]
    layers, plain = LayerDrop(blocks, 0.5), nn.ModuleList(blocks)
    before = torch.get_rng_state()
    assert isinstance(layers, nn.ModuleList)
    assert len(layers) == 5
    assert [layers[i] for i in range(-5, 5)] == blocks * 2
    assert list(reversed(layers)) == blocks[::-1]
    assert all(block in layers for block in blocks)
    assert nn.Identity() not in layers
    for part in (layers[1:4], layers[::2], layers + [nn.Identity()]):  # noqa: RUF005
        assert type(part) is nn.ModuleList
    assert list(layers[1:4]) == blocks[1:4]
    assert list(layers + plain) == blocks * 2
    assert repr(layers).count("Linear") == 5
    assert "p=0.5" in repr(layers)
    assert list(layers.state_dict()) == list(plain.state_dict())
    dst.set_key(layers, 3)
    assert list(layers.state_dict()) == list(plain.state_dict())
    layers.load_state_dict(plain.state_dict())
    with pytest.raises(IndexError):
        layers[5]
    assert torch.equal(torch.get_rng_state(), before)


def test_changing_the_list():
    layers = LayerDrop([nn.Identity()], 0.5)
    a, b, c, d = (nn.Linear(1, n) for n in range(1, 5))
    layers.append(a)
    layers.extend([b, c])
    layers.insert(0, d)
    del layers[1]
    layers[1] = b
    assert list(layers.eval()) == [d, b, b, c]
    assert layers.pop(0) is d
    layers += [a]
    assert list(layers.eval()) == [b, b, c, a]
    dst.set_key(layers.train(), 3)
    assert yielded(layers) == keep(Key(3).at(""), 0.5, 4).nonzero()[0].tolist()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_rate_and_key(copied, model, x):
    other = copied(model)
    assert other.layers.p == 0.5
    assert torch.equal(other.layers.key, key_tensor(Key(7).at("layers")))
    assert torch.equal(other(x), model(x))


def test_a_scheduled_rate_is_a_number(model):
    set_rate(model, 0.25)
    assert model.layers.p == 0.25
    assert isinstance(model.layers.p, float)
    assert yielded(model.layers) == kept(7, p=0.25)


def test_bad_rates():
    with pytest.raises(InvalidValueError, match="`p` must be in"):
        LayerDrop([], 1.5)
    with pytest.raises(InvalidTypeError, match="`p` must be"):
        LayerDrop([], "0.5")
    with pytest.raises(InvalidTypeError, match="`p` must be"):
        LayerDrop([], torch.tensor(0.5))


def test_evaluation_compiles_in_one_graph(model, x):
    compiled = torch.compile(model.eval(), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), model(x))


def test_training_compiles_each_layer_once(model, x):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    counts = []
    for step in range(12):  # more than Dynamo's limit of compilations
        dst.set_key(model, 3, step)
        set_rate(model, 0.3 + step / 100)
        assert torch.allclose(compiled(x), model(x))
        counts.append(len(graphs))
    assert counts[-1] == counts[3] <= 2


def test_functorch(model, x):
    xs = torch.stack([x, x + 1]).detach()
    assert torch.allclose(vmap(model)(xs), torch.stack([model(x) for x in xs]))
    (want,) = torch.autograd.grad((model(x) ** 2).sum(), x)
    assert torch.allclose(grad(lambda x: (model(x) ** 2).sum())(x.detach()), want)


def test_checkpointing_recomputes_the_same_layers(model, x):
    dst.set_key(model, None)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(5)
        gradients += torch.autograd.grad((run(x) ** 2).sum(), x)
    assert torch.equal(*gradients)
