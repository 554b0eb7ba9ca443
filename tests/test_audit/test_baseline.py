"""Known findings: written, found again after lines moved, and told when they are gone."""

import json
from collections import Counter
from pathlib import Path

import pytest

from dropseed.audit.finding import Finding, Severity, Span
from dropseed.audit.reporting.baseline import (
    keys,
    read_baseline,
    relative,
    unknown,
    within,
    write_baseline,
)
from dropseed.errors import InvalidValueError


@pytest.fixture
def at(tmp_path):
    """Makes a finding in a file of the folder."""

    def make(line, code="DS101", path="src/a.py", cell=None):
        span = Span(line, 1, line, 2, cell)
        return Finding(code, "", Severity.ERROR, path, str(tmp_path), span, "")

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("x = f(x)\n\n  y = f(y)\nx = f(x)\n")
    return make


def test_what_is_written(at, tmp_path):
    file = tmp_path / "known.json"
    write_baseline(file, [at(4), at(1), at(3, "DS102"), at(1, path="gone.py")])
    content = json.loads(file.read_text())
    assert content == {
        "version": 1,
        "findings": [
            {"path": "gone.py", "code": "DS101", "line": "", "count": 1},
            {"path": "src/a.py", "code": "DS101", "line": "x = f(x)", "count": 2},
            {"path": "src/a.py", "code": "DS102", "line": "y = f(y)", "count": 1},
        ],
    }
    assert file.read_text().endswith("]\n}\n")
    assert read_baseline(file) == Counter(
        {
            ("src/a.py", "DS101", "x = f(x)"): 2,
            ("src/a.py", "DS102", "y = f(y)"): 1,
            ("gone.py", "DS101", ""): 1,
        }
    )


def test_the_same_findings_give_the_same_bytes(at, tmp_path):
    write_baseline(tmp_path / "a", [at(1), at(3), at(4)])
    write_baseline(tmp_path / "b", [at(4), at(3), at(1)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_known_findings_are_known_wherever_their_line_moved(at, tmp_path):
    write_baseline(tmp_path / "known", [at(1), at(3)])
    (tmp_path / "src" / "a.py").write_text("\n\n\nif x:\n    x = f(x)\n# more\ny = f(y)\n")
    known = read_baseline(tmp_path / "known")
    assert unknown([at(5), at(7)], known, tmp_path) == ([], Counter())


@pytest.mark.parametrize(
    ("line", "code", "path", "text"),
    [
        (1, "DS102", "src/a.py", "x = f(x)\n"),
        (1, "DS101", "src/b.py", "x = f(x)\n"),
        (1, "DS101", "a.py", "x = f(x)\n"),
        (1, "DS101", "src/a.py", "x = f(x, 1)\n"),
        (2, "DS101", "src/a.py", "x = f(x)\n\n"),
    ],
)
def test_other_findings_are_new(line, code, path, text, at, tmp_path):
    write_baseline(tmp_path / "known", [at(1)])
    known = read_baseline(tmp_path / "known")
    (tmp_path / path).write_text(text)
    finding = at(line, code, path)
    new, gone = unknown([finding], known, tmp_path)
    assert new == [finding]
    assert gone.total() == 1


def test_of_equal_findings_only_as_many_are_known_as_there_were(at, tmp_path):
    write_baseline(tmp_path / "known", [at(1)])
    new, gone = unknown([at(1), at(4)], read_baseline(tmp_path / "known"), tmp_path)
    assert (new, gone) == ([at(4)], Counter())


def test_the_scanned_root_does_not_matter(at, tmp_path, monkeypatch):
    write_baseline(tmp_path / "known", [at(1)])
    monkeypatch.chdir(tmp_path / "src")
    known = read_baseline(Path("../known"))
    one = Finding("DS101", "", Severity.ERROR, "a.py", ".", Span(1, 1, 1, 2), "")
    assert unknown([one], known, Path("..")) == ([], Counter())


def test_lines_of_notebooks_and_of_files_that_are_not_on_the_disk(at, tmp_path):
    book = {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "source": ["a\n", " b"]}]}
    (tmp_path / "b.ipynb").write_text(json.dumps(book))
    found = [at(2, path="b.ipynb", cell=2), at(1, path="src/a.py"), at(9, path="src/a.py")]
    contents = {tmp_path / "src/a.py": b"other(x)\n"}
    assert [key[2] for key in keys(found, tmp_path, contents)] == ["b", "other(x)", ""]


def test_gone_ones_count_where_was_scanned(tmp_path):
    known = Counter({("src/a.py", "DS101", ""): 2, ("b.py", "DS101", ""): 1})
    assert within(known, tmp_path, [tmp_path]) == 3
    assert within(known, tmp_path, [tmp_path / "b.py"]) == 1
    assert within(known, tmp_path, [tmp_path / "src", tmp_path / "other"]) == 2
    assert within(known, tmp_path, [tmp_path / "sr"]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "3",
        '{"version": 2, "findings": []}',
        '{"version": 1, "findings": [{}]}',
        '{"version": 1, "findings": [{"path": 1, "code": "", "line": "", "count": 1}]}',
        '{"version": 1, "findings": [{"path": "", "code": "", "line": "", "count": "x"}]}',
        "\udcff",
    ],
)
def test_files_that_are_no_baseline(text, tmp_path):
    file = tmp_path / "known"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidValueError, match=r"known can't be read .* Delete it"):
        read_baseline(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(InvalidValueError, match="can't be read"):
        read_baseline(file)


def test_names_that_are_no_text(at, tmp_path):
    name = "src/\udcff.py"
    write_baseline(tmp_path / "known", [at(1, path=name)])
    assert read_baseline(tmp_path / "known") == Counter({(name, "DS101", ""): 1})


def test_relative_paths():
    assert relative(Path("a/b.py"), Path()) == "a/b.py"
    assert relative(Path("b.py"), Path("a")) == "../b.py"
