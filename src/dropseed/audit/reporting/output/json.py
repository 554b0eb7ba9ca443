"""An array of objects, for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dropseed.audit.finding import Finding, Fix, Span


def render(findings: Sequence[Finding], files: int) -> str:
    """Write findings as JSON.

    Args:
        findings: the findings, sorted.
        files: how many files were read.

    Returns:
        A JSON array.

    Example:
        >>> json.loads(render([], 3))
        []
    """
    return json.dumps([_object(finding) for finding in findings], indent=2) + "\n"


def _object(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "path": finding.path,
        **_place(finding.span),
        "message": finding.message,
        "fix": _fix(finding.fix),
    }


def _place(span: Span) -> dict[str, int]:
    """A span's lines and columns, and in a notebook its cell."""
    place = {
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }
    return place if span.cell is None else {"cell": span.cell, **place}


def _fix(fix: Fix | None) -> dict[str, Any] | None:
    if fix is None:
        return None
    edits = [{**_place(edit.span), "content": edit.text} for edit in fix.edits]
    return {"message": fix.message, "edits": edits}
