"""The flake8 plugin, called by flake8 itself."""

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dropseed.audit import flake8_plugin

pytest.importorskip("flake8", reason="needs flake8, of the extra `dev`")

ROOT = Path(__file__).parents[2]
SELECT = "[flake8]\nselect = DS\n"
# Where the installation is older than the entry point, flake8 is told of the plugin.
LOCAL = "[flake8:local-plugins]\nextension =\n    DS = dropseed.audit.flake8_plugin:Plugin\n"
INSTALLED = bool(entry_points(group="flake8.extension", name="DS"))
WRONG = """import torch.nn.functional as F


def f(x):
    return F.dropout(x, 0.5)
"""
HANDED_ON = WRONG.replace("import torch.nn.functional as F", "from nn.base import F")


@pytest.fixture
def flake8(tmp_path, monkeypatch):
    """Run flake8 in a folder of the test's own; returns status, lines, and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("tox.ini").write_text(SELECT if INSTALLED else SELECT + LOCAL)
    Path("a.py").write_text(WRONG)

    def run(*words, text=None):
        done = subprocess.run(
            [sys.executable, "-m", "flake8", "--config", "tox.ini", *words],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


def places(lines):
    """path:line:column and code of each line."""
    return [" ".join(line.split(" ")[:2]) for line in lines]


def test_findings(flake8):
    status, lines, err = flake8()
    assert (status, err) == (1, "")
    assert places(lines) == ["./a.py:5:12: DS101"]
    assert "drops in evaluation" in lines[0]


def test_several_processes(flake8):
    for name in "bcdefgh":
        Path(f"{name}.py").write_text(WRONG)
    status, lines, err = flake8("--jobs", "2", ".")
    assert (status, err) == (1, "")
    assert places(lines) == [f"./{name}.py:5:12: DS101" for name in "abcdefgh"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", ()),
        (WRONG.replace("0.5)", "0.5)  # noqa"), ()),
        (WRONG.replace("0.5)", "0.5)  # noqa: DS101"), ()),
        (WRONG.replace("0.5)", "0.5)  # dropseed: ignore[DS101] why"), ()),
        (WRONG, ("--extend-ignore", "DS101")),
        (WRONG, ("--exclude", "a.py")),
        (WRONG, ("--select", "E9")),
        (WRONG, ("--per-file-ignores", "a.py:DS")),
    ],
)
def test_no_findings(text, words, flake8):
    Path("a.py").write_text(text)
    assert flake8(*words) == (0, [], "")


def test_disabled_comments_silence_nothing(flake8):
    Path("a.py").write_text(WRONG.replace("0.5)", "0.5)  # noqa: DS101"))
    assert places(flake8("--disable-noqa")[1]) == ["./a.py:5:12: DS101"]


def test_unused_comments(flake8):
    Path("a.py").write_text("x = 1  # dropseed: ignore[DS101]\ny = 1  # noqa: DS101\n")
    assert places(flake8()[1]) == ["./a.py:1:8: DS002"]


def test_the_configuration_counts(flake8):
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nignore = ['DS101']\n")
    assert flake8() == (0, [], "")
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nexclude = ['a.py']\n")
    assert flake8() == (0, [], "")


def test_a_wrong_configuration_is_one_sentence(flake8):
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nignore = ['DS9']\n")
    status, lines, err = flake8()
    assert (status, lines) == (1, [])
    assert err.startswith("dropseed: `ignore` of [tool.dropseed.audit]")
    assert err.count("\n") == 1


def test_names_are_followed_through_other_files(flake8):
    Path("nn").mkdir()
    Path("nn/__init__.py").touch()
    Path("nn/base.py").write_text("import torch.nn.functional as F\n")
    Path("nn/child.py").write_text(HANDED_ON)
    assert places(flake8("nn")[1]) == ["nn/child.py:5:12: DS101"]
    Path("nn/base.py").write_text("import jax.nn as F\n")
    assert flake8("nn") == (0, [], "")


def test_standard_input(flake8):
    lines = flake8("-", text=WRONG)[1]
    assert places(lines) == ["stdin:5:12: DS101"]
    assert flake8("-", text="x = 1\n") == (0, [], "")


def test_standard_input_of_a_file_is_not_read_from_the_disk(flake8):
    words = ("--stdin-display-name", "a.py", "-")
    assert flake8(*words, text="x = 1\n") == (0, [], "")
    assert places(flake8(*words, text="\n" + WRONG)[1]) == ["a.py:6:12: DS101"]


def test_a_file_that_does_not_parse_is_flake8s_own(flake8):
    Path("a.py").write_text("print 'x'\n")
    assert flake8()[1] == []
    assert "E999" in flake8("--select", "E9,DS")[1][0]


def test_a_path_that_does_not_exist(flake8):
    assert "E902" in flake8("--select", "E9,DS", "gone.py")[1][0]


def test_the_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["flake8.extension"] == {
        "DS": f"{flake8_plugin.__name__}:{flake8_plugin.Plugin.__name__}"
    }


def test_what_flake8_shows_as_version():
    assert flake8_plugin.Plugin.name == "dropseed"
    assert flake8_plugin.Plugin.version[0].isdigit()
