"""The dataflow of source: what a dropout's values come from and go to."""

import ast

import pytest

from dropseed.audit.reading.axes import axes
from dropseed.audit.reading.chain import EMPTY, Layer, either, joined, repeated, single, then
from dropseed.audit.reading.conditions import contradict
from dropseed.audit.reading.file import File
from dropseed.audit.reading.flow import Flow, flow
from dropseed.audit.reading.operations import family
from dropseed.audit.reading.source import Source, parse
from test_audit.rule_cases import PRELUDE, _plain

PASSED = ("activation", "identity", "reshape")


def file_of(text):
    source = Source(PRELUDE + _plain(text))
    return File(source, parse(source)[0], "module")


def around(text):
    """What stands straight before and after each dropout, by the last word of its kind."""
    steps = flow(file_of(text)).dropouts("elementwise", "spatial")
    ends = {"before": set(), "after": set()}
    for step in steps:
        ends["before"] |= {_word(at) for at in step.before(*PASSED)}
        ends["after"] |= {_word(at) for at in step.after(*PASSED)}
    return ends["before"] - {""}, ends["after"] - {""}


def _word(step):
    return step.kind.rpartition(".")[2]


def net(build, forward):
    lines = "\n".join("        " + line for line in build.strip().split("\n"))
    body = "\n".join("        " + line for line in forward.strip().split("\n"))
    return (
        "class Net(nn.Module):\n    def __init__(self, p=0.5, deep=True):\n"
        f"        super().__init__()\n{lines}\n\n    def forward(self, x, y=None):\n{body}\n"
    )


LAYERS = """
self.fc = nn.Linear(4, 4)
self.bn = nn.BatchNorm1d(4)
self.drop = nn.Dropout(p)
self.out = nn.Linear(4, 2)
"""

