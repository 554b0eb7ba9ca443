"""Which findings are reported: by code, severity, preview, file and comment."""

import pytest

from dropseed.audit.engine import Report
from dropseed.audit.finding import Finding, Severity, Span
from dropseed.audit.reading.source import Source
from dropseed.audit.reporting import select
from dropseed.audit.reporting.config import Config
from dropseed.audit.reporting.ignore import ignores
from dropseed.audit.reporting.select import active, chosen, without_preview
from dropseed.audit.rule import Rule
from dropseed.audit.rules import RULES

FILE = (".", "a.py")
ERROR, WARNING, NOTE = Severity


def rule(code, severity, preview=False):
    return Rule(code, f"rule-{code.lower()}", severity, "", lambda file: iter(()), preview)


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    """A small set of rules of every kind."""
    meta = [one for one in RULES if one.code in ("DS001", "DS002")]
    own = [
        rule("DS101", ERROR),
        rule("DS102", WARNING),
        rule("DS103", NOTE),
        rule("DS104", ERROR, preview=True),
        rule("DS201", WARNING),
    ]
    monkeypatch.setattr(select, "RULES", (*meta, *own))


def codes(**config):
    return sorted(active(Config(**config)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "DS001 DS002 DS101 DS102 DS201"),
        ({"severity": ERROR}, "DS001 DS101"),
        ({"severity": NOTE}, "DS001 DS002 DS101 DS102 DS103 DS201"),
        ({"preview": True}, "DS001 DS002 DS101 DS102 DS104 DS201"),
        ({"select": ("DS1",)}, "DS001 DS101 DS102"),
        ({"select": ("DS1",), "severity": ERROR}, "DS001 DS101"),
        ({"select": ("DS1", "DS002")}, "DS001 DS002 DS101 DS102"),
        ({"select": ("DS103",)}, "DS001 DS103"),
        ({"select": ("DS102",), "severity": ERROR}, "DS001 DS102"),
        ({"select": ("DS104",)}, "DS001"),
        ({"select": ("DS104",), "preview": True}, "DS001 DS104"),
        ({"select": ("DS",), "severity": NOTE}, "DS001 DS002 DS101 DS102 DS103 DS201"),
        ({"select": ()}, "DS001"),
        ({"ignore": ("DS1",)}, "DS001 DS002 DS201"),
        ({"ignore": ("DS",)}, ""),
        ({"ignore": ("DS001",), "select": ("DS101",)}, "DS101"),
        ({"select": ("DS101",), "ignore": ("DS1",)}, "DS001 DS101"),
        ({"select": ("DS1",), "ignore": ("DS101",)}, "DS001 DS102"),
        ({"select": ("DS101",), "ignore": ("DS101",)}, "DS001"),
    ],
)
def test_active_rules(config, expected):
    assert codes(**config) == expected.split()


def test_preview_that_is_off_is_named():
    assert without_preview(Config(select=("DS101", "DS104"))) == ["DS104"]
    assert without_preview(Config(select=("DS1",))) == []
    assert without_preview(Config(select=("DS104",), preview=True)) == []


def finding(code, line=1, path="a.py", end_line=None, cell=None):
    severity = next(one.severity for one in select.RULES if one.code == code)
    span = Span(line, 1, end_line or line, 2, cell)
    return Finding(code, "", severity, path, ".", span, "")


def report(text, *findings):
    return Report(list(findings), {FILE: ignores(Source(text))}, 1)


def reported(text, *findings, **config):
    config.setdefault("ignore", ("DS002",))
    return [(at.code, at.span.line) for at in chosen(report(text, *findings), Config(**config))]


def test_findings_of_active_rules_are_reported():
    found = [finding(code) for code in ("DS101", "DS102", "DS103", "DS104", "DS201")]
    assert reported("", *found) == [("DS101", 1), ("DS102", 1), ("DS201", 1)]
    assert reported("", *found, select=("DS103",)) == [("DS103", 1)]


@pytest.mark.parametrize(
    "comment",
    [
        "# noqa",
        "# noqa: DS101",
        "# noqa: DS1",
        "# dropseed: ignore[DS101] why",
        "# noqa: E1, DS101",
    ],
)
def test_comments_silence(comment):
    assert reported(f"f(  {comment}\n)", finding("DS101", 1)) == []
    assert reported(f"f(\n)  {comment}", finding("DS101", 1, end_line=2)) == []


@pytest.mark.parametrize(
    "text",
    [
        "f()  # noqa: DS102",
        "f()  # noqa: E501",
        "f()  # dropseed: ignore",
        "f()  # dropseed: ignore[DS2] DS101",
        "f()\n# noqa: DS101",
        "'''\n# noqa'''\nf()",
        "f('# noqa: DS101')",
        "f(\n# noqa: DS101\n)",
    ],
)
def test_comments_that_do_not_silence(text):
    line = text.split("\n").index(next(at for at in text.split("\n") if "f(" in at)) + 1
    span_end = text.count("\n") + 1 if text.endswith(")") else line
    assert reported(text, finding("DS101", line, end_line=span_end)) == [("DS101", line)]


