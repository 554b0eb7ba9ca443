"""A training run: its folder, its state, and how both are saved and found again.

checkpoint.pt       the whole state after some step; read with `weights_only=True`
metrics.json        settings, package versions, and the numbers of each epoch: reproducible
timing.json         the seconds of each epoch: not reproducible, hence apart
model.safetensors   the weights, once the run is finished
curves.png          the learning curves, likewise
"""

from __future__ import annotations

import io
import platform
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import dropseed
from dropseed.errors import InvalidValueError, RunError
from dropseed.lab import files
from dropseed.lab.learner import make_learner
from dropseed.lab.settings import Settings

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
TIMING = "timing.json"
CURVES = "curves.png"

_MEASURES = {"epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"}


@dataclass
class Position:
    """How far a run has come: everything but the tensors.

    Attributes:
        step: optimiser steps done; the next one's masks have this step in their key.
        loss: the sum of the losses of the open epoch's images.
        correct: how many of the open epoch's images were classified correctly.
        seconds: the open epoch's training and testing time so far.
        epochs: the metrics of each finished epoch.
        timing: the seconds of each finished epoch.
    """

    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    epochs: list[dict[str, float]] = field(default_factory=list)
    timing: list[float] = field(default_factory=list)

    def close_epoch(self, metrics: dict[str, float], seconds: float) -> None:
        """Note a finished epoch's numbers, and open the next."""
        self.epochs.append({"epoch": len(self.epochs) + 1, **metrics})
        self.timing.append(seconds)
        self.loss, self.correct, self.seconds = 0.0, 0, 0.0

    def must_fit(self, settings: Settings) -> None:
        """Check that a run of these settings can have come this far.

        Args:
            settings: the run's.

        Raises:
            ValueError: it can't.

        Example:
            >>> Position(step=469).must_fit(Settings(epochs=1, batch_size=128))
        """
        done = len(self.epochs)
        first = done * settings.steps_per_epoch
        last = min(first + settings.steps_per_epoch, settings.steps)
        numbers = [self.loss, self.correct, self.seconds, *self.timing]
        for epoch in self.epochs:
            numbers += epoch.values()
        fits = (
            isinstance(self.step, int)
            and first <= self.step <= last
            and len(self.timing) == done
            and all(epoch.keys() == _MEASURES for epoch in self.epochs)
            and all(isinstance(number, (int, float)) for number in numbers)
        )
        if not fits:
            raise InvalidValueError("its position does not fit its settings")


class Run:
    """A run that can be trained: a model with its optimiser, and the position.

    Use `start_run` or `resume_run` to get one.

    Args:
        folder: where it is saved.
        settings: what determines it.

    Raises:
        ValueError: the settings' device is unknown or absent.
        MissingExtraError: the settings' framework is not installed.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.learner = make_learner(settings)
        self.position = Position()
        self._begun = False

    @property
    def finished(self) -> bool:
        """Whether every step is done and the last epoch tested."""
        return len(self.position.epochs) == self.settings.epochs

    def begin(self) -> None:
        """Save a run before its first step, or where it was resumed: from here it can be resumed.

        Raises:
            OSError: the folder can't be written.
            RunError: the run is new and another one has begun in its folder.
        """
        if not self._begun:
            _must_be_free(self.folder)
        self._begun = True
        self.save()

    def save(self) -> None:
        """Write the checkpoint, the metrics and the timing, each atomically.

        Raises:
            OSError: a file can't be written; what was saved before still is.
        """
        position = asdict(self.position)
        state = {"learner": self.learner.state(), "position": position}
        state |= {"settings": asdict(self.settings), "versions": versions(self.settings.framework)}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        files.write_bytes(self.folder / CHECKPOINT, buffer.getvalue())
        metrics = {name: state[name] for name in ("settings", "versions")}
        files.write_json(self.folder / METRICS, metrics | {"epochs": self.position.epochs})
        files.write_json(self.folder / TIMING, {"seconds": self.position.timing})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the tensors and the position of a checkpoint's state.

        Args:
            state: what `save` wrote. Of something else this raises nearly anything.
        """
        self.position = Position(**state["position"])
        self.position.must_fit(self.settings)
        self.learner.restore(state["learner"], self.position.step)
        self._begun = True


def start_run(folder: Path, settings: Settings) -> Run:
    """Make a run that is to have a folder of its own.

    Nothing is saved before its `begin`, so that what fails in between, such as the loading of the
    data, leaves no folder in the way of the next try.

    Args:
        folder: where it is to be saved.
        settings: what determines it.

    Returns:
        The run, at step 0.

    Raises:
        OSError: the folder can't be made.
        RunError: the folder isn't empty.
        ValueError: the settings' device is unknown or absent.
    """
    run = Run(folder, settings)
    _must_be_free(folder)
    return run


def resume_run(folder: Path, asked: Mapping[str, Any]) -> Run:
    """Take up a run where its last checkpoint left it.

    Args:
        folder: the run's folder.
        asked: the settings that the caller insists on, by name; the rest are the run's own.

    Returns:
        The run, at the checkpoint's step.

    Raises:
        RunError: there is no checkpoint, or it is corrupt.
        ValueError: a setting in `asked` differs, or the device is absent.
    """
    path = folder / CHECKPOINT
    state = read_checkpoint(path)
    with _damaged_if_it_fails(path):
        settings = Settings(**state["settings"])
    settings.must_agree(asked)
    run = Run(folder, settings)
    with _damaged_if_it_fails(path):
        run.restore(state)
    return run


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; tensors and plain values are admitted, and no other pickle.

    Args:
        path: the file.

    Returns:
        The state that `Run.save` wrote, with its tensors on the CPU.

    Raises:
        RunError: the file is absent or damaged.
    """
    if not path.is_file():
        raise RunError(f"There is no run to resume: {path} does not exist. Leave out `--resume`.")
    with _damaged_if_it_fails(path):
        with zipfile.ZipFile(path) as archive:  # torch does not check the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise InvalidValueError(f"{damaged} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def versions(framework: str) -> dict[str, str]:
    """The versions of what a run's numbers depend on, by package name."""
    found = {"python": platform.python_version(), "dropseed": dropseed.__version__}
    more = {"torch": (), "keras": ("keras", "jax"), "jax": ("jax", "optax")}[framework]
    for package in ("numpy", "torch", "numba", *more):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _must_be_free(folder: Path) -> None:
    """Fail where no run can begin; a folder that had to be made for the trial is taken away."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if any(not path.name.startswith(files.TEMPORARY) for path in folder.iterdir()):
        raise RunError(
            f"`--out` {folder} is not empty. Continue the run there with `--resume`, "
            "or choose another folder."
        )
    for place in made:
        place.rmdir()


@contextmanager
def _damaged_if_it_fails(path: Path) -> Iterator[None]:
    """Blame the checkpoint: one that is damaged, or something else, can raise nearly anything."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            f"{path} is damaged ({reason[0]}). Start again in another folder with `--out`."
        ) from error
