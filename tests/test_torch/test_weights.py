"""Dropped weights, against copies of the modules whose weights the NumPy reference dropped."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch._dynamo.testing
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

import dropseed.torch as dst
from dropseed import Key
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch.convert import sites
from dropseed.torch.keyed import set_key
from dropseed.torch.schedule import set_rate
from dropseed.torch.weights import WeightDrop, drop_weights, remove
from generators import seeds_drawn


@pytest.fixture
def drop(expected):
    """A module's weights dropped for good, as a pass of seed 3 and step 4 must drop them."""

    def dense(module, names, rate=0.4):
        for name in names:
            path, _, leaf = name.rpartition(".")
            site = f"{path}.drop_weights.{leaf}" if path else f"drop_weights.{leaf}"
            weight = module.get_parameter(name)
            weight.data = expected(weight, rate, Key(3, step=4).at(site))
        return module

    return dense


def tensors(output):
    """The floating-point tensors of an output, nested or packed."""
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    return [tensor for part in output if part is not None for tensor in tensors(part)]


def layout(module):
    """All that a module and its submodules consist of, without values."""
    return [
        {
            key: list(value) if isinstance(value, dict | set) else value
            for key, value in vars(m).items()
            if not isinstance(value, list)
        }
        for m in module.modules()
    ]


# ---- values and gradients --------------------------------------------------------------------


def attention():
    return nn.MultiheadAttention(8, 2, batch_first=True)


MODULES = {
    "linear": (lambda: nn.Linear(8, 6), ["weight"], [(5, 8)]),
    "linear and bias": (lambda: nn.Linear(8, 6), ["bias", "weight"], [(5, 8)]),
    "half": (lambda: nn.Linear(8, 6).bfloat16(), ["weight"], [(5, 8)]),
    "conv": (lambda: nn.Conv2d(2, 4, 3, groups=2), ["weight", "bias"], [(3, 2, 5, 5)]),
    "transposed": (lambda: nn.ConvTranspose1d(2, 4, 3), ["weight"], [(3, 2, 5)]),
    "bilinear": (lambda: nn.Bilinear(2, 3, 4), ["weight"], [(5, 2), (5, 3)]),
    "norm": (lambda: nn.LayerNorm(8), ["weight"], [(5, 8)]),
    "attention": (attention, ["in_proj_weight", "out_proj.weight"], [(3, 4, 8)] * 3),
    "cell": (lambda: nn.LSTMCell(3, 4), ["weight_hh"], [(5, 3)]),
    "inside": (
        lambda: nn.Sequential(nn.Linear(8, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 2))),
        ["0.bias", "1.1.weight"],
        [(5, 8)],
    ),
}


def check_a_pass(module, twin, names, inputs, same_bits):
    """Outputs and gradients of both in training; backward is that of the weights' dropout."""
    results = []
    for net in (module, twin):
        outputs = tensors(net(*inputs))
        torch.manual_seed(1)
        torch.autograd.backward(outputs, [torch.randn(y.shape).to(y.dtype) for y in outputs])
        results.append(outputs)
    for ours, theirs in zip(*results, strict=True):
        assert same_bits(ours, theirs)
    for (name, ours), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        if name in names:
            factor = (theirs != 0) / (1 - 0.4)
            torch.testing.assert_close(ours.grad, theirs.grad * factor.to(theirs.dtype))
            assert torch.equal(ours.grad == 0, (theirs == 0) | (theirs.grad == 0))
        else:
            assert same_bits(ours.grad, theirs.grad)


@pytest.mark.parametrize(("make", "names", "shapes"), MODULES.values(), ids=MODULES)
def test_equals_a_module_with_dropped_weights(make, names, shapes, drop, same_bits):
    module = make()
    twin = drop(copy.deepcopy(module), names)
    assert drop_weights(module, names, 0.4) is module
    assert set_key(module, 3, 4) == len(names)
    dtype = next(module.parameters()).dtype
    check_a_pass(module, twin, names, [torch.randn(s, dtype=dtype) for s in shapes], same_bits)


