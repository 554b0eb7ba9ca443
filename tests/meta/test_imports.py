"""Which part imports which, against the table in docs/design.md."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"

NUMPY_ONLY = sys.stdlib_module_names | {"numpy", "dropseed"}
STANDARD_ONLY = sys.stdlib_module_names | {"dropseed"}
OUTSIDE = {
    "errors": STANDARD_ONLY,
    "mask": NUMPY_ONLY,
    "conversion": STANDARD_ONLY,
    "audit": STANDARD_ONLY,
}
"""The top-level packages that a part may import; parts that are not named here may import any."""

HOSTS = {"dropseed.audit.running.pytest_plugin": "pytest"}
"""Plugins, each with the one package that imports it."""

HEAVY = [
    "torch",
    "numba",
    "jax",
    "keras",
    "typer",
    "rich",
    "matplotlib",
    "scipy",
    "pandas",
    "pooch",
]


def table(text):
    """{part: the parts it may import} from lines such as `errors <- mask <- kernels <- a | b`."""
    allowed = {}
    for line in re.findall(r"^\w+ (?:<-|\|) .*$", text, re.MULTILINE):
        before = set()
        for stage in re.sub(r"\(.*?\)", "", line).split("<-"):
            parts = set(re.findall(r"\w+", stage))
            for part in parts:
                allowed.setdefault(part, set()).update(before)
            before |= parts
    return allowed


def modules():
    """{dotted name: source text} of the package."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        package = parts[-1] == "__init__"
        found[".".join(parts[:-1] if package else parts)] = path.read_text(encoding="utf-8")
    return found


def imported(text, known):
    """(module, whether not at import) for each module that a source text imports.

    Not at import: inside a function, or for the type checker alone.
    """
    tree = ast.parse(text)
    later = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    inside = {id(node) for block in later for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                # `from dropseed import torch` imports a part, `from dropseed import keep` none.
                longer = f"{module}.{alias.name}"
                yield (longer if longer in known else module), id(node) in inside


def part_of(module):
    """The part of the package that a module belongs to; the package itself hands on `mask`."""
    return [*module.split("."), "mask"][1]


def violations(sources, allowed):
    for name, text in sources.items():
        part = part_of(name)
        for module, inside in imported(text, sources):
            top = module.split(".")[0]
            if not top:
                yield f"{name} imports {module}: write the whole name"
            elif top != "dropseed":
                late = part == "audit" and inside
                if top not in OUTSIDE.get(part, {top}) and not late and HOSTS.get(name) != top:
                    yield f"{name} imports {module}"
            elif part_of(module) not in allowed.get(part, set()) | {part}:
                yield f"{name} imports {module}"
            elif part == part_of(module) == "kernels":
                yield f"{name} imports {module}: one kernel file imports another"


@pytest.fixture(scope="module")
def allowed():
    return table((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))


def test_table(allowed):
    assert allowed["errors"] == set()
    assert allowed["mask"] == {"errors"}
    assert allowed["conversion"] == allowed["kernels"] == {"errors", "mask"}
    assert allowed["torch"] == allowed["jax"] == {"errors", "mask", "kernels", "conversion"}
    assert allowed["keras"] == {*allowed["torch"], "torch", "jax"}
    assert allowed["audit"] == {"errors"}
    assert allowed["cli"] == set(allowed) - {"cli"}


def test_every_part_is_in_the_table(allowed):
    assert {part_of(name) for name in modules()} <= set(allowed)


def test_imports_follow_the_table(allowed):
    assert list(violations(modules(), allowed)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dropseed.errors", "import numpy"),
        ("dropseed.errors", "from dropseed import keep"),
        ("dropseed.mask.key", "import torch.nn"),
        ("dropseed.mask.key", "def f():\n    import scipy"),
        ("dropseed.mask.key", "from dropseed.kernels import cpu"),
        ("dropseed", "import dropseed.torch"),
        ("dropseed.kernels.cpu", "from dropseed.kernels import gpu"),
        ("dropseed.kernels.cpu", "from dropseed.kernels.gpu import launch"),
        ("dropseed.kernels.cpu", "from . import gpu"),
        ("dropseed.mask.key", "from .philox import philox4x32"),
        ("dropseed.kernels.cpu", "if True:\n    import dropseed.torch.layers"),
        ("dropseed.torch.layers", "from dropseed import jax"),
        ("dropseed.jax.nnx", "from dropseed.torch import functional"),
        ("dropseed.torch", "from dropseed.lab import data"),
        ("dropseed.audit.engine", "import torch"),
        ("dropseed.audit.engine", "if True:\n    import torch"),
        ("dropseed.mask.key", "if TYPE_CHECKING:\n    import torch"),
        ("dropseed.audit.engine", "from dropseed.mask import Key"),
        ("dropseed.audit.engine", "def f():\n    from dropseed.mask import Key"),
        ("dropseed.lab.train", "from dropseed.cli import main"),
        ("dropseed.new", "from dropseed import keep"),
    ],
)
def test_the_check_can_fail(name, text, allowed):
    names = "mask mask.key kernels kernels.cpu kernels.gpu torch torch.functional jax lab lab.data"
    sources = dict.fromkeys(["dropseed", *(f"dropseed.{n}" for n in names.split())], "")
    assert list(violations(sources | {name: text}, allowed))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dropseed", "from dropseed.mask import Key"),
        ("dropseed.mask.key", "import zlib\nimport numpy as np\nfrom dropseed.errors import A"),
        ("dropseed.mask.key", "from dropseed.mask import philox"),
        ("dropseed.kernels.cpu", "import numba\nfrom dropseed.mask.shard import Draws"),
        ("dropseed.torch.layers", "import torch\nfrom dropseed.kernels import cpu"),
        ("dropseed.audit.runtime", "import ast\ndef f():\n    import torch"),
        ("dropseed.audit.runtime", "if TYPE_CHECKING:\n    import torch"),
        ("dropseed.cli", "from dropseed import __version__\nfrom dropseed.lab import data"),
    ],
)
def test_the_check_is_silent_where_all_is_well(name, text, allowed):
    names = "mask mask.philox kernels kernels.cpu torch lab lab.data"
    sources = dict.fromkeys(["dropseed", *(f"dropseed.{n}" for n in names.split())], "")
    assert list(violations(sources | {name: text}, allowed)) == []


def loaded(statement):
    """The top-level packages in a fresh process after a statement."""
    code = f"import sys\n{statement}\nprint(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(run.stdout.split())


def test_what_is_loaded_is_seen():
    assert {"json", "zlib"} <= loaded("import json, zlib")


@pytest.mark.parametrize(
    ("module", "needed", "heavy"),
    [
        ("dropseed", "dropseed", ["numpy", *HEAVY]),
        ("dropseed.mask", "numpy", HEAVY),
        ("dropseed.torch", "torch", ["numba", "jax", "keras", "matplotlib"]),
        ("dropseed.cli", "typer", ["torch", "numba", "jax", "keras", "matplotlib", "pooch"]),
    ],
)
def test_import_loads_nothing_heavy(module, needed, heavy):
    packages = loaded(f"import {module}")
    assert needed in packages
    assert packages & set(heavy) == set()


def test_auditing_needs_the_standard_library_alone():
    assert loaded("import dropseed.audit.engine") <= sys.stdlib_module_names | {
        "dropseed"
    } | loaded("")