CASES = [
    pytest.param(
        net(LAYERS, "return self.out(self.drop(self.bn(x)))"),
        ({"BatchNorm1d"}, {"Linear"}),
        id="nested calls",
    ),
    pytest.param(
        net(LAYERS, "x = self.bn(x)\nx = F.relu(x)\nx = self.drop(x)\nreturn self.out(x)"),
        ({"BatchNorm1d"}, {"Linear"}),
        id="a name assigned again",
    ),
    pytest.param(
        net(LAYERS, "y = self.drop(self.bn(x))\nx = self.fc(x)\nreturn self.out(x)"),
        ({"BatchNorm1d"}, set()),
        id="another name goes on",
    ),
    pytest.param(
        net(LAYERS, "x = self.bn(x)\nif deep:\n    x = self.drop(x)\nreturn self.out(x)"),
        ({"BatchNorm1d"}, {"Linear"}),
        id="a condition",
    ),
    pytest.param(
        net(LAYERS, "if deep:\n    return self.drop(self.fc(x))\nreturn self.out(self.bn(x))"),
        ({"Linear"}, set()),
        id="an early return",
    ),
    pytest.param(
        net(LAYERS, "if y:\n    x = self.drop(self.fc(x))\nelse:\n    x = self.bn(x)\nreturn x"),
        ({"Linear"}, set()),
        id="two branches",
    ),
    pytest.param(
        net(
            LAYERS,
            "x = self.drop(x)\nif y == 1:\n    x = self.bn(x)\nelif y == 2:\n    x = x + 1\n"
            "return self.out(x)",
        ),
        (set(), {"BatchNorm1d", "+"}),
        id="one of the branches of elif is taken",
    ),
    pytest.param(
        net(LAYERS, "for _ in range(3):\n    x = self.bn(x)\n    x = self.drop(x)\nreturn x"),
        ({"BatchNorm1d"}, {"BatchNorm1d"}),
        id="a loop",
    ),
    pytest.param(
        net(LAYERS, "while y:\n    x = self.fc(x)\n    x = self.drop(x)\nreturn self.bn(x)"),
        ({"Linear"}, {"Linear", "BatchNorm1d"}),
        id="a while loop is entered",
    ),
    pytest.param(
        net(
            "self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Dropout(p), nn.Linear(4, 2))",
            "return self.body(x)",
        ),
        ({"Linear"}, {"Linear"}),
        id="a Sequential",
    ),
    pytest.param(
        net(
            "layers = []\nfor _ in range(3):\n    layers.append(nn.Linear(4, 4))\n"
            "    layers += [nn.ReLU(), nn.Dropout(p)]\nlayers.append(nn.BatchNorm1d(4))\n"
            "self.body = nn.Sequential(*layers)",
            "return self.body(x)",
        ),
        ({"Linear"}, {"Linear", "BatchNorm1d"}),
        id="a list that grows",
    ),
    pytest.param(
        net(
            "layers = [nn.Linear(4, 4)]\nif deep:\n    layers.append(nn.BatchNorm1d(4))\n"
            "layers.append(nn.Dropout(p))\nself.body = nn.Sequential(*layers)",
            "return self.body(x)",
        ),
        ({"Linear", "BatchNorm1d"}, set()),
        id="a list that may be shorter",
    ),
    pytest.param(
        net(
            "from collections import OrderedDict\nself.body = nn.Sequential(OrderedDict([\n"
            "    ('a', nn.Linear(4, 4)), ('b', nn.Dropout(p)), ('c', nn.BatchNorm1d(4))]))",
            "return self.body(x)",
        ),
        ({"Linear"}, {"BatchNorm1d"}),
        id="an OrderedDict",
    ),
    pytest.param(
        net(
            "self.body = nn.Sequential()\nself.body.add_module('a', nn.Linear(4, 4))\n"
            "self.body.add_module('b', nn.Dropout(p))\nself.body.append(nn.BatchNorm1d(4))",
            "return self.body(x)",
        ),
        ({"Linear"}, {"BatchNorm1d"}),
        id="add_module and append",
    ),
    pytest.param(
        net(
            "self.add_module('drop', nn.Dropout(p))\nself.bn = nn.BatchNorm1d(4)",
            "return self.bn(self.drop(x))",
        ),
        (set(), {"BatchNorm1d"}),
        id="add_module of self",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(p), nn.BatchNorm1d(4)])",
            "for layer in self.layers:\n    x = layer(x)\nreturn x",
        ),
        ({"Linear"}, {"BatchNorm1d"}),
        id="a loop through layers keeps their order",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(p), nn.BatchNorm1d(4)])",
            "for i, layer in enumerate(self.layers):\n    x = F.relu(layer(x))\nreturn x",
        ),
        ({"Linear"}, {"BatchNorm1d"}),
        id="enumerate, and an activation in the loop",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(p), nn.BatchNorm1d(4)])",
            "x = self.layers[0](x)\nx = self.layers[2](x)\nreturn self.layers[1](x)",
        ),
        ({"BatchNorm1d"}, set()),
        id="a layer by its number",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Dropout(p), nn.BatchNorm1d(4)])",
            "for i in range(len(self.layers)):\n    x = self.layers[i](x)\nreturn x",
        ),
        (set(), set()),
        id="different layers by number, in an order that can't be told",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleDict({'a': nn.Dropout(p), 'b': nn.BatchNorm1d(4)})",
            "return self.layers['b'](self.layers['a'](x))",
        ),
        (set(), set()),
        id="a ModuleDict is unknown",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleDict()\nfor i in range(3):\n"
            "    self.layers[f'drop{i}'] = nn.Dropout(p)\n"
            "    self.layers[f'bn{i}'] = nn.BatchNorm1d(4)",
            "for i in range(3):\n    x = self.layers[f'bn{i}'](x)\n"
            "    x = self.layers[f'drop{i}'](x)\n"
            "return self.layers['last'](x)",
        ),
        ({"BatchNorm1d"}, {"BatchNorm1d"}),
        id="a ModuleDict whose keys are written in the same way",
    ),
    pytest.param(
        net(
            "layers = [nn.Linear(4, 4), nn.Dropout(p) if p else None, nn.BatchNorm1d(4)]\n"
            "self.body = nn.Sequential(*[at for at in layers if at is not None])",
            "return self.body(x)",
        ),
        ({"Linear"}, {"BatchNorm1d"}),
        id="a comprehension that filters keeps the order",
    ),
    pytest.param(
        net(
            "self.drop = nn.Dropout(p) if p else nn.Identity()\nself.bn = nn.BatchNorm1d(4)",
            "return self.bn(self.drop(x))",
        ),
        (set(), {"BatchNorm1d"}),
        id="a layer or Identity",
    ),
    pytest.param(
        net(
            "self.drop = nn.Dropout(p)\nself.act = nn.Identity()\nself.bn = nn.BatchNorm1d(4)",
            "return self.bn(self.act(self.drop(x)))",
        ),
        (set(), {"BatchNorm1d"}),
        id="Identity is nothing",
    ),
    pytest.param(
        net(LAYERS, "if self.drop is not None:\n    x = self.drop(x)\nreturn self.bn(x)"),
        (set(), {"BatchNorm1d"}),
        id="a layer that may be None",
    ),
    pytest.param(
        net(LAYERS, "if y is not None:\n    x = self.fc(x)\nreturn self.bn(self.drop(x))"),
        ({"Linear"}, {"BatchNorm1d"}),
        id="an argument that may be None",
    ),
    pytest.param(
        net(
            LAYERS,
            "if x is not None:\n    return self.out(self.drop(x))\nreturn self.bn(self.drop(x))",
        ),
        (set(), {"Linear"}),
        id="an argument that is given",
    ),
    pytest.param(
        "class Net:\n    def build_model(self, x):\n        x = layers.Dense(4)(x)\n"
        "        x = layers.Dropout(0.5)(x)\n        return layers.BatchNormalization()(x)\n",
        ({"Dense"}, {"BatchNormalization"}),
        id="a method that builds a Keras model",
    ),
    pytest.param(
        net(
            LAYERS,
            "x = self.part(x)\nreturn self.bn(x)\n\ndef part(self, x):\n"
            "    return self.drop(self.fc(x))",
        ).replace("        def part", "    def part"),
        ({"Linear"}, {"BatchNorm1d"}),
        id="a method",
    ),
    pytest.param(
        "def block(x, p):\n    return layers.Dropout(p)(layers.Dense(4)(x))\n\n"
        "def build(x):\n    return layers.BatchNormalization()(block(x, 0.5))\n",
        ({"Dense"}, {"BatchNormalization"}),
        id="a function of Keras's functional style",
    ),
    pytest.param(
        "model = keras.Sequential()\nmodel.add(layers.Dense(4))\nmodel.add(layers.Dropout(0.5))\n"
        "model.add(layers.BatchNormalization())\n",
        ({"Dense"}, {"BatchNormalization"}),
        id="a Keras Sequential that grows",
    ),
    pytest.param(
        "class Block(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)\n\n"
        "    def forward(self, x):\n        return self.drop(self.fc(x))\n\n\n"
        + net("self.block = Block()\nself.bn = nn.BatchNorm1d(4)", "return self.bn(self.block(x))"),
        ({"Linear"}, {"BatchNorm1d"}),
        id="a block of the same file",
    ),
    pytest.param(
        "class Block(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Linear(4, 4), nn.Dropout(0.5))\n\n\n"
        + net("self.block = Block()\nself.bn = nn.BatchNorm1d(4)", "return self.bn(self.block(x))"),
        ({"Linear"}, {"BatchNorm1d"}),
        id="a class of its own that is a Sequential",
    ),
    pytest.param(
        "class Base(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.drop = nn.Dropout(0.5)\n\n\nclass Net(Base):\n    def __init__(self):\n"
        "        super().__init__()\n        self.bn = nn.BatchNorm1d(4)\n\n"
        "    def forward(self, x):\n        return self.bn(self.drop(x))\n"
        "    def other(self, x):\n        return F.dropout(x)\n",
        (set(), {"BatchNorm1d"}),
        id="a layer of the base class",
    ),
    pytest.param(
        net(
            "self.rnn = nn.LSTM(4, 4)\nself.drop = nn.Dropout(p)",
            "x, (h, c) = self.rnn(x)\nreturn self.drop(h)",
        ),
        ({"LSTM"}, set()),
        id="the outputs of a recurrent layer",
    ),
    pytest.param(
        net(LAYERS, "a, b = self.fc(x), self.drop(x)\nreturn self.bn(a), self.out(b)"),
        (set(), {"Linear"}),
        id="two values at once",
    ),
    pytest.param(
        "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc, self.drop = nn.Linear(4, 4), nn.Dropout()\n"
        "        self.bn = nn.BatchNorm1d(4)\n\n"
        "    def attend(self, x, weights=False):\n        a = self.drop(x)\n"
        "        y = self.fc(x)\n"
        "        if weights:\n            return y, a\n        return y\n\n"
        "    def forward(self, x):\n        return self.bn(self.attend(x))\n",
        (set(), set()),
        id="one value, or two",
    ),
    pytest.param(
        net(LAYERS, "def inner(z):\n    return self.drop(self.bn(z))\n\nreturn self.out(inner(x))"),
        ({"BatchNorm1d"}, {"Linear"}),
        id="a function inside",
    ),
    pytest.param(
        net(LAYERS, "return self.out(torch.cat([self.drop(self.fc(x)), x]))"),
        ({"Linear"}, {"cat"}),
        id="a concatenation",
    ),
    pytest.param(
        net(LAYERS, "x = x + self.drop(self.fc(x))\nreturn self.bn(x)"),
        ({"Linear"}, {"+"}),
        id="an addition",
    ),
    pytest.param(
        net(LAYERS, "x = self.drop(self.fc(x)) * 0.5\nreturn self.bn(x)"),
        ({"Linear"}, {"BatchNorm1d"}),
        id="a multiple",
    ),
    pytest.param(
        net(LAYERS, "x = self.drop(x)\nreturn self.out(x.view(x.size(0), -1))"),
        (set(), {"Linear"}),
        id="a view",
    ),
    pytest.param(
        net(
            "self.drop = nn.Dropout(p)",
            "from torch.utils.checkpoint import checkpoint\n"
            "return F.batch_norm(checkpoint(self.drop, x))",
        ),
        (set(), {"batch_norm"}),
        id="a checkpoint",
    ),
    pytest.param(
        net(
            "self.fcs = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])\n"
            "self.drops = nn.ModuleList([nn.Dropout(p) for _ in range(3)])",
            "for fc, drop in zip(self.fcs, self.drops):\n    x = drop(fc(x))\nreturn x",
        ),
        ({"Linear"}, {"Linear"}),
        id="two lists at once",
    ),
    pytest.param(
        net(
            "self.layers = nn.ModuleList([nn.LSTM(4, 4), nn.Dropout(p), nn.Linear(4, 4)])",
            "for layer in self.layers:\n    if isinstance(layer, nn.LSTM):\n"
            "        x, _ = layer(x)\n"
            "    else:\n        x = layer(x)\nreturn x",
        ),
        ({"LSTM"}, {"Linear"}),
        id="a condition on a layer's class",
    ),
    pytest.param(
        net(
            "make = get_norm(4)\nself.body = nn.Sequential(nn.Dropout(p), make, nn.Linear(4, 4))",
            "return self.body(x)",
        ),
        (set(), set()),
        id="a layer of unknown kind ends the search",
    ),
    pytest.param(
        "class Net(nn.Module):\n    def __init__(self, norm=nn.BatchNorm1d):\n"
        "        super().__init__()\n        self.norm, self.drop = norm(4), nn.Dropout(0.5)\n\n"
        "    def forward(self, x):\n        return self.norm(self.drop(x))\n",
        (set(), {"BatchNorm1d"}),
        id="a class that is the default",
    ),
    pytest.param(
        net(
            LAYERS,
            "try:\n    x = self.drop(x)\nexcept ValueError:\n    x = self.fc(x)\nreturn self.bn(x)",
        ),
        (set(), {"BatchNorm1d"}),
        id="try",
    ),
    pytest.param(
        net(LAYERS, "with torch.no_grad():\n    x = self.drop(x)\nreturn self.bn(x)"),
        (set(), {"BatchNorm1d"}),
        id="with",
    ),
    pytest.param(
        net(
            LAYERS,
            "match y:\n    case 1:\n        x = self.drop(x)\n    case _:\n        pass\n"
            "return self.bn(x)",
        ),
        (set(), {"BatchNorm1d"}),
        id="match",
    ),
    pytest.param(
        net(LAYERS, "return self.bn(self.drop(x) if deep else x)"),
        (set(), {"BatchNorm1d"}),
        id="a conditional expression",
    ),
    pytest.param(
        net(LAYERS, "return self.bn(z) if (z := self.drop(x)) is not None else x"),
        (set(), {"BatchNorm1d"}),
        id="a name set in a condition",
    ),
]


