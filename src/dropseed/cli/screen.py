"""What the audit shows: results on stdout, everything else on stderr, colours on terminals."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

PATIENCE = 1.0
"""Seconds before a progress bar appears."""

_STYLES = {
    r"(?m)^\S.*?(?=:(?:cell \d+:)?\d+:\d+: DS\d)": "bold",
    r"(?m)(?<=^ --> ).*$": "bold",
    r"\bDS\d{3}\b": "bold red",
    r"(?m)(?<=\| )\s*\^+$": "bold red",
    r"(?m)^ *\d* \|": "blue",
    r"(?m)^help:": "bold cyan",
}


def say(sentence: str) -> None:
    """Print a sentence on stderr."""
    print(f"dropseed: {sentence}", file=sys.stderr)


def write(text: str, colours: bool = False) -> None:
    """Print a result.

    Args:
        text: the whole result, with its last line end.
        colours: whether it is for people, and may have colours on a terminal.
    """
    if colours and sys.stdout.isatty():
        from rich.console import Console
        from rich.text import Text

        painted = Text(text)
        for pattern, style in _STYLES.items():
            painted.highlight_regex(pattern, style)
        Console().print(painted, end="", soft_wrap=True)
    else:
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))


def write_bytes(data: bytes) -> None:
    """Print bytes as they are."""
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_page(markdown: str) -> None:
    """Print a page: drawn on a terminal, else as it is."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(markdown))
    else:
        write(markdown)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, if that is a terminal and the work takes longer than a second.

    Yields:
        What is to be called with the number of files done and of all, or None.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("Reading files"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task, start = bar.add_task("", total=None), time.monotonic()

    def tell(done: int, total: int) -> None:
        if time.monotonic() - start > PATIENCE:
            bar.start()
            bar.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        bar.stop()
