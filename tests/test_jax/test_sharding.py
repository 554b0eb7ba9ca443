"""Arrays on several devices: see `sharded.py`, which needs a process of its own."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dropseed import keep

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")


def test_eight_devices():
    script = Path(__file__).with_name("sharded.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.splitlines() == ["done 8"]


@pytest.mark.parametrize("start", [0, 3, 16, (3, 0), (0, 2), (1, 1)])
def test_traced_starts(start, key):
    of, shape = (40, 24), (5, 9)

    @jax.jit
    def part(start):
        return dsj.keep(key, 0.3, shape, start=start, of=of)

    want = keep(key, 0.3, shape, start=start, of=of)
    assert np.array_equal(part(start), want)
    assert np.array_equal(jax.vmap(part)(jax.tree.map(lambda n: jnp.array([n, 0]), start))[0], want)


def test_a_traced_start_beside_a_static_one(key):
    part = jax.jit(lambda row: dsj.keep(key, 0.3, (4, 8), start=(row, 16), of=(40, 24)))
    assert np.array_equal(part(7), keep(key, 0.3, (4, 8), start=(7, 16), of=(40, 24)))


def test_microbatches_make_the_batch(key):
    x = jnp.ones((12, 7))
    whole = dsj.dropout(key, x, 0.3)
    parts = [dsj.dropout(key, x[i : i + 4], 0.3, start=i) for i in range(0, 12, 4)]
    assert np.array_equal(jnp.concatenate(parts), whole)
    every_third = [dsj.dropout(key, x[i::3], 0.3, start=i, stride=3) for i in range(3)]
    assert np.array_equal(jnp.stack(every_third, axis=1).reshape(12, 7), whole)
