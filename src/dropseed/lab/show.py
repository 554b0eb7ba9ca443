"""What the command line prints: tables and masks as Rich draws them. NumPy and Rich only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from dropseed.errors import InvalidValueError
from dropseed.mask import Key, Rate, drop_block, keep, noise_shape, shared_axes
from dropseed.mask.block import gamma_factor
from dropseed.mask.shape import block_edges

if TYPE_CHECKING:
    from dropseed.lab.trace import Drops, Row

LARGEST_MASK = 2**26

_CHUNK = 2**18
_TALLEST = 16


def whole_mask(
    key: Key,
    rate: Rate,
    shape: Sequence[int],
    variant: str = "elementwise",
    block_size: int | None = None,
) -> npt.NDArray[np.bool_]:
    """A mask as rows of its last dimension; in pieces where every value has a draw of its own.

    Args:
        key: names the mask.
        rate: the fraction dropped.
        shape: the mask's shape, at most 2**26 values.
        variant: which elements share a draw, a name of `dropseed.mask.shape.VARIANTS`, or
            "drop_block", whose gamma follows from the rate by the paper's formula.
        block_size: the edge of "drop_block"'s blocks.

    Returns:
        Boolean (rows, values), True where a value is kept.

    Raises:
        ValueError: the shape has too many values, or is none of the variant's; a block size for
            another variant, or none for "drop_block".

    Example:
        >>> whole_mask(Key(0), Rate(0.5), (2, 1, 3)).astype(int)
        array([[1, 1, 0],
               [0, 1, 1]])
    """
    size = math.prod(shape)
    if size > LARGEST_MASK:
        raise InvalidValueError(
            f"`--shape` has {size:,} values; at most {LARGEST_MASK:,} can be shown."
        )
    if variant == "drop_block" or block_size is not None:
        noise_shape(variant, shape, block_size=block_size)  # checks them together
        edges = block_edges(block_size, tuple(shape[2:]))
        gamma = rate.value * gamma_factor(shape[2:], edges)
        return drop_block(key, gamma, shape, edges).reshape(-1, shape[-1])
    shared = shared_axes(variant, len(shape))
    if shared:
        own = [1 if axis in shared else length for axis, length in enumerate(shape)]
        mask = np.broadcast_to(keep(key, rate, own), shape)
        return mask.reshape(-1, shape[-1]) if size else np.empty((0, 0), np.bool_)
    flat = np.empty(size, np.bool_)
    for start in range(0, size, _CHUNK):
        count = min(_CHUNK, size - start)
        flat[start : start + count] = keep(key, rate, count, start=start)
    return flat.reshape(-1, shape[-1]) if size else flat.reshape(0, 0)


def print_mask(rows: npt.NDArray[np.bool_], console: Console) -> None:
    """Print what fits of a mask: a full block for a kept value, a dot for a dropped one.

    Args:
        rows: boolean (rows, values), True where a value is kept.
        console: where to print; one without block characters gets "#".
    """
    height, width = min(len(rows), _TALLEST), min(rows.shape[1], console.width)
    block = "#" if console.options.ascii_only else "█"
    for row in rows[:height, :width]:
        console.print("".join(block if kept else "." for kept in row), highlight=False)
    if (height, width) != rows.shape:
        console.print(
            f"Shown: {height} of {len(rows):,} rows, {width} of {rows.shape[1]:,} values each."
        )


def trace_table(
    rows: Sequence[Row], total: int, findings: Mapping[str, str] | None = None
) -> Table:
    """The layers of a model as a table.

    Args:
        rows: what `trace` gave.
        total: the model's parameters.
        findings: what is wrong with layers, by their names.

    Returns:
        A table with a column each for name, kind, output shape, parameters and, if there are any,
        findings.
    """
    table = Table("layer", "kind", "output shape")
    table.add_column("parameters", justify="right")
    if findings:
        table.add_column("findings")
    for row in rows:
        shape = "x".join(map(str, row.shape)) if row.shape is not None else "-"
        table.add_row(
            row.name, row.kind, shape, f"{row.parameters:,}", *_beside(findings, row.name)
        )
    rest = total - sum({row.name: row.parameters for row in rows}.values())
    if rest:
        table.add_row("", "layers that were not called", "", f"{rest:,}")
    table.add_section()
    table.add_row("", "whole model", "", f"{total:,}")
    return table


def _beside(findings: Mapping[str, str] | None, name: str) -> list[str]:
    """The cell of a layer's findings, where there is a column for them."""
    return [findings.get(name, "")] if findings else []


def drop_sentences(name: str, drops: Drops) -> str:
    """What a dropout layer does, in words.

    Args:
        name: the layer's qualified name.
        drops: what was measured.

    Returns:
        Two lines, for training and for inference.
    """
    survivors = f"the {drops.values - drops.dropped:,} survivors times {drops.factor:.4g}"
    if drops.dropped == drops.values:
        survivors = "no survivors"
    another = f"another mask at the next pass ({drops.changed:,} values change sides)"
    if not drops.changed:
        another = "the same at the next pass"
    inference = f"all {drops.values:,} values pass unchanged, deterministic"
    if not drops.inert:
        inference = "the values are changed"
    return (
        f"{name}, training:  of {drops.values:,} values {drops.dropped:,} dropped, {survivors}; "
        f"{another}\n{name}, inference: {inference}"
    )


def comparison_table(runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Finished runs side by side.

    Args:
        runs: by name, the last epoch's metrics with "seconds" (training time) and "model" (the
            path of its weights).

    Returns:
        A table with a column for each run.
    """
    table = Table(
        "after the last epoch",
        caption="training numbers: means over the epoch, dropout active",
    )
    for name in runs:
        table.add_column(name, justify="right")
    for label, quantity, form in _COMPARED:
        table.add_row(label, *(form.format(run[quantity]) for run in runs.values()))
    gap = (run["test_accuracy"] - run["train_accuracy"] for run in runs.values())
    table.add_row("test - train accuracy", *(f"{100 * value:+.2f} points" for value in gap))
    table.add_row(
        "training and testing time", *(f"{run['seconds']:.1f} s" for run in runs.values())
    )
    return table


_COMPARED = (
    ("test accuracy", "test_accuracy", "{:.2%}"),
    ("test loss", "test_loss", "{:.4f} nats"),
    ("train accuracy", "train_accuracy", "{:.2%}"),
    ("train loss", "train_loss", "{:.4f} nats"),
)
