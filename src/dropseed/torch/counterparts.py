"""Which of dropseed's layers stands for which of torch's, timm's and others', and back.

A layer is known by its class, never by what it computes. What can't be replaced comes as a string:
the reason.
"""

from __future__ import annotations

import re
from itertools import dropwhile, takewhile
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from dropseed.errors import DropseedError
from dropseed.mask import Rate
from dropseed.torch import layers
from dropseed.torch.base import RateLayer
from dropseed.torch.keyed import KeyedLayer, Place
from dropseed.torch.paths import DropPath
from dropseed.torch.weights import WeightDrop, why_not

KINDS: dict[str, type[RateLayer]] = {
    "dropout": layers.Dropout,
    "spatial": layers.SpatialDropout2d,  # or that of another rank
    "alpha": layers.AlphaDropout,
    "feature_alpha": layers.FeatureAlphaDropout,
    "gaussian": layers.GaussianDropout,
    "locked": layers.LockedDropout,
    "path": DropPath,
    "dropconnect": WeightDrop,
}
_CHANNELS = {nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}
_SPATIAL = {1: layers.SpatialDropout1d, 2: layers.SpatialDropout2d, 3: layers.SpatialDropout3d}
_OURS: dict[Any, type[RateLayer]] = {
    nn.Dropout: layers.Dropout,
    nn.Dropout1d: layers.Dropout1d,
    nn.Dropout2d: layers.Dropout2d,
    nn.Dropout3d: layers.Dropout3d,
    nn.AlphaDropout: layers.AlphaDropout,
    nn.FeatureAlphaDropout: layers.FeatureAlphaDropout,
}
_THEIRS: dict[type, Any] = {ours: theirs for theirs, ours in _OURS.items()}
_THEIRS |= {_SPATIAL[number]: theirs for theirs, number in _CHANNELS.items()}
_PATHS = re.compile(
    r"(timm|monai)\..*\.DropPath|torchvision\..*\.StochasticDepth|transformers\..*\.\w*DropPath"
)
# What decides the shape of everything behind it.
_SHAPERS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Flatten, nn.Embedding, nn.EmbeddingBag, nn.RNNBase)
_ALPHA = (nn.AlphaDropout, nn.FeatureAlphaDropout)
_USUAL = {"scaling": "inverted", "noise_shape": None, "channels_last": False}


def replacement(found: list[Place], kind: str | None, rate: float | None) -> Any:
    """The new layer for a module; or why there is none; or None for what is no dropout layer."""
    module = found[0].module
    known = _known(module)
    if known is None:
        return _why_unknown(module)
    for name in ("forward", "__call__", "train", "eval"):
        owner = next(cls for cls in type(module).__mro__ if name in vars(cls))
        if name in vars(module) or not issubclass(known, owner):
            quantized = " of a quantized model" if owner.__module__.startswith("torch.ao.") else ""
            return f"its own `{name}`{quantized} is not that of {shown(known)}"
    if module._parameters or module._buffers or module._modules:
        return "it holds parameters, buffers or modules"
    if rate is None:
        attribute = rate_name(module)
        value = getattr(module, attribute, None)
        try:
            rate = Rate(value).value
        except DropseedError:
            return f"its `{attribute}` is {value!r}, not a number in [0, 1]"
    return _built(found, known, kind, rate)


def _why_unknown(module: nn.Module) -> str | None:
    """Why a module that drops, as far as its class tells, is left alone."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript has compiled it; convert the model before that"
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        rate = module.dropout
        return f"its rate, {rate:g}, is a number inside it, not a module" if rate else None
    named = "drop" in type(module).__name__.lower() and not module._modules
    return "its class is not a known one" if named or isinstance(module, _DropoutNd) else None


def _built(found: list[Place], known: type, kind: str | None, rate: float) -> RateLayer | str:
    """The new layer, with the settings of the old one that its kind has; or why it can't be."""
    module = found[0].module
    cls = KINDS[kind] if kind else _OURS.get(known, DropPath)
    # Torch's alpha dropouts take `inplace` and never overwrite anything.
    inplace = getattr(module, "inplace", False) and known not in _ALPHA
    if kind in ("spatial", "locked"):
        number = _dimensions(found, known)
        if kind == "spatial":
            return number if isinstance(number, str) else _SPATIAL[number](rate, inplace)
        if not isinstance(number, str):
            return "its input is (N, C, *), not (N, T, D)"
        return layers.LockedDropout(rate, inplace, batch_first=_batch_first(found[0]))
    if cls is WeightDrop:
        layer = reader(found)
        return layer if isinstance(layer, str) else WeightDrop(rate)
    if cls is DropPath and known not in _OURS:
        mode = getattr(module, "mode", "row")
        if mode not in ("row", "batch"):
            return f"its `mode` is {mode!r}, neither 'row' nor 'batch'"
        scaling = "inverted" if getattr(module, "scale_by_keep", True) else "none"
        return DropPath(rate, scaling=scaling, mode="sample" if mode == "row" else mode)
    return cls(rate, inplace)


