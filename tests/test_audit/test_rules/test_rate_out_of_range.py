"""DS301: rate outside [0, 1], or a rate of 1."""

import pytest

from dropseed.audit.rules import rate_out_of_range
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS301"

WRONG = [
    pytest.param(
        """
        drop = nn.Dropout(50)  # wrong
        deep = nn.Dropout2d(p=20)  # wrong
        """,
        id="percentages",
    ),
    pytest.param("x = F.dropout(x, 1.5, training=training)  # wrong", id="functional"),
    pytest.param("drop = nn.Dropout(-0.1)  # wrong", id="below 0"),
    pytest.param(
        """
        RATE = 1.0
        drop = nn.Dropout(RATE)  # wrong
        off = nn.Dropout(True)  # wrong
        """,
        id="everything, by a constant and by True",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, p=30):
                super().__init__()
                self.rate = 40
                self.first = nn.Dropout(self.rate)  # wrong
                self.second = nn.Dropout(p)  # wrong
        """,
        id="by an attribute, and by a default",
    ),
    pytest.param(
        """
        rnn = nn.LSTM(8, 8, 2, dropout=10)  # wrong
        attention = nn.MultiheadAttention(8, 2, 5)  # wrong
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=10)  # wrong
        """,
        id="rates of other layers",
    ),
    pytest.param(
        """
        x = layers.Dropout(25)(x)  # wrong
        x = layers.LSTM(32, recurrent_dropout=20)(x)  # wrong
        x = tf.nn.dropout(x, rate=50)  # wrong
        x = layers.SpatialDropout1D(rate=1)(x)  # wrong
        """,
        id="Keras and TensorFlow",
    ),
    pytest.param(
        """
        x = flax.linen.Dropout(rate=30)(x, deterministic=not train)  # wrong
        drop = eqx.nn.Dropout(p=1.5)  # wrong
        x = hk.dropout(hk.next_rng_key(), 5, x)  # wrong
        """,
        id="JAX's libraries",
    ),
    pytest.param(
        """
        class Noise(nn.Dropout):
            pass

        noise = Noise(50)  # wrong
        """,
        id="a class of the file that is a dropout",
    ),
]

RIGHT = [
    pytest.param("drop = nn.Dropout(0.5)", id="a fraction"),
    pytest.param("drop = nn.Dropout(0)", id="nothing"),
    pytest.param("drop = nn.Dropout()", id="torch's default"),
    pytest.param("drop = nn.Dropout(False)", id="nothing, by False"),
    pytest.param("drop = nn.Dropout(rate)", id="a name that nobody binds"),
    pytest.param("drop = nn.Dropout(50 / 100)", id="a percentage that is divided"),
    pytest.param(
        """
        def build(p):
            return nn.Dropout(p)
        """,
        id="a parameter without a default",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, p=1.0, q=-1):
                super().__init__()
                self.first = nn.Dropout(p)
                self.second = nn.Dropout(q) if q > 0 else nn.Identity()
        """,
        id="defaults that may stand for none",
    ),
    pytest.param(
        """
        def build(p=50):
            p = p / 100
            return nn.Dropout(p)
        """,
        id="a default that is scaled first",
    ),
    pytest.param(
        """
        p = 50
        p /= 100
        drop = nn.Dropout(p)
        """,
        id="a name that is set twice",
    ),
    pytest.param("x = tf.nn.dropout(x, 1.0)", id="TensorFlow 1's fraction kept"),
    pytest.param("rnn = nn.LSTM(100, 200, 2)", id="sizes, which are no rates"),
    pytest.param("x = F.dropout2d(x, training=True)", id="a functional without a rate"),
    pytest.param("drop = Dropout(50)", id="a name that is not imported"),
    pytest.param(
        """
        class Dropout:
            def __init__(self, percent):
                self.percent = percent

        drop = Dropout(50)
        """,
        id="a class of the project's own",
    ),
    pytest.param(
        """
        class Percent(nn.Dropout):
            def __init__(self, percent):
                super().__init__(percent / 100)

        drop = Percent(50)
        """,
        id="a dropout with a constructor of its own",
    ),
    pytest.param("drop = nn.Dropout(*rates)", id="arguments that can't be seen"),
    pytest.param("rngs = nnx.Rngs(dropout=7)", id="a seed called dropout"),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_says_what_came_and_what_was_expected():
    assert messages("nn.Dropout(50)", CODE) == [
        "`Dropout` at rate 50: a rate is a fraction in [0, 1], no percentage"
    ]
    assert messages("nn.Dropout(-1)", CODE) == [
        "`Dropout` at rate -1: a rate is a fraction in [0, 1]"
    ]
    assert messages("nn.Dropout(1)", CODE) == ["`Dropout` at rate 1 drops everything"]


def test_tests_give_wrong_rates_on_purpose(tmp_path):
    text = "from torch.nn import Dropout\n\ndef test_rate():\n    Dropout(50)\n"
    files = {"tests/test_rate.py": text, "net/layers.py": text.replace("(50)", "(50)  # wrong")}
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_layers_are_known_through_other_files(tmp_path):
    files = {
        "net/common.py": "from torch.nn import Dropout as Drop\nclass Noise(Drop):\n    pass\n",
        "net/__init__.py": "from net.common import *\n",
        "net/model.py": """
            from net import Noise
            from .common import Drop

            first = Noise(50)  # wrong
            second = Drop(50)  # wrong
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    ("0 <= value < 1", "0 <= value <= 1"),
    ("0 <= value < 1", "0 < value < 1"),
    ("0 <= value < 1", "value < 1"),
    ("rate.value is True", "rate.value is None"),
    ("default > 1", "default >= 0"),
    ("default > 1", "default > 100"),
    ("value = literal(rate, file)", "value = by_default(rate, file)"),
    ("if value is None:", "if False:"),
]


def test_mutants():
    assert mutants(rate_out_of_range, MUTANTS, CASES) == []
