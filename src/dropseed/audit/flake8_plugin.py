"""The auditor as a flake8 plugin: `flake8 --select DS`, in editors and hooks that run flake8.

All files that flake8 is given are scanned together, once, so that names are followed from file to
file as `dropseed audit` follows them. `[tool.dropseed.audit]` of pyproject.toml counts; `# noqa`
comments are flake8's own business.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from dropseed.audit.cache import default_folder
from dropseed.audit.engine import check_source, scan
from dropseed.audit.finding import Finding
from dropseed.audit.reporting.config import read_config
from dropseed.audit.reporting.release import release
from dropseed.audit.reporting.select import active, chosen
from dropseed.errors import DropseedError

Problem = tuple[int, int, str, type]
"""Line from 1, column from 0, code with message, and the plugin."""


class Plugin:
    """What flake8 calls for each file.

    Args:
        tree: the parsed file.
        filename: its name, or "stdin".
        lines: its lines with their ends.

    Example:
        >>> text = "import torch.nn.functional as F" + chr(10) + "def f(x): return F.dropout(x)"
        >>> [problem[0] for problem in Plugin(ast.parse(text), "stdin", [text]).run()]
        [2]
    """

    name = "dropseed"
    version = release()
    found: ClassVar[dict[str, list[Finding]]] = {}
    """The findings of scanned files, by absolute path."""
    scanned: ClassVar[list[Path]] = []
    """What was scanned: files and folders, absolute."""

    def __init__(self, tree: ast.AST, filename: str, lines: Sequence[str]) -> None:
        self._filename, self._lines = filename, lines

    @classmethod
    def parse_options(cls, options: Any) -> None:
        """Scan what flake8 was given, before it starts processes of its own."""
        paths = [Path(name) for name in options.filenames or ["."] if os.path.exists(name)]
        try:
            cls.found = _scanned(paths, [*options.exclude, *options.extend_exclude])
            cls.scanned = [Path(os.path.abspath(path)) for path in paths]
        except DropseedError as error:
            raise SystemExit(f"dropseed: {error}") from error

    def run(self) -> Iterator[Problem]:
        """Yield the findings of the file."""
        path = Path(os.path.abspath(self._filename))
        scanned = any(path.is_relative_to(one) for one in self.scanned)
        known = map(_problem, self.found.get(str(path), ()))
        for line, column, text in known if scanned else self._alone():
            yield line, column - 1, text, type(self)

    def _alone(self) -> Iterator[tuple[int, int, str]]:
        """The findings of a text that was not scanned: an editor's, on stdin."""
        path, text = Path(self._filename), "".join(self._lines)
        if path.is_file():
            contents = {path: text.encode(errors="surrogatepass")}
            found = _scanned([path], contents=contents)
            yield from map(_problem, found.get(os.path.abspath(path), ()))
            return
        codes = active(read_config(Path()))
        for code, hit in check_source(text):
            if code in codes:
                yield hit.span.line, hit.span.column, f"{code} {hit.message}"


def _scanned(
    paths: Sequence[Path],
    exclude: Sequence[str] = (),
    contents: Mapping[Path, bytes] | None = None,
) -> dict[str, list[Finding]]:
    """The findings to be reported, by the absolute path of each file that was read."""
    if not paths:
        return {}
    config = read_config(paths[0])
    report = scan(
        paths, exclude=[*config.exclude, *exclude], cache=default_folder(), contents=contents
    )
    for file, comments in report.ignores.items():
        report.ignores[file] = [one for one in comments if not one.noqa]
    found: dict[str, list[Finding]] = {}
    for finding in chosen(report, config):
        path = os.path.abspath(Path(finding.root, finding.path))
        found.setdefault(path, []).append(finding)
    return found


def _problem(finding: Finding) -> tuple[int, int, str]:
    return finding.span.line, finding.span.column, f"{finding.code} {finding.message}"
