"""Where runs go when nobody says: runs/mnist-001, runs/mnist-002, and so on."""

from __future__ import annotations

from pathlib import Path

from dropseed.errors import RunError

RUNS = Path("runs")


def choose(out: Path | None, prefix: str, resume: bool) -> Path:
    """The folder of a run.

    Args:
        out: what the user chose, if anything.
        prefix: the beginning of a numbered folder's name.
        resume: whether an earlier run goes on.

    Returns:
        `out`; or else the last numbered folder to resume, or the next one to start.

    Raises:
        RunError: there is nothing to resume.

    Example:
        >>> choose(None, "example", resume=False).as_posix()
        'runs/example-001'
    """
    if out is not None:
        return out
    numbers = [int(path.name[len(prefix) + 1 :]) for path in RUNS.glob(f"{prefix}-[0-9][0-9][0-9]")]
    if resume and not numbers:
        raise RunError(
            f"There is no run to resume in {RUNS / prefix}-*. Give its folder with `--out`, "
            "or leave out `--resume`."
        )
    number = max(numbers, default=0) + (not resume)
    return RUNS / f"{prefix}-{number:03}"
