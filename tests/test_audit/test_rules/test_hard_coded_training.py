"""DS105: `training=True` written out where evaluation runs, too."""

import pytest

from dropseed.audit.rules import hard_coded_training
from test_audit.rule_cases import fixed, hits, marked, marked_in, mutants, scanned

CODE = "DS105"

WRONG = [
    pytest.param(
        """
        class Tagger(keras.Model):
            def call(self, x, training=False):
                return self.dense(self.dropout(x, training=training))

            def test_step(self, data):
                return self(data, training=True)  # wrong
        """,
        id="a test step",
    ),
    pytest.param(
        """
        class Ranker(keras.Model):
            def evaluate(self, batches):
                return [self._score(batch) for batch in batches]

            def _predict(self, batch):
                return self(batch, training=True)  # wrong

            def _score(self, batch):
                return self._predict(batch)
        """,
        id="a private method, called in the file",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = F.dropout(x, 0.5, training=True)  # wrong
                x = F.dropout2d(x, self.p, True, False)  # wrong
                return torch.dropout(x, 0.5, train=True)  # wrong
        """,
        id="in forward",
    ),
    pytest.param(
        """
        def head(x):
            return F.alpha_dropout(x, 0.1, training=True)  # wrong
        """,
        id="in a function",
    ),
    pytest.param(
        """
        class Block(layers.Layer):
            def __init__(self):
                super().__init__()
                self.dropout = layers.Dropout(0.1)
                self.attention = layers.MultiHeadAttention(4, 8, dropout=0.1)
                self.body = keras.Sequential([layers.Dense(8), layers.Dropout(0.5)])

            def call(self, x, training=False):
                x = self.dropout(x, training=True)  # wrong
                x = self.attention(x, x, training=True)  # wrong
                return self.body(x, training=True)  # wrong
        """,
        id="in call",
    ),
    pytest.param(
        """
        def build(shape):
            inputs = layers.Input(shape)
            x = layers.Dropout(0.5)(inputs, training=True)  # wrong
            return keras.Model(inputs, layers.Dense(1)(x))
        """,
        id="in a functional model",
    ),
    pytest.param(
        """
        def evaluate(model, dataset):
            for x, y in dataset:
                yield loss(y, model(x, training=True))  # wrong
        """,
        id="in a function that evaluates",
    ),
    pytest.param(
        """
        def drop_path(x, drop_prob=0.1, training=False):
            return x * (torch.rand(len(x)) > drop_prob) if training else x

        class Block(nn.Module):
            def forward(self, x):
                return x + drop_path(self.mlp(x), 0.1, True)  # wrong
        """,
        id="of a function of the file",
    ),
]

RIGHT = [
    pytest.param(
        """
        class Tagger(keras.Model):
            def call(self, data, training=False):
                return (self.crf(data), self.loss(data)) if training else self.crf(data)

            def test_step(self, data):
                return self(data, training=True)
        """,
        id="a model that drops nothing",
    ),
    pytest.param(
        """
        class Recommender(Base):
            def _predict_batch(self, batch):
                return self._scores(batch, training=True)

            def _scores(self, batch, training):
                return self.dropout(self.embed(batch), training=training)
        """,
        id="a private method that another file calls",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5, training=self.training)
        """,
        id="switched",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                if self.training and self.p > 0:
                    x = F.dropout(x, self.p, training=True)
                return x
        """,
        id="under the switch",
    ),
    pytest.param(
        """
        class ComplexDropout(nn.Module):
            def forward(self, x):
                if not self.training or self.p == 0:
                    return x
                return x * F.dropout(torch.ones_like(x.real), self.p, training=True)
        """,
        id="behind an early return",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return F.dropout(x, self.p if self.training else 0.0, training=True)
        """,
        id="at a rate that is switched",
    ),
    pytest.param(
        """
        class MonteCarloDropout(nn.Module):
            def forward(self, x):
                return F.dropout(x, self.p, training=True)

        class AlwaysActiveDropout(nn.Module):
            def forward(self, x):
                return F.dropout(x, self.p, training=True)
        """,
        id="meant, by the name",
    ),
    pytest.param(
        '''
        def build(shape):
            """An LSTM for Bayesian approximation."""
            inputs = layers.Input(shape)
            return keras.Model(inputs, layers.Dropout(0.5)(inputs, training=True))
        ''',
        id="meant, by the docstring",
    ),
    pytest.param(
        """
        def build(shape):
            inputs = layers.Input(shape)
            x = layers.Dropout(0.5)(inputs, training=True)  # Always enabled, for the uncertainty
            x = layers.Dense(8)(x)
            x = layers.Dense(8)(x)
            x = layers.Dropout(0.5)(x, training=True)
            return keras.Model(inputs, x)
        """,
        id="meant, by a comment",
    ),
    pytest.param(
        """
        def build(shape, use_mc_dropout=False):
            x = inputs = layers.Input(shape)
            if use_mc_dropout:
                x = layers.Dropout(0.5)(x, training=True)
            return keras.Model(inputs, x)
        """,
        id="meant, by the condition",
    ),
    pytest.param(
        """
        def predict(model, x, n):
            return np.stack([model(x, training=True) for _ in range(n)])
        """,
        id="sampled",
    ),
    pytest.param(
        """
        class Model(keras.Model):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(y, self(x, training=True))
                return loss

            def test_step(self, data):
                return self(data[0], training=False)

            def warm_up(self, x):
                self.body = keras.Sequential([layers.Dropout(0.5)])
                return self.body(x, training=True)
        """,
        id="in a training step",
    ),
    pytest.param(
        """
        def step(model, x, y):
            with tf.GradientTape() as tape:
                return loss(y, model(x, training=True))
        """,
        id="of a model, in a function that may train",
    ),
    pytest.param(
        """
        class Block(layers.Layer):
            def __init__(self):
                super().__init__()
                self.norm = layers.BatchNormalization()
                self.dropout = layers.Dropout(0.1)

            def call(self, x, training=False):
                x = self.norm(x, training=True)
                return self.dropout(x, training=training)
        """,
        id="of a layer that is no dropout",
    ),
    pytest.param(
        """
        def define_generator(x):
            x = layers.BatchNormalization()(x, training=True)
            return layers.Dropout(0.5)(x, training=True)

        def decoder_block(x):
            x = layers.BatchNormalization()(x, training=True)
            return layers.Dropout(0.5)(x, training=True)
        """,
        id="the noise of a generator",
    ),
    pytest.param(
        """
        def evaluate(config):
            data = Dataset(config, training=True)
            generator = DropInputs(training=True)
            return data, generator
        """,
        id="of a class that is built",
    ),
    pytest.param(
        """
        model = keras.Sequential([layers.Dropout(0.5)])
        y = model(np.ones((2, 2)), training=True)
        z = F.dropout(torch.ones(8), 0.5, training=True)
        """,
        id="outside of functions",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = F.dropout(x, 0.0, training=True)
                return F.dropout(x, 0.5, training=False)
        """,
        id="without effect",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_files_are_taken_together(tmp_path):
    files = {
        "net/layers.py": """
            import keras

            class Drop(keras.layers.Dropout):
                pass

            class Base(keras.layers.Layer):
                pass
        """,
        "net/model.py": """
            import keras
            from .layers import Base, Drop

            class Block(Base):
                def __init__(self):
                    self.drop = Drop(0.5)

                def call(self, x):
                    return self.drop(x, training=True)  # wrong
        """,
        "net/mc_dropout.py": """
            import torch.nn.functional as F

            def forward(x):
                return F.dropout(x, 0.5, training=True)
        """,
        "test_model.py": """
            import torch.nn.functional as F

            def test_dropout(x):
                assert F.dropout(x, 0.5, training=True).any()
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("F.dropout(x, 0.5, training=True)", "F.dropout(x, 0.5, training=self.training)"),
        ("torch.dropout(x, 0.5, True)", "torch.dropout(x, 0.5, self.training)"),
    ],
)
def test_fix(before, after):
    text = "class Net(nn.Module):\n    def forward(self, x):\n        return {}\n"
    assert fixed(text.format(before), CODE) == text.format(after)
    assert hits(text.format(after), CODE) == []


