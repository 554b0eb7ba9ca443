"""The command line. Each command is thin: it checks its words, calls the laboratory, and prints.

Imports stay inside the commands, so that `--help` is quick and `dropseed mask` needs NumPy alone.
Whatever goes wrong is one sentence on stderr and a status: 2 for wrong use, 128 + n for signal n,
1 otherwise. A traceback comes with `--debug` only, which may stand anywhere.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from dropseed.errors import DropseedError, InvalidValueError

if TYPE_CHECKING:
    from rich.console import Console

DEBUG_VARIABLE = "DROPSEED_DEBUG"

app = typer.Typer(
    name="dropseed",
    help="Dropout whose masks are pure functions of a seed.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

Rate = Annotated[
    float | None, typer.Option(help="Fraction dropped, in [0, 1].", show_default="0.5")
]
Seed = Annotated[int | None, typer.Option(help="First weights, order and masks.", show_default="0")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the images.", show_default="4")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step.", show_default="128")]
TrainSize = Annotated[
    int | None, typer.Option(help="How many of the training images are used.", show_default="60000")
]
Device = Annotated[str | None, typer.Option(help="A torch device.", show_default="cpu")]
Threads = Annotated[int | None, typer.Option(help="CPU threads.", show_default="all cores")]
Workers = Annotated[int, typer.Option(help="Data-loader processes; no number depends on them.")]
Data = Annotated[
    Path | None, typer.Option(help="Folder with the four IDX files of MNIST, plain or .gz.")
]
Out = Annotated[
    Path | None, typer.Option(help="Folder of the run.", show_default="a new one in runs/")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or the last.")]


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
        return _fail("Interrupted. A run that had begun goes on with `--resume`.", status)
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


@app.command()
def train(
    epochs: Epochs = None,
    rate: Rate = None,
    seed: Seed = None,
    batch_size: BatchSize = None,
    train_size: TrainSize = None,
    device: Device = None,
    threads: Threads = None,
    out: Out = None,
    data: Data = None,
    workers: Workers = 0,
    resume: Resume = False,
) -> None:
    """Train the MNIST convnet. Ctrl-C keeps a checkpoint, from which --resume goes on."""
    asked = _given(
        epochs=epochs,
        rate=rate,
        seed=seed,
        batch_size=batch_size,
        train_size=train_size,
        device=device,
        threads=threads,
    )
    _need("torch", "numba", "safetensors", "matplotlib")
    _share_cores()
    from dropseed.lab import data as mnist
    from dropseed.lab.folders import choose
    from dropseed.lab.run import WEIGHTS, resume_run, start_run
    from dropseed.lab.settings import Settings
    from dropseed.lab.train import train as train_run

    settings = Settings(**asked)
    _check_workers(workers)
    folder = choose(out, "mnist", resume)
    run = resume_run(folder, asked) if resume else start_run(folder, settings)
    console = _console()
    train_run(run, mnist.load(data), workers=workers, console=console)
    last = run.position.epochs[-1]
    console.print(
        f"Test accuracy {last['test_accuracy']:.2%}. Model, metrics and learning curves are in "
        f"{folder} ({folder / WEIGHTS}).",
        highlight=False,
        soft_wrap=True,
    )


@app.command()
def demo(
    epochs: Epochs = None,
    rate: Rate = None,
    seed: Seed = None,
    train_size: TrainSize = None,
    out: Out = None,
    data: Data = None,
    resume: Resume = False,
) -> None:
    """Train the MNIST convnet with and without dropout, and compare."""
    asked = _given(epochs=epochs, rate=rate, seed=seed, train_size=train_size)
    _need("torch", "numba", "safetensors", "matplotlib")
    _share_cores()
    from dropseed.lab import data as mnist
    from dropseed.lab import show
    from dropseed.lab.compare import PICTURE, compare, start_pair
    from dropseed.lab.folders import choose
    from dropseed.lab.settings import Settings

    Settings(**asked)
    folder = choose(out, "demo", resume)
    runs = start_pair(folder, asked, resume)
    console = _console()
    results = compare(folder, runs, mnist.load(data), console)
    console.print(show.comparison_table(results))
    places = {f"model {name}": result["model"] for name, result in results.items()}
    for label, place in {"curves of both": folder / PICTURE, **places}.items():
        console.print(f"{label:<22} {place}", highlight=False, soft_wrap=True)


@app.command()
def trace(
    model: Annotated[
        str | None, typer.Argument(help="module:factory.", show_default="the MNIST convnet")
    ] = None,
    shape: Annotated[
        str, typer.Option("--input", help="Shape of one example, without the batch.")
    ] = "1x28x28",
    seed: Annotated[int, typer.Option(help="Of the example and the masks.")] = 0,
) -> None:
    """Walk through a model: each layer's shape and parameters, and what each dropout does."""
    sizes = _sizes(shape, "--input", "x")
    _need("torch", "numba")
    from dropseed.lab import show
    from dropseed.lab.models import mnist_convnet
    from dropseed.lab.trace import load_model
    from dropseed.lab.trace import trace as walk

    network = mnist_convnet() if model is None else load_model(model)
    rows = walk(network, sizes, seed)
    console = _console()
    console.print(show.trace_table(rows, sum(p.numel() for p in network.parameters())))
    sentences = [show.drop_sentences(row.label, row.drops) for row in rows if row.drops is not None]
    for sentence in sentences or ["No dropout layer was called."]:
        console.print(sentence, highlight=False, soft_wrap=True)


