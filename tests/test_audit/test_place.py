"""Where dropout stands, in words and as mistakes."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import dropseed.torch as dst
from dropseed.audit.running.model import check_model
from test_audit.nets import Net, codes, found

pytestmark = pytest.mark.filterwarnings("ignore:dropout[12]d. Received a")

VECTORS = torch.linspace(-1, 1, 6 * 8).reshape(6, 8)
SEQUENCES = torch.linspace(-1, 1, 4 * 6 * 8).reshape(4, 6, 8)
MAPS = torch.linspace(-1, 1, 4 * 8 * 6 * 6).reshape(4, 8, 6, 6)


def chain(*layers):
    return nn.Sequential(*layers)


def conv(kernel=3):
    return nn.Conv2d(8, 8, kernel, padding=kernel // 2)


def linear():
    return nn.Linear(8, 8)


class Permute(nn.Module):
    def __init__(self, *axes):
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


@pytest.mark.parametrize(
    ("model", "inputs", "places"),
    [
        (
            chain(linear(), nn.ReLU(), nn.Dropout(0.5), linear()),
            VECTORS,
            ["after ReLU, before Linear"],
        ),
        (
            Net(lambda net, x: functional.dropout(functional.relu(x), 0.5)),
            VECTORS,
            ["after ReLU, at the output"],
        ),
        (chain(nn.Dropout(0.5), linear()), VECTORS, ["on the input, before Linear"]),
        (
            chain(linear(), nn.Dropout(0.5), nn.Flatten(0), nn.Tanh()),
            VECTORS,
            ["after Linear, before Tanh"],
        ),
        (
            Net(lambda net, x: x + net.drop(x.exp()), drop=nn.Dropout(0.5)),
            VECTORS,
            ["after exp, before addition"],
        ),
        (nn.LSTM(8, 8, 2, dropout=0.5), SEQUENCES, ["between LSTM layers"]),
        (
            Net(lambda net, x: net.m(x, x, x)[0], m=nn.MultiheadAttention(8, 2, dropout=0.5)),
            SEQUENCES,
            ["attention probabilities"],
        ),
        (
            Net(lambda net, x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
            SEQUENCES,
            ["attention probabilities"],
        ),
        (
            Net(lambda net, x: functional.dropout((x @ x.mT).softmax(-1), 0.5) @ x),
            SEQUENCES,
            ["attention probabilities"],
        ),
        (
            Net(
                lambda net, x: functional.linear(x, functional.dropout(net.weight, 0.5)),
                weight=nn.Parameter(torch.ones(8, 8)),
            ),
            VECTORS,
            ["on a weight, before Linear"],
        ),
        (
            Net(
                lambda net, x: net.b(net.drop(net.a(net.drop(x.tanh())).relu())),
                a=linear(),
                b=linear(),
                drop=nn.Dropout(0.5),
            ),
            VECTORS,
            ["after Tanh, before Linear; after ReLU, before Linear"],
        ),
        (dst.drop_weights(chain(linear()), "0.weight", 0.5), VECTORS, ["on the weight of 0"]),
        (
            chain(linear(), nn.Dropout(0.0), nn.Dropout(0.5), nn.Tanh()),
            VECTORS,
            ["after Linear, before Dropout", "after Linear, before Tanh"],
        ),
    ],
)
def test_places(model, inputs, places):
    assert [row.place for row in check_model(model, inputs).sites] == places


RIGHT_BEFORE_NORM = [
    chain(nn.BatchNorm1d(8), nn.Dropout(0.5), linear()),
    chain(nn.Dropout(0.5), linear(), nn.BatchNorm1d(8)),
    chain(nn.Dropout(0.5), nn.Tanh(), nn.BatchNorm1d(8)),
    chain(nn.Dropout(0.0), nn.BatchNorm1d(8)),
    chain(nn.Dropout(0.5), nn.LayerNorm(8)),
    chain(nn.AlphaDropout(0.5), nn.BatchNorm1d(8)),
    Net(lambda net, x: net.norm(x + net.drop(x)), norm=nn.BatchNorm1d(8), drop=nn.Dropout(0.5)),
    Net(lambda net, x: net.norm(functional.dropout(x, 0.5, False)), norm=nn.BatchNorm1d(8)),
    Net(
        lambda net, x: net.norm(torch.cat([net.drop(x), x])),
        norm=nn.BatchNorm1d(8),
        drop=nn.Dropout(0.5),
    ),
]


@pytest.mark.parametrize(
    "model",
    [
        chain(nn.Dropout(0.5), nn.BatchNorm1d(8)),
        chain(nn.Dropout(0.5), nn.ReLU(), nn.BatchNorm1d(8)),
        chain(nn.Dropout(0.5), nn.LeakyReLU(), nn.Identity(), nn.BatchNorm1d(8)),
        chain(dst.Dropout(0.5), nn.Unflatten(1, (8, 1)), nn.BatchNorm1d(8)),
        Net(
            lambda net, x: net.norm(0.5 * functional.dropout(x, 0.5, net.training)),
            norm=nn.BatchNorm1d(8),
        ),
        Net(lambda net, x: functional.batch_norm(functional.dropout(x, 0.5), x.mean(0), x.var(0))),
    ],
)
def test_dropout_before_batch_norm(model):
    assert "DS201" in codes(model, VECTORS)


@pytest.mark.parametrize("model", RIGHT_BEFORE_NORM)
def test_no_dropout_before_batch_norm(model):
    assert "DS201" not in codes(model, VECTORS)


@pytest.mark.parametrize(
    "model",
    [
        chain(linear(), nn.Dropout(0.5)),
        chain(linear(), nn.Dropout(0.5), nn.LogSoftmax(1)),
        chain(linear(), nn.Sigmoid(), nn.Dropout(0.5)),
        chain(linear(), nn.Unflatten(1, (4, 2)), dst.Dropout(0.5), nn.Flatten()),
        Net(
            lambda net, x: {"logits": functional.dropout(net.fc(x), 0.5, net.training), "x": x},
            fc=linear(),
        ),
        Net(
            lambda net, x: functional.mse_loss(functional.dropout(net.fc(x), 0.5, net.training), x),
            fc=linear(),
        ),
    ],
)
def test_dropout_after_the_output_layer(model):
    assert "DS202" in codes(model, VECTORS)


@pytest.mark.parametrize(
    "model",
    [
        chain(nn.Dropout(0.5), linear()),
        chain(linear(), nn.ReLU(), nn.Dropout(0.5)),  # features, for another model
        chain(linear(), nn.LayerNorm(8), nn.Dropout(0.5)),
        chain(linear(), nn.Dropout(0.5), nn.ReLU()),
        chain(linear(), nn.Dropout(0.0)),
        chain(linear(), dst.MultiSampleDropout(linear(), p=0.5)),  # the layer is inside
        Net(lambda net, x: x + functional.dropout(net.fc(x), 0.5, net.training), fc=linear()),
        Net(
            lambda net, x: (net.fc(x), functional.dropout(net.fc(x), 0.5, net.training)),
            fc=linear(),
        ),
        Net(lambda net, x: net.path(net.fc(x)), fc=linear(), path=dst.DropPath(0.5)),
        Net(lambda net, x: functional.dropout(x, 0.5, net.training)),
        Net(
            lambda net, x: functional.mse_loss(net.fc(functional.dropout(x, 0.5, net.training)), x),
            fc=linear(),
        ),
        nn.TransformerEncoderLayer(8, 2, 16, norm_first=True),
    ],
)
def test_no_dropout_after_the_output_layer(model):
    assert "DS202" not in codes(model, VECTORS)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (chain(linear(), nn.Dropout1d(0.5), linear()), VECTORS),
        (chain(nn.Tanh(), nn.Dropout1d(0.5), nn.Tanh()), VECTORS),
        (chain(conv(), nn.Flatten(), nn.Dropout2d(0.5), nn.Linear(288, 2)), MAPS),
        (chain(nn.Embedding(9, 8), nn.Dropout1d(0.5), linear()), torch.ones(4, 6).long()),
        (chain(linear(), nn.ReLU(), nn.Dropout1d(0.5), nn.Tanh()), SEQUENCES),
        (chain(dst.Dropout1d(0.5), nn.GRU(8, 8, batch_first=True)), SEQUENCES),
        (
            Net(lambda net, x: net.fc(functional.dropout2d(x, 0.5, net.training)), fc=linear()),
            SEQUENCES,
        ),
        (chain(Permute(0, 2, 3, 1), nn.LayerNorm(8), nn.Dropout2d(0.5), linear()), MAPS),
    ],
)
def test_spatial_dropout_without_space(model, inputs):
    assert "DS203" in codes(model, inputs)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (chain(conv(), nn.Dropout2d(0.5), conv()), MAPS),
        (chain(conv(), nn.Dropout2d(0.5), nn.Flatten(), nn.Linear(288, 2)), MAPS),
        (chain(nn.Conv1d(6, 6, 3), nn.Dropout1d(0.5), nn.Linear(6, 2)), SEQUENCES),
        (chain(nn.Conv1d(6, 6, 3), nn.Dropout1d(0.5)), VECTORS),  # one example
        (chain(nn.Embedding(9, 8), Permute(0, 2, 1), nn.Dropout1d(0.5)), torch.ones(4, 6).long()),
        (chain(Permute(0, 2, 1), nn.Dropout1d(0.5), Permute(0, 2, 1), linear()), SEQUENCES),
        (chain(dst.SpatialDropout1d(0.5, channels_last=True), linear()), SEQUENCES),
        (chain(dst.LockedDropout(0.5), nn.GRU(8, 8, batch_first=True)), SEQUENCES),
        (chain(linear(), nn.Dropout(0.5), linear()), SEQUENCES),
        (chain(linear(), nn.Dropout1d(0.0), linear()), VECTORS),
        (chain(nn.ReLU(), nn.Dropout1d(0.5), nn.Tanh()), SEQUENCES),
        (chain(conv(), nn.AdaptiveAvgPool2d(1), nn.Dropout2d(0.5), nn.Flatten(), linear()), MAPS),
        (Net(lambda net, x: net.fc(functional.dropout1d(x, 0.5, False)), fc=linear()), SEQUENCES),
        (chain(dst.DropPath(0.5), linear()), VECTORS),
    ],
)
def test_spatial_dropout_with_space(model, inputs):
    assert "DS203" not in codes(model, inputs)


@pytest.mark.parametrize(
    "model",
    [
        chain(conv(), nn.Dropout(0.5), conv()),
        chain(conv(), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), conv()),
        chain(conv(), nn.GELU(), dst.Dropout(0.5)),
        Net(
            lambda net, x: functional.dropout(functional.conv2d(x, net.w), 0.5, net.training),
            w=nn.Parameter(torch.ones(8, 8, 3, 3)),
        ),
        chain(nn.ConvTranspose2d(8, 8, 2), nn.AlphaDropout(0.5)),
    ],
)
def test_element_wise_dropout_on_maps(model):
    assert "DS204" in codes(model, MAPS)


@pytest.mark.parametrize(
    "model",
    [
        chain(conv(), nn.Dropout2d(0.5), conv()),
        chain(conv(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 2)),
        chain(conv(), nn.AdaptiveAvgPool2d(1), nn.Dropout(0.5), nn.Flatten(), linear()),
        chain(conv(), nn.AvgPool2d(6), nn.Dropout(0.5), nn.Flatten(), linear()),
        chain(conv(1), nn.Dropout(0.5), conv(1)),
        chain(nn.Dropout(0.5), conv()),
        chain(conv(), nn.Dropout(0.0), conv()),
        chain(conv(), dst.DropBlock2d(0.5, block_size=2), conv()),
        chain(conv(), dst.DropPath(0.5), conv()),
        chain(conv(), dst.Dropout(0.5, noise_shape=(None, None, 1, 1)), conv()),
        chain(conv(), nn.Flatten(2), Permute(0, 2, 1), nn.Dropout(0.5), linear()),
    ],
)
def test_no_element_wise_dropout_on_maps(model):
    assert "DS204" not in codes(model, MAPS)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (chain(conv(), nn.Dropout(0.5), nn.Dropout(0.5), conv()), "2"),
        (chain(conv(), nn.Dropout2d(0.5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5)), "4"),
        (chain(conv(), nn.Dropout(0.5), nn.MaxPool2d(2)), "1"),
        (chain(conv(), dst.Dropout(0.5), nn.ReLU(), nn.AdaptiveMaxPool2d(1)), "1"),
        (Net(lambda net, x: functional.dropout(net.drop(x), 0.1), drop=nn.Dropout(0.5)), "dropout"),
        (Net(lambda net, x: functional.max_pool2d(net.drop(x), 2), drop=nn.Dropout(0.5)), "drop"),
    ],
)
def test_dropout_before_dropout_or_pooling(model, site):
    assert ("DS205", site) in found(model, MAPS)


@pytest.mark.parametrize(
    "model",
    [
        chain(conv(), nn.Dropout(0.5), conv(), nn.Dropout(0.5), conv()),
        chain(conv(), nn.Dropout(0.5), nn.Dropout(0.0), conv()),
        chain(conv(), nn.Dropout(0.0), nn.MaxPool2d(2)),
        chain(conv(), nn.Dropout(0.5), dst.DropPath(0.5)),
        chain(conv(), dst.DropPath(0.5), nn.Dropout(0.5)),
        chain(conv(), nn.Dropout2d(0.5), nn.MaxPool2d(2)),  # whole channels: the pool commutes
        chain(conv(), dst.DropBlock2d(0.5, block_size=2), nn.MaxPool2d(2)),
        chain(conv(), nn.MaxPool2d(2), nn.Dropout(0.5)),
        chain(conv(), nn.Dropout(0.5), nn.AvgPool2d(2)),
        chain(conv(), nn.Dropout(0.5), nn.BatchNorm2d(8), nn.Dropout(0.5)),
        Net(lambda net, x: functional.dropout(x + functional.dropout(x, 0.5), 0.5)),
        Net(lambda net, x: functional.dropout(x, 0.5) + functional.dropout(x, 0.5)),
    ],
)
def test_no_dropout_before_dropout_or_pooling(model):
    assert "DS205" not in codes(model, MAPS)


@pytest.mark.parametrize(
    ("model", "high"),
    [
        (chain(nn.Dropout(0.8)), True),
        (nn.LSTM(8, 8, 2, dropout=0.9), True),
        (Net(lambda net, x: functional.dropout(x, 0.99, net.training)), True),
        (chain(nn.Dropout(0.79)), False),
        (chain(nn.Dropout(0.5)), False),
        (nn.LSTM(8, 8, 2, dropout=0.3), False),
        (Net(lambda net, x: functional.dropout(x, 0.99, False)), False),
    ],
)
def test_high_rates(model, high):
    assert ("DS304" in codes(model, SEQUENCES)) is high
