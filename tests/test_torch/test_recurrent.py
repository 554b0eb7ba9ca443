"""Masks of a cell's state, against loops that draw them with the reference."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed import Key, Rate, keep
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.recurrent import RecurrentDropout, Zoneout, recurrent_dropout, zoneout
from generators import seeds_drawn

T, N, D, H = 5, 3, 4, 6
CELLS = {"rnn": nn.RNNCell, "lstm": nn.LSTMCell, "gru": nn.GRUCell}
LAYERS = {"dropout": RecurrentDropout, "zoneout": Zoneout}


@pytest.fixture(params=CELLS)
def cell(request):
    return CELLS[request.param](D, H).double()


def sequence(*batch):
    return torch.randn(T, *batch, D, dtype=torch.float64)


def first_state(cell, *batch):
    h, c = torch.randn(2, *batch, H, dtype=torch.float64)
    return (h, c) if isinstance(cell, nn.LSTMCell) else h


def mask(key, p, *shape):
    return torch.tensor(keep(key, p, shape))


def leaves(*values):
    """The tensors of nested tuples, but no None."""
    flat = []
    for value in values:
        if isinstance(value, torch.Tensor):
            flat.append(value)
        elif value is not None:
            flat += leaves(*value)
    return flat


def agree(results, others, tolerance=1e-12):
    pairs = zip(leaves(results), leaves(others), strict=True)
    return all(torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in pairs)


def gradients(results, inputs):
    total = sum(
        (leaf * torch.arange(leaf.numel()).reshape(leaf.shape)).sum() for leaf in leaves(results)
    )
    return torch.autograd.grad(total, inputs, allow_unused=True)


def plain(cell, x, state=None):
    outputs = []
    for one in x:
        state = cell(one, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state


def saved(call):
    """How many numbers a call keeps for backward."""
    sizes = []

    def pack(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes)


# ---- fixed masks -----------------------------------------------------------------------------


def dropped(cell, x, state, p, input_p, key, scaling="inverted"):
    """Equation 7, with masks that are stored and multiplied."""
    factors = [Rate(rate).factors(scaling).training for rate in (p, input_p)]
    z_h = mask(key, p, *x.shape[1:-1], H).double() * factors[0]
    z_x = mask(key.fold(1), input_p, *x.shape[1:]).double() * factors[1]
    outputs = []
    for one in x:
        if isinstance(state, tuple):
            state = state[0] * z_h, state[1]
        elif state is not None:
            state = state * z_h
        state = cell(one * z_x, state)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state


@pytest.mark.parametrize(("batch", "started"), [((N,), True), ((N,), False), ((), True)])
@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.5), (0.5, 0.3), (1.0, 1.0)])
def test_recurrent_dropout_is_the_paper_s(cell, batch, started, rates, key):
    x = sequence(*batch).requires_grad_()
    state = first_state(cell, *batch) if started else None
    inputs = [x, *leaves(state), *cell.parameters()]
    for tensor in leaves(state):
        tensor.requires_grad_()
    p, input_p = rates
    for scaling in ("inverted", "original"):
        ours = recurrent_dropout(x, cell, p, state=state, input_p=input_p, key=key, scaling=scaling)
        theirs = dropped(cell, x, state, p, input_p, key, scaling)
        assert agree(ours, theirs)
        assert agree(gradients(ours, inputs), gradients(theirs, inputs))


@pytest.mark.parametrize("name", LAYERS)
def test_batch_first_only_turns_the_axes(name, cell, key):
    x, state = sequence(N), first_state(cell, N)
    layers = [LAYERS[name](cell, 0.3, batch_first=first) for first in (False, True)]
    if name == "dropout":
        layers[0].input_p = layers[1].input_p = 0.4
    for layer in layers:
        dst.set_key(layer, 3)
    outputs, last = layers[0](x, state)
    turned, same = layers[1](x.transpose(0, 1), state)
    assert torch.equal(turned, outputs.transpose(0, 1))
    assert all(torch.equal(a, b) for a, b in zip(leaves(last), leaves(same), strict=True))
    one = [layer(x[:, 0], None)[0] for layer in layers]  # without a batch, time comes first
    assert torch.equal(*one)


class Plain(nn.Module):
    """A cell that vmap can take: torch's own have no batching rule."""

    def __init__(self):
        super().__init__()
        self.x, self.h = nn.Linear(D, H), nn.Linear(H, H)

    def forward(self, x, h=None):
        return torch.tanh(self.x(x) + (0 if h is None else self.h(h)))


