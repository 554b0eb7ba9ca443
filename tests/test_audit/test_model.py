"""What `check_model` takes and what it reports."""

import sys
from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional

import dropseed.torch as dst
from dropseed.audit.running.model import check_model, example_input
from dropseed.audit.running.model_report import COLUMNS, findings_by_layer, report_rows
from dropseed.audit.running.passes import TRAINING_PASSES
from dropseed.errors import InvalidTypeError, InvalidValueError, MissingExtraError
from test_audit.nets import Net, found

X = torch.linspace(-1, 1, 6 * 8).reshape(6, 8)
SEQUENCES = torch.linspace(-1, 1, 4 * 6 * 8).reshape(4, 6, 8)


def linear():
    return nn.Linear(8, 8)


def test_rows():
    model = nn.Sequential(linear(), nn.ReLU(), nn.Dropout(0.5), nn.LSTM(8, 4, 2, dropout=0.25))
    drop, lstm = check_model(model, SEQUENCES).sites
    assert (drop.name, drop.kind, drop.rate, drop.shape) == ("2", "Dropout", 0.5, (4, 6, 8))
    assert (lstm.name, lstm.kind, lstm.rate, lstm.shape) == ("3", "LSTM", 0.25, (4, 6, 8))
    assert (drop.parameters, lstm.parameters) == (0, sum(p.numel() for p in model[3].parameters()))
    assert drop.dropped == pytest.approx(0.5, abs=0.05)  # 1536 draws: 4 standard deviations
    assert lstm.dropped == pytest.approx(0.25, abs=0.07)
    assert drop.findings == lstm.findings == ()


def test_the_dropped_fraction_where_the_input_has_zeros():
    model = Net(lambda net, x: net.drop(functional.relu(x)), drop=nn.Dropout(0.5))
    (row,) = check_model(model, SEQUENCES - 0.9).sites
    assert row.dropped == pytest.approx(0.5, abs=0.06)


def test_functions_are_sites_of_the_module_that_calls_them():
    block = Net(
        lambda net, x: functional.dropout(
            functional.dropout(x, 0.1, net.training), 0.2, net.training
        )
    )
    report = check_model(nn.Sequential(linear(), block), X)
    assert [(row.name, row.rate) for row in report.sites] == [
        ("1:dropout", 0.1),
        ("1:dropout#2", 0.2),
    ]


def test_a_layer_that_is_called_often_is_one_site():
    drop = nn.Dropout(0.5)
    model = nn.Sequential(linear(), nn.ReLU(), drop, linear(), nn.Tanh(), drop, linear())
    (row,) = check_model(model, X).sites
    assert row.name == "2"
    assert row.place == "after ReLU, before Linear; after Tanh, before Linear"


def test_sites_come_as_they_run():
    def forward(net, x):
        return net.one(net.two(x)) if net.training else net.two(net.one(x))

    model = Net(forward, three=nn.Dropout(0.1), two=nn.Dropout(0.2), one=nn.Dropout(0.3))
    assert [row.name for row in check_model(model, X).sites] == ["one", "two", "three"]


def test_findings_are_sorted_and_each_once():
    model = nn.Sequential(nn.Dropout(0.0), linear(), nn.Dropout(0.9))
    codes = [note.code for note in check_model(model, X).findings]
    assert codes == ["DS202", "DS304", "DS503"]


def test_text():
    text = str(check_model(nn.Sequential(linear(), nn.Dropout(0.9)), X))
    heading, row, *notes = text.splitlines()
    assert heading.split() == list(COLUMNS)
    assert row.startswith("1     Dropout  0.9   6x8    after Linear, at the output")
    assert row.endswith("DS202 DS304")
    assert notes[1].startswith("DS304 1: a rate of 0.9")


def test_rows_as_text():
    report = check_model(nn.Sequential(linear(), nn.LSTM(8, 8, 2, dropout=0.5)), SEQUENCES)
    ((name, *rest),) = report_rows(report)
    assert (name, rest[-3]) == ("1", "1,152")
    assert len(rest) + 1 == len(COLUMNS)


def test_a_model_without_dropout():
    report = check_model(linear(), X)
    assert (report.sites, report.norms, report.findings) == ((), (), ())
    assert str(report).split() == list(COLUMNS)


def test_findings_by_layer():
    def forward(net, x):
        return net.part(net.norm(net.drop(x)))

    part = Net(lambda net, x: functional.dropout(x, 0.9) + x)
    model = Net(forward, drop=nn.Dropout(0.5), norm=nn.BatchNorm1d(8), part=part)
    notes = findings_by_layer(check_model(model, X))
    assert {name: {note.code for note in some} for name, some in notes.items()} == {
        "drop": {"DS201"},
        "norm": {"DS504"},
        "part": {"DS304", "DS502"},
    }


def test_names_leave_out_wrappers():
    model = torch.compile(nn.Sequential(linear(), nn.Dropout(0.5), nn.ReLU()), backend="eager")
    (row,) = check_model(model, X).sites
    assert (row.name, row.place) == ("1", "after Linear, before ReLU")


