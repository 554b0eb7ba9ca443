"""What a name stands for, across scopes, files and inheritance."""

import ast
from textwrap import dedent

import pytest

from dropseed.audit.reading.facts import collect
from dropseed.audit.reading.file import File
from dropseed.audit.reading.names import canonical
from dropseed.audit.reading.project import Project
from dropseed.audit.reading.source import Source, parse


def opened(text, name="pkg.module", **others):
    """A file, and beside it others by their dotted names, where `__` stands for a dot."""
    source = Source(dedent(text))
    file = File(source, parse(source)[0], name)
    modules = [file.facts]
    for other, code in others.items():
        dotted = other.replace("__", ".")
        package = dotted.endswith(".init")
        tree = ast.parse(dedent(code))
        modules.append(collect(tree, dotted.removesuffix(".init"), package))
    file.project = Project(modules)
    return file


def last(text, **others):
    """The name of what the last call of a text calls."""
    file = opened(text, **others)
    return file.called(file.calls[-1])


DROPOUT, FUNCTION = "torch.nn.Dropout", "torch.nn.functional.dropout"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch\ntorch.nn.Dropout()", DROPOUT),
        ("import torch.nn as nn\nnn.Dropout()", DROPOUT),
        ("from torch import nn\nnn.Dropout()", DROPOUT),
        ("from torch.nn import Dropout as D\nD()", DROPOUT),
        ("from torch.nn.modules.dropout import Dropout\nDropout()", DROPOUT),
        ("from torch.nn import *\nDropout()", DROPOUT),
        ("import torch.nn.functional as F\nF.dropout()", FUNCTION),
        ("from torch.nn import functional as F\nF.dropout()", FUNCTION),
        ("import torch\nF = torch.nn.functional\nF.dropout()", FUNCTION),
        ("import torch.nn.functional as F\ndef f(x):\n    drop = F.dropout\n    drop(x)", FUNCTION),
        ("def f(x):\n    import torch.nn.functional as F\n    F.dropout(x)", FUNCTION),
        (
            "try:\n    from torch import nn\nexcept ImportError:\n    nn = None\nnn.Dropout()",
            DROPOUT,
        ),
        (
            "from torch import nn\nclass A:\n    kind = nn.Dropout\n"
            "    def f(self):\n        self.kind()",
            DROPOUT,
        ),
        ("import tensorflow as tf\ntf.keras.layers.Dropout()", "keras.layers.Dropout"),
        ("from keras.src.layers import Dropout\nDropout()", "keras.layers.Dropout"),
        ("import flax.linen as nn\nnn.Dropout()", "flax.linen.Dropout"),
    ],
)
def test_frameworks(text, name):
    assert last(text) == name


@pytest.mark.parametrize(
    "text",
    [
        "from mine import Dropout\nDropout()",
        "Dropout()",
        "from torch import nn\ndef f(nn):\n    nn.Dropout()",
        "from torch import nn\ndef f(x):\n    nn = x\n    nn.Dropout()",
        "from torch import nn\nfor nn in x:\n    nn.Dropout()",
        "from torch import nn\nnn = nn.Sequential\ndef f():\n    nn.Dropout()",
        "import torch.nn.functional as F\nclass A:\n    def dropout(self): ...\n"
        "    def f(self):\n        self.dropout()",
        "import torch.nn.functional as F\nclass A:\n    F = 1\n    F.dropout()",
        "x = x\nx()",
        "a = b\nb = a\na.Dropout()",
        "f()()",
    ],
)
def test_other_things_are_not_taken_for_frameworks(text):
    assert last(text) not in (DROPOUT, FUNCTION)


def test_a_class_s_names_are_not_seen_in_its_methods():
    text = """
        import torch.nn.functional as F
        class A:
            F = 1
            def f(self, x):
                return F.dropout(x)
    """
    assert last(text) == FUNCTION


@pytest.mark.parametrize(
    ("others", "statement"),
    [
        ({"pkg__layers": "from torch.nn import Dropout"}, "from pkg.layers import Dropout"),
        ({"pkg__layers": "from torch.nn import Dropout"}, "from .layers import Dropout"),
        (
            {"pkg__a__init": "from .b import Dropout", "pkg__a__b": "from torch.nn import Dropout"},
            "from .a import Dropout",
        ),
        ({"pkg__layers": "from torch.nn import *"}, "from .layers import *"),
        ({"pkg__layers": "import torch\nDropout = torch.nn.Dropout"}, "from .layers import *"),
        ({"pkg__layers": "from torch.nn import Dropout"}, "from layers import Dropout"),
    ],
)
def test_re_exports(others, statement):
    assert last(f"{statement}\nDropout()", **others) == DROPOUT