RECURRENT = {
    "one": {},
    "bidirectional": {"bidirectional": True},
    "two": {"num_layers": 2, "batch_first": True},
    "all": {"num_layers": 2, "bidirectional": True, "bias": False},
}


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", RECURRENT.values(), ids=RECURRENT)
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(cls, options, packed, drop, same_bits):
    if cls is nn.LSTM and "bidirectional" in options:
        options = options | {"proj_size": 2}
    module = cls(3, 4, **options)
    names = [name for name, _ in module.named_parameters() if "_hh_" in name]
    twin = drop(copy.deepcopy(module), names)
    drop_weights(module, names, 0.4)
    set_key(module, 3, 4)
    x = torch.randn(5, 5, 3)
    if packed:
        x = pack_padded_sequence(x, torch.tensor([5, 4, 4, 2, 1]), module.batch_first)
    check_a_pass(module, twin, names, [x], same_bits)
    check_flat_weights(module)


def check_flat_weights(module):
    """What torch's recurrent layers compute with are their parameters again."""
    assert not module._weights_have_changed()
    for flat, weight in zip(module._flat_weights, module.parameters(), strict=True):
        assert flat is weight


def test_a_recurrent_layer_after_a_step_of_an_optimizer():
    module = drop_weights(nn.LSTM(3, 4), "weight_hh_l0", 0.4)
    x = torch.randn(5, 2, 3)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(x)[0].sum().backward()
    optimizer.step()
    plain = nn.LSTM(3, 4)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(x)[0], plain(x)[0])


def test_gradcheck():
    module = drop_weights(nn.Linear(3, 2).double(), "weight", 0.4)
    set_key(module, 3)
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)

    def f(x, weight, bias):
        return functional_call(module, {"weight": weight, "bias": bias}, (x,)) ** 3

    weights = [p.detach().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(f, (x, *weights), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x, *weights))


@pytest.mark.parametrize("rate", [0, 1.0, torch.tensor(0.4)], ids=str)
def test_rates(rate, drop, same_bits):
    module = nn.Linear(8, 6)
    twin = drop(copy.deepcopy(module), ["weight"], float(rate))
    drop_weights(module, "weight", rate)
    set_key(module, 3, 4)
    x = torch.randn(5, 8)
    assert same_bits(module(x), twin(x))


def test_nan_is_dropped_too():
    module = drop_weights(nn.Linear(8, 6), "weight", 1.0)
    nn.init.constant_(module.weight, torch.nan)
    assert torch.equal(module(torch.ones(1, 8))[0], module.bias)


# ---- passes ----------------------------------------------------------------------------------


def test_each_pass_draws_one_seed_a_weight():
    module = drop_weights(nn.Linear(8, 6), ["weight", "bias"], 0.4)
    x = torch.ones(2, 8)
    assert seeds_drawn(lambda: module(x)) == 2
    assert not torch.equal(module(x), module(x))
    assert torch.equal(*module(x))  # one mask a batch
    set_key(module, 3)
    assert seeds_drawn(lambda: module(x)) == 0
    assert torch.equal(module(x), module(x))


def test_evaluation_changes_and_draws_nothing():
    module, x = nn.Linear(8, 6).eval(), torch.randn(2, 8)
    want = module(x)
    drop_weights(module, "weight", 0.4)
    assert seeds_drawn(lambda: module(x)) == 0
    before, within = layout(module), []
    handle = module.register_forward_pre_hook(lambda *_: within.append(layout(module)))
    assert torch.equal(module(x), want)
    handle.remove()
    assert [list(part) for part in within[0]] == [list(part) for part in before]
    module.train()
    assert not torch.equal(module(x), want)
    module.eval()
    module.drop_weights.weight.train()  # as those do who sample in evaluation
    assert not torch.equal(module(x), want)
    module.train().drop_weights.weight.eval()
    assert torch.equal(module(x), want)