@app.command()
def mask(
    shape: Annotated[str, typer.Option(help="Shape of the mask, for instance 8,1600.")],
    seed: Annotated[int, typer.Option(help="The run's seed.")] = 0,
    site: Annotated[
        str | None,
        typer.Option(help="The layer's qualified name, as `dropseed trace` prints it."),
    ] = None,
    site_number: Annotated[
        int | None,
        typer.Option(help="The site's number, instead of a name.", show_default="0"),
    ] = None,
    step: Annotated[int, typer.Option(help="The step, counted from 0.")] = 0,
    rate: Annotated[float, typer.Option(help="Fraction dropped, in [0, 1].")] = 0.5,
    variant: Annotated[
        str,
        typer.Option(help="Which elements share a draw, for instance spatial, locked, drop_block."),
    ] = "elementwise",
    block_size: Annotated[
        int | None, typer.Option(help="The edge of the blocks of drop_block.", show_default=False)
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it into this PNG file, too.")] = None,
) -> None:
    """Show any mask of any past run, and its kept fraction."""
    from dropseed.lab import files, pictures, show
    from dropseed.mask import Key
    from dropseed.mask import Rate as CheckedRate

    if site is not None and site_number is not None:
        raise InvalidValueError(
            "`--site` and `--site-number` exclude each other; give one of them."
        )
    key = Key(seed, site_number or 0, step)
    place = f"site number {key.site}"
    if site is not None:
        key, place = key.at(site), f"site {site}"
    sizes = _sizes(shape, "--shape", ",")
    if png is not None:
        _check_png(png)
        pictures.need_matplotlib()
    rows = show.whole_mask(key, CheckedRate(rate), sizes, variant, block_size)
    console = _console()
    show.print_mask(rows, console)
    title = f"seed {seed}, {place}, step {step}, shape {shape}, rate {rate:g}"
    if variant != "elementwise":
        block = "" if block_size is None else f" of {block_size}"
        title = f"{variant}{block}, {title}"
    kept = f"kept {int(rows.sum()):,} of {rows.size:,}"
    if rows.size:
        kept += f" ({rows.mean():.2%})"
    console.print(f"{title}: {kept}", highlight=False, soft_wrap=True)
    if png is not None:
        files.write_bytes(png, pictures.mask(rows, f"{title}: {kept}"))
        console.print(f"picture: {png}", highlight=False, soft_wrap=True)


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; the rest have their defaults in one place, `Settings`."""
    return {name: value for name, value in options.items() if value is not None}


def _sizes(text: str, option: str, separator: str) -> tuple[int, ...]:
    # 64 is the most dimensions that NumPy has; an int64 holds any number of 18 digits.
    if not re.fullmatch(r"[0-9]{1,18}([,x] ?[0-9]{1,18}){0,63}", text):
        example = separator.join(("8", "1600") if separator == "," else ("1", "28", "28"))
        raise InvalidValueError(f"`{option}` must read like {example}; got {text!r}.")
    return tuple(int(size) for size in re.split("[,x]", text))


def _check_workers(workers: int) -> None:
    if not 0 <= workers <= 256:
        raise InvalidValueError(f"`workers` must be in [0, 256]; got {workers}.")


def _check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise InvalidValueError(f"`--png` must end in .png; got {str(path)!r}.")


def _need(*packages: str) -> None:
    """Fail before any work where an optional dependency is missing."""
    import importlib.util

    from dropseed.errors import MissingExtraError

    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "lab")


def _share_cores() -> None:
    """Let waiting threads sleep instead of spin, before torch brings OpenMP in.

    Beside other work on the same cores a step takes a fifth of the time then.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _console() -> Console:
    from rich.console import Console

    return Console()


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
