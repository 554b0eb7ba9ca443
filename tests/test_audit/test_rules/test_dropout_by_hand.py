"""DS402: dropout written by hand."""

import pytest

from dropseed.audit.rules import dropout_by_hand
from test_audit.rule_cases import hits, marked, messages, mutants

CODE = "DS402"


def module(body, name="LockedDropout", p="p"):
    """A module whose forward pass is so."""
    lines = "\n".join("        " + line for line in body.strip().split("\n"))
    return (
        f"class {name}(nn.Module):\n    def __init__(self, p, prob):\n        super().__init__()\n"
        f"        self.p = {p}\n\n    def forward(self, x, keep=None):\n{lines}\n"
    )


GUARD = "if not self.training:\n    return x\n"
UNSCALED = [
    pytest.param(module(f"{GUARD}m = {draw}  # wrong\nreturn x * m"), id=draw)
    for draw in (
        "torch.bernoulli(torch.full_like(x, 1 - self.p))",
        "torch.bernoulli(torch.full(x.shape, 1 - self.p)).to(x)",
        "torch.bernoulli(torch.ones_like(x) * (1 - self.p))",
        "x.new_empty(x.shape).bernoulli_(1 - self.p)",
        "torch.distributions.Bernoulli(1 - self.p).sample(x.shape)",
        "torch.distributions.Bernoulli(probs=1 - self.p).sample(x.shape)",
        "(torch.rand_like(x) > self.p).float()",
        "(torch.rand(x.shape) < 1 - self.p).to(x.dtype)",
        "(self.p < torch.rand(x.shape)).float()",
        "np.random.binomial(1, 1 - self.p, x.shape)",
        "jax.random.bernoulli(self.key, 1 - self.p, x.shape)",
        "(x.new_empty(x.shape).uniform_() > self.p).float()",
    )
]
WRONG = [
    *UNSCALED,
    pytest.param(
        module(f"{GUARD}m = x.new(1, 8).bernoulli_(1 - self.p) / self.p  # wrong\nreturn m * x"),
        id="scaled by the fraction dropped",
    ),
    pytest.param(
        module(
            f"{GUARD}kept = 1 - self.p\nm = (torch.rand_like(x) > kept).float()  # wrong\n"
            "return x.mul(m).div(kept)"
        ),
        id="kept where it ought to be dropped",
    ),
    pytest.param(
        "def drop_node(x, drop_rate, training):\n    drop_rates = torch.ones(8) * drop_rate\n"
        "    if training:\n        m = torch.bernoulli(1.0 - drop_rates).unsqueeze(1)  # wrong\n"
        "        x = m * x\n        x = x / drop_rate\n    return x\n",
        id="scaled by the fraction dropped, whatever is dropped",
    ),
    pytest.param(
        "def dropout(x, keep_prob, training):\n    if training:\n"
        "        m = tf.cast(tf.random.uniform(tf.shape(x)) < keep_prob, tf.float32)  # wrong\n"
        "        x = tf.divide(x * m, 1 - keep_prob)\n    return x\n",
        id="scaled by the fraction dropped, in TensorFlow",
    ),
    pytest.param(
        "def dropout(x, keep_prob):\n    d = np.random.rand(*x.shape)  # wrong\n"
        "    d = d < keep_prob\n    x = x * d\n    x /= 1 - keep_prob\n    return x\n",
        id="drawn under a name",
    ),
    pytest.param(
        module("m = x.new(1, 8).bernoulli_(1 - self.p)  # wrong\nreturn x * m / (1 - self.p)"),
        id="no switch",
    ),
    pytest.param(
        module(
            "m = torch.rand_like(x) < self.p  # wrong\nreturn x.masked_fill(m, 0)", "WordDropout"
        ),
        id="no switch, whatever is dropped",
    ),
    pytest.param(
        """
        class Dropout(keras.layers.Layer):
            def call(self, x):
                m = tf.random.uniform(tf.shape(x)) > self.rate  # wrong
                return tf.where(m, x / (1 - self.rate), 0)
        """,
        id="no switch, in Keras",
    ),
    pytest.param(
        module(f"{GUARD}m = torch.rand_like(x) > self.dropout  # wrong\nreturn x * m", "Net"),
        id="named by the rate alone",
    ),
    pytest.param(
        """
        class FeatureNet(nn.Module):
            def forward(self, x):
                if self.training:
                    x = x * (torch.rand_like(x) > self.dropout).float()  # wrong
                return self.fc(x)

            def normalized(self):
                return self.fc.weight / self.fc.weight.norm()
        """,
        id="another method normalizes",
    ),
    pytest.param(
        module(
            "m = x.new(1, 8).bernoulli_(1 - self.p).div_(1 - self.p)  # wrong\nx = m * x\nreturn x"
        ),
        id="no switch, divided in place",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, settings, mode="train"):
                super().__init__()
                self.settings = settings
                self.mode = mode

            def dropout(self, x, keep_prob):
                chosen = torch.rand(len(x)) + keep_prob  # wrong
                chosen = chosen.int().bool()
                return x[chosen] / keep_prob

            def forward(self, x):
                \"\"\"Used in training.\"\"\"
                return self.dropout(x, self.settings["keep"])

            def predict(self, x):
                self.eval()
                return self(x)
        """,
        id="no switch, a floor under a name, a mode that nobody asks for",
    ),
    pytest.param(
        module("m = torch.floor(self.p + torch.rand_like(x))  # wrong\nreturn x * m / self.p"),
        id="no switch, a floor",
    ),
    pytest.param(
        module("m = np.random.binomial(n=1, p=self.p, size=8)  # wrong\nreturn x * m / self.p"),
        id="no switch, NumPy's arguments by name",
    ),
    pytest.param(
        "def dropout_layers(layers, dropout):\n"
        "    drop = torch.zeros(len(layers)).uniform_(0.0, 1.0) < dropout  # wrong\n"
        "    return [layer for layer, it in zip(layers, drop) if not it]\n\n"
        + module("for layer in dropout_layers(self.layers, self.p):\n    x = layer(x)\nreturn x"),
        id="no switch, in a function that a forward pass calls",
    ),
]

RIGHT = [
    pytest.param(module(f"{GUARD}m = {draw}\n{use}"), id=f"{draw}, {use}")
    for draw in (
        "torch.bernoulli(torch.full_like(x, 1 - self.p))",
        "(torch.rand_like(x) > self.p).float()",
        "(torch.rand_like(x) < 1 - self.p).float()",
    )
    for use in (
        "return x * m / (1 - self.p)",
        "return x * m.div_(1 - self.p)",
        "return x.mul(m).div(1.0 - self.p)",
        "return x * m * (1 / (1 - self.p))",
        "kept = 1 - self.p\nm = m / kept\nreturn m.expand_as(x) * x",
        "x = x * m\nx /= 1 - self.p\nreturn x",
    )
] + [
    pytest.param(
        module(
            f"{GUARD}m = torch.rand_like(x) < self.p\nreturn x.masked_fill(m, 0) / (1 - self.p)"
        ),
        id="a mask of what is dropped",
    ),
    pytest.param(
        module(
            f"{GUARD}m = (torch.rand_like(x) < self.p).float()\nreturn x * (1 - m) / (1 - self.p)"
        ),
        id="one minus a mask",
    ),
    pytest.param(
        module(
            f"{GUARD}m = torch.rand_like(x) > self.p\nreturn torch.where(m, x / (1 - self.p), 0)"
        ),
        id="a choice",
    ),
    pytest.param(
        module(
            "m = x.new(1, 8).bernoulli_(1 - self.p)\nif self.training:\n    return x * m\n"
            "return x * (1 - self.p)"
        ),
        id="scaled in evaluation",
    ),
    pytest.param(
        module(f"{GUARD}m = x.new(1, 8).bernoulli_(1 - self.p)\nreturn x * m * self.scale"),
        id="a scale that is elsewhere",
    ),
    pytest.param(
        module(f"{GUARD}m = x.new(1, 8).bernoulli_(1 - self.p)\nreturn m"), id="only a mask"
    ),
    pytest.param(
        module("m = torch.rand_like(x) < self.p\nreturn x.masked_fill(m, 0)", "NoisyDropout"),
        id="noise",
    ),
    pytest.param(
        """
        class LabelEmbedding(nn.Module):
            def drop(self, labels, ids=None):
                if ids is None:
                    ids = torch.rand(len(labels)) < self.dropout_prob
                return torch.where(ids, self.none, labels)

            def forward(self, labels, ids=None):
                if (self.training and self.dropout_prob > 0) or ids is not None:
                    labels = self.drop(labels, ids)
                return self.table(labels)
        """,
        id="a method that is called in training",
    ),
    pytest.param(
        module("m = x.new(1, 8).bernoulli_(1 - self.p)\nreturn x * m / (1 - self.p)", "MCDropout"),
        id="Monte-Carlo dropout",
    ),
    pytest.param(
        module(
            "if self.training:\n    m = x.new(1, 8).bernoulli_(1 - self.p)\n"
            "    x = x * m / (1 - self.p)\nreturn x"
        ),
        id="under a switch",
    ),
    *(
        pytest.param(
            module(f"{GUARD}m = x.new(8, 1).bernoulli_(1 - self.p)\nreturn x * m", name), id=name
        )
        for name in (
            "WordDropout",
            "TokenDropout",
            "DropEdge",
            "DropPath",
            "PatchDropout",
            "ModalityDropout",
            "LabelDropout",
            "NodeDropout",
            "RandomNoise",
            "FrameDropout",
        )
    ),
    pytest.param(
        "def forward(net, x, p):\n    m = (torch.rand_like(x) > p).float()\n    return x * m\n",
        id="nothing says dropout",
    ),
    pytest.param(
        "def mask_tokens(x, dropout):\n    m = torch.rand_like(x) > dropout\n    return x * m\n",
        id="masked tokens",
    ),
    pytest.param(
        "def sample(x, dropout):\n    return x * torch.bernoulli(torch.sigmoid(x))\n",
        id="a sampler",
    ),
    pytest.param(
        "def dropout(x, p):\n    return x * torch.rand_like(x) / (1 - p)\n", id="no comparison"
    ),
    pytest.param(
        "def dropout(x, p):\n    m = torch.floor(1 - p + torch.rand(8))\n    return x / (1-p)*m\n",
        id="a floor",
    ),
    pytest.param(
        "def dropout(x, p):\n    m = (torch.rand_like(x) > p) / (1 - p)\n    return x * m\n",
        id="a function that others switch",
    ),
    pytest.param(
        "def dropout(x, p, training):\n    if not training:\n        return x\n"
        "    if random.random() < p:\n        return 0 * x\n    return x\n",
        id="a choice of one number",
    ),
    *(
        pytest.param(
            f"def {name}(x, drop_rate, training):\n    drop_rates = torch.ones(8) * drop_rate\n"
            "    if training:\n        m = torch.bernoulli(1.0 - drop_rates).unsqueeze(1)\n"
            f"        x = m * x{scale}\n    return x\n",
            id=f"{name}{scale}",
        )
        for name, scale in (
            ("dropout_features", ""),
            ("drop_node", ""),
            ("dropout", " / (1 - drop_rate)"),
        )
    ),
    pytest.param("m = (torch.rand(8) > dropout).float()\nx = x * m\n", id="outside of functions"),
    pytest.param(
        "def drop_path(x, p, training):\n    if not training:\n        return x\n"
        "    m = (1 - p + torch.rand(len(x))).floor()\n    return x / (1 - p) * m\n\n"
        + module("return drop_path(x, self.p, self.training)"),
        id="a function that asks for the mode",
    ),
    pytest.param(
        "def dropout(x, p):\n    return x * (torch.rand_like(x) > p) / (1 - p)\n\n"
        + module("return dropout(x, self.p) if self.training else x"),
        id="a function that is called in training",
    ),
    pytest.param(
        "def dropout(x, p):\n    return x * (torch.rand_like(x) > p) / (1 - p)\n\n"
        "class Loader:\n    def next(self, x):\n        return dropout(x, self.p)\n",
        id="a function that no module calls",
    ),
    pytest.param(
        module("m = (torch.rand_like(x) + self.p).clamp(0, 1)\nreturn x * m"),
        id="a sum that is no mask",
    ),
    pytest.param(
        module("m = (torch.rand_like(x) * self.p).floor()\nreturn x * m"),
        id="a product that is no mask",
    ),
    pytest.param(
        module("m = (torch.rand_like(x) < 1 - self.p).float()\nreturn x * m / (1 - self.p)", p="0"),
        id="a rate of 0",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def dropout(self, x, rate):
                return x * (torch.rand_like(x) > rate) / (1 - rate)

            def forward(self, x, phase="train"):
                return self.dropout(x, self.rates[phase])
        """,
        id="a rate for each phase",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self, is_train):
                super().__init__()
                if not is_train:
                    self.rate = 0

            def dropout(self, x):
                return x * (torch.rand_like(x) > self.rate) / (1 - self.rate)
        """,
        id="a mode that the constructor asks for",
    ),
]

CHANGES = [
    ("if _OTHER.search(_names(function, file)):", "if False:"),
    ("if kept is None and call.args and _is_filled(call.args[0], file):", "if False:"),
    ("return depth > 0 and _is_filled(node.right, file, depth - 1)", "return False"),
    ("return len(values) == 1 and _is_filled(values[0], file, depth - 1)", "return False"),
    ("return bool(_DROPOUT.search(_names(function, file))", "return bool(True"),
    (" or _DROPOUT.search(statement)", ""),
    ('name in ("bernoulli", "bernoulli_") and not known', "False"),
    ('known == "torch.bernoulli"', "False"),
    ("== left\n", "!= left\n"),
    ("_under_name(call, file), file)", "call, file)"),
    ("_rest(kept) in factors and kept not in factors", "False"),
    ("if not factors and not", "if not"),
    ("not factors and not _scales_otherwise(mask, function, kept, file)", "not factors"),
    ("not factors and not _scales_otherwise(mask, function, kept, file)", "False"),
    ("return place is not None and stays_on(place, rate, file)", "return place is not None"),
    ("return place is not None and stays_on(place, rate, file)", "return False"),
    ("if not _multiplied(mask, function, file):", "if False:"),
    ("rate = rate.right  # of", "pass  # of"),
    ("_NOISE.search(_names(function, file)) or ", ""),
    (" or any(map(_asks_for_mode, asked))", ""),
    ("not owners or", ""),
    ("[function, *(at.node for at in owners if function.name not in FORWARD)]", "[function]"),
    ("return _floored(call, file) or", "return"),
    ("or not isinstance(total.op, ast.Add)", ""),
    (" or _last(called.func) not in _FLOORS", ""),
    ("_under_name(total, file) if isinstance(file.parent(total), ast.Assign) else total", "total"),
    ("in ([], [0, 1])", "== []"),
    ("trials is not None and number(trials) == 1", "False"),
    ("if file.class_of(function) else calls_of(function, file)", ""),
    ("elif not _is_kept(node) and not _is_text(node):", "elif not _is_text(node):"),
    ("elif not _is_kept(node) and not _is_text(node):", "elif not _is_kept(node):"),
    ('node.name == "__init__"', "False"),
    ('if isinstance(node, ast.Call) and _last(node.func) in ("train", "eval"):', "if False:"),
    ("sorted(found, key=lambda at: (at.lineno, at.col_offset))", "found"),
    (' or file.inherits(at, "keras.")', ""),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            UNSCALED[0].values[0],
            "the mask keeps `1 - self.p` of the values, which nothing scales by 1 / (1 - self.p)",
        ),
        (
            WRONG[len(UNSCALED)].values[0],
            "the mask keeps `1 - self.p` of the values and the scale is 1 / (self.p)",
        ),
        (
            WRONG[-1].values[0],
            "this mask is drawn in evaluation, too: nothing asks for the mode here",
        ),
    ],
)
def test_messages(text, message):
    assert messages(text, CODE) == [message]


def test_mutants():
    assert mutants(dropout_by_hand, CHANGES, WRONG + RIGHT) == []
