"""The pytest plugin: its fixtures, the guard around a suite, and what its import loads."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points

import pytest
import torch
from torch import nn
from torch.nn import functional

import dropseed.torch as dst
from dropseed.audit.running import assertions
from dropseed.audit.running.assertions import assert_deterministic_eval, assert_drops_in_training
from dropseed.audit.running.sites import sites
from dropseed.audit.running.watch import watch
from dropseed.errors import InvalidTypeError, InvalidValueError

pytest_plugins = ("pytester",)

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
INSTALLED = entry_points(group="pytest11", name="dropseed")
PLUGIN = () if INSTALLED else ("-p", "dropseed.audit.running.pytest_plugin")


class Net(nn.Module):
    """Calls a function between two layers."""

    def __init__(self, function=lambda module, h: h):
        super().__init__()
        self.first = nn.Linear(4, 64)
        self.drop = nn.Dropout(0.5)
        self.function = function

    def forward(self, x, *, scale=1.0):
        return {"out": [self.function(self, self.drop(self.first(x))) * scale]}


def x(*shape):
    return torch.randn(shape or (8, 4))


def message(check, *arguments, **options):
    with pytest.raises(AssertionError) as caught:
        check(*arguments, **options)
    return str(caught.value)


# ---- evaluation is deterministic -------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        Net(),
        Net(lambda module, h: functional.dropout(h, 0.5, module.training)),
        Net(lambda module, h: functional.dropout(h, 0.0)),
        Net(lambda module, h: h * float("nan")),
        Net(lambda module, h: h + torch.rand(1, generator=torch.Generator().manual_seed(0))),
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), dst.Dropout(0.5)),
        nn.LSTM(4, 4, 2, dropout=0.5),
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.ReLU(inplace=True),
    ],
)
def test_deterministic_evaluation(model):
    assert_deterministic_eval(model, x())


def test_arguments_by_name_and_none_at_all():
    assert_deterministic_eval(Net(), x=x(), scale=2.0)
    assert_deterministic_eval(Empty())


class Empty(nn.Module):
    def forward(self):
        return ()


class Counting(nn.Module):
    """Evaluation changes a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, values):
        self.count += 1
        return values + self.count


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Net(lambda module, h: functional.dropout(h, 0.25)), "dropout, p=0.25"),
        (Net(lambda module, h: nn.Dropout(0.25)(h)), "p=0.25"),
        (Net(lambda module, h: h + torch.randn_like(h)), "randn_like"),
        (Net(lambda module, h: dst.functional.dropout(h, 0.25)), "p=0.25"),
        (
            Net(lambda module, h: functional.scaled_dot_product_attention(h, h, h, None, 0.25)),
            "scaled_dot_product_attention, p=0.25",
        ),
        (Counting(), "no random call was seen"),
    ],
)
def test_evaluation_that_differs_is_named(model, words):
    text = message(assert_deterministic_eval, model, x())
    assert f"two evaluation passes of {type(model).__name__} differ" in text
    assert words in text


def test_the_call_that_differs_is_named_with_its_line():
    function = lambda module, h: functional.dropout(h, 0.25)  # noqa: E731
    text = message(assert_deterministic_eval, Net(function), x())
    assert f"{__file__}:{function.__code__.co_firstlineno}" in text


@pytest.mark.parametrize("check", [assert_deterministic_eval, assert_drops_in_training])
def test_model_and_inputs_are_left_as_they_were(check):
    model = nn.Sequential(
        nn.Linear(4, 64), nn.BatchNorm1d(64), nn.ReLU(inplace=True), nn.Dropout(0.5)
    )
    model.train()
    model[1].eval()
    values = x().requires_grad_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes, same = [module.training for module in model.modules()], values.detach().clone()
    check(model, values)
    with pytest.raises(RuntimeError):
        check(model, x(3, 3))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(values, same)
    assert values.grad is None