class Ones(nn.Module):
    """A cell that remembers what it is given, and whose states are ones."""

    def __init__(self, parts):
        super().__init__()
        self.parts, self.seen = parts, []

    def forward(self, x, state=None):
        self.seen.append((x, state))
        states = tuple(x.new_ones(len(x), H) for _ in range(self.parts))
        return states if self.parts > 1 else states[0]


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_one_mask_for_all_time_steps_and_for_h_alone(parts):
    cell = Ones(parts)
    outputs, last = RecurrentDropout(cell, 0.5, input_p=0.25)(torch.ones(T, 40, D))
    assert torch.equal(outputs, torch.ones(T, 40, H))
    assert all(bool((part == 1).all()) for part in leaves(last))
    inputs = torch.stack([x for x, _ in cell.seen])
    assert cell.seen[0][1] is None
    states = [state if parts > 1 else (state,) for _, state in cell.seen[1:]]
    hidden = torch.stack([state[0] for state in states])
    for values, factor in ((inputs, 4 / 3), (hidden, 2.0)):
        assert torch.equal(values, values[:1].expand_as(values))
        assert torch.equal(values[0].unique(), torch.tensor([0.0, factor]))
    assert all(bool((part == 1).all()) for state in states for part in state[1:])
    before = hidden[0]
    cell.seen.clear()
    RecurrentDropout(cell, 0.5)(torch.ones(2, 40, D))
    state = cell.seen[1][1]
    assert not torch.equal(before, state if parts == 1 else state[0])


def test_a_loop_of_one_s_own_with_the_same_key(key):
    cell, x, h = nn.GRUCell(D, H).double(), sequence(N), first_state(None, N)
    outputs, _ = recurrent_dropout(x, cell, 0.3, state=h, key=key)
    for one, output in zip(x, outputs, strict=True):
        h = cell(one, dst.functional.dropout(h, 0.3, key=key))
        assert torch.equal(h, output)


def test_recurrent_dropout_in_inference(cell):
    x, state = sequence(N), first_state(cell, N)
    for scaling in ("inverted", "none"):
        layer = RecurrentDropout(cell, 0.3, input_p=0.5, scaling=scaling).eval()
        for start in (None, state):
            assert agree(layer(x, start), plain(cell, x, start), 0)
    layer = RecurrentDropout(cell, 0.25, input_p=0.5, scaling="original").eval()
    assert agree(layer(x, state)[1], original(cell, x, state))


def original(cell, x, state):
    for one in x:
        h = state[0] if isinstance(state, tuple) else state
        state = cell(one * 0.5, (h * 0.75, state[1]) if isinstance(state, tuple) else h * 0.75)
    return state


# ---- zoneout, one step -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_zoneout_selects(dtype, p, tensor_rate, forced, key, same_bits):
    new, previous, v = torch.randn(3, N, 40, dtype=torch.float64).to(dtype)
    new.requires_grad_()
    previous.requires_grad_()
    rate = torch.tensor(p, dtype=torch.float64) if tensor_rate else p
    output = zoneout(new, previous, rate, key=key)
    kept = mask(key, p, N, 40)
    assert same_bits(output, torch.where(kept, new, previous))
    zeros = torch.zeros_like(v)
    slopes = torch.autograd.grad(output, (new, previous), v, allow_unused=True)
    assert same_bits(slopes[0], torch.where(kept, v, zeros))
    if slopes[1] is None:
        assert p == 0
    else:
        assert same_bits(slopes[1], torch.where(kept, zeros, v))


@pytest.mark.parametrize("shape", [(), (0,), (0, H), (N, H), (2, N, H)])
def test_zoneout_of_any_shape(shape, key):
    new, previous = torch.randn(2, *shape)
    output = zoneout(new, previous, 0.5, key=key)
    assert torch.equal(output, torch.where(mask(key, 0.5, *shape), new, previous))


