"""One key for a whole model: each layer's site is its name in the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.keras.base import KeyedLayer
from dropseed.mask import Key, site_number


def set_key(model: Any, seed: int, step: int = 0) -> int:
    """Give every dropseed layer of a model the same seed and step, and a site of its own.

    The masks of a whole run are then a function of one integer, whatever the back end. A site is
    the number of the layer's name in the model, ``"outer.inner"`` for layers in layers, unless the
    layer was made with another: those of a PyTorch model have the same masks under the same names.
    Each layer goes on to the next step by itself, at each of its calls in training.

    Args:
        model: a model, or any layer.
        seed: integer in [0, 2**64).
        step: integer in [0, 2**32), that of the next call in training.

    Returns:
        The number of layers found.

    Raises:
        TypeError: `model` is no layer, or a number is no integer.
        ValueError: a number is outside its range, or two layers have the same site; then no key is
            changed.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> model = keras.Sequential([keras.Input((4,)), dsk.Dropout(0.5, name="drop")])
        >>> dsk.set_key(model, seed=7, step=3)
        1
        >>> model.layers[0].key
        Key(seed=7, site=1880425762, step=3)
    """
    layers = [(layer, Key(seed, site, step)) for _, layer, site in _sited(model)]
    for layer, key in layers:
        layer.key = key
    return len(layers)


def sites(model: Any) -> dict[str, int]:
    """The sites that `set_key` gives to a model's dropseed layers.

    Args:
        model: a model, or any layer.

    Returns:
        The site number of each layer by its name in the model, in the order of the model.

    Raises:
        TypeError: `model` is no layer.
        ValueError: two layers have the same site.

    Example:
        >>> import keras
        >>> import dropseed.keras as dsk
        >>> block = keras.Sequential([dsk.Dropout(0.5, name="drop")], name="block")
        >>> dsk.sites(keras.Sequential([keras.Input((4,)), block]))
        {'block.drop': 1925815846}
    """
    return {name: site for name, _, site in _sited(model)}


def _sited(model: Any) -> list[tuple[str, KeyedLayer, int]]:
    layers = [(p.name, p.layer) for p in places(model) if isinstance(p.layer, KeyedLayer)]
    sited = [(name, layer, site_of(name, layer)) for name, layer in layers]
    _check_sites([(name, site) for name, _, site in sited])
    return sited


def site_of(name: str, layer: KeyedLayer) -> int:
    """The site of a layer: its name's number, or the one that it was made with."""
    site = name if layer.site is None else layer.site
    return site_number(site) if isinstance(site, str) else int(site)


def _check_sites(named: Sequence[tuple[str, int]]) -> None:
    names: dict[int, str] = {}
    for name, site in named:
        if site in names:
            raise InvalidValueError(
                f"`model` has two layers with the same site {site}: {names[site]!r} and {name!r}. "
                "Give them different names, or one of them a `site`."
            )
        names[site] = name


class Place(NamedTuple):
    """A layer, and its name in a model."""

    name: str
    layer: Any


def places(model: Any) -> Iterator[Place]:
    """Every layer of a model, itself included, once, by the first of its names."""
    if not isinstance(model, keras.layers.Layer):
        raise InvalidTypeError(f"`model` must be a Keras model; got {type(model).__name__}.")
    seen: set[int] = set()

    def walk(layer: Any, path: tuple[str, ...]) -> Iterator[Place]:
        if id(layer) not in seen:
            seen.add(id(layer))
            yield Place(".".join(path), layer)
            for child in layer._flatten_layers(include_self=False, recursive=False):
                yield from walk(child, (*path, child.name))

    return walk(model, ())
