"""DS107: evaluation that never switches dropout off."""

import pytest

from dropseed.audit.rules import never_evaluated
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS107"

WRONG = [
    pytest.param(
        """
        def evaluate(model, loader):
            with torch.no_grad():
                return [model(x).argmax(1) for x, _ in loader]  # wrong
        """,
        id="a function that evaluates",
    ),
    pytest.param(
        """
        @torch.inference_mode()
        def run_inference(net, x):
            return net(x)  # wrong
        """,
        id="decorated",
    ),
    pytest.param(
        """
        def predict(model, x):
            return model(x).argmax(1)  # wrong
        """,
        id="a function that predicts, with gradients",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5, self.training)

        class Classifier:
            def __init__(self):
                self.net = Net().to("cuda")

            def predict_proba(self, x):
                return self.net(x).softmax(1)  # wrong
        """,
        id="a class that builds its net",
    ),
    pytest.param(
        """
        from torch import no_grad

        class Predictor:
            def __init__(self, path):
                self.model = torchvision.models.resnet50()
                self.model.load_state_dict(torch.load(path))

            def __call__(self, x):
                with no_grad():
                    return self.model(x)  # wrong
        """,
        id="a class that loads weights",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return x

        encoder = nn.DataParallel(Net().cuda())
        encoder.load_state_dict(torch.load("weights.pt"))
        with torch.no_grad():
            print(encoder(torch.randn(1, 3)))  # wrong
        """,
        id="a script that loads weights",
    ),
    pytest.param(
        """
        def fit(model, train_loader, val_loader, optimizer):
            for epoch in range(3):
                for x, y in train_loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                with torch.no_grad():
                    for x, y in val_loader:
                        print(F.mse_loss(model(x), y))  # wrong
        """,
        id="a validation loop in training",
    ),
]