@pytest.mark.parametrize(
    "inputs",
    [
        (X, X),
        [X, X],
        {"x": X, "y": X},
        UserDict(x=X, y=X),
        namedtuple("Pair", "x y")(X, X),
    ],
)
def test_inputs(inputs):
    model = Net(lambda net, x, y: net.drop(x + y).exp(), drop=nn.Dropout(0.5))
    assert [row.place for row in check_model(model, inputs).sites] == ["after addition, before exp"]


@dataclass
class Batch:
    x: torch.Tensor


def test_inputs_in_a_dataclass():
    model = Net(lambda net, batch: net.drop(batch.x).exp(), drop=nn.Dropout(0.5))
    assert [row.place for row in check_model(model, (Batch(X),)).sites] == [
        "on the input, before exp"
    ]


@pytest.mark.parametrize("inputs", [None, 3, "x", X.numpy(), {1, 2}])
def test_wrong_inputs(inputs):
    with pytest.raises(InvalidTypeError, match="`example_inputs` must be a tensor, a tuple"):
        check_model(linear(), inputs)


@pytest.mark.parametrize(
    ("model", "hint"), [(3, "got 3"), (nn.Linear, r"Linear\(\.\.\.\)"), (lambda x: x, "Module")]
)
def test_wrong_models(model, hint):
    with pytest.raises(InvalidTypeError, match=hint):
        check_model(model, X)


def test_keras_models_come_later():
    class Sequential:
        __module__ = "keras.src.models.sequential"

    class Own(Sequential):
        pass

    with pytest.raises(InvalidTypeError, match="come with the Keras front end"):
        check_model(Own(), X)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"dropseed\[torch\]"):
        check_model(object(), X)
    with pytest.raises(MissingExtraError, match=r"dropseed\[torch\]"):
        example_input([2])


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_models():
    model = nn.Sequential(nn.LazyLinear(4), nn.Dropout(0.5))
    with pytest.raises(InvalidValueError, match="Call it once before"):
        check_model(model, X)
    model(X)
    assert len(check_model(model, X).sites) == 1


@pytest.mark.parametrize(("mode", "fails"), [("evaluation", False), ("training", True)])
def test_models_that_fail(mode, fails):
    def forward(net, x):
        if net.training is fails:
            raise KeyError("targets\nwhatever")
        return net.drop(x)

    with pytest.raises(InvalidValueError, match=f"fails in {mode}.*KeyError"):
        check_model(Net(forward, drop=nn.Dropout(0.5)), X)


def test_one_example_is_enough():
    model = nn.Sequential(linear(), nn.BatchNorm1d(8), nn.Dropout(0.5), linear())
    assert check_model(model, X[:1]).findings == ()


def test_as_many_passes_as_documented():
    modes = []
    check_model(Net(lambda net, x: modes.append(net.training) or x), X)
    assert modes == [False] * 2 + [True] * TRAINING_PASSES == [False] * 2 + [True] * 8


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
            SEQUENCES,
        ),
        (nn.Transformer(8, 2, 1, 1, 16, batch_first=True), (SEQUENCES, SEQUENCES)),
        (nn.Sequential(dst.Dropout(0.2), linear(), nn.ReLU(), dst.Dropout(0.5), linear()), X),
        (nn.Sequential(linear(), nn.GRU(8, 8, 2, dropout=0.1)), SEQUENCES),
        (
            nn.Sequential(
                nn.Conv2d(1, 4, 3),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.Dropout2d(0.25),
                nn.Conv2d(4, 4, 3),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(16, 8),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Linear(8, 2),
                nn.LogSoftmax(1),
            ),
            torch.rand(4, 1, 8, 8),
        ),
        (
            Net(
                lambda net, x: {"loss": net.fc(net.drop(x)).mean(), "y": x},
                fc=linear(),
                drop=nn.Dropout(0.1),
            ),
            X,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_nothing_is_wrong(model, inputs):
    report = check_model(model, inputs)
    assert report.sites
    assert report.findings == ()


def test_every_site_of_a_transformer_has_its_place():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert {row.name: row.place for row in check_model(layer, SEQUENCES).sites} == {
        "self_attn": "attention probabilities",
        "dropout1": "after MultiheadAttention, before addition",
        "dropout": "after ReLU, before Linear",
        "dropout2": "after Linear, before addition",
    }


def test_a_dropped_residual_is_looked_into():
    block = dst.DropPathResidual(nn.Sequential(linear(), nn.Dropout(0.9), linear()), 0.5)
    assert found(nn.Sequential(block), X) == {("DS304", "0.branch.1")}


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [("float32", torch.float32), ("float16", torch.float16), ("int64", torch.int64)],
)
def test_example_inputs(dtype, kind):
    x = example_input([3, 5], dtype)
    assert (tuple(x.shape), x.dtype) == ((4, 3, 5), kind)
    assert torch.equal(x, example_input([3, 5], dtype))
    assert x.float().std() > 0.5
    if not kind.is_floating_point:
        assert 0 <= x.min() <= x.max() < 10


def test_example_inputs_draw_from_nobodys_generator():
    state = torch.get_rng_state()
    example_input([3])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("dtype", ["float33", "Tensor", "", "nn"])
def test_wrong_types(dtype):
    with pytest.raises(InvalidValueError, match="`dtype` must name a type"):
        example_input([1], dtype)


def test_wrong_shapes():
    with pytest.raises(InvalidValueError, match="`shape` must not be negative; got 3x-1"):
        example_input([3, -1])