@pytest.mark.parametrize(("text", "ends"), CASES)
def test_ends(text, ends):
    assert around(text) == ends


def test_nothing_is_followed_without_dropout():
    assert flow(file_of("class A(nn.Module):\n    def forward(self, x): return x\n")) == Flow()


def test_what_is_returned():
    forward = "if y:\n    return self.drop(x), self.bn(x)\nreturn self.fc(x)"
    whole = flow(file_of(net(LAYERS, forward)))
    (value,) = whole.returned.values()
    assert {_word(step) for step in value.everything} == {"Dropout", "BatchNorm1d", "Linear"}


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "-".join(["F.dropout(x)"] * 900),
        "x = " + "F.dropout(" * 90 + "x" + ")" * 90,
        "def f(x):\n    return F.dropout(f(x))\n",
        "class A(nn.Module):\n    def __init__(self):\n        self.a, self.d = A(), nn.Dropout()\n"
        "    def forward(self, x):\n        return self.forward(self.a(self.d(x)))\n",
        "layers = [nn.Dropout()]\n" + "layers = layers * 2\n" * 40 + "nn.Sequential(*layers)\n",
        "layers = [" + "nn.Dropout(), " * 500 + "]\nnn.Sequential(*layers)\n",
        "def f(x):\n"
        + "".join(f"{'    ' * n}for i in x:\n" for n in range(1, 18))
        + "    " * 18
        + "x = F.dropout(x)\n",
    ],
    ids=["long", "deep", "recursive", "a class in itself", "doubled", "many", "nested loops"],
)
def test_what_is_large_ends(text):
    whole = flow(file_of(text))
    assert len(whole.steps) < 50_000


