"""One line for each finding, for people and for editors: `path:line:column: CODE message`."""

from __future__ import annotations

from collections.abc import Sequence

from dropseed.audit.finding import Finding, Severity
from dropseed.audit.reporting.lines import Lines
from dropseed.audit.reporting.output.excerpt import excerpt
from dropseed.audit.reporting.output.place import place, printable


def render(findings: Sequence[Finding], files: int, show_source: bool = False) -> str:
    """Write findings as lines.

    Args:
        findings: the findings, sorted.
        files: how many files were read.
        show_source: whether the source follows each line.

    Returns:
        The text; the last line counts.

    Example:
        >>> print(render([], 3), end="")
        Found nothing in 3 files.
    """
    lines = Lines()
    out = []
    for finding in findings:
        out.append(f"{place(finding)}: {finding.code} {printable(finding.message)}\n")
        if show_source:
            out.append(excerpt(finding, lines.of(finding)))
    return "".join(out) + summary(findings, files) + "\n"


def summary(findings: Sequence[Finding], files: int) -> str:
    """What was found, in a sentence.

    Args:
        findings: the findings.
        files: how many files were read.

    Returns:
        The sentence.

    Example:
        >>> summary([], 1)
        'Found nothing in 1 file.'
    """
    counts = [
        counted(sum(finding.severity is severity for finding in findings), severity.value)
        for severity in Severity
        if any(finding.severity is severity for finding in findings)
    ]
    fixable = sum(finding.fix is not None for finding in findings)
    hint = f" ({fixable} fixable with --fix)" if fixable else ""
    return f"Found {', '.join(counts) or 'nothing'} in {counted(files, 'file')}{hint}."


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    Args:
        number: how many.
        noun: what, in the singular.

    Returns:
        The words.

    Example:
        >>> counted(1, "error"), counted(1200, "error")
        ('1 error', '1,200 errors')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
