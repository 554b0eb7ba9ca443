"""The repository itself: versions, pins, docstrings, and no path of anyone's machine."""

import importlib
import inspect
import re
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

import dropseed
from dropseed import errors

ROOT = Path(__file__).parents[2]
PUBLIC = ["dropseed", "dropseed.mask", "dropseed.torch", "dropseed.jax", "dropseed.keras"]

# Absolute paths of a machine, and folders beside the repository. Written with a class of one
# letter, so that this line does not match itself.
ELSEWHERE = re.compile(
    r"(?<![\w.~-])/(?:r[o]ot|h[o]me|w[o]rk|U[s]ers)/|[.]{2}/sh[a]red|C:\\U[s]ers"
)


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def files():
    """Every file that git tracks or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def requirement_names(requirements):
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in requirements}


def test_version_is_that_of_the_change_log():
    headings = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d{2}-\d{2}$", read("CHANGELOG.md"), re.M)
    assert headings[0] == dropseed.__version__


def test_constraints_are_exact_and_used():
    lines = [line for line in read("constraints.txt").splitlines() if line and line[0] != "#"]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.-]+==[\w.+]+", line)
    project = tomllib.loads(read("pyproject.toml"))
    required = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for group in project["project"]["optional-dependencies"].values():
        required += group
    for group in project.get("dependency-groups", {}).values():
        required += group
    unused = requirement_names(lines) - requirement_names(required)
    assert unused == set()


def undocumented(module):
    """The public names that lack a docstring, or an example where they can be called."""
    for name in module.__all__:
        thing = getattr(module, name)
        text = thing.__doc__ or ""
        if isinstance(thing, str):
            continue
        if not text or (callable(thing) and not ("Example:" in text and ">>> " in text)):
            yield name


@pytest.mark.parametrize("name", PUBLIC)
def test_public_objects_have_examples(name):
    module = importlib.import_module(name)
    assert module.__doc__
    assert list(undocumented(module)) == []


def test_objects_without_examples_are_seen():
    def bare(): ...

    def described():
        """No example."""

    things = SimpleNamespace(__all__=["bare", "described"], bare=bare, described=described)
    assert list(undocumented(things)) == ["bare", "described"]


def test_no_path_of_a_machine():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), 1)
        if ELSEWHERE.search(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["see /{}/me/x".format("home"), "open('/{}/a')".format("root"), "../{}/A.md".format("shared")],
)
def test_paths_of_a_machine_are_seen(line):
    assert ELSEWHERE.search(line)


@pytest.mark.parametrize(
    "line", ["https://example.org/{}/page".format("work"), "src/{}/x".format("home")]
)
def test_other_paths_are_fine(line):
    assert not ELSEWHERE.search(line)


def drawn_tree(text):
    """{(name, parent, built-in bases)} from the tree in the docstring."""
    path = {-1: "Exception"}
    for line in re.findall(r"^ {4}.*Error.*$", text, re.M):
        name = re.search(r"\w+Error", line)
        depth = (name.start() - 4) // 4
        path[depth] = name[0]
        also = re.search(r"\(also (\w+)\)", line)
        yield name[0], path[depth - 1], also[1] if also else None


def real_tree():
    for name, thing in vars(errors).items():
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            bases = [base.__name__ for base in thing.__bases__]
            yield name, bases[0], bases[1] if len(bases) > 1 else None


def test_tree_of_errors_is_as_drawn():
    assert sorted(drawn_tree(errors.__doc__), key=str) == sorted(real_tree(), key=str)


def test_a_wrong_tree_is_seen():
    drawn = sorted(drawn_tree(errors.__doc__), key=str)
    assert len(drawn) > 5
    for change in ("├── DataError", "(also ValueError)"):
        assert sorted(drawn_tree(errors.__doc__.replace(change, "")), key=str) != drawn