class Twice(nn.Module):
    """Calls a submodule twice, and reads its weight itself."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x), self.inner(x), nn.functional.linear(x, self.inner.weight)


def test_a_pass_is_a_call_of_the_given_module():
    x = torch.ones(2, 4)
    whole = drop_weights(Twice(), "inner.weight", 0.4)
    first, second, third = whole(x)
    assert torch.equal(first, second)
    assert torch.equal(third + whole.inner.bias, first)
    assert not torch.equal(whole(x)[0], first)
    assert sites(whole).keys() == {"inner.drop_weights.weight"}
    part = Twice()
    drop_weights(part.inner, "weight", 0.4)
    first, second, third = part(x)
    assert not torch.equal(first, second)
    assert torch.equal(third, nn.functional.linear(x, part.inner.weight))


class Tree(nn.Module):
    """Calls itself before and after it reads its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))
        self.read = []

    def forward(self, depth):
        self.read.append((depth, self.weight))
        if depth:
            self(depth - 1)
            self.read.append((depth, self.weight))
        return self.weight


def test_a_call_within_a_call_has_a_mask_of_its_own():
    tree = drop_weights(Tree(), "weight", 0.4)
    tree(2)
    depths, read = zip(*tree.read, strict=True)
    assert depths == (2, 1, 0, 1, 2)
    assert read[0] is read[4]
    assert read[1] is read[3]
    assert not any(torch.equal(a, b) for a, b in ((read[0], read[1]), (read[1], read[2])))
    assert type(tree.weight) is nn.Parameter
    assert "_outer_weight" not in vars(tree)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("make", [lambda: nn.Linear(4, 4), lambda: nn.LSTM(4, 4)])
def test_a_pass_that_ends_by_an_error(make, error):
    def stop(*_):
        raise error

    module, x = make(), torch.ones(2, 4)
    name = next(name for name, _ in module.named_parameters())
    want = tensors(module(x))[0]
    drop_weights(module, name, 0.4)
    before = layout(module)
    handle = module.register_forward_pre_hook(stop)
    with pytest.raises(error):
        module(x)
    handle.remove()
    assert (getattr(module, name) is module._parameters[name]) == (error is RuntimeError)
    assert torch.equal(tensors(module.eval()(x))[0], want)
    module.train()
    assert layout(module) == before
    copy.deepcopy(module)
    if isinstance(module, nn.LSTM):
        check_flat_weights(module)


def test_an_interrupted_pass_leaves_nothing_after_remove():
    def stop(*_):
        raise KeyboardInterrupt

    module = nn.Linear(4, 4)
    before = layout(module)
    drop_weights(module, "weight", 0.4)
    handle = module.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        module(torch.ones(2, 4))
    handle.remove()
    remove(module)
    assert layout(module) == before


def test_a_hook_that_raises_before_ours():
    def stop(*_):
        raise RuntimeError("stop")

    module = drop_weights(nn.Linear(4, 4), "weight", 0.4)
    before = layout(module)
    module.register_forward_pre_hook(stop, prepend=True).remove()
    handle = module.register_forward_pre_hook(stop, prepend=True)
    with pytest.raises(RuntimeError, match="stop"):
        module(torch.ones(2, 4))
    handle.remove()
    assert layout(module) == before


def test_a_wrong_rate_tensor_leaves_nothing_behind():
    module = drop_weights(nn.Linear(4, 4), "weight", torch.tensor(0.4))
    before = layout(module)
    module.drop_weights.weight.p.fill_(1.5)
    with pytest.raises(InvalidValueError):
        module(torch.ones(2, 4))
    assert layout(module) == before


def test_a_shared_parameter_is_dropped_where_it_was_named():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    x = torch.ones(2, 4)
    want = net[1](x)
    drop_weights(net[0], "weight", 1.0)
    assert torch.equal(net[0](x), net[0].bias.expand(2, 4))
    assert torch.equal(net[1](x), want)
    net(x).sum().backward()
    assert net[0].weight.grad is net[1].weight.grad


# ---- the module stays what it is -------------------------------------------------------------


