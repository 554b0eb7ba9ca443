"""Where a finding is in its file: a notebook's cells are counted out to lines of the JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dropseed.audit.finding import Finding
from dropseed.audit.reporting.notebook import CellSource, cell_sources, file_line


@dataclass(frozen=True)
class Region:
    """A piece of a file, whatever kind it is.

    Attributes:
        line: the first line, from 1.
        end_line: the last line.
        column: the first character, from 1; None in a notebook, whose JSON has other columns.
        end_column: the character after the last; None in a notebook.
    """

    line: int
    end_line: int
    column: int | None = None
    end_column: int | None = None


class Regions:
    """Reads each notebook once."""

    def __init__(self) -> None:
        self._books: dict[Path, tuple[str, dict[int, CellSource]]] = {}

    def of(self, finding: Finding) -> Region:
        """The region of a finding."""
        at = finding.span
        if at.cell is None:
            return Region(at.line, at.end_line, at.column, at.end_column)
        path = Path(finding.root, finding.path)
        if path not in self._books:
            self._books[path] = _read(path)
        text, sources = self._books[path]
        source = sources.get(at.cell)
        if source is None:
            return Region(1, 1)
        return Region(file_line(text, source, at.line), file_line(text, source, at.end_line))


def _read(path: Path) -> tuple[str, dict[int, CellSource]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return text, cell_sources(text)
    except (OSError, ValueError, IndexError, RecursionError):
        return "", {}