def _dimensions(found: list[Place], known: type) -> int | str:
    """How many dimensions come after the channels of a layer's input; or why that isn't known."""
    if known in _CHANNELS:
        return _CHANNELS[known]
    numbers = set()
    for place in found:
        before = _shaper_before(place)
        if before is None:
            return "no convolution comes before it under its parent"
        if not isinstance(before, _ConvNd):
            return f"it follows {shown(type(before))}, not a convolution"
        numbers.add(len(before.kernel_size))
    return numbers.pop() if len(numbers) == 1 else "its places follow different convolutions"


def _shaper_before(place: Place) -> nn.Module | None:
    """The nearest module registered before a place, under its parent, that sets the shape."""
    beside = {} if place.parent is None else place.parent._modules
    before = takewhile(lambda name: name != place.child, beside)
    for child in reversed([beside[name] for name in before]):
        for module in reversed([] if child is None else list(child.modules())):
            if isinstance(module, _SHAPERS):
                return module
    return None


def reader(found: list[Place]) -> nn.Module | str:
    """The layer after a dropout layer whose weight can be dropped instead; or why there is none."""
    layers = {_weighted_after(place) for place in found}
    layer = layers.pop()
    if layers:
        return "its places are followed by different layers"
    if layer is None:
        return "nothing with weights follows it under its parent"
    what = shown(type(layer))
    if not isinstance(layer, nn.Linear | _ConvNd):
        return f"{what} follows it, neither a linear layer nor a convolution"
    reason = why_not(layer, "weight")
    return layer if reason is None else f"the weight of the {what} that follows it {reason}"


def _weighted_after(place: Place) -> nn.Module | None:
    """The nearest module with parameters that is registered after a place, under its parent."""
    beside = {} if place.parent is None else place.parent._modules
    after = list(dropwhile(lambda name: name != place.child, beside))[1:]
    modules = [beside[name] for name in after]
    return next((m for m in modules if m is not None and any(True for _ in m.parameters())), None)


def _batch_first(place: Place) -> bool:
    beside = () if place.parent is None else place.parent.children()
    return next((bool(m.batch_first) for m in beside if hasattr(m, "batch_first")), True)


def counterpart(module: KeyedLayer) -> nn.Module | str:
    """A torch.nn layer that does what a dropseed layer does; or why there is none."""
    if isinstance(module, WeightDrop):
        return "it drops a weight, and dropseed.torch.remove takes it away"
    cls = _THEIRS.get(type(module))
    if cls is None or not isinstance(module, RateLayer):
        return "torch.nn has no such layer"
    for name, usual in _USUAL.items():
        value = getattr(module, name, usual)
        if value != usual:
            return f"torch.nn has no such layer with {name}={value!r}"
    layer: nn.Module = cls(float(module.p), module.inplace)
    return layer


def _known(module: nn.Module) -> type | None:
    """The class of dropout layer that a module is or derives from."""
    for cls in type(module).__mro__:
        if cls in _OURS or _PATHS.fullmatch(f"{cls.__module__}.{cls.__name__}"):
            return cls
    return None


def rate_name(module: nn.Module) -> str:
    """The attribute that holds a dropout layer's rate."""
    return "drop_prob" if hasattr(module, "drop_prob") else "p"


def shown(cls: type) -> str:
    """A class as reports name it: with its package, without the modules in between."""
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}"
