"""What several commands check and print with."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

from dropseed.errors import InvalidValueError, MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console


def sizes(text: str, option: str, separator: str) -> tuple[int, ...]:
    """A shape out of a user's words, such as 1x28x28 or 8,1600.

    Args:
        text: the words.
        option: what they were given to, for the message.
        separator: "x" or ",", for the message.

    Returns:
        The sizes.

    Raises:
        InvalidValueError: they are no sizes.

    Example:
        >>> sizes("1x28x28", "--input", "x")
        (1, 28, 28)
    """
    # 64 is the most dimensions that NumPy has; an int64 holds any number of 18 digits.
    if not re.fullmatch(r"[0-9]{1,18}([,x] ?[0-9]{1,18}){0,63}", text):
        example = separator.join(("8", "1600") if separator == "," else ("1", "28", "28"))
        raise InvalidValueError(f"`{option}` must read like {example}; got {text!r}.")
    return tuple(int(size) for size in re.split("[,x]", text))


def need(*packages: str, extra: str = "lab") -> None:
    """Fail before any work where an optional dependency is missing.

    Args:
        packages: what is imported later.
        extra: the extra that installs them.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, extra)


def console() -> Console:
    """The terminal, as Rich sees it."""
    from rich.console import Console

    return Console()
