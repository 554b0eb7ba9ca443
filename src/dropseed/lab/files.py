"""Whole files or none: what the laboratory saves is written beside its place and then moved there.

Whoever reads sees the old file or the new one, also after a full disk or a power cut.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

TEMPORARY = ".writing-"
"""The beginning of the names of what is being written; a killed process leaves such a folder."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Args:
        path: where the file is to be; its folder is made if it isn't there.
        content: the whole file.

    Raises:
        OSError: nothing could be written, and the error names the place; what was there still is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
