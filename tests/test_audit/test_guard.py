"""The guard: what it reports, what it leaves alone, and that torch is afterwards as before."""

import importlib.util
import os
import subprocess
import sys
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import dropout as imported_before
from torch.optim.swa_utils import update_bn
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed.audit.running.guard import DropoutError, DropoutWarning, allow, guard
from dropseed.audit.running.guard import _judge as judge
from dropseed.audit.running.judge import _Passes
from dropseed.errors import DropseedError, InvalidTypeError, InvalidValueError, MissingExtraError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

WITHOUT_GRADIENTS = [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)]


class Net(nn.Module):
    """A layer between two linear ones."""

    def __init__(self, layer=None):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5) if layer is None else layer
        self.last = nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.drop(self.first(x)))


class By(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Linear(4, 2)
        self.function = function

    def forward(self, x):
        return self.last(self.function(self, self.first(x)))


class DropPath(nn.Module):
    """As other people write it."""

    def __init__(self, p, draw):
        super().__init__()
        self.drop_prob = p
        self.draw = draw

    def forward(self, x):
        if not self.training or self.drop_prob == 0:
            return x
        return x * self.draw(x, 1 - self.drop_prob)


def drop_path_by_bernoulli(x, keep):
    return x.new_empty((x.shape[0], *[1] * (x.dim() - 1))).bernoulli_(keep)


def drop_path_by_rand(x, keep):
    return torch.floor(keep + torch.rand((x.shape[0], *[1] * (x.dim() - 1))))


def drop_path_without_gradients(x, keep):
    with torch.no_grad():
        return drop_path_by_bernoulli(x, keep)


class First(nn.Module):
    """The first output of a module that has several."""

    def __init__(self, module, attend=False):
        super().__init__()
        self.inner = module
        self.attend = attend

    def forward(self, x):
        return self.inner(x, x, x)[0] if self.attend else self.inner(x)[0]


class Packed(First):
    def forward(self, x):
        return self.inner(nn.utils.rnn.pack_sequence([x]))[0].data


def drops_columns(values):
    return values * (torch.rand(values.shape[1]) > 0)


def x(*shape):
    return torch.randn(shape or (3, 4))


def codes(watch):
    return [incident.code for incident in watch.incidents]


def evaluate(model, values=None):
    """What the mistake is made with: no gradients, and nobody calls eval()."""
    with torch.no_grad():
        return model(x() if values is None else values)


def optimiser(model, kind=torch.optim.SGD):
    return kind(model.parameters(), lr=0.1)


def backward(model):
    model(x()).sum().backward()


# ---- DS505: it drops without gradients -------------------------------------------------------

LAYERS = {
    "Dropout": (lambda: nn.Dropout(0.5), (3, 4)),
    "Dropout in place": (lambda: nn.Dropout(0.5, inplace=True), (3, 4)),
    "Dropout1d": (lambda: nn.Dropout1d(0.5), (3, 4, 2)),
    "Dropout2d": (lambda: nn.Dropout2d(0.5), (3, 4, 2, 2)),
    "Dropout3d": (lambda: nn.Dropout3d(0.5), (3, 4, 2, 2, 2)),
    "AlphaDropout": (lambda: nn.AlphaDropout(0.5), (3, 4)),
    "FeatureAlphaDropout": (lambda: nn.FeatureAlphaDropout(0.5), (3, 4, 2)),
    "LSTM": (lambda: First(nn.LSTM(4, 4, 2, dropout=0.5)), (3, 4)),
    "GRU": (lambda: First(nn.GRU(4, 4, 2, dropout=0.5)), (3, 4)),
    "RNN": (lambda: First(nn.RNN(4, 4, 2, dropout=0.5)), (3, 4)),
    "LSTM, packed": (lambda: Packed(nn.LSTM(4, 4, 2, dropout=0.5)), (3, 4)),
    "GRU, packed": (lambda: Packed(nn.GRU(4, 4, 2, dropout=0.5)), (3, 4)),
    "MultiheadAttention": (lambda: First(nn.MultiheadAttention(4, 2, 0.5), True), (3, 4)),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), (3, 4)),
    "DropPath": (lambda: DropPath(0.5, drop_path_by_bernoulli), (3, 4)),
    "DropPath, rounded": (lambda: DropPath(0.5, drop_path_by_rand), (3, 4)),
    "dst.Dropout": (lambda: dst.Dropout(0.5), (3, 4)),
    "dst.AlphaDropout": (lambda: dst.AlphaDropout(0.5), (3, 4)),
    "dst.GaussianDropout": (lambda: dst.GaussianDropout(0.5), (3, 4)),
    "dst.DropPath": (lambda: dst.DropPath(0.5), (3, 4)),
    "dst.DropBlock2d": (lambda: dst.DropBlock2d(0.5, 2), (3, 4, 4, 4)),
    "dst.ConcreteDropout": (lambda: dst.ConcreteDropout(nn.Linear(4, 4)), (3, 4)),
    "dst.DropConnectLinear": (lambda: dst.DropConnectLinear(4, 4, p=0.5), (3, 4)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_seen(layer):
    make, shape = LAYERS[layer]
    model, values = nn.Sequential(make()), x(*shape)
    with guard("record") as watch:
        evaluate(model, values)
    assert codes(watch) == ["DS505"]


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_is_silent_in_evaluation_and_in_training(layer):
    make, shape = LAYERS[layer]
    model, values = nn.Sequential(make()), x(*shape)
    with guard("error"):
        model(values)
        evaluate(model.eval(), values)


@pytest.mark.parametrize("region", WITHOUT_GRADIENTS)
def test_every_region_without_gradients_is_seen(region):
    with guard("record") as watch, region():
        Net()(x())
    assert codes(watch) == ["DS505"]


FUNCTIONS = {
    "dropout": lambda module, h: functional.dropout(h, 0.5),
    "dropout, in place": lambda module, h: functional.dropout(h, 0.5, inplace=True),
    "imported before": lambda module, h: imported_before(h, 0.5),
    "torch.dropout": lambda module, h: torch.dropout(h, 0.5, True),
    "torch.dropout by name": lambda module, h: torch.dropout(h, p=0.5, train=True),
    "alpha_dropout": lambda module, h: functional.alpha_dropout(h, 0.5, True),
    "attention": lambda module, h: functional.scaled_dot_product_attention(h, h, h, None, 0.5),
    "dst": lambda module, h: dst.functional.dropout(h, 0.5),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_that_is_not_told_of_evaluation(function):
    model = By(FUNCTIONS[function]).eval()
    with guard("record") as watch:
        evaluate(model)
    [incident] = watch.incidents
    assert incident.code == "DS505"
    assert "By is in evaluation mode, but the call isn't told" in incident.message
    assert incident.line == FUNCTIONS[function].__code__.co_firstlineno


@pytest.mark.parametrize(
    "function",
    [
        lambda module, h: functional.dropout(h, 0.5, module.training),
        lambda module, h: functional.dropout(h, 0.0),
        lambda module, h: functional.alpha_dropout(h, 0.5),
        lambda module, h: torch.dropout(h, 0.5, module.training),
        lambda module, h: torch.dropout(h, 0, True),
        lambda module, h: functional.scaled_dot_product_attention(h, h, h),
        lambda module, h: functional.scaled_dot_product_attention(h, h, h, dropout_p=0.0),
        lambda module, h: dst.functional.dropout(h, 0.5, module.training),
        lambda module, h: dst.functional.dropout(h, 0.0),
        lambda module, h: h.clone().bernoulli_(0.5),
        lambda module, h: torch.rand_like(h),
        lambda module, h: drops_columns(h),
        lambda module, h: functional.dropout(h.to("meta"), 0.5).new_zeros(h.shape, device="cpu"),
    ],
)
def test_functions_that_do_not_drop(function):
    model = By(function).eval()
    with guard("error"):
        evaluate(model)


def test_a_layer_that_eval_does_not_reach():
    model = By(lambda module, h: nn.Dropout(0.5)(h)).eval()
    with guard("record") as watch:
        evaluate(model)
    assert "eval() doesn't reach this layer" in watch.incidents[0].message


def test_a_part_that_went_back_to_training():
    model = nn.Sequential(Net(), nn.Linear(2, 2)).eval()
    model[0].train()
    with guard("record") as watch:
        evaluate(model)
    assert "Sequential is in evaluation mode, but a part of it was put back" in str(watch.incidents)


def test_message_names_the_layer_the_rate_and_the_region():
    with guard("record") as watch, torch.inference_mode():
        nn.Sequential(Net())(x())
    assert "dropout is on under inference_mode (0.drop: Dropout, p=0.5): Sequential is in " in str(
        watch.incidents[0]
    )


def test_each_line_is_reported_once():
    model = nn.Sequential(*(nn.Dropout(0.5) for _ in range(4)))
    with guard("record") as watch:
        for _ in range(3):
            evaluate(model)
        assert len(watch.incidents) == 1
        with torch.no_grad():
            model(x())
            model(x())
    assert len({incident.line for incident in watch.incidents}) == 3


def test_the_line_is_where_the_user_calls_the_model(tmp_path):
    package = tmp_path / "site-packages" / "somebodys.py"
    package.parent.mkdir()
    package.write_text(
        "from torch import nn\nfrom torch.nn import functional as F\n"
        "class Theirs(nn.Module):\n"
        "    def forward(self, x):\n        return F.dropout(x, 0.5)\n"
        "def run(model, x):\n    return model(x)\n"
    )
    spec = importlib.util.spec_from_file_location("somebodys", package)
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    model = theirs.Theirs()
    with guard("record") as watch, torch.no_grad():
        here = sys._getframe().f_lineno
        theirs.run(model, x())
        theirs.run(model.eval(), x())
    assert [(one.path, one.line) for one in watch.incidents] == [
        (__file__, here + 1),
        (__file__, here + 2),
    ]


def apart():
    """A model in evaluation mode but for its dropout layers."""
    recurrent = First(nn.LSTM(4, 4, 2, dropout=0.5))
    model = nn.Sequential(Net(), nn.Linear(2, 4), Net(dst.Dropout(0.5)), nn.Linear(2, 4), recurrent)
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.LSTM):
            module.train()
    return model


def test_dropout_layers_alone_in_training_mode_are_silent(tmp_path):
    model = apart()
    with guard("error"):
        evaluate(model)
        torch.save(model, tmp_path / "model")


class AlwaysDrops(nn.Dropout):
    def forward(self, values):
        return functional.dropout(values, self.p)


class BayesianNet(Net):
    pass


class MCNet(Net):
    pass


class Prenet(By):
    def __init__(self):
        super().__init__(FUNCTIONS["dropout"])


@pytest.mark.parametrize(
    "model", [Net(AlwaysDrops(0.5)).eval(), BayesianNet(), MCNet(), Prenet().eval()]
)
def test_classes_that_say_so_are_silent(model):
    with guard("error"):
        evaluate(model)


def test_functions_that_say_so_are_silent():
    def mc_dropout(model):
        return evaluate(model)

    def predict_with_uncertainty(model):
        return evaluate(model)

    def sample_monte_carlo(model):
        return evaluate(model)

    def mcmc(model):
        return evaluate(model)

    with guard("record") as watch:
        for predict in (mc_dropout, predict_with_uncertainty, sample_monte_carlo):
            predict(Net())
        assert watch.incidents == []
        mcmc(Net())
    assert codes(watch) == ["DS505"]


def test_allow():
    @allow("DS505")
    def decorated():
        evaluate(Net())

    with guard("error"):
        decorated()
        decorated()
        with allow():
            evaluate(Net())
        with allow("DS505"), allow("DS506"):
            evaluate(Net())
        with allow("DS506"), pytest.raises(DropoutError):
            evaluate(Net())
        with pytest.raises(DropoutError):
            evaluate(Net())


def test_allow_holds_in_threads():
    with guard("record") as watch, allow("DS505"):
        thread = threading.Thread(target=evaluate, args=(Net(),))
        thread.start()
        thread.join()
    assert watch.incidents == []


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_is_silent(reentrant, training):
    model = Net().train(training)
    values = x().requires_grad_()
    with guard("error"):
        checkpoint(model, values, use_reentrant=reentrant).sum().backward()
        if training:
            optimiser(model).step()


def test_a_checkpointed_model_in_evaluation_mode_is_seen():
    model = Net().eval()
    with guard("record") as watch:
        checkpoint(model, x().requires_grad_(), use_reentrant=True).sum().backward()
        optimiser(model).step()
    assert codes(watch) == ["DS506"]


class Hidden(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, model):
        return model(values)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def test_inside_of_an_autograd_function_is_silent():
    with guard("error"):
        Hidden.apply(x(), nn.Dropout(0.5))


class Sizes(nn.Module):
    """Runs its parts once to learn a shape."""

    def __init__(self):
        super().__init__()
        self.features = Net()
        with torch.no_grad():
            self.last = nn.Linear(self.features(x()).shape[1], 2)


def test_a_constructor_is_silent():
    with guard("error"):
        Sizes()


class Teacher(nn.Module):
    """Runs a part of itself without gradients."""

    def __init__(self):
        super().__init__()
        self.pupil, self.teacher = Net(), Net()

    def forward(self, values):
        learned = self.pupil(values)
        with torch.no_grad():
            return learned, self.teacher(values)


class Locked(nn.Module):
    """Draws its mask without gradients."""

    def forward(self, values):
        with torch.no_grad():
            mask = functional.dropout(torch.ones_like(values[:1]), 0.5, self.training)
        return values * mask


@pytest.mark.parametrize(
    "model", [Teacher(), Net(Locked()), Net(DropPath(0.5, drop_path_without_gradients))]
)
def test_gradients_that_are_off_for_a_part_are_silent(model):
    with guard("error"):
        model(x())
    with guard("record") as watch:
        evaluate(model)
    assert codes(watch) == ["DS505"]


def test_a_recurrent_layer_alone_is_silent():
    layer = nn.LSTM(4, 4)
    layer.dropout = 0.5
    with guard("error"):
        evaluate(layer)


def test_batch_statistics_are_silent():
    model = nn.Sequential(Net(), nn.BatchNorm1d(2))
    with guard("error"):
        update_bn([x()], model)


def test_functions_outside_of_all_modules_are_silent():
    with guard("error"), torch.no_grad():
        functional.dropout(x(), 0.5)


def test_moments_of_drop_connect_are_silent():
    layer = dst.DropConnectLinear(4, 4, p=0.5, inference="moments", activation=torch.relu)
    with guard("error"):
        evaluate(layer.eval())


# ---- DS506: a step in evaluation mode --------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize(
    "make",
    [
        Net,
        lambda: Net(dst.Dropout(0.5)),
        lambda: By(lambda module, h: functional.dropout(h, 0.5, module.training)),
        lambda: nn.Sequential(Net(), nn.BatchNorm1d(2)),
    ],
)
def test_a_step_in_evaluation_mode(make, kind):
    model = make().eval()
    step = optimiser(model, kind).step
    with guard("record") as watch:
        backward(model)
        here = sys._getframe().f_lineno
        step()
        for _ in range(3):
            backward(model)
            step()
    first, second = watch.incidents
    assert (first.code, first.path, first.line) == ("DS506", __file__, here + 1)
    assert (
        f"{kind.__name__} updates {type(model).__name__}, which ran in evaluation" in first.message
    )
    assert second.line == here + 4


