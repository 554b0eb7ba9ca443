"""What conditions, names and comments say of training and evaluation."""

import ast

import pytest

from dropseed.audit.reading import switch
from dropseed.audit.reading.file import File
from dropseed.audit.reading.source import Source, parse
from test_audit.rule_cases import PRELUDE


def read(text):
    source = Source(PRELUDE + text)
    return File(source, parse(source)[0], "net")


def condition(text):
    """A condition as it stands in the forward pass of a module."""
    file = read(f"class Net(nn.Module):\n  def forward(self, x):\n    if {text}: pass\n")
    return next(at for at in ast.walk(file.tree) if isinstance(at, ast.If)).test, file


@pytest.mark.parametrize(
    ("text", "true", "false"),
    [
        ("self.training", "train", "eval"),
        ("not self.training", "eval", "train"),
        ("is_train", "train", "eval"),
        ("training is True", "train", "eval"),
        ("training == False", "eval", "train"),
        ("train_mode == 1", "train", "eval"),
        ("self.training and self.p > 0", "train", None),
        ("self.p > 0 and self.training", "train", None),
        ("not self.training or self.p == 0", None, "train"),
        ("self.training or is_training", "train", "eval"),
        ("self.training or self.keep", None, "eval"),
        ("deterministic", "eval", "train"),
        ("self.inference", "eval", "train"),
        ("mode == 'train'", "train", "eval"),
        ("'eval' == mode", "eval", None),
        ("phase == 'val'", "eval", None),
        ("valid", None, None),
        ("mode != 'train'", "eval", "train"),
        ("mode == tf.estimator.ModeKeys.TRAIN", "train", "eval"),
        ("bool(training)", "train", "eval"),
        ("getattr(self, 'training', False)", "train", "eval"),
        ("self.is_training()", "train", "eval"),
        ("(on := self.training)", "train", "eval"),
        ("torch.is_grad_enabled()", "train", "eval"),
        ("q.requires_grad", "train", "eval"),
        ("mc_dropout", "train", "eval"),
        ("self.dropout_switch", "train", "eval"),
        ("training is None", None, None),
        ("val is not None", None, None),
        ("train == 3", None, None),
        ("self.p > 0", None, None),
        ("self.train", None, None),
        ("self.train()", None, None),
        ("self.use_dropout", None, None),
        ("trainer", None, None),
        ("x", None, None),
    ],
)
def test_implied(text, true, false):
    test, file = condition(text)
    assert switch.implied(test, True, file) == true
    assert switch.implied(test, False, file) == false


def test_a_deep_condition_says_nothing():
    test, file = condition("not (" * 60 + "self.training" + ")" * 60)
    assert switch.implied(test, True, file) in ("train", None)
    test, file = condition("(x and " * 60 + "self.training" + ")" * 60)
    assert switch.implied(test, True, file) in ("train", None)


