"""DS101: functional dropout that stays on in evaluation."""

import pytest

from dropseed.audit.rules import always_on
from test_audit.rule_cases import fixed, hits, marked, marked_in, messages, mutants, scanned

CODE = "DS101"

WRONG = [
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return F.dropout(x, self.p, training=not self.training)  # wrong
        """,
        id="the wrong way round",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return F.dropout(self.linear(x), 0.5)  # wrong
        """,
        id="in forward",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, dropout):
                super().__init__()
                self.dropout = dropout

            def forward(self, x):
                if self.dropout > 0:
                    x = F.dropout2d(x, p=self.dropout)  # wrong
                return torch.nn.functional.dropout(x)  # wrong
        """,
        id="at a rate of the constructor",
    ),
    pytest.param(
        """
        from torch.nn.functional import dropout as drop

        def head(x):
            x = drop(x, 0.1)  # wrong
            return drop(x, 0.1, inplace=True)  # wrong
        """,
        id="imported by another name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, is_training):
                x = self.norm(x, is_training)
                return F.dropout(x, 0.5)  # wrong
        """,
        id="beside a switch that it does not ask",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = F.dropout(x, 0.5, training=self.train())  # wrong
                return F.dropout(x, 0.5, training=self.train)  # wrong
        """,
        id="switched by the method train",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                if self.train:
                    x = F.dropout(x, 0.5)  # wrong
                return x
        """,
        id="under the method train",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, use_dropout):
                super().__init__()
                self.use_dropout = use_dropout

            def forward(self, x):
                return F.dropout(x, 0.5) if self.use_dropout else x  # wrong
        """,
        id="under a setting that looks like a switch",
    ),
    pytest.param(
        """
        def attend(q, k, v, rate=0.0):
            weights = torch.softmax(q @ k.mT, -1)
            return F.dropout(weights, p=rate) @ v  # wrong

        class Attention(nn.Module):
            def forward(self, q, k, v):
                return attend(q, k, v, rate=self.rate)
        """,
        id="in a function that gets a rate from forward",
    ),
    pytest.param(
        """
        def widen(x, p=0.2):
            return F.dropout(x, p)  # wrong
        """,
        id="a rate that is an argument with a default above 0",
    ),
    pytest.param(
        """
        class Model:
            def loss(self, x, y):
                return F.nll_loss(F.dropout(x, p=0.1), y)  # wrong

            def train(self, loader):
                for x, y in loader:
                    self.loss(x, y).backward()
                    self.evaluate(loader)

            def evaluate(self, loader):
                return sum(self.loss(x, y) for x, y in loader)
        """,
        id="called from training and from evaluation",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, residual):
                x = torchvision.ops.stochastic_depth(x, 0.1, "row")  # wrong
                x = torchvision.ops.drop_block2d(x, 0.1, 7)  # wrong
                return x + residual
        """,
        id="torchvision",
    ),
    pytest.param(
        """
        import dropseed.torch as dst
        import paddle

        class Net(nn.Module):
            def forward(self, x):
                x = dst.functional.alpha_dropout(x, 0.1)  # wrong
                return paddle.nn.functional.dropout(x, 0.1)  # wrong
        """,
        id="dropseed and Paddle",
    ),
    pytest.param(
        """
        def block(x):
            return hk.dropout(hk.next_rng_key(), 0.1, x)  # wrong

        class Block(layers.Layer):
            def call(self, x, training=None):
                return tf.nn.dropout(x, rate=self.rate)  # wrong
        """,
        id="without a switch: Haiku and TensorFlow",
    ),
    pytest.param(
        """
        def drop_connect(x, p=0.2, training=True):
            return x if not training else x * torch.bernoulli(1 - p) / (1 - p)

        class Net(nn.Module):
            def forward(self, x):
                return drop_connect(x, 0.2)  # wrong
        """,
        id="a function of the file",
    ),
    pytest.param(
        """
        from functools import partial

        class Net(nn.Module):
            def __init__(self, p):
                super().__init__()
                self.plain = F.dropout
                self.drop = partial(F.dropout, p=p) if p else nn.Identity()  # wrong

            def forward(self, x):
                return self.drop(self.plain(x, 0.1))  # wrong
        """,
        id="under another name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.noise = lambda x: F.dropout(x, 0.1)  # wrong
        """,
        id="in a lambda",
    ),
]

RIGHT = [
    pytest.param(
        """
        class InputDropout:
            def __call__(self, sample):
                sample["input"] = F.dropout(sample["input"], self.p)
                return sample
        """,
        id="a transform of data",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = F.dropout(x, 0.5, training=self.training)
                return F.dropout(x, 0.5, self.training)
        """,
        id="switched",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return F.dropout(x, p=0.5 if self.training else 0.0)
        """,
        id="a rate that is switched",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                p = self.p if self.training else 0.0
                if self.training:
                    q = self.q
                else:
                    q = 0
                return F.dropout(F.dropout(x, p), q)
        """,
        id="a local rate that is switched",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                if self.training and self.p > 0:
                    x = F.dropout(x, self.p)
                return x
        """,
        id="under the switch",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                if not self.training or self.p == 0:
                    return x
                return F.dropout(x, self.p)
        """,
        id="behind an early return",
    ),
    pytest.param(
        """
        def dropout(x, p, training):
            if not training:
                return x
            return F.dropout(x, p)

        def noise(x, p=0.5, deterministic=False):
            return x if deterministic else F.dropout(x, p)
        """,
        id="helpers with a switch",
    ),
    pytest.param(
        """
        def block(x, mode):
            return F.dropout(x, 0.5) if mode == "train" else x

        def block_of(x, mode):
            if mode != tf.estimator.ModeKeys.TRAIN:
                return x
            return F.dropout(x, 0.5)
        """,
        id="helpers with a mode in words",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return self._train(x) if self.training else self._run(x)

            def _noisy(self, x):
                return F.dropout(x, 0.5)

            def _train(self, x):
                return self._noisy(x)
        """,
        id="a helper that is called from training only",
    ),
    pytest.param(
        """
        class Lit(nn.Module):
            def training_step(self, batch, index):
                return self(F.dropout(batch, 0.1)).sum()
        """,
        id="in the hook training_step",
    ),
    pytest.param(
        """
        def train_one_epoch(model, loader):
            for x in loader:
                model(F.dropout(x, 0.1)).sum().backward()
        """,
        id="in a function that trains",
    ),
    pytest.param(
        """
        class FairseqDropout(nn.Module):
            def forward(self, x):
                if self.p > 0 and (self.training or self.apply_during_inference):
                    return F.dropout(x, self.p)
                return x
        """,
        id="a condition that asks for the mode among others",
    ),
    pytest.param(
        """
        class MCDropout(nn.Module):
            def forward(self, x):
                return F.dropout(x, self.p)

        class DecoderPreNet(nn.Module):
            def forward(self, x):
                return F.dropout(x, 0.5)

        """,
        id="meant, by the name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                # As in Tacotron, dropout is kept both in training and inference.
                x = self.first(x)
                x = F.relu(x)
                return F.dropout(x, 0.5)
        """,
        id="meant, by a comment",
    ),
    pytest.param(
        '''
        class Net(nn.Module):
            """Samples from the posterior with Monte Carlo dropout (Gal and Ghahramani 2016)."""

            def forward(self, x):
                return F.dropout(x, 0.5)

        def perturb(x):
            return F.dropout(x, 0.1)

        class GraphAugmentor:
            def __call__(self, x):
                return F.dropout(x, 0.1)
        ''',
        id="meant, by the docstring, or an augmentation",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, n_samples=10):
                return torch.stack([self._one(x) for _ in range(n_samples)])

            def _one(self, x):
                return self.head(F.dropout(x, 0.5))
        """,
        id="sampled",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, apply_dropout=False, dropout=True):
                if apply_dropout:
                    x = F.dropout(x, 0.5)
                if dropout:
                    x = F.dropout(x, 0.5)
                return x
        """,
        id="under an argument that is a switch",
    ),
    pytest.param(
        """
        def attend(q, k, v, dropout_p: float = 0.0):
            weights = torch.softmax(q @ k.mT, -1)
            if dropout_p > 0.0:
                weights = F.dropout(weights, p=dropout_p)
            return weights @ v
        """,
        id="a rate whose giver can't be seen",
    ),
    pytest.param(
        """
        def attend(q, k, v, dropout_p=0.0):
            weights = torch.softmax(q @ k.mT, -1)
            return F.dropout(weights, p=dropout_p) @ v

        def multi_head(q, k, v, dropout_p, training=True):
            if not training:
                dropout_p = 0.0
            return attend(q, k, v, dropout_p)

        class Attention(nn.Module):
            def forward(self, q):
                q = attend(q, q, q, self.p if self.training else 0)
                q = attend(q, q, q)
                return attend(q, q, q, dropout_p=0.0)
        """,
        id="a rate whose givers switch it",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.p = 0.0

            def forward(self, x):
                return F.dropout(F.dropout(x, 0), self.p)
        """,
        id="at a rate of 0",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @property
            def rate(self):
                return self.p if self.training else 0.0

            def forward(self, x):
                return F.dropout(x, self.rate)
        """,
        id="at a property that asks for the mode",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, *args, **options):
                x = F.dropout(x, *args)
                return F.dropout(x, 0.5, **options)
        """,
        id="arguments that can't be seen",
    ),
    pytest.param(
        """
        x = F.dropout(torch.ones(8), 0.5)
        """,
        id="outside of functions",
    ),
    pytest.param(
        """
        import chainer.functions as F

        class Net:
            def __call__(self, x):
                return F.dropout(x, 0.5)
        """,
        id="another library's dropout",
    ),
    pytest.param(
        """
        def dropout(x, p):
            return x

        class Net(nn.Module):
            def forward(self, x):
                return dropout(x, 0.5)
        """,
        id="a function of that name",
    ),
    pytest.param(
        """
        class Block(layers.Layer):
            def call(self, x, training=None):
                def dropped():
                    return tf.nn.dropout(x, rate=0.1)
                if training:
                    x = tf.nn.dropout(x, rate=0.1)
                x = keras.backend.in_train_phase(lambda: keras.backend.dropout(x, 0.1), x, training)
                return tf.cond(training, dropped, lambda: x)

        def network(x, keep_prob):
            return tf.nn.dropout(x, keep_prob)
        """,
        id="Keras and TensorFlow with a switch",
    ),
    pytest.param(
        """
        def block(x, is_training):
            x = hk.dropout(hk.next_rng_key(), 0.1 if is_training else 0.0, x)
            return hk.dropout(hk.next_rng_key(), 0.1, x) if is_training else x
        """,
        id="Haiku with a switch",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                x = F.alpha_dropout(x, 0.5)
                return torch.dropout(x, 0.5, self.training)
        """,
        id="functions that don't drop unless asked",
    ),
    pytest.param(
        """
        import functools

        class Net(nn.Module):
            def __init__(self, p):
                super().__init__()
                self.first = functools.partial(F.dropout, p=p)
                self.second = functools.partial(F.dropout, p=p, training=False)
                self.third = functools.partial(F.dropout, p=0.0)
                self.fourth = functools.partial(F.alpha_dropout, p=p)
                self.fifth = functools.partial(F.dropout, p=p)

            def forward(self, x):
                x = self.first(self.second(x), training=self.training)
                return self.third(self.fourth(x))
        """,
        id="under another name, switched where it is called, or never called",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, p, is_training):
                super().__init__()
                self.p = p if is_training else 0.0

            def forward(self, x):
                return F.dropout(x, self.p)

        class Rows(torch.utils.data.Dataset):
            def __getitem__(self, index):
                return F.dropout(self.rows[index], 0.1)
        """,
        id="an attribute that the mode sets, and rows of data",
    ),
    pytest.param(
        """
        class DropColumns(BaseTransform):
            def __call__(self, data):
                return F.dropout(data, self.p)
        """,
        id="a transform of data",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x, strategy):
                if strategy == Strategy.DROP_FEATURES:
                    x = F.dropout(x, 0.1)
                return x
        """,
        id="one strategy of several to add noise",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                for layer in self.layers:
                    x = layer(x)
                    if not self.training:
                        continue
                    x = F.dropout(x, 0.1)
                return x
        """,
        id="behind a continue",
    ),
    pytest.param(
        """
        def fallback(q, k, v, dropout_p=0.1):
            weights = torch.softmax(q @ k.mT, -1)
            if dropout_p and q.requires_grad:
                weights = F.dropout(weights, p=dropout_p)
            return weights @ v
        """,
        id="where gradients are wanted",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_cases_are_marked(text):
    assert marked(text)


def test_silent_in_tests(tmp_path):
    text = "import torch.nn.functional as F\ndef f(x):\n    return F.dropout(x, 0.5)"
    assert scanned(tmp_path, {"test_net.py": text, "tests/net.py": text}, CODE) == []


def test_names_are_followed_across_files(tmp_path):
    files = {
        "net/__init__.py": "from .ops import *",
        "net/ops.py": """
            from torch.nn import functional as F
            from torch.nn.functional import dropout
        """,
        "net/drop.py": """
            def drop_path(x, p=0.1, training=True):
                return x if not training else x * (torch.rand(len(x)) > p)
        """,
        "net/model.py": """
            import torch
            from net import F
            from .drop import drop_path
            from .ops import dropout

            def forward(x):
                x = dropout(x, 0.5)  # wrong
                x = F.dropout(x, 0.5)  # wrong
                x = torch.nn.functional.dropout(x, 0.5)  # wrong
                x = drop_path(x, 0.5, training=False)
                return drop_path(x, 0.5)  # wrong
        """,
        "net/torch/__init__.py": "",  # a folder of that name is not the framework
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


def test_messages():
    text = """
        class Net(nn.Module):
            def forward(self, x):
                x = F.dropout(x, 0.5)
                x = F.dropout(x, 0.5, self.train)
                return hk.dropout(key, 0.5, x)
    """
    assert messages(text, CODE) == [
        "`dropout` without `training=` drops in evaluation, too",
        "`self.train` is a method: `dropout` drops in evaluation, too",
        "`dropout` drops in evaluation, too: nothing asks for the mode here",
    ]


FIXES = [
    ("F.dropout(x)", "F.dropout(x, training=self.training)"),
    ("F.dropout(x, 0.5)", "F.dropout(x, 0.5, training=self.training)"),
    ("F.dropout(x, p=(0.5))", "F.dropout(x, p=(0.5), training=self.training)"),
    ("F.dropout(x, 0.5, )", "F.dropout(x, 0.5, training=self.training, )"),
    ("F.dropout(é, 0.5)", "F.dropout(é, 0.5, training=self.training)"),
    ("F.dropout(x, 0.5, training=self.train)", "F.dropout(x, 0.5, training=self.training)"),
    (
        "F.dropout(\n            x,  # input\n            0.5,\n        )",
        "F.dropout(\n            x,  # input\n            0.5, training=self.training,\n        )",
    ),
    (
        "F.dropout(x, (0.5  # é)\n            )  # rate\n        )",
        "F.dropout(x, (0.5  # é)\n            ), training=self.training  # rate\n        )",
    ),
    (
        "F.dropout(F.dropout(x, 0.1), 0.5)",
        "F.dropout(F.dropout(x, 0.1, training=self.training), 0.5, training=self.training)",
    ),
]


@pytest.mark.parametrize(("before", "after"), FIXES, ids=range(len(FIXES)))
def test_fix(before, after):
    text = "class Net(nn.Module):\n    def forward(self, x):\n        return {}\n"
    assert fixed(text.format(before), CODE) == text.format(after)
    assert hits(text.format(after), CODE) == []


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n    return F.dropout(x, 0.5)\n",
        "class A:\n    def f(self, x):\n        return F.dropout(x, 0.5)\n",
        "class A(nn.Module):\n    @staticmethod\n    def f(x):\n        return F.dropout(x, 0.5)\n",
        "class A(nn.Module):\n    def f(net, x):\n        return F.dropout(x, 0.5)\n",
        "def f(x):\n    return hk.dropout(hk.next_rng_key(), 0.1, x)\n",
    ],
)
def test_no_fix_where_it_is_not_certain(text):
    assert hits(text, CODE)
    assert fixed(text, CODE) == text


MUTANTS = [
    ('implied(switch, True, file) == "eval"', "False"),
    (' or "__call__" not in owner.methods or file.is_module(owner)', " or True"),
    ("not function.default or opaque(call)", "not function.default"),
    ("not function.default or opaque", "opaque"),
    ("or not _certain(call, name, file)", ""),
    ("if switch is not None and not always_true(switch, file):", "if switch is not None:"),
    ("if switch is not None and not always_true(switch, file):", "if False:"),
    ("if stays_on(call, rate, file):", "if True:"),
    ("given & {None, function.switch_name}", "given & {None}"),
    ("any(stays_on(call, rate, file) for call in calls)", "calls"),
    ("or _switch(call, function) is not None for", "for"),
    ("rate = argument(call, function.rate, function.rate_name)", "rate = None"),
    ("file.scope_of(call) is file.method_of(call)", "True"),
]


def test_mutants():
    assert mutants(always_on, MUTANTS, CASES) == []