# ---- conditions ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "apart"),
    [
        (("a", "not a"), True),
        (("a", "a"), False),
        (("a", "b"), False),
        (("a == 1", "a == 2"), True),
        (("a == 1", "a == 1"), False),
        (("a and b", "not a"), True),
        (("a or b", "not a"), False),
        (("a is None", "a is 1"), True),
    ],
)
def test_contradictions(conditions, apart):
    one, other = conditions
    file = file_of(f"def f(a, b):\n    if {one}:\n        g()\n    if {other}:\n        h()\n")
    first, second = file.calls
    assert contradict(first, second, file) is apart


# ---- chains --------------------------------------------------------------------------------


def layers(*names):
    return [Layer(name, ast.Constant(name)) for name in names]


def test_chains():
    a, b, c = layers("a", "b", "c")
    chain = joined([single(a), either(single(b), EMPTY), single(c)])
    assert chain.pairs == {(a, b), (b, c), (a, c)}
    assert (chain.first, chain.last, chain.skippable) == ({a}, {c}, False)
    assert not chain.straight
    assert then(single(a), single(b)).straight


def test_repeated_chains():
    a, b = layers("a", "b")
    chain = repeated(then(single(a), single(b)))
    assert chain.pairs == {(a, b), (b, a)}
    assert chain.before(a) == [b]


