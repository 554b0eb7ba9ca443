"""DS201: dropout straight before batch normalization."""

import pytest

from dropseed.audit.rules import dropout_before_batch_norm
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS201"

NET = """
class Net(nn.Module):
    def __init__(self, p, deep=True, norm=None):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm1d(8)
{}

    def forward(self, x, y=None):
{}
"""


def net(build, forward):
    """A module with these layers and this forward pass."""
    lines = (["        " + line for line in part.strip().split("\n")] for part in (build, forward))
    return NET.format(*map("\n".join, lines))


DROP = "self.drop = nn.Dropout(p)  # wrong"
RIGHT_DROP = "self.drop = nn.Dropout(p)"

WRONG = [
    pytest.param(
        """
        class Block(nn.Module):
            def __init__(self, n, norm=nn.BatchNorm2d, dropout=nn.Dropout2d):
                super().__init__()
                self.conv = nn.Conv2d(n, n, 3)
                self.norm, self.drop = norm(n), dropout(0.5)  # wrong

            def forward(self, x):
                return self.norm(self.drop(self.conv(x)))
        """,
        id="classes that are arguments, by their defaults",
    ),
    pytest.param(
        """
        class Block(nn.Module):
            def __init__(self, n, normalization_layer):
                super().__init__()
                self.conv, self.drop = nn.Conv2d(n, n, 3), nn.Dropout2d(0.5)  # wrong
                self.bn1 = normalization_layer(n)

            def forward(self, x):
                return self.bn1(self.drop(self.conv(x)))
        """,
        id="a class that is an argument, by the layer's name",
    ),
    pytest.param(
        """
        def mlp(sizes, rate, norm):
            parts = []
            for size in sizes:
                parts.append(norm)
                parts.append(layers.Dense(size))
                parts.append(layers.Dropout(rate))  # wrong
            return keras.Sequential(parts)

        class Model:
            @classmethod
            def build(cls, x, sizes):
                x = mlp(sizes, 0.1, layers.LayerNormalization())(x)
                return mlp(sizes, 0.1, norm=layers.BatchNormalization())(x)
        """,
        id="a layer that a method gives to a function",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, sizes, n):
                super().__init__()
                layers = []
                for size in sizes:
                    if size == 0:
                        layers.append(nn.Flatten())
                    layers += [nn.BatchNorm1d(n), nn.Linear(n, n), nn.Dropout(0.5)]  # wrong
                self.net = nn.Sequential(*layers)

            def forward(self, x):
                return self.net(x)
        """,
        id="a loop that compares a number",
    ),
    pytest.param(
        "nn.Sequential(\n    nn.Tanh(),\n    nn.Dropout(0.5),  # wrong\n    nn.BatchNorm1d(8),\n)",
        id="a Sequential",
    ),
    pytest.param(net(DROP, "return self.bn(self.drop(self.fc(x)))"), id="forward"),
    pytest.param(net(DROP, "return self.bn(F.relu(self.drop(x)))"), id="an activation between"),
    pytest.param(net(DROP, "return self.bn(self.drop(x).view(-1, 8))"), id="a view between"),
    pytest.param(
        net("pass", "x = F.dropout(x, 0.5, self.training)  # wrong\nreturn self.bn(x)"),
        id="a function",
    ),
    pytest.param(
        net("pass", "x = F.dropout(x, 0.5, self.training)  # wrong\nreturn F.batch_norm(x, y, y)"),
        id="two functions",
    ),
    pytest.param(
        net(
            "self.drop = nn.Dropout2d(p)  # wrong\nself.bn2 = nn.BatchNorm2d(8)",
            "x = self.drop(self.conv(x))\nreturn self.bn2(x)",
        ),
        id="spatial dropout",
    ),
    pytest.param(
        net(
            DROP,
            "if deep:\n    x = self.drop(x)\nif self.bn:\n    x = self.bn(x)\nreturn x",
        ),
        id="under conditions",
    ),
    pytest.param(
        net(
            "layers = []\nfor _ in range(3):\n    layers.append(nn.Linear(8, 8))\n    if deep:\n"
            "        layers.append(nn.Dropout(p))  # wrong\n    layers.append(nn.BatchNorm1d(8))\n"
            "self.body = nn.Sequential(*layers)",
            "return self.body(x)",
        ),
        id="a list that grows",
    ),
    pytest.param(
        net(
            "block = []\nfor _ in range(3):\n    block += [nn.BatchNorm1d(8), nn.Linear(8, 8)]\n"
            "    block += [nn.Dropout(p)]  # wrong\nself.body = nn.Sequential(*block)",
            "return self.body(x)",
        ),
        id="from one block to the next",
    ),
    pytest.param(
        """
        def build(x, p):
            x = layers.Conv2D(8, 3)(x)
            x = layers.Dropout(p)(x)  # wrong
            x = layers.BatchNormalization()(x)
            return layers.Activation("relu")(x)
        """,
        id="Keras, functional",
    ),
    pytest.param(
        """
        model = keras.Sequential([
            layers.Dense(8),
            layers.Dropout(0.5),  # wrong
            layers.BatchNormalization(),
        ])
        """,
        id="Keras, Sequential",
    ),
    pytest.param(
        """
        model = keras.models.Sequential()
        model.add(layers.Dense(8, activation="relu"))
        model.add(layers.Dropout(0.5))  # wrong
        model.add(layers.BatchNormalization())
        """,
        id="Keras, add",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, train):
                x = flax.linen.Dropout(0.5, deterministic=not train)(x)  # wrong
                return flax.linen.BatchNorm(use_running_average=not train)(x)
        """,
        id="Flax",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, p, norm_layer=nn.BatchNorm2d):
                super().__init__()
                self.drop = nn.Dropout(p)  # wrong
                self.norm = norm_layer(8)

            def forward(self, x):
                return self.norm(self.drop(x))
        """,
        id="the default of a parameter",
    ),
    pytest.param(
        """
        class Block(nn.Module):
            def __init__(self, p, norm):
                super().__init__()
                if norm == "batch":
                    self.norm = nn.BatchNorm1d(8)
                else:
                    self.norm = nn.LayerNorm(8)
                self.fc, self.drop = nn.Linear(8, 8), nn.Dropout(p)  # wrong

            def forward(self, x):
                return self.drop(self.fc(self.norm(x)))

        class Net(nn.Module):
            def __init__(self, p):
                super().__init__()
                self.body = nn.Sequential(*[Block(p, "batch") for _ in range(4)])

            def forward(self, x):
                return self.body(x)
        """,
        id="from one block to the next, by their classes",
    ),
]

RIGHT = [
    pytest.param(
        """
        class Block(nn.Module):
            def __init__(self, n, norm, make=nn.LayerNorm):
                super().__init__()
                self.conv, self.drop = nn.Conv2d(n, n, 3), nn.Dropout2d(0.5)
                self.norm, self.first = norm(n), make(n)
                self.bn = project.norm(n)
                table = self.table(n)
                self.bn1 = table(n)
                norm = norm or table
                self.bn2 = norm(n)

            def forward(self, x):
                x = self.norm(self.drop(x)) + self.first(self.drop(x)) + self.bn(self.drop(x))
                return self.bn1(self.drop(x)) + self.bn2(self.drop(x))
        """,
        id="classes that are arguments and may be anything",
    ),
    pytest.param(
        """
        class Layer(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.bn, self.drop = nn.BatchNorm1d(n), nn.Dropout(0.5)

            def forward(self, graph, x):
                graph.ndata["h"] = x
                graph.update_all(self.message, self.reduce)
                return self.drop(F.relu(self.bn(graph.ndata["h"])))

        class Net(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.layers = nn.ModuleList([Layer(n) for _ in range(3)])

            def forward(self, graph, x):
                for layer in self.layers:
                    x = layer(graph, x)
                return x
        """,
        id="what a graph holds is changed between",
    ),
    pytest.param(
        """
        def block(n, p, bn, linear_first):
            layers = [nn.BatchNorm1d(n)] if bn else []
            layers.append(nn.Dropout(p))
            linear = [nn.Linear(n, n), nn.ReLU()]
            layers = linear + layers if linear_first else layers + linear
            return nn.Sequential(*layers)

        class Net(nn.Module):
            def __init__(self, sizes, first):
                super().__init__()
                self.net = nn.Sequential()
                for i, n in enumerate(sizes):
                    self.net.add_module(f"block_{i}", block(n, 0.5, True, first))

            def forward(self, x):
                return self.net(x)
        """,
        id="blocks of one of two orders",
    ),
    pytest.param(
        """
        class Block(nn.Sequential):
            def __init__(self, order, n):
                super().__init__()
                conv, bn, act = nn.Conv1d(n, n, 3), nn.BatchNorm1d(n), nn.ReLU()
                if order == "cba":
                    self.add_module("conv", conv)
                    self.add_module("bn", bn)
                    self.add_module("act", act)
                elif order == "cab":
                    self.add_module("conv", conv)
                    self.add_module("act", act)
                    self.add_module("bn", bn)
                else:
                    self.add_module("bn", bn)
                    self.add_module("act", act)
                    self.add_module("conv", conv)

        class Net(nn.Sequential):
            def __init__(self, sizes):
                super().__init__()
                for i, n in enumerate(sizes):
                    self.add_module(f"block_{i}", Block("cba", n))
                    self.add_module(f"drop_{i}", nn.Dropout(0.5))
        """,
        id="blocks of one of three orders",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, order, n):
                super().__init__()
                layers = []
                for at in order:
                    if at == "drop":
                        layers.append(nn.Dropout(0.5))
                    elif at == "bn":
                        layers.append(nn.BatchNorm1d(n))
                    else:
                        layers.append(nn.Linear(n, n))
                self.net = nn.Sequential(*layers)

            def forward(self, x):
                return self.net(x)
        """,
        id="an order that is given",
    ),
    pytest.param(net(RIGHT_DROP, "return self.drop(F.relu(self.bn(self.fc(x))))"), id="behind"),
    pytest.param(
        net(RIGHT_DROP, "return self.bn(self.fc(self.drop(x)))"), id="a linear layer between"
    ),
    pytest.param(
        net(RIGHT_DROP, "return self.bn(self.conv(self.drop(x)))"), id="a convolution between"
    ),
    pytest.param(
        net(RIGHT_DROP, "return self.bn(x + self.drop(self.fc(x)))"), id="an addition between"
    ),
    pytest.param(
        net(RIGHT_DROP, "return self.bn(torch.cat([x, self.drop(x)], 1))"),
        id="a concatenation between",
    ),
    pytest.param(
        net(RIGHT_DROP, "return self.bn(F.avg_pool1d(self.drop(x), 2))"), id="pooling between"
    ),
    pytest.param(net(RIGHT_DROP, "return self.bn(x), self.drop(x)"), id="side by side"),
    pytest.param(
        net(RIGHT_DROP, "if deep:\n    return self.drop(x)\nreturn self.bn(x)"), id="two branches"
    ),
    pytest.param(
        net(
            RIGHT_DROP,
            "if not self.deep:\n    x = self.drop(x)\nif self.deep:\n    x = self.bn(x)\nreturn x",
        ),
        id="conditions that exclude each other",
    ),
    pytest.param(
        net(
            "layers = []\nif deep:\n    layers.append(nn.Dropout(p))\nfor _ in range(2):\n"
            "    layers.append(make())\nif deep:\n    layers.append(nn.Linear(8, 8))\n"
            "layers.append(nn.BatchNorm1d(8))\nself.body = nn.Sequential(*layers)",
            "return self.body(x)",
        ),
        id="the same condition again, between",
    ),
    pytest.param(
        net(
            "layers = []\nif deep:\n    layers.append(nn.Dropout(p))\nlayers.append(nn.ReLU())\n"
            "if deep:\n    layers.append(nn.Linear(8, 8))\nlayers.append(nn.BatchNorm1d(8))\n"
            "self.body = nn.Sequential(*layers)",
            "return self.body(x)",
        ),
        id="the same condition again, nothing else between",
    ),
    pytest.param(
        net("self.drop = nn.Dropout(p)\nself.ln = nn.LayerNorm(8)", "return self.ln(self.drop(x))"),
        id="layer normalization",
    ),
    pytest.param(
        net(
            "self.drop = nn.Dropout(p)\nself.inn = nn.InstanceNorm1d(8)",
            "return self.inn(self.drop(x))",
        ),
        id="instance normalization",
    ),
    pytest.param(
        net(
            "self.drop = nn.Dropout(p)\nself.b = nn.BatchNorm1d(8, track_running_stats=False)",
            "return self.b(self.drop(x))",
        ),
        id="no running statistics",
    ),
    pytest.param(
        net("self.drop = nn.AlphaDropout(p)", "return self.bn(self.drop(x))"), id="alpha dropout"
    ),
    pytest.param(
        net(
            "self.drop = torchvision.ops.StochasticDepth(p, 'row')", "return self.bn(self.drop(x))"
        ),
        id="a dropped path",
    ),
    pytest.param(
        net("self.drop = nn.Dropout(0)", "return self.bn(self.drop(x))"), id="a rate of 0"
    ),
    pytest.param(
        net("self.drop = nn.Dropout(p)\nself.n = make_norm(8)", "return self.n(self.drop(x))"),
        id="a layer of unknown kind",
    ),
    pytest.param(
        net("self.drop = nn.Dropout(p)", "return self.bn(mix(self.drop(x)))"),
        id="an unknown function",
    ),
    pytest.param(
        "nn.Sequential(nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))",
        id="a Sequential in order",
    ),
    pytest.param(
        "one = nn.Sequential(nn.Tanh(), nn.Dropout(0.5))\ntwo = nn.Sequential(nn.BatchNorm1d(8))",
        id="two Sequentials that nobody joins",
    ),
    pytest.param(
        net(
            "self.convs = nn.ModuleList([nn.Conv1d(8, 8, 3) for _ in range(3)])\n"
            "self.bns = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)])\n"
            "self.drops = nn.ModuleList([nn.Dropout(p) for _ in range(3)])",
            "for conv, bn, drop in zip(self.convs, self.bns, self.drops):\n"
            "    x = drop(F.relu(bn(conv(x))))\nreturn x",
        ),
        id="layers of three lists, in order",
    ),
    pytest.param(
        net(
            "self.convs = nn.ModuleList([nn.Conv1d(8, 8, 3) for _ in range(3)])\n"
            "self.bns = nn.ModuleList([nn.BatchNorm1d(8) for _ in range(3)])",
            "for i, conv in enumerate(self.convs):\n    x = self.bns[i](conv(x))\n"
            "    x = F.dropout(x, 0.1, self.training)\nreturn x",
        ),
        id="layers by number, in order",
    ),
    pytest.param(
        net(
            "self.convs = make()",
            "for conv in self.convs:\n    if isinstance(conv, A):\n        h = conv(x)\n"
            "    elif isinstance(conv, B):\n        h = conv(x, y)\n    h = self.bn(h)\n"
            "    h = F.dropout(h, 0.1, self.training)\nreturn h",
        ),
        id="one of several branches always makes the value anew",
    ),
    pytest.param(
        net(
            "layers = [nn.BatchNorm1d(8) if deep else None, nn.Dropout(p), nn.Linear(8, 8)]\n"
            "self.body = nn.Sequential(*(at for at in layers if at is not None))",
            "return self.body(x)",
        ),
        id="a list that is filtered keeps its order",
    ),
    pytest.param(
        net(
            "self.parts = {'drop': nn.Dropout(p), 'fc': nn.Linear(8, 8), 'bn': nn.BatchNorm1d(8)}",
            "x = self.parts['drop'](x)\nx = self.parts['fc'](x)\nreturn self.parts['bn'](x)",
        ),
        id="layers by name",
    ),
    pytest.param(
        """
        class Act(nn.Module):
            def forward(self, x):
                return F.relu(x)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.act, self.drop, self.bn = Act(), nn.Dropout(0.5), nn.BatchNorm1d(8)

            def forward(self, x):
                y = self.act(self.drop(x))
                return y, self.bn(self.act(x))
        """,
        id="a module that is used twice",
    ),
    pytest.param(
        """
        class Head(nn.Module):
            def __init__(self, first):
                super().__init__()
                self.first, self.bn, self.fc = first, nn.BatchNorm1d(8), nn.Linear(8, 8)

            def forward(self, x):
                if self.first:
                    x = self.bn(x)
                return self.fc(x)

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop, self.head = nn.Dropout(0.5), Head(False)

            def forward(self, x):
                return self.head(self.drop(x))
        """,
        id="a condition in another module",
    ),
    pytest.param(
        """
        class BatchNorm1d(nn.Module):
            def forward(self, x):
                return x / x.norm()

        nn.Sequential(nn.Dropout(0.5), BatchNorm1d())
        """,
        id="a class of the project's own",
    ),
    pytest.param(
        """
        def build(x, p):
            x = layers.Dropout(p)(x)
            y = layers.Dense(8)(x)
            return layers.BatchNormalization()(y)
        """,
        id="Keras, in order",
    ),
    pytest.param(
        """
        def build(x, p):
            a = layers.Dropout(p)(x)
            b = layers.BatchNormalization()(x)
            return a, b
        """,
        id="Keras, side by side",
    ),
]

