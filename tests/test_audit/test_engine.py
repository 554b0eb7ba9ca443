"""Whole scans: many files, processes, the cache, and files that can't be read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dropseed.audit import engine
from dropseed.audit.engine import check_source, scan
from dropseed.audit.share import RELEVANT
from dropseed.errors import DropseedError, InvalidValueError

WRONG = "import torch.nn.functional as F\n\n\ndef f(x):\n    return F.dropout(x)\n"


@pytest.fixture
def tree(tmp_path):
    """Write files into a folder; `__` in a name is a slash, and `init` a package's file."""

    def write(**files):
        for name, text in files.items():
            parts = ["__init__" if part == "init" else part for part in name.split("__")]
            path = tmp_path.joinpath(*parts[:-1], parts[-1] + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path

    return write


def places(report):
    return [(at.path, at.span.line, at.code) for at in report.findings]


def test_a_folder(tree):
    folder = tree(a=WRONG, b__c=WRONG, b__d="x = 1")
    report = scan([folder])
    assert places(report) == [("a.py", 5, "DS101"), ("b/c.py", 5, "DS101")]
    assert report.files == 3
    assert {at.root for at in report.findings} == {str(folder)}


def test_a_file_whatever_its_ending(tree):
    folder = tree(a=WRONG)
    (folder / "a.py").rename(folder / "script")
    assert places(scan([folder / "script"])) == [("script", 5, "DS101")]


def test_no_path():
    with pytest.raises(InvalidValueError, match="`PATHS` has 'nowhere'"):
        scan([Path("nowhere")])


def test_no_job(tree):
    with pytest.raises(InvalidValueError, match="`jobs` must be at least 1; got 0"):
        scan([tree(a=WRONG)], jobs=0)


@pytest.mark.parametrize("pattern", ["b", "b/", "b/*", "c.py", "*/c.py", "b/c.py", "/*/b"])
def test_exclude(tree, pattern):
    assert places(scan([tree(a=WRONG, b__c=WRONG)], exclude=[pattern])) == [("a.py", 5, "DS101")]


def test_folders_of_nobody_s_source(tree):
    folder = tree(
        **{".venv__a": WRONG, "node_modules__b": WRONG, ".git__c": WRONG, "lib__d": WRONG}
    )
    assert places(scan([folder])) == [("lib/d.py", 5, "DS101")]
    assert places(scan([folder / ".venv"])) == [("a.py", 5, "DS101")]


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        (b"x = 1\nprint 'python 2'\n", 2, "syntax error"),
        (b"x = 1\n\0", 2, "null byte"),
        (b"x = '\xff'", 1, "not utf-8"),
        (b"# coding: klingon", 1, "encoding"),
    ],
)
def test_one_bad_file_is_a_finding_and_the_rest_is_read(tree, data, line, words):
    report = scan([tree(a=data, b=WRONG)])
    assert places(report) == [("a.py", line, "DS001"), ("b.py", 5, "DS101")]
    assert words in report.findings[0].message


def test_contents_that_are_not_on_the_disk(tree):
    folder = tree(a=WRONG, b=WRONG)
    contents = {folder / "a.py": b"x = 1"}
    assert places(scan([folder], contents=contents)) == [("b.py", 5, "DS101")]
    assert len(scan([folder]).findings) == 2


def test_an_empty_file_is_fine(tree):
    assert places(scan([tree(a="", b="\n\n")])) == []


def test_links_in_a_circle(tree):
    folder = tree(a__b=WRONG)
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "dead.py").symlink_to(folder / "gone.py")
    report = scan([folder])
    assert [place for place in places(report) if place[2] == "DS101"] == [("a/b.py", 5, "DS101")]
    assert [place for place in places(report) if place[2] == "DS001"] == [("dead.py", 1, "DS001")]


