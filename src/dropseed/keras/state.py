"""The key of a layer as a variable: state that compiled code takes in and gives back."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from keras.src.saving.keras_saveable import KerasSaveable
from keras.src.utils.naming import auto_name

from dropseed.errors import InvalidValueError
from dropseed.keras.route import draws
from dropseed.mask import Key, site_number
from dropseed.mask.key import integer

_WIDE = ("tensorflow", "torch")
"""Back ends that have 64-bit integers at any setting, and little for 32 bits without a sign."""


class KeyState(keras.random.SeedGenerator, KerasSaveable):
    """A key in a non-trainable variable: ``next()`` gives it and moves on by one step.

    It is a `keras.random.SeedGenerator`, which Keras tracks apart from the weights. Keras doesn't
    save those; this one is saved with the layer, under a path of its own, so that Keras's own
    layers can load what ours have saved, and ours what theirs have. The variable holds the words
    ``k0, k1, site, step``, each an integer whose low 32 bits count.

    Args:
        key: the key of the first call.

    Example:
        >>> state = KeyState(Key(7, site=1))
        >>> _ = state.next()
        >>> state.key
        Key(seed=7, site=1, step=1)
    """

    def __init__(self, key: Key) -> None:
        # Not the base's own constructor, whose variable has 32 bits of a seed.
        self.name = auto_name("key")
        self._recent: dict[int, Any] = {}
        self.backend = keras.src.backend
        with keras.name_scope(self.name):
            self.state = keras.Variable(
                lambda *_, **__: _signed(key.words),
                shape=(4,),
                dtype="int64" if keras.backend.backend() in _WIDE else "int32",
                trainable=False,
                aggregation="none",
                name="words",
            )

    def next(self, ordered: bool = True) -> Any:
        """The words of the key, a tensor of four integers; the next call has the next step."""
        return draws.once(self._recent, self._next)

    def _next(self) -> Any:
        words = self.state.value * 1  # a copy: assignment may be in place
        self.state.assign(words + keras.ops.convert_to_tensor([0, 0, 0, 1], dtype=words.dtype))
        return words

    @property
    def key(self) -> Key:
        """The key that the next call will have."""
        k0, k1, site, step = (int(word) % 2**32 for word in self.state.value)
        return Key(k0 + 2**32 * k1, site, step)

    @key.setter
    def key(self, key: Key) -> None:
        self.state.assign(_signed(key.words))

    def save_own_variables(self, store: Any) -> None:
        """Save the words, the same for every back end."""
        store["0"] = np.array(self.key.words, np.int64)

    def load_own_variables(self, store: Any) -> None:
        """Load the words; what another layer has saved has none, and leaves the key as it is."""
        if "0" in store.keys():  # noqa: SIM118 - a store is no dictionary
            k0, k1, site, step = (int(word) for word in store["0"])
            self.key = Key(k0 + 2**32 * k1, site, step)

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {"key": self.key}

    def _obj_type(self) -> str:
        return "Layer"


def _signed(words: tuple[int, ...]) -> Any:
    return np.array(words, np.uint32).view(np.int32)


def first_key(seed: int | Key | None, site: str | int | None) -> Key:
    """The key of a layer's first call in training.

    Args:
        seed: an integer in [0, 2**64), a `Key`, or None for a seed from Python's generator, which
            `keras.utils.set_random_seed` sets, as for Keras's own layers.
        site: a name, a number in [0, 2**32), or None for the key's own, 0 without a `Key`.

    Returns:
        The key.

    Raises:
        ValueError: `seed` is no such number, or `site` none.
        TypeError: `site` is neither a string nor an integer.

    Example:
        >>> first_key(7, "features.3")
        Key(seed=7, site=461642344, step=0)
    """
    if seed is None:
        key = Key(random.getrandbits(64))
    elif isinstance(seed, Key):
        key = seed
    else:
        key = Key(_checked_seed(seed))
    return key if site is None else replace(key, site=_number(site))


def _checked_seed(seed: Any) -> int:
    try:
        return integer(seed, "seed", 0, 2**64)
    except TypeError:  # Keras has a ValueError here
        raise InvalidValueError(
            f"Argument `seed` must be an integer in [0, 2**64), a dropseed.Key or None; "
            f"got {seed!r}."
        ) from None


def _number(site: str | int) -> int:
    return site_number(site) if isinstance(site, str) else integer(site, "site", 0, 2**32)
