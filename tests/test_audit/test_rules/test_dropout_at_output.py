"""DS202: dropout after the output layer, or between logits and loss."""

import pytest

from dropseed.audit.rules import dropout_at_output
from test_audit.rule_cases import hits, marked, messages, mutants

CODE = "DS202"

NET = """
class Net(nn.Module):
    def __init__(self, num_classes, config, hidden, p):
        super().__init__()
        self.dropout = nn.Dropout(p){mark}
{build}

    def forward(self, x, y=None):
{run}
"""


def net(build, run, wrong=True):
    """A module with these layers and this forward pass, whose dropout is wrong or not."""
    indented = (["        " + line for line in part.strip().split("\n")] for part in (build, run))
    first, last = map("\n".join, indented)
    return NET.format(mark="  # wrong" if wrong else "", build=first, run=last)


FC = "self.fc = nn.Linear(64, num_classes)"

WRONG = [
    pytest.param(
        net(
            "pass",
            "a, b = self.block(x)\na = self.dropout(a)\nreturn F.log_softmax(a + b, dim=1)",
        ),
        id="summed before a log-softmax",
    ),
    pytest.param(net(FC, "return self.dropout(self.fc(x))"), id="after the output layer"),
    pytest.param(net(FC, "x = self.fc(x)\nx = self.dropout(x)\nreturn x"), id="line by line"),
    pytest.param(
        net("self.fc = nn.Linear(64, config.num_labels)", "return self.dropout(self.fc(x))"),
        id="a size of the settings",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, out_features=self.vocab_size)",
            "return self.dropout(self.fc(x))",
        ),
        id="words",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, 3 * num_classes)",
            "return self.dropout(self.fc(x)).view(-1, 3, 5)",
        ),
        id="a product, and a view behind",
    ),
    pytest.param(
        net("self.conv = nn.Conv2d(64, num_classes, 1)", "return self.dropout(self.conv(x))"),
        id="a convolution",
    ),
    pytest.param(
        net("self.classifier = nn.Linear(64, hidden)", "return self.dropout(self.classifier(x))"),
        id="a layer named so",
    ),
    pytest.param(
        net(FC, "logits = self.dropout(self.fc(x))\nreturn {'logits': logits}"),
        id="returned in a dict",
    ),
    pytest.param(
        net(FC, "logits = self.dropout(self.fc(x))\nreturn ModelOutput(loss=None, logits=logits)"),
        id="returned in a record",
    ),
    pytest.param(
        net(FC, "return torch.softmax(self.dropout(self.fc(x)), 1)"), id="before a softmax"
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, self.num_items)",
            "z = self.dropout(self.fc(x)).masked_fill(y, -1e9)\n"
            "return 0.5 * torch.softmax(z, 1) + 0.5 * self.repeated(x)",
        ),
        id="masked, before a softmax that is mixed",
    ),
    pytest.param(
        """
        class KnowledgeTracing(nn.Module):
            def __init__(self, items):
                super().__init__()
                self.decoder = nn.Sequential(
                    nn.Linear(64, items),
                    nn.Dropout(),  # wrong
                    nn.Sigmoid(),
                )

            def forward(self, x):
                return self.decoder(x)
        """,
        id="a decoder",
    ),
    pytest.param(
        net(FC, "z = self.dropout(self.fc(x))\nreturn z, self.loss(z, y)")
        + "\n    def loss(self, z, y):\n        return (z + y).log().sum()\n",
        id="returned with a loss that is written by hand",
    ),
    pytest.param(
        net(
            FC,
            "z = self.dropout(self.fc(x))\nloss = self.criterion(z, y)\nreturn loss, z",
        ),
        id="returned, and judged",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, hidden)",
            "return F.log_softmax(self.dropout(self.fc(x)), dim=1)",
        ),
        id="before a log-softmax",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, hidden)", "return F.cross_entropy(self.dropout(self.fc(x)), y)"
        ),
        id="before the loss",
    ),
    pytest.param(
        net(
            "self.loss = nn.CrossEntropyLoss()",
            "logits = self.dropout(self.head(x))\nreturn self.loss(logits.view(-1, 5), y.view(-1))",
        ),
        id="before a loss that is a layer",
    ),
    pytest.param(
        net("pass", "z = self.dropout(x)\nreturn F.binary_cross_entropy_with_logits(z, y)"),
        id="before a binary loss",
    ),
    pytest.param(
        "def f(net, x, y):\n    z = F.dropout(net(x), 0.1)  # wrong\n    return F.nll_loss(z, y)",
        id="a function before the loss",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, 1)",
            "return torch.sigmoid(self.dropout(self.fc(x))).squeeze(-1)",
        ),
        id="before a last sigmoid",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, hidden)", "x = self.dropout(self.fc(x))\nreturn x.softmax(-1)"
        ),
        id="before a last softmax",
    ),
    pytest.param(
        """
        def build(num_classes):
            return nn.Sequential(
                nn.Linear(64, num_classes),
                nn.Dropout(0.5),  # wrong
            )
        """,
        id="a Sequential that ends so",
    ),
    pytest.param(
        """
        def build(inputs, num_classes):
            x = layers.Dense(num_classes, activation="softmax")(inputs)
            return layers.Dropout(0.5)(x)  # wrong
        """,
        id="Keras",
    ),
]