# ---- words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("torch.nn.BatchNorm2d", "batch norm"),
        ("torch.nn.SyncBatchNorm", "batch norm"),
        ("keras.layers.BatchNormalization", "batch norm"),
        ("flax.linen.BatchNorm", "batch norm"),
        ("torch.nn.LayerNorm", "norm"),
        ("torch.nn.functional.leaky_relu_", "activation"),
        ("torch.nn.functional.max_pool2d", "max pool"),
        ("keras.layers.GlobalMaxPooling1D", "max pool"),
        ("keras.layers.Conv2DTranspose", "conv2"),
        ("torch.nn.ConvTranspose3d", "conv3"),
        ("keras.layers.Dense", "linear"),
        (".view", "reshape"),
        (".relu_", "activation"),
        ("torch.nn.Dropout2d", "spatial"),
        ("keras.layers.SpatialDropout1D", "spatial"),
        ("torch.nn.AlphaDropout", "alpha"),
        ("torch.nn.functional.dropout", "elementwise"),
        ("module.BatchNorm2d", ""),
        ("module.relu", ""),
        ("torch.nn.Bilinear", ""),
        ("", ""),
    ],
)
def test_families(kind, name):
    assert family(kind) == name


# ---- axes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        ("nn.Conv2d(3, 4, 3)(x)", 4),
        ("F.relu(nn.Conv1d(3, 4, 3)(x))", 3),
        ("x.view(-1, 320)", 2),
        ("x.view(x.size(0), 4, -1)", 3),
        ("x.reshape((2, 3, 4, 5))", 4),
        ("x.view(shape)", None),
        ("x.view(*shape)", None),
        ("torch.flatten(x, 1)", 2),
        ("x.flatten(1)", 2),
        ("x.flatten(2)", None),
        ("nn.Flatten()(x)", 2),
        ("nn.Flatten(2)(x)", None),
        ("nn.Conv2d(3, 4, 3)(x).squeeze(3)", 3),
        ("nn.Conv2d(3, 4, 3)(x).squeeze()", None),
        ("nn.Conv1d(3, 4, 3)(x).max(2)[0]", 2),
        ("torch.max(nn.Conv1d(3, 4, 3)(x), dim=2)[0]", 2),
        ("nn.Conv1d(3, 4, 3)(x).mean(dim=2)", 2),
        ("nn.Conv2d(3, 4, 3)(x).mean(dim=(2, 3))", 2),
        ("nn.Conv1d(3, 4, 3)(x).mean(dim=2, keepdim=True)", None),
        ("x.view(-1, 8).unsqueeze(2)", 3),
        ("nn.LSTM(3, 4)(x)[0]", 3),
        ("nn.LSTM(3, 4)(x)[0][:, -1]", 2),
        ("nn.LSTM(3, 4)(x)[0][:, -1, None]", 3),
        ("nn.Linear(8, 8)(x.view(-1, 8))", 2),
        ("torch.cat([x.view(-1, 8), x.view(-1, 8)], 1)", 2),
        ("torch.cat([x.view(-1, 8), x], 1)", None),
        ("x", None),
        ("unknown(x)", None),
    ],
)
def test_axes(expression, count):
    whole = flow(file_of(f"def f(x, shape):\n    return F.dropout({expression})\n"))
    (step,) = whole.dropouts("elementwise")
    (source,) = step.inputs
    assert axes(source) == count
