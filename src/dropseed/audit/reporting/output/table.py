"""Tables in plain text: the rules, and counts of findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dropseed.audit.finding import Finding
from dropseed.audit.rules import RULES


def rules() -> str:
    """All rules, one in a line.

    Returns:
        The table.

    Example:
        >>> rules().splitlines()[1].split()[:3]
        ['DS001', 'unreadable-file', 'error']
    """
    rows = [
        (
            rule.code,
            rule.name,
            rule.severity.value,
            "preview" if rule.preview else "on" if rule.default else "off",
            rule.summary,
        )
        for rule in RULES
    ]
    return aligned([("code", "name", "severity", "default", "mistake"), *rows])


def statistics(findings: Sequence[Finding]) -> str:
    """How often each rule was broken, the most frequent first.

    Args:
        findings: the findings.

    Returns:
        The table; "" without findings.

    Example:
        >>> statistics([])
        ''
    """
    counts = Counter((at.code, at.name, at.severity.value) for at in findings)
    fixable = Counter(at.code for at in findings if at.fix)
    rows = [
        (*rule, str(count), str(fixable[rule[0]]))
        for rule, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    if not rows:
        return ""
    return aligned([("code", "name", "severity", "count", "fixable"), *rows], numbers=(3, 4))


def aligned(rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """Write rows in columns of one width each.

    Args:
        rows: the rows, of one length.
        numbers: which columns are flush right.

    Returns:
        A line for each row.

    Example:
        >>> print(aligned([("code", "count"), ("DS101", "12")], numbers=[1]), end="")
        code   count
        DS101     12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if number in numbers else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)
