"""A training run in the terminal: a bar that moves, and a line for each finished epoch."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dropseed.lab.run import Position
from dropseed.lab.settings import Settings


class Display:
    """Shows a run's position. A context manager: the bar is there within its `with`.

    Args:
        name: what the run is called.
        settings: the run's.
        console: where to draw.
    """

    def __init__(self, name: str, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._bar = Progress(
            TextColumn(f"{name}, epoch {{task.fields[epoch]}}/{settings.epochs}"),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]:6.4f}  accuracy {task.fields[accuracy]:6.2%}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            transient=True,
            disable=not console.is_terminal,  # else it prints empty lines into logs
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("", total=settings.steps, epoch=1, loss=0.0, accuracy=0.0)
        console.print(f"{name}: rate {settings.rate}, seed {settings.seed}", highlight=False)

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def step(self, position: Position) -> None:
        """Show the open epoch's mean loss and accuracy so far."""
        epoch = len(position.epochs)
        steps = position.step - epoch * self._settings.steps_per_epoch
        images = min(steps * self._settings.batch_size, self._settings.train_size)
        self._bar.update(
            self._task,
            completed=position.step,
            epoch=epoch + 1,
            loss=position.loss / images,
            accuracy=position.correct / images,
        )

    def epoch(self, position: Position) -> None:
        """Print the line of the epoch that was just finished."""
        last = position.epochs[-1]
        self._bar.console.print(
            f"  epoch {last['epoch']:>{len(str(self._settings.epochs))}}"
            f"   train {last['train_loss']:.4f} nats {last['train_accuracy']:7.2%}"
            f"   test {last['test_loss']:.4f} nats {last['test_accuracy']:7.2%}"
            f"   {position.timing[-1]:6.1f} s",
            highlight=False,
            soft_wrap=True,
        )
