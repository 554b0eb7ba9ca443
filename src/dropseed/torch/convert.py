"""Dropseed's layers in the places of a model's own dropout layers, and back.

Everything is checked and built before the first layer is replaced, and whatever is left alone is
reported with the reason.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from dropseed.conversion import NotReplaced, Replaced, Report
from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Rate
from dropseed.mask.key import integer, site_number
from dropseed.torch.base import RateLayer
from dropseed.torch.calls import functional_calls
from dropseed.torch.counterparts import (
    KINDS,
    counterpart,
    rate_name,
    reader,
    replacement,
    shown,
)
from dropseed.torch.keyed import KeyedLayer, Place, check_sites, named_layers, places, site_of
from dropseed.torch.weights import WeightDrop, WeightDrops, attach, detach

_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def convert(
    model: nn.Module,
    kind: str | None = None,
    rate: float | None = None,
    sites: Mapping[str, int] | None = None,
) -> Report:
    """Replace the dropout layers of a model, in place, by dropseed's.

    Known are the dropout modules of torch.nn, `DropPath` of timm, MONAI and transformers,
    `StochasticDepth` of torchvision, and subclasses that change neither the forward pass nor the
    modes. A layer keeps its mode, its hooks and, unless told otherwise, its kind and settings; the
    keys of the state dict stay as they are. Its site, the number of its qualified name without
    wrappers' prefixes, is fixed, so that it keeps its masks under `set_key` wherever the model is
    put later. A layer in two places is replaced by one layer, with the first place's site.

    A compiled model, or one wrapped for data parallelism, is converted inside its wrapper. What is
    dropseed's already is left alone, so converting twice changes nothing.

    Args:
        model: any module that isn't itself a dropout layer.
        kind: None to keep each layer's kind; or "dropout", "spatial", "alpha", "feature_alpha",
            "gaussian", "locked", "path" or "dropconnect" for all. For "spatial" the dimensions are
            those of a `Dropout1d` to `Dropout3d`, or those of the convolution that the layer
            follows under its parent. "locked" takes `batch_first` from a recurrent or attention
            layer beside it, True if there is none. "dropconnect" drops the weight of the linear
            layer or convolution that is registered after the layer, under its parent, with nothing
            in between that has parameters: as `drop_weights` does, at the layer's rate. In the
            layer's own place a `WeightDrop` passes on its input.
        rate: the rate of every replaced layer, in [0, 1]; None keeps each one's own.
        sites: site numbers, integers in [0, 2**32), of layers given by name, where the names' own
            numbers won't do.

    Returns:
        What was replaced, and what was not and why: also rates that are numbers inside a layer,
        and calls of functional dropout that the code of the model's modules names.

    Raises:
        TypeError: `model` is no module, `rate` no number, or `sites` no mapping to integers.
        ValueError: `kind` is unknown, `rate` or a number in `sites` out of range, a name in `sites`
            that of no dropout layer, two layers have the same site (the message shows the `sites`
            that settle it), or the model is itself a dropout layer. The model is unchanged then.

    Example:
        >>> import dropseed.torch as dst
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(0.1))
        >>> report = convert(model, rate=0.2)
        >>> model[2]
        Dropout(p=0.2, inplace=False)
        >>> dst.set_key(model, seed=1, step=0)
        1
    """
    _check_model(model)
    if kind is not None and kind not in KINDS:
        known = ", ".join(f'"{name}"' for name in KINDS)
        raise InvalidValueError(f"`kind` must be None or one of {known}; got {kind!r}.")
    new_rate = None if rate is None else Rate(rate).value
    given = _checked_sites(sites)
    calls: Callable[[type], list[tuple[str, str]]] = cache(functional_calls)
    swaps: list[tuple[list[Place], RateLayer]] = []
    readers: dict[nn.Module, WeightDrop] = {}
    left: list[NotReplaced] = []
    for found in _grouped(model):
        name, module, parent, _ = found[0]
        if isinstance(module, KeyedLayer) or isinstance(parent, torch.jit.ScriptModule):
            continue
        new = _claimed(found, _replaceable(found, replacement(found, kind, new_rate)), readers)
        if isinstance(new, RateLayer):
            swaps.append((found, new))
        elif new is not None:
            left.append(NotReplaced(name, shown(type(module)), new))
        else:
            left += [NotReplaced(name, *call) for call in calls(type(module))]

    before = list(named_layers(model))
    named = [(found[0].name, site_number(found[0].name)) for found, _ in swaps]
    named += [(name, site_of(name, layer)) for name, layer in before]
    unknown = [name for name in given if name not in dict(named)]
    if unknown:
        raise InvalidValueError(
            f"`sites` must name dropout layers that are converted; got {unknown!r}. "
            f"The model has {reprlib.repr(sorted(dict(named)))}."
        )
    named = [(name, given.get(name, site)) for name, site in named]
    check_sites(named, given)

    for name, layer in before:
        if name in given:
            layer.site = given[name]
    for target, drop in readers.items():
        attach(target, "weight", drop)
    numbers, replaced = dict(named), []
    for found, new in swaps:
        name, old, _, _ = found[0]
        rate_now = float(new.p)
        new.site, new._original = numbers[name], (old, rate_now)
        _swap(found, new)
        row = Replaced(name, shown(type(old)), shown(type(new)), rate_now, new.site)
        replaced.append(row)
    return Report(tuple(replaced), tuple(left), tuple(_notes(len(swaps), len(before))))


def revert(model: nn.Module) -> Report:
    """Put a model's own dropout layers back, in place, where dropseed's are.

    What `convert` replaced comes back as the very module it was, with its settings, the mode and
    the hooks of now, and the rate of now where that was changed after the conversion. A dropseed
    layer that was there before is replaced by its counterpart in torch.nn if it has one. What
    `drop_weights` put there stays.

    Args:
        model: any module that isn't itself a dropout layer, compiled and wrapped ones too.

    Returns:
        What was put back, and which dropseed layers stay, and why.

    Raises:
        TypeError: `model` is no module.
        ValueError: the model is itself a dropout layer. It is unchanged then.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
        >>> report = convert(model, kind="gaussian", rate=0.2)
        >>> report = revert(model)
        >>> model[1]
        Dropout(p=0.1, inplace=False)
    """
    _check_model(model)
    swaps: list[tuple[list[Place], Any, nn.Module]] = []
    left: list[NotReplaced] = []
    for found in _grouped(model):
        name, module, _, _ = found[0]
        if not isinstance(module, KeyedLayer):
            continue
        former = module._original[0] if module._original else counterpart(module)
        old = _replaceable(found, former)
        if isinstance(old, nn.Module):
            swaps.append((found, module, old))
        else:
            left.append(NotReplaced(name, shown(type(module)), old))
    detach(model, [module for _, module, _ in swaps])
    replaced = []
    for found, module, old in swaps:
        attribute = rate_name(old)
        if module._original and module.p != module._original[1]:
            setattr(old, attribute, float(module.p))  # a schedule's rate is a tensor
        name = found[0].name
        _swap(found, old)
        rate = getattr(old, attribute)
        row = Replaced(name, shown(type(module)), shown(type(old)), rate, site_of(name, module))
        replaced.append(row)
    notes = () if swaps or left else ("there is nothing to revert: no layer is dropseed's.",)
    return Report(tuple(replaced), tuple(left), notes)


def sites(model: nn.Module) -> dict[str, int]:
    """The sites of a model's dropseed layers: what tells their masks apart under one seed.

    Args:
        model: any module, compiled and wrapped ones too.

    Returns:
        The site number of each layer by its qualified name, without wrappers' prefixes, in the
        order of the model. A layer in two places has the first one's name.

    Raises:
        TypeError: `model` is no module.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
        >>> report = convert(model)
        >>> sites(model)
        {'1': 2212294583}
    """
    _check_model(model)
    return {name: site_of(name, layer) for name, layer in named_layers(model)}


def _check_model(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")


def _checked_sites(sites: Any) -> dict[str, int]:
    if not isinstance(sites, Mapping | None):
        raise InvalidTypeError(f"`sites` must map names to numbers; got {sites!r}.")
    return {
        name: integer(site, f"sites[{name!r}]", 0, 2**32) for name, site in (sites or {}).items()
    }


def _grouped(model: nn.Module) -> list[list[Place]]:
    """The places of each module, in the order of the first ones."""
    groups: dict[nn.Module, list[Place]] = {}
    for place in places(model):
        groups.setdefault(place.module, []).append(place)
    return list(groups.values())


def _replaceable(found: list[Place], new: Any) -> Any:
    """The new layer, unless nothing would see that it was put in the old one's place."""
    if not isinstance(new, nn.Module):
        return new
    for place in found:
        compiled = place.child == "_orig_mod"  # torch.compile has taken its method
        if not place.name and (compiled or place.parent is None):
            raise InvalidValueError(
                f"`model` is itself a dropout layer, {shown(type(place.module))}, and can't be "
                f"replaced in place. Use {shown(type(new))} in its stead, or put it into a "
                "container first: nn.Sequential(model)."
            )
        if compiled:
            return "torch.compile has compiled it by itself; convert the model before that"
    return new


def _claimed(found: list[Place], new: Any, readers: dict[nn.Module, WeightDrop]) -> Any:
    """The new layer, unless it would drop a weight that an earlier one drops."""
    if not isinstance(new, WeightDrop):
        return new
    layer: Any = reader(found)
    if readers.setdefault(layer, new) is new:
        return new
    return f"a dropout layer before it drops the weight of the {shown(type(layer))} already"


def _swap(found: list[Place], new: nn.Module) -> None:
    old = found[0].module
    new.training = old.training
    for name in _HOOKS:  # the very dicts, so that handles given out before still remove hooks
        vars(new)[name] = vars(old)[name]
    for place in found:
        if place.parent is not None and not isinstance(place.parent, WeightDrops):
            place.parent._modules[place.child] = new


def _notes(converted: int, before: int) -> Iterator[str]:
    if before:
        count = f"{before} layer{'s' * (before > 1)}" if converted else "all layers"
        yield f"dropseed's already, and left as they are: {count}. To change them, revert first."
    elif not converted:
        yield "there is nothing to convert: no dropout layer was found that can be replaced."
