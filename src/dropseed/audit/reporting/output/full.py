"""Each finding with its source, a caret, and what a fix would do."""

from __future__ import annotations

from collections.abc import Sequence

from dropseed.audit.finding import Finding
from dropseed.audit.reporting.lines import Lines
from dropseed.audit.reporting.output.excerpt import excerpt
from dropseed.audit.reporting.output.place import place, printable
from dropseed.audit.reporting.output.text import summary


def render(findings: Sequence[Finding], files: int) -> str:
    """Write findings with their source.

    Args:
        findings: the findings, sorted.
        files: how many files were read.

    Returns:
        The text; the last line counts.

    Example:
        >>> print(render([], 3), end="")
        Found nothing in 3 files.
    """
    lines = Lines()
    out = []
    for finding in findings:
        fixable = " [*]" if finding.fix else ""
        out.append(f"{finding.code}{fixable} {printable(finding.message)}\n --> {place(finding)}\n")
        out.append(excerpt(finding, lines.of(finding)))
        out.append(f"help: {finding.fix.message}\n\n" if finding.fix else "\n")
    return "".join(out) + summary(findings, files) + "\n"
