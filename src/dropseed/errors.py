"""Every exception that dropseed raises on purpose, in one tree.

    DropseedError
    ├── InvalidValueError (also ValueError)   an argument's value is out of range
    ├── InvalidTypeError  (also TypeError)    an argument has the wrong type
    ├── MissingExtraError (also ImportError)  an optional dependency is not installed
    ├── DataError                             a dataset is missing, corrupt or unreachable
    ├── RunError                              a run folder or checkpoint can't be read or written
    └── DropoutError (also RuntimeError)      a guard saw dropout on or off at the wrong time

The command line prints any of them as one sentence and exits with a non-zero status.
"""

from __future__ import annotations


class DropseedError(Exception):
    """Base of every error that dropseed raises on purpose."""


class InvalidValueError(DropseedError, ValueError):
    """An argument's value is outside its range; the message names both."""


class InvalidTypeError(DropseedError, TypeError):
    """An argument has the wrong type; the message names the argument and what came."""


class MissingExtraError(DropseedError, ImportError):
    """An optional dependency is not installed; the message gives the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(package, extra)

    def __str__(self) -> str:
        package, extra = self.args
        return f"`{package}` is not installed. Install it with: pip install 'dropseed[{extra}]'"


class DataError(DropseedError):
    """A dataset is missing, corrupt or unreachable; the message says how to supply it."""


class RunError(DropseedError):
    """A run folder or a checkpoint can't be read or written; nothing saved is lost."""


class DropoutError(DropseedError, RuntimeError):
    """Dropout is on or off at the wrong time, and a guard was asked to stop there."""
