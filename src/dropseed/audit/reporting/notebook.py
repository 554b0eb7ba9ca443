"""Where a notebook's text is in its file: each cell's source as JSON strings with their places.

A notebook is changed by changing those strings alone; everything else in the file stays as it is,
byte for byte, whoever formatted it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from dropseed.audit.reading.source import LINE_END

_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
_LINE = re.compile(r"[^\n]*\n|[^\n]+")

Change = tuple[int, int, str]
"""Start and end, in characters of a cell's text, and what stands there afterwards."""


@dataclass(frozen=True)
class Piece:
    """A JSON string in a text.

    Attributes:
        start: where it begins, at its quotation mark.
        end: where it ends, behind its quotation mark.
        value: what it stands for.
    """

    start: int
    end: int
    value: str


@dataclass(frozen=True)
class CellSource:
    """The source of a cell, which a notebook has as one string or as a list of strings.

    Attributes:
        pieces: the strings.
        separator: what parts two strings of the list; "" if it is one string.
    """

    pieces: Sequence[Piece]
    separator: str

    @property
    def text(self) -> str:
        """The cell's text."""
        return "".join(piece.value for piece in self.pieces)


def cell_sources(text: str) -> dict[int, CellSource]:
    r"""Find the sources of all cells.

    Args:
        text: a notebook that `json.loads` takes.

    Returns:
        The sources by the number of their cell, counted from 1.

    Example:
        >>> cell_sources(r'{"cells": [{"source": ["a\n", "b"]}]}')[1].text
        'a\nb'
    """
    found: dict[int, CellSource] = {}
    for key, start in _members(text, _skip(text, 0)):
        if key == "cells":  # of two equal keys the last counts, as in `json.loads`
            found = dict(enumerate(_cells(text, start), 1))
    return found


def replaced(text: str, source: CellSource, changes: Sequence[Change]) -> str:
    r"""Change a cell's text. Strings that no change touches stay as they are.

    Args:
        text: the notebook.
        source: one of its cells' source, with at least one string.
        changes: what changes in the cell's text, without overlap.

    Returns:
        The notebook with the changes.

    Example:
        >>> book = r'{"cells": [{"source": ["a\n", "b"]}]}'
        >>> replaced(book, cell_sources(book)[1], [(2, 3, "c")])
        '{"cells": [{"source": ["a\\n", "c"]}]}'
    """
    ends = [*accumulate(len(piece.value) for piece in source.pieces)]
    for first, last, inside in reversed(_groups(ends, changes)):
        pieces = source.pieces[first : last + 1]
        base = ends[first] - len(pieces[0].value)
        value = "".join(piece.value for piece in pieces)
        for start, end, new in reversed(inside):
            value = value[: start - base] + new + value[end - base :]
        strings = _LINE.findall(value) or [""] if source.separator else [value]
        # A file without any character beyond ASCII may be one that escapes them.
        written = [json.dumps(string, ensure_ascii=text.isascii()) for string in strings]
        text = text[: pieces[0].start] + source.separator.join(written) + text[pieces[-1].end :]
    return text


def file_line(text: str, source: CellSource, line: int) -> int:
    r"""The line of a notebook's file at which a line of a cell begins.

    Args:
        text: the notebook.
        source: one of its cells' source.
        line: the cell's line, from 1.

    Returns:
        The file's line, from 1.

    Example:
        >>> book = '{"cells": [{"source": [\n"a\\n",\n"b"]}]}'
        >>> file_line(book, cell_sources(book)[1], 2)
        3
    """
    begins = [0, *(match.end() for match in LINE_END.finditer(source.text))]
    offset = begins[min(line, len(begins)) - 1]
    place = 0
    for piece in source.pieces:
        place = piece.start
        offset -= len(piece.value)
        if offset < 0:
            break
    return text.count("\n", 0, place) + 1


def _groups(ends: Sequence[int], changes: Sequence[Change]) -> list[tuple[int, int, list[Change]]]:
    """(first string, last string, changes) for each run of strings that changes touch."""
    groups: list[tuple[int, int, list[Change]]] = []
    for change in sorted(changes):
        first = next((n for n, end in enumerate(ends) if change[0] < end), len(ends) - 1)
        last = next((n for n, end in enumerate(ends) if change[1] <= end), len(ends) - 1)
        last, inside = max(first, last), [change]
        if groups and groups[-1][1] >= first:
            before = groups.pop()
            first, last, inside = before[0], max(last, before[1]), before[2] + inside
        groups.append((first, last, inside))
    return groups


def _cells(text: str, at: int) -> Iterator[CellSource]:
    for start, _ in _elements(text, at):
        source = CellSource((), "")
        if text[start] == "{":
            for key, place in _members(text, start):
                if key == "source":
                    source = _source(text, place)
        yield source


def _source(text: str, at: int) -> CellSource:
    if text[at] == '"':
        return CellSource((_piece(text, at),), "")
    if text[at] != "[":
        return CellSource((), "")
    pieces = [_piece(text, start) for start, _ in _elements(text, at)]
    if len(pieces) > 1:
        return CellSource(pieces, text[pieces[0].end : pieces[1].start])
    return CellSource(pieces, "," + (text[at + 1 : _skip(text, at + 1)] or " "))


def _piece(text: str, at: int) -> Piece:
    value, end = _DECODER.raw_decode(text, at)
    return Piece(at, end, value)


def _members(text: str, at: int) -> Iterator[tuple[str, int]]:
    """(key, where its value begins) of the object that begins at a place."""
    for start, end in _elements(text, at, key=True):
        yield _DECODER.raw_decode(text, start)[0], _skip(text, _skip(text, end) + 1)


def _elements(text: str, at: int, key: bool = False) -> Iterator[tuple[int, int]]:
    """(start, end) of each value of the list that begins at a place, or each key of the object."""
    at = _skip(text, at + 1)
    while text[at] not in "]}":
        end = _DECODER.raw_decode(text, at)[1]
        yield at, end
        if key:
            end = _DECODER.raw_decode(text, _skip(text, _skip(text, end) + 1))[1]
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    """The first place from here that is no space."""
    while text[at] in _SPACE:
        at += 1
    return at