def test_a_project_s_own_class_is_not_torch_s():
    others = {"pkg__layers": "class Dropout: ..."}
    assert last("from .layers import Dropout\nDropout()", **others) == "pkg.layers.Dropout"


def test_imports_in_a_circle_end():
    others = {"pkg__a": "from pkg.b import x", "pkg__b": "from pkg.a import x"}
    assert last("from pkg.a import x\nx()", **others) in ("pkg.a.x", "pkg.b.x")
    others = {"pkg__a": "from pkg.b import *", "pkg__b": "from pkg.a import *"}
    last("from pkg.a import *\nx()", **others)


MODULE = "from torch import nn\nclass Base(nn.Module): ...\n"


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("from torch import nn\nclass A(nn.Module): ...", {}),
        (MODULE + "class B(Base): ...\nclass A(B): ...", {}),
        ("from .base import Base\nclass A(Base): ...", {"pkg__base": MODULE}),
        (
            "from .b import Base\nclass A(Base): ...",
            {"pkg__b": "from .a import Base", "pkg__a": MODULE},
        ),
        ("from lightning.pytorch import LightningModule\nclass A(LightningModule): ...", {}),
        ("from elsewhere import Base\nclass A(Base):\n    def forward(self, x): ...", {}),
        ("from torch import nn\nclass A(mixin, nn.Sequential): ...", {}),
        ("def f():\n    from torch import nn\n    class A(nn.Module): ...", {}),
    ],
)
def test_modules(text, others):
    file = opened(text, **others)
    assert file.is_module(file.classes[-1])


@pytest.mark.parametrize(
    ("text", "others"),
    [
        ("class A: ...", {}),
        ("class A:\n    def forward(self, x): ...", {}),
        ("from elsewhere import Base\nclass A(Base): ...", {}),
        ("from .base import Module\nclass A(Module): ...", {"pkg__base": "class Module: ..."}),
        ("from torch import nn\nclass A(nn.Parameter): ...", {}),
        ("import torch\nclass A(torch.autograd.Function):\n    def forward(c, x): ...", {}),
        ("import keras\nclass A(keras.layers.Layer):\n    def forward(self, x): ...", {}),
        ("class A(A): ...", {}),
    ],
)
def test_what_is_no_module(text, others):
    file = opened(text, **others)
    assert not file.is_module(file.classes[-1])


def test_descendants_across_files():
    others = {"pkg__base": MODULE, "pkg__more": "from .module import A\nclass C(A): ..."}
    file = opened("from .base import Base\nclass A(Base): ...", **others)
    assert file.project.descendants("pkg.base.Base") == {"pkg.module.A", "pkg.more.C"}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("nn.Dropout(0.5)", DROPOUT),
        ("class Mine(nn.Dropout): ...\nMine(0.5)", DROPOUT),
        ("class Mine(nn.Dropout):\n    def forward(self, x): ...\nMine(0.5)", ""),
        ("nn.Linear(2, 2)", ""),
    ],
)
def test_dropout_kinds(text, kind):
    file = opened("from torch import nn\n" + text)
    assert file.dropout_kind(file.calls[-1]) == kind


def test_attributes_of_a_class():
    text = """
        class A:
            size = 3
            def __init__(self):
                self.a, self.b = 1, 2
                self.a = 4
                def inner():
                    self.c: int = 5
    """
    file = opened(text)
    values = {
        name: [ast.unparse(value) for value in found]
        for name, found in file.classes[0].attributes.items()
    }
    assert values == {"size": ["3"], "a": ["1", "4"], "b": ["2"], "c": ["5"]}


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("torch.nn.modules.batchnorm.BatchNorm2d", "torch.nn.BatchNorm2d"),
        ("tensorflow.compat.v1.nn.dropout", "tensorflow.nn.dropout"),
        ("tensorflow.python.keras.layers.core.Dropout", "keras.layers.Dropout"),
        ("pytorch_lightning.LightningModule", "lightning.LightningModule"),
        ("mine.torch.nn.modules.dropout.Dropout", "mine.torch.nn.modules.dropout.Dropout"),
    ],
)
def test_spellings(long, short):
    assert canonical(long) == short
