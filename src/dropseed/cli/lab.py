"""Training, comparing, tracing, and showing masks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dropseed.cli.options import console, need, sizes
from dropseed.errors import InvalidValueError

if TYPE_CHECKING:
    from torch import nn

    from dropseed.audit.running.watch import Note
    from dropseed.lab.run import Run

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
LedgerFile = Annotated[
    Path | None,
    typer.Option(
        "--ledger", help="Write what each dropout did in each step into FILE.", metavar="FILE"
    ),
]
Framework = Annotated[
    str | None,
    typer.Option(help="torch, keras or jax: the same weights and masks.", show_default="torch"),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or the last.")]


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
    ledger: LedgerFile = None,
    framework: Framework = None,
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
        framework=framework,
    )
    need("torch", "numba", "safetensors", "matplotlib")
    for package in {"keras": ("keras",), "jax": ("jax", "optax")}.get(framework or "", ()):
        need(package, extra=framework or "")
    _share_cores()
    from dropseed.audit.running.ledger import ledger as watched
    from dropseed.lab import data as mnist
    from dropseed.lab.folders import choose
    from dropseed.lab.run import WEIGHTS, resume_run, start_run
    from dropseed.lab.settings import Settings
    from dropseed.lab.train import train as train_run

    settings = Settings(**asked)
    _check_workers(workers)
    folder = choose(out, "mnist", resume)
    run = resume_run(folder, asked) if resume else start_run(folder, settings)
    model = None if ledger is None else _torch_model(run)
    screen = console()
    images = mnist.load(data)
    with contextlib.ExitStack() as stack:
        book = None if model is None else stack.enter_context(watched(model, ledger))
        train_run(run, images, workers=workers, console=screen)
    if book is not None:
        screen.print(book.summary(), highlight=False, soft_wrap=True)
    last = run.position.epochs[-1]
    screen.print(
        f"Test accuracy {last['test_accuracy']:.2%}. Model, metrics and learning curves are in "
        f"{folder} ({folder / WEIGHTS}).",
        highlight=False,
        soft_wrap=True,
    )


def _torch_model(run: Run) -> nn.Module:
    from dropseed.lab.by_torch import TorchLearner

    if isinstance(run.learner, TorchLearner):
        return run.learner.model
    raise InvalidValueError(
        f"`--ledger` watches PyTorch, and this run is of {run.settings.framework}. Leave it out."
    )


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
    need("torch", "numba", "safetensors", "matplotlib")
    _share_cores()
    from dropseed.lab import data as mnist
    from dropseed.lab import show
    from dropseed.lab.compare import PICTURE, compare, start_pair
    from dropseed.lab.folders import choose
    from dropseed.lab.settings import Settings

    Settings(**asked)
    folder = choose(out, "demo", resume)
    runs = start_pair(folder, asked, resume)
    screen = console()
    results = compare(folder, runs, mnist.load(data), screen)
    screen.print(show.comparison_table(results))
    places = {f"model {name}": result["model"] for name, result in results.items()}
    for label, place in {"curves of both": folder / PICTURE, **places}.items():
        screen.print(f"{label:<22} {place}", highlight=False, soft_wrap=True)


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
    example = sizes(shape, "--input", "x")
    need("torch", "numba")
    from dropseed.lab import show
    from dropseed.lab.models import mnist_convnet
    from dropseed.lab.trace import load_model
    from dropseed.lab.trace import trace as walk

    network = mnist_convnet() if model is None else load_model(model)
    rows = walk(network, example, seed)
    notes, failure = _findings(network, example)
    codes = {name: " ".join(sorted({at.code for at in found})) for name, found in notes.items()}
    screen = console()
    parameters = sum(p.numel() for p in network.parameters())
    screen.print(show.trace_table(rows, parameters, codes))
    sentences = [show.drop_sentences(row.label, row.drops) for row in rows if row.drops is not None]
    sentences = [*(sentences or ["No dropout layer was called."]), *failure]
    for note in (note for found in notes.values() for note in found):
        sentences.append(f"{note.code} {note.site or 'the model'}: {note.message}")
    for sentence in sentences:
        screen.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _findings(
    network: nn.Module, example: Sequence[int]
) -> tuple[dict[str, tuple[Note, ...]], list[str]]:
    """What the auditor finds in a model, by layer; or a sentence that says why it can't run it."""
    from dropseed.audit.reporting.config import read_config
    from dropseed.audit.running.model import check_model, example_input
    from dropseed.audit.running.model_report import findings_by_layer
    from dropseed.cli.check import selected

    config = read_config(Path())
    try:
        report = check_model(network, example_input(example))
    except (ValueError, TypeError) as error:
        return {}, [f"Not audited: {error}"]
    return findings_by_layer(selected(report, config)), []


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
    whole = sizes(shape, "--shape", ",")
    if png is not None:
        _check_png(png)
        pictures.need_matplotlib()
    rows = show.whole_mask(key, CheckedRate(rate), whole, variant, block_size)
    screen = console()
    show.print_mask(rows, screen)
    title = f"seed {seed}, {place}, step {step}, shape {shape}, rate {rate:g}"
    if variant != "elementwise":
        block = "" if block_size is None else f" of {block_size}"
        title = f"{variant}{block}, {title}"
    kept = f"kept {int(rows.sum()):,} of {rows.size:,}"
    if rows.size:
        kept += f" ({rows.mean():.2%})"
    screen.print(f"{title}: {kept}", highlight=False, soft_wrap=True)
    if png is not None:
        files.write_bytes(png, pictures.mask(rows, f"{title}: {kept}"))
        screen.print(f"picture: {png}", highlight=False, soft_wrap=True)


def _given(**options: Any) -> dict[str, Any]:
    """The options that the user gave; the rest have their defaults in one place, `Settings`."""
    return {name: value for name, value in options.items() if value is not None}


def _check_workers(workers: int) -> None:
    if not 0 <= workers <= 256:
        raise InvalidValueError(f"`workers` must be in [0, 256]; got {workers}.")


def _check_png(path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise InvalidValueError(f"`--png` must end in .png; got {str(path)!r}.")


def _share_cores() -> None:
    """Let waiting threads sleep instead of spin, before torch brings OpenMP in.

    Beside other work on the same cores a step takes a fifth of the time then.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
