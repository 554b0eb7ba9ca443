"""DS204: element-wise dropout on convolution maps."""

import pytest

from dropseed.audit.rules import elementwise_on_maps
from test_audit.rule_cases import hits, marked, messages, mutants

CODE = "DS204"


def sequence(*lines):
    """A sequence of these layers."""
    return "nn.Sequential(\n" + "".join(f"    {line}\n" for line in lines) + ")\n"


DROP = "nn.Dropout(0.3),  # wrong"
CONV = "nn.Conv2d(3, 8, 3),"

WRONG = [
    pytest.param(
        """
        def f(x):
            x = layers.Conv2DTranspose(8, 3)(x)
            return layers.Dropout(0.1)(x)  # wrong
        """,
        id="Keras, upwards",
    ),
    pytest.param(
        """
        from project import Normalize, nonlinearity

        class Block(nn.Module):
            def __init__(self, n):
                super().__init__()
                self.norm, self.dropout = Normalize(n), nn.Dropout(0.1)  # wrong
                self.conv = nn.Conv2d(n, n, 3)

            def forward(self, x):
                return self.conv(self.dropout(nonlinearity(self.norm(x))))
        """,
        id="a function of the project that activates",
    ),
    pytest.param(
        """
        from project import DepthwiseConv2d

        nn.Sequential(
            DepthwiseConv2d(8, 8, 3),
            nn.Dropout(0.1),  # wrong
        )
        """,
        id="a convolution of the project",
    ),
    pytest.param(
        "def f(x, block):\n    x = nn.ReLU()(block(x))\n    x = nn.Dropout(0.3)(x)  # wrong\n"
        "    return nn.Conv2d(8, 8, 3)(x)\n",
        id="before a convolution",
    ),
    pytest.param(
        sequence("nn.Conv2d(3, 8, 1),", "nn.BatchNorm2d(8),", "nn.ReLU(),", DROP, CONV),
        id="a kernel of 1, and a convolution behind",
    ),
    pytest.param(
        sequence("block,", "nn.ReLU(),", "nn.BatchNorm2d(8),", DROP, "nn.Conv2d(8, 8, 1),"),
        id="between normalization and a kernel of 1",
    ),
    pytest.param(
        sequence("block,", "nn.MaxPool2d(2),", DROP, "nn.Conv2d(8, 8, 1),"),
        id="between pooling and a kernel of 1",
    ),
    pytest.param(sequence(CONV, DROP), id="straight behind"),
    pytest.param(
        sequence(CONV, "nn.BatchNorm2d(8),", "nn.ReLU(),", DROP), id="normalized, activated"
    ),
    pytest.param(sequence(CONV, "nn.MaxPool2d(2),", DROP), id="pooled"),
    pytest.param(sequence("nn.Conv3d(3, 8, 3),", DROP), id="three dimensions"),
    pytest.param(sequence("nn.ConvTranspose2d(3, 8, 3),", "nn.Upsample(2),", DROP), id="upwards"),
    pytest.param(sequence("nn.Conv2d(3, 8, (1, 3)),", DROP), id="neighbours along one axis"),
    pytest.param(
        "def f(x, w):\n    return F.dropout(F.relu(F.conv2d(x, w)), 0.2, True)  # wrong",
        id="functions",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.drop = nn.Conv2d(3, 8, 3), nn.Dropout(0.5)  # wrong

            def forward(self, x):
                return self.drop(self.conv(x)).flatten(1)
        """,
        id="forward",
    ),
    pytest.param(
        """
        model = keras.Sequential([
            layers.Conv2D(8, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Dropout(0.25),  # wrong
            layers.Flatten(),
        ])
        """,
        id="Keras",
    ),
]

RIGHT = [
    pytest.param(
        sequence("block,", "nn.BatchNorm2d(1),", "nn.Dropout(0.3),", "nn.Conv2d(1, 8, 3),"),
        id="embeddings as maps, which nothing has activated",
    ),
    pytest.param(
        "def f(x, embed):\n    x = embed(x)\n    return nn.Conv2d(1, 8, 3)(nn.Dropout(0.3)(x))\n",
        id="an unknown function before",
    ),
    pytest.param(
        sequence(
            "block,", "nn.ReLU(),", "nn.BatchNorm1d(8),", "nn.Dropout(0.3),", "nn.Linear(8, 8),"
        ),
        id="before a linear layer",
    ),
    pytest.param(
        sequence("block,", "nn.ReLU(),", "nn.Dropout(0.3),", "nn.Conv2d(8, 8, 1),"),
        id="before a kernel of 1",
    ),
    pytest.param(
        sequence("nn.Embedding(9, 8),", "nn.Dropout(0.3),", "nn.Conv2d(1, 8, (3, 8)),"),
        id="words before a convolution",
    ),
    pytest.param(
        sequence("nn.AdaptiveAvgPool2d(1),", "nn.Dropout(0.3),", "nn.Conv2d(8, 8, 1),"),
        id="pooled to one place before a kernel of 1",
    ),
    pytest.param(
        "def f(x, deep):\n    x = nn.ReLU()(x)\n    if deep:\n        x = nn.Dropout(0.3)(x)\n"
        "    if not deep:\n        x = nn.Conv2d(8, 8, 3)(x)\n    return x\n",
        id="two branches, a convolution in one",
    ),
    pytest.param(sequence(CONV, "nn.Dropout2d(0.3)"), id="channels"),
    pytest.param(sequence("nn.Conv1d(3, 8, 3),", "nn.Dropout(0.3)"), id="a sequence"),
    pytest.param(sequence("nn.Conv2d(3, 8, 1),", "nn.Dropout(0.3)"), id="a kernel of 1"),
    pytest.param(
        sequence("nn.Conv2d(3, 8, kernel_size=(1, 1)),", "nn.Dropout(0.3)"),
        id="a kernel of 1, twice",
    ),
    pytest.param(sequence("nn.Linear(3, 8),", "nn.Dropout(0.3)"), id="a linear layer"),
    pytest.param(sequence(CONV, "nn.Flatten(),", "nn.Dropout(0.3)"), id="flattened before"),
    pytest.param(
        sequence(CONV, "nn.AdaptiveAvgPool2d(1),", "nn.Dropout(0.3)"), id="pooled over all places"
    ),
    pytest.param(
        sequence(CONV, "nn.AdaptiveMaxPool2d(1),", "nn.ReLU(),", "nn.Dropout(0.3)"),
        id="pooled over all places, activated",
    ),
    pytest.param(sequence(CONV, "nn.Dropout(0)"), id="a rate of 0"),
    pytest.param(sequence(CONV, "make(),", "nn.Dropout(0.3)"), id="something unknown between"),
    pytest.param(
        sequence(CONV, "nn.Conv2d(8, 8, 1),", "nn.Dropout(0.3)"), id="a kernel of 1 between"
    ),
    pytest.param(sequence("nn.Dropout(0.3),", CONV), id="before"),
    pytest.param(sequence(CONV, "nn.AlphaDropout(0.3)"), id="alpha dropout"),
    pytest.param(
        "def f(x, w):\n    return F.dropout(F.conv2d(x, w).flatten(2).transpose(1, 2))",
        id="patches",
    ),
    pytest.param("def f(x, w):\n    return x + F.dropout(x) + F.conv2d(x, w)", id="another value"),
    pytest.param(
        "def f(x, w, y):\n    return F.dropout(F.conv2d(x, w) + y, 0.1, True)",
        id="an addition between",
    ),
    pytest.param(
        "def f(x, w, a):\n    if a:\n        x = F.conv2d(x, w)\n    if not a:\n"
        "        x = F.dropout(x)\n    return x",
        id="conditions that exclude each other",
    ),
    pytest.param(
        "keras.Sequential([layers.Conv2D(8, 3), layers.SpatialDropout2D(0.2)])",
        id="Keras, channels",
    ),
    pytest.param(
        "keras.Sequential([layers.Conv2D(8, 3), layers.Dropout(0.2, noise_shape=(None, 1, 1, 8))])",
        id="Keras, a noise shape",
    ),
    pytest.param(
        "keras.Sequential([layers.Conv2D(8, 3), layers.GlobalAveragePooling2D(), "
        "layers.Dropout(0.2)])",
        id="Keras, pooled over all places",
    ),
]

CHANGES = [
    ('step.family in ("conv2", "conv3") or', 'step.family in ("conv1", "conv2", "conv3") or'),
    ('step.family in ("conv2", "conv3") or', ""),
    (" or bool(_CONVOLUTION.search(step.name))", ""),
    ("if _convolves(at))", ")"),
    (" or _activates(at) for at in before", " for at in before"),
    ("return None if maps is None or apart(step, maps, file) else maps", "return maps"),
    ("if any_kernel or _maps(at)", ""),
    ("if any_kernel or _maps(at)", "if _maps(at)"),
    (
        'if not any(at.family in ("activation", *_POOLS) or _activates(at) for at in before):',
        "if False:",
    ),
    ('step.before("batch norm", "identity")', "step.before()"),
    ("return not all(number(at) == 1", "return not any(number(at) == 1"),
    ("return not all(number(at) == 1 for at in sizes)", "return True"),
    ('"norm", "max pool",', '"norm",'),
    ('"batch norm", "norm",', ""),
    ("dropped_nothing(step) or ", ""),
    ('file), "elementwise")', 'file), "elementwise", "path")'),
    (" or _pooled_to_one(step)", ""),
    ("None if apart(maps, step, file) else maps", "maps"),
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong(text):
    assert hits(text, CODE) == marked(text) != []


@pytest.mark.parametrize("text", RIGHT)
def test_right(text):
    assert hits(text, CODE) == []


def test_message():
    assert messages(WRONG[1].values[0], CODE) == [
        "element-wise dropout on maps, beside `Conv2d`: neighbours are alike"
    ]


def test_mutants():
    assert mutants(elementwise_on_maps, CHANGES, WRONG + RIGHT) == []
