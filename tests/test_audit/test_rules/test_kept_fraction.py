"""DS302: the fraction kept, passed as the fraction dropped."""

import pytest

from dropseed.audit.rules import kept_fraction
from test_audit.rule_cases import hits, marked, marked_in, messages, mutants, scanned

CODE = "DS302"

WRONG = [
    pytest.param(
        """
        def build(self, params):
            self.gate = MLP(1, dropout_rate=params["out_dropout_keep_prob"])  # wrong
            project.encoder(drop_prob=self.keep_prob)  # wrong
            project.encoder(drop_rate=1 - self.dropout_rate)  # wrong
            return flax.linen.SelfAttention(4, dropout_rate=params["keep_prob"])  # wrong
        """,
        id="arguments named so, of anything",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, keep_prob=0.9):
                super().__init__()
                self.dropout = nn.Dropout(keep_prob)  # wrong
        """,
        id="a parameter",
    ),
    pytest.param(
        """
        def forward(self, x):
            return F.dropout(x, self.dropout_keep_prob, self.training)  # wrong
        """,
        id="an attribute",
    ),
    pytest.param(
        """
        first = nn.Dropout(config["keep_prob"])  # wrong
        second = nn.Dropout(config.get("keep_prob", 0.9))  # wrong
        third = nn.Dropout(getattr(config, "keep_prob"))  # wrong
        fourth = nn.Dropout(float(FLAGS.keepprob))  # wrong
        """,
        id="settings",
    ),
    pytest.param(
        """
        p = keep_rate
        drop = nn.Dropout(p=p)  # wrong
        """,
        id="by another name",
    ),
    pytest.param(
        """
        x = layers.Dropout(self.survival_probability, noise_shape=(None, 1, 1, 1))(x)  # wrong
        x = tf.nn.dropout(x, rate=keep_prob)  # wrong
        x = tf.layers.dropout(x, p_keep)  # wrong
        """,
        id="Keras and TensorFlow",
    ),
    pytest.param(
        """
        x = hk.dropout(key, self.retention_rate, x)  # wrong
        x = flax.linen.Dropout(rate=self.keep_probability)(x, deterministic=d)  # wrong
        """,
        id="JAX's libraries",
    ),
    pytest.param(
        """
        first = nn.Dropout(1 - drop_prob)  # wrong
        second = nn.Dropout(1.0 - self.dropout_rate)  # wrong
        third = nn.Dropout(p=1 - hparams["drop_rate"])  # wrong
        """,
        id="the complement of the fraction dropped",
    ),
    pytest.param("rnn = nn.LSTM(8, 8, 2, dropout=keep_prob)  # wrong", id="a recurrent layer"),
]

RIGHT = [
    pytest.param(
        """
        def build(self, params):
            self.gate = MLP(1, dropout_keep_prob=params["keep_prob"], rate=params["keep_prob"])
            return project.encoder(drop_prob=1 - self.keep_prob, dropout_rate=self.dropout)
        """,
        id="arguments of anything, named as what they are",
    ),
    pytest.param("drop = nn.Dropout(1 - keep_prob)", id="the complement"),
    pytest.param("drop = nn.Dropout(1.0 - self.survival_prob)", id="the complement of survival"),
    pytest.param("drop = nn.Dropout(drop_prob)", id="the fraction dropped"),
    pytest.param("drop = nn.Dropout(self.dropout_rate)", id="an attribute"),
    pytest.param("drop = nn.Dropout(p)", id="a name that says nothing"),
    pytest.param("drop = nn.Dropout(1 - p)", id="a complement of what says nothing"),
    pytest.param("drop = nn.Dropout(0.5 - drop_prob)", id="no complement"),
    pytest.param("drop = nn.Dropout(1 + drop_prob)", id="a sum"),
    pytest.param("x = tf.nn.dropout(x, keep_prob)", id="TensorFlow 1, by position"),
    pytest.param("x = tf.nn.dropout(x, keep_prob=1 - rate)", id="TensorFlow 1, by keyword"),
    pytest.param(
        """
        keep_prob = 1 - rate
        mask = torch.empty_like(x).bernoulli_(keep_prob)
        x = x * mask / keep_prob
        """,
        id="a mask by hand",
    ),
    pytest.param(
        """
        def build(dropout):
            keep_prob = dropout
            return nn.Dropout(keep_prob)
        """,
        id="a name that was set to the fraction dropped",
    ),
    pytest.param(
        """
        keep_prob = 1 - config.keep_prob
        drop = nn.Dropout(keep_prob)
        """,
        id="a name that was turned round",
    ),
    pytest.param(
        """
        p = 1 - keep_prob
        drop = nn.Dropout(p)
        """,
        id="a complement by another name",
    ),
    pytest.param("drop = nn.Dropout(keep)", id="a flag, perhaps"),
    pytest.param("drop = nn.Dropout(config.get('dropout', 0.1))", id="a setting"),
    pytest.param("drop = StochasticDepth(survival_prob)", id="a layer that nobody knows"),
    pytest.param("drop = nn.Dropout(keep_probs[3])", id="an item by its number"),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_says_which_fraction_it_is():
    assert messages("nn.Dropout(cfg.keep_prob)", CODE) == [
        "`Dropout` takes the fraction dropped; `keep_prob` is the fraction kept"
    ]
    assert messages("nn.Dropout(1 - drop_prob)", CODE) == [
        "`Dropout` takes the fraction dropped, which is `drop_prob` itself"
    ]


def test_tests_may_do_so(tmp_path):
    text = "import torch\n\ndef test_kept(keep_prob):\n    torch.nn.Dropout(keep_prob)\n"
    files = {"tests/test_kept.py": text, "net.py": text.replace("prob)\n", "prob)  # wrong\n")}
    files["net.py"] = files["net.py"].replace("def test_kept(keep_prob):  # wrong", "def f(k):")
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    (", *_named(file))", ",)"),
    (" and _DROPPED.fullmatch(name)", ""),
    (" and file.called(call) not in PLACES", ""),
    ("(?:keep(?:ing)?|retain", "(?:retain"),
    ("|surviv(?:al|e|or)", ""),
    ("isinstance(rate.op, ast.Sub)", "True"),
    ("number(rate.left) == 1", "True"),
    ('"" if _set_to_dropped(rate, file) else word', "word"),
    ("isinstance(value, ast.BinOp) or", ""),
    ('"drop" in dotted(value).lower()', "False"),
    ("if len(words) == 1 and", "if"),
    ('_LOOKUPS = {"get", "getattr", "pop", "float"}', "_LOOKUPS = {}"),
    ("        node = node.slice\n", "        pass\n"),
]


def test_mutants():
    assert mutants(kept_fraction, MUTANTS, CASES) == []
