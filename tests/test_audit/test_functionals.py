"""The table of dropout functions against the functions themselves."""

import inspect

import pytest
import torch

import dropseed.torch.functional
from dropseed.audit.reading.functionals import ATTENTION, FUNCTIONALS

SIGNED = {
    **{
        f"torch.nn.functional.{name}": getattr(torch.nn.functional, name)
        for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")
    },
    "torch.nn.functional.alpha_dropout": torch.nn.functional.alpha_dropout,
    "torch.nn.functional.feature_alpha_dropout": torch.nn.functional.feature_alpha_dropout,
    "torch.nn.functional.multi_head_attention_forward": (
        torch.nn.functional.multi_head_attention_forward
    ),
    **{
        name: getattr(dropseed.torch.functional, name.rpartition(".")[2])
        for name in FUNCTIONALS
        if name.startswith("dropseed.")
    },
}


@pytest.mark.parametrize("name", SIGNED)
def test_arguments_stand_where_the_table_says(name):
    function = FUNCTIONALS[name]
    parameters = inspect.signature(SIGNED[name]).parameters
    names = list(parameters)
    assert names[function.rate] == function.rate_name
    assert names[function.switch] == function.switch_name
    assert parameters[function.switch_name].default is function.default


@pytest.mark.parametrize("name", [name for name in FUNCTIONALS if name.startswith("torch.")])
def test_torch_has_every_function(name):
    assert callable(eval(name))


def test_torchs_own_must_be_told():
    x = torch.ones(2, 2)
    for name in ("dropout", "alpha_dropout"):
        with pytest.raises(TypeError):
            getattr(torch, name)(x, 0.5)
        assert torch.equal(getattr(torch, name)(x, 0.5, train=False), x)
        assert FUNCTIONALS[f"torch.{name}"].default is None


def test_attention_takes_its_rate_by_position():
    position, name = ATTENTION["torch.nn.functional.scaled_dot_product_attention"]
    q = torch.ones(1, 1, 2, 2)
    rates = [None] * (position - 3) + [1.0]
    attend = torch.nn.functional.scaled_dot_product_attention
    assert attend(q, q, q, *rates).abs().sum() == 0
    assert attend(q, q, q, **{name: 1.0}).abs().sum() == 0
