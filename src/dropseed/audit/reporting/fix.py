"""Fixes made in files: only the edited pieces change, and what doesn't parse then is not written.

Fixes are made in memory, in rounds: a file is looked at again with its fixes made, until there is
nothing to fix. So each file is written once, or shown as a difference.
"""

from __future__ import annotations

import difflib
import re
from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from pathlib import Path

from dropseed.audit.finding import Edit, Finding, Fix
from dropseed.audit.reading.source import LINE_END, UnreadableError, decode, parse
from dropseed.audit.reporting.notebook import Change, cell_sources, replaced
from dropseed.audit.reporting.write import write_whole

ROUNDS = 10
"""More rounds than any chain of fixes needs."""


class UnfixableError(Exception):
    """A file that must be left as it is; the message says why."""


@dataclass
class Fixed:
    """What fixing came to.

    Attributes:
        old: the contents of the files that change.
        new: what they are to be.
        count: how many fixes were made in each.
        refused: the files that were left as they are, with the reason.
        findings: what is left.
    """

    old: dict[Path, bytes] = field(default_factory=dict)
    new: dict[Path, bytes] = field(default_factory=dict)
    count: dict[Path, int] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def fix_all(look: Callable[[Mapping[Path, bytes]], list[Finding]]) -> Fixed:
    """Make the fixes of all findings, in memory, until there are no more.

    Args:
        look: the findings, given the contents of files that differ from those on the disk.

    Returns:
        What the files are to be.
    """
    result = Fixed()
    for _ in range(ROUNDS):
        result.findings = look(result.new)
        changed = [_fix_file(*file, result) for file in _by_file(result.findings)]
        if not any(changed):
            break
    else:
        result.findings = look(result.new)
    return result


def write_fixed(result: Fixed) -> None:
    """Write the files; one that can't be written is moved to those that were refused.

    Args:
        result: what `fix_all` returned.
    """
    for path, data in [*result.new.items()]:
        try:
            now = path.read_bytes()
            if now == result.old[path]:
                write_whole(path, data)
            elif now != data:  # it may be there already, under another name
                raise OSError(0, "it has changed meanwhile")
        except OSError as error:
            result.refused[path] = error.strerror or str(error)
            del result.new[path], result.count[path]


def fixed(data: bytes, fixes: Sequence[Fix], notebook: bool = False) -> tuple[bytes, int]:
    """Make fixes in a file's bytes. Of two that overlap, the first is made.

    Args:
        data: the file.
        fixes: the fixes, in the order of their importance.
        notebook: whether it is a notebook.

    Returns:
        The file with the fixes, and how many were made.

    Raises:
        UnfixableError: the file would not parse, or does not keep its other parts.

    Example:
        >>> from dropseed.audit.finding import Span
        >>> fix = Fix("Call g", (Edit(Span(1, 1, 1, 2), "g"),))
        >>> fixed(b"f(x)  # on", [fix])
        (b'g(x)  # on', 1)
    """
    try:
        source = decode(data, notebook)
        encoding = source.encoding
        if notebook:
            encoding = "utf-8-sig" if data.startswith(b"\xef\xbb\xbf") else "utf-8"
        text = data.decode(encoding)
        if text.encode(encoding) != data:
            raise UnfixableError(f"its {encoding} can't be written back as it was")
        made = _compatible(fixes)
        edits = [edit for fix in made for edit in fix.edits]
        result = (_edited_notebook if notebook else _edited)(text, edits).encode(encoding)
        broken = len(parse(source)[1])
        if len(parse(decode(result, notebook))[1]) > broken:
            raise UnfixableError("with the fixes a cell would not parse")
    except UnreadableError as error:
        raise UnfixableError(f"with the fixes it would not parse ({error.reason})") from error
    except UnicodeError as error:
        raise UnfixableError(f"the fixes can't be written in {encoding}") from error
    return result, len(made)


def difference(result: Fixed, name: Callable[[Path], str]) -> bytes:
    """The change as a unified diff that `git apply` takes.

    Args:
        result: what `fix_all` returned.
        name: gives a file's path as it is to be shown.

    Returns:
        The diff, in the files' own encodings.
    """
    out: list[bytes] = []
    for path, new in sorted(result.new.items()):
        shown = name(path).encode(errors="surrogateescape")
        old_lines, new_lines = _LINE.findall(result.old[path]), _LINE.findall(new)
        out += difflib.diff_bytes(
            difflib.unified_diff, old_lines, new_lines, b"a/" + shown, b"b/" + shown
        )
    return b"".join(line if line.endswith(b"\n") else line + _NO_NEWLINE for line in out)


