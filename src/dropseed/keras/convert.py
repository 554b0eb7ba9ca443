"""Dropseed's layers in the places of a model's own dropout layers.

Layers of a graph (a Functional or Sequential model) are replaced in a copy of the graph, those that
a layer or a subclassed model holds as attributes in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import keras
from keras.src.models.functional import Functional

from dropseed import conversion
from dropseed.conversion import NotReplaced, Replaced
from dropseed.errors import InvalidValueError
from dropseed.keras import layers
from dropseed.keras.base import KeyedLayer
from dropseed.keras.keyed import places, site_of

_OURS: dict[Any, Any] = {
    keras.layers.Dropout: layers.Dropout,
    keras.layers.AlphaDropout: layers.AlphaDropout,
    keras.layers.GaussianDropout: layers.GaussianDropout,
    keras.layers.SpatialDropout1D: layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D: layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D: layers.SpatialDropout3D,
}
_NUMBERS = ("dropout", "recurrent_dropout")
"""Where Keras's recurrent and attention layers keep a rate."""


@dataclass(frozen=True, slots=True)
class Report(conversion.Report):
    """What `convert` did; `print` shows it as tables.

    Attributes:
        model: the model with dropseed's layers: a copy if the model is Functional or Sequential and
            has dropout layers in its graph, else the model itself.
        replaced: the layers replaced, in the order of the model.
        not_replaced: what drops, or may drop, and was left alone.
        notes: sentences about the whole.
    """

    model: Any = field(kw_only=True, repr=False)


def convert(model: Any) -> Report:
    """Replace the dropout layers of a model by dropseed's.

    Known are Keras's six dropout layers, also inside other layers (its attention, for instance),
    and subclasses that don't change `call`. Names, rates, seeds, noise shapes and weights stay. A
    Functional or Sequential model with dropout in its graph is copied as
    `keras.models.clone_model` does it, weights included, and compiled as it was, with a new
    optimizer. Any other model is changed in place. What is dropseed's already is left alone.

    Args:
        model: a Functional, Sequential or subclassed model, or a layer that holds others.

    Returns:
        The model, what was replaced, and what was not and why.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: the model is itself a dropout layer, or a layer of its graph can't be copied. It
            is unchanged then.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> model = keras.Sequential(
        ...     [keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dropout(0.1, name="drop")]
        ... )
        >>> report = dsk.convert(model)
        >>> print(report)
        replaced  was            is                rate  site
        drop      keras.Dropout  dropseed.Dropout  0.1   1880425762
        >>> report.model.layers[1].key.site
        0
    """
    found = list(places(model))
    if _is_replaceable(model):
        raise InvalidValueError(
            f"`model` is itself a dropout layer, {_shown(model)}. Use dropseed.keras's in its "
            "stead, or put it into a model first: keras.Sequential([model])."
        )
    before = [name for name, layer in found if isinstance(layer, KeyedLayer)]
    swap = _Swap()
    new = swap.copied(model) if _drops_in_graph(model) else swap.converted(model)
    replaced, left = [], []
    for name, layer in places(new):
        if id(layer) in swap.former:
            was = swap.former[id(layer)]
            row = Replaced(name, was, _shown(layer), layer.rate, site_of(name, layer))
            replaced.append(row)
        elif reason := _why_not(layer):
            left.append(NotReplaced(name, _shown(layer), reason))
        _forget(layer)
    notes = tuple(_notes(new, replaced, before))
    return Report(tuple(replaced), tuple(left), notes, model=new)