CHANGES = [
    (" and not _is_named(step, file)", ""),
    (" or not _NAMED.fullmatch(func.attr)", ""),
    (" and _is_given(at.func, file)", ""),
    ("return all(isinstance(at, ast.arg) for", "return any(isinstance(at, ast.arg) or at for"),
    ('step.family != "batch norm"', 'step.family != "norm"'),
    ("tracked.value is False", "tracked.value is None"),
    ('BETWEEN = ("activation", "identity", "reshape", "index")', 'BETWEEN = ("identity",)'),
    ('"elementwise", "spatial"', '"elementwise"'),
    ('"elementwise", "spatial"', '"elementwise", "spatial", "alpha", "path"'),
    ("dropped_nothing(step) or ", ""),
    (" or apart(step, norm, file)", ""),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


def test_enough_silence():
    assert len(RIGHT) >= 1.8 * len(WRONG)


def test_message():
    assert messages("nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(8))", CODE) == [
        "`Dropout` straight before `BatchNorm1d`, "
        "whose running variance then holds in training only"
    ]


def test_names_of_other_files(tmp_path):
    files = {
        "pkg/__init__.py": "",
        "pkg/parts.py": """
            from torch.nn import BatchNorm1d as Norm, Dropout as Drop
            class Quiet(Norm):
                pass
        """,
        "pkg/net.py": """
            from torch import nn
            from pkg.parts import Drop, Quiet
            body = nn.Sequential(nn.Linear(8, 8), Drop(0.5), Quiet(8))  # wrong
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_mutants():
    assert mutants(dropout_before_batch_norm, CHANGES, WRONG + RIGHT) == []
