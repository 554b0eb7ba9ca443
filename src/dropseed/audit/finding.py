"""What a scan reports: findings, where they are, and how they can be fixed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much a mistake matters. Errors and warnings are reported by default.

    Example:
        >>> [severity.value for severity in Severity]
        ['error', 'warning', 'note']
    """

    ERROR = "error"
    """Outputs or training are wrong."""
    WARNING = "warning"
    """Known to harm, or waiting to go wrong."""
    NOTE = "note"
    """Without effect, or a matter of convention."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A piece of a file: lines and columns from 1, in characters, the end exclusive.

    Attributes:
        line: the first line. In a notebook lines count within the cell.
        column: the first character.
        end_line: the last line.
        end_column: the character after the last.
        cell: a notebook's cell, counted from 1 over all cells; None in a plain file.
    """

    line: int
    column: int
    end_line: int
    end_column: int
    cell: int | None = None


@dataclass(frozen=True, slots=True)
class Edit:
    """Text in the place of a piece of a file. An empty piece inserts.

    Attributes:
        span: the piece.
        text: what stands there afterwards.
    """

    span: Span
    text: str


@dataclass(frozen=True, slots=True)
class Fix:
    """Edits that belong together: all are made, or none.

    Attributes:
        message: what they do, as an imperative: "Pass `training=self.training`".
        edits: the edits; they don't overlap.
    """

    message: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """One hit of a rule.

    Attributes:
        code: the rule's code, for instance "DS101".
        name: the rule's name, for instance "dropout-always-on".
        severity: how much it matters.
        path: the file, relative to the scanned root, with forward slashes.
        root: the scanned root, as the user wrote it; for a single file its folder.
        span: where in the file.
        message: one sentence without a full stop at its end.
        fix: edits that mend it and keep what training computes, or None.

    Example:
        >>> at = Span(3, 9, 3, 24)
        >>> Finding("DS101", "dropout-always-on", Severity.ERROR, "a.py", ".", at, "on").span.line
        3
    """

    code: str
    name: str
    severity: Severity
    path: str
    root: str
    span: Span
    message: str
    fix: Fix | None = None
