"""dropseed: dropout whose masks are pure functions of a seed.

The names are those of `dropseed.mask`, which loads NumPy. It is loaded when the first of them is
asked for: the auditor (`dropseed.audit`) lives on the standard library alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dropseed.mask import (
        Key,
        Rate,
        drop_block,
        gaussian,
        integers,
        keep,
        schedule,
        subset,
        uniform,
    )

__version__ = "0.1.0"

__all__ = [
    "Key",
    "Rate",
    "__version__",
    "drop_block",
    "gaussian",
    "integers",
    "keep",
    "schedule",
    "subset",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dropseed import mask

    value = globals()[name] = getattr(mask, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
