"""What `import torch` calls, and what it costs when nobody asked for a guard: next to nothing."""

from __future__ import annotations

import os


def start() -> None:
    """Put a guard around the program if the environment variable `DROPSEED_GUARD` says so.

    Raises:
        InvalidValueError: the variable is neither "warn" nor "error" nor empty.

    Example:
        >>> start()  # does nothing here, where the variable isn't set
    """
    if os.environ.get("DROPSEED_GUARD"):
        from dropseed.audit.running.guard import start as start_guard

        start_guard()