class Doubling(nn.Module):
    """Writes into its input."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, values, more, by_name):
        return self.drop(values.mul_(2)), more[0].mul_(2), by_name["x"].mul_(2)


@pytest.mark.parametrize("check", [assert_deterministic_eval, assert_drops_in_training])
def test_inputs_that_a_model_writes_into(check):
    inputs = [torch.ones(8) for _ in range(3)]
    check(Doubling(), inputs[0], [inputs[1]], by_name={"x": inputs[2]})
    assert all(torch.equal(one, torch.ones(8)) for one in inputs)


def test_equality_is_of_bits():
    same = assertions._same_bits
    nan = torch.tensor([float("nan"), 1.0])
    assert same(nan, nan.clone())
    assert same(torch.tensor(True), torch.tensor(True))
    assert same(torch.empty(0), torch.empty(0))
    assert not same(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same(torch.zeros(2), torch.zeros(3))
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same(torch.zeros(2), torch.zeros(2, dtype=torch.int32))


# ---- training drops --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        Net(),
        Net(lambda module, h: functional.dropout(h, 0.1, module.training)),
        Net(lambda module, h: functional.dropout(h, 0.0)),
        nn.Sequential(nn.Linear(4, 64), dst.Dropout(0.1), nn.Dropout(0.0)),
        nn.Sequential(nn.Linear(4, 64), nn.AlphaDropout(0.3)),
        nn.Sequential(nn.Unflatten(1, (2, 2, 1)), nn.Dropout2d(0.5)),
        nn.Sequential(nn.Linear(4, 64), nn.Dropout(1.0)),
        nn.LSTM(4, 4, 2, dropout=0.5),
        nn.TransformerEncoderLayer(4, 2, 8),
    ],
)
def test_models_that_drop_in_training(model):
    assert_drops_in_training(model.eval(), x())


def test_rates_that_are_expected():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Dropout(0.25))
    assert_drops_in_training(model, x(), p={"1": 0.5})
    assert_drops_in_training(model, x(), p={"1": 0.5, "2": 0.25})
    assert_drops_in_training(model[:2], x(), p=0.5)
    assert "2 (Dropout, p=0.25" in message(assert_drops_in_training, model, x(), p=0.5)
    text = message(assert_drops_in_training, model, x(), p={"1": 0.4})
    assert "1 (Dropout, p=0.5" in text
    assert "p=0.4 was expected" in text


class Stuck(nn.Dropout):
    """Never in training mode."""

    def train(self, mode=True):
        return super().train(False)


class Unused(Net):
    def forward(self, values):
        return self.first(values)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Linear(4, 64), Stuck(0.5)), "1 (Stuck, p=0.5"),
        (nn.Sequential(nn.Linear(4, 64), Stuck(0.5)), "it never drops"),
        (Unused(), "drop: Dropout, p=0.5: it never ran"),
        (Net(lambda module, h: functional.alpha_dropout(h, 0.5)), "alpha_dropout"),
        (Net(lambda module, h: functional.dropout(h, 0.5, False)), "it never drops"),
        (nn.Linear(4, 4), "it has no dropout"),
    ],
)
def test_models_that_do_not_drop_in_training(model, words):
    text = message(assert_drops_in_training, model, x())
    assert f"{type(model).__name__} doesn't drop as it should" in text
    assert words in text


def test_another_fraction_than_the_rate():
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    with watch(model) as events:
        model(x())
    right = events[0]
    assert assertions._problem([right], None) == ""
    wrong = replace(right, realised=0.25)
    assert assertions._problem([wrong], None) == "it dropped 0.25 of 512 draws"
    assert assertions._problem([replace(wrong, draws=20)], None) == ""
    assert assertions._problem([replace(wrong, draws=0)], None) == ""
    assert assertions._problem([replace(wrong, realised=None)], None) == ""
    assert assertions._problem([replace(wrong, rate=None)], None) == ""


@pytest.mark.parametrize(
    ("fraction", "rate", "draws", "unlikely"),
    [
        (0.5, 0.5, 10**9, False),
        (0.49, 0.5, 10**3, False),
        (0.49, 0.5, 10**6, True),
        (0.0, 0.5, 20, False),
        (0.0, 0.5, 40, True),
        (1.0, 1.0, 40, False),
        (0.99, 1.0, 100, True),
        (0.0, 0.0, 100, False),
        (0.01, 0.0, 100, True),
        (0.06, 0.01, 100, False),
    ],
)
def test_what_is_unlikely(fraction, rate, draws, unlikely):
    assert assertions._is_unlikely(fraction, rate, draws) is unlikely


@pytest.mark.parametrize(
    ("p", "error", "words"),
    [
        (1.5, InvalidValueError, r"`p` must be in \[0, 1\]; got 1.5"),
        ({"1": -1}, InvalidValueError, r"`p` must be in \[0, 1\]"),
        ({"nowhere": 0.5}, InvalidValueError, r"`p` names no site: 'nowhere'. There are \['1'\]"),
        ("half", InvalidTypeError, "`p` must be a rate"),
    ],
)
def test_wrong_rates(p, error, words):
    with pytest.raises(error, match=words):
        assert_drops_in_training(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), x(), p=p)


# ---- sites -----------------------------------------------------------------------------------


class DropPath(nn.Module):
    def __init__(self, drop_prob=0.2):
        super().__init__()
        self.drop_prob = drop_prob


class DroppingNet(nn.Module):
    """Is named so, but contains what drops."""

    def __init__(self):
        super().__init__()
        self.p = 0.5
        self.inner = nn.Dropout(0.1)


class DropLast(nn.Module):
    """Is named so, but has no rate."""


def test_sites():
    model = nn.ModuleDict(
        {
            "a": nn.Dropout(0.5),
            "b": dst.Dropout(torch.tensor(0.25)),
            "c": nn.LSTM(2, 2, 2, dropout=0.5),
            "d": nn.LSTM(2, 2),
            "e": nn.MultiheadAttention(2, 1, dropout=0.5),
            "f": DropPath(),
            "g": DroppingNet(),
            "h": DropLast(),
            "i": dst.Zoneout(nn.LSTMCell(2, 2), 0.5),
            "j": nn.BatchNorm1d(2),
        }
    )
    model["a"].eval()
    found = {site.name: (site.kind, site.rate, site.training) for site in sites(model)}
    assert found == {
        "a": ("Dropout", 0.5, False),
        "b": ("Dropout", 0.25, True),
        "c": ("LSTM", 0.5, True),
        "e": ("MultiheadAttention", 0.5, True),
        "f": ("DropPath", 0.2, True),
        "g.inner": ("Dropout", 0.1, True),
        "i": ("Zoneout", 0.5, True),
    }


def test_sites_of_a_model_that_is_a_site_or_wrapped():
    [site] = sites(nn.Dropout(0.5))
    assert (site.name, str(site)) == ("Dropout", "Dropout, p=0.5")
    compiled = torch.compile(nn.Sequential(nn.Dropout(0.5)))
    assert [site.name for site in sites(compiled)] == ["0"]


# ---- within pytest ---------------------------------------------------------------------------

SUITE = """
import pytest
import torch
from torch import nn

