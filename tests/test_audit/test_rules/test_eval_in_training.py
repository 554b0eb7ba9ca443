"""DS108: training that goes on in evaluation mode."""

import pytest

from dropseed.audit.rules import eval_in_training
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS108"

WRONG = [
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model.eval()  # wrong
                validate(loader)
        """,
        id="validation in the loop, train before it",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            for epoch in range(3):
                model.train()
                for step, (x, y) in enumerate(loader):
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                    if step % 100 == 0:
                        model.eval()  # wrong
                        print(accuracy(loader))
        """,
        id="now and then inside an epoch, train at its top",
    ),
    pytest.param(
        """
        class Trainer:
            def fit(self, loader):
                self.model.train()
                for epoch in range(3):
                    for x, y in loader:
                        F.mse_loss(self.model(x), y).backward()
                        self.optimizer.step()
                    self.evaluate(loader)

            def evaluate(self, loader):
                self.model.eval()  # wrong
                with torch.no_grad():
                    return [self.model(x) for x, _ in loader]
        """,
        id="across methods",
    ),
    pytest.param(
        """
        class Model(nn.Module):
            def fit(self, loader, callbacks):
                self.train()
                callbacks = CallbackList(callbacks)
                for epoch in range(3):
                    callbacks.on_epoch_begin(epoch)
                    for x, y in loader:
                        F.mse_loss(self(x), y).backward()
                        self.optimizer.step()
                    self.evaluate(loader)

            def evaluate(self, loader):
                return score(self.predict(loader))

            def predict(self, loader):
                model = self.eval()  # wrong
                return [model(x) for x, _ in loader]
        """,
        id="between Keras's callbacks",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for i, (x, y) in enumerate(loader):
                F.mse_loss(model(x), y).backward()
                optimizer.step()
                if i % 100 == 0:
                    model.eval()  # wrong
                    score(model)
        """,
        id="every hundredth round",
    ),
    pytest.param(
        """
        class Model(nn.Module):
            def fit(self, loader, callbacks):
                self.train()
                callbacks = CallbackList(callbacks)
                for epoch in range(3):
                    callbacks.on_epoch_begin(epoch)
                    for x, y in loader:
                        F.mse_loss(self(x), y).backward()
                        self.optimizer.step()
                    self.evaluate(loader)

            def evaluate(self, loader):
                return score(self.predict(loader))

            def predict(self, loader):
                model = self.eval()  # wrong
                return [model(x) for x, _ in loader]
        """,
        id="between Keras's callbacks",
    ),
    pytest.param(
        """
        class Trainer:
            def train(self, loader):
                self.net.train()
                optimizer = torch.optim.Adam(self.net.parameters())
                for epoch in range(3):
                    for x, y in loader:
                        F.mse_loss(self.net(x), y).backward()
                        optimizer.step()
                    self.eval(loader)

            def eval(self, loader):
                self.net.eval()  # wrong
                return [self.net(x) for x, _ in loader]
        """,
        id="a method that is called eval",
    ),
    pytest.param(
        """
        def evaluate(net, loader):
            net.eval()  # wrong
            return [net(x) for x, _ in loader]

        def main(loader):
            model = build()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                evaluate(model, loader)
        """,
        id="across functions, with the optimizer's parameters",
    ),
    pytest.param(
        """
        model = build()
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(1000):
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            if step % 100 == 0:
                model.train(False)  # wrong
                print(model(x))
        """,
        id="a script, by train(False)",
    ),
    pytest.param(
        """
        def fit(model, loader, scaler, optimizer):
            model.train()
            while running():
                for x, y in loader:
                    scaler.scale(F.mse_loss(model(x), y)).backward()
                    scaler.step(optimizer)
                model.eval()  # wrong
        """,
        id="a scaler and a while",
    ),
    pytest.param(
        """
        class Trainer:
            def __init__(self, model):
                self.model = model
                self.optimizer = torch.optim.AdamW(
                    [{"params": [p for n, p in model.named_parameters() if "bias" not in n]}]
                )

            def fit(self, loader):
                model = self.model
                model = nn.DataParallel(model)
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    self.optimizer.step()
                    if due():
                        self.evaluate()

            def evaluate(self):
                self.model.eval()  # wrong
        """,
        id="groups of parameters, an alias and a wrapper",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model.eval()  # wrong
                for x, y in loader:
                    print(F.mse_loss(model(x), y))
        """,
        id="no train at all",
    ),
    pytest.param(
        """
        def fit(encoder, loader, optimizer):
            encoder.train()
            for x, y in loader:
                F.mse_loss(encoder(x), y).backward()
                optimizer.step()
                encoder.eval()  # wrong

        def tune(gnn, loader):
            optimizer = torch.optim.Adam(gnn.parameters())
            for x, y in loader:
                F.mse_loss(gnn(x), y).backward()
                optimizer.step()
                gnn.eval()  # wrong
        """,
        id="models by other names",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                for _ in range(3):
                    if odd():
                        model.eval()  # wrong
                        break
        """,
        id="a break that leaves another loop",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for x, y in loader:
                F.mse_loss(model(x), y).backward()
                optimizer.step()
                if odd():
                    model.eval()  # wrong
                    continue
                print(model(x))
        """,
        id="a continue, which stays in the loop",
    ),
]