class _Swap:
    """One conversion. What is shared stays shared.

    Attributes:
        former: the class of the layer in whose place each new one is, by the new one's id.
    """

    def __init__(self) -> None:
        self.former: dict[int, str] = {}
        self._done: dict[int, tuple[Any, Any]] = {}  # the old layer too, which keeps its id taken

    def converted(self, layer: Any) -> Any:
        """The layer that takes a layer's place: another, or itself, changed inside."""
        if id(layer) not in self._done:
            new = self._new(layer) if _is_replaceable(layer) else layer
            new = self._rewired(layer) if _drops_in_graph(layer) else new
            self._done[id(layer)] = layer, new
            self.inside(new)
        return self._done[id(layer)][1]

    def _new(self, layer: Any) -> KeyedLayer:
        known = _known(layer)
        config = known.get_config(layer)
        if isinstance(config["seed"], int):
            config["seed"] %= 2**64
        new: KeyedLayer = _OURS[known].from_config(config)
        self.former[id(new)] = _shown(layer)
        return new

    def _rewired(self, model: Any) -> Any:
        """A new graph of the same layers, but for those that are replaced."""
        _take_apart(model)
        return keras.models.clone_model(model, clone_function=self.converted)

    def copied(self, model: Any) -> Any:
        """A copy of a graph with its weights, and new layers for its dropout layers."""
        new = keras.models.clone_model(model, clone_function=self._copied_layer, recursive=True)
        if model.built:
            new.set_weights(model.get_weights())
        self.inside(new)
        return new

    def _copied_layer(self, layer: Any) -> Any:
        if _is_replaceable(layer):
            return self._new(layer)
        try:
            new = type(layer).from_config(layer.get_config())
        except Exception as error:
            raise InvalidValueError(
                f"`model` must have layers that can be copied; its layer {layer.name!r}, "
                f"{_shown(layer)}, can't be made from its `get_config`: {error}"
            ) from error
        for old, copy in zip(places(layer), places(new), strict=False):
            if isinstance(old.layer, KeyedLayer) and isinstance(copy.layer, KeyedLayer):
                copy.layer.key = old.layer.key
        return new

    def inside(self, layer: Any) -> None:
        """Convert what a layer holds: in its graph nothing is left, so its attributes."""
        if _is_graph(layer):
            for child in layer.layers:
                self.inside(child)
            return
        for name, value in {**vars(layer), **vars(layer).get("_modules", {})}.items():
            new = value if name in _OWN else self._value(layer, value)
            if new is not value:
                with _unlocked(layer):
                    setattr(layer, name, new)

    def _value(self, layer: Any, value: Any) -> Any:
        """An attribute's value with converted layers; lists and dictionaries change in place."""
        if isinstance(value, keras.layers.Layer):
            new = self.converted(value)
            tracker = layer._tracker
            if new is not value and tracker.is_in_store("layers", value):
                tracker.replace_tracked_value("layers", value, new)
            return new
        if isinstance(value, list | dict):
            for at, one in list(enumerate(value) if isinstance(value, list) else value.items()):
                new = self._value(layer, one)
                if new is not one:
                    with _unlocked(layer):
                        value[at] = new
        elif isinstance(value, tuple):
            new = [self._value(layer, one) for one in value]
            if any(a is not b for a, b in zip(new, value, strict=True)):
                return value._make(new) if hasattr(value, "_make") else tuple(new)
        return value


_OWN = frozenset(vars(keras.layers.Layer())) | {"_modules", "_torch_params"}
"""The attributes of every layer, none of which a user has put there."""


@contextmanager
def _unlocked(layer: Any) -> Iterator[None]:
    """Let what a built layer holds change."""
    tracker = layer._tracker
    locked = tracker.locked
    tracker.unlock()
    try:
        yield
    finally:
        tracker.locked = locked


def _take_apart(model: Any) -> None:
    """Forget the places of layers in a graph that go into another, so that they have one there."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    nodes = list(chain.from_iterable(graph._nodes_by_depth.values())) if graph else []
    for layer in {id(node.operation): node.operation for node in nodes}.values():
        if all(node in nodes for node in layer._inbound_nodes):  # else another graph counts on them
            layer._inbound_nodes.clear()
            layer._outbound_nodes.clear()


def _forget(layer: Any) -> None:
    """Make a layer forget what it has derived from the layers that it had."""
    if hasattr(layer, "_torch_params"):
        layer._track_variables()
    if isinstance(layer, keras.Model):
        layer.train_function = layer.test_function = layer.predict_function = None


def _is_graph(layer: Any) -> bool:
    return isinstance(layer, Functional | keras.Sequential)


def _drops_in_graph(layer: Any) -> bool:
    return _is_graph(layer) and any(
        _is_replaceable(child) or _drops_in_graph(child) for child in layer.layers
    )


def _known(layer: Any) -> Any:
    """The class of Keras's that a dropout layer is or derives from."""
    return next((cls for cls in type(layer).__mro__ if cls in _OURS), None)


def _is_replaceable(layer: Any) -> bool:
    known = _known(layer)
    return known is not None and type(layer).call is known.call


def _why_not(layer: Any) -> str | None:
    """Why a layer that drops, as far as its class tells, is left alone."""
    if isinstance(layer, KeyedLayer):
        return None
    if _is_replaceable(layer):
        return "it is neither an attribute of a layer nor in a list, dictionary or tuple that is"
    if known := _known(layer):
        return f"its own `call` is not that of keras.layers.{known.__name__}"
    if isinstance(layer, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention):
        late = not layer.built and layer.get_config()["dropout"]
        return "it isn't built, and has no layers yet; call the model first" if late else None
    rates = [getattr(layer, name, 0) for name in _NUMBERS]
    rate = next((rate for rate in rates if isinstance(rate, float) and rate > 0), None)
    if rate is not None:
        return f"its rate, {rate:g}, is a number inside it, not a layer"
    plain = not list(layer._flatten_layers(include_self=False))
    named = "drop" in type(layer).__name__.lower() and plain
    return "its class is not a known one" if named else None


def _shown(layer: Any) -> str:
    cls = type(layer)
    return f"{cls.__module__.partition('.')[0]}.{cls.__name__}"


def _notes(model: Any, replaced: Sequence[Replaced], before: Sequence[str]) -> Iterator[str]:
    if before:
        yield f"dropseed's already, and left as they are: {', '.join(before)}."
    elif not replaced:
        yield "there is nothing to convert: no dropout layer was found that can be replaced."
    if not model.built:
        yield "the model isn't built; layers that it makes when it is are not converted."