def right(build, run, **options):
    return pytest.param(net(build, run, wrong=False), **options)


RIGHT = [
    right(FC, "return self.fc(self.dropout(x))", id="before the output layer"),
    right(
        "self.fc = nn.Linear(64, num_classes) if num_classes else nn.Identity()",
        "return F.cross_entropy(self.fc(self.dropout(x)), y)",
        id="before an output layer that may be left out",
    ),
    right(
        "if num_classes:\n    self.fc = nn.Linear(64, num_classes)\nelse:\n"
        "    self.fc = nn.Identity()",
        "return F.cross_entropy(self.fc(self.dropout(x)), y)",
        id="before an output layer that may be left out, in two branches",
    ),
    pytest.param(
        net(
            "self.fc = nn.Linear(64, 1)", "return torch.sigmoid(self.dropout(self.fc(x)))", False
        ).replace("class Net", "class SpatialGate"),
        id="a class that is a gate",
    ),
    right(
        "self.attention = nn.Linear(64, 1)",
        "return torch.softmax(self.dropout(self.attention(x)), 1)",
        id="a layer for attention",
    ),
    right(
        "self.fc = nn.Linear(64, 1)",
        "return torch.sigmoid(self.dropout(F.relu(self.fc(x))))",
        id="features before a sigmoid",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.dropout = nn.Linear(64, 1), nn.Dropout(0.5)

            def importance(self, x):
                return torch.sigmoid(self.dropout(self.fc(x)))

            def forward(self, x):
                return x
        """,
        id="a method beside the forward pass",
    ),
    right("self.fc = nn.Linear(64, hidden)", "return self.dropout(self.fc(x))", id="a block"),
    right(
        "n_tags = config.n_tags\nif p:\n    n_tags = hidden\nself.fc = nn.Linear(64, n_tags)",
        "return self.dropout(self.fc(x))",
        id="a size that may be another",
    ),
    right("self.fc_out = nn.Linear(64, 64)", "return self.dropout(self.fc_out(x))", id="attention"),
    right(
        "self.out_proj = nn.Linear(64, 64)",
        "return self.dropout(self.out_proj(x))",
        id="a projection",
    ),
    right("self.head = nn.Linear(64, hidden)", "return self.dropout(self.head(x))", id="a head"),
    right("pass", "logits = self.dropout(x)\nreturn logits", id="a name alone"),
    right(
        "pass", "logits = self.backbone(x)\nreturn self.last(self.dropout(logits))", id="features"
    ),
    right(
        "self.fc = nn.Linear(num_classes, 64)",
        "return self.dropout(self.fc(x))",
        id="classes as input",
    ),
    right(
        "self.embed = nn.Embedding(num_classes, 64)",
        "return self.dropout(self.embed(x))",
        id="an embedding",
    ),
    right(
        FC + "\nself.more = nn.Linear(num_classes, 64)",
        "return self.more(self.dropout(self.fc(x)))",
        id="a layer goes on with it",
    ),
    right(FC, "return self.mix(self.dropout(self.fc(x)))", id="something unknown goes on with it"),
    right(
        FC, "z = self.dropout(self.fc(x))\nreturn z, self.crf(z)", id="something else takes it, too"
    ),
    right(FC, "z = self.dropout(self.fc(x))\nreturn x", id="not given back"),
    right(FC, "z = self.fc(x)\ny = self.dropout(y)\nreturn z, y", id="another value"),
    right(FC, "return self.fc(x) + self.dropout(y)", id="an addition"),
    right(
        "self.fc = nn.Linear(64, hidden)",
        "a = torch.softmax(self.fc(x), -1)\nreturn self.dropout(a) @ x",
        id="attention probabilities",
    ),
    right(
        "self.fc = nn.Linear(64, 1)",
        "return torch.sigmoid(self.dropout(self.fc(x))) * x",
        id="a gate",
    ),
    right("pass", "return F.mse_loss(self.dropout(x), y)", id="features that are compared"),
    right("pass", "return F.cross_entropy(x, self.dropout(y))", id="the targets"),
    right(
        "pass", "return F.cross_entropy(self.fc(self.dropout(x)), y)", id="a layer before the loss"
    ),
    right(
        "self.body = nn.Sequential(nn.Linear(64, num_classes), nn.ReLU())",
        "return self.body(self.dropout(x))",
        id="before a sequence",
    ),
    right(
        "self.bn = nn.BatchNorm1d(num_classes)",
        "return self.dropout(self.bn(x))",
        id="another layer",
    ),
    right(
        FC,
        "z = self.fc(x)\nif self.training:\n    return z\nreturn F.dropout(x, 0.5, False)",
        id="two returns",
    ),
    pytest.param("nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5))", id="a sequence"),
    pytest.param("nn.Sequential(nn.Linear(64, num_features), nn.Dropout(0.5))", id="of features"),
    pytest.param(
        "def f(num_classes):\n    return nn.Sequential(nn.Linear(64, num_classes), nn.Dropout(0))",
        id="a rate of 0",
    ),
    pytest.param(
        "def f(num_classes):\n    return nn.Sequential(nn.Linear(64, num_classes), nn.Dropout(0.1),"
        " nn.Linear(num_classes, 3))",
        id="a sequence that goes on",
    ),
    pytest.param(
        "def f(num_classes):\n    return nn.Sequential(nn.Dropout(), nn.Linear(64, num_classes))",
        id="a sequence in order",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.head = nn.Sequential(nn.Linear(64, num_classes), nn.Dropout(0.5))
                self.last = nn.Linear(num_classes, 2)

            def forward(self, x):
                return self.last(self.head(x))
        """,
        id="a sequence inside, whose values are used",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, num_classes, last):
                super().__init__()
                self.fc, self.drop = nn.Linear(64, num_classes), nn.Dropout(0.5)
                self.last = last

            def forward(self, x):
                if self.last:
                    x = self.fc(x)
                else:
                    x = self.drop(x)
                return x
        """,
        id="conditions that exclude each other",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, num_classes, last):
                super().__init__()
                self.fc, self.drop = nn.Linear(64, num_classes), nn.Dropout(0.5)
                self.last = last

            def forward(self, x):
                if self.last:
                    x = self.fc(x)
                if not self.last:
                    x = self.drop(x)
                return x
        """,
        id="one condition and its opposite",
    ),
    pytest.param(
        """
        def attention(x, steps):
            a = layers.Dense(steps, activation="softmax")(x)
            a = layers.Dropout(0.1)(a)
            return layers.Multiply()([x, a])
        """,
        id="Keras, attention",
    ),
    pytest.param(
        """
        def block(x, units):
            x = layers.Dense(units, activation="relu")(x)
            return layers.Dropout(0.5)(x)
        """,
        id="Keras, a block",
    ),
]

