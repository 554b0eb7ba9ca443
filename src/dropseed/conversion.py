"""What `convert` did to a model: the same report in every front end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Replaced:
    """A layer that was replaced: its name, both classes, the new one's rate and site."""

    name: str
    old: str
    new: str
    rate: float
    site: int


@dataclass(frozen=True, slots=True)
class NotReplaced:
    """A layer or a functional call that was left alone: its module's name, what it is, and why."""

    name: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What `convert` or `revert` did; `print` shows it as tables.

    Attributes:
        replaced: the layers replaced, in the order of the model.
        not_replaced: what drops, or may drop, and was left alone.
        notes: sentences about the whole, for instance that there was nothing to convert.

    Example:
        >>> print(Report((Replaced("drop", "torch.Dropout", "dropseed.Dropout", 0.1, 7),)))
        replaced  was            is                rate  site
        drop      torch.Dropout  dropseed.Dropout  0.1   7
    """

    replaced: tuple[Replaced, ...] = ()
    not_replaced: tuple[NotReplaced, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        done = [(r.name or ".", r.old, r.new, str(r.rate), str(r.site)) for r in self.replaced]
        left = [(n.name or ".", n.what, n.reason) for n in self.not_replaced]
        parts = [
            *_table(("replaced", "was", "is", "rate", "site"), done),
            *_table(("not replaced", "what", "why"), left),
            *(f"Note: {note}" for note in self.notes),
        ]
        return "\n".join(parts)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if rows:
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        for row in (head, *rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield "  ".join(cells).rstrip()
