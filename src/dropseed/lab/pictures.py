"""Pictures as PNG bytes: learning curves and masks. Matplotlib, without a display."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dropseed.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_PANELS = (("loss", "cross-entropy (nats)", 1), ("accuracy", "accuracy (%)", 100))
_LINES = (("train", "--", "o"), ("test", "-", "s"))


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Draw the learning curves of one run or several, loss beside accuracy.

    Args:
        runs: the epochs' metrics of each run by its name, as ``metrics.json`` has them.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = _figure(10, 4.2)
    for axes, (quantity, label, factor) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        for colour, (name, epochs) in enumerate(runs.items()):
            numbers = [epoch["epoch"] for epoch in epochs]
            for part, line, marker in _LINES:
                values = [factor * epoch[f"{part}_{quantity}"] for epoch in epochs]
                axes.plot(
                    numbers,
                    values,
                    line,
                    marker=marker,
                    color=f"C{colour}",
                    label=f"{name}, {part}",
                )
        axes.set(xlabel="epoch", ylabel=label, title=quantity.capitalize())
        _whole_numbers(axes.xaxis)
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def mask(rows: npt.NDArray[np.bool_], title: str) -> bytes:
    """Draw a mask: one cell a value, dark where it is kept.

    Args:
        rows: boolean (rows, values), True where a value is kept.
        title: the picture's title.

    Returns:
        A PNG file.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = _figure(10, 4.2)
    axes = figure.subplots()
    if rows.size:  # axes without an extent make Matplotlib warn
        axes.imshow(rows, cmap="Blues", aspect="auto", interpolation="nearest", vmin=0, vmax=1)
    axes.set(xlabel="value in its row (index)", ylabel="row (index)", title=title)
    _whole_numbers(axes.xaxis, axes.yaxis)
    return _png(figure)


def need_matplotlib() -> None:
    """Fail early where no picture could be drawn.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "lab")


def _figure(width: float, height: float) -> Figure:
    need_matplotlib()
    from matplotlib.figure import Figure  # without pyplot: no display and no global state

    return Figure(figsize=(width, height), layout="constrained", dpi=120)


def _whole_numbers(*lines: Axis) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in lines:
        line.set_major_locator(MaxNLocator(integer=True))


def _png(figure: Figure) -> bytes:
    buffer: Any = io.BytesIO()
    figure.savefig(buffer, format="png")
    content: bytes = buffer.getvalue()
    return content
