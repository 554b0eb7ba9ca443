"""Key: the identity of a mask."""

from __future__ import annotations

import operator
import zlib
from dataclasses import dataclass, replace
from typing import Any

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask.philox import philox4x32

DERIVING_PLANE = 15


def site_number(name: str) -> int:
    """The site of a qualified name: the CRC-32 of its UTF-8 bytes.

    Args:
        name: a layer's qualified name, relative to the model's root.

    Returns:
        An integer in [0, 2**32).

    Raises:
        TypeError: `name` is not a string.

    Example:
        >>> site_number("features.3")
        461642344
    """
    if not isinstance(name, str):
        raise InvalidTypeError(f"`name` must be a string; got {name!r}.")
    return zlib.crc32(name.encode("utf-8"))


@dataclass(frozen=True, slots=True)
class Key:
    """Names a mask: every draw is a pure function of a key and an index.

    Args:
        seed: integer in [0, 2**64).
        site: integer in [0, 2**32): the place in the network, 0 if there is only one.
        step: integer in [0, 2**32): the moment in training.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: an argument is outside its range.

    Example:
        >>> Key(0).at("features.3")
        Key(seed=0, site=461642344, step=0)
    """

    seed: int
    site: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("site", 32), ("step", 32)):
            number = integer(getattr(self, name), name, 0, 2**bits)
            object.__setattr__(self, name, number)

    def at(self, name: str) -> Key:
        """The same key at the site of a qualified name.

        Args:
            name: a layer's qualified name, for instance ``"features.3"``.

        Returns:
            A key with ``site = crc32(name)`` and the same seed and step.

        Raises:
            TypeError: `name` is not a string.

        Example:
            >>> Key(7, step=3).at("drop")
            Key(seed=7, site=1880425762, step=3)
        """
        return replace(self, site=site_number(name))

    def fold(self, n: int) -> Key:
        """Derive the n-th key from this one: one key serves one draw, so a second draw folds.

        Args:
            n: integer in [0, 2**60).

        Returns:
            A key with the same site and step and a seed of its own.

        Raises:
            TypeError: `n` is not an integer.
            ValueError: `n` is outside its range.

        Example:
            >>> Key(0).fold(1) == Key(0).fold(2)
            False
        """
        n = integer(n, "n", 0, 2**60)
        counter = (n % 2**32, DERIVING_PLANE * 2**28 + n // 2**32, self.site, self.step)
        low, high, _, _ = philox4x32(counter, self.words[:2])
        return replace(self, seed=int(low) + 2**32 * int(high))

    @property
    def words(self) -> tuple[int, int, int, int]:
        """The four uint32 words by which a key crosses frameworks: k0, k1, site, step."""
        return self.seed % 2**32, self.seed // 2**32, self.site, self.step


def integer(value: Any, name: str, low: int, high: int) -> int:
    """Check that an argument is an integer in [low, high) and return it as a Python int."""
    number = value
    if type(value) is not int:
        try:
            # A bool has an index, and so has a PyTorch tensor of one element in any number of
            # dimensions; neither is meant as a number.
            if isinstance(value, bool) or getattr(value, "shape", None):
                raise TypeError
            number = operator.index(value)
        except TypeError:
            raise InvalidTypeError(f"`{name}` must be an integer; got {value!r}.") from None
    if not low <= number < high:
        raise InvalidValueError(f"`{name}` must be in [{low}, {high}); got {number}.")
    return int(number)
