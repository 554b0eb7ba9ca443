"""The lines of a finding with their numbers, and a caret under what is meant."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from dropseed.audit.finding import Finding
from dropseed.audit.reporting.output.place import printable

BEFORE = 2
AFTER = 2
LONGEST = 12
"""More lines than these of one finding are not shown."""
TAB = 4
"""Columns of a tabulator."""


def excerpt(finding: Finding, lines: Sequence[str]) -> str:
    """Draw the source of a finding.

    Args:
        finding: the finding.
        lines: those of its file or cell; its own place may lie outside of them.

    Returns:
        The lines, "" if there are none.

    Example:
        >>> from dropseed.audit.finding import Severity, Span
        >>> at = Finding("DS101", "", Severity.ERROR, "a.py", ".", Span(1, 5, 1, 9), "on")
        >>> print(excerpt(at, ["x = f(x)"]), end="")
          |
        1 | x = f(x)
          |     ^^^^
          |
    """
    at = finding.span
    if not 0 < at.line <= len(lines):
        return ""
    first = max(at.line - BEFORE, 1)
    while first < at.line and not lines[first - 1].strip():
        first += 1
    last = min(at.end_line + AFTER, len(lines), at.line + LONGEST)
    while last > at.line and not lines[last - 1].strip():
        last -= 1
    width = len(str(last))
    margin = " " * width + " |"
    out = [margin]
    for number in range(first, last + 1):
        line = printable(lines[number - 1])
        spaced = line.replace("\t", " " * TAB)
        out.append(f"{number:>{width}} | {spaced}".rstrip())
        if at.line <= number <= at.end_line and (carets := _carets(finding, number, line)):
            out.append(f"{margin} {carets}")
    return "\n".join([*out, margin]) + "\n"


def _carets(finding: Finding, number: int, line: str) -> str:
    """What stands under a line: carets where it belongs to the finding."""
    at = finding.span
    start = at.column - 1 if number == at.line else len(line) - len(line.lstrip())
    end = at.end_column - 1 if number == at.end_line else len(line.rstrip())
    if number > at.line and not line.strip():
        return ""
    return " " * _width(line[:start]) + "^" * max(_width(line[start:end]), 1)


def _width(text: str) -> int:
    """How many columns a terminal gives to a text."""
    return sum(TAB if character == "\t" else _columns(character) for character in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