def test_a_step_with_a_closure():
    model = Net().eval()
    step = optimiser(model, torch.optim.LBFGS).step

    def closure():
        model.zero_grad()
        loss = model(x()).square().sum()
        loss.backward()
        return loss

    with guard("record") as watch:
        step(closure)
        step(closure)
    assert codes(watch) == ["DS506"]


def test_the_steps_of_two_models():
    generator, critic = Net(), nn.Sequential(nn.Linear(2, 4), Net())
    steps = optimiser(generator).step, optimiser(critic).step
    with guard("record") as watch:
        for training in (True, False):
            critic.train(training)
            critic(generator(x())).sum().backward()
            for step in steps:
                step()
    [incident] = watch.incidents
    assert "SGD updates Sequential" in incident.message


def trains():
    model = Net()
    evaluate(model.eval())
    backward(model.train())
    optimiser(model).step()


def has_no_dropout():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    backward(model)
    optimiser(model).step()


def has_rate_zero():
    model = Net(nn.Dropout(0.0)).eval()
    backward(model)
    optimiser(model).step()


def freezes_batch_norm():
    model = nn.Sequential(Net(), nn.BatchNorm1d(2))
    model[1].eval()
    backward(model)
    optimiser(model).step()


def freezes_a_part():
    model = nn.Sequential(Net().eval(), nn.Linear(2, 2))
    backward(model)
    optimiser(model).step()


