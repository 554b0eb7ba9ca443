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

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


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
    usual = {number: signal.getsignal(number) for number in _NUMBERS}

    def note(number: int, frame: FrameType | None) -> None:
        watch.number = number
        _restore(usual)

    try:
        for number in _NUMBERS:
            signal.signal(number, note)
        yield watch
    finally:
        _restore(usual)


@contextmanager
def held_signals() -> Iterator[None]:
    """Let signals wait while worker processes start, so that none dies before it has left.

    What came in between reaches this process afterwards; a worker forgets it, by
    `leave_signals_to_parent`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_parent(worker: int) -> None:
    """For data-loader workers: a Ctrl-C is for the parent alone, which ends them in good time.

    In a session of its own a worker gets no signal that is sent to the parent's group. To ignore
    them instead would make it deaf to the parent, too.
    """
    os.setsid()
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)  # forgets what waits
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _NUMBERS)
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_DFL)


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
