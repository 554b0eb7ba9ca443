"""Without a key: one draw from torch's generator, so seeding, forking and checkpointing work."""

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

import dropseed.torch as dst
from dropseed import Key
from dropseed.torch import functional as ours

ONES = torch.ones(200)


def state_after(function, seed=3):
    torch.manual_seed(seed)
    function()
    return torch.get_rng_state()


def draw():
    return torch.randint(-(2**63), 2**63 - 1, ())


@pytest.mark.parametrize("p", [1e-12, 0.5, 1 - 1e-12, torch.tensor(0.5)])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_call_that_drops_draws_exactly_one_seed(p, inplace, forced):
    x = torch.ones(2, 3, 4, 5)
    assert not torch.equal(state_after(draw), state_after(lambda: None))
    for function in (ours.dropout, ours.dropout2d):
        after = state_after(lambda f=function: f(x.clone(), p, True, inplace))
        assert torch.equal(after, state_after(draw))


def test_the_seed_is_the_key():
    torch.manual_seed(3)
    seed = int(draw()) % 2**64
    torch.manual_seed(3)
    assert torch.equal(ours.dropout(ONES), ours.dropout(ONES, key=Key(seed)))


CALLS_THAT_DRAW_NOTHING = {
    "p = 0": lambda: ours.dropout(ONES, 0.0),
    "p = 1": lambda: ours.dropout(ONES, 1.0),
    "eval": lambda: ours.dropout(ONES, 0.5, False),
    "eval, original": lambda: ours.dropout(ONES, 0.5, False, scaling="original"),
    "eval, tensor": lambda: ours.dropout(ONES, torch.tensor(0.5), False),
    "key": lambda: ours.dropout(ONES, 0.5, key=Key(0)),
    "key tensor": lambda: ours.dropout(ONES, torch.tensor(0.5), key=torch.tensor([1, 2])),
    "layer in eval": lambda: dst.Dropout().eval()(ONES),
    "meta": lambda: ours.dropout(ONES.to("meta"), 0.5),
}


@pytest.mark.parametrize("call", CALLS_THAT_DRAW_NOTHING.values(), ids=CALLS_THAT_DRAW_NOTHING)
def test_other_calls_move_no_generator(call):
    assert torch.equal(state_after(call), state_after(lambda: None))


def test_backward_moves_no_generator(forced):
    x = torch.ones(5, requires_grad=True)
    output = ours.dropout(x)
    before = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_manual_seed_reproduces(same_bits):
    runs = []
    for _ in range(2):
        torch.manual_seed(11)
        runs.append([ours.dropout(ONES) for _ in range(3)])
    assert same_bits(runs[0][0], runs[1][0])
    assert same_bits(torch.stack(runs[0]), torch.stack(runs[1]))
    assert not torch.equal(runs[0][0], runs[0][1])


def test_fork_rng_leaves_no_trace():
    with torch.random.fork_rng():
        inside = ours.dropout(ONES)
    assert torch.equal(ours.dropout(ONES), inside)


def test_an_explicit_key_makes_a_pure_function(key):
    first = ours.dropout(ONES, key=key)
    for threads in (1, 2):
        torch.manual_seed(threads)
        assert torch.equal(ours.dropout(ONES, key=key), first)
    for other in (Key(key.seed - 1, key.site, key.step), Key(key.seed, 0, key.step), Key(key.seed)):
        assert not torch.equal(ours.dropout(ONES, key=other), first)


# ---- activation checkpointing ----------------------------------------------------------------


def network(inplace=False):
    """Two dropouts, each before a layer that saves its input for backward."""
    torch.manual_seed(0)
    drops = [dst.Dropout(0.5, inplace), dst.Dropout1d(0.3)]
    return nn.Sequential(nn.Linear(6, 6), drops[0], nn.Linear(6, 6), drops[1], nn.Linear(6, 6))


def gradients(run, net):
    torch.manual_seed(5)
    x = torch.arange(48.0).reshape(8, 6).requires_grad_()
    net.zero_grad()
    output = run(net, x * 1)
    output.square().sum().backward()
    after = torch.get_rng_state()
    return [output.detach(), x.grad, *(p.grad.clone() for p in net.parameters()), after]


def selective(policy):
    contexts = functools.partial(create_selective_checkpoint_contexts, lambda *_, **__: policy)
    return lambda net, x: checkpoint(net, x, use_reentrant=False, context_fn=contexts)


CHECKPOINTS = {
    "reentrant": lambda net, x: checkpoint(net, x, use_reentrant=True),
    "non-reentrant": lambda net, x: checkpoint(net, x, use_reentrant=False),
    "nested": lambda net, x: checkpoint(
        lambda y: net[1:](checkpoint(net[:1], y, use_reentrant=False)), x, use_reentrant=False
    ),
    "selective, recompute": selective(CheckpointPolicy.PREFER_RECOMPUTE),
    "selective, save": selective(CheckpointPolicy.MUST_SAVE),
}


# Torch itself refuses to change a tensor in place in a selective checkpoint.
CASES = [(way, flag) for way in CHECKPOINTS for flag in (False, True)]
CASES = [(way, flag) for way, flag in CASES if not (flag and way.startswith("selective"))]


@pytest.mark.parametrize(("way", "inplace"), CASES)
def test_checkpointing_recomputes_the_same_mask(way, inplace):
    net = network(inplace)
    plain = gradients(lambda net, x: net(x), net)
    assert all(
        torch.equal(a, b) for a, b in zip(plain, gradients(CHECKPOINTS[way], net), strict=True)
    )


def test_a_recomputation_with_other_masks_would_be_seen():
    net = network()
    plain = gradients(lambda net, x: net(x), net)

    def without_the_state(net, x):
        return checkpoint(net, x, use_reentrant=False, preserve_rng_state=False)

    other = gradients(without_the_state, net)
    assert torch.equal(plain[0], other[0])
    assert not torch.equal(plain[2], other[2])


def test_threads_draw_apart():
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda _: ours.dropout(ONES), range(32)))
    assert len({output.numpy().tobytes() for output in outputs}) == 32
