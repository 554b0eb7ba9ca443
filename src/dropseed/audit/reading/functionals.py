"""The dropout functions of the frameworks: where their rate and their switch stand."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import NamedTuple

from dropseed.audit.reading.facts import DROPS
from dropseed.audit.reading.file import File


class Functional(NamedTuple):
    """A function that drops.

    Attributes:
        rate: the position of the rate.
        rate_name: its keyword.
        switch: the position of the switch between training and evaluation; None if it has none.
        switch_name: its keyword.
        default: whether it drops when the switch is not given; None if it must be given.
    """

    rate: int
    rate_name: str
    switch: int | None
    switch_name: str = "training"
    default: bool | None = True


_RATES = {"p", "prob", "rate", "drop_prob", "drop_rate", "dropout", "dropout_rate", "dropout_prob"}
_AFTER_RATE = Functional(1, "p", 2)
_REQUIRED = Functional(1, "p", 2, "train", None)
_NO_SWITCH = Functional(1, "p", None)

FUNCTIONALS: dict[str, Functional] = {
    "torch.nn.functional.dropout": _AFTER_RATE,
    "torch.nn.functional.dropout1d": _AFTER_RATE,
    "torch.nn.functional.dropout2d": _AFTER_RATE,
    "torch.nn.functional.dropout3d": _AFTER_RATE,
    "torch.nn.functional.alpha_dropout": _AFTER_RATE._replace(default=False),
    "torch.nn.functional.feature_alpha_dropout": _AFTER_RATE._replace(default=False),
    "torch.nn.functional.multi_head_attention_forward": Functional(10, "dropout_p", 13),
    **{
        f"torch.{name}{end}": _REQUIRED
        for name in ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
        for end in ("", "_")
    },
    "torchvision.ops.stochastic_depth": Functional(1, "p", 3),
    "torchvision.ops.drop_block2d": Functional(1, "p", 5),
    "torchvision.ops.drop_block3d": Functional(1, "p", 5),
    **{
        f"{module}.{name}": Functional(1, "drop_prob", 2, default=False)
        for module in ("timm.layers", "timm.models.layers")
        for name in ("drop_path", "drop.drop_path")
    },
    "mmcv.cnn.bricks.drop.drop_path": Functional(1, "drop_prob", 2, default=False),
    **{
        f"dropseed.torch.functional.{name}": Functional(1, "p", switch)
        for switch, names in (
            (2, "alpha_dropout dropout dropout1d dropout2d dropout3d dropout_pair drop_path"),
            (2, "feature_alpha_dropout gaussian_dropout locked_dropout token_dropout"),
            (2, "spatial_dropout1d spatial_dropout2d spatial_dropout3d"),
            (3, "drop_block1d drop_block2d drop_block3d"),
        )
        for name in names.split()
    },
    "dropseed.torch.functional.embedding_dropout": Functional(2, "p", 3),
    "dropseed.torch.functional.multi_sample_dropout": Functional(2, "p", 3),
    "dropseed.torch.functional.recurrent_dropout": Functional(2, "p", 3),
    "dropseed.torch.functional.zoneout": Functional(2, "p", 3),
    "dropseed.torch.functional.drop_connect_linear": Functional(3, "p", 4),
    "dropseed.torch.functional.drop_connect_conv": Functional(7, "p", 8),
    "paddle.nn.functional.dropout": Functional(1, "p", 3),
    "paddle.nn.functional.dropout2d": _AFTER_RATE,
    "paddle.nn.functional.dropout3d": _AFTER_RATE,
    "paddle.nn.functional.alpha_dropout": _AFTER_RATE,
    "mindspore.ops.dropout": _AFTER_RATE,
    "haiku.dropout": _NO_SWITCH._replace(rate_name="rate"),
    "tensorflow.layers.dropout": Functional(1, "rate", 4, default=False),
    "tensorflow.nn.dropout": _NO_SWITCH._replace(rate_name="rate"),
    "keras.random.dropout": _NO_SWITCH._replace(rate_name="rate"),
    "keras.backend.dropout": _NO_SWITCH._replace(rate_name="level"),
}
"""Canonical name -> its arguments."""

ATTENTION: dict[str, tuple[int, str]] = {
    "torch.nn.functional.scaled_dot_product_attention": (4, "dropout_p"),
    **{
        f"flash_attn.flash_attn_{name}": (position, "dropout_p")
        for name, position in (
            ("func", 3),
            ("qkvpacked_func", 1),
            ("kvpacked_func", 2),
            ("varlen_func", 7),
            ("varlen_qkvpacked_func", 3),
            ("varlen_kvpacked_func", 6),
            ("unpadded_func", 7),
            ("unpadded_qkvpacked_func", 3),
            ("unpadded_kvpacked_func", 6),
            ("unpadded_qkvpacked_split_func", 5),
        )
    },
    "xformers.ops.memory_efficient_attention": (4, "p"),
    "xformers.ops.fmha.memory_efficient_attention": (4, "p"),
}
"""The attention functions that have a rate and no switch -> position and keyword of the rate."""


def functional_calls(file: File) -> Iterator[tuple[ast.Call, str, Functional]]:
    """Each call of a dropout function: a framework's, or one that the scanned files define.

    Of these files' own those count that are named for dropout and have a switch with a default.

    Args:
        file: the file.

    Returns:
        An iterator of the call, the function's canonical name, and its arguments.
    """
    known = {name: FUNCTIONALS.get(name) or _own(name, file) for name in file.calls_by_name}
    functions = {name: function for name, function in known.items() if function is not None}
    for call, name in file.calls_to(*functions):
        if file.function_of(call) is not None:
            yield call, name, functions[name]


def _own(name: str, file: File) -> Functional | None:
    last = name.rpartition(".")[2]
    module = file.project.module_of(name) if DROPS.search(last) else None
    if module is None or last not in module.dropouts or name != f"{module.name}.{last}":
        return None
    names, switch, default = module.dropouts[last]
    rate = next((parameter for parameter in names if parameter in _RATES), "")
    position = names.index(rate) if rate else len(names)
    at = names.index(switch) if switch in names else len(names)
    return Functional(position, rate, at, switch, default)
