"""DS106: a dropout layer in a plain list, dict or tuple."""

import pytest

from dropseed.audit.rules import unregistered_layer
from test_audit.rule_cases import fixed, hits, marked, marked_in, mutants, scanned

CODE = "DS106"

NET = """
class Net(nn.Module):
    def __init__(self, sizes, p):
        super().__init__()
{}

    def forward(self, x):
{}
"""
LOOP = "for drop in self.drops:\n            x = drop(x)\n        return x"


def net(build, run=LOOP):
    """A module whose constructor ends so, and whose forward pass is so."""
    lines = ["        " + line for line in build.strip().split("\n")]
    return NET.format("\n".join(lines), "        " + run)


WRONG = [
    pytest.param(net("self.drops = [nn.Dropout(p), nn.Dropout(p)]  # wrong"), id="a list"),
    pytest.param(net("self.drops = (nn.Dropout(p), nn.Dropout(p))  # wrong"), id="a tuple"),
    pytest.param(net("self.drops = [nn.Dropout(p) for _ in sizes]  # wrong"), id="comprehension"),
    pytest.param(net("self.drops = [nn.Dropout(p).to('cuda')] * 3  # wrong"), id="repeated, moved"),
    pytest.param(
        net("self.drops = {'a': nn.Dropout(p)}  # wrong", "return self.drops['a'](x)"), id="a dict"
    ),
    pytest.param(
        net("self.drops = dict(a=nn.Dropout(p))  # wrong", "return self.drops['a'](x)"),
        id="a dict by keywords",
    ),
    pytest.param(
        net("self.drops = []\nfor _ in sizes:\n    self.drops.append(nn.Dropout(p))  # wrong"),
        id="appended",
    ),
    pytest.param(
        net(
            "drops = []\nfor _ in sizes:\n    drops.append(nn.Dropout(p))  # wrong\n"
            "self.drops = drops"
        ),
        id="filled under a local name",
    ),
    pytest.param(
        net(
            "self.drops = {}\nfor i, _ in enumerate(sizes):\n"
            "    self.drops[i] = nn.Dropout(p)  # wrong",
            "return self.drops[0](x)",
        ),
        id="a dict, item by item",
    ),
    pytest.param(
        net(
            "self.blocks = [nn.Sequential(nn.ReLU(), nn.Dropout(p)) for _ in sizes]  # wrong",
            "return self.blocks[0](x)",
        ),
        id="within a Sequential",
    ),
    pytest.param(
        net("self.drops = [nn.Dropout(p) if p else nn.Identity(), nn.ReLU()]  # wrong"),
        id="under a condition",
    ),
]

