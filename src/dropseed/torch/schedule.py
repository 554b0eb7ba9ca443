"""Rates that change in training: `set_rate` writes a step's rate into the layers of a model.

A changing Python number would compile a model anew. So a scheduled layer's `p` is a 0-d float64
tensor that later steps write in place: compiled code and captured CUDA graphs see the new value.
It is no buffer: it isn't saved, nor rounded by `model.half()`, nor broadcast between ranks.
"""

from __future__ import annotations

import reprlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.schedule import Schedule, rate_at
from dropseed.torch.keyed import named_layers


def set_rate(
    model: nn.Module,
    schedule: Schedule | float | Mapping[str, Schedule | float | None] | None,
    step: int = 0,
    sites: Collection[str] | None = None,
) -> int:
    """Give the dropseed layers of a model a schedule's rate, or put their own rates back.

    Called once a step, before the forward pass. The rates are a function of the schedule and the
    step alone, so a resumed run goes on with the right ones. A compiled model compiles once for
    all of them. A write between a forward pass and its backward changes neither, except that
    activation checkpointing, whose backward runs the forward again, sees the new rate.

    A layer's `p` is a tensor from the first call on, on the device of the model's parameters, and
    prints as a number. As with any tensor rate, a layer without a key draws its seed at rate 0 too.
    A layer whose output's shape depends on its rate (`tensor_rate` False) gets a number instead.

    Args:
        model: any module, also one that is compiled or wrapped for data parallelism. Its layers
            are those of dropseed that have a rate `p`.
        schedule: a function from the step to a rate in [0, 1], for instance
            `dropseed.schedule.Linear`; or a rate; or None to put the layers' own rates back. Or a
            mapping from qualified names, without wrappers' prefixes, to such values; the layers
            that it does not name are left alone.
        step: integer >= 0.
        sites: the qualified names of the layers to set; by default all.

    Returns:
        The number of layers set.

    Raises:
        TypeError: `step` is no integer, `schedule` gives no number, or `sites` is a string.
        ValueError: `step` is negative, `schedule` leaves [0, 1], a name is that of no layer with a
            rate, or `sites` comes with a mapping. No layer is changed then.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed.mask.schedule import Linear
        >>> model = nn.Sequential(nn.Linear(4, 4), dst.Dropout(0.5))
        >>> set_rate(model, Linear(0, 0.2, steps=1000), step=500)
        1
        >>> model[1]
        Dropout(p=0.1, inplace=False)
        >>> set_rate(model, None)
        1
        >>> model[1]
        Dropout(p=0.5, inplace=False)
    """
    layers = [(name, layer) for name, layer in named_layers(model) if "p" in vars(layer)]
    rates = _rates(schedule, step, sites, {name for name, _ in layers})
    layers = [(name, layer) for name, layer in layers if name in rates]
    device = next((p.device for p in model.parameters()), None)
    with torch.inference_mode(False):  # training can't write a tensor made in inference
        for name, layer in layers:
            rate = rates[name]
            if rate is None:
                _put_back(layer)
            else:
                _write(layer, rate, device)
    return len(layers)


def _rates(schedule: Any, step: Any, sites: Any, names: set[str]) -> dict[str, float | None]:
    """The rate of each layer to set, by name; everything that can be wrong is found here."""

    def rate(schedule: Any) -> float | None:
        return None if schedule is None else rate_at(schedule, step)

    if isinstance(sites, str):
        raise InvalidTypeError(f"`sites` must be a collection of names; got the string {sites!r}.")
    if not isinstance(schedule, Mapping):
        rates: dict[str, float | None]
        rates = dict.fromkeys(names if sites is None else sites, rate(schedule))
    elif sites is None:
        rates = {name: rate(one) for name, one in schedule.items()}
    else:
        raise InvalidValueError(
            f"`sites` must be None where `schedule` is a mapping, which names its layers; "
            f"got {sites!r}."
        )
    unknown = [name for name in rates if name not in names]
    if unknown:
        which = "sites" if sites is not None else "schedule"
        raise InvalidValueError(
            f"`{which}` must name dropseed layers that have a rate; got {unknown!r}. "
            f"The model has {reprlib.repr(sorted(names))}."
        )
    return rates


def _write(layer: Any, rate: float, device: torch.device | None) -> None:
    ours, own_rate = _scheduled(layer)
    if not _holds(layer, ours):  # the first call, or somebody has assigned another rate since
        own_rate = layer.p
    elif isinstance(ours, Tensor) and device in (None, ours.device):
        ours.fill_(rate)
        return
    as_tensor = getattr(layer, "tensor_rate", True)
    layer.p = torch.tensor(rate, dtype=torch.float64, device=device) if as_tensor else rate
    layer._scheduled = layer.p, own_rate


def _put_back(layer: Any) -> None:
    ours, own_rate = _scheduled(layer)
    if _holds(layer, ours):
        layer.p = own_rate
    vars(layer).pop("_scheduled", None)


def _scheduled(layer: Any) -> Any:
    """The rate that `set_rate` gave a layer, and the layer's own."""
    return vars(layer).get("_scheduled", (None, None))


def _holds(layer: Any, ours: Any) -> bool:
    if isinstance(layer.p, Tensor) or isinstance(ours, Tensor):
        return layer.p is ours
    return bool(layer.p == ours)  # a number is another object in a copy
