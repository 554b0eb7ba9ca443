"""Comments that silence rules: which count, what they silence, and how codes are taken out."""

import json

import pytest

from dropseed.audit.finding import Finding, Severity, Span
from dropseed.audit.reading.source import Source, decode
from dropseed.audit.reporting.ignore import ignores, without


def codes_of(text):
    return [ignore.codes for ignore in ignores(Source(text))]


def finding(code, line, end_line=None, cell=None):
    span = Span(line, 1, end_line or line, 2, cell)
    return Finding(code, "", Severity.ERROR, "a.py", ".", span, "")


@pytest.mark.parametrize(
    ("comment", "codes"),
    [
        ("# noqa: DS101", ("DS101",)),
        ("#noqa:DS101", ("DS101",)),
        ("# NOQA : ds101", ("DS101",)),
        ("# noqa: DS101, DS2", ("DS101", "DS2")),
        ("# noqa: E501,DS101 DS2", ("DS101", "DS2")),
        ("# noqa: DS101 since the teacher is frozen", ("DS101",)),
        ("# type: ignore  # noqa: DS101", ("DS101",)),
        ("# noqa", None),
        ("# noqa: because", None),
        ("# noqa  # pragma: no cover", None),
        ("# dropseed: ignore[DS101]", ("DS101",)),
        ("#dropseed:ignore[ds101,DS2] always on", ("DS101", "DS2")),
        ("# dropseed: ignore[nonsense]", ("NONSENSE",)),
        ("# dropseed: ignore", ()),
        ("# dropseed: ignore[]", ()),
        ("# dropseed: ignore-file", ()),
    ],
)
def test_comments_that_count(comment, codes):
    assert codes_of(f"f()  {comment}") == [codes]


@pytest.mark.parametrize(
    "text",
    [
        "f()",
        "f()  # noqa: E501",
        "f()  # noqa: E501, D103  # DS101",
        "f()  # noqas: DS101",
        "f()  # DS101",
        "f()  # see dropseed",
        "f()  # dropseed: ignored[DS101]",
        "f()  # ruff: DS101",
        "f('# noqa: DS101')",
        "f('''\n# noqa\n# dropseed: ignore[DS101]\n''')",
        "# not a noqa: DS101",
    ],
)
def test_texts_that_do_not_count(text):
    assert codes_of(text) == []


def test_several_comments_in_one():
    assert codes_of("f()  # noqa: DS101  # dropseed: ignore[DS2] why  # noqa: DS3") == [
        ("DS101",),
        ("DS3",),
        ("DS2",),
    ]


def test_places_count_characters():
    (ignore,) = ignores(Source("é = 'ü'  # Größe  # noqa: DS101 ja"))
    assert ignore.span == Span(1, 19, 1, 32)
    assert ignore.line[18:31] == "# noqa: DS101"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(end):
    text = end.join(["x = 1  # noqa: DS1", "y = 2", "z = 3  # noqa: DS2", ""])
    assert [(one.span.line, one.codes) for one in ignores(Source(text))] == [
        (1, ("DS1",)),
        (3, ("DS2",)),
    ]


def test_in_a_notebook():
    cells = [
        {"cell_type": "code", "source": ["%time x  # noqa: DS101\n", "f()  # noqa: DS101"]},
        {"cell_type": "markdown", "source": ["f()  # noqa: DS101"]},
        {"cell_type": "code", "source": "\nf()  # noqa: DS2"},
    ]
    found = ignores(decode(json.dumps({"cells": cells}).encode(), notebook=True))
    assert [(one.span.cell, one.span.line, one.codes) for one in found] == [
        (1, 2, ("DS101",)),
        (3, 2, ("DS2",)),
    ]
    assert found[0].silences(finding("DS101", 2, cell=1))
    assert not found[0].silences(finding("DS101", 2, cell=3))


def test_a_text_that_the_tokenizer_does_not_take():
    assert codes_of("f()  # noqa: DS101\n(") == [("DS101",)]


def test_what_is_silenced():
    (ignore,) = ignores(Source("\n\nf()  # noqa: DS101, DS2"))
    assert ignore.silences(finding("DS101", 3))
    assert ignore.silences(finding("DS204", 3))
    assert ignore.silences(finding("DS101", 1, 3))
    assert ignore.silences(finding("DS101", 3, 5))


def test_what_is_not_silenced():
    (ignore,) = ignores(Source("\n\nf()  # noqa: DS101, DS2"))
    assert not ignore.silences(finding("DS102", 3))
    assert not ignore.silences(finding("DS101", 2))
    assert not ignore.silences(finding("DS101", 2, 4))
    (empty,) = ignores(Source("f()  # dropseed: ignore"))
    assert not empty.silences(finding("DS101", 1))


def test_a_bare_comment_silences_every_rule():
    (ignore,) = ignores(Source("f()  # noqa"))
    assert ignore.silences(finding("DS101", 1))
    assert not ignore.silences(finding("DS101", 2))


@pytest.mark.parametrize(
    ("line", "unused", "left"),
    [
        ("f()  # noqa: DS101", ["DS101"], "f()"),
        ("f()  # noqa: DS101   ", ["DS101"], "f()"),
        ("f()  # noqa: DS101, DS2", ["DS101"], "f()  # noqa: DS2"),
        ("f()  # noqa:E501,ds101", ["DS101"], "f()  # noqa:E501"),
        ("f()  # noqa: DS101  # type: ignore", ["DS101"], "f()  # type: ignore"),
        ("f()  # type: ignore  # noqa: DS101", ["DS101"], "f()  # type: ignore"),
        ("f()  # noqa: DS101 on purpose", ["DS101"], "f()  # on purpose"),
        ("f()  # dropseed: ignore[DS101] on purpose", ["DS101"], "f()"),
        ("f()  # dropseed: ignore[DS101] why  # more", ["DS101"], "f()  # more"),
        ("f()  # dropseed: ignore[DS101, DS2] why", ["DS2"], "f()  # dropseed: ignore[DS101] why"),
        ("  # noqa: DS101", ["DS101"], ""),
        ("é = 'ü'  # noqa: DS101, E501", ["DS101"], "é = 'ü'  # noqa: E501"),
    ],
)
def test_codes_taken_out(line, unused, left):
    text = f"if 1:\n{line}\n  pass\n"
    (ignore,) = ignores(Source(text))
    edit = without(ignore, unused)
    assert (edit.span.line, edit.span.end_line) == (2, 2)
    assert line[: edit.span.column - 1] + edit.text + line[edit.span.end_column - 1 :] == left
