"""DS304: rate far from what is usual."""

import pytest

from dropseed.audit.rules import unusual_rate
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS304"

WRONG = [
    pytest.param("drop = nn.Dropout(0.9)  # wrong", id="nine in ten"),
    pytest.param("drop = nn.Dropout(0.8)  # wrong", id="eight in ten"),
    pytest.param("x = layers.GRU(32, dropout=0.9)(x)  # wrong", id="a recurrent layer"),
    pytest.param("x = hk.dropout(key, 0.85, x)  # wrong", id="haiku"),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, classes, dropout=0.8):
                super().__init__()
                self.rate = dropout
                self.drop = nn.Dropout(p=dropout)  # wrong
                self.again = nn.Dropout(self.rate)  # wrong
        """,
        id="by default",
    ),
    pytest.param(
        """
        first = nn.Dropout2d(0.6)  # wrong
        second = layers.SpatialDropout1D(0.7)  # wrong
        """,
        id="whole channels",
    ),
    pytest.param(
        """
        layer = nn.TransformerEncoderLayer(64, 4, dropout=0.5)  # wrong
        attention = nn.MultiheadAttention(64, 4, 0.5)  # wrong
        """,
        id="a Transformer's layers",
    ),
    pytest.param(
        """
        class TransformerBlock(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)  # wrong
        """,
        id="a Transformer's dropout",
    ),
]

RIGHT = [
    pytest.param("drop = nn.Dropout(0.5)", id="half, between dense layers"),
    pytest.param("drop = nn.Dropout(0.79)", id="below eight in ten"),
    pytest.param("drop = nn.Dropout(0.0)", id="nothing"),
    pytest.param("drop = nn.Dropout(1.0)", id="everything, which is another rule's"),
    pytest.param("drop = nn.Dropout(80)", id="a percentage, which is another rule's"),
    pytest.param("drop = nn.Dropout(p)", id="a rate from elsewhere"),
    pytest.param("drop = nn.Dropout(1 - 0.9)", id="a complement"),
    pytest.param("drop = nn.Dropout2d(0.5)", id="half of the channels"),
    pytest.param("drop = nn.Dropout2d(0.2)", id="a fifth of the channels"),
    pytest.param("layer = nn.TransformerEncoderLayer(64, 4, dropout=0.1)", id="a Transformer's"),
    pytest.param("layer = nn.TransformerEncoderLayer(64, 4, 2048, 0.4)", id="by position"),
    pytest.param("rnn = nn.LSTM(8, 8, 2, dropout=0.5)", id="half, between recurrent layers"),
    pytest.param("x = tf.nn.dropout(x, 0.9)", id="TensorFlow 1's fraction kept"),
    pytest.param(
        """
        def build(p):
            return nn.Dropout(p)
        """,
        id="a parameter without a default",
    ),
    pytest.param(
        """
        def build(keep=0.9):
            p = 1 - keep
            return nn.Dropout(p)
        """,
        id="a default that is turned round",
    ),
    pytest.param(
        """
        class TransformerBlock(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.1)

        class Head(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.5)
        """,
        id="a Transformer's block and a head beside it",
    ),
    pytest.param("drop = F.dropout(x, training=self.training)", id="no rate"),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_says_what_is_usual():
    assert messages("nn.Dropout(0.9)", CODE) == [
        "`Dropout` drops 90%; was the fraction kept meant?"
    ]
    assert messages("nn.Dropout2d(0.6)", CODE) == [
        "`Dropout2d` drops 60%; 20% to 30% is usual for whole channels"
    ]
    assert messages("nn.TransformerDecoderLayer(8, 8, dropout=0.5)", CODE) == [
        "`TransformerDecoderLayer` drops 50%; 10% is usual in a Transformer"
    ]


def test_silent_in_tests(tmp_path):
    text = "import torch\nlayer = torch.nn.Dropout(0.9)"
    files = {"tests/test_layer.py": text, "net.py": f"{text}  # wrong"}
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    ("HIGH = 0.8", "HIGH = 0.81"),
    ("HIGH = 0.8", "HIGH = 0.79"),
    ("HIGH_FOR_CHANNELS = 0.5", "HIGH_FOR_CHANNELS = 0.65"),
    ("value > HIGH_FOR_CHANNELS", "value >= HIGH_FOR_CHANNELS"),
    ("HIGH_IN_TRANSFORMER = 0.5", "HIGH_IN_TRANSFORMER = 0.4"),
    ("value >= HIGH_IN_TRANSFORMER", "value > HIGH_IN_TRANSFORMER"),
    ("or value >= 1", ""),
    ('"Transformer" in owner.node.name', "True"),
    ('"Transformer" in owner.node.name', "False"),
    ("by_default(rate, file)", "number(rate)"),
]


def test_mutants():
    assert mutants(unusual_rate, MUTANTS, CASES) == []
