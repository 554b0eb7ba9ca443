"""The Python in the pages runs, and prints what the pages say."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text):
    """(line number, code) of each Python block of a page."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.M | re.S):
        yield text.count("\n", 0, match.start(1)) + 1, match[1]


def run(text, name):
    """Run a page's blocks in order, in one namespace; return the failures doctest prints."""
    namespace, printed = {}, []
    for line, code in blocks(text):
        if ">>> " in code:
            examples = doctest.DocTestParser().get_doctest(code, namespace, name, name, line - 1)
            # A test has a copy of the namespace, and clears it: the next block needs the names.
            examples.globs = namespace
            doctest.DocTestRunner(verbose=False).run(
                examples, out=printed.append, clear_globs=False
            )
        else:
            exec(compile("\n" * (line - 1) + code, name, "exec"), namespace)
    return "".join(printed)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(page.read_text(encoding="utf-8"), page.name) == ""


def test_a_wrong_page_fails():
    assert "Expected:\n    3" in run("Text\n```python\n>>> 1 + 1\n3\n```\n", "page")
    assert run("```python\n>>> x = 1\n```\n\n```python\n>>> x\n1\n```\n", "page") == ""
    with pytest.raises(ZeroDivisionError):
        run("```python\n1 / 0\n```\n", "page")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_tree_in_the_design_is_that_of_the_source():
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = re.search(r"^src/dropseed/\n(.*?)^```$", page, re.M | re.S)[1]
    drawn, folder = set(), ""
    for depth, name in re.findall(r"^( +)([\w/.]+)", tree, re.M):
        if name.endswith("/"):
            folder = name
        else:
            drawn.add(name if len(depth) == 2 else folder + name)
    source = ROOT / "src" / "dropseed"
    real = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    real = {name for name in real if not name.endswith("/__init__.py")}
    assert drawn == real
