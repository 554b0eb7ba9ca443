"""DS401: dropout built and never applied, or an argument taken and never used."""

import pytest

from dropseed.audit.rules import unused_dropout
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS401"

NET = """
class Net({bases}):
    def __init__(self, p, names=()):
        super().__init__()
        self.fc = nn.Linear(8, 8)
{build}

    def forward(self, x):
{run}
"""


def net(build, run="return self.fc(x)", bases="nn.Module"):
    """A module with these layers and this forward pass."""
    parts = (["        " + line for line in part.strip().split("\n")] for part in (build, run))
    first, last = map("\n".join, parts)
    return NET.format(bases=bases, build=first, run=last)


LAYER = "self.dropout = nn.Dropout(p)  # wrong"
RIGHT_LAYER = "self.dropout = nn.Dropout(p)"

WRONG = [
    pytest.param(
        """
        class Attention(nn.Module):
            def __init__(
                self,
                dim,
                dropout=0.5,  # wrong
            ):
                super().__init__()
                self.fc = nn.Linear(dim, dim)
                self.dropout = dropout

            def forward(self, x):
                return torch.softmax(self.fc(x), 1)
        """,
        id="an argument that is kept",
    ),
    pytest.param(net(LAYER), id="a layer"),
    pytest.param(
        net("self.drop_path = torchvision.ops.StochasticDepth(p, 'row')  # wrong"), id="a path"
    ),
    pytest.param(net("self.do = nn.Dropout(p)  # wrong"), id="a short name"),
    pytest.param(
        net("self.dropout = nn.Dropout(p) if p else nn.Identity()  # wrong"),
        id="a layer or Identity",
    ),
    pytest.param(
        net("if p:\n    self.dropout = nn.Dropout(p)  # wrong\nelse:\n    self.dropout = None"),
        id="in one branch",
    ),
    pytest.param(
        net(
            "self.dropout = nn.Dropout(p)  # wrong\nself.dropout1 = nn.Dropout(p)",
            "return self.dropout1(x)",
        ),
        id="a like name is read",
    ),
    pytest.param(
        net(LAYER) + "\n\n" + net(RIGHT_LAYER, "return self.dropout(x)").replace("Net", "Other"),
        id="another class reads its own",
    ),
    pytest.param(net(LAYER, "return self.fc(x) * self.config.dropout"), id="a setting is read"),
    pytest.param(net(LAYER, "return F.dropout(x, 0.1, self.training)"), id="a function is read"),
    pytest.param(
        net(LAYER, "for name in ('fc',):\n    x = getattr(self, 'fc')(x)\nreturn x"), id="getattr"
    ),
    pytest.param(
        """
        class DropPath(nn.Module):
            def forward(self, x):
                return x

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop_path = DropPath()  # wrong

            def forward(self, x):
                return x
        """,
        id="a dropout of the file's own",
    ),
    pytest.param(
        """
        class Net(keras.layers.Layer):
            def __init__(self, rate):
                super().__init__()
                self.dropout = layers.Dropout(rate)  # wrong
                self.dense = layers.Dense(8)

            def call(self, x):
                return self.dense(x)
        """,
        id="Keras",
    ),
    pytest.param(net(RIGHT_LAYER, "self.dropout(x)  # wrong\nreturn self.fc(x)"), id="a result"),
    pytest.param(
        "def f(x):\n    F.dropout(x, 0.1, True)  # wrong\n    return x", id="a function's result"
    ),
    pytest.param(
        "def f(x):\n    layers.Dropout(0.1)  # wrong\n    return x", id="a layer on its own"
    ),
    pytest.param("def f(x, dropout=0.1):  # wrong\n    return x * 2", id="an argument"),
    pytest.param("def f(x, *, p_drop):  # wrong\n    return x * 2", id="a named argument"),
    pytest.param(
        "class Net(nn.Module):\n    def __init__(self, attn_drop=0.):  # wrong\n"
        "        super().__init__()\n        self.fc = nn.Linear(8, 8)\n",
        id="an argument of a constructor",
    ),
    pytest.param(
        "def f(x, dropout):  # wrong\n    dropout = 0.1\n    return x", id="set, and never read"
    ),
    pytest.param(
        "class Net(nn.Module):\n    def forward(self, x, dropout=0.1):  # wrong\n"
        "        return x * 2",
        id="an argument of forward",
    ),
    pytest.param(
        "class A(nn.Module):\n    def forward(self, x, dropout=0.1):  # wrong\n"
        "        return x * 2\n\n\n"
        "class B(nn.Module):\n    def forward(self, x):\n        return x * 2",
        id="an argument of forward, which others have, too",
    ),
]