def test_parameters_and_state_stay():
    module = nn.LSTM(3, 4)
    state, parameters = module.state_dict(), dict(module.named_parameters())
    drop_weights(module, ["weight_hh_l0"], 0.4)
    module(torch.ones(2, 3))
    assert list(module.state_dict()) == list(state)
    assert all(parameters[name] is weight for name, weight in module.named_parameters())
    module.load_state_dict(state, strict=True)
    module.load_state_dict({k: v.clone() for k, v in state.items()}, strict=True, assign=True)
    module.double()
    assert module(torch.ones(2, 3).double())[0].dtype == torch.float64
    check_flat_weights(module)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("key", [False, True])
def test_copies(duplicate, key):
    module = drop_weights(attention(), ["in_proj_weight", "out_proj.weight"], 0.4)
    set_key(module, 3 if key else None)
    module(*[torch.randn(2, 3, 8)] * 3)
    twin, x = duplicate(module), torch.randn(2, 3, 8)
    passes = []
    for net in (module, twin):
        torch.manual_seed(1)
        passes.append(net(x, x, x)[0])
    assert torch.equal(*passes)
    set_rate(twin, 1.0)
    assert not twin(x, x, x)[0].any()  # what remains are biases, which are 0
    assert module(x, x, x)[0].any()
    before = layout(module)
    remove(twin)
    assert layout(module) == before
    assert layout(twin) == layout(attention())


def test_a_hook_of_another_process_does_not_displace_ours(monkeypatch):
    data = pickle.dumps(drop_weights(nn.Linear(4, 4), "weight", 1.0))
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    module = pickle.loads(data)
    handles = [module.register_forward_pre_hook(lambda *_: None) for _ in range(100)]
    handles += [module.register_forward_hook(lambda *_: None) for _ in range(100)]
    assert torch.equal(module(torch.ones(1, 4))[0], module.bias)
    assert len({handle.id for handle in handles}) == 200


def test_no_cycle_keeps_a_module_alive():
    module = drop_weights(nn.Linear(4, 4), "weight", 0.4)
    module(torch.ones(1, 4))
    reference = weakref.ref(module)
    gc.collect()  # what walked over the module
    gc.disable()
    try:
        del module
        assert reference() is None
    finally:
        gc.enable()


def test_repr():
    module = drop_weights(nn.Linear(4, 4), "weight", 0.4)
    assert repr(module.drop_weights.weight) == "WeightDrop(p=0.4)"


def test_keys_and_rates_find_each_weight():
    net = nn.ModuleDict({"lstm": nn.LSTM(3, 4, 2), "head": nn.Linear(4, 4)})
    drop_weights(net["lstm"], ["weight_hh_l0", "weight_hh_l1"], 0.4)
    drop_weights(net["head"], "weight", 0.4)
    names = ["lstm.drop_weights.weight_hh_l0", "lstm.drop_weights.weight_hh_l1"]
    assert list(sites(net)) == [*names, "head.drop_weights.weight"]
    assert set_key(net, 3, 4) == 3
    assert set_rate(net, 1.0, sites=names) == 2
    assert [float(m.p) for m in net.modules() if isinstance(m, WeightDrop)] == [1.0, 1.0, 0.4]


def test_a_copy_of_a_layer_alone():
    module = drop_weights(attention(), "out_proj.weight", 0.4)
    inner = copy.deepcopy(module.out_proj)
    x = torch.randn(2, 8)
    assert torch.equal(inner(x), module.out_proj(x))  # a pass is one of the attention


# ---- remove ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "names", "shapes"), MODULES.values(), ids=MODULES)
def test_remove_leaves_nothing(make, names, shapes):
    module = make()
    before = layout(module)
    others = [module.register_forward_hook(lambda *_: None)]
    drop_weights(module, names, 0.4)
    others.append(module.register_forward_pre_hook(lambda *_: None))
    dtype = next(module.parameters()).dtype
    module(*(torch.randn(s, dtype=dtype) for s in shapes))
    assert remove(module) is module
    assert [len(module._forward_hooks), len(module._forward_pre_hooks)] == [1, 1]
    for handle in others:
        handle.remove()
    assert layout(module) == before