def test_a_folder_that_may_not_be_opened(tree, monkeypatch):
    folder = tree(a=WRONG, locked__b=WRONG)
    real = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = scan([folder])
    assert places(report) == [("a.py", 5, "DS101"), ("locked", 1, "DS001")]
    assert "Permission denied" in report.findings[1].message


def test_a_file_that_may_not_be_read(tree, monkeypatch):
    folder = tree(a=WRONG, b=WRONG)
    real = Path.read_bytes

    def refuse(path):
        if path.name == "b.py":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert places(scan([folder])) == [("a.py", 5, "DS101"), ("b.py", 1, "DS001")]


def test_many_lines(tree):
    report = scan([tree(a="x = 1\n" * 50_000 + WRONG)])
    assert places(report) == [("a.py", 50_005, "DS101")]


def test_deep_nesting_is_no_crash(tree):
    deep = "".join(" " * n + f"if dropout{n}:\n" for n in range(90)) + " " * 90 + "pass\n"
    long = "x = " + " + ".join(["dropout"] * 3000)
    assert scan([tree(a=deep, b=long)]).files == 2


def test_names_lead_through_files(tree):
    folder = tree(
        pkg__init="from .layers import dropout\n",
        pkg__layers="from torch.nn.functional import dropout\n",
        pkg__net="from pkg import dropout\n\n\ndef f(x):\n    return dropout(x)\n",
        pkg__own="def dropout(x): ...\n",
        pkg__other="from .own import dropout\n\n\ndef f(x):\n    return dropout(x)\n",
    )
    assert places(scan([folder])) == [("pkg/net.py", 5, "DS101")]
    # The package is known by its name wherever the scan begins.
    assert places(scan([folder / "pkg"])) == [("net.py", 5, "DS101")]


def test_a_file_that_is_given_twice_is_read_once(tree):
    folder = tree(a=WRONG)
    report = scan([folder / "a.py", folder, folder])
    assert (places(report), report.files) == ([("a.py", 5, "DS101")], 1)


def test_scanned_code_is_never_imported(tree):
    folder = tree(
        pkg__init="from pathlib import Path\nPath(__file__ + '.imported').touch()\n" + WRONG,
        run="raise SystemExit\n" + WRONG,
    )
    assert len(places(scan([folder]))) == 2
    assert not list(folder.rglob("*.imported"))
    subprocess.run([sys.executable, "-c", "import pkg"], cwd=folder, check=True)
    assert list(folder.rglob("*.imported"))  # the trap works


@pytest.fixture
def large(tree):
    """More than one process's work."""
    filler = "\n".join(f"def function{n}(a, b): return a + b" for n in range(5_000))
    return tree(
        base="from torch.nn.functional import dropout\n",
        **{
            f"a{n}": f"from base import dropout\ndef f(x): return dropout(x)\n{filler}\n"
            for n in range(20)
        },
    )


def test_processes_find_the_same(large, monkeypatch):
    started = []
    real = engine.RemoteShare
    monkeypatch.setattr(engine, "RemoteShare", lambda: started.append(1) or real())
    told = []
    two = scan([large], jobs=2, progress=lambda done, total: told.append((done, total)))
    assert len(started) == 2
    assert told[-1] == (21, 21)
    assert two == scan([large], jobs=1)
    assert len(started) == 2
    assert len(two.findings) == 20


def test_a_process_that_ends_is_one_sentence(large, monkeypatch):
    real = engine.RemoteShare

    def start():
        share = real()
        share._process.kill()
        return share

    monkeypatch.setattr(engine, "RemoteShare", start)
    with pytest.raises(DropseedError, match=r"ended with status -9.*--jobs 1"):
        scan([large], jobs=2)


def test_a_rule_that_fails_costs_one_file(tree, monkeypatch):
    from dropseed.audit import share

    real = share.judge

    def fail(file, project):
        if file.name == "a":
            raise TypeError("oh")
        return real(file, project)

    monkeypatch.setattr(share, "judge", fail)
    report = scan([tree(a=WRONG, b=WRONG)])
    assert places(report) == [("a.py", 1, "DS001"), ("b.py", 5, "DS101")]
    assert "a rule failed (TypeError: oh)" in report.findings[0].message