def freezes_a_part_and_looks_before_the_step():
    model = nn.Sequential(Net().eval(), nn.Linear(2, 2))
    backward(model)
    evaluate(model.eval())
    optimiser(model).step()


def fits_a_head_on_frozen_features():
    model = nn.Sequential(Net(), nn.Linear(2, 2)).eval()
    model[0].requires_grad_(False)
    backward(model)
    optimiser(model[1]).step()


def fits_a_head_called_by_itself():
    features, head = Net().eval(), nn.Linear(2, 2)
    head(features(x())).sum().backward()
    optimiser(head).step()


def draws_a_picture_of_the_other_model():
    generator, critic = Net(), nn.Sequential(nn.Linear(2, 4), Net())
    generator.eval()(x()).sum()
    generator.train()
    critic(generator(x()).detach()).sum().backward()
    optimiser(critic).step()
    backward(generator)
    optimiser(generator).step()


def leaves_the_critic_in_evaluation():
    generator, critic = Net(), nn.Sequential(nn.Linear(2, 4), Net()).eval()
    critic(generator(x())).sum().backward()
    optimiser(generator).step()


def attacks_in_evaluation():
    model, attack = Net().eval(), x().requires_grad_()
    model(attack).sum().backward()
    backward(model.train())
    optimiser(model).step()


