"""Keys as tensors, and a key of its own for each layer."""

import zlib

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint import checkpoint_wrapper as wrapper
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.keyed import KeyedLayer


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.drop = dst.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.linear(x))


def model():
    return nn.Sequential(Block(), nn.ReLU(), nn.Sequential(Block(), dst.Dropout1d(0.1)))


NAMES = ["0.drop", "2.0.drop", "2.1"]


def sites(model):
    """The site of each layer, in order."""
    layers = [m for m in model.modules() if isinstance(m, KeyedLayer)]
    return [int(layer.key[1]) & 0xFFFFFFFF for layer in layers]


def expected_sites(names):
    return [zlib.crc32(name.encode()) for name in names]


@pytest.mark.parametrize("step", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("seed", [0, 7, 2**63, 2**64 - 1])
def test_masks_are_those_of_the_names(seed, step):
    net = model()
    assert dst.set_key(net, seed, step) == 3
    for name in NAMES:
        layer = net.get_submodule(name)
        mask = keep(Key(seed, zlib.crc32(name.encode()), step), layer.p, (6, 4))
        output = dst.functional.dropout(torch.ones(6, 4), layer.p, key=layer.key)
        assert ((output != 0).numpy() == mask).all()
    x = torch.ones(6, 4)
    assert torch.equal(
        net[0].drop(x) != 0, torch.tensor(keep(Key(seed, step=step).at(NAMES[0]), 0.5, (6, 4)))
    )


class Wrapped(nn.Module):
    """The form of DistributedDataParallel: everything in a child called `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


WRAPPERS = {
    "bare": lambda m: m,
    "compile": lambda m: torch.compile(m, backend="eager"),
    "DataParallel": nn.DataParallel,
    "DDP's form": Wrapped,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "checkpoint": wrapper.checkpoint_wrapper,
    "all": lambda m: Wrapped(torch.compile(wrapper.checkpoint_wrapper(m), backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_leave_no_prefix(wrap):
    whole, inner = WRAPPERS[wrap](model()), model()
    assert dst.set_key(whole, 0) == 3
    assert sites(whole) == expected_sites(NAMES)
    for name, child in list(inner.named_children()):
        setattr(inner, name, WRAPPERS[wrap](child))
    dst.set_key(inner, 0)
    assert sites(inner) == expected_sites(NAMES)


def test_a_child_that_is_called_module_beside_others_keeps_its_name():
    net = nn.ModuleDict({"module": dst.Dropout(), "other": nn.ReLU()})
    dst.set_key(net, 0)
    assert sites(net) == expected_sites(["module"])


def test_a_shared_layer_is_one_site():
    drop = dst.Dropout()
    net = nn.ModuleDict({"a": nn.Sequential(drop), "b": nn.Sequential(drop), "c": dst.Dropout()})
    assert dst.set_key(net, 0) == 2
    assert sites(net) == expected_sites(["a.0", "c"])


def test_names_that_collide_change_nothing():
    assert zlib.crc32(b"plumless") == zlib.crc32(b"buckeroo")
    net = nn.ModuleDict({"first": dst.Dropout(), "plumless": dst.Dropout()})
    dst.set_key(net, 1)
    before = [layer.key for layer in net.values()]
    net["buckeroo"] = dst.Dropout()
    with pytest.raises(InvalidValueError, match="'plumless' and 'buckeroo'"):
        dst.set_key(net, 2)
    assert [layer.key for layer in net.values()] == [*before, None]
    assert dst.set_key(net, None) == 3
    assert [layer.key for layer in net.values()] == [None] * 3


@pytest.mark.parametrize(
    ("seed", "step", "error"),
    [
        (-1, 0, InvalidValueError),
        (2**64, 0, InvalidValueError),
        (0, 2**32, InvalidValueError),
        (0, -1, InvalidValueError),
        (0.5, 0, InvalidTypeError),
        (True, 0, InvalidTypeError),
        (torch.zeros(2, dtype=torch.int64), 0, InvalidTypeError),
    ],
)
@pytest.mark.parametrize("make", [model, nn.Sequential])
def test_wrong_numbers_change_nothing(seed, step, error, make):
    net = make()
    with pytest.raises(error):
        dst.set_key(net, seed, step)
    assert list(net.buffers()) == []


def test_none_takes_the_keys_away():
    net = model()
    dst.set_key(net, 0)
    assert len(list(net.buffers())) == 3
    assert dst.set_key(net, None) == 3
    assert list(net.buffers()) == []
    x = torch.ones(50)
    assert not torch.equal(net[0].drop(x), net[0].drop(x))


def test_keys_are_not_saved():
    net = model()
    dst.set_key(net, 0)
    assert not any("key" in name for name in net.state_dict())
    net.load_state_dict(model().state_dict(), strict=True)


def test_keys_move_no_generator():
    net = model()
    before = torch.get_rng_state()
    dst.set_key(net, 0)
    net(torch.ones(3, 4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("compiled", [False, True])
def test_backward_uses_the_key_of_its_own_forward(compiled):
    layer = dst.Dropout(0.5)
    call = torch.compile(layer, backend="aot_eager", fullgraph=True) if compiled else layer
    xs = [torch.ones(64, requires_grad=True) for _ in range(4)]
    outputs = []
    for step, x in enumerate(xs):
        dst.set_key(layer, 0, step)
        outputs.append(call(x))
    dst.set_key(layer, None)
    for x, output in zip(xs, outputs, strict=True):
        output.sum().backward()
        assert torch.equal(x.grad, output)
    assert not torch.equal(xs[0].grad, xs[1].grad)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_keeps_the_key(use_reentrant):
    gradients = []
    net = nn.Sequential(nn.Linear(4, 4), dst.Dropout(0.5), nn.Linear(4, 4))
    dst.set_key(net, 3, 4)
    for checkpointed in (False, True):
        x = torch.ones(8, 4, requires_grad=True)
        net.zero_grad()
        y = checkpoint(net, x, use_reentrant=use_reentrant) if checkpointed else net(x)
        y.square().sum().backward()
        gradients.append([x.grad, *(p.grad.clone() for p in net.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_one_compilation_for_all_steps():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    net = model()
    call = torch.compile(net, backend=counter, fullgraph=True)
    x, seen = torch.ones(6, 4), set()
    for step in range(12):
        dst.set_key(call, 5, step)
        output = call(x)
        output.sum().backward()
        assert torch.equal(output, net(x))
        seen.add(output.detach().numpy().tobytes())
    assert len(seen) == 12
    assert counter.frame_count == 1


def test_from_no_key_to_a_key_is_one_more_compilation():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = dst.Dropout(0.5)
    call, x = torch.compile(layer, backend=counter, fullgraph=True), torch.ones(64)
    counts = []
    for seed in (None, None, 0, 1, None, 2):
        dst.set_key(layer, seed)
        output = call(x)
        assert seed is None or torch.equal(output, layer(x))
        counts.append(counter.frame_count)
    assert counts == [1, 1, 2, 2, 2, 2]


def test_a_key_set_in_inference_mode_serves_training():
    layer = dst.Dropout()
    with torch.inference_mode():
        dst.set_key(layer, 0)
    x = torch.ones(8, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert torch.equal(output, x.grad)


@pytest.mark.parametrize("keyed", [False, True])
def test_functional_call_takes_a_key(keyed):
    net = model()
    if keyed:
        dst.set_key(net, 1)
    before = dict(net.named_buffers())
    other = Key(9).at("0.drop")
    x = torch.ones(6, 4)
    output = torch.func.functional_call(net[0], {"drop.key": dst.key_tensor(other)}, (x,))
    assert torch.equal(output, dst.functional.dropout(net[0].linear(x), 0.5, key=other))
    assert dict(net.named_buffers()) == before


def test_an_ensemble_of_keyed_models_runs_as_one():
    nets = [model() for _ in range(3)]
    for seed, net in enumerate(nets):
        dst.set_key(net, seed)
    parameters, buffers = torch.func.stack_module_state(nets)
    x = torch.ones(6, 4)

    def call(*state):
        return torch.func.functional_call(nets[0], state, (x,))

    together = torch.vmap(call)(parameters, buffers)
    assert torch.allclose(together, torch.stack([net(x) for net in nets]))
    assert torch.equal(together == 0, torch.stack([net(x) == 0 for net in nets]))


def test_data_parallel_on_one_device():
    net = nn.DataParallel(nn.Sequential(nn.Linear(4, 4), dst.Dropout(0.5)))
    dst.set_key(net, 0)
    x = torch.ones(6, 4)
    assert torch.equal(net(x), net.module(x))
