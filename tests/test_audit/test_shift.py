"""The variance shift at batch normalisations."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import dropseed.torch as dst
from dropseed.audit.running.model import check_model
from dropseed.audit.running.shift import Norm, shifted
from test_audit.nets import Net, codes, found


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


VECTORS = normal(512, 16)
MAPS = normal(32, 4, 8, 8)


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_the_ratio_is_the_fraction_kept(rate):
    """The variance of values around 0 grows by 1 / (1 - rate) when a fraction is dropped."""
    (norm,) = check_model(nn.Sequential(nn.Dropout(rate), nn.BatchNorm1d(16)), VECTORS).norms
    assert norm.name == "1"
    assert norm.fed_by == ("0",)
    assert norm.ratio == pytest.approx(1 - rate, abs=0.02)
    assert 0 < norm.error < 0.01


def test_the_ratio_of_values_that_are_not_around_zero():
    """The noise of a dropout is in the mean square, here 1 + 9, and not in the mean."""
    (norm,) = check_model(nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(16)), VECTORS + 3).norms
    assert norm.ratio == pytest.approx(1 / (10 / 0.8 - 9), rel=0.03)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(16)), VECTORS),
        (nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16), nn.BatchNorm1d(16)), VECTORS + 1),
        (
            nn.Sequential(
                nn.Conv2d(4, 8, 3),
                nn.ReLU(),
                nn.Dropout(0.5),
                nn.Conv2d(8, 8, 3),
                nn.BatchNorm2d(8),
            ),
            MAPS,
        ),
        (nn.Sequential(dst.Dropout2d(0.5), nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)), MAPS),
        (
            Net(
                lambda net, x: net.norm(functional.dropout(x, 0.5, net.training)),
                norm=nn.BatchNorm1d(16),
            ),
            VECTORS,
        ),
        (
            Net(
                lambda net, x: functional.batch_norm(net.drop(x), x.mean(0), x.var(0)),
                drop=nn.Dropout(0.5),
            ),
            VECTORS,
        ),
        (
            nn.Sequential(
                nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 16), nn.BatchNorm1d(16)
            ),
            VECTORS + 1,
        ),
    ],
)
def test_a_large_shift(model, inputs):
    assert "DS504" in codes(model, inputs)


class Noise(nn.Module):
    def forward(self, x):
        return x + 3 * torch.randn_like(x) if self.training else x


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (nn.Sequential(nn.BatchNorm1d(16), nn.Dropout(0.5)), VECTORS),
        (nn.Sequential(nn.Dropout(0.0), nn.BatchNorm1d(16)), VECTORS),
        (nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(16)), VECTORS),
        (nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(16), nn.BatchNorm1d(16)), VECTORS),
        (nn.Sequential(nn.Dropout(0.5), nn.LayerNorm(16)), VECTORS),
        (nn.Sequential(Noise(), nn.BatchNorm1d(16)), VECTORS),  # no dropout is to blame
        (
            Net(
                lambda net, x: net.norm(x + 0.1 * net.drop(x)),
                norm=nn.BatchNorm1d(16),
                drop=nn.Dropout(0.5),
            ),
            VECTORS,
        ),
        (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(16)), VECTORS[:1]),
        (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(16)), torch.zeros(8, 16)),
        (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(16)), torch.full((8, 16), torch.inf)),
        (nn.Sequential(nn.AlphaDropout(0.3), nn.BatchNorm1d(16)), VECTORS),
        (nn.Sequential(nn.Dropout(0.1), nn.BatchNorm1d(16)), VECTORS[:8]),
    ],
)
def test_no_large_shift(model, inputs):
    assert "DS504" not in codes(model, inputs)


@pytest.mark.parametrize(
    ("ratio", "error", "fed_by", "reported"),
    [
        (0.7, 0.05, ("drop",), True),
        (1.4, 0.05, ("drop",), True),
        (0.7, 0.15, ("drop",), False),  # within chance
        (0.85, 0.01, ("drop",), False),
        (1.2, 0.01, ("drop",), False),
        (0.7, 0.05, (), False),
    ],
)
def test_when_a_shift_is_reported(ratio, error, fed_by, reported):
    assert (shifted(Norm("norm", ratio, error, fed_by)) is not None) is reported


def test_batch_statistics_do_not_hide_a_shift_further_up():
    """A second normalisation would see none if the first divided by the batch's own variance."""
    model = nn.Sequential(
        nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16)
    )
    first, second = check_model(model, VECTORS).norms
    assert second.ratio == pytest.approx(first.ratio, abs=0.05)
    assert second.fed_by == ()


def test_the_finding_is_the_norms_and_the_sites():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16), nn.BatchNorm1d(16))
    report = check_model(model, VECTORS + 1)
    assert found(model, VECTORS + 1) == {("DS504", "2")}
    assert [note.code for note in report.sites[0].findings] == ["DS504"]
    assert "`0`" in report.findings[0].message


def test_each_call_of_a_norm_is_measured():
    norm = nn.BatchNorm1d(16)
    model = Net(lambda net, x: net.norm(net.drop(net.norm(x))), norm=norm, drop=nn.Dropout(0.5))
    assert [one.fed_by for one in check_model(model, VECTORS).norms] == [(), ("drop",)]
