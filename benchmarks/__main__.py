"""Run every benchmark, each in a process of its own: python -m benchmarks [NAME ...]."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "kernels",
    "training",
    "overhead",
    "saved_bytes",
    "first_call",
    "variants",
    "paths",
    "drop_block",
    "drop_connect",
    "convert",
    "audit",
    "guard",
    "jax_dropout",
)


def main() -> int:
    """Run the named benchmarks, all by default; the status is the number that broke."""
    names = sys.argv[1:] or NAMES
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"Unknown benchmark {unknown[0]!r}: choose from {', '.join(NAMES)}.", file=sys.stderr)
        return 2
    return sum(
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode != 0
        for name in names
    )


if __name__ == "__main__":
    sys.exit(main())
