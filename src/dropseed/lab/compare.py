"""The same run with and without dropout: same first weights, same order of the same images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dropseed.lab import files
from dropseed.lab.data import Mnist
from dropseed.lab.pictures import curves
from dropseed.lab.run import WEIGHTS, Run, resume_run, start_run
from dropseed.lab.settings import Settings
from dropseed.lab.train import train

PICTURE = "comparison.png"


def start_pair(folder: Path, asked: Mapping[str, Any], resume: bool = False) -> dict[str, Run]:
    """Two runs in folders of their own: without dropout, and with it.

    Args:
        folder: gets a subfolder for each run.
        asked: settings by name; the run without dropout has the rate 0 instead.
        resume: whether the runs that are there go on.

    Returns:
        The runs by name.

    Raises:
        DropseedError, OSError: as `start_run` and `resume_run` do.
    """
    runs = {}
    for name, own in (("without dropout", {**asked, "rate": 0.0}), ("with dropout", asked)):
        place = folder / name.replace(" ", "-")
        runs[name] = resume_run(place, own) if resume else start_run(place, Settings(**own))
    return runs


def compare(
    folder: Path, runs: dict[str, Run], data: Mnist, console: Console, workers: int = 0
) -> dict[str, dict[str, Any]]:
    """Train the runs one after the other and draw their curves together.

    Both are begun before the first is trained, so that they can be resumed together.

    Args:
        folder: where the picture `PICTURE` goes.
        runs: what `start_pair` gave.
        data: training and test images.
        console: where progress is drawn.
        workers: data-loader processes.

    Returns:
        For each run its last epoch's metrics, its seconds, and the path of its model.

    Raises:
        DropseedError, OSError: as `train` does.
    """
    for run in runs.values():
        run.begin()
    for name, run in runs.items():
        train(run, data, workers=workers, name=name, console=console)
    epochs = {name: run.position.epochs for name, run in runs.items()}
    files.write_bytes(folder / PICTURE, curves(epochs))
    return {
        name: {
            **run.position.epochs[-1],
            "seconds": sum(run.position.timing),
            "model": run.folder / WEIGHTS,
        }
        for name, run in runs.items()
    }
