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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

import dropseed
from dropseed.errors import InvalidValueError, RunError
from dropseed.lab import files
from dropseed.lab.models import mnist_convnet
from dropseed.lab.settings import Settings

CHECKPOINT = "checkpoint.pt"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
TIMING = "timing.json"
CURVES = "curves.png"

_PEAK_LEARNING_RATE = 5e-3


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


class Run:
    """A run that can be trained: model, optimiser, learning-rate schedule and position.

    Use `start_run` or `resume_run` to get one.

    Args:
        folder: where it is saved.
        settings: what determines it.

    Raises:
        ValueError: the settings' device is unknown or absent.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self.settings = settings
        self.device = usable_device(settings.device)
        self.position = Position()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(settings.seed)
            self.model = mnist_convnet(settings.rate)
        # Channels last is the faster order of memory for convolutions on CPU and GPU alike.
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.Adam(self.model.parameters(), fused=True)
        self.schedule = OneCycleLR(
            self.optimiser, _PEAK_LEARNING_RATE, total_steps=settings.steps + 1, pct_start=0.25
        )

    @property
    def finished(self) -> bool:
        """Whether every step is done and the last epoch tested."""
        return len(self.position.epochs) == self.settings.epochs

    @property
    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimiser": self.optimiser, "schedule": self.schedule}

    def save(self) -> None:
        """Write the checkpoint, the metrics and the timing, each atomically.

        Raises:
            OSError: a file can't be written; what was saved before still is.
        """
        position = asdict(self.position)
        state = {name: part.state_dict() for name, part in self._parts.items()}
        state |= {"settings": asdict(self.settings), "position": position, "versions": versions()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        files.write_bytes(self.folder / CHECKPOINT, buffer.getvalue())
        metrics = {name: state[name] for name in ("settings", "versions")}
        files.write_json(self.folder / METRICS, metrics | {"epochs": self.position.epochs})
        files.write_json(self.folder / TIMING, {"seconds": self.position.timing})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the tensors and the position of a checkpoint's state."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self.position = Position(**state["position"])


def start_run(folder: Path, settings: Settings) -> Run:
    """Begin a run in a folder of its own.

    Args:
        folder: where it is to be saved; made if it isn't there.
        settings: what determines it.

    Returns:
        The run, at step 0 and saved: from here on it can be resumed.

    Raises:
        OSError: the folder can't be written.
        RunError: the folder isn't empty.
        ValueError: the settings' device is unknown or absent.
    """
    run = Run(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise RunError(
            f"`--out` {folder} is not empty. Continue the run there with `--resume`, "
            "or choose another folder."
        )
    run.save()
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
    state = read_checkpoint(folder / CHECKPOINT)
    try:
        settings = Settings(**state["settings"])
        settings.must_agree(asked)
        run = Run(folder, settings)
        run.restore(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise _corrupt(folder / CHECKPOINT, error) from error
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
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{damaged} has another checksum")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged archive can raise nearly anything
        raise _corrupt(path, error) from error
    return state


def usable_device(name: str) -> torch.device:
    """The torch device of a name, tried out.

    Args:
        name: for instance "cpu", "cuda" or "cuda:1".

    Returns:
        The device.

    Raises:
        ValueError: torch doesn't know it, or this machine doesn't have it.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except Exception as error:  # each backend has its own
        raise InvalidValueError(
            f"`device` {name!r} is unknown to torch or absent here. Try `cpu`."
        ) from error
    return device


def versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on, by package name."""
    found = {"python": platform.python_version(), "dropseed": dropseed.__version__}
    for package in ("numpy", "torch", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _corrupt(path: Path, error: Exception) -> RunError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RunError(f"{path} is damaged ({reason}). Start again in another folder with `--out`.")
