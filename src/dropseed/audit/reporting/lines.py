"""The source lines that findings point at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dropseed.audit.finding import Finding
from dropseed.audit.reading.source import LINE_END, UnreadableError, decode


class Lines:
    """Reads each file once.

    Args:
        contents: of files that differ from those on the disk.

    Example:
        >>> from dropseed.audit.finding import Severity, Span
        >>> at = Finding("DS101", "", Severity.ERROR, "no.py", "", Span(1, 1, 1, 1), "on")
        >>> Lines().of(at)
        []
    """

    def __init__(self, contents: Mapping[Path, bytes] | None = None) -> None:
        self._contents = contents or {}
        self._files: dict[tuple[Path, int | None], list[str]] = {}

    def of(self, finding: Finding) -> list[str]:
        """The lines of a finding's file or cell, without their ends; none if it can't be read."""
        path, cell = Path(finding.root, finding.path), finding.span.cell
        if (path, cell) not in self._files:
            self._files |= {(path, number): lines for number, lines in self._read(path).items()}
        return self._files.setdefault((path, cell), [])

    def first(self, finding: Finding) -> str:
        """The line in which a finding begins; "" if there is none."""
        lines, number = self.of(finding), finding.span.line
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def _read(self, path: Path) -> dict[int | None, list[str]]:
        """The lines of a file under None, or of a notebook's code cells under their numbers."""
        try:
            data = self._contents[path] if path in self._contents else path.read_bytes()
        except OSError:
            return {}
        try:
            source = decode(data, notebook=path.suffix == ".ipynb")
        except UnreadableError:
            return {None: LINE_END.split(data.decode(errors="replace"))}
        if source.cells:
            return {cell.number: cell.text.split("\n") for cell in source.cells}
        return {None: source.lines}