def attacks_between_backward_and_step():
    model, attack = Net(), x().requires_grad_()
    backward(model)
    model.eval()(attack).sum().backward()
    optimiser(model).step()


def tests_with_gradients_on():
    model = Net()
    model.eval()(x())
    backward(model.train())
    optimiser(model).step()


def fits_the_input():
    picture = x().requires_grad_()
    Net().eval()(picture).sum().backward()
    torch.optim.SGD([picture], lr=0.1).step()


def forgets_what_it_computed():
    model = Net().eval()
    model(x())
    optimiser(model).step()


def trains_compiled_and_tests_eagerly():
    model = Net()
    compiled = torch.compile(model, backend="aot_eager")
    model.eval()(x())
    model.train()
    compiled(x()).sum().backward()
    optimiser(model).step()


def says_that_it_is_wanted():
    model = Net().eval()
    backward(model)
    with allow("DS506"):
        optimiser(model).step()


@pytest.mark.parametrize(
    "run",
    [
        trains,
        has_no_dropout,
        has_rate_zero,
        freezes_batch_norm,
        freezes_a_part,
        freezes_a_part_and_looks_before_the_step,
        fits_a_head_on_frozen_features,
        fits_a_head_called_by_itself,
        draws_a_picture_of_the_other_model,
        leaves_the_critic_in_evaluation,
        attacks_in_evaluation,
        attacks_between_backward_and_step,
        tests_with_gradients_on,
        fits_the_input,
        forgets_what_it_computed,
        trains_compiled_and_tests_eagerly,
        says_that_it_is_wanted,
    ],
)
def test_steps_that_are_right(run):
    with guard("error"):
        run()


