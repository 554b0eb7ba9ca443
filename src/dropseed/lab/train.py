"""The trainer. Every number it makes is a function of the settings and the data.

The order of the images is a pure function of (seed, epoch), the masks of (seed, step), and nothing
draws from torch's generators: so a run can stop after any step and go on as if it hadn't, and the
number of data-loader workers changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dropseed.errors import InvalidValueError
from dropseed.lab import files
from dropseed.lab.data import Mnist
from dropseed.lab.display import Display
from dropseed.lab.interrupt import (
    StoppedError,
    Watch,
    held_signals,
    leave_signals_to_parent,
    watch_signals,
)
from dropseed.lab.pictures import curves
from dropseed.lab.run import CURVES, WEIGHTS, Run
from dropseed.lab.settings import Settings
from dropseed.mask import Key, subset, uniform

_TEST_BATCH = 1000


def train(
    run: Run,
    data: Mnist,
    *,
    workers: int = 0,
    name: str = "training",
    console: Console | None = None,
) -> None:
    """Train a run to its end, from wherever it stands, and save all of it.

    Args:
        run: the run; its state advances.
        data: training and test images and labels.
        workers: data-loader processes; 0 loads in this one. They change no number.
        name: what the progress bar and the picture call the run.
        console: where progress is drawn; by default the terminal.

    Raises:
        StoppedError: Ctrl-C or SIGTERM came; the checkpoint holds the last finished step.
        OSError: something can't be written; what was saved before still is.
        RunError: the run is new and another one has begun in its folder.
        ValueError: the data have fewer training images than the settings want.
    """
    images = _chosen_images(data, run.settings)
    with (
        _reproducible(run.settings),
        watch_signals() as watch,
        Display(name, run.settings, console or Console()) as display,
    ):
        run.begin()  # also if resumed: a full disk may have left metrics older than the checkpoint
        while not run.finished:
            _epoch(run, _batches(run, images, workers), data, display, watch)
        weights = safetensors.torch.save(run.learner.weights())
        files.write_bytes(run.folder / WEIGHTS, weights)
        files.write_bytes(run.folder / CURVES, curves({name: run.position.epochs}))
        _stop_if_asked(run, watch)


def order(settings: Settings, epoch: int) -> Tensor:
    """The order in which an epoch shows the images: a pure function of (seed, epoch).

    Args:
        settings: gives the seed and the number of images.
        epoch: counted from 0.

    Returns:
        int64 (train_size,), a permutation.

    Example:
        >>> order(Settings(train_size=5), 0)
        tensor([0, 1, 3, 4, 2])
    """
    draws = uniform(Key(settings.seed, step=epoch).at("order"), settings.train_size)
    return torch.from_numpy(np.argsort(draws, kind="stable"))


def evaluate(run: Run, data: Mnist) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] on the test images, dropout inactive."""
    loss, correct = 0.0, 0
    images, labels = torch.from_numpy(data.test_images), torch.from_numpy(data.test_labels)
    for x, y in zip(
        torch.split(images, _TEST_BATCH), torch.split(labels, _TEST_BATCH), strict=True
    ):
        more, right = run.learner.evaluate(x, y)
        loss, correct = loss + more, correct + right
    return loss / len(labels), correct / len(labels)


def _chosen_images(data: Mnist, settings: Settings) -> TensorDataset:
    """The training images that the seed chooses, with their labels."""
    available = len(data.train_images)
    if settings.train_size > available:
        raise InvalidValueError(
            f"`train_size` must be at most {available}, which is all there are; "
            f"got {settings.train_size}."
        )
    chosen = subset(Key(settings.seed).at("train_size"), available, settings.train_size)
    arrays = data.train_images[chosen], data.train_labels[chosen]
    return TensorDataset(*(torch.from_numpy(array) for array in arrays))


def _batches(run: Run, images: TensorDataset, workers: int) -> DataLoader[tuple[Tensor, ...]]:
    """What is left of the open epoch; the loader's own generator keeps torch's untouched."""
    epoch = len(run.position.epochs)
    done = run.position.step - epoch * run.settings.steps_per_epoch
    return DataLoader(
        images,
        batch_size=None,
        sampler=torch.split(order(run.settings, epoch), run.settings.batch_size)[done:],
        num_workers=workers,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),
    )


def _epoch(
    run: Run,
    batches: Iterable[tuple[Tensor, ...]],
    data: Mnist,
    display: Display,
    watch: Watch,
) -> None:
    """Do what is left of the open epoch, test, and save; or stop after a step if asked to."""
    started = time.perf_counter() - run.position.seconds
    with held_signals():
        loaded = iter(batches)  # starts the workers
    for images, labels in loaded:
        _step(run, images, labels)
        run.position.seconds = time.perf_counter() - started
        display.step(run.position)
        _stop_if_asked(run, watch)
    test_loss, test_accuracy = evaluate(run, data)
    size = run.settings.train_size
    metrics = {
        "train_loss": run.position.loss / size,
        "train_accuracy": run.position.correct / size,
        "test_loss": test_loss,
        "test_accuracy": test_accuracy,
    }
    run.position.close_epoch(metrics, time.perf_counter() - started)
    display.epoch(run.position)
    run.save()


def _step(run: Run, images: Tensor, labels: Tensor) -> None:
    position = run.position
    loss, correct = run.learner.step(images, labels, position.step)
    position.step += 1
    position.loss += loss * len(labels)
    position.correct += correct


def _stop_if_asked(run: Run, watch: Watch) -> None:
    if watch.number is None:
        return
    run.save()
    raise StoppedError(
        f"Interrupted after step {run.position.step} of {run.settings.steps}, saved in "
        f"{run.folder}. Give the same command with `--resume` to go on.",
        watch.number,
    )


@contextmanager
def _reproducible(settings: Settings) -> Iterator[None]:
    """Fix what changes the rounding of sums: the number of threads, and cuDNN's choices."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
            yield
    finally:
        torch.set_num_threads(threads)
