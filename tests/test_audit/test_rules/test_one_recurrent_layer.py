"""DS303: recurrent layer with a dropout rate and one layer."""

import pytest

from dropseed.audit.rules import one_recurrent_layer
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS303"

WRONG = [
    pytest.param(
        """
        class Block(nn.Module):
            supported = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}

            def __init__(self, kind, dropout):
                super().__init__()
                cell = self.supported[kind]
                self.rnn = cell(input_size=8, hidden_size=8, num_layers=1, dropout=dropout)  # wrong
        """,
        id="a class from a table of the class",
    ),
    pytest.param("rnn = nn.LSTM(128, 256, dropout=0.5)  # wrong", id="the default of one layer"),
    pytest.param("rnn = nn.GRU(128, 256, 1, dropout=0.5)  # wrong", id="one layer, by position"),
    pytest.param("rnn = nn.GRU(8, 8, dropout=c.p if c.p else 0)  # wrong", id="a rate or none"),
    pytest.param("rnn = nn.RNN(8, 8, num_layers=1, dropout=p)  # wrong", id="one, by keyword"),
    pytest.param("rnn = nn.LSTM(8, 8, 1, True, False, 0.5)  # wrong", id="a rate by position"),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, dropout):
                super().__init__()
                self.layers = 1
                layers = 1
                self.first = nn.LSTM(8, 8, layers, dropout=dropout)  # wrong
                self.second = nn.LSTM(8, 8, self.layers, dropout=dropout)  # wrong
        """,
        id="by a name and an attribute that are set once",
    ),
    pytest.param(
        """
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        rnn = cell(8, 8, batch_first=True, dropout=0.2)  # wrong
        """,
        id="one of two classes",
    ),
    pytest.param(
        """
        if kind == "lstm":
            cell = nn.LSTM
        else:
            cell = nn.GRU
        rnn = cell(8, 8, dropout=0.2)  # wrong
        """,
        id="a class by a branch",
    ),
    pytest.param(
        """
        CELLS = {"lstm": nn.LSTM, "gru": nn.GRU}
        rnn = CELLS[kind](8, 8, dropout=0.2)  # wrong
        """,
        id="a class by a table",
    ),
    pytest.param(
        """
        first = getattr(nn, "LSTM")(8, 8, dropout=0.2)  # wrong
        second = getattr(nn, kind)(8, 8, dropout=0.2, bidirectional=True)  # wrong
        """,
        id="a class by its name",
    ),
    pytest.param(
        """
        class Encoder(nn.LSTM):
            pass

        rnn = Encoder(8, 8, dropout=0.2)  # wrong
        """,
        id="a class of the file that is one",
    ),
    pytest.param(
        """
        import paddle
        from mxnet.gluon import rnn

        first = paddle.nn.LSTM(8, 8, dropout=0.2)  # wrong
        second = rnn.LSTM(8, dropout=0.2)  # wrong
        """,
        id="Paddle and Gluon",
    ),
]

RIGHT = [
    pytest.param("rnn = nn.LSTM(128, 256, 2, dropout=0.5)", id="two layers, by position"),
    pytest.param("rnn = nn.LSTM(128, 256, num_layers=2, dropout=0.5)", id="two, by keyword"),
    pytest.param("rnn = nn.LSTM(128, 256)", id="no rate"),
    pytest.param("rnn = nn.LSTM(128, 256, 1, True, True)", id="no rate, other arguments"),
    pytest.param("rnn = nn.LSTM(128, 256, dropout=0)", id="a rate of 0"),
    pytest.param("rnn = nn.LSTM(128, 256, dropout=0.0)", id="a rate of 0.0"),
    pytest.param("rnn = nn.LSTM(8, 8, n, dropout=p)", id="as many layers as are asked for"),
    pytest.param(
        """
        def build(layers=1):
            return nn.LSTM(8, 8, layers, dropout=0.5)
        """,
        id="one layer by default",
    ),
    pytest.param(
        """
        layers = 1
        if deep:
            layers = 2
        rnn = nn.LSTM(8, 8, layers, dropout=0.5)
        """,
        id="a name that is set twice",
    ),
    pytest.param("rnn = nn.LSTM(8, 8, dropout=p if deep else 0)", id="a rate under a condition"),
    pytest.param("rnn = nn.LSTM(8, 8, dropout=(n > 1) * p)", id="a rate times a condition"),
    pytest.param("rnn = nn.LSTM(8, 8, dropout=deep and p)", id="a rate behind `and`"),
    pytest.param("rnn = nn.LSTM(8, 8, **options, dropout=p)", id="options that can't be seen"),
    pytest.param("rnn = nn.LSTM(*sizes, dropout=p)", id="arguments that can't be seen"),
    pytest.param("rnn = layers.LSTM(64, dropout=0.2)", id="Keras's, which drops inputs"),
    pytest.param("rnn = nn.LSTMCell(8, 8)", id="a cell"),
    pytest.param(
        """
        class LSTM(nn.Module):
            def __init__(self, inputs, hidden, dropout):
                super().__init__()

        rnn = LSTM(8, 8, dropout=0.5)
        """,
        id="a class of the project's own",
    ),
    pytest.param(
        """
        class Encoder(nn.LSTM):
            def __init__(self, inputs, dropout):
                super().__init__(inputs, inputs, 2, dropout=dropout)

        rnn = Encoder(8, dropout=0.2)
        """,
        id="a subclass that sets its layers",
    ),
    pytest.param(
        """
        cell = nn.LSTM if kind == "lstm" else build_cell
        rnn = cell(8, 8, dropout=0.2)
        """,
        id="a class or something else",
    ),
    pytest.param(
        """
        CELLS = {"lstm": nn.LSTM, "own": make_own()}
        rnn = CELLS[kind](8, 8, dropout=0.2)
        """,
        id="a table with something else in it",
    ),
    pytest.param("layer = getattr(nn, kind)(8, 8, dropout=0.2)", id="any layer by its name"),
    pytest.param("layer = getattr(nn, 'Transformer')(8, 8, dropout=0.2)", id="another layer"),
    pytest.param(
        "rnn = getattr(own, kind)(8, 8, dropout=0.2, bidirectional=True)", id="another module's"
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_names_the_layer():
    assert messages("nn.GRU(8, 8, dropout=0.1)", CODE) == [
        "`dropout` of `GRU` acts between layers, and there is one"
    ]


def test_other_files_and_tests(tmp_path):
    files = {
        "net/base.py": "from torch import nn\nclass Encoder(nn.GRU):\n    pass\n",
        "net/model.py": "from .base import Encoder\nrnn = Encoder(8, 8, dropout=0.2)  # wrong\n",
        "tests/test_model.py": "from net.base import Encoder\nrnn = Encoder(8, 8, dropout=0.2)\n",
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    ("or opaque(call)", ""),
    ("len(call.args) > 3 or", ""),
    ("literal(given, file) == 0", "False"),
    ("ast.IfExp | ast.BoolOp | ast.Compare", "ast.BoolOp | ast.Compare"),
    ("ast.IfExp | ast.BoolOp | ast.Compare", "ast.IfExp | ast.Compare"),
    ("ast.IfExp | ast.BoolOp | ast.Compare", "ast.IfExp | ast.BoolOp"),
    ("number is None or", ""),
    ("literal(number, file) == 1", "literal(number, file) != 1"),
    ("if all(found) else set()", ""),
    ("names <= LAYERS.keys()", "names & LAYERS.keys()"),
    ('given & {"bidirectional", "num_layers"}', "given"),
    ("inherited(name, file) or name", "name"),
    ('!= "torch.nn"', '== ""'),
    ("    if isinstance(node, ast.Dict):\n", "    if False:\n"),
]


def test_mutants():
    assert mutants(one_recurrent_layer, MUTANTS, CASES) == []
