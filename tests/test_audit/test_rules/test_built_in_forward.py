"""DS103: a dropout layer built where it is called."""

from textwrap import dedent

import pytest

from dropseed.audit.rules import built_in_forward
from test_audit.rule_cases import fixed, hits, marked, marked_in, mutants, scanned

CODE = "DS103"

WRONG = [
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = nn.Dropout(0.5)(self.linear(x))  # wrong
                return torch.nn.Dropout2d(p=self.p)(x)  # wrong
        """,
        id="called at once",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                drop = nn.Dropout(0.5)  # wrong
                x = drop(self.first(x))
                return drop(self.second(x))
        """,
        id="called under a local name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return self._head(x)

            def _head(self, x):
                self.drop = nn.Dropout(0.5)  # wrong
                return self.linear(self.drop(x))
        """,
        id="set as an attribute at each call",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))(x)  # wrong
                tail = nn.Sequential(*[nn.Tanh(), nn.Dropout(0.1)])  # wrong
                return tail(x)
        """,
        id="in a Sequential",
    ),
    pytest.param(
        """
        def dropout(x, p):
            return nn.Dropout(p)(x)  # wrong

        def head(x, p=0.1):
            x = torch.relu(x)
            layer = nn.Dropout(p)  # wrong
            return layer(x)
        """,
        id="in functions",
    ),
    pytest.param(
        """
        class DropPath(nn.Module):
            def __init__(self, p=0.1):
                super().__init__()

            def forward(self, x):
                return x if not self.training else x * (torch.rand(len(x)) > self.p)

        class Block(nn.Module):
            def forward(self, x):
                return x + DropPath(0.1)(self.mlp(x))  # wrong
        """,
        id="a layer of the file",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout

            def forward(self, x):
                return self.drop(0.5)(x)  # wrong
        """,
        id="through the class under another name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.noise = lambda x: nn.Dropout(0.1)(x)  # wrong

            def forward(self, x):
                x = nn.Dropout(0.5).to(x.device)(x)  # wrong
                drop = nn.Dropout(self.p) if self.p else nn.Identity()  # wrong
                return drop(x)
        """,
        id="in a lambda, moved, or under a condition",
    ),
]

