"""Which findings are reported: those of the selected rules that no comment silences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dropseed.audit.finding import Finding, Fix, Severity
from dropseed.audit.reporting.config import Config, matches
from dropseed.audit.reporting.ignore import Ignore, without
from dropseed.audit.rule import Rule
from dropseed.audit.rules import RULES, unreadable_file
from dropseed.audit.rules.unused_ignore import RULE

if TYPE_CHECKING:
    from dropseed.audit.engine import Report

File = tuple[str, str]
"""A root, and a file's path in it."""

Line = tuple[File, int | None, int]
"""A file, a notebook's cell, and a line."""

_SEVERITIES = list(Severity)


def active(config: Config) -> frozenset[str]:
    """The codes of the rules that are reported.

    The longest code or prefix that names a rule decides; of two equal ones that in `ignore`. A rule
    selected by its full code is reported whatever its severity. A file that can't be read is
    reported whatever is selected.

    Args:
        config: what was asked for.

    Returns:
        The codes.

    Example:
        >>> codes = active(Config(select=("DS1",), ignore=("DS103",)))
        >>> "DS101" in codes, "DS103" in codes
        (True, False)
    """
    return frozenset(rule.code for rule in RULES if _active(rule, config))


def without_preview(config: Config) -> list[str]:
    """The rules in preview that are selected by their code, where preview is off.

    Args:
        config: what was asked for.

    Returns:
        Their codes.

    Example:
        >>> without_preview(Config(select=("DS101",)))
        []
    """
    if config.preview:
        return []
    return [rule.code for rule in RULES if rule.preview and rule.code in (config.select or ())]


def chosen(report: Report, config: Config) -> list[Finding]:
    """The findings of a scan that are to be reported, with those of comments without effect.

    Args:
        report: the scan.
        config: what was asked for.

    Returns:
        The findings, sorted by place.
    """
    codes = active(config)
    comments = _by_line(report)
    used: set[tuple[File, Ignore, str]] = set()
    found: list[Finding] = []
    for finding in dict.fromkeys(report.findings):  # paths may have named a file twice
        file = finding.root, finding.path
        silent = _silencing(finding, comments)
        for one in silent:
            used |= {(file, one, code) for code in one.codes or () if finding.code.startswith(code)}
        if finding.code in codes and not silent:
            found.append(finding)
    if RULE.code in codes:
        for file, in_file in report.ignores.items():
            idle = [_idle(file, one, used, codes) for one in in_file]
            found += [at for at in idle if at and not _silencing(at, comments)]
    found = [finding for finding in found if not _left_out(finding, config)]
    return sorted(found, key=lambda at: (at.root, at.path, at.span.cell or 0, at.span, at.code))


def _by_line(report: Report) -> dict[Line, list[Ignore]]:
    """The comments by the line in which they are."""
    found: dict[Line, list[Ignore]] = {}
    for file, in_file in report.ignores.items():
        for one in in_file:
            found.setdefault((file, one.span.cell, one.span.line), []).append(one)
    return found


def _silencing(finding: Finding, comments: dict[Line, list[Ignore]]) -> list[Ignore]:
    """The comments that silence a finding: in its first line, and in its last."""
    file, at = (finding.root, finding.path), finding.span
    return [
        one
        for line in {at.line, at.end_line}
        for one in comments.get((file, at.cell, line), ())
        if one.silences(finding)
    ]


def _active(rule: Rule, config: Config) -> bool:
    picked = 0 if config.select is None else _longest(config.select, rule)
    if rule is unreadable_file.RULE:
        picked = max(picked, 0)
    if picked < 0 or 0 < _longest(config.ignore, rule) >= picked:
        return False
    if rule.preview and not config.preview:
        return False
    severe = _SEVERITIES.index(rule.severity) <= _SEVERITIES.index(config.severity)
    return severe or picked == len(rule.code)


def _longest(codes: Sequence[str], rule: Rule) -> int:
    return max((len(code) for code in codes if rule.code.startswith(code)), default=-1)


def _left_out(finding: Finding, config: Config) -> bool:
    path = Path(finding.root, finding.path)
    if any(matches(path, pattern, config.root) for pattern in config.exclude):
        return True
    return any(
        finding.code.startswith(codes) and matches(path, pattern, config.root)
        for pattern, codes in config.per_file_ignores.items()
    )


def _idle(
    file: File, ignore: Ignore, used: set[tuple[File, Ignore, str]], active_codes: frozenset[str]
) -> Finding | None:
    """The finding of a comment with codes that silence nothing, or without any."""
    if ignore.codes is None:
        return None
    idle, unknown = [], []
    for code in ignore.codes:
        rules = {rule.code for rule in RULES if rule.code.startswith(code)}
        if not rules:
            unknown.append(code)
        elif rules & active_codes and (file, ignore, code) not in used:
            idle.append(code)
    parts = []
    if idle:
        parts.append(f"{' and '.join(idle)} {_verb(idle, 'silences', 'silence')} nothing here")
    if unknown:
        what = _verb(unknown, "is no rule's code", "are no rules' codes")
        parts.append(f"{' and '.join(unknown)} {what}")
    if not ignore.codes:
        parts.append("`dropseed: ignore` needs codes, for instance `ignore[DS101]`")
    if not parts:
        return None
    fix = Fix(f"Remove {', '.join(idle + unknown)}", (without(ignore, idle + unknown),))
    root, path = file
    return Finding(
        RULE.code,
        RULE.name,
        RULE.severity,
        path,
        root,
        ignore.span,
        "; ".join(parts),
        fix if ignore.codes else None,
    )


def _verb(subjects: Sequence[str], one: str, several: str) -> str:
    return one if len(subjects) == 1 else several