def test_remove_by_name():
    module = drop_weights(nn.Linear(8, 6), ["weight", "bias"], 1.0)
    x = torch.randn(2, 8)
    remove(module, "weight")
    assert torch.equal(module(x), x @ module.weight.T)
    remove(module, ("bias", "bias"))
    assert torch.equal(module(x), nn.functional.linear(x, module.weight, module.bias))
    drop_weights(module, "weight", 1.0)
    assert torch.equal(module(x), module.bias.expand(2, 6))


@pytest.mark.parametrize(
    ("names", "error", "match"),
    [
        ("wieght", InvalidValueError, r"`names` must.*'wieght'.*\['weight', 'bias'\]"),
        (["weight", "gone"], InvalidValueError, r"\['gone'\]"),
        ([], InvalidValueError, r"`names` must.*\[\]"),
        (3, InvalidTypeError, "`names` must.*3"),
        ([3], InvalidTypeError, r"`names` must.*\[3\]"),
    ],
)
def test_bad_removals_change_nothing(names, error, match):
    module = drop_weights(nn.Linear(8, 6), ["weight", "bias"], 0.4)
    before = layout(module)
    with pytest.raises(error, match=match):
        remove(module, names)
    assert layout(module) == before


def test_nothing_to_remove():
    with pytest.raises(InvalidValueError, match=r"None.*Linear has \[\]"):
        remove(nn.Linear(4, 4))
    with pytest.raises(InvalidTypeError, match="`module`"):
        remove("weight")


# ---- bad input -------------------------------------------------------------------------------