@pytest.mark.parametrize(
    "text",
    [
        "def head(x):\n    return F.dropout(x, 0.5, training=True)\n",
        "def build(x):\n    return layers.Dropout(0.5)(x, training=True)\n",
    ],
)
def test_no_fix_where_it_is_not_certain(text):
    assert hits(text, CODE) == [2]
    assert fixed(text, CODE) == text


MUTANTS = [
    (' and "drop" not in file.source.text.lower()', ""),
    ('plain and "drop" not in', 'False and "drop" not in'),
    ('"call" in owner.methods', "True"),
    ("and not any(calls_of(function, file))", ""),
    ('function.name.startswith("_") and', "False and"),
    ("switch is not None and _true(switch) and stays_on(call, rate, file)", "switch is not None"),
    ("_true(switch) and stays_on(call, rate, file)", "stays_on(call, rate, file)"),
    ("_true(switch) and stays_on(call, rate, file)", "_true(switch)"),
    ("rate = argument(call, function.rate, function.rate_name)", "rate = None"),
    ("and not _samples(call, file)", ""),
    ("or not stays_on(call, None, file)", ""),
    ("if _generates(call, file):", "if False:"),
    ("if kinds and kinds <= KERAS_DROPOUTS.keys():", "if kinds:"),
    ('if function.name == "call" and', "if"),
    ("and last == last.lower()", ""),
    ("_EVALUATES.fullmatch(function.name) is not None", "True"),
]


def test_mutants():
    assert mutants(hard_coded_training, MUTANTS, CASES) == []