RIGHT = [
    pytest.param(
        """
        def evaluate(model, loader):
            model.eval()
            with torch.no_grad():
                return [model(x).argmax(1) for x, _ in loader]
        """,
        id="eval",
    ),
    pytest.param(
        """
        def evaluate(model, loader):
            model.train(False)
            return [model(x).argmax(1) for x, _ in loader]
        """,
        id="train(False)",
    ),
    pytest.param(
        """
        def evaluate(model, loader):
            with torch.no_grad():
                return [model(x).argmax(1) for x, _ in loader]

        def main(model, loader):
            model.eval()
            evaluate(model, loader)
        """,
        id="eval in the caller",
    ),
    pytest.param(
        """
        class Trainer:
            def setup(self):
                self.model.eval()

            def predict(self, x):
                return self.model(x)
        """,
        id="eval in another method",
    ),
    pytest.param(
        """
        class Base:
            def prepare(self):
                for part in self.parts:
                    getattr(part, "eval")()

        class Predictor(Base):
            def predict(self, x):
                return self.model(x)
        """,
        id="eval by its name",
    ),
    pytest.param(
        """
        from project import set_eval_mode

        def evaluate(model, loader):
            set_eval_mode(model)
            return [model(x) for x in loader]
        """,
        id="a function that switches",
    ),
    pytest.param(
        """
        def predict(model, x):
            with torch_utils.evaluation_mode(model):
                return model(x)
        """,
        id="a context that switches",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @torch.no_grad()
            def predict(self, x):
                return self.net(x)
        """,
        id="a module, whose mode others set",
    ),
    pytest.param(
        """
        import pytorch_lightning as pl

        class Task(pl.LightningModule):
            def validation_step(self, batch, index):
                return self.model(batch)

        class Metrics(pl.Callback):
            def evaluate(self, x):
                with torch.no_grad():
                    return self.model(x)
        """,
        id="Lightning, which switches itself",
    ),
    pytest.param(
        """
        def validation_step(model, batch):
            with torch.no_grad():
                return model(batch)
        """,
        id="a step of a framework",
    ),
    pytest.param(
        """
        def train_step(model, target_net, x, optimizer):
            with torch.no_grad():
                target = target_net(x)
                guess = model(x)
            F.mse_loss(model(x), target).backward()
        """,
        id="targets in training",
    ),
    pytest.param(
        """
        def evaluate_policy(policy, x):
            with torch.no_grad():
                loss = policy(x)
            model(x).backward()
        """,
        id="a function that goes on to train",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return x

        def predict(ema_model, x):
            teacher = Net()
            with torch.no_grad():
                return ema_model(x) + teacher(x)
        """,
        id="copies and teachers",
    ),
    pytest.param(
        """
        from transformers import AutoModel

        class Predictor:
            def __init__(self, name):
                self.model = AutoModel.from_pretrained(name)

            def predict(self, x):
                return self.model(x)
        """,
        id="from_pretrained, which gives an evaluated model",
    ),
    pytest.param(
        """
        def predict(path, x):
            model = torch.jit.load(path)
            with torch.no_grad():
                return model(x)
        """,
        id="a model that comes from elsewhere",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return x

        def main():
            model = Net()
            with torch.no_grad():
                print(model(torch.randn(1, 3)).shape)
        """,
        id="a smoke test",
    ),
    pytest.param(
        """
        def test_shapes(model):
            with torch.no_grad():
                assert model(torch.randn(1, 3)).shape == (1, 3)
        """,
        id="a test",
    ),
    pytest.param(
        """
        @torch.no_grad()
        def update_average(model, average):
            for p, q in zip(model.parameters(), average.parameters()):
                q.lerp_(p, 0.01)
        """,
        id="an average of weights",
    ),
    pytest.param(
        """
        @torch.no_grad()
        def evaluate(metric, loader):
            return [metric(x, y) for x, y in loader]
        """,
        id="a metric",
    ),
    pytest.param(
        """
        @torch.no_grad()
        def sample(model, x):
            return model(x)
        """,
        id="a sampler, whose caller has switched",
    ),
    pytest.param(
        """
        def embed(model, x):
            return model(x)
        """,
        id="a function that only runs a model",
    ),
    pytest.param(
        """
        def infer(model, x):
            return model(x)

        def fit(model, x, y):
            F.mse_loss(infer(model, x), y).backward()
        """,
        id="a function that training uses",
    ),
    pytest.param(
        """
        @engine.on("completed")
        def evaluate(engine):
            return model(engine.batch)
        """,
        id="a handler",
    ),
    pytest.param(
        """
        def attribute_prediction(model, x):
            with torch.no_grad():
                return model(x)
        """,
        id="an attribution",
    ),
    pytest.param(
        """
        def evaluate(estimator, x):
            return estimator.model(x), estimator.net.run(x)
        """,
        id="a model that another object holds",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_names_the_function_and_the_model():
    assert messages(WRONG[0].values[0], CODE) == [
        "`evaluate` runs `model` and nothing calls `eval()`"
    ]
    assert messages(WRONG[5].values[0], CODE) == ["this runs `encoder` and nothing calls `eval()`"]


EVALUATE = """
import torch

class Evaluator:
    def __init__(self, model):
        self.model = model

    def evaluate(self, x):
        with torch.no_grad():
            return self.model(x){mark}
"""


def test_alone_it_is_found(tmp_path):
    files = {"net/evaluator.py": EVALUATE.format(mark="  # wrong")}
    assert scanned(tmp_path, files, CODE) == marked_in(files)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("main.py", "from net.evaluator import Evaluator\nEvaluator(build().eval())\n"),
        ("net/models.py", "def load():\n    return build().eval()\n"),
        (
            "other.py",
            "from net.evaluator import Evaluator\n"
            "class Mine(Evaluator):\n    def ready(self):\n        self.model.eval()\n",
        ),
    ],
    ids=["who uses it", "a file beside it", "a subclass"],
)
def test_silent_where_another_file_switches(tmp_path, path, text):
    files = {"net/evaluator.py": EVALUATE.format(mark=""), path: text}
    assert scanned(tmp_path, files, CODE) == []


def test_other_files_that_switch_their_own_models_do_not_count(tmp_path):
    files = {
        "net/evaluator.py": EVALUATE.format(mark="  # wrong"),
        "demo.py": "from somewhere import net\nnet.eval()\n",
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_a_module_that_evaluates_itself(tmp_path):
    predictor = """
        import torch
        from net.layers import Net

        class Predictor:
            def __init__(self):
                self.net = Net()

            def predict(self, x):
                with torch.no_grad():
                    return self.net(x)
    """
    layers = "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        {body}\n"
    files = {"predictor.py": predictor, "net/layers.py": layers.format(body="self.eval()")}
    assert scanned(tmp_path, files, CODE) == []
    files = {
        "predictor.py": predictor.replace("self.net(x)", "self.net(x)  # wrong"),
        "net/layers.py": layers.format(body="super().__init__()"),
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_silent_in_tests(tmp_path):
    files = {"tests/test_net.py": EVALUATE.format(mark="")}
    assert scanned(tmp_path, files, CODE) == []


MUTANTS = [
    ("or _sets_mode(file)", ""),
    ("or _switches(file.facts)", ""),
    ('or "eval" in facts.strings', ""),
    ('"mode" in at and _SWITCHES.fullmatch(at)', "False"),
    ("(*facts.attributes, *facts.imports)", "facts.attributes"),
    ("if _COPIES.search(last):", "if False:"),
    ("if free and _on_held_out(call, file):", "if False:"),
    ("(free or (scope and _VERBS.fullmatch(scope.name)))", "free"),
    ("(free or (scope and _VERBS.fullmatch(scope.name)))", "(free or scope)"),
    ("_OTHERWISE.fullmatch(name) or", ""),
    ("or (scope and _trains(scope, file))", ""),
    ("or _loads(call, scope, file)", ""),
    ("_EVALUATES.fullmatch(name) is not None or", "True or"),
    ("and not _used(scope, file)", ""),
    ("if not _known(owner, file):", "if False:"),
    ("if scope.decorator_list and", "if False and"),
    ("return _MODEL.fullmatch(last) is not None", "return True"),
    ("if name.startswith(_BUILDERS):", "if False:"),
    ('dotted(node.func).endswith("DataParallel")', "False"),
    ("node.func.attr in _MOVES", "False"),
]


def test_mutants():
    assert mutants(never_evaluated, MUTANTS, CASES) == []