class Odd(nn.Module):
    """Has what can't be dropped."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.steps = nn.Parameter(torch.ones(4, dtype=torch.int64), requires_grad=False)
        self.register_buffer("mean", torch.ones(4))
        self.register_parameter("none", None)
        self.child = nn.Linear(4, 4)
        self.again = self.child
        self.lazy = nn.LazyLinear(4)
        self.list = nn.Sequential(nn.ReLU())
        self.list.scale = nn.Parameter(torch.ones(4))
        self.dropped = drop_weights(nn.Linear(4, 4), "weight", 0.4)
        self.taken = nn.Linear(4, 4)
        self.taken.drop_weights = 3
        self.normed = parametrizations.weight_norm(nn.Linear(4, 4))
        self.sparse = nn.Embedding(4, 4, sparse=True)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("wieght", r"'wieght' is no parameter: Odd has \['weight', 'steps', .*\]"),
        ("", "'' is no parameter"),
        ("child", "no parameter"),
        (".weight", "no parameter"),
        ("gone.weight", "no parameter"),
        ("weight.child", "no parameter"),
        ("mean", "no parameter"),
        ("none", "no parameter"),
        ("steps", "'steps' is torch.int64, not floating-point"),
        ("lazy.weight", "initialized yet"),
        ("list.scale", "belongs to a Sequential"),
        ("dropped.weight", "dropped already: call `remove`"),
        ("taken.weight", "another `drop_weights`"),
        ("normed.weight", "parametrized already"),
        ("sparse.weight", "has sparse gradients"),
        ("normed.parametrizations.weight.original0", "belongs to a ParametrizationList"),
        (["child.weight", "child.weight"], "'child.weight' is named twice"),
        (["child.weight", "again.weight"], "'again.weight' is named twice"),
    ],
)
def test_names_that_can_t_be_dropped(names, reason):
    module = Odd()
    before = layout(module)
    listed = ["weight", names] if isinstance(names, str) else ["weight", *names]
    for given in (names, listed):
        with pytest.raises(InvalidValueError, match=f"`names` must .*{reason}"):
            drop_weights(module, given, 0.4)
    assert layout(module) == before


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"module": nn.Linear}, InvalidTypeError, "`module` must be.*type"),
        ({"names": ()}, InvalidValueError, r"`names` must name a parameter at least; got \(\)"),
        ({"names": None}, InvalidTypeError, "`names` must.*None"),
        ({"names": b"weight"}, InvalidTypeError, "`names` must"),
        ({"names": ["bias", 3]}, InvalidTypeError, "`names` must.*3"),
        ({"rate": 1.5}, InvalidValueError, "`rate` must.*1.5"),
        ({"rate": "0.5"}, InvalidTypeError, "`rate` must.*'0.5'"),
        ({"rate": torch.ones(2)}, InvalidTypeError, "`rate` must"),
        ({"rate": torch.tensor(0.5, requires_grad=True)}, InvalidValueError, "`rate` must"),
    ],
)
def test_bad_arguments(arguments, error, match):
    module = nn.Linear(4, 4)
    before = layout(module)
    with pytest.raises(error, match=match):
        drop_weights(**{"module": module, "names": "weight", "rate": 0.5} | arguments)
    assert layout(module) == before


def test_a_projection_that_is_read_without_a_call():
    module = attention()
    with pytest.raises(InvalidValueError, match=r'attention instead.*"out_proj\.weight"'):
        drop_weights(module.out_proj, "weight", 0.4)


def test_remove_leaves_to_revert_what_convert_has_put():
    model = nn.Sequential(nn.Dropout(0.4), nn.Linear(4, 4))
    dst.convert(model, kind="dropconnect")
    before = layout(model)
    with pytest.raises(InvalidValueError, match=r"`convert`.*revert\(model\)"):
        remove(model[1])
    assert layout(model) == before


def test_twice():
    module = drop_weights(nn.Linear(4, 4), "weight", 0.4)
    before = layout(module)
    for outer, names in ((module, ["bias", "weight"]), (nn.Sequential(module), "0.weight")):
        with pytest.raises(InvalidValueError, match=r"weight' is dropped already: call `remove`"):
            drop_weights(outer, names, 0.4)
    assert layout(module) == before
    drop_weights(module, "bias", 0.2)


def test_script_modules_are_refused():
    with pytest.warns(DeprecationWarning, match="jit.script"):
        module = torch.jit.script(nn.Linear(4, 4))
    with pytest.raises(InvalidValueError, match="'weight' was compiled by TorchScript"):
        drop_weights(module, "weight", 0.4)


# ---- beside other changes of weights ---------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_old_weight_normalisation_reads_what_is_dropped():
    module = torch.nn.utils.weight_norm(nn.Linear(8, 6))
    drop_weights(module, "weight_g", 1.0)
    x = torch.randn(2, 8)
    assert torch.equal(module(x), module.bias.expand(2, 6))
    assert not torch.equal(module.eval()(x), module.bias.expand(2, 6))


def test_a_weight_beside_a_parametrized_one():
    module = dst.max_norm(nn.Linear(8, 6), 0.1)
    drop_weights(module, "bias", 1.0)
    x = torch.randn(2, 8)
    assert torch.equal(module(x), x @ module.weight.T)


def test_a_weight_that_is_no_parameter_any_more():
    x = torch.ones(2, 8)
    changes = {
        "parametrized": lambda m: parametrize.register_parametrization(m, "weight", nn.Identity()),
        "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    }
    for change in changes.values():
        module = drop_weights(nn.Linear(8, 6), "weight", 0.4)
        change(module)
        with pytest.raises(
            InvalidValueError, match=r"`weight` can't be dropped any more.*`remove`"
        ):
            module(x)
        remove(module)
        assert not list(dst.sites(module))
        module(x)
    module = drop_weights(attention(), "out_proj.weight", 0.4)
    module.out_proj = type(module.out_proj)(8, 8)
    with pytest.raises(InvalidValueError, match=r"`out_proj\.weight` can't be dropped any more"):
        module(*[torch.ones(1, 2, 8)] * 3)
    remove(module)
    module(*[torch.ones(1, 2, 8)] * 3)


# ---- compiled, checkpointed, transformed -----------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("keyed", [False, True])
def test_compiled(backend, keyed):
    module = drop_weights(nn.Linear(8, 6), ["weight", "bias"], 0.4)
    call = torch.compile(module, backend=backend, fullgraph=True)
    set_key(module, 3 if keyed else None)
    x = torch.ones(2, 8)
    output = call(x)
    assert torch.equal(call(x), output) == keyed
    if keyed:
        assert torch.equal(output, module(x))
    output.sum().backward()
    assert set(module.bias.grad.tolist()) == {0, float(torch.tensor(2) / torch.tensor(0.6))}
    assert type(module.weight) is nn.Parameter
    assert torch.equal(call.eval()(x), module(x))
    remove(module)
    assert torch.equal(call.train()(x), module(x))


class Deep(nn.Module):
    """Calls itself before it reads its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64))

    def forward(self, x, depth):
        return self(x, depth - 1) + 8**depth * x * self.weight if depth else x * self.weight