def test_a_model_where_another_one_was():
    model, gone = Net().eval(), weakref.ref(Net())
    with guard("record") as watch:
        judge._passes[id(model)] = _Passes(gone, trained=True)
        backward(model)
        optimiser(model).step()
    assert codes(watch) == ["DS506"]


def test_a_later_guard_knows_nothing_of_the_passes_before():
    model = Net()
    with guard("record"):
        model.eval()(x())
    backward(model.train())
    model.eval()
    with guard("error"):
        optimiser(model).step()


# ---- DS507: a model leaves with dropout on ---------------------------------------------------


def scripted(model):
    return torch.jit.script(model)


def traced(model):
    return torch.jit.trace(model, x(), check_trace=False)


EXITS = {
    "torch.save": lambda model, path: torch.save(model, path),
    "torch.jit.save": lambda model, path: torch.jit.save(scripted(model), path),
    "ScriptModule.save": lambda model, path: scripted(model).save(path),
    "torch.export.export": lambda model, path: torch.export.export(model, (x(),)),
    "torch.jit.trace": lambda model, path: traced(model),
}


@pytest.mark.parametrize("exit_", EXITS)
def test_a_model_that_leaves_in_training_mode(exit_, tmp_path):
    leave = EXITS[exit_]
    with guard("record") as watch:
        leave(Net(), tmp_path / "model")
    [incident] = watch.incidents
    assert (incident.code, incident.path) == ("DS507", __file__)
    assert incident.line == leave.__code__.co_firstlineno or exit_ == "torch.jit.trace"
    assert f"{exit_} " in incident.message
    assert "Net in training mode" in incident.message
    assert "(drop: Dropout, p=0.5)" in incident.message


