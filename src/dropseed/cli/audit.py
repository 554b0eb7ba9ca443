"""`dropseed audit`: scan, select, fix, and write what was found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dropseed.cli.manual import show_rules
from dropseed.cli.screen import write, write_bytes
from dropseed.errors import InvalidValueError

if TYPE_CHECKING:
    from dropseed.cli.look import Look

Paths = Annotated[
    list[Path] | None,
    typer.Argument(help="Files and folders.", show_default="the working directory"),
]
Codes = list[str] | None
Select = Annotated[Codes, typer.Option(help="Codes or their beginnings, or ALL.", metavar="CODES")]
Ignore = Annotated[Codes, typer.Option(help="Codes that are left out.", metavar="CODES")]
Severity = Annotated[
    str | None,
    typer.Option(
        help="The least that is reported: error, warning or note.", show_default="warning"
    ),
]
Preview = Annotated[bool, typer.Option("--preview", help="Run the rules in preview, too.")]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Names or paths that are not read; may have *.")
]
Format = Annotated[
    str, typer.Option("--format", help="One of text, full, json, github, sarif, junit.")
]
Fix = Annotated[
    bool, typer.Option("--fix", help="Make the fixes that keep what training computes.")
]
Diff = Annotated[bool, typer.Option("--diff", help="Show what --fix would change; change nothing.")]
Statistics = Annotated[bool, typer.Option("--statistics", help="Count the findings by rule.")]
ShowSource = Annotated[bool, typer.Option("--show-source", help="Show the lines, too.")]
Baseline = Annotated[
    Path | None,
    typer.Option(
        help="Report only what FILE lacks; it is written if it isn't there.", metavar="FILE"
    ),
]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Status 0 whatever is found.")]
Explain = Annotated[str | None, typer.Option(help="Show the page of a rule.", metavar="CODE")]
Rules = Annotated[bool, typer.Option("--rules", help="List all rules.")]
Jobs = Annotated[int | None, typer.Option(help="Processes.", show_default="one for each core")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no results for the next time.")]
Model = Annotated[
    str | None,
    typer.Option(help="Run this model instead of reading source.", metavar="MODULE:FACTORY"),
]
Input = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        help="Shape of one example, without the batch: 1x28x28. Once for each input of the model.",
    ),
]
Dtype = Annotated[
    list[str] | None, typer.Option(help="Type of the inputs.", show_default="float32")
]


def audit(
    paths: Paths = None,
    select: Select = None,
    ignore: Ignore = None,
    severity: Severity = None,
    preview: Preview = False,
    exclude: Exclude = None,
    style: Format = "text",
    fix: Fix = False,
    diff: Diff = False,
    statistics: Statistics = False,
    show_source: ShowSource = False,
    baseline: Baseline = None,
    exit_zero: ExitZero = False,
    explain: Explain = None,
    rules: Rules = False,
    jobs: Jobs = None,
    no_cache: NoCache = False,
    model: Model = None,
    shapes: Input = None,
    dtype: Dtype = None,
) -> int:
    """Find where source misuses dropout. It is read, never run.

    The exit status is 0 if nothing was found, 1 if something was, 2 for wrong use.
    """
    if rules or explain is not None:
        return show_rules(explain)
    from dropseed.audit.reporting.config import read_config, with_options

    where = paths or [Path()]
    _check_paths(where)
    config = with_options(
        read_config(where[0]),
        select=select or (),
        ignore=ignore or (),
        severity=severity,
        preview=preview,
        exclude=exclude or (),
        baseline=baseline,
    )
    if model is not None:
        from dropseed.cli.check import check

        _exclude_each_other("--model", {"PATHS": paths, "--fix": fix, "--diff": diff})
        _exclude_each_other("--model", {"--baseline": baseline, "--statistics": statistics})
        found = check(model, shapes or (), dtype or ["float32"], style, config)
    else:
        if shapes or dtype:
            raise InvalidValueError("`--input` and `--dtype` belong to `--model`.")
        from dropseed.audit.cache import default_folder
        from dropseed.cli.look import Look

        _check_format(style)
        look = Look(where, config, jobs, None if no_cache else default_folder())
        found = _source(look, style, fix, diff, statistics, show_source)
    return 1 if found and not exit_zero else 0


def _source(
    look: Look, style: str, fix: bool, diff: bool, statistics: bool, show_source: bool
) -> bool:
    """Read, maybe fix, and write what is left; whether there is any."""
    from dropseed.audit.reporting.output import FOR_PEOPLE, FORMATS, table, text

    if diff:
        changes = look.difference()
        write_bytes(changes)
        return bool(changes)
    findings = look.fix() if fix else look({})
    if look.begin_baseline(findings):
        return False
    people = style in FOR_PEOPLE
    if style == "text":
        write(text.render(findings, look.files, show_source), colours=True)
    else:
        write(FORMATS[style](findings, look.files), colours=people)
    if statistics:
        counts = table.statistics(findings) + look.gone()
        write(counts) if people else typer.echo(counts, err=True, nl=False)
    return bool(findings)


def _check_format(style: str) -> None:
    from dropseed.audit.reporting.output import FORMATS

    if style not in FORMATS:
        raise InvalidValueError(f"`--format` must be one of {', '.join(FORMATS)}; got {style!r}.")


def _check_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        if not os.access(path, os.R_OK):
            why = "can't be read" if os.path.lexists(path) else "does not exist"
            raise InvalidValueError(f"`PATHS` has {str(path)!r}, which {why}.")


def _exclude_each_other(option: str, others: Mapping[str, object]) -> None:
    for name, value in others.items():
        if value:
            raise InvalidValueError(f"`{option}` and `{name}` exclude each other; give one.")
