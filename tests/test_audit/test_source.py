"""Reading files: encodings, notebooks, what does not parse, and places."""

import ast
import json

import pytest

from dropseed.audit.finding import Span
from dropseed.audit.reading.source import UnreadableError, decode, parse


def notebook(*cells, language="python"):
    return json.dumps(
        {
            "metadata": {"language_info": {"name": language}},
            "nbformat": 4,
            "cells": [{"cell_type": kind, "source": text, "metadata": {}} for kind, text in cells],
        }
    ).encode()


def spans(source, name):
    tree, _ = parse(source)
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == name]
    return [source.span(node) for node in nodes]


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"x = 1\n", "utf-8"),
        (b"\xef\xbb\xbfx = 1\n", "utf-8-sig"),
        ("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"), "iso-8859-1"),
        (b"", "utf-8"),
        (b"x = 1\r\ny = 2\r\n", "utf-8"),
    ],
)
def test_encodings(data, encoding):
    source = decode(data)
    parse(source)
    assert source.encoding == encoding


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"x = 1\ny = \0", 2, "null byte"),
        (b"x = 1\ny = '\xff'\n", 2, "not utf-8"),
        (b"# coding: nonsense\n", 1, "encoding"),
    ],
)
def test_bytes_that_are_no_text(data, line, words):
    with pytest.raises(UnreadableError, match=words) as caught:
        decode(data)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("text", "line"),
    [("x = 1\nprint 'a'\n", 2), ("def f(:\n", 1), ("(" * 500 + ")" * 500, 1), ("\n\nx = (\n", 3)],
)
def test_text_that_does_not_parse(text, line):
    with pytest.raises(UnreadableError) as caught:
        parse(decode(text.encode()))
    assert caught.value.line == line


def test_columns_are_characters():
    assert spans(decode("é = 'ü'; x\n".encode()), "x") == [Span(1, 10, 1, 11)]


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_line_ends(end):
    source = decode(f"a{end}b = 'é'; x{end}".encode())
    assert spans(source, "x") == [Span(2, 10, 2, 11)]
    assert source.lines == ["a", "b = 'é'; x", ""]


def test_form_feeds_end_no_line():
    assert spans(decode(b"a = 1\n\x0cx = 2\n"), "x") == [Span(2, 2, 2, 3)]


def test_a_notebook_s_cells():
    data = notebook(("markdown", "x"), ("code", "import a\nx"), ("code", ["y = 1\n", "x"]))
    source = decode(data, notebook=True)
    assert spans(source, "x") == [Span(2, 1, 2, 2, 2), Span(2, 1, 2, 2, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "%matplotlib inline\nx",
        "!pip install dropseed \\\n  --quiet\nx",
        "for i in a:\n    !ls\nx",
        "files = !ls\nx",
        "y = %time f()\nx",
        "x?\nx",
        "%%time\nx",
        "y = (1\n   % 2)\nx",
    ],
)
def test_what_ipython_adds_is_left_out(text):
    source = decode(notebook(("code", text)), notebook=True)
    assert [span.line for span in spans(source, "x")] == [text.count("\n") + 1]


def test_cells_in_another_language_are_left_out():
    source = decode(notebook(("code", "%%bash\nls x"), ("code", "x")), notebook=True)
    assert spans(source, "x") == [Span(1, 1, 1, 2, 2)]
    assert decode(notebook(("code", "x <- 1"), language="R"), notebook=True).text == ""


def test_a_cell_that_does_not_parse_is_named_and_the_rest_is_read():
    source = decode(notebook(("code", "x"), ("code", "a\nprint 'b'"), ("code", "x")), notebook=True)
    tree, left_out = parse(source)
    assert [node.value.id for node in tree.body] == ["x", "x"]
    (problem,) = left_out
    assert source.between(problem.line, 0, problem.line, 0) == Span(2, 1, 2, 1, 2)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not a notebook"),
        (b"[]", "no list of cells"),
        (b'{"worksheets": []}', "no list of cells"),
        (b"\xff", "not a notebook"),
    ],
)
def test_files_that_are_no_notebook(data, words):
    with pytest.raises(UnreadableError, match=words):
        decode(data, notebook=True)


@pytest.mark.parametrize(
    "book", ['{"cells": [1, null, {"cell_type": "code"}, {"cell_type": "code", "source": []}]}']
)
def test_odd_cells_are_passed_over(book):
    parse(decode(book.encode(), notebook=True))
