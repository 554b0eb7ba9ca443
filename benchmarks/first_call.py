"""The first call of a fresh process, Numba's import included: compiled anew, and from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from rich.progress import track

from benchmarks.harness import Bar, show, show_bars

_CALL = """
import time, torch, dropseed.torch as dst
x = torch.ones({size})
start = time.perf_counter()
dst.functional.dropout(x, 0.5)
print(time.perf_counter() - start)
"""


def _first_call(size: int, cache: str) -> float:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", _CALL.format(size=size)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    rows, bars = [], []
    for name, size, limit in track(
        (("serial", 64, 6), ("with the parallel twin", 2**20, 8)),
        description="fresh processes",
        transient=True,
    ):
        with tempfile.TemporaryDirectory() as cache:
            anew = _first_call(size, cache)
            cached = sorted(_first_call(size, cache) for _ in range(5))[2]
        rows.append([name, f"{anew:.2f}", f"{cached:.2f}"])
        bars.append(Bar(f"{name}, compiled anew, s", anew, limit))
        bars.append(Bar(f"{name}, from the cache, s", cached, 1))
    show("First call in a fresh process, seconds", ["kernel", "compiled anew", "cached"], rows)
    show_bars("First-call bars", bars)


if __name__ == "__main__":
    main()