Extent = tuple[int, tuple[int, int], tuple[int, int]]
"""Cell, start and end of an edit."""

_LINE = re.compile(rb"[^\n]*\n|[^\n]+")
_NO_NEWLINE = b"\n\\ No newline at end of file\n"


def _by_file(findings: Sequence[Finding]) -> Iterator[tuple[Path, list[Fix]]]:
    for (root, path), group in groupby(findings, key=lambda at: (at.root, at.path)):
        fixes = [finding.fix for finding in group if finding.fix]
        if fixes:
            yield Path(root, path), fixes


def _fix_file(path: Path, fixes: Sequence[Fix], result: Fixed) -> bool:
    """Make a file's fixes; whether it is another file now."""
    try:
        old = result.old.get(path)
        if old is None:
            old = path.read_bytes()
        before = result.new.get(path, old)
        after, made = fixed(before, fixes, notebook=path.suffix == ".ipynb")
    except (UnfixableError, OSError) as error:
        result.refused[path] = getattr(error, "strerror", None) or str(error)
        return False
    if after == before:
        return False
    result.old[path], result.new[path] = old, after
    result.count[path] = result.count.get(path, 0) + made
    return True


def _compatible(fixes: Sequence[Fix]) -> list[Fix]:
    """The fixes that overlap no earlier one, nor begin where it begins."""
    made: list[Fix] = []
    taken: list[Extent] = []
    for fix in fixes:
        extents = sorted(_extent(edit) for edit in fix.edits)
        clash = any(_overlap(*pair) for pair in pairwise(extents))
        if not clash and not any(_overlaps_any(extent, taken) for extent in extents):
            made.append(fix)
            for extent in extents:
                insort(taken, extent)
    return made


def _extent(edit: Edit) -> Extent:
    at = edit.span
    return at.cell or 0, (at.line, at.column), (at.end_line, at.end_column)


def _overlaps_any(extent: Extent, taken: Sequence[Extent]) -> bool:
    """Whether one of some sorted extents, none of which overlap, overlaps another."""
    index = bisect_left(taken, extent)
    return any(_overlap(extent, other) for other in taken[max(index - 1, 0) : index + 1])


def _overlap(one: Extent, other: Extent) -> bool:
    (cell, start, end), (other_cell, other_start, other_end) = one, other
    crossing = start < other_end and other_start < end
    return cell == other_cell and (start == other_start or crossing)


def _edited(text: str, edits: Sequence[Edit]) -> str:
    parts, done = [], 0
    for start, end, new in sorted(_changes(text, edits)):
        parts += [text[done:start], new]
        done = end
    return "".join([*parts, text[done:]])


def _edited_notebook(text: str, edits: Sequence[Edit]) -> str:
    """Change the cells from the last to the first, so that places before them stay."""
    sources = cell_sources(text)
    for number in sorted({edit.span.cell or 0 for edit in edits}, reverse=True):
        source = sources.get(number)
        if source is None or not source.pieces:
            raise UnfixableError(f"it has no cell {number}")
        inside = [edit for edit in edits if edit.span.cell == number]
        text = replaced(text, source, _changes(source.text, inside))
    return text


def _changes(text: str, edits: Sequence[Edit]) -> list[Change]:
    """Edits as places in a text; line ends in them become those of the text."""
    ends = [*LINE_END.finditer(text)]
    starts = [0, *(match.end() for match in ends)]
    stops = [*(match.start() for match in ends), len(text)]
    changes = []
    for edit in edits:
        at = edit.span
        start = _offset(at.line, at.column, starts, stops)
        end = _offset(at.end_line, at.end_column, starts, stops)
        if end < start:
            raise UnfixableError("a fix ends before it begins")
        nearest = ends[min(at.line, len(ends)) - 1][0] if ends else "\n"
        changes.append((start, end, LINE_END.sub(nearest, edit.text)))
    return changes


def _offset(line: int, column: int, starts: Sequence[int], stops: Sequence[int]) -> int:
    if not 1 <= line <= len(starts):
        raise UnfixableError(f"it has no line {line}")
    offset = starts[line - 1] + column - 1
    if not starts[line - 1] <= offset <= stops[line - 1]:
        raise UnfixableError(f"line {line} has no column {column}")
    return offset