@pytest.mark.parametrize("exit_", EXITS)
def test_models_that_leave_as_they_should(exit_, tmp_path):
    leave = EXITS[exit_]
    with guard("error"):
        leave(Net().eval(), tmp_path / "model")
        leave(Net(nn.Identity()), tmp_path / "model")
        leave(Net(nn.Dropout(0.0)), tmp_path / "model")
        with allow("DS507"):
            leave(Net(), tmp_path / "model")


def test_saves_that_are_right(tmp_path):
    model = Net()
    frozen = Net()
    frozen.drop.eval()
    with guard("error"):
        torch.save(model.state_dict(), tmp_path / "weights")
        torch.save({"model": model, "optimiser": optimiser(model).state_dict()}, tmp_path / "all")
        torch.save(x(), tmp_path / "tensor")
        torch.save(obj=model.eval(), f=tmp_path / "model")
        torch.save(frozen, tmp_path / "frozen")
        scripted(model.train())


# ---- the compiler, tracers and TorchScript ---------------------------------------------------


@pytest.mark.parametrize(
    "make", [Net, lambda: By(FUNCTIONS["attention"]), lambda: Net(dst.Dropout(0.5))]
)
def test_compiled_code_is_that_of_an_unguarded_program(make):
    torch._dynamo.reset()
    model = make()
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    compiled = torch.compile(model, backend=keep, fullgraph=True)
    with guard("error"):
        compiled(x())
    for _ in range(10):  # more often than the compiler would compile anew
        compiled(x())
        with guard("error"):
            compiled(x())
    torch._dynamo.reset()
    compiled(x())
    assert len(graphs) <= 3
    assert set(graphs) == {graphs[-1]}


def test_a_compiled_step_is_left_alone():
    model = Net()
    step = torch.compile(optimiser(model).step, backend="eager")
    with guard("error"):
        backward(model)
        step()


class Noisy(nn.Module):
    @allow("DS505")
    def forward(self, values):
        return functional.dropout(values, 0.5) + 1


def test_what_allow_decorates_compiles():
    model = Noisy().eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with guard("error"):
        compiled(x())
        evaluate(model)


def test_allow_may_stand_in_compiled_code():
    def forward(values):
        with allow("DS505"):
            return functional.dropout(values, 0.5) + 1

    with guard("error"):
        torch.compile(forward, backend="aot_eager")(x())


def test_symbolic_traces_have_the_functions_themselves():
    with guard("error"):
        graph = torch.fx.symbolic_trace(By(FUNCTIONS["dropout"])).graph
    assert functional.dropout in [node.target for node in graph.nodes]


