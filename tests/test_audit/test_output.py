"""Formats: for people, for programs, for GitHub, for build servers."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dropseed.audit.finding import Edit, Finding, Fix, Severity, Span
from dropseed.audit.reporting import output
from dropseed.audit.reporting.output import FORMATS, table
from dropseed.audit.reporting.output.excerpt import excerpt
from dropseed.audit.reporting.output.place import place, printable, shown
from dropseed.audit.reporting.output.text import render as text
from dropseed.audit.rules import RULES

ERROR, WARNING, NOTE = Severity
SCHEMA = Path(__file__).parents[2] / ".venv" / "sarif-2.1.0.json"

SOURCE = """import torch.nn.functional as F


def f(x):
    return F.dropout(
        x,
        0.5,
    )
"""
BOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# one\n", "two"]},
        {"cell_type": "code", "source": ["x = 1\n", "y = f(x)"]},
    ]
}
FIX = Fix("Pass it", (Edit(Span(7, 12, 7, 12), ", on=True"), Edit(Span(6, 9, 6, 10), "y")))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text(SOURCE)
    (tmp_path / "b.ipynb").write_text(json.dumps(BOOK, indent=1))


@pytest.fixture
def findings():
    """One of each severity; with a fix, over lines, and in a notebook."""
    return [
        finding("DS101", Span(5, 12, 8, 6), "a.py", "src", 'it\'s <on>: 100%, "so"', ERROR, FIX),
        finding("DS303", Span(2, 5, 2, 9, 2), "b.ipynb", ".", "no effect", WARNING),
        finding("DS304", Span(99, 1, 99, 2), "gone.py", ".", "unusual", NOTE),
    ]


def finding(code, span, path="a.py", root="src", message="on", severity=ERROR, fix=None):
    return Finding(code, "name-of-it", severity, path, root, span, message, fix)


def test_every_format_takes_no_findings():
    assert {name: render([], 2)[:1] for name, render in FORMATS.items()} == {
        "text": "F",
        "full": "F",
        "json": "[",
        "github": "",
        "sarif": "{",
        "junit": "<",
    }
    assert set(output.FOR_PEOPLE) < set(FORMATS)


def test_text(findings):
    assert text(findings, 3).splitlines() == [
        'src/a.py:5:12: DS101 it\'s <on>: 100%, "so"',
        "b.ipynb:cell 2:2:5: DS303 no effect",
        "gone.py:99:1: DS304 unusual",
        "Found 1 error, 1 warning, 1 note in 3 files (1 fixable with --fix).",
    ]


def test_text_counts():
    two = [finding("DS101", Span(1, 1, 1, 2))] * 2
    assert text(two, 1).splitlines()[-1] == "Found 2 errors in 1 file."


def test_text_with_source(findings):
    assert text(findings[1:2], 1, show_source=True).splitlines()[1:-1] == [
        "  |",
        "1 | x = 1",
        "2 | y = f(x)",
        "  |     ^^^^",
        "  |",
    ]


def test_full(findings):
    assert FORMATS["full"](findings, 3).split("\n") == [
        'DS101 [*] it\'s <on>: 100%, "so"',
        " --> src/a.py:5:12",
        "  |",
        "4 | def f(x):",
        "5 |     return F.dropout(",
        "  |            ^^^^^^^^^^",
        "6 |         x,",
        "  |         ^^",
        "7 |         0.5,",
        "  |         ^^^^",
        "8 |     )",
        "  |     ^",
        "  |",
        "help: Pass it",
        "",
        "DS303 no effect",
        " --> b.ipynb:cell 2:2:5",
        "  |",
        "1 | x = 1",
        "2 | y = f(x)",
        "  |     ^^^^",
        "  |",
        "",
        "DS304 unusual",
        " --> gone.py:99:1",
        "",
        "Found 1 error, 1 warning, 1 note in 3 files (1 fixable with --fix).",
        "",
    ]


@pytest.mark.parametrize(
    ("line", "column", "end", "drawn", "carets"),
    [
        ("f(x)", 1, 5, "f(x)", "^^^^"),
        ("\tf(x)", 2, 6, "    f(x)", "    ^^^^"),
        ("a = '\u6f22\u5b57'; f(x)", 11, 15, "a = '\u6f22\u5b57'; f(x)", "            ^^^^"),
        ("e\u0301 = f(x)", 6, 10, "e\u0301 = f(x)", "    ^^^^"),
        ("x", 2, 2, "x", " ^"),
        ("x", 9, 12, "x", " ^"),
        ("a\x1b[2Jb\x07", 1, 2, "a\ufffd[2Jb\ufffd", "^"),
    ],
)
def test_the_caret_is_under_what_is_meant(line, column, end, drawn, carets):
    at = finding("DS101", Span(1, column, 1, end))
    assert excerpt(at, [line]) == f"  |\n1 | {drawn}\n  | {carets}\n  |\n"


def test_excerpts_are_short():
    at = finding("DS101", Span(5, 1, 900, 2))
    assert excerpt(at, ["x"] * 1000).count("\n") < 40
    assert excerpt(at, ["x"] * 4) == ""
    assert excerpt(finding("DS101", Span(0, 1, 0, 2)), ["x"]) == ""


def test_empty_lines_at_the_ends_are_left_out():
    lines = excerpt(finding("DS101", Span(3, 1, 3, 2)), ["", "", "x", "y", ""]).splitlines()
    assert lines == ["  |", "3 | x", "  | ^", "4 | y", "  |"]


def test_paths_that_are_no_text():
    assert shown(Path("a\udcff\n.py")) == "a\\udcff\\x0a.py"
    assert place(finding("DS101", Span(1, 2, 1, 3), "\x1b.py")) == "src/\\x1b.py:1:2"
    assert printable("a\u2028b\x85\tc") == "a\ufffdb\ufffd\tc"


def test_json(findings):
    first, second, _ = json.loads(FORMATS["json"](findings, 3))
    assert first == {
        "code": "DS101",
        "name": "name-of-it",
        "severity": "error",
        "path": "a.py",
        "line": 5,
        "column": 12,
        "end_line": 8,
        "end_column": 6,
        "message": 'it\'s <on>: 100%, "so"',
        "fix": {
            "message": "Pass it",
            "edits": [
                {"line": 7, "column": 12, "end_line": 7, "end_column": 12, "content": ", on=True"},
                {"line": 6, "column": 9, "end_line": 6, "end_column": 10, "content": "y"},
            ],
        },
    }
    assert second["fix"] is None
    assert {*second} == {*first, "cell"}
    assert (second["cell"], second["path"]) == (2, "b.ipynb")


def test_json_of_any_text_is_ascii(findings):
    one = finding("DS101", Span(1, 1, 1, 2), "\udcffé.py", message="é")
    assert FORMATS["json"]([one], 1).isascii()
    assert json.loads(FORMATS["json"]([one], 1))[0]["path"] == "\udcffé.py"


def test_github(findings):
    assert FORMATS["github"](findings, 3).splitlines() == [
        "::error file=src/a.py,line=5,col=12,endLine=8,title=DS101 name-of-it::"
        'it\'s <on>: 100%25, "so"',
        "::warning file=b.ipynb,line=14,endLine=14,title=DS303 name-of-it::"
        "cell 2, line 2: no effect",
        "::notice file=gone.py,line=99,col=1,endLine=99,endColumn=2,title=DS304 name-of-it::"
        "unusual",
    ]


def test_github_escapes():
    one = finding("DS101", Span(1, 1, 1, 2), "a:b,c%.py", message="50%\r\nof: a, b")
    assert FORMATS["github"]([one], 1) == (
        "::error file=src/a%3Ab%2Cc%25.py,line=1,col=1,endLine=1,endColumn=2,"
        "title=DS101 name-of-it::50%25%0D%0Aof: a, b\n"
    )


def test_lines_of_notebooks_are_those_of_the_file(findings):
    line = int(re.search(r"b\.ipynb,line=(\d+)", FORMATS["github"](findings, 3))[1])
    assert '"y = f(x)"' in Path("b.ipynb").read_text().splitlines()[line - 1]
    Path("b.ipynb").write_text("{")
    assert "file=b.ipynb,line=1," in FORMATS["github"](findings, 3)


@pytest.fixture
def validator():
    jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema, of the extra `dev`")
    if not SCHEMA.exists():
        pytest.skip(f"needs {SCHEMA.name} of npm's @microsoft/jest-sarif; `make test` fetches it")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    return jsonschema.validators.validator_for(schema)(schema)


def test_sarif_is_valid(findings, validator):
    for some in (findings, []):
        log = json.loads(FORMATS["sarif"](some, 3))
        assert [error.message for error in validator.iter_errors(log)] == []
    log["runs"][0]["results"] = [{"message": {"text": 3}, "level": "high"}]
    assert len([*validator.iter_errors(log)]) >= 2


def test_sarif(findings, tmp_path):
    (run,) = json.loads(FORMATS["sarif"](findings, 3))["runs"]
    driver = run["tool"]["driver"]
    assert [rule["id"] for rule in driver["rules"]] == [rule.code for rule in RULES]
    assert run["originalUriBaseIds"]["SRCROOT"]["uri"] == f"{tmp_path.as_uri()}/"
    first, second, third = run["results"]
    for result in run["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    assert [result["level"] for result in run["results"]] == ["error", "warning", "note"]
    (location,) = first["locations"]
    assert location["physicalLocation"] == {
        "artifactLocation": {"uri": "src/a.py", "uriBaseId": "SRCROOT"},
        "region": {"startLine": 5, "startColumn": 12, "endLine": 8, "endColumn": 6},
    }
    (fix,) = first["fixes"]
    assert fix["artifactChanges"][0]["replacements"][0] == {
        "deletedRegion": {"startLine": 7, "startColumn": 12, "endLine": 7, "endColumn": 12},
        "insertedContent": {"text": ", on=True"},
    }
    region = second["locations"][0]["physicalLocation"]["region"]
    assert region == {"startLine": 14, "endLine": 14}
    assert second["message"]["text"] == "cell 2, line 2: no effect"
    assert "fixes" not in third


def test_sarif_names_places_by_uri(tmp_path):
    inside = finding("DS101", Span(1, 1, 1, 2), "a b#é.py")
    outside = finding("DS101", Span(1, 1, 1, 2), "c.py", str(tmp_path.parent))
    results = json.loads(FORMATS["sarif"]([inside, outside], 1))["runs"][0]["results"]
    artifacts = [at["locations"][0]["physicalLocation"]["artifactLocation"] for at in results]
    assert artifacts[0]["uri"] == "src/a%20b%23%C3%A9.py"
    assert artifacts[1] == {"uri": (tmp_path.parent / "c.py").as_uri()}


def test_fingerprints_survive_moved_lines_and_differ_between_equal_lines():
    def prints(*spans):
        some = [finding("DS101", span) for span in spans]
        results = json.loads(FORMATS["sarif"](some, 1))["runs"][0]["results"]
        return [at["partialFingerprints"]["dropseedAudit/v1"] for at in results]

    before = prints(Span(5, 12, 8, 6), Span(5, 12, 8, 6), Span(4, 1, 4, 2))
    assert len(set(before)) == 3
    Path("src/a.py").write_text("# new\n\n" + SOURCE)
    assert prints(Span(7, 12, 10, 6), Span(7, 12, 10, 6), Span(6, 1, 6, 2)) == before


def test_junit(findings):
    root = ET.fromstring(FORMATS["junit"](findings, 3).encode())
    assert root.tag == "testsuites"
    assert [suite.attrib["name"] for suite in root] == ["src/a.py", "b.ipynb", "gone.py"]
    for element in (root, *root):
        cases = [*element.iter("testcase")]
        assert element.attrib["tests"] == str(len(cases))
        assert element.attrib["failures"] == str(len([*element.iter("failure")]))
        assert element.attrib["errors"] == "0"
    for case in root.iter("testcase"):
        assert case.attrib.keys() >= {"name", "classname", "time"}
    first = root.find("testsuite/testcase")
    assert first.attrib["name"] == "DS101 name-of-it"
    failure = first.find("failure")
    assert failure.attrib == {"type": "error", "message": 'it\'s <on>: 100%, "so"'}
    assert failure.text == 'src/a.py:5:12: DS101 it\'s <on>: 100%, "so"'


def test_junit_passes_without_findings():
    root = ET.fromstring(FORMATS["junit"]([], 3))
    assert (root.attrib["tests"], root.attrib["failures"]) == ("1", "0")
    assert [*root.iter("failure")] == []
    assert len([*root.iter("testcase")]) == 1


def test_junit_of_any_text_is_xml():
    one = finding("DS101", Span(1, 1, 1, 2), "\udcff\x1bé.py", message="a\x00b\ud800\uffff\x1b")
    root = ET.fromstring(FORMATS["junit"]([one], 1).encode())
    assert root.find("testsuite/testcase/failure").attrib["message"] == "a\ufffdb\ufffd\ufffd\ufffd"


def test_statistics(findings):
    assert table.statistics([*findings, findings[1]]).splitlines() == [
        "code   name        severity  count  fixable",
        "DS303  name-of-it  warning       2        0",
        "DS101  name-of-it  error         1        1",
        "DS304  name-of-it  note          1        0",
    ]


def test_rules():
    head, *rows = table.rules().splitlines()
    assert head.split() == ["code", "name", "severity", "default", "mistake"]
    assert [row.split()[0] for row in rows] == [rule.code for rule in RULES]
    start = head.index("mistake")
    assert all(row[start:] == rule.summary for row, rule in zip(rows, RULES, strict=True))
    assert all(row[start - 1] == " " for row in rows)
