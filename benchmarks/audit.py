"""Time to audit a large package, over the time that parsing its files takes on one core.

    python -m benchmarks.audit [FOLDER]

FOLDER is torch's own by default: over two thousand files. The transformers package is larger.
"""

from __future__ import annotations

import ast
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from benchmarks.harness import Bar, show, show_bars
from dropseed.audit.engine import scan

ROUNDS = 5


def timed(call: object, *arguments: object, **options: object) -> float:
    """The time of one call in seconds."""
    start = time.perf_counter()
    call(*arguments, **options)  # type: ignore[operator]
    return time.perf_counter() - start


def parse_all(texts: list[bytes]) -> None:
    """Parse every file, as Python does."""
    for text in texts:
        try:
            ast.parse(text)
        except (SyntaxError, ValueError):
            continue


def main(folder: Path) -> None:
    """Time a folder, and print the table and the bars."""
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)
    texts = [path.read_bytes() for path in sorted(folder.rglob("*.py"))]
    times: dict[str, list[float]] = {"ast.parse": [], "one process": [], "cold": [], "warm": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            cache = Path(name)
            times["ast.parse"].append(timed(parse_all, texts))
            times["one process"].append(timed(scan, [folder], jobs=1))
            times["cold"].append(timed(scan, [folder], cache=cache))
            times["warm"].append(timed(scan, [folder], cache=cache))
    medians = {name: statistics.median(found) for name, found in times.items()}
    parsed = medians["ast.parse"]
    size = sum(map(len, texts)) / 1e6
    rows = [[name, f"{at:.2f}", f"{at / parsed:.2f}"] for name, at in medians.items()]
    title = f"Auditing {folder.name}: {len(texts):,} files, {size:.0f} MB"
    show(title, ["", "seconds", "over ast.parse"], rows, "Medians.")
    bars = [
        Bar("cold, over ast.parse on one core", medians["cold"] / parsed, 2),
        Bar("warm, over ast.parse on one core", medians["warm"] / parsed, 0.1),
    ]
    show_bars("Bars on auditing", bars)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(torch.__file__).parent)
