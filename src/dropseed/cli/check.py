"""`dropseed audit --model`: run a model, and show what its dropout does."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from dropseed.cli.options import need, sizes
from dropseed.cli.screen import write
from dropseed.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor

    from dropseed.audit.reporting.config import Config
    from dropseed.audit.running.model_report import Report
    from dropseed.audit.running.watch import Note


def check(
    address: str, shapes: Sequence[str], dtypes: Sequence[str], style: str, config: Config
) -> bool:
    """Run a model, and print its dropout sites with their findings.

    Args:
        address: module:factory.
        shapes: the shape of one example for each input.
        dtypes: the type of each input, or one for all.
        style: "text" or "json".
        config: which findings count.

    Returns:
        Whether there are findings.
    """
    if style not in ("text", "json"):
        raise InvalidValueError(f"`--format` with `--model` must be text or json; got {style!r}.")
    wanted = [sizes(shape, "--input", "x") for shape in shapes]
    if not wanted:
        raise InvalidValueError("`--model` needs `--input`, one example's shape: 1x28x28.")
    if len(dtypes) not in (1, len(wanted)):
        raise InvalidValueError(
            f"`--dtype` must be given once, or once for each of the {len(wanted)} inputs; "
            f"got {len(dtypes)}."
        )
    need("torch", extra="torch")
    from dropseed.audit.running.model import check_model
    from dropseed.lab.trace import load_model

    model = load_model(address, "--model")
    report = selected(check_model(model, _examples(wanted, dtypes)), config)
    if style == "json":
        write(json.dumps(asdict(report), indent=2) + "\n")
    elif sys.stdout.isatty():
        _draw(report)
    else:
        write(f"{report}\n")
    return bool(report.findings)


def selected(report: Report, config: Config) -> Report:
    """What of a report counts: of the source's rules those that are active, and all others.

    Args:
        report: what `check_model` returned.
        config: what was asked for.

    Returns:
        A report without the rest.
    """
    from dropseed.audit.reporting.select import active
    from dropseed.audit.rules import RULES

    off = {rule.code for rule in RULES} - active(config)

    def counting(notes: Sequence[Note]) -> tuple[Note, ...]:
        return tuple(note for note in notes if note.code not in off)

    sites = tuple(replace(row, findings=counting(row.findings)) for row in report.sites)
    return replace(report, sites=sites, findings=counting(report.findings))


def _examples(wanted: Sequence[tuple[int, ...]], dtypes: Sequence[str]) -> tuple[Tensor, ...]:
    from dropseed.audit.running.model import example_input

    kinds = [*dtypes] * len(wanted) if len(dtypes) == 1 else dtypes
    return tuple(example_input(shape, kind) for shape, kind in zip(wanted, kinds, strict=True))


def _draw(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dropseed.audit.running.model_report import COLUMNS, report_rows

    table = Table(*COLUMNS)
    for row in report_rows(report):
        table.add_row(*row)
    console = Console()
    console.print(table)
    for note in report.findings:
        sentence = Text(f"{note.code} {note.site or 'the model'}: {note.message}")
        sentence.stylize("bold red", 0, len(note.code))
        console.print(sentence, soft_wrap=True)