RIGHT = [
    *(
        pytest.param(
            "class Attention(nn.Module):\n"
            f"    def __init__(self, dropout):\n        super().__init__()\n{kept}\n"
            f"    def forward(self, x):\n        {run}\n",
            id=f"kept: {kept.strip()}; {run}",
        )
        for kept, run in (
            ("        self.dropout = dropout", "return F.dropout(x, self.dropout, self.training)"),
            ("        self.dropout = dropout", "return self.fc(x, getattr(self, 'dropout'))"),
            ("        self.dropout = dropout  # unused", "return x"),
            ("        self.rate = dropout", "return x"),
            ("        self.dropout = dropout\n        self.fc = fc(dropout)", "return self.fc(x)"),
            ("        self.dropout = 1 - dropout", "return x"),
            ("        self.fc = fc(dropout)\n        self.dropout = dropout", "return self.fc(x)"),
        )
    ),
    pytest.param(
        """
        class Settings:
            def __init__(self, dropout):
                self.dropout = dropout
        """,
        id="settings",
    ),
    pytest.param(
        """
        class Base(nn.Module):
            def __init__(self, dropout):
                super().__init__()
                self.dropout = dropout

            def forward(self, x):
                return x

        class Child(Base):
            def forward(self, x):
                return F.dropout(x, self.dropout, self.training)
        """,
        id="kept for a child",
    ),
    pytest.param(net(RIGHT_LAYER, "return self.dropout(x)"), id="applied"),
    pytest.param(net(RIGHT_LAYER, "return run(self.dropout, x)"), id="given on"),
    pytest.param(
        net(RIGHT_LAYER, "return nn.Sequential(self.fc, self.dropout)(x)"), id="in a sequence"
    ),
    pytest.param(
        net("self.dropout = nn.Dropout(p)\nself.all = [self.dropout, self.fc]"), id="in a list"
    ),
    pytest.param(net(RIGHT_LAYER, "return getattr(self, 'dropout')(x)"), id="getattr"),
    pytest.param(
        net("self.dropout1 = nn.Dropout(p)", "return getattr(self, f'dropout{1}')(x)"),
        id="getattr, a name that is made",
    ),
    pytest.param(net(RIGHT_LAYER, "return self._modules['dropout'](x)"), id="_modules"),
    pytest.param(
        net(RIGHT_LAYER, "for layer in self.children():\n    x = layer(x)\nreturn x"), id="children"
    ),
    pytest.param(net(RIGHT_LAYER, bases="nn.Sequential"), id="a Sequential"),
    pytest.param(net(RIGHT_LAYER, bases="nn.TransformerEncoderLayer"), id="a layer of torch's"),
    pytest.param(net(RIGHT_LAYER, bases="Unknown"), id="an unknown base"),
    pytest.param(net("self.dropout = p"), id="a rate"),
    pytest.param(net("self.dropout = make_dropout(p)"), id="something else"),
    pytest.param(
        net(RIGHT_LAYER + "  # not used, kept for old checkpoints"), id="a comment says so"
    ),
    pytest.param(
        net(RIGHT_LAYER)
        + "\n\nclass Child(Net):\n    def forward(self, x):\n        return self.dropout(x)\n",
        id="a child applies it",
    ),
    pytest.param(
        "class Base(nn.Module):\n    def forward(self, x):\n        return self.dropout(x)\n\n\n"
        + net(RIGHT_LAYER, bases="Base"),
        id="a base applies it",
    ),
    pytest.param(
        "class Base(nn.Module):\n    def __init__(self, p):\n        super().__init__()\n"
        "        self.dropout = nn.Dropout(p)\n",
        id="a class without a forward pass",
    ),
    pytest.param(
        net(RIGHT_LAYER) + "\n\ndef run(net, x):\n    return net.dropout(net(x))\n",
        id="another object's",
    ),
    pytest.param(
        net(RIGHT_LAYER) + "\n\ndef make():\n    class Child(Net):\n        def forward(self, x):\n"
        "            return self.dropout(x)\n    return Child\n",
        id="a child inside a function",
    ),
    pytest.param(net(RIGHT_LAYER, "x = self.dropout(x)\nreturn x"), id="a result that is kept"),
    pytest.param(
        "def f(x):\n    F.dropout(x, 0.1, True, inplace=True)\n    return x", id="in place"
    ),
    pytest.param(
        "def f(x):\n    F.dropout(x, 0.1, True, True)\n    return x", id="in place, by position"
    ),
    pytest.param(
        net("self.dropout = nn.Dropout(p, inplace=True)", "self.dropout(x)\nreturn x"),
        id="a layer that works in place",
    ),
    pytest.param(net("self.drop_all(p)"), id="a method"),
    pytest.param("def f(x, dropout=0.1):\n    return F.dropout(x, dropout)", id="an argument used"),
    pytest.param(
        "def f(x, dropout=0.1):\n    def g():\n        return dropout\n    return g", id="inside"
    ),
    pytest.param("def f(x, dropout=0.1):\n    raise NotImplementedError", id="a stub"),
    pytest.param('def f(x, dropout=0.1):\n    """Nothing."""', id="a docstring"),
    pytest.param("def f(x, dropout=0.1):\n    return None", id="nothing given back"),
    pytest.param("def f(x, dropout=0.1):\n    del dropout\n    return x", id="deleted"),
    pytest.param("def f(x, dropout=0.1):\n    g(**locals())", id="locals"),
    pytest.param(
        "class A:\n    def __init__(self, dropout):\n        self.x = get_init_arguments()",
        id="a call that takes them all",
    ),
    pytest.param("def f(x, dropout=0.1):  # dropout is ignored\n    return x * 2", id="a comment"),
    pytest.param(
        'def f(x, dropout=0.1):\n    """Do.\n\n    dropout: unused.\n    """\n    return x * 2',
        id="documented",
    ),
    pytest.param("def f(x, drop_last=False):\n    return x * 2", id="batches"),
    pytest.param("def f(x, dropout_rng=None):\n    return x * 2", id="a key"),
    pytest.param("def f(x, _dropout=None):\n    return x * 2", id="a private name"),
    pytest.param("@register_to_config\ndef f(x, dropout=0.1):\n    return x * 2", id="a decorator"),
    pytest.param(
        "class Identity(nn.Module):\n    def __init__(self, dropout):\n        super().__init__()\n"
        "        self.x = 1\n",
        id="a class that does nothing",
    ),
    pytest.param(
        "class Net(lightning.LightningModule):\n    def __init__(self, dropout):\n"
        "        super().__init__()\n        self.save_hyperparameters()\n",
        id="saved settings",
    ),
    pytest.param(
        "class Base(lightning.LightningModule):\n    def keep(self):\n"
        "        self.save_hyperparameters()\n\n\n"
        "class Net(Base):\n    def __init__(self, dropout):\n        self.keep()\n",
        id="settings that a base saves",
    ),
    pytest.param(
        "class A(nn.Module):\n    def run(self, x, dropout):\n"
        "        return F.dropout(x, dropout)\n\n\n"
        "class B(A):\n    def run(self, x, dropout):\n        return x * 2\n",
        id="an override",
    ),
    pytest.param(
        "class A(nn.Module):\n    def run(self, x, dropout):\n        return x * 2\n\n\n"
        "class B(A):\n    def run(self, x, dropout):\n        return F.dropout(x, dropout)\n",
        id="overridden",
    ),
    pytest.param(
        "class A(nn.Module):\n    def update_dropout(self, p, attn_drop):\n        self.p = p\n\n\n"
        "class B(nn.Module):\n    def update_dropout(self, p, attn_drop):\n"
        "        self.p = attn_drop\n",
        id="a method that others have, too",
    ),
    pytest.param(
        "class Net(Stored):\n    def __init__(self, dropout=0.1):\n        super().__init__()\n\n"
        "    def forward(self, x):\n        return F.dropout(x, self.dropout, self.training)\n",
        id="an argument that a base keeps",
    ),
    pytest.param(
        "class A(Unknown):\n    def run(self, x, dropout):\n        return x * 2\n",
        id="an unknown base's",
    ),
]