def test_zoneout_s_op(words):
    new, previous = torch.randn(2, N, H, dtype=torch.float64)
    op = torch.ops.dropseed.zoneout
    pairs = [(new, previous), (new.t(), previous.t()), (new.half(), previous.float())]
    rates = [(0.3, None), (0.0, torch.tensor(0.3)), (0.3, None)]
    for pair, rate in zip(pairs, rates, strict=True):
        torch.library.opcheck(op, (*(x.clone().requires_grad_() for x in pair), words, *rate))


def test_states_of_two_types(forced, words):
    new, previous = torch.randn(N, H).half().requires_grad_(), torch.randn(N, H)
    output = zoneout(new, previous, 0.3, key=words)
    assert torch.equal(output, zoneout(new.float(), previous, 0.3, key=words))
    output.sum().backward()
    assert new.grad.dtype == torch.float16


def test_what_zoneout_leaves_out_may_be_nan(key):
    kept = mask(key, 0.5, 50)
    new = torch.where(kept, 1.0, torch.nan).requires_grad_()
    previous = torch.where(kept, torch.inf, 2.0).requires_grad_()
    output = zoneout(new, previous, 0.5, key=key)
    assert torch.equal(output, torch.where(kept, 1.0, 2.0))
    output.backward(torch.where(kept, torch.inf, 1.0))
    assert torch.equal(new.grad, torch.where(kept, torch.inf, 0.0))
    assert torch.equal(previous.grad, torch.where(kept, 0.0, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_zoneout_s_expectation(dtype, same_bits):
    new, previous = torch.randn(2, N, H).to(dtype)
    for p in (0.0, 0.25, 0.3, 1.0):
        output = zoneout(new, previous, p, training=False)
        assert same_bits(
            output, zoneout(new, previous, torch.tensor(p, dtype=torch.float64), False)
        )
        kept = Rate(p).factors("original").inference
        want = (1 - kept) * previous.double() + kept * new.double()
        assert torch.allclose(output.double(), want, atol=2e-3 if dtype == torch.float16 else 1e-6)
        assert dtype != torch.float64 or torch.equal(output, want)
    assert zoneout(new, previous, 0.0, training=False) is new
    assert zoneout(new, previous, 1.0, training=False) is previous
    total = sum(zoneout(torch.ones(9), torch.zeros(9), 0.3, key=Key(i)) for i in range(4000))
    expected = zoneout(torch.ones(9), torch.zeros(9), 0.3, training=False)
    assert torch.allclose(total / 4000, expected, atol=0.044)  # 6 sigma, nine times: p < 2e-8


def test_zoneout_gradcheck(key):
    new, previous = torch.randn(2, 3, 4, dtype=torch.float64)
    inputs = new.requires_grad_(), previous.requires_grad_()
    for training in (True, False):

        def f(new, previous, training=training):
            return zoneout(new, previous, 0.3, training, key=key) ** 3

        options = {"check_batched_grad": True}
        assert torch.autograd.gradcheck(
            f, inputs, check_forward_ad=True, check_batched_forward_grad=True, **options
        )
        assert torch.autograd.gradgradcheck(f, inputs, check_fwd_over_rev=True, **options)


def test_zoneout_keeps_its_key_alone():
    new = torch.randn(50, 50, requires_grad=True)
    assert saved(lambda: zoneout(new, torch.zeros(50, 50))) == 2
    assert saved(lambda: zoneout(new, torch.zeros(50, 50), torch.tensor(0.5))) == 3
    assert saved(lambda: zoneout(new, torch.zeros(50, 50), 0.5, training=False)) <= 2
    call = torch.compile(lambda new, key: zoneout(new, 0 * new, key=key), backend="aot_eager")
    assert saved(lambda: call(new, KEYS[0])) == 2


def test_a_rate_written_before_backward_changes_nothing(key):
    p = torch.tensor(0.3)
    new = torch.ones(200, requires_grad=True)
    output = zoneout(new, torch.zeros(200), p, key=key)
    p.fill_(0.9)
    output.sum().backward()
    assert torch.equal(new.grad, output)


KEYS = torch.stack([dst.key_tensor(Key(2**64 - 1 - i, i, i)) for i in range(4)])


def test_zoneout_under_vmap(words, same_bits):
    new, previous = torch.randn(2, 4, N, H)

    def f(a, b, k=words):
        return zoneout(a, b, 0.3, key=k)

    pairs = list(zip(new, previous, strict=True))
    assert same_bits(vmap(f)(new, previous), torch.stack([f(*pair) for pair in pairs]))
    want = [f(*pair, k) for pair, k in zip(pairs, KEYS, strict=True)]
    assert same_bits(vmap(f)(new, previous, KEYS), torch.stack(want))
    want = [f(*pairs[0], k) for k in KEYS]
    assert same_bits(vmap(f, (None, None, 0))(*pairs[0], KEYS), torch.stack(want))
    ones = torch.ones(4, 60)
    for randomness, different in (("same", 1), ("different", 4)):
        rows = vmap(lambda a: zoneout(a, 0 * a), randomness=randomness)(ones)
        assert len({row.numpy().tobytes() for row in rows}) == different


def test_zoneout_under_functorch(words):
    new, previous, t = torch.randn(3, N, H)
    kept = zoneout(torch.ones(N, H), torch.zeros(N, H), 0.3, key=words)
    value, tangent = jvp(lambda a: zoneout(a, previous, 0.3, key=words), (new,), (t,))
    assert torch.equal(value, torch.where(kept == 1, new, previous))
    assert torch.equal(tangent, t * kept)
    assert torch.equal(grad(lambda a: zoneout(a, previous, 0.3, key=words).sum())(new), kept)
    leaf = new.clone().requires_grad_()
    output = zoneout(leaf, previous, 0.3, key=words)
    with forward_ad.dual_level():
        (slope,) = torch.autograd.grad(output, leaf, forward_ad.make_dual(previous, t))
        assert torch.equal(forward_ad.unpack_dual(slope).tangent, t * kept)


def test_zoneout_traced_and_compiled(words):
    new, previous = torch.randn(2, N, H)

    def f(new, previous, key):
        output = zoneout(new, previous, 0.3, key=key)
        return output, *torch.autograd.grad(output.square().sum(), (new, previous))

    inputs = new.requires_grad_(), previous.requires_grad_()
    traced = make_fx(f)(*inputs, words)
    for key in (words, *KEYS):  # the key is not baked in
        assert all(
            torch.equal(a, b) for a, b in zip(traced(*inputs, key), f(*inputs, key), strict=True)
        )
    for rate in (0.3, torch.tensor(0.3)):
        call = torch.compile(zoneout, backend="aot_eager", fullgraph=True)
        outputs = [function(*inputs, rate, key=words) for function in (call, zoneout)]
        assert torch.equal(*outputs)
        slopes = [torch.autograd.grad(output.square().sum(), inputs) for output in outputs]
        assert agree(*slopes, 0)


# ---- zoneout, a sequence ---------------------------------------------------------------------


def zoned(cell, x, state, p, cell_p, key):
    """The paper's equations, with masks that are stored."""
    outputs = []
    for t, one in enumerate(x):
        new = cell(one, state)
        d_h = mask(key.fold(t), p, *x.shape[1:-1], H)
        d_c = mask(key.fold(t).fold(1), cell_p, *x.shape[1:-1], H)
        old = state
        if old is None:
            zeros = torch.zeros(*x.shape[1:-1], H, dtype=x.dtype)
            old = (zeros, zeros) if isinstance(new, tuple) else zeros
        if isinstance(new, tuple):
            state = torch.where(d_h, new[0], old[0]), torch.where(d_c, new[1], old[1])
        else:
            state = torch.where(d_h, new, old)
        outputs.append(state[0] if isinstance(state, tuple) else state)
    return torch.stack(outputs), state


@pytest.mark.parametrize(("batch", "started"), [((N,), True), ((N,), False), ((), True)])
@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.5), (0.5, 0.3), (1.0, 1.0)])
def test_zoneout_is_the_paper_s(cell, batch, started, rates):
    x = sequence(*batch).requires_grad_()
    state = first_state(cell, *batch) if started else None
    inputs = [x, *leaves(state), *cell.parameters()]
    for tensor in leaves(state):
        tensor.requires_grad_()
    p, cell_p = rates if isinstance(cell, nn.LSTMCell) else (rates[0], 0.0)
    layer = Zoneout(cell, p, cell_p=cell_p)
    dst.set_key(layer, 2**63 + 5, 9)
    ours = layer(x, state)
    theirs = zoned(cell, x, state, p, cell_p, Key(2**63 + 5, step=9).at(""))
    assert agree(ours, theirs)
    assert agree(gradients(ours, inputs), gradients(theirs, inputs))


