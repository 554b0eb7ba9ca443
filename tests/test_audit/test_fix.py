"""Fixes in files: only the edited pieces change, and what would not parse is not written."""

import ast
import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed.audit.finding import Edit, Finding, Fix, Severity, Span
from dropseed.audit.reporting import fix as fixing
from dropseed.audit.reporting.fix import UnfixableError, difference, fix_all, fixed, write_fixed


def edit(line, column, end_line, end_column, text, cell=None):
    return Edit(Span(line, column, end_line, end_column, cell), text)


def insert(line, column, text, cell=None):
    return edit(line, column, line, column, text, cell)


def one(*edits):
    return Fix("Change it", edits)


def finding(fix, path="a.py", root="."):
    return Finding("DS101", "", Severity.ERROR, path, str(root), fix.edits[0].span, "", fix)


@pytest.mark.parametrize(
    ("data", "fix", "expected"),
    [
        (b"f(x)\n", one(insert(1, 4, ", p")), b"f(x, p)\n"),
        (b"f(x)", one(insert(1, 4, ", p")), b"f(x, p)"),
        (b"a\nf(x)\n", one(edit(2, 1, 2, 2, "g"), insert(1, 2, "b")), b"ab\ng(x)\n"),
        (b"f(\n  x\n)\n", one(edit(1, 1, 3, 2, "x")), b"x\n"),
        (b"f(x)\r\ny\r\n", one(insert(1, 5, "\nz")), b"f(x)\r\nz\r\ny\r\n"),
        (b"f(x)\ry\r", one(insert(2, 1, "z\n")), b"f(x)\rz\ry\r"),
        (b"a\r\nb\nc", one(insert(1, 2, "\nz"), insert(2, 2, "\nz")), b"a\r\nz\r\nb\nz\nc"),
        (b"f(x)", one(insert(1, 5, "\nz")), b"f(x)\nz"),
        (b"\xef\xbb\xbff(x)\n", one(insert(1, 4, ", p")), b"\xef\xbb\xbff(x, p)\n"),
        ("é = f('ü', x)\n".encode(), one(insert(1, 13, ", p")), "é = f('ü', x, p)\n".encode()),
        (
            "# coding: latin-1\né = f(x)\n".encode("latin-1"),
            one(insert(2, 8, ", é")),
            "# coding: latin-1\né = f(x, é)\n".encode("latin-1"),
        ),
        (b"if x:\n\tf(x)\x0c\n  # end", one(insert(2, 5, ", p")), b"if x:\n\tf(x, p)\x0c\n  # end"),
        (b"x = '''\n \n'''  ;  f(x)", one(insert(3, 11, "y, ")), b"x = '''\n \n'''  ;  f(y, x)"),
    ],
)
def test_plain_files(data, fix, expected):
    assert fixed(data, [fix]) == (expected, 1)


@pytest.mark.parametrize(
    ("data", "fix", "reason"),
    [
        (b"f(x)\n", one(insert(1, 4, ")")), "it would not parse"),
        (b"f(x)\n", one(insert(3, 1, "y")), "it has no line 3"),
        (b"f(x)\n", one(insert(0, 1, "y")), "it has no line 0"),
        (b"f(x)\n", one(insert(1, 6, "y")), "line 1 has no column 6"),
        (b"f(x)\n", one(insert(1, 0, "y")), "line 1 has no column 0"),
        (b"f(x)\n", one(edit(1, 3, 1, 2, "y")), "ends before it begins"),
        (b"f(\n", one(insert(1, 1, "y")), "it would not parse"),
        (b"# coding: latin-1\nf(x)\n", one(insert(2, 4, ", '\u2026'")), "can't be written in"),
        (b"# coding: utf-7\nx = '+AGE-'\n", one(insert(2, 1, "y = ")), "can't be written back"),
        (b"\0", one(insert(1, 1, "y")), "null byte"),
    ],
)
def test_files_that_are_left_as_they_are(data, fix, reason):
    with pytest.raises(UnfixableError, match=reason):
        fixed(data, [fix])


def test_of_overlapping_fixes_the_first_is_made():
    first, second = one(edit(1, 1, 1, 4, "g(y")), one(edit(1, 3, 1, 4, "z"))
    assert fixed(b"f(x)", [first, second]) == (b"g(y)", 1)
    assert fixed(b"f(x)", [second, first]) == (b"f(z)", 1)


def test_fixes_that_insert_at_one_place_are_made_one_after_the_other():
    assert fixed(b"f(x)", [one(insert(1, 4, ", y")), one(insert(1, 4, ", z"))]) == (b"f(x, y)", 1)


def test_a_fix_is_made_whole_or_not_at_all():
    half = one(edit(1, 3, 1, 4, "z"), insert(2, 1, "y\n"))
    assert fixed(b"f(x)\n", [one(edit(1, 1, 1, 4, "g(y")), half]) == (b"g(y)\n", 1)


