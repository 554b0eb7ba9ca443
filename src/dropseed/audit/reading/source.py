"""A file as it is read: its text, its cells if it is a notebook, and places in it.

The parser sees one Python text. A notebook's code cells are joined to one, with what IPython adds
to the language blanked out; places are counted within the cell.
"""

from __future__ import annotations

import ast
import io
import json
import re
import sys
import tokenize
import warnings
from bisect import bisect_right
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dropseed.audit.finding import Span

LINE_END = re.compile(r"\r\n|\r|\n")
"""What ends a line for Python; `str.splitlines` knows more ends than the parser does."""

_PYTHON = ".".join(map(str, sys.version_info[:2]))
_MAGIC = re.compile(r"\s*[%!?]|.*=\s*[%!]|[^#'\"]*\?\??\s*$")
_PYTHON_CELLS = re.compile(r"%%(?:time|timeit|capture|prun|memit|skip_if\w*)\b")


class UnreadableError(Exception):
    """A file that can't be checked, with the reason and its place.

    Attributes:
        reason: in words.
        line: from 1.
        column: from 1.
    """

    def __init__(self, reason: str, line: int = 1, column: int = 1) -> None:
        super().__init__(reason)
        self.reason, self.line, self.column = reason, line, column


@dataclass(frozen=True)
class Cell:
    """A code cell of a notebook.

    Attributes:
        number: counted from 1 over all cells of the notebook.
        line: the joined text's line, from 0, at which it begins.
        text: as the notebook has it.
    """

    number: int
    line: int
    text: str


@dataclass
class Source:
    """The text of a file.

    Attributes:
        text: what the parser sees.
        cells: the code cells, if it is a notebook.
        encoding: of a plain file; with a byte order mark "utf-8-sig".
    """

    text: str
    cells: list[Cell] = field(default_factory=list)
    encoding: str = "utf-8"

    @cached_property
    def lines(self) -> list[str]:
        """The lines without their ends."""
        return LINE_END.split(self.text)

    def span(self, node: ast.expr | ast.stmt | ast.excepthandler | ast.arg | ast.keyword) -> Span:
        """Where a node stands."""
        return self.between(
            node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0
        )

    def between(self, line: int, offset: int, end_line: int, end_offset: int) -> Span:
        """A span from the parser's numbers: lines from 1, columns in bytes of UTF-8 from 0."""
        cell = self.cell_at(line)
        first = cell.line if cell else 0
        return Span(
            line - first,
            self.column(line, offset),
            end_line - first,
            self.column(end_line, end_offset),
            cell.number if cell else None,
        )

    def column(self, line: int, offset: int) -> int:
        """The column, in characters from 1, of a byte of a line."""
        text = self.lines[line - 1]
        if text.isascii():
            return offset + 1
        return len(text.encode()[:offset].decode(errors="ignore")) + 1

    def cell_at(self, line: int) -> Cell | None:
        """The cell in which a line of the joined text lies."""
        if not self.cells:
            return None
        return self.cells[max(bisect_right([cell.line for cell in self.cells], line - 1) - 1, 0)]


def decode(data: bytes, notebook: bool = False) -> Source:
    """Read a file's bytes.

    Args:
        data: the whole file.
        notebook: whether it is a notebook.

    Returns:
        The source.

    Raises:
        UnreadableError: the bytes are no text in the encoding that they declare, or no notebook.

    Example:
        >>> decode(b"x = 1").lines
        ['x = 1']
    """
    if notebook:
        return _notebook(data)
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise UnreadableError("a null byte: this is not a text file", line)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return Source(data.decode(encoding), encoding=encoding)
    except SyntaxError as error:
        unknown = "unknown" in str(error.msg)
        reason = f"{error.msg}" if unknown else "not utf-8, and no other encoding is declared"
        raise UnreadableError(reason) from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"not {error.encoding}: {error.reason}", line) from error


def parse(source: Source) -> tuple[ast.Module, list[UnreadableError]]:
    """Parse a source. In a notebook a cell that does not parse is left out, and named.

    Args:
        source: the source; cells that don't parse are blanked out in it.

    Returns:
        The tree, and what was left out.

    Raises:
        UnreadableError: a plain file does not parse.
    """
    left_out: list[UnreadableError] = []
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(source.text), left_out
        except SyntaxError as error:
            reason = f"syntax error for Python {_PYTHON}: {error.msg}"
            problem = UnreadableError(reason, error.lineno or 1, error.offset or 1)
        except (RecursionError, MemoryError, ValueError) as error:
            problem = UnreadableError(f"the parser gave up ({type(error).__name__}: {error})")
        cell = source.cell_at(problem.line)
        if cell is None or not _blank(source, cell):
            raise problem
        left_out.append(problem)


def _blank(source: Source, cell: Cell) -> bool:
    """Empty a cell's lines in the joined text; False if they were empty."""
    end = cell.line + cell.text.count("\n") + 1
    lines = source.text.split("\n")
    if not any(lines[cell.line : end]):
        return False
    lines[cell.line : end] = [""] * (end - cell.line)
    source.text = "\n".join(lines)
    return True


def _notebook(data: bytes) -> Source:
    try:
        book: Any = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise UnreadableError(f"not a notebook: {error}", line) from error
    found = book.get("cells") if isinstance(book, dict) else None
    if not isinstance(found, list):
        raise UnreadableError("not a notebook: it has no list of cells (version 4 is needed)")
    cells: list[Cell] = []
    lines: list[str] = []
    if _language(book) == "python":
        for number, cell in enumerate(found, 1):
            if isinstance(cell, dict) and cell.get("cell_type") == "code":
                text = LINE_END.sub("\n", _text(cell.get("source")))
                cells.append(Cell(number, len(lines), text))
                lines += text.split("\n") if _parses(text) else _plain_python(text.split("\n"))
    return Source("\n".join(lines), cells)


def _text(source: object) -> str:
    """A cell's source: a text, or a list of its lines."""
    if isinstance(source, list):
        return "".join(line for line in source if isinstance(line, str))
    return source if isinstance(source, str) else ""


def _language(book: dict[str, Any]) -> str:
    metadata = book.get("metadata")
    for name, key in (("language_info", "name"), ("kernelspec", "language")):
        entry = metadata.get(name) if isinstance(metadata, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            return str(entry[key]).lower()
    return "python"


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _plain_python(lines: list[str]) -> list[str]:
    """A cell's lines with IPython's own syntax replaced by `pass`, line by line."""
    if lines[0].startswith("%%"):
        if not _PYTHON_CELLS.match(lines[0]):
            return [""] * len(lines)
        lines = ["", *lines[1:]]
    result, joined = [], False
    for line in lines:
        magic = joined or _MAGIC.match(line) is not None
        indent = line[: len(line) - len(line.lstrip())]
        result.append((indent + "pass" if not joined else "") if magic else line)
        joined = magic and line.endswith("\\")
    return result
