"""The rules' manuals: their outline, their code, and the pages made of them."""

import re
from pathlib import Path

import pytest

from dropseed.audit import manual
from dropseed.audit.rules import RULES
from test_audit.rule_cases import hits

PAGES = Path(__file__).parents[2] / "docs" / "rules"
CHECKED = [rule for rule in RULES if rule.code not in ("DS001", "DS002")]
PARTS = ["**Wrong**", "**Right**", "**When to leave it.**", "**Source.**"]

each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
each_checked = pytest.mark.parametrize("rule", CHECKED, ids=lambda rule: rule.code)


def examples(rule, part):
    """The code blocks of a part of a manual."""
    start = rule.manual.index(PARTS[part])
    text = rule.manual[start : rule.manual.index(PARTS[part + 1])]
    return re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)


def whole(code):
    """An example as a program: a lone method belongs to a module."""
    if re.match(r"\s*def \w+\(self", code):
        indented = "".join(f"    {line}" for line in code.splitlines(keepends=True))
        return "class Net(nn.Module):\n" + indented
    return code


@each_rule
def test_outline(rule):
    places = [rule.manual.index(part) for part in PARTS]
    assert places == sorted(places)
    assert re.fullmatch(r"DS\d{3}", rule.code)
    assert re.fullmatch(r"[a-z]+(?:-[a-z0-9]+)+", rule.name)
    first, second = rule.manual.strip().split("\n")[:2]
    assert (first[-1], second) == (".", "")
    assert all(len(line) <= 100 or "http" in line for line in rule.manual.split("\n"))


def test_codes_and_names_are_each_rule_s_own():
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(RULES)


@each_checked
def test_wrong_code_is_found(rule):
    assert all(hits(whole(code), rule.code) for code in examples(rule, 0))
    assert examples(rule, 0)


@each_checked
def test_right_code_is_not(rule):
    assert [hits(whole(code), rule.code) for code in examples(rule, 1)] == [
        [] for _ in examples(rule, 1)
    ]
    assert examples(rule, 1)


def test_pages_are_those_of_the_rules():
    """`make docs` writes them anew."""
    written = {path.name: path.read_text(encoding="utf-8") for path in PAGES.glob("*.md")}
    assert written == manual.pages()


def test_writing_pages(tmp_path):
    (tmp_path / "DS999.md").write_text("of a rule that is gone")
    manual.main(str(tmp_path))
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    assert written == manual.pages()