# ---- the cache -------------------------------------------------------------------------------


@pytest.fixture
def prepared(monkeypatch):
    """The names of the files that are parsed."""
    from dropseed.audit import share

    names, real = [], share._prepare
    monkeypatch.setattr(share, "_prepare", lambda entry: names.append(entry.name) or real(entry))
    return names


def test_an_unchanged_tree_is_not_parsed_again(tree, tmp_path_factory, prepared):
    folder, cache = tree(a=WRONG, b=b"x ="), tmp_path_factory.mktemp("cache")
    first = scan([folder], cache=cache)
    assert prepared == ["a.py", "b.py"]
    assert scan([folder], cache=cache) == first
    assert prepared == ["a.py", "b.py"]
    assert len(first.findings) == 2


def test_only_a_changed_file_is_parsed_again(tree, tmp_path_factory, prepared):
    folder, cache = tree(a=WRONG, b=WRONG), tmp_path_factory.mktemp("cache")
    scan([folder], cache=cache)
    prepared.clear()
    tree(b="\n" + WRONG)
    assert places(scan([folder], cache=cache)) == [("a.py", 5, "DS101"), ("b.py", 6, "DS101")]
    assert prepared == ["b.py"]


def test_a_changed_file_changes_what_others_mean(tree, tmp_path_factory):
    folder = tree(
        a="from b import dropout\ndef f(x): return dropout(x)\n",
        b="from torch.nn.functional import *\n",
    )
    cache = tmp_path_factory.mktemp("cache")
    assert places(scan([folder], cache=cache)) == [("a.py", 2, "DS101")]
    tree(b="def dropout(x): ...\n")
    assert places(scan([folder], cache=cache)) == []
    (folder / "b.py").unlink()
    assert places(scan([folder], cache=cache)) == []
    tree(b="from torch.nn.functional import *\n")
    assert places(scan([folder], cache=cache)) == [("a.py", 2, "DS101")]


def test_another_version_of_the_rules_starts_anew(tree, tmp_path_factory, prepared, monkeypatch):
    folder, cache = tree(a=WRONG), tmp_path_factory.mktemp("cache")
    scan([folder], cache=cache)
    monkeypatch.setattr("dropseed.audit.cache.version", lambda: b"another")
    scan([folder], cache=cache)
    assert prepared == ["a.py", "a.py"]


@pytest.mark.parametrize("data", [b"", b"nonsense", b"\x80\x05K\x01."])
def test_a_broken_cache_is_none(tree, tmp_path_factory, data):
    folder, cache = tree(a=WRONG), tmp_path_factory.mktemp("cache")
    first = scan([folder], cache=cache)
    for path in cache.iterdir():
        path.write_bytes(data)
    assert scan([folder], cache=cache) == first
    for path in cache.glob("*.facts"):
        path.write_bytes(data)
    tree(b=WRONG)
    assert len(scan([folder], cache=cache).findings) == 2


def test_a_cache_that_can_t_be_written(tree, tmp_path_factory):
    blocked = tmp_path_factory.mktemp("cache") / "file"
    blocked.write_text("no folder")
    assert len(scan([tree(a=WRONG)], cache=blocked / "below").findings) == 1


# ---- what is skipped -------------------------------------------------------------------------


def test_every_finding_s_file_is_relevant():
    """The words that let a file be skipped stand in every rule's wrong example."""
    from dropseed.audit.rules import RULES

    for rule in RULES:
        wrong = rule.manual.partition("**Wrong**")[2].partition("**Right**")[0].lower()
        if rule.code not in ("DS001", "DS002"):
            assert any(word in wrong for word in RELEVANT), rule.code


def test_check_source():
    assert [(code, hit.span.line) for code, hit in check_source(WRONG)] == [("DS101", 5)]
