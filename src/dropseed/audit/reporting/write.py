"""Whole files or none: a file is written beside its place and then moved there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file; one that was there keeps its mode and owner, and links to it stay links.

    Args:
        path: the file.
        data: all of it.

    Raises:
        OSError: it can't be written, and what was there still is; the error names the file.
    """
    place = path.resolve()
    try:
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _imitate(place, partial)
            partial.replace(place)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _imitate(place: Path, partial: Path) -> None:
    """Give a new file the mode and owner of the old one, or those of any new file."""
    if not place.exists():
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        return
    status = place.stat()
    partial.chmod(status.st_mode & 0o7777)
    if hasattr(os, "chown"):
        with contextlib.suppress(OSError):
            os.chown(partial, status.st_uid, status.st_gid)
