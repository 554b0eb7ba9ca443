"""What is reported about a model that was run, as data and as text."""

from __future__ import annotations

from dataclasses import dataclass

from dropseed.audit.running.shift import Norm
from dropseed.audit.running.watch import Note

COLUMNS = ("site", "kind", "rate", "shape", "place", "parameters", "dropped", "findings")


@dataclass(frozen=True)
class Row:
    """A dropout site of a model.

    Attributes:
        name: the layer's qualified name; for a function that of the module that calls it, a colon
            and the function.
        kind: the layer's class or the function's name.
        rate: the rate asked for; None if it can't be read.
        shape: the shape of what it was first given; None if it was never called.
        place: where it stands, in words; "" if that is unknown.
        parameters: how many numbers the layer learns; 0 for a function.
        dropped: the fraction dropped in training; None if nothing was, or it can't be seen.
        findings: what is wrong with it.
    """

    name: str
    kind: str
    rate: float | None
    shape: tuple[int, ...] | None
    place: str
    parameters: int
    dropped: float | None
    findings: tuple[Note, ...]


@dataclass(frozen=True)
class Report:
    """What `check_model` found. Printed, it is a table of the sites and a list of the findings.

    Attributes:
        sites: the dropout sites, in the order in which they run; those that never do come last.
        norms: the batch normalisations, with the variance shift at their inputs.
        findings: all that is wrong, by code; of sites, of normalisations and of other modules.
    """

    sites: tuple[Row, ...]
    norms: tuple[Norm, ...]
    findings: tuple[Note, ...]

    def __str__(self) -> str:
        rows = [COLUMNS, *report_rows(self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        notes = [
            f"{note.code} {note.site or 'the model'}: {note.message}" for note in self.findings
        ]
        return "\n".join([*lines, *notes])


def report_rows(report: Report) -> list[tuple[str, ...]]:
    """The sites of a report as text, for a table with the headings `COLUMNS`.

    Args:
        report: what `check_model` returned.

    Returns:
        For each site one text a column; an empty one where there is nothing to say.

    Example:
        >>> import torch
        >>> from dropseed.audit.running.model import check_model
        >>> report = check_model(torch.nn.Dropout(0.0), torch.ones(4, 8))
        >>> report_rows(report)
        [('Dropout', 'Dropout', '0', '4x8', 'on the input, at the output', '', '', 'DS503')]
    """
    return [
        (
            row.name,
            row.kind,
            "" if row.rate is None else f"{row.rate:g}",
            "" if row.shape is None else "x".join(map(str, row.shape)),
            row.place,
            f"{row.parameters:,}" if row.parameters else "",
            "" if row.dropped is None else f"{row.dropped:.1%}",
            " ".join(sorted({note.code for note in row.findings})),
        )
        for row in report.sites
    ]


def findings_by_layer(report: Report) -> dict[str, tuple[Note, ...]]:
    """The findings by the layer that they are about, to show beside its other properties.

    Args:
        report: what `check_model` returned.

    Returns:
        The findings by the qualified name of a layer, or of the module that calls the function.

    Example:
        >>> import torch
        >>> from dropseed.audit.running.model import check_model
        >>> report = check_model(torch.nn.Sequential(torch.nn.Dropout(0.9)), torch.ones(4, 8))
        >>> [note.code for note in findings_by_layer(report)["0"]]
        ['DS304']
    """
    found: dict[str, tuple[Note, ...]] = {}
    for note in report.findings:
        layer = note.site.rpartition(":")[0] if ":" in note.site else note.site
        found[layer] = (*found.get(layer, ()), note)
    return found