CHANGES = [
    ('name.startswith("logsoftmax")', "False"),
    ('step.family == "loss" and bool(LOSSES.search(name))', "False"),
    ('step.family == "loss" and bool(LOSSES.search(name))', 'step.family == "loss"'),
    ("any(_counts_classes(at, file) for at in factors)", "True"),
    ("any(_counts_classes(at, file) for at in factors)", "False"),
    ("len(names) < 2 or all(map(CLASSES.fullmatch, names))", "True"),
    ("NAMED.fullmatch(", "re.fullmatch('x', "),
    ("not all(_told(user, file)", "not all(True"),
    ("if not softmax and not", "if not"),
    ('[*step.after(*BETWEEN, "sum"), *step.passed(*BETWEEN, "sum")]', "step.passed(*BETWEEN)"),
    ('function.name if function else ""', '""'),
    ("|items?)|", ")|"),
    ("(?<!wl)edge", "edge"),
    ("    if dropped_nothing(step):\n        return None\n", ""),
    ("any(given & at.passed(*BETWEEN) for at in applied)", "True"),
    ("return not applied or", "return"),
    (" or apart(layer, step, file)", ""),
    ("layer.family not in _LAYERS or not last", "layer.family not in _LAYERS"),
    ("function.name not in FORWARD", "False"),
    ("if any(map(GATES.search, [owner.node.name, *names])):", "if False:"),
    ("step.before(*MOVING)", "step.before(*BETWEEN)"),
    ("isinstance(node.op, ast.Mult)", "False"),
    ('"index", "softmax", "record"', '"index"'),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


def test_messages():
    assert messages(WRONG[1].values[0], CODE) == [
        "dropout after the output layer, which line 6 builds"
    ]
    text = "def f(x, y):\n    return F.cross_entropy(F.dropout(x), y)"
    assert messages(text, CODE) == ["dropout straight before `cross_entropy`: it drops logits"]


def test_mutants():
    assert mutants(dropout_at_output, CHANGES, WRONG + RIGHT) == []
