"""DS102: functional dropout that never drops."""

from textwrap import dedent

import pytest

from dropseed.audit.rules import never_on
from test_audit.rule_cases import fixed, hits, marked, marked_in, mutants, scanned

CODE = "DS102"

WRONG = [
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = F.alpha_dropout(F.selu(x), 0.1)  # wrong
                return F.feature_alpha_dropout(x)  # wrong
        """,
        id="in forward",
    ),
    pytest.param(
        """
        def forward(self, x):
            if self.training:
                x = torch.nn.functional.alpha_dropout(x, p=self.p, inplace=True)  # wrong
            return x
        """,
        id="under the switch, which does not help",
    ),
    pytest.param(
        """
        from timm.layers import drop_path

        class Block(nn.Module):
            def forward(self, x):
                return x + drop_path(self.mlp(x), self.rate)  # wrong
        """,
        id="timm's drop_path",
    ),
    pytest.param(
        """
        def network(x, dropout_rate):
            return tf.layers.dropout(x, rate=dropout_rate)  # wrong
        """,
        id="TensorFlow 1's layers",
    ),
    pytest.param(
        """
        def drop_edge(edges, p: float = 0.5, training: bool = False):
            return edges[torch.rand(len(edges)) > p] if training else edges

        class Net(nn.Module):
            def forward(self, x, edges):
                return self.conv(x, drop_edge(edges, self.p))  # wrong
        """,
        id="a function of the file",
    ),
]

RIGHT = [
    pytest.param(
        """
        def forward(self, x):
            return F.alpha_dropout(x, 0.1, self.training)
        """,
        id="by position",
    ),
    pytest.param(
        """
        def forward(self, x):
            return F.alpha_dropout(x, p=0.1, training=self.training)
        """,
        id="by keyword",
    ),
    pytest.param(
        """
        def forward(self, x):
            return F.alpha_dropout(x, 0.1, training=False)
        """,
        id="turned off by hand",
    ),
    pytest.param(
        """
        def forward(self, x, *args, **options):
            x = F.alpha_dropout(x, *args)
            return F.alpha_dropout(x, **options)
        """,
        id="arguments that can't be seen",
    ),
    pytest.param(
        """
        def forward(self, x):
            return F.alpha_dropout(x, 0.0)
        """,
        id="at a rate of 0",
    ),
    pytest.param(
        """
        import dropseed.torch as dst

        def forward(self, x):
            x = dst.functional.alpha_dropout(x, 0.1)
            return dst.functional.feature_alpha_dropout(x, 0.1)
        """,
        id="dropseed's, which drop unless told otherwise",
    ),
    pytest.param(
        """
        def forward(self, x):
            return F.dropout(x, 0.1)
        """,
        id="dropout, which drops unless told otherwise",
    ),
    pytest.param(
        """
        def forward(self, x):
            return torch.alpha_dropout(x, 0.1, self.training)
        """,
        id="torch's own, whose switch must be given",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.dropout = nn.AlphaDropout(0.1)

            def forward(self, x):
                return self.dropout(x)
        """,
        id="the layer",
    ),
    pytest.param(
        """
        from timm.layers import DropPath, drop_path

        def forward(self, x):
            return DropPath(0.1)(x) + drop_path(x, 0.1, self.training)
        """,
        id="timm's drop_path, told",
    ),
    pytest.param(
        """
        def drop_edge(edges, p=0.5, training=False):
            return edges[torch.rand(len(edges)) > p] if training else edges

        def drop_node(nodes, p=0.5):
            return nodes[torch.rand(len(nodes)) > p]

        def forward(self, edges, nodes):
            return drop_edge(edges, training=self.training), drop_node(nodes)
        """,
        id="functions of the file, told or without a switch",
    ),
    pytest.param(
        """
        def network(x, is_training):
            return tf.layers.dropout(x, 0.5, training=is_training)
        """,
        id="TensorFlow 1's layers, told",
    ),
    pytest.param(
        """
        def CreateDropInputs(x, train=False):
            return x

        def rows(x):
            return CreateDropInputs(x)
        """,
        id="a function that only sounds like it",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


@pytest.mark.parametrize("text", WRONG)
def test_no_fix_changes_what_training_computes(text):
    assert fixed(text, CODE) == dedent(text).lstrip("\n")


def test_functions_of_other_files_count(tmp_path):
    files = {
        "net/__init__.py": "from .drop import dropout_adj",
        "net/drop.py": """
            def dropout_adj(edges, drop_rate=0.5, training: bool = False):
                return edges if not training else edges[::2]
        """,
        "net/model.py": """
            from net import dropout_adj as drop

            def augment(edges):
                return drop(edges, 0.2)  # wrong

            def forward(self, edges):
                return drop(edges, 0.2, self.training)
        """,
        "tests/test_model.py": """
            from net import dropout_adj

            def test_model(edges):
                assert dropout_adj(edges, 0.2) is edges
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    ("function.default is not False", "function.default is None"),
    ("or function.switch is None", "or function.switch is not None"),
    ("or opaque(call)", ""),
    ("is not None:\n            continue\n", "is not None:\n            pass\n"),
    ("!= 0:", "is not None:"),
    ("!= 0:", "!= 1:"),
]


def test_mutants():
    assert mutants(never_on, MUTANTS, CASES) == []
