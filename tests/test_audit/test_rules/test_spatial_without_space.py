"""DS203: spatial dropout on data without space."""

import pytest

from dropseed.audit.rules import spatial_without_space
from test_audit.rule_cases import hits, marked, messages, mutants

CODE = "DS203"

NET = """
class Net(nn.Module):
    def __init__(self, p=0.5):
        super().__init__()
        self.drop = nn.{kind}(p){mark}
        self.conv1 = nn.Conv1d(8, 8, 3)
        self.conv2 = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 8)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.embed = nn.Embedding(9, 8)

    def forward(self, x, shape=None):
{run}
"""


def net(kind, run, wrong=True):
    """A module that applies a kind of dropout in its forward pass; it is wrong or not."""
    lines = "\n".join("        " + line for line in run.strip().split("\n"))
    return NET.format(kind=kind, run=lines, mark="  # wrong" if wrong else "")


WRONG = [
    pytest.param(net("Dropout1d", "return self.drop(self.embed(x))"), id="words, unnamed"),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop, self.fc = nn.Dropout2d(0.5), nn.Linear(320, 50)
                self.conv = nn.Conv2d(3, 8, 3)

            def forward(self, x):
                x = self.drop(self.conv(x)).view(-1, 320)
                return self.drop(self.fc(x))  # wrong
        """,
        id="a layer that is right elsewhere",
    ),
    pytest.param(net("Dropout2d", "return self.drop(self.fc(x))"), id="after a linear layer"),
    pytest.param(
        net("Dropout2d", "return self.fc(self.drop(F.relu(self.fc(x))))"),
        id="an activation between",
    ),
    pytest.param(net("Dropout3d", "return self.drop(self.fc(x))"), id="in three dimensions"),
    pytest.param(net("Dropout2d", "return self.drop(x.view(-1, 320))"), id="a flat view"),
    pytest.param(
        net(
            "Dropout2d",
            "x = self.conv2(x)\nx = torch.flatten(x, 1)\nx = self.drop(x)\nreturn self.fc(x)",
        ),
        id="flattened maps",
    ),
    pytest.param(
        net("Dropout1d", "x = torch.max(self.conv1(x), dim=2)[0]\nreturn self.fc(self.drop(x))"),
        id="maps of which the largest are kept",
    ),
    pytest.param(
        net("Dropout1d", "x = x.flatten(1)\nreturn self.drop(F.relu(self.fc(x)))"),
        id="one-dimensional, a linear layer of flat data",
    ),
    pytest.param(
        net("Dropout1d", "y, _ = self.rnn(x)\nreturn self.drop(y)"), id="after a recurrent layer"
    ),
    pytest.param(
        net("Dropout1d", "y, _ = self.rnn(x)\nreturn self.drop(y[:, -1])"), id="the last step of it"
    ),
    pytest.param(net("Dropout2d", "return self.drop(self.embed(x))"), id="words"),
    pytest.param(
        "def f(x, w):\n    x = F.linear(x, w)\n    return F.dropout2d(x, 0.5, True)  # wrong",
        id="functions",
    ),
    pytest.param(
        """
        nn.Sequential(
            nn.Flatten(),
            nn.Linear(8, 8),
            nn.ReLU(),
            nn.Dropout2d(0.5),  # wrong
            nn.Linear(8, 2),
        )
        """,
        id="a Sequential",
    ),
    pytest.param(
        """
        class Mlp(nn.Module):
            def __init__(self, n, p):
                super().__init__()
                drop = [nn.Dropout1d(p)] if p else []  # wrong
                layers = [nn.Linear(n, n), nn.ReLU(), *drop]
                self.net = nn.Sequential(*layers, nn.Linear(n, n))

            def forward(self, x):
                return self.net(x)
        """,
        id="between linear layers",
    ),
]


def right(kind, run, **options):
    return pytest.param(net(kind, run, wrong=False), **options)


RIGHT = [
    pytest.param(
        """
        class Mixing(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.net = nn.Sequential(nn.Linear(n, n), nn.Dropout1d(0.1), nn.Linear(n, n))

            def forward(self, x):
                return self.net(x.transpose(1, 2)).transpose(1, 2)
        """,
        id="between linear layers that work along another axis",
    ),
    pytest.param(
        "net = nn.Sequential(nn.Linear(8, 8), nn.Dropout1d(0.1), nn.Linear(8, 8))",
        id="between linear layers, used elsewhere",
    ),
    right("Dropout2d", "return self.drop(self.conv2(x))", id="maps"),
    right("Dropout1d", "return self.drop(self.conv1(x))", id="maps of one dimension"),
    right("Dropout2d", "return self.drop(self.conv1(x))", id="as was usual before Dropout1d"),
    right("Dropout2d", "return self.drop(x)", id="a parameter"),
    right("Dropout1d", "return self.fc(self.drop(x))", id="before a linear layer"),
    right("Dropout", "return self.drop(self.fc(x))", id="element-wise"),
    right(
        "Dropout1d", "return self.drop(self.fc(x))", id="a linear layer that may work along time"
    ),
    right(
        "Dropout1d",
        "x = self.fc(x)\nreturn self.drop(x.transpose(1, 2)).transpose(1, 2)",
        id="transposed before",
    ),
    right("Dropout2d", "return self.drop(self.fc(x).permute(0, 2, 1))", id="permuted before"),
    right(
        "Dropout2d", "return self.drop(self.fc(x).unsqueeze(2)).squeeze(2)", id="unsqueezed before"
    ),
    right("Dropout2d", "return self.drop(self.embed(x).unsqueeze(3))", id="unsqueezed words"),
    right("Dropout1d", "word_drop = self.drop\nreturn word_drop(self.embed(x))", id="whole words"),
    right("Dropout2d", "return self.drop(self.fc(x).view(-1, 8, 4, 4))", id="a view of maps"),
    right("Dropout2d", "return self.drop(self.fc(x).reshape(shape))", id="a view of unknown shape"),
    right(
        "Dropout2d", "return self.drop(x.view(-1, 320, 1, 1)).view(-1, 320)", id="maps of one place"
    ),
    right("Dropout2d", "return self.drop(x.flatten(2))", id="positions made one axis"),
    right("Dropout1d", "y, _ = self.rnn(x)\nreturn self.drop(y.mT)", id="an unknown attribute"),
    right("Dropout2d", "return self.drop(mix(self.fc(x)))", id="an unknown function"),
    right(
        "Dropout2d", "return self.fc(self.drop(self.conv2(x)).flatten(1))", id="flattened behind"
    ),
    right("Dropout2d", "return self.drop(self.conv2(x) + self.fc(x))", id="an addition"),
    right("Dropout2d", "x = self.fc(x)\nx = self.conv2(x)\nreturn self.drop(x)", id="maps between"),
    right(
        "Dropout2d",
        "if x.dim() == 4:\n    return self.drop(x)\nreturn self.fc(x)",
        id="two branches",
    ),
    right(
        "Dropout2d",
        "if shape:\n    x = self.fc(x)\nif not shape:\n    x = self.drop(x)\nreturn x",
        id="conditions that exclude each other",
    ),
    pytest.param(
        "def f(x):\n    x = layers.Dense(8)(x)\n    return layers.SpatialDropout1D(0.5)(x)",
        id="Keras, whose channels are last",
    ),
    pytest.param(
        "def f(x):\n    x = layers.Embedding(9, 8)(x)\n    return layers.SpatialDropout1D(0.5)(x)",
        id="Keras, words",
    ),
    pytest.param(
        "def f(x):\n    x = layers.LSTM(8, return_sequences=True)(x)\n"
        "    return layers.SpatialDropout1D(0.5)(x)",
        id="Keras, after a recurrent layer",
    ),
    pytest.param(
        """
        class SpatialDropout(nn.Dropout2d):
            def forward(self, x):
                return super().forward(x.transpose(1, 2)).transpose(1, 2)

        nn.Sequential(nn.Linear(8, 8), SpatialDropout(0.5))
        """,
        id="a class of its own that turns the axes",
    ),
]

CHANGES = [
    ("if _in_a_row(step, file) else", "if True else"),
    ("if _in_a_row(step, file) else", "if False else"),
    ("return not moved and any", "return any"),
    ("owner is None or _MOVED", "_MOVED"),
    ('any(at.family == "linear" for at in step.after(*ELEMENTS))', "True"),
    ('("torch.", "dropseed.")', '("torch.", "dropseed.", "keras.")'),
    ("axes(at) == 2 and", "axes(at) == 9 and"),
    ("if at.family in families and not apart(at, step, file)", "if at.family in families"),
    ('if step.kind.lower().endswith("1d")', "if False"),
    ('if step.kind.lower().endswith("1d")', "if True"),
    ("if not _WORDS.search(ast.unparse(step.node)):", "if True:"),
    ("if not _WORDS.search(ast.unparse(step.node)):", "if False:"),
    ('LAST = ("linear", "recurrent", "embedding")', 'LAST = ("recurrent", "embedding")'),
    ('LAST = ("linear", "recurrent", "embedding")', 'LAST = ("linear", "recurrent")'),
    ('("activation", "identity", "elementwise"', '("identity", "elementwise"'),
    ('"alpha", "norm")', '"alpha", "norm", "reshape")'),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            WRONG[2].values[0],
            "`Dropout2d` straight after `Linear`, whose features are in the last axis",
        ),
        (WRONG[7].values[0], "`Dropout1d` drops whole examples of flat data (N, D)"),
        (
            WRONG[5].values[0],
            "`Dropout2d` takes flat data (N, D), which has no space, for now: "
            "it is to become an error",
        ),
    ],
)
def test_messages(text, message):
    assert messages(text, CODE) == [message]


@pytest.mark.parametrize(("kind", "whole"), [("Dropout1d", True), ("Dropout2d", False)])
def test_torch_does_so(kind, whole):
    """What the messages say of flat data is what torch does with it."""
    import warnings

    import torch

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        rows = getattr(torch.nn, kind)(0.5)(torch.ones(64, 64))
    assert all(len(set(row.tolist())) == 1 for row in rows) is whole


def test_mutants():
    assert mutants(spatial_without_space, CHANGES, WRONG + RIGHT) == []
