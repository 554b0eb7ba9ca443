"""The tests of the tests: XLA's draws, broken on purpose, must turn the comparisons red."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from dropseed import Key, Rate, gaussian, keep

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
pytestmark = pytest.mark.usefixtures("quick")
xla = pytest.importorskip("dropseed.kernels.xla")

SOURCE = Path(xla.__file__).read_text(encoding="utf-8")
KEY = Key(2**40 + 3, 5, 7)

MUTANTS = {
    "a round too few": ("for _ in range(10):", "for _ in range(9):"),
    "ties always dropped": ("word | above & ties) & 0xFFFF", "above & ties) & 0xFFFF"),
    "ties never settled": ("_planes(threshold) + _hidden_zero()", "u32(1) + _hidden_zero()"),
    "<= for <": ("_gathered(at_least & ~same)", "_gathered(at_least | same)"),
    "no carry": ("(low < a[0]).astype(jnp.uint32)", "u32(0)"),
    "half a product": ("(middle >> 16) + (other >> 16)", "(middle >> 16)"),
    "rows not moved": ("return both >> offset[..., None]", "return both"),
    "rows looked up at their blocks": (
        "at = _positions(offset, length)\n    word",
        "at = _positions(offset * 0, length)\n    word",
    ),
    "a plane off by one bit": ("(plane << 28) | n[1]", "(plane << 29) | n[1]"),
    "the other integer": ("jnp.where(plane <= 4,", "jnp.where(plane <= 5,"),
    "a cosine of half the angle": ("np.pi / 2**31", "np.pi / 2**32"),
}


def load(old, new):
    """The kernel with a piece of its source replaced."""
    assert SOURCE.count(old) >= 1, old
    spec = importlib.util.spec_from_loader("mutant", loader=None)
    module = importlib.util.module_from_spec(spec)
    exec(compile(SOURCE.replace(old, new), "mutant.py", "exec"), module.__dict__)
    return module


def right(kernel):
    """Whether a kernel's draws are the reference's: two geometries, two ways, both laws."""
    words = np.array(KEY.words, np.uint32)
    threshold, base = Rate(0.1).threshold, 2**36 - 40
    low_and_high = np.array([base % 2**32, base >> 32], np.uint32)
    want = keep(KEY, 0.1, 5000, start=base)
    for spread in (False, True):
        for shape, strides in (((5000,), (1,)), ((50, 100), (100, 1))):
            geometry = kernel.Geometry(shape, strides, None)
            draw = jax.jit(
                lambda w, b, s=spread, g=geometry: kernel.keep(
                    w, b, np.uint32(threshold), np.bool_(False), geometry=g, spread=s
                )
            )
            if not np.array_equal(np.asarray(draw(words, low_and_high)).reshape(-1), want):
                return False
    normals = jax.jit(
        lambda w, b: kernel.normals(w, b, geometry=kernel.Geometry((500,), (1,), None))
    )
    error = np.abs(np.asarray(normals(words, low_and_high)) - gaussian(KEY, 500, start=base))
    return error.max() < 2**-18


def test_the_source_is_right():
    assert right(load("for _ in range(10):", "for _ in range(10):"))


@pytest.mark.parametrize("name", list(MUTANTS))
def test_a_broken_kernel_is_seen(name):
    assert not right(load(*MUTANTS[name]))