RIGHT = [
    pytest.param(net("self.drops = nn.ModuleList([nn.Dropout(p)])"), id="a ModuleList"),
    pytest.param(
        net("drops = [nn.Dropout(p) for _ in sizes]\nself.drops = nn.ModuleList(drops)"),
        id="a ModuleList of a local list",
    ),
    pytest.param(
        net("self.drops = [nn.Dropout(p) for _ in sizes]\nself.drops = nn.ModuleList(self.drops)"),
        id="a ModuleList afterwards",
    ),
    pytest.param(
        net("self.drops = [nn.Dropout(p)]\nself.layers = nn.ModuleList(self.drops)"),
        id="a ModuleList beside it",
    ),
    pytest.param(
        net("self.drops = [nn.Dropout(p)]\nself.body = nn.Sequential(*self.drops)"),
        id="a Sequential of it",
    ),
    pytest.param(
        net("drops = [nn.Dropout(p)]\nself.drops = drops\nself.body = nn.Sequential(*drops)"),
        id="a Sequential of the local list",
    ),
    pytest.param(
        net(
            "self.drops = []\nfor i, _ in enumerate(sizes):\n    drop = nn.Dropout(p)\n"
            "    self.add_module(f'drop{i}', drop)\n    self.drops.append(drop)"
        ),
        id="add_module",
    ),
    pytest.param(
        net(
            "self.drops = [nn.Dropout(p) for _ in sizes]\nfor i, drop in enumerate(self.drops):\n"
            "    setattr(self, f'drop{i}', drop)"
        ),
        id="setattr",
    ),
    pytest.param(
        net(
            "self.drops = []\ndrop = nn.Dropout(p)\nself.__setattr__('drop', drop)\n"
            "self.drops.append(drop)"
        ),
        id="__setattr__",
    ),
    pytest.param(
        net("self.drop = nn.Dropout(p)\nself.drops = [self.drop, self.drop]"),
        id="an attribute of its own",
    ),
    pytest.param(
        net("self.drop = drop = nn.Dropout(p)\nself.drops = [drop]"),
        id="an attribute of its own, by another name",
    ),
    pytest.param(
        net("self.drops = [nn.Dropout(p)]\nself.body = build(self.drops)"),
        id="handed to a function",
    ),
    pytest.param(
        net("self.drops = [nn.Dropout(p)]", "return self.other(x, self.drops)"),
        id="handed on in forward",
    ),
    pytest.param(net("self.drops = [nn.Dropout(p)]", "return x"), id="used nowhere"),
    pytest.param(
        net(
            "self.drops = [nn.Dropout(p)]\nfor drop in nn.ModuleList(self.drops):\n    drop.eval()"
        ),
        id="handed to a ModuleList in a loop",
    ),
    pytest.param(net("self.drops = [p, p]", "return F.dropout(x, self.drops[0])"), id="rates"),
    pytest.param(net("self.drops = [nn.ReLU(), nn.Tanh()]"), id="other layers"),
    pytest.param(
        net("self.drops = dict(a=nn.Dropout(p))  # wrong", "return self.drops['a'](x)"),
        id="a dict by keywords",
    ),
    pytest.param(
        net("self.drops = []\nfor _ in sizes:\n    self.drops.append(make(p))"),
        id="layers that can't be told",
    ),
    pytest.param(
        """
        class Net(keras.Model):
            def __init__(self, p):
                super().__init__()
                self.drops = [layers.Dropout(p), layers.Dropout(p)]

            def call(self, x):
                for drop in self.drops:
                    x = drop(x)
                return x
        """,
        id="Keras",
    ),
    pytest.param(
        """
        class Net(flax.linen.Module):
            def setup(self):
                self.drops = [flax.linen.Dropout(0.1) for _ in range(3)]

            def __call__(self, x):
                return self.drops[0](x)
        """,
        id="Flax",
    ),
    pytest.param(
        """
        class Trainer:
            def __init__(self, p):
                self.drops = [nn.Dropout(p)]

            def run(self, x):
                return self.drops[0](x)
        """,
        id="a class that is no module",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_files_are_taken_together(tmp_path):
    model = net("self.drops = [layers.Drop(p)]  # wrong").replace("nn.Module", "layers.Base")
    files = {
        "net/layers.py": """
            from torch import nn

            class Base(nn.Module):
                pass

            class Drop(nn.Dropout):
                pass
        """,
        "net/model.py": f"from . import layers\n{model}",
        "tests/model.py": f"from net import layers\n{model}".replace("# wrong", ""),
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[nn.Dropout(p)]", "nn.ModuleList([nn.Dropout(p)])"),
        ("(nn.Dropout(p),)", "nn.ModuleList((nn.Dropout(p),))"),
        ("nn.Dropout(p), nn.Dropout(p)", "nn.ModuleList([nn.Dropout(p), nn.Dropout(p)])"),
        ("[nn.Dropout(p) for _ in sizes]", "nn.ModuleList([nn.Dropout(p) for _ in sizes])"),
        ("{'drop1': nn.Dropout(p)}", "nn.ModuleDict({'drop1': nn.Dropout(p)})"),
    ],
)
def test_fix(before, after):
    run = "return self.drops[0](x)"
    assert fixed(net(f"self.drops = {before}", run), CODE) == net(
        f"self.drops = {after}", run
    ).lstrip("\n")


def test_fix_of_what_is_appended_later():
    text = net("self.drops = []\nfor _ in sizes:\n    self.drops.append(nn.Dropout(p))")
    assert "self.drops = nn.ModuleList([])\n" in fixed(text, CODE)


@pytest.mark.parametrize(
    "build",
    [
        "self.drops = [nn.Linear(8, 8), nn.Dropout(p)]",
        "self.drops = [nn.Dropout(p) if p else None]",
        "self.drops = [nn.Dropout(p)] * 2",
        "self.drops = {'type': nn.Dropout(p)}",
        "self.drops = {0: nn.Dropout(p)}",
        "drops = [nn.Dropout(p)]\nself.drops = drops",
    ],
)
def test_no_fix_where_it_is_not_certain(build):
    text = net(build, "return self.drops[0](x)")
    assert hits(text, CODE)
    assert fixed(text, CODE) == text.lstrip("\n")


def test_fix_needs_a_name_for_the_container():
    text = (
        "from torch.nn import Dropout, Module\n\n"
        "class A(Module):\n"
        "    def __init__(self):\n"
        "        self.drops = [Dropout(0.1)]\n\n"
        "    def forward(self, x):\n"
        "        return self.drops[0](x)\n"
    )
    assert "self.drops = nn.ModuleList([Dropout(0.1)])" in fixed(text, CODE)


MUTANTS = [
    ("not file.is_module(owner)", "False"),
    ("or _registers(owner)", ""),
    ("not all(_stays(use, file) for use in uses)", "False"),
    ("or not any(_outside(use, file) for use in uses)", ""),
    ("uses += _uses_of_local(value, file)", "pass"),
    ("elements += [at for use in uses for at in _added(use, file)]", ""),
    ("len(parent.targets) > 1", "False"),
    ("if file.dropout_kind(element) in TORCH_DROPOUTS:", "if True:"),
    ('if file.called(element) == "torch.nn.Sequential":', "if False:"),
    ("return parent.value is use", "return False"),
]


def test_mutants():
    assert mutants(unregistered_layer, MUTANTS, CASES) == []
