"""Find where dropout is misused, in source and in running models.

Each name loads its own part when it is first asked for; none needs more than the standard library
to load, and those for models that run need torch when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dropseed.audit.engine import Report, scan
    from dropseed.audit.finding import Finding
    from dropseed.audit.running.guard import DropoutWarning, allow, guard
    from dropseed.audit.running.ledger import ledger
    from dropseed.audit.running.model import check_model
    from dropseed.audit.running.recompute import check_recompute

_PLACES = {
    "DropoutWarning": "running.guard",
    "Finding": "finding",
    "Report": "engine",
    "allow": "running.guard",
    "check_model": "running.model",
    "check_recompute": "running.recompute",
    "guard": "running.guard",
    "ledger": "running.ledger",
    "scan": "engine",
}

__all__ = [
    "DropoutWarning",
    "Finding",
    "Report",
    "allow",
    "check_model",
    "check_recompute",
    "guard",
    "ledger",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
