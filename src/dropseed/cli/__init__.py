"""The command line. Each command is thin: it checks its words, calls its part, and prints.

Imports stay inside the commands, so that `--help` is quick, `dropseed audit` needs the standard
library alone, and `dropseed mask` NumPy.
Whatever goes wrong is one sentence on stderr and a status: 2 for wrong use, 128 + n for signal n,
1 otherwise. A traceback comes with `--debug` only, which may stand anywhere.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from dropseed.cli import audit, lab
from dropseed.errors import DropseedError

DEBUG_VARIABLE = "DROPSEED_DEBUG"

app = typer.Typer(
    name="dropseed",
    help="Dropout whose masks are pure functions of a seed.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (lab.train, lab.demo, lab.trace, lab.mask, audit.audit):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after the program's name; by default the process's own.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    words = [word for word in given if word != "--debug"]
    try:
        status = app(words, standalone_mode=False) or 0
        sys.stdout.flush()
    except TyperException as error:
        reason = error.format_message().rstrip(".")
        return _fail(f"{reason}. See `dropseed --help`.", error.exit_code)
    except (DropseedError, OSError, MemoryError) as error:
        if words != given or os.environ.get(DEBUG_VARIABLE):
            raise
        return _fail(_sentence(error), _status(error))
    if status == 130:  # what Typer makes of a Ctrl-C
        resume = "" if words[:1] == ["audit"] else " A run that had begun goes on with `--resume`."
        return _fail(f"Interrupted.{resume}", status)
    return int(status)


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug",
            help=f"Show tracebacks. May stand anywhere; {DEBUG_VARIABLE}=1 does the same.",
        ),
    ] = False,
) -> None:
    if version:
        from dropseed import __version__

        typer.echo(f"dropseed {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _fail(sentence: str, status: int) -> int:
    print(f"dropseed: {sentence}", file=sys.stderr)
    _silence_stdout()
    return status


def _silence_stdout() -> None:
    """Keep Python from failing a second time at exit where stdout itself can't be written."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _status(error: Exception) -> int:
    if isinstance(error, (ValueError, TypeError)):
        return 2
    return int(getattr(error, "status", 1))


_REMEDIES = {
    errno.ENOSPC: "Free some space or choose another place; what was saved before is intact.",
    errno.EACCES: "Choose a place that you may write to.",
    errno.EPERM: "Choose a place that you may write to.",
    errno.EROFS: "Choose a place that can be written to.",
    errno.EEXIST: "Choose a folder, not a file.",
    errno.ENOTDIR: "Choose a folder, not a file.",
    errno.EISDIR: "Choose a file, not a folder.",
}


def _sentence(error: Exception) -> str:
    """One line that says what to do."""
    if isinstance(error, MemoryError):
        return "Out of memory. Ask for something smaller, or free some memory."
    if not isinstance(error, OSError) or isinstance(error, DropseedError):
        return " ".join(str(error).split())
    place = f" ({error.filename})" if error.filename else ""
    remedy = _REMEDIES.get(error.errno or 0, "Check the place and try again.")
    return f"{error.strerror or error}{place}. {remedy}"
