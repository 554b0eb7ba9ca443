"""Which files a scan reads, and the modules that they are."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dropseed.errors import InvalidValueError

EXTENSIONS = (".py", ".ipynb")

SKIPPED = frozenset(
    {
        ".bzr", ".direnv", ".eggs", ".git", ".hg", ".ipynb_checkpoints", ".mypy_cache", ".nox",
        ".pytest_cache", ".ruff_cache", ".svn", ".tox", ".venv", "__pycache__", "build", "dist",
        "node_modules", "venv",
    }
)  # fmt: skip
"""Folders that hold nobody's source. A path that is given by name is read all the same."""


@dataclass(frozen=True)
class Entry:
    """A file to be read.

    Attributes:
        path: where it is.
        root: the scanned root, as the user wrote it; for a single file its folder.
        name: the path relative to the root, with forward slashes.
        module: the dotted name under which other files import it.
        package: whether it is a package's `__init__`.
        data: its bytes, where they are not those on the disk.
    """

    path: Path
    root: str
    name: str
    module: str
    package: bool
    data: bytes | None = None

    def read(self) -> bytes:
        """The file's bytes.

        Raises:
            OSError: it can't be read.
        """
        return self.path.read_bytes() if self.data is None else self.data


def find(paths: Sequence[Path], exclude: Sequence[str] = ()) -> Iterator[Entry | OSError]:
    """The files of a scan, in order; in place of a folder that can't be opened, its error.

    Args:
        paths: files, whatever their ending, and folders.
        exclude: patterns with `*` and `?`; what they match is left out: a name of a file or folder,
            a path relative to the scanned root, or an absolute path.

    Returns:
        An iterator over the entries.

    Raises:
        InvalidValueError: one of the paths doesn't exist.
    """
    for path in paths:
        if not path.exists():
            raise InvalidValueError(f"`PATHS` has {str(path)!r}, which does not exist.")
    seen: set[str] = set()
    for path in paths:
        inside = _inside(path, exclude) if path.is_dir() else [_entry(path, path.parent, path.name)]
        for found in inside:
            name = os.path.abspath(found.path if isinstance(found, Entry) else found.filename)
            if name not in seen:
                seen.add(name)
                yield found


def _inside(root: Path, exclude: Sequence[str]) -> Iterator[Entry | OSError]:
    seen: set[tuple[int, int]] = set()  # folders that were entered: links may lead in circles
    errors: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=errors.append, followlinks=True):
        yield from errors
        errors.clear()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        relative = Path(folder).relative_to(root)
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED and not _excluded(root, relative / name, exclude)
        )
        for name in sorted(names):
            if name.endswith(EXTENSIONS) and not _excluded(root, relative / name, exclude):
                yield _entry(Path(folder, name), root, (relative / name).as_posix())
    yield from errors


def _excluded(root: Path, relative: Path, patterns: Sequence[str]) -> bool:
    forms = (relative.as_posix(), relative.name, (root / relative).absolute().as_posix())
    return any(fnmatch.fnmatch(form, at.rstrip("/")) for at in patterns for form in forms)


def _entry(path: Path, root: Path, name: str) -> Entry:
    package = path.stem == "__init__"
    parts = [] if package else [path.stem]
    folder, top = path.absolute().parent, root.absolute()
    # A package is named from its outermost folder, wherever the scan begins.
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        parts.insert(0, folder.name)
        folder = folder.parent
    if folder != top and folder.is_relative_to(top) and len(parts) == (0 if package else 1):
        parts = [*folder.relative_to(top).parts, *parts]
    return Entry(path, str(root), name, ".".join(parts) or path.stem, package)
