"""What the layers share: the key, the rate, and when they drop."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import keras

from dropseed.errors import InvalidTypeError
from dropseed.keras.checks import check_inputs, checked_rate
from dropseed.keras.state import KeyState, first_key
from dropseed.mask import Key

PACKAGE = "dropseed"
"""The package under which the layers are registered for saving."""


class KeyedLayer(keras.layers.Layer):
    """A layer with a rate and a key of its own, whose step moves on at each call in training.

    Args:
        rate: the fraction dropped, in [0, 1].
        seed: an integer in [0, 2**64), a `Key`, or None for a seed from the generator that
            `keras.utils.set_random_seed` sets.
        site: a name or a number in [0, 2**32), which `set_key` leaves as it is; None for 0, or
            the key's own.
        *args: the arguments of a layer that is derived from, too.
        **kwargs: likewise, `name` and `dtype` among them.
    """

    def __init__(
        self,
        *args: Any,
        rate: float = 0.5,
        seed: int | Key | None = None,
        site: str | int | None = None,
        **kwargs: Any,
    ) -> None:
        number, key = checked_rate(rate), first_key(seed, site)
        super().__init__(*args, **kwargs)
        self.rate = number
        self.seed = seed
        self.site = site
        self.seed_generator = KeyState(key)

    @property
    def key(self) -> Key:
        """The key that the next call in training will have; it can be set."""
        return self.seed_generator.key

    @key.setter
    def key(self, key: Key) -> None:
        if not isinstance(key, Key):
            raise InvalidTypeError(f"`key` must be a dropseed.Key; got {key!r}.")
        self.seed_generator.key = key

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """The call itself: there is nothing to store, and a second one would be a step further."""
        return layer_call

    def get_config(self) -> dict[str, Any]:
        """The arguments, without the step."""
        seed = asdict(self.seed) if isinstance(self.seed, Key) else self.seed
        own = {"rate": self.rate, "seed": seed, "site": self.site}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A layer from the arguments."""
        seed = config.get("seed")
        return super().from_config(
            {**config, "seed": Key(**seed) if isinstance(seed, dict) else seed}
        )


class RateLayer(KeyedLayer):
    """A layer without weights that changes its inputs in training and hands them on otherwise."""

    def __init__(self, rate: float, **kwargs: Any) -> None:
        super().__init__(rate=rate, **kwargs)
        self.supports_masking = True
        self._build_at_init()

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Drop in training, return the inputs otherwise."""
        if not training or self.rate == 0:
            return inputs
        check_inputs(inputs)
        return self._dropped(inputs, self.seed_generator.next())

    def _dropped(self, inputs: Any, words: Any) -> Any:
        raise NotImplementedError

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The shape of the inputs."""
        return input_shape