CHANGES = [
    ('if function.name == "__init__":\n        unused', "if False:\n        unused"),
    ("return not _read(name, owner, file) and", "return"),
    ("file) and _whole(owner, file)\n\n\ndef _uses", "file)\n\n\ndef _uses"),
    ("file.parent(uses[0]) if len(uses) == 1 else None", "file.parent(uses[0]) if uses else None"),
    ('own != "self" or "drop" not in name or', 'own != "self" or'),
    ("if built and not _read(name, owner, file) and", "if built and"),
    (" and _whole(owner, file):", ":"),
    ("if kind in DROPOUTS or _own_dropout(kind, file)", "if kind in DROPOUTS"),
    ("if kind in DROPOUTS or _own_dropout(kind, file)", "if True"),
    ("if not _said(call, file)", "if True"),
    ("return bool(borrowed([node], file.facts))", "return False"),
    ("return bool(borrowed([node], file.facts))", "return True"),
    (" or owner.name in file.lineage(here)", ""),
    ("here is None or here.name in family or", "here is None or"),
    ("or given.value == name", "or False"),
    ("not isinstance(given, ast.Constant) or", ""),
    ("facts is not None or _ROOTS.fullmatch(name)", "True"),
    ("bool(_FORWARD & methods) and not any(", "not any("),
    ("node.attr in _LOOKS", "False"),
    (" and not _in_place(call, 3)", ""),
    (" and not _in_place(at, 1)", ""),
    ("if built and all(", "if all("),
    (' and at.arg[0] != "_"', ""),
    ("isinstance(at, ast.Name) and isinstance(at.ctx, ast.Del)", "False"),
    ("_stub(function) or", ""),
    (" or any(not _harmless(at) for at in function.decorator_list)", ""),
    ("any(_NOTHING.search(name) for name in names) or ", ""),
    ("isinstance(at, ast.Call) and _takes_all(at)", "False"),
    ('"save_hyperparameters", "hparams"} & file', '"none"} & file'),
    (" or _shared(function, owner, file)", ""),
    ("if not _excused(parameter, function, file):", "if True:"),
    ("name not in _FORWARD and any(", "any("),
    ("    if unknown or any(", "    if any("),
    ("if file.in_tests:", "if True:"),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


def test_messages():
    assert messages(net(LAYER), CODE) == ["`self.dropout` is built and never applied"]
    assert messages("def f(x, dropout):\n    return x * 2", CODE) == [
        "argument `dropout` is taken and never used"
    ]
    assert messages("def f(x):\n    F.dropout(x)\n    return x", CODE) == [
        "the result of this dropout is thrown away"
    ]


IMPORTS = "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n"


def over_files(layer, other):
    """A module beside another file of the same package."""
    return {
        "pkg/__init__.py": "",
        "pkg/net.py": IMPORTS + net(layer),
        "pkg/sub/__init__.py": "",
        "pkg/sub/other.py": IMPORTS + other,
        "far/__init__.py": "",
        "far/away.py": "def run(net, x):\n    return net.dropout(x)\n",
    }


@pytest.mark.parametrize(
    ("layer", "other"),
    [
        pytest.param(LAYER, "", id="nothing"),
        pytest.param(
            RIGHT_LAYER,
            "from pkg.net import Net\nclass Child(Net):\n    def forward(self, x):\n"
            "        return self.dropout(x)\n",
            id="a child",
        ),
        pytest.param(
            RIGHT_LAYER,
            "from pkg.net import Net\nclass Use(nn.Module):\n    def __init__(self):\n"
            "        super().__init__()\n        self.net = Net(0.5)\n\n    def forward(self, x):\n"
            "        return self.net.dropout(x)\n",
            id="the module that holds it",
        ),
        pytest.param(
            LAYER,
            "class Other(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.dropout = nn.Dropout(0.5)\n\n    def forward(self, x):\n"
            "        return self.dropout(x)\n",
            id="a class of its own",
        ),
    ],
)
def test_files_together(tmp_path, layer, other):
    files = over_files(layer, other)
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_mutants():
    assert mutants(unused_dropout, CHANGES, WRONG + RIGHT) == []
