"""The configuration: where it is found, what is wrong with it, and what options lay over it."""

import re
from pathlib import Path

import pytest

from dropseed.audit.finding import Severity
from dropseed.audit.reporting.config import Config, codes, matches, read_config, with_options
from dropseed.errors import InvalidTypeError, InvalidValueError

FULL = """
[tool.dropseed.audit]
select = ["DS1", "ds301"]
ignore = ["DS103"]
severity = "note"
preview = true
exclude = ["generated", "src/old/*.py"]
baseline = "known.json"

[tool.dropseed.audit.per-file-ignores]
"tests/*" = ["DS3", "ALL"]
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text(FULL)
    return tmp_path


def test_every_key(project):
    config = read_config(project / "src" / "deep")
    assert config == Config(
        select=("DS1", "DS301"),
        ignore=("DS103",),
        severity=Severity.NOTE,
        preview=True,
        exclude=("generated", "src/old/*.py", f"{project}/src/old/*.py"),
        per_file_ignores={"tests/*": ("DS3", "DS")},
        baseline=project / "known.json",
        root=project,
    )


def test_found_from_a_file_and_from_a_relative_path(project, monkeypatch):
    (project / "src" / "a.py").touch()
    assert read_config(project / "src" / "a.py").root == project
    monkeypatch.chdir(project / "src")
    assert read_config(Path("deep")).root == project


def test_the_nearest_file_with_the_table_counts(project):
    inner = project / "src" / "pyproject.toml"
    inner.write_text("[tool.ruff]\nline-length = 100\n")
    assert read_config(project / "src" / "deep").select == ("DS1", "DS301")
    inner.write_text("[tool.dropseed.audit]\nselect = ['DS3']\n")
    assert read_config(project / "src" / "deep").select == ("DS3",)


def test_without_a_file(tmp_path):
    assert read_config(tmp_path) == Config()


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("slect = ['DS1']", InvalidValueError, "no key `slect`. Did you mean `select`?"),
        ("zzz = 1", InvalidValueError, "no key `zzz`. It has select, ignore,"),
        ("select = ['DS9']", InvalidValueError, "`select` of [tool.dropseed.audit] in"),
        ("select = ['E501']", InvalidValueError, "has E501, which is no rule's code."),
        ("ignore = ['unused-ignore']", InvalidValueError, "Did you mean DS002?"),
        ("select = 'DS1'", InvalidTypeError, "must be a list of strings; got 'DS1'."),
        ("select = [1]", InvalidTypeError, "must be a list of strings; got [1]."),
        ("severity = 'high'", InvalidValueError, "must be one of error, warning, note; got 'high'"),
        ("severity = 3", InvalidTypeError, "must be a string; got 3."),
        ("preview = 'yes'", InvalidTypeError, "must be true or false; got 'yes'."),
        ("exclude = 'a'", InvalidTypeError, "must be a list of strings; got 'a'."),
        ("baseline = ['a']", InvalidTypeError, "must be a string; got ['a']."),
        ("per-file-ignores = ['a']", InvalidTypeError, "must be a table of pattern = codes"),
        ("per-file-ignores = {a = ['DS7']}", InvalidValueError, "'a' in `per-file-ignores` of"),
        ("select = [", InvalidValueError, "pyproject.toml can't be read: "),
    ],
)
def test_a_wrong_file(line, error, message, tmp_path):
    (tmp_path / "pyproject.toml").write_text(f"[tool.dropseed.audit]\n{line}\n")
    with pytest.raises(error, match=re.escape(message)):
        read_config(tmp_path)


@pytest.mark.parametrize("text", ["[tool]\ndropseed = 3\n", "tool = 3\n", "[tool.dropseed]\n", ""])
def test_other_tables_are_no_configuration(text, tmp_path):
    (tmp_path / "pyproject.toml").write_text(text)
    assert read_config(tmp_path) == Config()


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xff")
    with pytest.raises(InvalidValueError, match="can't be read"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["DS101"], ("DS101",)),
        (["ds101,DS3", "DS002"], ("DS101", "DS3", "DS002")),
        ([" DS101 , ALL,"], ("DS101", "DS")),
        ([], ()),
    ],
)
def test_codes(words, found):
    assert codes(words, "`--select`") == found


@pytest.mark.parametrize("words", [["D"], ["DS1010"], ["E5"], [""], [","], ["dropout"]])
def test_wrong_codes(words):
    with pytest.raises(InvalidValueError, match=r"^`--select` "):
        codes(words, "`--select`")


def test_options_lie_over_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Config(select=("DS1",), ignore=("DS103",), exclude=("a",), root=tmp_path)
    assert with_options(config) == config
    assert with_options(config, ignore=["DS101"]).ignore == ("DS103", "DS101")
    chosen = with_options(config, select=["DS3"], ignore=["DS301"])
    assert (chosen.select, chosen.ignore) == (("DS3",), ("DS301",))
    assert with_options(config, severity="ERROR").severity is Severity.ERROR
    assert with_options(config, preview=True).preview
    assert with_options(config, exclude=["b/c"]).exclude == ("a", "b/c", f"{tmp_path}/b/c")
    assert with_options(config, baseline=Path("x")).baseline == Path("x")
    with pytest.raises(InvalidValueError, match="`--severity` must be one of"):
        with_options(config, severity="high")


@pytest.mark.parametrize(
    "pattern",
    [
        "c.py",
        "*.py",
        "a/b/c.py",
        "a/b",
        "a",
        "a/",
        "a/*",
        "a/**/c.py",
        "a/b/**/c.py",
        "**/c.py",
        "./a",
        "/p/a",
    ],
)
def test_patterns_that_match(pattern):
    assert matches(Path("/p/a/b/c.py"), pattern, Path("/p"))


@pytest.mark.parametrize(
    "pattern", ["b", "c", "b/c.py", "*.pyi", "A", "d/**/c.py", "/a", "a/b/c", "../a", "/q/a"]
)
def test_patterns_that_do_not_match(pattern):
    assert not matches(Path("/p/a/b/c.py"), pattern, Path("/p"))