def test_zoneout_in_inference(cell):
    x, state = sequence(N), first_state(cell, N)
    lstm = isinstance(cell, nn.LSTMCell)
    layer = Zoneout(cell, 0.25, cell_p=0.5 if lstm else 0.0).eval()
    outputs, last = layer(x, state)
    for one, output in zip(x, outputs, strict=True):
        new = cell(one, state)
        if lstm:
            h = 0.25 * state[0] + 0.75 * new[0]
            state = h, 0.5 * state[1] + 0.5 * new[1]
        else:
            state = h = 0.25 * state + 0.75 * new
        assert agree(output, h)
    assert agree(last, state)


def test_without_zoneout_the_cell_is_itself(cell):
    x = sequence(N)
    for training in (True, False):
        layer = Zoneout(cell, 0.0).train(training)
        assert agree(layer(x), plain(cell, x), 0)


def test_more_states_than_two_pass_through():
    cell = Ones(3)
    state = tuple(torch.full((N, H), 7.0) for _ in range(3))
    _, (h, c, other) = Zoneout(cell, 0.0, cell_p=1.0)(torch.ones(1, N, D), state)
    assert bool((h == 1).all())
    assert bool((c == 7).all())
    assert bool((other == 1).all())


def test_a_cell_without_c():
    layer = Zoneout(nn.GRUCell(D, H), 0.0, cell_p=0.5)
    with pytest.raises(InvalidValueError, match=r"`cell_p` must be 0 .*0.5"):
        layer(torch.ones(T, N, D))