def forgotten(model):
    with torch.no_grad():
        return model(torch.ones(1, 4))

@pytest.fixture
def prepared():
    yield
    forgotten(nn.Dropout(0.2))

def test_first():
    forgotten(nn.Dropout(0.5))

def test_second():
    forgotten(nn.Dropout(0.5))

def test_third(prepared):
    pass

def test_right():
    forgotten(nn.Dropout(0.5).eval())
"""


def run(pytester, text, *options):
    pytester.makepyfile(text)
    return pytester.runpytest("-p", "no:cacheprovider", *PLUGIN, *options)


@pytest.mark.parametrize("options", [(), ("--dropout-guard=error",)])
def test_fixtures(options, pytester):
    text = """
        import pytest
        import torch
        from torch import nn

        MODEL = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))

        def test_all(assert_deterministic_eval, assert_drops_in_training, dropout_sites):
            x = torch.ones(8, 4)
            assert_deterministic_eval(MODEL, x)
            assert_drops_in_training(MODEL, x, p=0.5)
            assert [site.name for site in dropout_sites(MODEL)] == ["1"]

        class Noisy(nn.Module):
            def forward(self, x):
                return nn.functional.dropout(x, 0.5)

        def test_wrong(assert_drops_in_training):
            assert_drops_in_training(nn.Linear(4, 4), torch.ones(8, 4))

        def test_random(assert_deterministic_eval):
            assert_deterministic_eval(Noisy(), torch.ones(8, 4))
    """
    result = run(pytester, text, *options)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["E*AssertionError: two evaluation passes of Noisy differ.*"])
    result.stdout.fnmatch_lines(["E*AssertionError: Linear doesn't drop as it should:*"])
    result.stdout.no_fnmatch_line("*def assert_drops_in_training*")


@pytest.mark.parametrize("option", ["--dropout-guard", "--dropout-guard=warn"])
def test_a_guard_lists_what_it_saw(option, pytester):
    result = run(pytester, SUITE, option, "-W", "error")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(
        [
            "*dropout guard: 1 found*",
            "test_a_guard_lists_what_it_saw.py:7: DS505 dropout is on under no_grad*(3 tests)",
        ]
    )


def test_a_guard_that_fails_tests(pytester):
    result = run(pytester, SUITE, "--dropout-guard=error")
    result.assert_outcomes(passed=2, failed=2, errors=1)
    result.stdout.fnmatch_lines(["E*DropoutError: *:7: DS505 dropout is on*", "*1 found*"])


def test_without_the_option_nothing_is_guarded(pytester):
    result = run(pytester, SUITE)
    result.assert_outcomes(passed=4)
    result.stdout.no_fnmatch_line("*dropout guard*")
    assert "dropout" not in torch._VF.__dict__


def test_nothing_found_is_nothing_said(pytester):
    result = run(pytester, "def test():\n    pass\n", "--dropout-guard")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*dropout guard*")


def test_another_mode_is_refused(pytester):
    result = run(pytester, SUITE, "--dropout-guard=loud")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--dropout-guard: invalid choice: 'loud'*"])


def test_the_plugin_loads_neither_torch_nor_numpy(pytester):
    pytester.makepyfile(
        """
        import sys

        def test():
            assert "dropseed.audit.running.pytest_plugin" in sys.modules
            assert not {"torch", "numpy", "dropseed.audit.running.guard"} & set(sys.modules)
        """
    )
    plugin = ("-p", "dropseed.audit.running.pytest_plugin")
    command = [sys.executable, "-m", "pytest", "-q", *plugin, str(pytester.path)]
    alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others may load NumPy
    done = subprocess.run(command, capture_output=True, text=True, env=alone)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
