"""The layers of a PyTorch model that drop, found without running it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.asked import DROPS

if TYPE_CHECKING:
    from torch import nn

_WRAPPER = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.?")
_RATES = ("p", "drop_prob", "drop_rate", "dropout_p", "dropout_prob", "dropout", "rate", "prob")


@dataclass(frozen=True, slots=True)
class Site:
    """A layer that drops.

    Attributes:
        name: its qualified name in the model, without what wrappers add (`torch.compile`, FSDP,
            checkpointing). The model itself goes by its class.
        kind: its class.
        rate: the fraction it drops in training; None if that can't be read.
        training: whether it is in training mode.

    Example:
        >>> print(Site("head.drop", "Dropout", 0.5, True))
        head.drop: Dropout, p=0.5
    """

    name: str
    kind: str
    rate: float | None
    training: bool

    def __str__(self) -> str:
        rate = "unknown" if self.rate is None else f"{self.rate:g}"
        name = "" if self.name == self.kind else f"{self.name}: "
        return f"{name}{self.kind}, p={rate}"


def sites(model: nn.Module) -> list[Site]:
    """The layers of a model that drop in training, in the order of its modules.

    These are torch's dropout layers, recurrent layers of several layers, and attention; dropseed's;
    and layers without children whose class is named for dropping and which have a rate. Functions
    that a `forward` calls are no layers.

    Args:
        model: the model.

    Returns:
        One `Site` for each, also where the rate is 0.

    Example:
        >>> from torch import nn
        >>> sites(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval())
        [Site(name='1', kind='Dropout', rate=0.1, training=False)]
    """
    return [
        Site(
            _WRAPPER.sub("", name) or kind_of(module),
            kind_of(module),
            rate_of(module),
            module.training,
        )
        for name, module in model.named_modules()
        if is_dropout(module)
    ]


def is_dropout(module: nn.Module) -> bool:
    """Whether a module drops by itself, not only by what it contains.

    Example:
        >>> from torch import nn
        >>> [is_dropout(one) for one in (nn.Dropout2d(0.1), nn.LSTM(2, 2), nn.Linear(2, 2))]
        [True, False, False]
    """
    from torch import nn
    from torch.nn.modules.dropout import _DropoutNd

    if isinstance(module, nn.RNNBase):
        return module.num_layers > 1
    if isinstance(module, _DropoutNd | nn.MultiheadAttention):
        return True
    keyed = getattr(sys.modules.get("dropseed.torch.keyed"), "KeyedLayer", ())
    if isinstance(module, keyed):
        return hasattr(module, "p")
    named_so = DROPS.search(kind_of(module)) is not None
    return named_so and not any(module.children()) and rate_of(module) is not None


def rate_of(module: nn.Module) -> float | None:
    """The rate of a layer that drops; None if it can't be read.

    Example:
        >>> from torch import nn
        >>> rate_of(nn.MultiheadAttention(4, 2, dropout=0.1))
        0.1
    """
    values = (getattr(module, name, None) for name in _RATES)
    return next((rate for value in values if (rate := _number(value)) is not None), None)


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, also of a scripted one's.

    Example:
        >>> from torch import nn
        >>> kind_of(nn.Dropout())
        'Dropout'
    """
    return str(getattr(module, "original_name", type(module).__name__))


def _number(value: Any) -> float | None:
    import torch

    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return float(value)
    return float(value) if isinstance(value, int | float) else None
