"""Workflow commands, which GitHub shows beside the lines of a change.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dropseed.audit.finding import Finding, Severity
from dropseed.audit.reporting.baseline import relative
from dropseed.audit.reporting.output.place import in_cell
from dropseed.audit.reporting.output.region import Region, Regions

_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def render(findings: Sequence[Finding], files: int) -> str:
    """Write findings as workflow commands.

    Args:
        findings: the findings, sorted.
        files: how many files were read.

    Returns:
        A line for each finding.

    Example:
        >>> render([], 3)
        ''
    """
    regions = Regions()
    return "".join(_command(finding, regions.of(finding)) for finding in findings)


def _command(finding: Finding, region: Region) -> str:
    properties = {
        "file": relative(Path(finding.root, finding.path), Path.cwd()),
        "line": region.line,
        "col": region.column,
        "endLine": region.end_line,
        "endColumn": region.end_column if region.line == region.end_line else None,
        "title": f"{finding.code} {finding.name}",
    }
    given = ",".join(
        f"{name}={_escaped(str(value), ':', ',')}"
        for name, value in properties.items()
        if value is not None
    )
    return f"::{_COMMANDS[finding.severity]} {given}::{_escaped(in_cell(finding))}\n"


def _escaped(text: str, *more: str) -> str:
    for character in ("%", "\r", "\n", *more):
        text = text.replace(character, f"%{ord(character):02X}")
    return text