# ---- both layers -----------------------------------------------------------------------------


def both(**options):
    yield RecurrentDropout(nn.LSTMCell(D, H), 0.5, input_p=0.5, **options)
    yield Zoneout(nn.LSTMCell(D, H), 0.5, cell_p=0.5, **options)


def test_gradcheck():
    x = torch.randn(3, 1, D, dtype=torch.float64, requires_grad=True)
    for layer in both():
        dst.set_key(layer.double(), 0)
        h, c = torch.randn(2, 1, H, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda *a, f=layer: leaves(f(a[0], a[1:])), (x, h, c))


def test_backward_keeps_what_the_cell_keeps():
    x = torch.ones(T, 20, D)
    for layer in both():
        layer.input_p = 0.0  # the cell keeps the input anyway, but ours has a place of its own
        ours = saved(lambda f=layer: f(x))
        for name in ("p", "cell_p"):
            setattr(layer, name, 0.0)
        assert ours <= saved(lambda f=layer: f(x)) + 8 * T


def test_seeds():
    x = torch.ones(T, N, D)
    for layer in both():
        other = "cell_p" if isinstance(layer, Zoneout) else "input_p"
        for rates in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.3, 0.0), (0.0, 0.3), (0.3, 0.3)]:
            layer.p, value = rates
            setattr(layer, other, value)
            count = seeds_drawn(lambda f=layer: f.train()(x))
            assert count == (0.3 in rates)
            assert seeds_drawn(lambda f=layer: f.eval()(x)) == 0
        dst.set_key(layer.train(), 0)
        assert seeds_drawn(lambda f=layer: f(x)) == 0
    new = torch.ones(N)
    for p in (0.0, 0.5, 1.0):
        assert seeds_drawn(lambda p=p: zoneout(new, new, p)) == (p == 0.5)
        assert seeds_drawn(lambda p=p: zoneout(new, new, p, training=False)) == 0
        assert seeds_drawn(lambda p=p: zoneout(new, new, p, key=Key(0))) == 0


def test_masks_are_fresh_without_a_key_and_replayed_with_one():
    x = torch.ones(T, 20, D)
    for layer in both():
        first = layer(x)[0]
        assert not torch.equal(first, layer(x)[0])
        net = nn.ModuleDict({"layer": layer})
        dst.set_key(net, 1, 2)
        assert torch.equal(layer(x)[0], layer(x)[0])
        keyed = layer(x)[0]
        dst.set_key(net, 1, 3)
        assert not torch.equal(keyed, layer(x)[0])
        torch.manual_seed(9)
        dst.set_key(net, None)
        drawn = layer(x)[0]
        torch.manual_seed(9)
        assert torch.equal(drawn, layer(x)[0])