def script_me(values: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    attended = functional.scaled_dot_product_attention(values, values, values, dropout_p=p)
    dropped = torch.dropout(attended, p, training) + functional.dropout(values, p, training)
    return dropped + torch.rand_like(values) + torch.bernoulli(torch.rand(2, 1))[:1]


def test_functions_can_be_scripted_in_a_guard_and_afterwards():
    with guard("error"):
        within = torch.jit.script(script_me)
    after = torch.jit.script(script_me)
    values = x()
    results = []
    for function in (within, after):
        torch.manual_seed(0)
        results.append(function(values, 0.5, True))
    assert torch.equal(*results)


# ---- the guard itself ------------------------------------------------------------------------


def state_of_torch():
    """Everything that a guard touches, and what stands beside it."""
    from torch.optim import optimizer

    owners = [torch, torch._VF, functional, torch.Tensor, torch.export, torch.jit]
    owners += [torch.jit._script.RecursiveScriptModule, sys.modules["dropseed.torch.noise"]]
    return [dict(vars(owner)) for owner in owners] + [
        dict(torch.jit._builtins._get_builtin_table()),
        dict(optimizer._global_optimizer_pre_hooks),
        dict(optimizer._global_optimizer_post_hooks),
        torch.nn.modules.module._has_any_global_hook(),
    ]


def test_torch_is_afterwards_as_before():
    before = state_of_torch()
    with guard("record"):
        wrappers = [torch.dropout, functional.scaled_dot_product_attention]
        assert state_of_torch() != before
        with guard("record"):
            evaluate(Net())
        assert state_of_torch() != before
    assert state_of_torch() == before
    with pytest.raises(ZeroDivisionError), guard("record"):
        raise ZeroDivisionError
    assert state_of_torch() == before
    with pytest.raises(DropoutError), guard("error"):
        evaluate(Net())
    assert state_of_torch() == before
    # What an earlier guard left would be in both.
    assert "dropout" not in vars(torch._VF)
    assert "bernoulli_" not in vars(torch.Tensor)
    assert not {id(one) for one in wrappers} & set(torch.jit._builtins._get_builtin_table())


def test_guards_may_end_in_any_order():
    before = state_of_torch()
    first, second = guard("record"), guard("record")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    evaluate(Net())
    second.__exit__(None, None, None)
    evaluate(Net())
    assert (codes(first), codes(second)) == ([], ["DS505"])
    assert state_of_torch() == before


def test_a_guard_that_cannot_begin_leaves_nothing(monkeypatch):
    before = state_of_torch()
    module = sys.modules["torch.optim.optimizer"]
    monkeypatch.delattr(module, "register_optimizer_step_pre_hook")
    with pytest.raises(ImportError), guard():
        pass
    monkeypatch.undo()
    assert state_of_torch() == before
    with pytest.raises(DropoutError), guard("error"):
        evaluate(Net())


def test_what_others_put_over_a_wrapper_stays(monkeypatch):
    with guard("record"):
        wrapped = functional.scaled_dot_product_attention
        theirs = lambda *args, **kwargs: wrapped(*args, **kwargs)  # noqa: E731
        monkeypatch.setattr(functional, "scaled_dot_product_attention", theirs)
    assert functional.scaled_dot_product_attention is theirs
    evaluate(By(FUNCTIONS["attention"]))
    monkeypatch.undo()
    functional.scaled_dot_product_attention = torch._C._nn.scaled_dot_product_attention


def test_the_innermost_guard_reports():
    with guard("error"):
        with guard("record") as inner:
            evaluate(Net())
        with pytest.raises(DropoutError):
            evaluate(Net())
    assert codes(inner) == ["DS505"]


def test_all_threads_are_watched():
    with guard("record") as watch:
        threads = [threading.Thread(target=evaluate, args=(Net(),)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert codes(watch) == ["DS505"]


def test_threads_may_begin_and_end_guards():
    before = state_of_torch()

    def run():
        for _ in range(30):
            with guard("record"):
                evaluate(Net())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state_of_torch() == before


def test_numbers_and_random_stream_are_the_same():
    def run():
        torch.manual_seed(0)
        models = [nn.Sequential(make()) for make, _ in LAYERS.values()]
        outputs = [
            model(x(*shape)) for model, (_, shape) in zip(models, LAYERS.values(), strict=True)
        ]
        return [*outputs, torch.rand(3)]

    expected = run()
    with guard("record"):
        found = run()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("run", [evaluate, backward])
def test_nothing_is_kept_alive(run):
    model = Net()
    kept = []
    model.drop.register_forward_hook(lambda layer, inputs, output: kept.append(weakref.ref(output)))
    with guard("record"):
        run(model)
        assert kept[0]() is None  # without the garbage collector's help
        last = weakref.ref(model)
        del model
        assert last() is None


def test_warnings_are_at_the_users_line():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with guard():
            for _ in range(3):
                evaluate(Net())
    [warning] = caught
    assert warning.category is DropoutWarning
    assert issubclass(DropoutWarning, UserWarning)
    assert (warning.filename, warning.lineno) == (
        __file__,
        evaluate.__code__.co_firstlineno + 3,
    )
    assert str(warning.message).startswith("DS505 ")


def test_an_error_comes_before_the_step_and_each_time(tmp_path):
    model = Net().eval()
    before = [parameter.clone() for parameter in model.parameters()]
    with guard("error") as watch:
        for _ in range(2):
            backward(model)
            with pytest.raises(DropoutError, match=r"test_guard\.py:\d+: DS506 SGD updates Net"):
                optimiser(model).step()
        with pytest.raises(DropoutError):
            torch.save(model.train(), tmp_path / "model")
    assert all(map(torch.equal, before, model.parameters()))
    assert not (tmp_path / "model").exists()
    assert codes(watch) == ["DS506", "DS507"]
    assert issubclass(DropoutError, DropseedError)


def test_decorator():
    watch = guard("record")

    @watch
    def run(depth=1):
        """Words."""
        if depth:
            run(depth - 1)
        return evaluate(Net())

    assert run().shape == (3, 2)
    assert run.__doc__ == "Words."
    assert codes(watch) == ["DS505"]
    evaluate(Net())
    assert len(watch.incidents) == 1


def test_what_can_not_be_decorated():
    def generator():
        yield

    async def coroutine():
        pass

    for function in (generator, coroutine):
        with pytest.raises(InvalidTypeError, match="`guard` can't decorate"):
            guard()(function)
        with pytest.raises(InvalidTypeError, match="`allow` can't decorate"):
            allow()(function)


@pytest.mark.parametrize("mode", ["loud", None, True, ""])
def test_wrong_modes(mode):
    with pytest.raises(InvalidValueError, match="`mode` must be 'warn', 'error' or 'record'"):
        guard(mode)


def test_a_decorator_without_parentheses():
    with pytest.raises(InvalidValueError, match="Write @guard"):
        guard(lambda: None)


def test_wrong_codes():
    with pytest.raises(InvalidValueError, match="`codes` must be among DS505"):
        allow("DS101")


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"dropseed\[torch\]"), guard():
        pass


def test_what_the_trainer_of_the_laboratory_does_is_right():
    from dropseed.lab.models import mnist_convnet

    model = mnist_convnet()
    step = optimiser(model, torch.optim.Adam).step
    with guard("error"):
        for number in range(2):
            dst.set_key(model, 0, number)
            model.train()
            model(x(2, 1, 28, 28)).sum().backward()
            step()
            evaluate(model.eval(), x(2, 1, 28, 28))


# ---- the environment's switch ----------------------------------------------------------------

PROGRAM = """
import torch
model = torch.nn.Dropout(0.5)
with torch.no_grad():
    model(torch.ones(2))
print("done")
"""


def run_program(tmp_path, text=PROGRAM, **variables):
    """Run a program as if dropseed's entry points were installed."""
    info = tmp_path / "entry" / "dropseed_guard-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dropseed-guard\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[torch.backends]\ndropseed_guard = dropseed.audit.running.autostart:start\n"
    )
    program = tmp_path / "program.py"
    program.write_text(text)
    search = os.pathsep.join([str(tmp_path / "entry"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search, **variables}
    command = [sys.executable, str(program)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("mode", "status", "words"),
    [
        ("", 0, None),
        ("warn", 0, "program.py:5: DropoutWarning: DS505 dropout is on under no_grad"),
        ("error", 1, "program.py:5: DS505 dropout is on under no_grad"),
        ("loud", 1, "`DROPSEED_GUARD` must be 'warn' or 'error'; got 'loud'"),
    ],
)
def test_switch(mode, status, words, tmp_path):
    run = run_program(tmp_path, DROPSEED_GUARD=mode)
    assert run.returncode == status
    assert ("done" in run.stdout) == (status == 0)
    assert run.stderr == "" if words is None else words in run.stderr


def test_switch_covers_dropseeds_own_layers(tmp_path):
    text = PROGRAM.replace("import torch\n", "import torch\nimport dropseed.torch as dst\n")
    text = text.replace("torch.nn.Dropout(0.5)", "dst.Dropout(0.5)")
    attach = "from dropseed.audit.running.guard import attach\nattach()\n"
    run = run_program(tmp_path, text.replace("model =", attach + "model ="), DROPSEED_GUARD="warn")
    assert "DS505 dropout is on under no_grad" in run.stderr