def test_a_comment_of_another_file_does_not_silence():
    assert reported("f()  # noqa", finding("DS101", 1, path="b.py")) == [("DS101", 1)]


def idle(text, *findings, **config):
    """(line, message, text after the fix) of each comment that is reported."""
    found = []
    for at in chosen(report(text, *findings), Config(**config)):
        if at.code == "DS002":
            fixed = None
            if at.fix:
                (edit,) = at.fix.edits
                line = text.split("\n")[edit.span.line - 1]
                fixed = line[: edit.span.column - 1] + edit.text + line[edit.span.end_column - 1 :]
            found.append((at.span.line, at.message, fixed))
    return found


@pytest.mark.parametrize(
    ("text", "message", "fixed"),
    [
        ("f()  # noqa: DS101", "DS101 silences nothing here", "f()"),
        ("f()  # noqa: DS2", "DS2 silences nothing here", "f()"),
        ("f()  # noqa: DS101, DS102", "DS102 silences nothing here", "f()  # noqa: DS101"),
        ("f()  # noqa: DS201, DS102", "DS201 and DS102 silence nothing here", "f()"),
        ("f()  # noqa: E501, DS201", "DS201 silences nothing here", "f()  # noqa: E501"),
        ("f()  # dropseed: ignore[DS201] why", "DS201 silences nothing here", "f()"),
        ("f()  # noqa: DS999", "DS999 is no rule's code", "f()"),
        ("f()  # noqa: DS998, DS999", "DS998 and DS999 are no rules' codes", "f()"),
        (
            "f()  # noqa: DS201, DS999",
            "DS201 silences nothing here; DS999 is no rule's code",
            "f()",
        ),
        ("f()  # dropseed: ignore[E501]", "E501 is no rule's code", "f()"),
        (
            "f()  # dropseed: ignore",
            "`dropseed: ignore` needs codes, for instance `ignore[DS101]`",
            None,
        ),
    ],
)
def test_comments_without_effect(text, message, fixed):
    found = [finding("DS101")] if "DS101, DS102" in text else []
    assert idle(text, *found) == [(1, message, fixed)]


@pytest.mark.parametrize(
    ("text", "config"),
    [
        ("f()  # noqa: DS101", {}),
        ("f()  # noqa: DS1", {}),
        ("f()  # noqa", {}),
        ("g()  # noqa", {}),
        ("f()  # noqa: E501", {}),
        ("g()  # noqa: DS201", {"select": ("DS1", "DS002")}),
        ("g()  # noqa: DS103", {}),
        ("g()  # noqa: DS104", {}),
        ("g()  # noqa: DS201", {"ignore": ("DS002",)}),
        ("g()  # noqa: DS201", {"select": ("DS2",)}),
        ("g()  # noqa: DS201, DS002", {}),
        ("g()  # noqa: DS201  # noqa", {}),
        ("g()  # noqa: DS001", {"ignore": ("DS001",)}),
        ("g()  # noqa: DS201", {"per_file_ignores": {"a.py": ("DS002",)}}),
    ],
)
def test_comments_that_are_not_reported(text, config):
    found = [finding("DS101")] if text.startswith("f") else []
    assert idle(text, *found, **config) == []


def test_a_comment_that_silences_a_rule_which_is_off_is_used():
    assert idle("f()  # noqa: DS1", finding("DS103"), severity=NOTE) == []
    assert idle("f()  # noqa: DS1", finding("DS103")) == []


def test_files_with_ignores_of_their_own(tmp_path):
    config = Config(per_file_ignores={"tests/*": ("DS1",), "b.py": ("DS201",)}, root=tmp_path)
    found = [
        Finding(code, "", ERROR, path, str(tmp_path), Span(1, 1, 1, 2), "")
        for path in ("src/b.py", "tests/deep/c.py")
        for code in ("DS101", "DS201")
    ]
    kept = [(at.path, at.code) for at in chosen(Report(found, {}, 2), config)]
    assert kept == [("src/b.py", "DS101"), ("tests/deep/c.py", "DS201")]
    config = Config(exclude=("tests/deep",), root=tmp_path)
    assert {at.path for at in chosen(Report(found, {}, 2), config)} == {"src/b.py"}


def test_a_file_that_was_scanned_twice_is_reported_once():
    assert reported("", finding("DS101"), finding("DS101"), finding("DS101", 2)) == [
        ("DS101", 1),
        ("DS101", 2),
    ]


def test_the_order_is_that_of_the_files():
    found = [finding("DS101", 3), finding("DS101", 2, path="b.py")]
    text = "f()  # noqa: DS2\n\nf()"
    kept = [(at.path, at.span.line) for at in chosen(report(text, *found), Config())]
    assert kept == [("a.py", 1), ("a.py", 3), ("b.py", 2)]
