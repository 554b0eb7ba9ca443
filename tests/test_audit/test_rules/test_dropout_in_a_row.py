"""DS205: two dropouts in a row, or dropout straight before max-pooling."""

import pytest

from dropseed.audit.rules import dropout_in_a_row
from test_audit.rule_cases import hits, marked, messages, mutants

CODE = "DS205"


def sequence(*lines):
    """A sequence of these layers."""
    return "nn.Sequential(\n" + "".join(f"    {line}\n" for line in lines) + ")\n"


WRONG = [
    pytest.param(sequence("nn.Dropout(0.5),", "nn.Dropout(0.5),  # wrong"), id="two"),
    pytest.param(
        sequence("nn.Dropout(0.5),", "nn.ReLU(),", "nn.Dropout(0.5),  # wrong"),
        id="an activation between",
    ),
    pytest.param(
        sequence("nn.Dropout2d(0.5),", "nn.Flatten(),", "nn.Dropout(0.5),  # wrong"),
        id="channels, then elements",
    ),
    pytest.param(
        sequence("nn.Dropout(0.5),  # wrong", "nn.MaxPool1d(2),"), id="before max-pooling"
    ),
    pytest.param(
        sequence("nn.Dropout(0.5),  # wrong", "nn.ReLU(),", "nn.AdaptiveMaxPool2d(1),"),
        id="an activation before max-pooling",
    ),
    pytest.param(
        "def f(x):\n    x = F.dropout(x, 0.1, True)\n    return F.dropout(x, 0.1, True)  # wrong",
        id="functions",
    ),
    pytest.param(
        "def f(x):\n    x = F.dropout(x, 0.1, True)  # wrong\n    return F.max_pool2d(x, 2)",
        id="functions, pooling",
    ),
    pytest.param(
        """
        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.1)

            def forward(self, x):
                return self.drop(self.fc(x))

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.block, self.drop = Block(), nn.Dropout(0.1)  # wrong

            def forward(self, x):
                return x + self.drop(self.block(x))
        """,
        id="a block that ends in dropout",
    ),
    pytest.param(
        """
        def f(x):
            x = layers.Dropout(0.2)(x)
            x = layers.Activation("relu")(x)
            x = layers.Dropout(0.2)(x)  # wrong
            return layers.Dense(3)(x)
        """,
        id="Keras",
    ),
]