def place(body):
    """The file of a forward pass with a call `here()`, and that call."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    file = read(f"class Net(nn.Module):\n  def forward(self, x):\n{lines}")
    return next(at for at in file.calls if file.text(at) == "here()"), file


@pytest.mark.parametrize(
    ("body", "mode"),
    [
        ("here()", None),
        ("if self.training: here()", "train"),
        ("if x: pass\nelif self.training: here()", "train"),
        ("if self.training: pass\nelse: here()", "eval"),
        ("y = here() if self.training else 0", "train"),
        ("y = self.training and here()", "train"),
        ("y = self.training or here()", "eval"),
        ("if not self.training: return x\nhere()", "train"),
        ("if not self.training:\n  if x: return x\n  else: return 0\nhere()", "train"),
        ("if not self.training: x = 1\nhere()", None),
        ("if self.training: x = 1\nelse: return x\nhere()", "train"),
        ("for y in x:\n  if not self.training: continue\n  here()", "train"),
        ("for y in x:\n  if not self.training: continue\nhere()", None),
        ("assert self.training\nhere()", "train"),
        ("while self.training: here()", "train"),
        ("if here(): self.training", None),
        ("def inner(): here()\nif self.training: inner()", None),
    ],
)
def test_mode_at(body, mode):
    node, file = place(body)
    assert switch.mode_at(node, file) == mode


@pytest.mark.parametrize(
    ("body", "asked"),
    [
        ("if self.training or self.keep: here()", True),
        ("if x and not self.training: return x\nhere()", True),
        ("if self.p > 0: here()", False),
        ("if self.train: here()", False),
        ("if training is None: return x\nhere()", False),
        ("if val is not None and test > 3: here()", False),
        ("if phase in ('val', 'test'): return x\nhere()", True),
    ],
)
def test_asked_at(body, asked):
    node, file = place(body)
    assert switch.asked_at(node, file) is asked


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("self.p if self.training else 0.0", True),
        ("self.p * float(self.training)", True),
        ("self.p", False),
        ("self.config.train.rate", False),
        ("self.decode(x)", True),
        ("rate", False),
    ],
)
def test_switched(text, expected):
    _, file = place(f"here()\ny = {text}")
    value = next(at for at in file.assignments if file.text(at.targets[0]) == "y").value
    assert switch.switched(value, file) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def train(): here()", True),
        ("def fit_one(): here()", True),
        ("def training_step(): here()", True),
        ("def forward_train(): here()", True),
        ("def forward(): here()", False),
        ("def helper(): here()\ndef train(): helper()", True),
        ("def helper(): here()\ndef train(): helper()\ndef run(): helper()", False),
        ("def evaluate(): here()\ndef train(): evaluate()", False),
        ("def helper(): here()", False),
        ("def helper(n): here(); helper(n - 1)", False),
        ("class A:\n  def f(self): here()\n  def train(self): self.f()", True),
        ("class A:\n  def f(self): here()\n  def train(self): f()", False),
        ("class A:\n  def forward(self): here()\n  def train(self): self.forward()", False),
        ("def train():\n  def step(): here()\n  step()", True),
        ("class A:\n  def f(self): here()\nclass B:\n  def train(self): self.f()", False),
        ("class A:\n  def f(self): here()\nclass B(A):\n  def train(self): self.f()", True),
    ],
)
def test_trains_only(text, expected):
    file = read(text)
    node = next(at for at in file.calls if file.text(at) == "here()")
    assert switch.trains_only(node, file) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class MCDropout:\n  def forward(self): here()", True),
        ("class DecoderPreNet:\n  def forward(self): here()", True),
        ("def mc_dropout(): here()", True),
        ("def augment(): here()", True),
        ("class PermaDropout:\n  def forward(self): here()", True),
        ("def f():\n  '''Dropout is always on.'''\n  here()", True),
        ("def f():\n  '''The first is always the larger one.'''\n  here()", False),
        ("def f():\n  # applied at training, also at test time\n  here()", True),
        (
            "def f():\n  # dropout stays in inference, too: intentional\n  x\n  y\n  z\n  here()",
            True,
        ),
        ("def f():\n  # the intentional one\n  x\n  y\n  z\n  here()", False),
        ("def f(strategy):\n  if strategy == DROP: here()", True),
        ("def f(bayesian):\n  if bayesian: here()", True),
        ("def f():\n  for _ in range(n_samples): here()", True),
        ("def f():\n  for _ in range(n_layers): here()", False),
        ("def f():\n  '''No dropout at inference.'''\n  here()", True),
        ("def f():\n  '''Dropout is on,\n  also at test time.'''\n  here()", True),
        ("def f():\n  '''Adds dropout. We also evaluate it.'''\n  here()", False),
        ("class A(BaseTransform):\n  def __call__(self): here()", True),
        ("class A(TransformerLayer):\n  def forward(self): here()", False),
        ("class Macro:\n  def forward(self): here()", False),
        ("class Net:\n  def forward(self): here()", False),
    ],
)
def test_by_design(text, expected):
    file = read(text)
    node = next(at for at in file.calls if file.text(at) == "here()")
    assert switch.by_design(node, file) is expected
