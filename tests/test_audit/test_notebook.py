"""A notebook's file: cells found in any layout, and only the changed strings changed."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropseed.audit.reporting.notebook import cell_sources, file_line, replaced

CELLS = [
    {"cell_type": "markdown", "source": ["# A \\ title\n", 'with "quotes" and é']},
    {"cell_type": "code", "outputs": [{"text": ["source"]}], "source": ["a = 1\n", "\n", "b = 2"]},
    {"cell_type": "code", "source": "one = 'string'\nof text", "metadata": {"source": ["no"]}},
    {"cell_type": "code", "source": []},
    {"cell_type": "raw"},
]
BOOK = {"metadata": {"cells": [1]}, "cells": CELLS, "nbformat": 4, "x": [1.0, None, {"cells": 2}]}
LAYOUTS = {
    "indented": {"indent": 1},
    "tabs": {"indent": "\t", "ensure_ascii": False},
    "compact": {"separators": (",", ":")},
    "plain": {},
    "sorted": {"indent": 4, "sort_keys": True, "ensure_ascii": False},
}


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def text(request):
    return json.dumps(BOOK, **request.param)


def test_sources(text):
    found = cell_sources(text)
    assert [one.text for one in found.values()] == [
        "".join(cell.get("source", "")) for cell in CELLS
    ]
    for one in found.values():
        assert all(json.loads(text[at.start : at.end]) == at.value for at in one.pieces)


def test_of_equal_keys_the_last_counts():
    text = '{"cells": [1], "cells": [{"source": "a", "source": ["b"]}]}'
    assert cell_sources(text)[1].text == "".join(json.loads(text)["cells"][0]["source"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([(4, 5, "3")], ["a = 3\n", "\n", "b = 2"]),
        ([(5, 5, "0\nc = 4")], ["a = 10\n", "c = 4\n", "\n", "b = 2"]),
        ([(0, 0, "x\n"), (12, 12, "\ny")], ["x\n", "a = 1\n", "\n", "b = 2\n", "y"]),
        ([(6, 7, "")], ["a = 1\n", "", "b = 2"]),
        ([(4, 8, "?")], ["a = ? = 2"]),
        ([(6, 6, "z\n"), (7, 8, "é")], ["a = 1\n", "z\n", "\n", "é = 2"]),
        ([(0, 12, "")], [""]),
    ],
)
def test_changes(changes, expected, text):
    result = json.loads(replaced(text, cell_sources(text)[2], changes))
    assert result["cells"][1].pop("source") == expected
    cells = [dict(cell) for cell in CELLS]
    del cells[1]["source"]
    assert result == {**BOOK, "cells": cells}


def test_only_the_touched_strings_change(text):
    source = cell_sources(text)[2]
    touched = source.pieces[2]
    result = replaced(text, source, [(7, 8, "c")])
    assert result == text[: touched.start] + '"c = 2"' + text[touched.end :]


def test_a_source_of_one_string_stays_one(text):
    result = json.loads(replaced(text, cell_sources(text)[3], [(0, 3, "two\nlines")]))
    assert result["cells"][2]["source"] == "two\nlines = 'string'\nof text"


def test_new_characters_are_escaped_where_others_are():
    for ascii_only in (True, False):
        text = json.dumps({"cells": [{"source": ["é", "x"]}]}, ensure_ascii=ascii_only)
        result = replaced(text, cell_sources(text)[1], [(1, 2, "ü")])
        assert ("ü" in result) is not ascii_only
        assert json.loads(result)["cells"][0]["source"] == ["é", "ü"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_new_lines_are_laid_out_as_the_others(name):
    book = {"cells": [{"source": ["a = 1"]}]}
    want = {"cells": [{"source": ["a = 1\n", "b = 2"]}]}
    options = LAYOUTS[name]
    text = json.dumps(book, **options)
    result = replaced(text, cell_sources(text)[1], [(5, 5, "\nb = 2")])
    if name == "compact":  # a list of one string doesn't show what would follow its comma
        result = result.replace(", ", ",")
    assert result == json.dumps(want, **options)


def test_lines_in_the_file():
    text = json.dumps(BOOK, indent=1, ensure_ascii=False)
    sources = cell_sources(text)
    lines = text.split("\n")
    assert '"b = 2"' in lines[file_line(text, sources[2], 3) - 1]
    assert '"a = 1' in lines[file_line(text, sources[2], 1) - 1]
    assert "one =" in lines[file_line(text, sources[3], 2) - 1]
    assert file_line(text, sources[2], 99) == file_line(text, sources[2], 3)


TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)


@given(
    pieces=st.lists(TEXT, min_size=1, max_size=5),
    listed=st.booleans(),
    layout=st.sampled_from(sorted(LAYOUTS)),
    cuts=st.lists(st.integers(0, 60), min_size=2, max_size=6, unique=True),
    new=TEXT,
)
def test_any_change_of_any_text(pieces, listed, layout, cuts, new):
    whole = "".join(pieces)
    book = {"cells": [{"source": "before"}, {"source": pieces if listed else whole}, {"a": 1}]}
    text = json.dumps(book, **LAYOUTS[layout])
    cuts = sorted(cut % (len(whole) + 1) for cut in cuts)
    changes = list(dict(zip(cuts[::2], cuts[1::2], strict=False)).items())
    changes = [
        (start, end, new)
        for n, (start, end) in enumerate(changes)
        if all(start > before for _, before in changes[:n])
    ]
    wanted = whole
    for start, end, text_ in reversed(changes):
        wanted = wanted[:start] + text_ + wanted[end:]
    source = cell_sources(text)[2]
    result = replaced(text, source, changes)
    assert "".join(json.loads(result)["cells"][1]["source"]) == wanted
    assert json.loads(result)["cells"][::2] == book["cells"][::2]
    first, last = source.pieces[0].start, source.pieces[-1].end
    assert result[:first] == text[:first]
    assert result.endswith(text[last:])