RIGHT = [
    pytest.param(
        sequence("nn.Dropout(0.5),", "nn.Linear(8, 8),", "nn.Dropout(0.5)"), id="a layer between"
    ),
    pytest.param(
        sequence("nn.Dropout(0.5),", "nn.LayerNorm(8),", "nn.Dropout(0.5)"), id="a norm between"
    ),
    pytest.param(sequence("nn.Dropout(0.5),", "nn.Dropout(0)"), id="a rate of 0"),
    pytest.param(sequence("nn.Dropout(0.0),", "nn.Dropout(0.5)"), id="a first rate of 0"),
    pytest.param(
        sequence("nn.Dropout(0.5),", "make(),", "nn.Dropout(0.5)"), id="something unknown between"
    ),
    pytest.param(sequence("nn.MaxPool1d(2),", "nn.Dropout(0.5)"), id="behind max-pooling"),
    pytest.param(sequence("nn.Dropout(0.5),", "nn.AvgPool1d(2)"), id="before a mean"),
    pytest.param(
        sequence("nn.Dropout2d(0.5),", "nn.MaxPool2d(2)"), id="channels before max-pooling"
    ),
    pytest.param(
        sequence("nn.Dropout(0.5),", "torchvision.ops.StochasticDepth(0.5, 'row')"),
        id="a dropped path",
    ),
    pytest.param(
        "def f(x):\n    return F.dropout(x, 0.1, True) + F.dropout(x, 0.1, True)", id="side by side"
    ),
    pytest.param(
        "def f(x, a):\n    if a:\n        return F.dropout(x)\n    return F.dropout(x)",
        id="two branches",
    ),
    pytest.param(
        "def f(x, a):\n    if a:\n        x = F.dropout(x)\n    if not a:\n"
        "        x = F.dropout(x)\n    return x",
        id="conditions that exclude each other",
    ),
    pytest.param(
        "def f(x, a):\n    if a:\n        x = F.dropout(x)\n    if not a:\n"
        "        x = F.max_pool1d(x, 2)\n    return x",
        id="conditions that exclude each other, pooling",
    ),
    pytest.param(
        "def f(x):\n    for _ in range(3):\n        x = F.dropout(g(x), 0.1, True)\n    return x",
        id="a loop",
    ),
    pytest.param(
        """
        class Block(nn.Module):
            def __init__(self, dropout):
                super().__init__()
                self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(dropout)

            def forward(self, x):
                return self.drop(self.fc(x))

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.block, self.drop = Block(dropout=0.0), nn.Dropout(0.1)

            def forward(self, x):
                return self.drop(self.block(x))
        """,
        id="a block that is built without dropout",
    ),
    pytest.param(
        "def f(x, n):\n    for i in range(n):\n        x = g(x)\n        if i < n - 1:\n"
        "            x = F.dropout(x, 0.1, True)\n    return F.dropout(x, 0.1, True)",
        id="not in the last round of a loop",
    ),
    pytest.param(
        "def f(x, n):\n    x = F.dropout(x, 0.1, True)\n    for i in range(n):\n        if i > 0:\n"
        "            x = F.dropout(x, 0.1, True)\n        x = g(x)\n    return x",
        id="not in the first round of a loop",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.attn, self.fc = nn.Dropout(0.1), nn.Linear(8, 8)
                self.out = nn.Dropout(0.1)

            def forward(self, x):
                a = self.attn(torch.softmax(x @ x, -1))
                return self.out(self.fc(a @ x))
        """,
        id="attention",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(0.1)

            def forward(self, x):
                return self.drop(self.fc(self.drop(x)))
        """,
        id="one layer at two places",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fcs = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
                self.drop = nn.Dropout(0.1)

            def forward(self, x):
                for fc in self.fcs:
                    x = self.drop(fc(x))
                return x
        """,
        id="one layer in a loop",
    ),
    pytest.param(
        "def f(x):\n    x = layers.Dropout(0.2)(x)\n    x = layers.Dense(3)(x)\n"
        "    return layers.Dropout(0.2)(x)",
        id="Keras, a layer between",
    ),
    pytest.param(
        "def f(x):\n    x = layers.Dropout(0.2)(x)\n"
        "    return layers.Dropout(0.2, noise_shape=(None, 1, 1))(x)",
        id="Keras, whole examples",
    ),
    pytest.param(
        "def f(x):\n    x = layers.MaxPooling2D()(x)\n    return layers.Dropout(0.2)(x)",
        id="Keras, behind max-pooling",
    ),
]

CHANGES = [
    ('BETWEEN = ("activation", ', "BETWEEN = ("),
    ('BETWEEN = ("activation", ', 'BETWEEN = ("linear", "norm", "activation", '),
    ('at.family == "max pool"', 'at.family == "mean pool"'),
    ('step.family != "elementwise" or ', ""),
    (" or apart(step, pool, file)", ""),
    (" and not apart(first, step, file)", ""),
    ("    if dropped_nothing(step):\n        return None\n", ""),
    ("and not dropped_nothing(step)\n", "\n"),
    ('step.family in ("elementwise", "spatial")', 'step.family == "elementwise"'),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


def test_messages():
    assert messages(WRONG[0].values[0], CODE) == ["two dropouts in a row: the first is in line 3"]
    assert messages(WRONG[3].values[0], CODE) == [
        "dropout straight before `MaxPool1d`, which picks what was kept"
    ]


def test_mutants():
    assert mutants(dropout_in_a_row, CHANGES, WRONG + RIGHT) == []
