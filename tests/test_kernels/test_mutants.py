"""The tests of the tests: a kernel that is broken on purpose must turn the checks red."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

import kernel_checks as checks
from dropseed.kernels import cpu
from dropseed.mask import Key

SOURCE = Path(cpu.__file__).read_text(encoding="utf-8")

MUTANTS = {
    "ties always dropped": ("if threshold & 0xFFFFFF:\n        byte", "if False:\n        byte"),
    "ties always kept": ("lower[i] >= byte) == kept_wins", "lower[i] >= 0) == kept_wins"),
    "a plane off by one bit": ("np.uint64(plane) << np.uint64(28)", "np.uint64(plane) << 29"),
    "<= for <": ("if u[i] >= least else casualty", "if u[i] > least else casualty"),
    "the index cut at 2^44": (
        "first + np.uint64(i)\n",
        "(first + np.uint64(i)) & np.uint64(0xFFFFFFFFFF)\n",
    ),
    "a round too few": ("for _ in range(10):", "for _ in range(9):"),
    "another draw takes a block": (
        "_below64(u, first + at, least)",
        "_equal64(u, first + at, least)",
    ),
    "a block at the map's edge": ("left = draw - after + each - line * places[2]", "left = 0"),
    "a weight kept that drops": (
        "total += a[i] * g if u[i] >= least else zero",
        "total += a[i] * g",
    ),
    "a gradient of another sample": ("after = draw + order[1] * outputs * inputs", "after = draw"),
    "another word's byte": ("index & np.uint64(8) else low", "index & np.uint64(4) else low"),
}


def load(source, folder):
    """A kernel module made of other source text."""
    path = folder / "mutant.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("mutant", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutant"] = module
    spec.loader.exec_module(module)
    return module


def check(kernel):
    """One type of each loop: every further one costs a second to compile."""
    checks.check_masks(kernel)
    checks.check_every_tie(kernel)
    checks.check_blocks(kernel)
    checks.check_drop_connect(kernel, (3, 4, 70), torch.float32, Key(1, 2, 3), 0.3)


@pytest.fixture(autouse=True)
def _forget_the_mutant():
    yield
    sys.modules.pop("mutant", None)


def test_the_kernel_itself_passes(tmp_path):
    check(load(SOURCE, tmp_path))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails(name, tmp_path):
    old, new = MUTANTS[name]
    assert old in SOURCE, "the kernel has changed: mend the mutant"
    mutant = load(SOURCE.replace(old, new), tmp_path)
    with pytest.raises(AssertionError):
        check(mutant)
