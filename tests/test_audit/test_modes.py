"""What switches a model and what trains it, through the functions of a file."""

from textwrap import dedent

import pytest

from dropseed.audit.reading.file import File
from dropseed.audit.reading.modes import Modes
from dropseed.audit.reading.source import Source, parse

CASES = [
    pytest.param("model.train()", ["train model"], id="train"),
    pytest.param("model.train(mode)", ["train model"], id="a mode put back"),
    pytest.param("model.train(False)", ["eval model"], id="train off"),
    pytest.param("model.train(mode=False)", ["eval model"], id="train off, by keyword"),
    pytest.param("model.module.eval()", ["eval model"], id="what a wrapper holds"),
    pytest.param("unwrap_model(model).eval()", ["eval model"], id="unwrapped"),
    pytest.param("models[0].eval()", ["eval *"], id="an item"),
    pytest.param("for m in models:\n    m.eval()", ["eval *"], id="the items of a loop"),
    pytest.param("frame.eval('a + b')", [], id="another eval"),
    pytest.param("import pandas as pd\npd.eval()", [], id="a module's eval"),
    pytest.param("optimizer.step()", ["step optimizer"], id="a step"),
    pytest.param("self.opts['g'].step()", ["step *"], id="a step of one of several"),
    pytest.param("scaler.step(optimizer)", ["step optimizer"], id="a scaler's step"),
    pytest.param("env.step(action)", ["unknown env", "unknown action"], id="another step"),
    pytest.param("scheduler.step()", ["unknown scheduler"], id="a schedule's step"),
    pytest.param("model.train() if on else model.eval()", ["train model"] * 2, id="both arms"),
    pytest.param(
        "if on:\n    model.train()\nelse:\n    model.eval()", ["train model"] * 2, id="two branches"
    ),
    pytest.param(
        "if on:\n    other.train()\nelse:\n    model.eval()",
        ["train other", "eval model"],
        id="two branches for two models",
    ),
    pytest.param(
        "model = self.net\nmodel = model.cuda()\nmodel.eval()", ["eval self.net"], id="an alias"
    ),
    pytest.param("fit_epoch(model)", ["unknown model"], id="a function that can't be seen"),
    pytest.param(
        "torch.set_grad_enabled(on)\nprint(model)", [], id="functions that switch nothing"
    ),
    pytest.param("trainer.callbacks.on_epoch_end()", ["unknown *"], id="a hook"),
    pytest.param("handle.register_hook(f)", [], id="a hook that is registered"),
    pytest.param(
        """
        def evaluate(net):
            net.eval()

        evaluate(model)
        evaluate(net=self.model)
        """,
        ["eval model", "eval self.model"],
        id="through a function",
    ),
    pytest.param(
        """
        def evaluate():
            net = build()
            net.eval()

        evaluate()
        """,
        ["eval evaluate().net"],
        id="a local of a function",
    ),
    pytest.param(
        """
        def again(net):
            net.eval()
            again(net)

        again(model)
        """,
        ["eval model"],
        id="a function that calls itself",
    ),
    pytest.param(
        """
        def run(net, train=True, optimizer=None):
            if train:
                net.train()
            if not train:
                net.eval()
            if train and optimizer is not None:
                optimizer.step()

        run(model, False)
        run(model, optimizer=optimizer)
        """,
        ["train model", "eval model", "train model", "step optimizer"],
        id="a function that is told the mode",
    ),
    pytest.param(
        """
        @in_eval_mode
        def evaluate(net):
            net.eval()

        evaluate(model)
        """,
        ["unknown *"],
        id="a function that a decorator changes",
    ),
]


def modes(text):
    source = Source("import torch\n" + dedent(text).lstrip("\n"))
    return Modes(File(source, parse(source)[0], "module"))


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_events(text, expected):
    found = modes(text)
    events = found.events(found.file.tree)
    assert [f"{event.kind} {event.model}" for event in events] == expected


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        ("torch.optim.SGD(model.parameters(), 0.1)", {"model", "parameters"}),
        ("torch.optim.SGD([delta], 0.1)", {"delta"}),
        ("torch.optim.SGD(groups, 0.1)", {"groups", "p", "_", "model", "named_parameters"}),
        ("build_optimizer(model)", None),
        ("torch.optim.SGD(given, 0.1)", None),
    ],
)
def test_what_a_step_changes(built, expected):
    groups = "groups = [p for _, p in model.named_parameters()]"
    found = modes(f"{groups}\noptimizer = None\noptimizer = {built}\noptimizer.step()")
    (event,) = found.events(found.file.tree)
    assert event.weights == expected


def test_methods_are_followed_through_parents_in_the_file():
    text = """
        class Base:
            def evaluate(self):
                self.model.eval()

        class Trainer(Base):
            def fit(self):
                self.evaluate()
                self.unknown_run()
    """
    found = modes(text)
    fit = next(scope for scope in found.scopes if getattr(scope, "name", "") == "fit")
    assert [(at.kind, at.model) for at in found.events(fit)] == [
        ("eval", "self.model"),
        ("unknown", "self"),
    ]


def test_classes_that_inherit_from_each_other_end():
    text = """
        class A(B):
            def fit(self):
                self.run()

        class B(A):
            pass
    """
    found = modes(text)
    fit = next(scope for scope in found.scopes if getattr(scope, "name", "") == "fit")
    assert [at.kind for at in found.events(fit)] == ["unknown"]


def test_functions_that_call_each_other_many_times_end():
    lines = ["def f0(net):\n    net.eval()"]
    for number in range(1, 8):
        calls = "\n".join([f"    f{number - 1}(net)"] * 20)
        lines.append(f"def f{number}(net):\n{calls}")
    found = modes("\n".join([*lines, "f7(model)"]))
    assert len(found.events(found.file.tree)) < 10_000