# Torch calls the hooks of a model's own class outside of what it compiles. It then asks the dropped
# weight for its gradient, and hides the warning, if it doesn't raise.
OUTSIDE = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@OUTSIDE
def test_a_compiled_model_of_a_class_of_its_own():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    module = drop_weights(Twice(), "inner.weight", 0.4)
    call = torch.compile(module, backend=counter, fullgraph=True)
    x = torch.ones(2, 4)
    outputs = [call(x)[0] for _ in range(3)]
    assert len({output.detach().numpy().tobytes() for output in outputs}) == 3
    assert counter.frame_count == 2  # the hook and the model
    for step in range(3):
        set_key(module, 3, step)
        assert torch.equal(call(x)[0], module(x)[0])
    assert counter.frame_count == 3
    call(x)[0].sum().backward()
    assert set((module.inner.weight.grad != 0).flatten().tolist()) == {True, False}
    assert torch.equal(call.eval()(x)[0], module(x)[0])


@OUTSIDE
def test_compiled_calls_within_a_call():
    module = drop_weights(Deep(), "weight", 0.5)
    output = torch.compile(module, backend="aot_eager", fullgraph=True)(torch.ones(64), 2)
    # Its digits to the base 8 tell which of the three calls has kept the element.
    digits = {(int(n) % 8, int(n) // 8 % 8, int(n) // 64) for n in output.tolist()}
    assert digits == {(a, b, c) for a in (0, 2) for b in (0, 2) for c in (0, 2)}
    assert type(module.weight) is nn.Parameter


def test_one_compilation_serves_all_steps():
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    net = nn.Sequential(drop_weights(nn.Linear(8, 6), "weight", 0.4), nn.Tanh())
    call = torch.compile(net, backend=counter, fullgraph=True)
    x = torch.ones(2, 8)
    for step in range(5):
        set_key(net, 3, step)
        set_rate(net, step / 5)
        assert torch.equal(call(x), net(x))
    assert counter.frame_count <= 2  # the very first step's strides, and the rest


def test_a_compiled_model_with_a_recurrent_layer(drop):
    net = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4))
    twin = drop(copy.deepcopy(net), ["1.weight_hh_l0"])
    drop_weights(net[1], "weight_hh_l0", 0.4)
    set_key(net, 3, 4)
    x = torch.randn(5, 2, 3)
    assert torch.equal(torch.compile(net, backend="aot_eager")(x)[0], twin(x)[0])
    check_flat_weights(net[1])


def test_exported():
    module = drop_weights(nn.Linear(8, 6), "weight", 0.4)
    set_key(module, 3)
    x = torch.randn(2, 8)
    exported = torch.export.export(module, (x,)).module()
    assert torch.equal(exported(x), module(x))


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("last", [nn.Identity, nn.Tanh])
def test_checkpointing_replays_the_masks(use_reentrant, keyed, last):
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.GRU(4, 4))
    net.last = last()
    drop_weights(net[0], "weight", 0.4)
    drop_weights(net[2], "weight_hh_l0", 0.4)
    set_key(net, 3 if keyed else None)
    before = layout(net)

    def run(x):
        return net.last(net[2](net[1](net[0](x)))[0])

    x, results = torch.randn(5, 2, 4, requires_grad=True), []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        y = checkpoint(run, x, use_reentrant=use_reentrant) if checkpointed else run(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(p.grad for p in net.parameters())])
        net.zero_grad()
        x.grad = None
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert layout(net) == before
    check_flat_weights(net[2])