RIGHT = [
    pytest.param(
        """
        def fit(model, loader, optimizer):
            for epoch in range(3):
                model.train()
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model.eval()
                validate(model)
        """,
        id="train at the top of each epoch",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model.eval()
                validate(loader)
                model.train()
        """,
        id="train after each validation",
    ),
    pytest.param(
        """
        class Trainer:
            def fit(self, loader):
                for epoch in range(3):
                    self.train_epoch(loader)
                    self.evaluate(loader)

            def train_epoch(self, loader):
                self.model.train()
                for x, y in loader:
                    F.mse_loss(self.model(x), y).backward()
                    self.optimizer.step()

            def evaluate(self, loader):
                self.model.eval()
        """,
        id="train in another method",
    ),
    pytest.param(
        """
        class Trainer:
            def fit(self, loader):
                for x, y in loader:
                    F.mse_loss(self.model(x), y).backward()
                    self.optimizer.step()
                    self.evaluate(loader)

            def evaluate(self, loader):
                mode = self.model.training
                self.model.eval()
                try:
                    return [self.model(x) for x, _ in loader]
                finally:
                    self.model.train(mode)
        """,
        id="the mode put back",
    ),
    pytest.param(
        """
        def fit(model, loaders, optimizer):
            for epoch in range(3):
                for phase in ("train", "val"):
                    if phase == "train":
                        model.train()
                    else:
                        model.eval()
                    for x, y in loaders[phase]:
                        loss = F.mse_loss(model(x), y)
                        if phase == "train":
                            loss.backward()
                            optimizer.step()
        """,
        id="phases",
    ),
    pytest.param(
        """
        def run(model, loader, optimizer, training):
            for x, y in loader:
                model.train() if training else model.eval()
                loss = F.mse_loss(model(x), y)
                if training:
                    optimizer.step()
        """,
        id="phases in one line",
    ),
    pytest.param(
        """
        def fit(model, loaders, optimizer):
            model.train()
            for phase in ("train", "val"):
                if phase == "val":
                    model.eval()
                for x, y in loaders[phase]:
                    loss = F.mse_loss(model(x), y)
                    if phase == "train":
                        optimizer.step()
        """,
        id="phases without an else",
    ),
    pytest.param(
        """
        class Solver:
            def fit(self):
                for epoch in range(3):
                    self.model.train()
                    self.run(epoch)
                    self.model.eval()
                    with torch.no_grad():
                        self.run(epoch, train=False)

            def run(self, epoch, train=True):
                for x, y in self.loader:
                    loss = F.mse_loss(self.model(x), y)
                    if train:
                        loss.backward()
                        self.optimizer.step()
        """,
        id="one method for both, told by an argument",
    ),
    pytest.param(
        """
        def run(model, loader, optimizer=None):
            for x, y in loader:
                loss = F.mse_loss(model(x), y)
                if optimizer is not None:
                    optimizer.step()

        def main(model, loader, optimizer):
            for epoch in range(3):
                model.train()
                run(model, loader, optimizer)
                model.eval()
                run(model, loader)
        """,
        id="one function for both, told by the optimizer",
    ),
    pytest.param(
        """
        def fit(model, teacher, loader):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model.train()
            for x, y in loader:
                teacher.eval()
                F.mse_loss(model(x), teacher(x)).backward()
                optimizer.step()
        """,
        id="a teacher",
    ),
    pytest.param(
        """
        def fit(model, ema_model, loader, optimizer):
            model.train()
            ema_model.train()
            for x, y in loader:
                F.mse_loss(model(x), y).backward()
                optimizer.step()
                ema_model.eval()
                print(ema_model(x))
        """,
        id="an average of the weights",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def fit(self, loader, optimizer):
                for x, y in loader:
                    self.train()
                    self.backbone.eval()
                    F.mse_loss(self(x), y).backward()
                    optimizer.step()
        """,
        id="a frozen part",
    ),
    pytest.param(
        """
        def fit(model, encoder, loader):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            model.train()
            for x, y in loader:
                encoder.eval()
                F.mse_loss(model(encoder(x)), y).backward()
                optimizer.step()
        """,
        id="a model that the optimizer does not have",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for x, y in loader:
                F.mse_loss(model(x), y).backward()
                optimizer.step()
                if enough():
                    model.eval()
                    return model
        """,
        id="a loop that ends there",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                for x, y in loader:
                    if enough():
                        model.eval()
                        return model
        """,
        id="a loop in it that ends both",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                if enough():
                    model.eval()
                    break
        """,
        id="a loop that breaks there",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                try:
                    for x, y in loader:
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                except KeyboardInterrupt:
                    model.eval()
                    save(model)
        """,
        id="a handler",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for x, y in loader:
                F.mse_loss(model(x), y).backward()
                optimizer.step()
            model.eval()
            return validate(model)
        """,
        id="after the loop",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            while True:
                for x, y in loader:
                    optimizer.step()
                model.eval()
                break
        """,
        id="a loop that runs once",
    ),
    pytest.param(
        """
        from project import train_epoch

        def fit(model, loader, optimizer):
            model.train()
            for epoch in range(3):
                train_epoch(model, loader)
                optimizer.step()
                model.eval()
        """,
        id="a function that can't be seen and may switch",
    ),
    pytest.param(
        """
        class Trainer(Base):
            def fit(self, loader):
                self.model.train()
                for epoch in range(3):
                    self.on_epoch_start()
                    for x, y in loader:
                        F.mse_loss(self.model(x), y).backward()
                        self.optimizer.step()
                    self.model.eval()
        """,
        id="a hook that can't be seen",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer, callbacks):
            model.train()
            for epoch in range(3):
                callbacks.on_epoch_begin(epoch)
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model.eval()
        """,
        id="callbacks that can't be seen",
    ),
    *(
        pytest.param(
            f"""
            def fit(model, loader, optimizer, valid):
                for epoch in range(3):
                    model.train()
                    for i, (x, y) in enumerate(loader):
                        F.mse_loss(model(x), y).backward()
                        optimizer.step()
                        {test}
                            model.eval()
                            score(model, valid)
            """,
            id=f"in the last round, {test}",
        )
        for test in (
            "if i == len(loader) - 1:",
            "if len(loader) == i + 1:",
            "if i != len(loader) - 1 or valid is None:\n"
            "                            log(i)\n                        elif epoch % 2:",
        )
    ),
    pytest.param(
        """
        class Trainer:
            def evaluate(self, model, data):
                self.model.eval()
                found = self.model.encode(data).detach()
                classifier = nn.Linear(found.shape[1], 3)
                optimizer = torch.optim.Adam(classifier.parameters())
                for epoch in range(3):
                    F.mse_loss(classifier(found), data.y).backward()
                    optimizer.step()

            def fit(self, data):
                for epoch in range(3):
                    self.model.train()
                    self.model.loss(data).backward()
                    self.optimizer.step()
                    self.evaluate(self.model, data)
        """,
        id="a classifier on what the model gives",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer, callbacks):
            model.train()
            for epoch in range(3):
                callbacks.on_epoch_begin(epoch)
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
                model.eval()
        """,
        id="callbacks that can't be seen",
    ),
    pytest.param(
        """
        class Trainer:
            def fit(self, loader):
                self.model.train()
                for x, y in loader:
                    F.mse_loss(self.model(x), y).backward()
                    self.optimizer.step()
                    self.validate()

            @restore_training_mode
            def validate(self):
                self.model.eval()
        """,
        id="a decorator that puts the mode back",
    ),
    pytest.param(
        """
        def attack(model, x, y):
            model.eval()
            delta = torch.zeros_like(x)
            optimizer = torch.optim.SGD([delta], lr=0.1)
            for _ in range(10):
                model.eval()
                F.mse_loss(model(x + delta), y).backward()
                optimizer.step()
        """,
        id="an attack, which trains its noise",
    ),
    pytest.param(
        """
        class Trainer:
            def fit(self, loader):
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
                self.prototype_optimizer = torch.optim.SGD(self.prototypes.parameters(), lr=0.1)
                for x, y in loader:
                    self.model.train()
                    F.mse_loss(self.model(x), y).backward()
                    self.optimizer.step()
                    self.model.eval()
                    self.prototype_optimizer.step()
        """,
        id="the step of another optimizer",
    ),
    pytest.param(
        """
        class Search:
            def fit(self, loader):
                for x, y in loader:
                    self.model.train()
                    self.controller.eval()
                    self.optimizer.step()
                    self.model.eval()
                    self.controller.train()
                    self.controller_optimizer.step()
        """,
        id="two models in turn",
    ),
    pytest.param(
        """
        def fit(models, loader, optimizer):
            for model in models:
                model.train()
            for epoch in range(3):
                for x, y in loader:
                    optimizer.step()
                for model in models:
                    model.eval()
        """,
        id="the items of a list",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            ddp_model = nn.parallel.DistributedDataParallel(model)
            for epoch in range(3):
                ddp_model.train()
                for x, y in loader:
                    optimizer.step()
                model.eval()
        """,
        id="switched through its wrapper",
    ),
    pytest.param(
        """
        def tune(model, loader, optimizer):
            for epoch in range(3):
                model.eval()
                for x, y in loader:
                    F.mse_loss(model(x), y).backward()
                    optimizer.step()
        """,
        id="trained in evaluation mode from the beginning",
    ),
    pytest.param(
        """
        def fit(model, loader, optimizer):
            model.train()
            for x, y in loader:
                optimizer.step()
                frame = frame.eval("a + b")
                table = pd.eval("1 + 1")
        """,
        id="another eval",
    ),
    pytest.param(
        """
        def watch(model, env, optimizer):
            model.train()
            for _ in range(3):
                model.eval()
                env.step(model.act())
        """,
        id="the step of an environment",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_names_the_model():
    assert messages(WRONG[2].values[0], CODE) == [
        "`self.model` is in evaluation mode at the next optimizer step, too"
    ]


def test_silent_in_tests(tmp_path):
    text = "import torch\n" + WRONG[0].values[0].replace("\n        ", "\n").lstrip()
    files = {"tests/test_fit.py": text.replace("  # wrong", ""), "fit.py": text}
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_notebook_cells_are_one_script(tmp_path):
    lines = [
        "import torch\nmodel.train()\n",
        "for epoch in range(3):\n    optimizer.step()\n    model.eval()\n",
    ]
    cells = ", ".join(
        f'{{"cell_type": "code", "source": {line!r}}}'.replace("'", '"') for line in lines
    )
    files = {"fit.ipynb": f'{{"cells": [{cells}]}}'}
    assert scanned(tmp_path, files, CODE) == [("fit.ipynb", 3)]


MUTANTS = [
    ("if _in_one_round(event.place, loop, file):", "if False:"),
    ("ast.Eq if truth else ast.NotEq", "ast.Eq"),
    (" and isinstance(side.op, ast.Mod)", ""),
    ("and not (isinstance(side, ast.BinOp)", "and not (False"),
    ('other.kind == "train" and same(other.model, model)', "False"),
    ("other.weights is not None and _of(other, model, False)", "False"),
    ('other.kind in ("train", "unknown")', 'other.kind == "train"'),
    ('other.kind in ("train", "unknown")', 'other.kind == "unknown"'),
    ("[*inside[at + 1 :], *inside[:at]]", "inside[at + 1 :]"),
    ("[*inside[at + 1 :], *inside[:at]]", "inside[:at]"),
    ("len(optimizers) == 1", "True"),
    ("if _COPIES.search(model):", "if False:"),
    ("if isinstance(parent, ast.ExceptHandler):", "if False:"),
    ("isinstance(loop.body[-1], _EXITS) or", ""),
    ("and leaves(parent.body)", "and False"),
    ("innermost is not loop and", "False and"),
    ("and not isinstance(parent.body[-1], _RETURNS)", ""),
    ("and not isinstance(parent.body[-1], ast.Continue)", ""),
    ('mode_at(event.place, file) == "eval" and', "False and"),
    ("or event.model == ANY", ""),
    ('plain and any(other.kind == "step" for other in before)', "False"),
    ('plain and any(other.kind == "step" for other in before)', "plain"),
]


def test_mutants():
    assert mutants(eval_in_training, MUTANTS, CASES) == []