def test_rates_that_are_tensors():
    x = torch.randn(T, N, D)
    for layer in both():
        other = "cell_p" if isinstance(layer, Zoneout) else "input_p"
        dst.set_key(layer, 4)
        for training in (True, False):
            layer.train(training)
            for rates in ((0.3, 0.0), (0.5, 1.0)):
                results = []
                for make in (float, lambda p: torch.tensor(p, dtype=torch.float64)):
                    layer.p, value = map(make, rates)
                    setattr(layer, other, value)
                    results.append(layer(x))
                assert agree(*results, 0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_takes_a_tensor_for_a_rate(name):
    rate = torch.tensor(0.3)
    layer = LAYERS[name](nn.GRUCell(D, H), rate)
    assert layer.p is rate
    with pytest.raises(InvalidTypeError, match="`p` must be a number or a 0-d"):
        LAYERS[name](nn.GRUCell(D, H), torch.ones(2))


def test_an_empty_batch():
    for layer in both():
        for training in (True, False):
            outputs, (h, c) = layer.train(training)(torch.ones(T, 0, D))
            assert outputs.shape == (T, 0, H)
            assert h.shape == c.shape == (0, H)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_and_state(copied):
    x = torch.ones(T, N, D)
    for layer in both(batch_first=True):
        for key in (None, 3):
            dst.set_key(layer, key)
            names = [f"cell.{name}" for name in nn.LSTMCell(D, H).state_dict()]
            assert list(layer.state_dict()) == names
            twin = copied(layer)
            assert repr(twin) == repr(layer)
            assert agree(twin.eval()(x), layer.eval()(x), 0)
            if key is not None:
                assert agree(twin.train()(x), layer.train()(x), 0)


def test_repr():
    cell = nn.GRUCell(4, 6)
    assert repr(RecurrentDropout(cell, 0.3, scaling="none")) == (
        "RecurrentDropout(\n  p=0.3, input_p=0.0, scaling='none'\n  (cell): GRUCell(4, 6)\n)"
    )
    assert "p=0.3, cell_p=0.0, batch_first=True\n" in repr(Zoneout(cell, 0.3, batch_first=True))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_checkpointing_replays_the_masks(name, use_reentrant, keyed):
    layer, head = LAYERS[name](nn.LSTMCell(D, H)), nn.Linear(H, H)
    dst.set_key(layer, 0 if keyed else None)
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        layer.zero_grad()
        head.zero_grad()
        x = torch.ones(T, N, D, requires_grad=True)

        def call(x):
            return head(layer(x)[0])

        y = checkpoint(call, x, use_reentrant=use_reentrant) if checkpointed else call(x)
        y.square().sum().backward()
        parameters = [*layer.parameters(), *head.parameters()]
        results.append([x.grad, *(p.grad.clone() for p in parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_compiled(name):
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    layer = LAYERS[name](nn.LSTMCell(D, H), 0.5)
    setattr(layer, "cell_p" if name == "zoneout" else "input_p", 0.3)
    call = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(2, N, D)
    for step in range(2):
        dst.set_key(layer, 7, step)
        results = []
        for function in (call, layer):
            outputs, state = function(x)
            results.append((outputs, state, gradients((outputs, state), [*layer.parameters()])))
        assert agree(*results, 1e-4)
    assert counter.frame_count == 1
    dst.set_key(layer, None)
    assert not torch.equal(call(x)[0], call(x)[0])
    layer.eval()
    assert agree(call(x), layer(x), 1e-6)


def test_vmap_over_keys_and_examples(words):
    cell, x = Plain(), torch.randn(4, T, N, D)

    def f(x, k=words):
        return recurrent_dropout(x, cell, 0.3, input_p=0.3, key=k)[0]

    assert agree(vmap(f)(x), torch.stack([f(one) for one in x]), 1e-6)
    want = torch.stack([f(one, k) for one, k in zip(x, KEYS, strict=True)])
    assert agree(vmap(f)(x, KEYS), want, 1e-6)
    assert agree(vmap(f, (None, 0))(x[0], KEYS), torch.stack([f(x[0], k) for k in KEYS]), 1e-6)


def test_an_ensemble_of_keyed_layers_runs_as_one():
    layers = [Zoneout(Plain(), 0.5) for _ in range(3)]
    for seed, layer in enumerate(layers):
        dst.set_key(layer, seed)
    parameters, buffers = torch.func.stack_module_state(layers)
    x = torch.ones(T, N, D)
    together = vmap(lambda *state: functional_call(layers[0], state, (x,))[0])(parameters, buffers)
    assert agree(together, torch.stack([layer(x)[0] for layer in layers]), 1e-6)


# ---- bad input -------------------------------------------------------------------------------

X = torch.ones(T, N, D)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (torch.ones(3), InvalidValueError, r"`input` must be \(T, N, D\).*got 1 dim"),
        (torch.ones(2, 2, 2, 2), InvalidValueError, "`input` must be.*got 4 dim"),
        (torch.ones(0, N, D), InvalidValueError, r"`input` must have a time step.*\(0, 3, 4\)"),
        (X.long(), InvalidTypeError, "`input` must be.*int64"),
        (None, InvalidTypeError, "`input` must be.*NoneType"),
        (nn.utils.rnn.pack_sequence([X[:, 0]]), InvalidTypeError, "`input`.*PackedSequence"),
    ],
)
def test_bad_sequences(value, error, match):
    cell = nn.GRUCell(D, H)
    before = torch.get_rng_state()
    for layer in (RecurrentDropout(cell), Zoneout(cell)):
        with pytest.raises(error, match=match):
            layer(value)
    with pytest.raises(InvalidValueError, match=r"\(N, T, D\)"):
        Zoneout(cell, batch_first=True)(torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": torch.ones(2)}, InvalidTypeError, "`p` must be"),
        ({"input_p": -0.5}, InvalidValueError, "`input_p` must be in.*-0.5"),
        ({"input_p": "half"}, InvalidTypeError, "`input_p` must be"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
        ({"scaling": "half"}, InvalidValueError, "`scaling` must be"),
        ({"cell": nn.LSTM(D, H)}, InvalidTypeError, "`cell` must make one step.*LSTM"),
        ({"cell": None}, InvalidTypeError, "`cell` must make one step.*NoneType"),
    ],
)
def test_bad_arguments_of_recurrent_dropout(arguments, error, match):
    call = {"input": X, "cell": nn.GRUCell(D, H)} | arguments
    before = torch.get_rng_state()
    with pytest.raises(error, match=match):
        recurrent_dropout(**call)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"p": 1.5}, InvalidValueError, "`p` must be in.*1.5"),
        ({"p": torch.ones(2)}, InvalidTypeError, "`p` must be"),
        ({"p": torch.tensor(0.5, requires_grad=True)}, InvalidValueError, "`p` must not require"),
        ({"new": X.long()}, InvalidTypeError, "`new` must be.*int64"),
        ({"previous": None}, InvalidTypeError, "`previous` must be.*NoneType"),
        ({"previous": X[0]}, InvalidValueError, r"`previous` must have .*\(5, 3, 4\).*\(3, 4\)"),
        ({"key": 3}, InvalidTypeError, "`key` must be"),
    ],
)
def test_bad_arguments_of_zoneout(arguments, error, match):
    for training in (True, False):
        if "key" in arguments and not training:
            continue
        call = {"new": X, "previous": X, "training": training} | arguments
        before = torch.get_rng_state()
        with pytest.raises(error, match=match):
            zoneout(**call)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LAYERS)
def test_bad_layers(name):
    make, cell = LAYERS[name], nn.GRUCell(D, H)
    other = "cell_p" if name == "zoneout" else "input_p"
    with pytest.raises(InvalidTypeError, match=r"`cell` must make one step.*GRU"):
        make(nn.GRU(D, H))
    with pytest.raises(InvalidTypeError, match=r"`cell` must make one step.*function"):
        make(lambda x, state: state)
    with pytest.raises(InvalidValueError, match=r"`p` must be in .*-0.1"):
        make(cell, -0.1)
    with pytest.raises(InvalidValueError, match=rf"`{other}` must be in .*1.1"):
        make(cell, **{other: 1.1})
    with pytest.raises(InvalidTypeError, match=f"`{other}` must be a real number"):
        make(cell, **{other: None})
    if name == "dropout":
        with pytest.raises(InvalidValueError, match="`scaling`"):
            make(cell, scaling="half")