def test_a_recomputation_that_stops_early_within_the_pass():
    """It raises inside the module once the last saved tensor is there."""
    module = drop_weights(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), "0.bias", 0.4)
    before = layout(module)
    x = torch.randn(2, 4, requires_grad=True)
    checkpoint(module, x, use_reentrant=False).sum().backward()
    assert layout(module) == before
    assert type(module[0].bias) is nn.Parameter


def test_functional_call_and_grad(drop):
    module = nn.Linear(8, 6)
    twin = drop(copy.deepcopy(module), ["weight"])
    drop_weights(module, "weight", 0.4)
    set_key(module, 3, 4)
    x = torch.randn(5, 8)
    parameters = dict(module.named_parameters())
    assert torch.equal(functional_call(module, parameters, (x,)), twin(x))
    doubled = {name: 2 * weight for name, weight in parameters.items()}
    want = nn.functional.linear(x, 2 * twin.weight, 2 * twin.bias)
    assert torch.equal(functional_call(module, doubled, (x,)), want)

    gradient = grad(lambda p: functional_call(module, p, (x,)).square().sum())(parameters)
    module(x).square().sum().backward()
    torch.testing.assert_close(gradient["weight"], module.weight.grad)
    assert torch.equal(gradient["weight"] == 0, twin.weight == 0)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_over_an_ensemble(randomness):
    nets = [drop_weights(nn.Linear(8, 6), "weight", 0.4) for _ in range(3)]
    for i, net in enumerate(nets):
        set_key(net, i)
    x = torch.randn(5, 8)
    want = torch.stack([net(x) for net in nets])
    parameters, buffers = stack_module_state(nets)
    buffers = {"drop_weights.weight.key": torch.stack([n.drop_weights.weight.key for n in nets])}
    shell = copy.deepcopy(nets[0])

    def call(p, b, x):
        return functional_call(shell, (p, b), (x,))

    output = vmap(call, (0, 0, None))(parameters, buffers, x)
    torch.testing.assert_close(output, want)
    set_key(shell, None)
    ones = torch.ones(3, 6, 8)
    output = vmap(lambda w: functional_call(shell, {"weight": w}, (x,)), randomness=randomness)
    masks = {row.detach().numpy().tobytes() for row in output(ones)}
    assert len(masks) == (1 if randomness == "same" else 3)


def test_autocast(drop):
    module = nn.Linear(8, 6)
    twin = drop(copy.deepcopy(module), ["weight"])
    drop_weights(module, "weight", 0.4)
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            set_key(module, 3, 4)
            assert torch.equal(module(x), twin(x))
            set_key(module, 3, 5)  # no cast is kept for another mask
            assert not torch.equal(module(x), twin(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode, drop):
    module = nn.LSTM(3, 4)
    twin = drop(copy.deepcopy(module), ["weight_hh_l0"])
    drop_weights(module, "weight_hh_l0", 0.4)
    set_key(module, 3, 4)
    x = torch.randn(5, 2, 3)
    with mode():
        assert torch.equal(module(x)[0], twin(x)[0])
    module(x)[0].sum().backward()
    assert module.weight_hh_l0.grad.any()


def test_a_data_parallel_replica(drop):
    """Its weights are attributes, and its hooks are those of the module."""
    module = nn.Linear(8, 6)
    twin = drop(copy.deepcopy(module), ["weight"])
    drop_weights(module, "weight", 0.4)
    set_key(module, 3, 4)
    replica = module._replicate_for_data_parallel()
    replica.weight, replica.bias = module.weight * 1, module.bias * 1
    x = torch.randn(5, 8)
    for _ in range(2):
        assert torch.equal(replica(x), twin(x))
    assert torch.equal(replica.weight, module.weight)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_inside_a_wrapper(wrap, drop):
    module = nn.Linear(8, 6)
    twin = drop(copy.deepcopy(module), ["weight"])
    net = wrap(module)
    assert drop_weights(net, "weight", 0.4) is net
    assert sites(net) == sites(module)
    set_key(net, 3, 4)
    x = torch.randn(5, 8)
    assert torch.equal(net(x), twin(x))
    assert torch.equal(net.eval()(x), module(x))
    assert remove(net) is net
    assert sites(net) == {}