RIGHT = [
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)

            def forward(self, x):
                return self.drop(x)
        """,
        id="built in the constructor",
    ),
    pytest.param(
        """
        def build(shape):
            inputs = keras.Input(shape)
            x = layers.Dropout(0.5)(inputs)
            return keras.Model(inputs, layers.Dense(1)(x))
        """,
        id="Keras's functional models",
    ),
    pytest.param(
        """
        class Block(flax.linen.Module):
            @flax.linen.compact
            def __call__(self, x, train):
                return flax.linen.Dropout(0.5)(x, deterministic=not train)
        """,
        id="Flax's compact modules",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                if self.training:
                    x = nn.Dropout(0.5)(x)
                return x
        """,
        id="under the switch",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                p = self.p if self.training else 0.0
                return nn.Dropout(p)(x)
        """,
        id="at a rate that is switched",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                drop = nn.Dropout(0.5)
                drop.train(self.training)
                return drop(x)
        """,
        id="with its mode set by hand",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return nn.Dropout(0.5).train(self.training)(x)
        """,
        id="with its mode set in place",
    ),
    pytest.param(
        """
        class Lit(nn.Module):
            def training_step(self, batch, index):
                return self(nn.Dropout(0.1)(batch)).sum()
        """,
        id="in a training step",
    ),
    pytest.param(
        """
        def build(sizes, p):
            layer = nn.Dropout(p)
            modules = [nn.Linear(*sizes), layer]
            return nn.Sequential(*modules, nn.Dropout(p))
        """,
        id="in a function that builds",
    ),
    pytest.param(
        """
        def head(p):
            drop = nn.Dropout(p)
            print(drop(torch.ones(8)))
            return drop
        """,
        id="handed on",
    ),
    pytest.param(
        """
        def show():
            m = nn.Dropout(0.2)
            x = torch.randn(20, 16)
            print(m(x))
        """,
        id="a demonstration on what it makes itself",
    ),
    pytest.param(
        """
        class MCDropout(nn.Module):
            def forward(self, x):
                return nn.Dropout(self.p)(x)
        """,
        id="meant, by the name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(nn.Dropout(0.5)(torch.ones(8)))
        """,
        id="in the constructor, once",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = None

            def forward(self, x):
                if self.drop is None:
                    self.drop = nn.Dropout(0.5)
                return self.drop(x)
        """,
        id="built at the first call",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, dropout=False):
                if dropout:
                    x = nn.Dropout(0.5)(x)
                return nn.Dropout(0)(x)
        """,
        id="under an argument, or at rate 0",
    ),
    pytest.param(
        """
        from pytorch_symbolic import Input, SymbolicModel

        def build(shape):
            inputs = Input(shape)
            x = nn.Linear(x.features, 10)(inputs)
            x = nn.Dropout(0.5)(x)
            return SymbolicModel(inputs, x)

        def block(x):
            x = nn.Conv2d(8, 8, 3)(x)
            return nn.Dropout(0.5)(x)
        """,
        id="symbols instead of tensors",
    ),
    pytest.param(
        """
        class InputDropout(nn.Module):
            def forward(self, x, training):
                return x if not training else x * (torch.rand(len(x)) > 0.1)

        class Net(nn.Module):
            def forward(self, x):
                return InputDropout()(x, self.training)
        """,
        id="a layer that is told the mode",
    ),
    pytest.param(
        """
        y = nn.Dropout(0.5)(torch.ones(8))
        """,
        id="outside of functions",
    ),
    pytest.param(
        """
        class Dropout:
            def __init__(self, p):
                self.p = p

            def __call__(self, x):
                return x

        class Net(nn.Module):
            def forward(self, x):
                return Dropout(0.5)(x)
        """,
        id="a class that is no module",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                if self.training or self.keep_dropping:
                    x = nn.Dropout(0.5)(x)
                return x
        """,
        id="under a condition that asks for the mode among others",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                drop = nn.Dropout(0.5)
                return torch.utils.checkpoint.checkpoint(drop, x)
        """,
        id="handed to a function",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def build(self, x):
                drop = nn.Dropout(0.5)
                return drop(x)

            def freeze(self):
                self.drop = nn.Dropout(0.0)
                self.other = nn.Dropout(0.5)
        """,
        id="methods that build",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_files_are_taken_together(tmp_path):
    files = {
        "net/layers.py": """
            from torch import nn

            class DropPath(nn.Module):
                def forward(self, x):
                    return x

            class Dropout(nn.Dropout):
                pass
        """,
        "net/model.py": """
            from . import layers

            class Block(layers.DropPath):
                def forward(self, x):
                    x = layers.Dropout(0.1)(x)  # wrong
                    return layers.DropPath()(x)  # wrong
        """,
        "tests/test_model.py": """
            from net.layers import Dropout

            def test_dropout(x):
                assert Dropout(0.0)(x) is x and Dropout(0.5)(x).any()
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def _plain(text):
    return dedent(text).lstrip("\n")


def test_fix_moves_the_layer():
    text = """
        class Net(nn.Module):
            def __init__(self, rate):
                super().__init__()
                self.rate = rate
                self.linear = nn.Linear(8, 8)  # the only one

            def forward(self, x):
                return nn.Dropout(p=self.rate)(self.linear(x))
    """
    after = """
        class Net(nn.Module):
            def __init__(self, rate):
                super().__init__()
                self.rate = rate
                self.linear = nn.Linear(8, 8)  # the only one
                self.dropout = nn.Dropout(p=self.rate)

            def forward(self, x):
                return self.dropout(self.linear(x))
    """
    assert fixed(text, CODE) == _plain(after)
    assert hits(after, CODE) == []


def test_fix_takes_a_free_name():
    text = """
        class Net(nn.Module):
            def __init__(self, dropout):
                super().__init__()
                self.dropout = dropout
                if dropout:
                    self.dropout1 = 1

            def forward(self, x):
                return nn.Dropout(self.dropout)(x)
    """
    assert "self.dropout2 = nn.Dropout(self.dropout)\n\n" in fixed(text, CODE)


def test_fix_gives_each_layer_a_name():
    text = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()

            def forward(self, x):
                return nn.Dropout(0.1)(nn.Dropout(0.2)(x))
    """
    after = """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.dropout = nn.Dropout(0.1)
                self.dropout1 = nn.Dropout(0.2)

            def forward(self, x):
                return self.dropout(self.dropout1(x))
    """
    assert fixed(fixed(text, CODE), CODE) == _plain(after)


@pytest.mark.parametrize(
    "text",
    [
        """
        class Net(nn.Module):
            def forward(self, x):
                return nn.Dropout(0.5)(x)
        """,
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()

            def forward(self, x, p):
                return nn.Dropout(p)(x)
        """,
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.p = 0.1

            def anneal(self):
                self.p = 0.2

            def forward(self, x):
                return nn.Dropout(self.p)(x)
        """,
        """
        class Net(Base):
            def __init__(self):
                super().__init__()

            def forward(self, x):
                return nn.Dropout(0.1)(x)
        """,
        """
        class Net(nn.Module):
            def __init__(self): super().__init__()

            def forward(self, x):
                return nn.Dropout(0.1)(x)
        """,
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()

            def forward(self, x):
                drop = nn.Dropout(0.1)
                return drop(x)
        """,
        """
        class Net(nn.Module):
            def __init__(self):
                self.ready = True

            def forward(self, x):
                return nn.Dropout(0.1)(x)
        """,
    ],
    ids=[
        "no constructor",
        "an argument's rate",
        "a rate that changes",
        "an unknown base",
        "one line",
        "a local name",
        "no call of the parent's constructor",
    ],
)
def test_no_fix_where_it_is_not_certain(text):
    assert hits(text, CODE)
    assert fixed(text, CODE) == _plain(text)


MUTANTS = [
    ("function.name in _BUILDERS and not", "False and not"),
    ("and not isinstance(file.scope_of(call), ast.Lambda)", ""),
    ('("to", "cuda", "cpu")', "()"),
    ("isinstance(parent, ast.IfExp) and layer is not parent.test", "False"),
    ("or not _called(call, function, file)", ""),
    ("rate is not None and rate_in_evaluation(rate, file) is Rate.OFF", "False"),
    ("asked_at(call, file) or ", ""),
    ("trains_only(call, file) or ", ""),
    ("or by_design(call, file)", ""),
    ("if kind in TORCH_DROPOUTS:\n        return kind", "if kind:\n        return kind"),
    ('if not _OWN_LAYER.fullmatch(kind.rpartition(".")[2]):', "if True:"),
    ("kind not in TORCH_DROPOUTS and _told(call, file)", "False"),
    ("any(is_torch_module(name) for name in file.project.ancestors(kind))", "True"),
    ("is layer and not _symbolic(function, file)", "is layer"),
    ("use.func is name", "True"),
    ("and (inside or _of_a_parameter(use, file))", ""),
    ("or file.parent(assignment) is not function", ""),
    ('if function.name != "forward" and not any(', "if any("),
]


def test_mutants():
    assert mutants(built_in_forward, MUTANTS, CASES) == []
