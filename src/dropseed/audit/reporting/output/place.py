"""Where a finding is, as people write it."""

from __future__ import annotations

import re
from pathlib import Path

from dropseed.audit.finding import Finding

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def shown(path: Path) -> str:
    """A path that any terminal can show.

    Args:
        path: a path, maybe of bytes that are no text.

    Returns:
        The path; what can't be shown is escaped.

    Example:
        >>> len(shown(Path("a" + chr(27) + ".py")))
        8
    """
    text = str(path).encode(errors="backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", text)


def place(finding: Finding) -> str:
    """Path, line and column, with the cell of a notebook.

    Args:
        finding: the finding.

    Returns:
        The place, as in "a.py:3:9" and "book.ipynb:cell 2:3:9".

    Example:
        >>> from dropseed.audit.finding import Severity, Span
        >>> at = Span(3, 9, 3, 24, cell=2)
        >>> place(Finding("DS101", "dropout-always-on", Severity.ERROR, "b.ipynb", ".", at, "on"))
        'b.ipynb:cell 2:3:9'
    """
    at = finding.span
    cell = "" if at.cell is None else f"cell {at.cell}:"
    return f"{shown(Path(finding.root, finding.path))}:{cell}{at.line}:{at.column}"


def in_cell(finding: Finding) -> str:
    """A finding's message, which names the cell where a format has no place for it.

    Args:
        finding: the finding.

    Returns:
        The message.
    """
    at = finding.span
    if at.cell is None:
        return finding.message
    return f"cell {at.cell}, line {at.line}: {finding.message}"


def printable(text: str) -> str:
    """A line of text without characters that would steer a terminal.

    Args:
        text: the line.

    Returns:
        The line, with as many characters.

    Example:
        >>> len(printable(chr(27) + "[2J"))
        4
    """
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
