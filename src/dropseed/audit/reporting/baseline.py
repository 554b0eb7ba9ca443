"""Findings that are known: a project begins with those it has, and hears of new ones only.

A finding is known by its file, its rule and the text of its line, so that it stays known when
lines move. Equal ones are counted.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dropseed.audit.finding import Finding
from dropseed.audit.reporting.lines import Lines
from dropseed.audit.reporting.write import write_whole
from dropseed.errors import InvalidValueError

VERSION = 1

Key = tuple[str, str, str]
"""Path relative to a folder, code, and the line without the space around it."""


def keys(
    findings: Sequence[Finding], folder: Path, contents: Mapping[Path, bytes] | None = None
) -> list[Key]:
    """What each finding is known by.

    Args:
        findings: the findings; their files are read.
        folder: what the paths are relative to, so that they don't depend on the scanned root.
        contents: of files that differ from those on the disk.

    Returns:
        The keys, in the same order.
    """
    lines = Lines(contents)
    return [
        (relative(Path(at.root, at.path), folder), at.code, lines.first(at).strip())
        for at in findings
    ]


def relative(path: Path, folder: Path) -> str:
    """A path seen from a folder, with forward slashes.

    Args:
        path: the path.
        folder: the folder.

    Returns:
        The relative path; the absolute one where there is no way, as between drives.

    Example:
        >>> relative(Path("/a/b/c.py"), Path("/a/d"))
        '../b/c.py'
    """
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def write_baseline(path: Path, findings: Sequence[Finding]) -> None:
    """Write down findings as known.

    Args:
        path: the file, JSON.
        findings: the findings.

    Raises:
        OSError: it can't be written.
    """
    counts = Counter(keys(findings, path.parent))
    known = [
        {"path": file, "code": code, "line": line, "count": count}
        for (file, code, line), count in sorted(counts.items())
    ]
    text = json.dumps({"version": VERSION, "findings": known}, indent=2, ensure_ascii=False)
    # Names of files that are no text have surrogates, which JSON writes as this does.
    write_whole(path, (text + "\n").encode(errors="backslashreplace"))


def read_baseline(path: Path) -> Counter[Key]:
    """The known findings.

    Args:
        path: a file that `write_baseline` wrote.

    Returns:
        How often each occurs.

    Raises:
        InvalidValueError: it can't be read, or is no such file.
    """
    try:
        return _counts(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidValueError(
            f"`--baseline` {path} can't be read ({type(error).__name__}: {error}). Delete it to "
            "have it written anew."
        ) from error


def unknown(
    findings: Sequence[Finding],
    known: Counter[Key],
    folder: Path,
    contents: Mapping[Path, bytes] | None = None,
) -> tuple[list[Finding], Counter[Key]]:
    """The findings that a baseline does not have.

    Args:
        findings: all findings, sorted; of equal ones the first are the known ones.
        known: what the baseline has.
        folder: that of the baseline's file.
        contents: of files that differ from those on the disk.

    Returns:
        The findings that are new, and what of the known did not occur.

    Example:
        >>> new, gone = unknown([], Counter({("a.py", "DS101", "F.dropout(x)"): 2}), Path())
        >>> gone.total()
        2
    """
    left = Counter(known)
    new = []
    for finding, key in zip(findings, keys(findings, folder, contents), strict=True):
        if left[key] > 0:
            left[key] -= 1
        else:
            new.append(finding)
    return new, +left


def within(known: Counter[Key], folder: Path, paths: Sequence[Path]) -> int:
    """How many known findings lie in files that were scanned.

    Args:
        known: the findings.
        folder: that of the baseline's file.
        paths: the scanned files and folders.

    Returns:
        The number.

    Example:
        >>> within(Counter({("src/a.py", "DS101", ""): 2, ("b.py", "DS101", ""): 1}),
        ...        Path(), [Path("src")])
        2
    """
    places = [Path(os.path.abspath(path)) for path in paths]
    return sum(
        count
        for (file, _, _), count in known.items()
        if any(Path(os.path.abspath(folder / file)).is_relative_to(place) for place in places)
    )


def _counts(content: Any) -> Counter[Key]:
    if content["version"] != VERSION:
        raise ValueError(f"its version is {content['version']}, not {VERSION}")
    counts: Counter[Key] = Counter()
    for entry in content["findings"]:
        key = entry["path"], entry["code"], entry["line"]
        if not all(isinstance(part, str) for part in key):
            raise TypeError(f"path, code and line must be strings; got {key}")
        counts[key] += int(entry["count"])
    return counts
