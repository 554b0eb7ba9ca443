"""Ctrl-C and SIGTERM as a polite question, asked between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from dropseed.errors import DropseedError


class StoppedError(DropseedError):
    """A signal ended the work early; what was done is saved.

    Args:
        message: one sentence: what was saved, and how to go on.
        number: the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.status = 128 + number


class Watch:
    """`number` is the signal that came, or None."""

    number: int | None = None


@contextmanager
def watch_signals() -> Iterator[Watch]:
    """Note the first Ctrl-C or SIGTERM instead of dying; the second one has its usual effect.

    Only the main thread may set handlers; in others this watches nothing.

    Yields:
        A `Watch`, to be asked between two steps.
    """
    watch = Watch()
    if threading.current_thread() is not threading.main_thread():
        yield watch
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: FrameType | None) -> None:
        watch.number = number
        _restore(usual)

    try:
        for number in numbers:
            signal.signal(number, note)
        yield watch
    finally:
        _restore(usual)


def leave_signals_to_parent(worker: int) -> None:
    """For data-loader workers: a Ctrl-C is for the parent alone, which ends them in good time.

    In a session of its own a worker gets no signal that is sent to the parent's group. To ignore
    them instead would make it deaf to the parent, too.
    """
    os.setsid()


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