def test_neighbours_do_not_overlap():
    fixes = [one(edit(1, 1, 1, 2, "g")), one(insert(1, 2, "g")), one(edit(1, 3, 1, 4, "y"))]
    assert fixed(b"f(x)", fixes) == (b"gg(y)", 3)


def test_a_fix_that_overlaps_itself_is_not_made():
    assert fixed(b"f(x)", [one(edit(1, 1, 1, 4, ""), insert(1, 2, "y"))]) == (b"f(x)", 0)


BOOK = {
    "cells": [
        {"cell_type": "markdown", "source": ["# f(x)"]},
        {"cell_type": "code", "metadata": {}, "source": ["%time f(x)\n", "y = f(x)\n", "z\n"]},
        {"cell_type": "code", "source": "f(x)\r\ng(x)"},
        {"cell_type": "code", "source": ["this is no python\n", "f(x)"]},
    ],
    "nbformat": 4,
}


@pytest.mark.parametrize("options", [{"indent": 1}, {"ensure_ascii": False}, {"indent": "\t"}])
@pytest.mark.parametrize("end", ["\n", "", "\r\n\n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_notebooks(options, end, mark):
    data = mark + (json.dumps(BOOK, **options) + end).encode()
    fixes = [one(insert(2, 8, ", é", 2), insert(3, 2, "()", 2)), one(insert(1, 5, "\nh()", 3))]
    result, count = fixed(data, fixes, notebook=True)
    assert count == 2
    wanted = json.dumps(BOOK, **options).replace('"y = f(x)', '"y = f(x, é)')
    wanted = wanted.replace('"z\\n', '"z()\\n').replace("f(x)\\r\\n", "f(x)\\r\\nh()\\r\\n")
    if json.dumps(BOOK, **options).isascii():  # then new characters are escaped
        wanted = wanted.replace("é", "\\u00e9")
    assert result.decode("utf-8-sig") == wanted + end
    assert result.startswith(mark + b"{")


@pytest.mark.parametrize(
    ("fix", "reason"),
    [
        (one(insert(2, 8, ")", 2)), "a cell would not parse"),
        (one(insert(1, 1, "y", 9)), "no cell 9"),
        (one(insert(1, 1, "y")), "no cell 0"),
        (one(insert(5, 1, "y", 3)), "no line 5"),
    ],
)
def test_notebooks_that_are_left_as_they_are(fix, reason):
    with pytest.raises(UnfixableError, match=reason):
        fixed(json.dumps(BOOK).encode(), [fix], notebook=True)


STATEMENTS = ["f(x)", "é = f('é')", "# 'ü'", "", " ", "\x0c", "x; 'y'", "if é: x", '"""é', ")"]
LINES = st.lists(st.sampled_from(STATEMENTS), max_size=8)
ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def edited_files(draw):
    """(text, where two edits are, what they put there) of any text at all."""
    text = "".join(line + draw(ENDS) for line in draw(LINES)) + draw(st.sampled_from(["", "x"]))
    starts = [0, *(match.end() for match in fixing.LINE_END.finditer(text))]
    places = []
    for _ in range(4):
        line = draw(st.integers(1, len(starts)))
        content = fixing.LINE_END.split(text)[line - 1]
        column = draw(st.integers(1, len(content) + 1))
        places.append((starts[line - 1] + column - 1, line, column))
    places.sort()
    return text, places, draw(st.sampled_from(["", "é", "x\n", "# y", ")"]))


@given(edited_files(), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_unfixed_parts_stay_byte_for_byte(case, encoding):
    text, places, new = case
    (a, *start_a), (b, *end_a), (c, *start_b), (d, *end_b) = places
    if b == c:
        return
    fixes = [one(edit(*start_a, *end_a, new)), one(edit(*start_b, *end_b, new))]
    data = text.encode(encoding)
    try:
        result, count = fixed(data, fixes)
    except UnfixableError:
        return
    assert count == 2
    ast.parse(result)
    body = result.decode(encoding)
    assert result.startswith(text[:a].encode(encoding))
    assert body.endswith(text[d:])
    middle = body[a : len(body) - len(text[d:])]
    parts = [fixing.LINE_END.sub("\n", part) for part in (middle, text[b:c])]
    assert parts[0] == new + parts[1] + new
    assert text[b:c] in middle


def test_any_text_is_fixed_sometimes():
    """The fuzzing above does not turn all its cases away."""
    made = []

    @given(edited_files())
    def search(case):
        text, (_, (_, line, column), *_), new = case
        with contextlib.suppress(UnfixableError):
            made.append(fixed(text.encode(), [one(insert(line, column, new))])[1])

    search()
    assert sum(made) >= 20


class Look:
    """Stands for a scan: each `f(x)` of each file is to be `f(x, p)`, one finding for each."""

    def __init__(self, *paths):
        self.paths, self.looks = paths, 0

    def __call__(self, contents):
        self.looks += 1
        found = []
        for path in self.paths:
            text = contents.get(path, path.read_bytes()).decode()
            for number, line in enumerate(text.split("\n"), 1):
                at = line.find("f(x)")
                if at >= 0:
                    fix = one(insert(number, at + 4, ", p"))
                    found.append(finding(fix, path.name, path.parent))
        return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.py"
    path.write_bytes(b"f(x); f(x)\r\nf(x)\n")
    return path


def test_rounds_until_nothing_is_left(file):
    look = Look(file)
    result = fix_all(look)
    assert result.new == {file: b"f(x, p); f(x, p)\r\nf(x, p)\n"}
    assert (result.count, result.findings, result.refused, look.looks) == ({file: 3}, [], {}, 3)
    assert file.read_bytes() == result.old[file] == b"f(x); f(x)\r\nf(x)\n"
    write_fixed(result)
    assert file.read_bytes() == result.new[file]
    assert fix_all(look).new == {}


def test_rounds_that_never_end_are_ended(file):
    def look(contents):
        return [finding(one(insert(1, 1, "y;")), "a.py", file.parent)]

    result = fix_all(look)
    assert result.new[file].startswith(b"y;" * fixing.ROUNDS + b"f")
    assert len(result.findings) == 1


def test_a_file_that_would_not_parse_is_refused_and_the_others_are_fixed(file):
    other = file.with_name("b.py")
    other.write_text("f(x)\n")

    def look(contents):
        bad = finding(one(insert(1, 1, ")")), "a.py", file.parent)
        return [bad, *Look(other)(contents)]

    result = fix_all(look)
    assert [*result.new] == [other]
    assert "would not parse" in result.refused[file]


def test_a_file_that_is_gone_is_refused(tmp_path):
    result = fix_all(lambda contents: [finding(one(insert(1, 1, "y")), "a.py", tmp_path)])
    assert result.refused == {tmp_path / "a.py": "No such file or directory"}


def test_a_file_that_changed_meanwhile_is_not_written(file):
    result = fix_all(Look(file))
    file.write_text("f(x)  # by somebody else\n")
    write_fixed(result)
    assert file.read_text() == "f(x)  # by somebody else\n"
    assert result.refused == {file: "it has changed meanwhile"}
    assert (result.new, result.count) == ({}, {})


def test_mode_and_links_stay(file):
    file.chmod(0o754)
    link = file.with_name("link.py")
    link.symlink_to(file.name)
    write_fixed(fix_all(Look(link)))
    assert link.is_symlink()
    assert file.read_bytes().startswith(b"f(x, p)")
    assert file.stat().st_mode & 0o777 == 0o754
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.py", "link.py"]


def test_two_names_of_one_file(file):
    link = file.with_name("link.py")
    link.symlink_to(file.name)
    result = fix_all(Look(file, link))
    write_fixed(result)
    assert result.refused == {}
    assert file.read_bytes() == b"f(x, p); f(x, p)\r\nf(x, p)\n"


def test_a_file_that_cannot_be_written_is_refused_and_the_others_are_written(file, monkeypatch):
    other = file.with_name("b.py")
    other.write_text("f(x)\n")
    replace = Path.replace

    def fail(self, target):
        if target == file:
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    result = fix_all(Look(file, other))
    write_fixed(result)
    assert result.refused == {file: "Permission denied"}
    assert other.read_text() == "f(x, p)\n"
    assert file.read_bytes() == b"f(x); f(x)\r\nf(x)\n"
    assert sorted(path.name for path in file.parent.iterdir()) == ["a.py", "b.py"]


def test_a_file_without_write_permission_is_refused(file, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    result = fix_all(Look(file))
    write_fixed(result)
    assert result.refused == {file: "Permission denied"}


def test_the_difference_is_a_patch(file, tmp_path):
    book = tmp_path / "sub" / "b.py"
    book.parent.mkdir()
    book.write_bytes("# é\nf(x)".encode())
    result = fix_all(Look(file, book))
    patch = difference(result, lambda path: path.relative_to(tmp_path).as_posix())
    assert patch.decode().count("\n") == patch.count(b"\n")
    assert b"--- a/sub/b.py\n+++ b/sub/b.py\n" in patch
    assert b"\\ No newline at end of file\n" in patch
    run = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=patch, check=False)
    assert run.returncode == 0
    assert {path: path.read_bytes() for path in result.new} == result.new


def test_no_difference_is_empty(file):
    assert difference(fix_all(lambda contents: []), str) == b""
