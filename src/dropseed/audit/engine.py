"""The scan: every file is read and parsed once, and every rule looks at every tree.

Two stages. First each file gives its facts; when the facts of all are together, the rules run on
the trees that the first stage has kept. Many files are shared between processes, and what did not
change since the last scan is not done again.
"""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from dropseed.audit.cache import Cache, Kept, Result, digest_of, index_digest
from dropseed.audit.finding import Finding, Span
from dropseed.audit.reading.facts import ModuleFacts
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.files import Entry, find
from dropseed.audit.reading.source import Source, parse
from dropseed.audit.reporting.ignore import Ignore
from dropseed.audit.rules import RULES, unreadable_file
from dropseed.audit.share import Coded, LocalShare, Prepared, RemoteShare, Share, judge
from dropseed.errors import InvalidValueError

T = TypeVar("T")

SMALL = 2_000_000
"""Bytes that are scanned faster than a process starts."""

_RULES = {rule.code: rule for rule in RULES}


@dataclass
class Report:
    """What a scan found, before any selection.

    Attributes:
        findings: every rule's, sorted by place.
        ignores: the comments that silence rules, by (root, path) of their file.
        files: how many files were read.
    """

    findings: list[Finding]
    ignores: dict[tuple[str, str], list[Ignore]]
    files: int


def scan(
    paths: Sequence[Path],
    *,
    exclude: Sequence[str] = (),
    jobs: int | None = None,
    cache: Path | None = None,
    contents: Mapping[Path, bytes] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Read files and folders, and apply every rule. No scanned code is ever imported.

    Args:
        paths: files and folders; in folders all `.py` and `.ipynb` files are read.
        exclude: patterns of names or relative paths that are left out.
        jobs: how many processes share the work, at least 1; by default as many as there are cores
            if the files are many.
        cache: a folder that keeps results from scan to scan, or None.
        contents: bytes of files that are to be taken for those on the disk.
        progress: called with the number of files that are ready and of all files.

    Returns:
        The report.

    Raises:
        InvalidValueError: a path does not exist.

    Example:
        >>> scan([Path(__file__)]).files
        1
    """
    entries: list[Entry] = []
    findings: list[Finding] = []
    for found in find(paths, exclude):
        if isinstance(found, Entry):
            data = (contents or {}).get(found.path)
            entries.append(found if data is None else replace(found, data=data))
        else:
            findings.append(_denied(found, paths))
    report = Report(findings, {}, len(entries))
    results = _results(entries, jobs, Cache(cache, entries), progress or (lambda *_: None))
    for entry, result in zip(entries, results, strict=True):
        findings += [_finding(entry, code, hit) for code, hit in result.hits]
        if result.ignores:
            report.ignores[entry.root, entry.name] = result.ignores
    findings.sort(key=lambda at: (at.root, at.path, at.span.cell or 0, at.span, at.code))
    return report


def check_source(text: str, name: str = "module") -> list[Coded]:
    """Apply every rule to a text that stands alone.

    Args:
        text: Python source.
        name: the dotted name of the module.

    Returns:
        The hits in the order of the text, each with its rule's code.

    Raises:
        UnreadableError: the text does not parse.

    Example:
        >>> text = "import torch.nn.functional as F" + chr(10) + "def f(x): return F.dropout(x)"
        >>> [(code, hit.span.line) for code, hit in check_source(text)]
        [('DS101', 2)]
    """
    source = Source(text)
    tree, _ = parse(source)
    file = File(source, tree, name)
    return sorted(judge(file, file.project), key=lambda coded: (coded[1].span, coded[0]))


def _results(
    entries: Sequence[Entry], jobs: int | None, cache: Cache, progress: Callable[[int, int], None]
) -> list[Result]:
    """The result of each file: kept from the last scan, or made now."""
    digests = [digest_of(entry) for entry in entries]
    kept = cache.kept()
    if digests != kept.digests:
        known = cache.prepared()
        missing = [entry for entry, at in zip(entries, digests, strict=True) if at not in known]
        with _shares(missing, jobs) as shares:
            fresh = _prepared(missing, shares, lambda done: progress(done, len(missing)))
            prepared = [
                fresh[entry] if entry in fresh else known[digest]
                for entry, digest in zip(entries, digests, strict=True)
            ]
            index = index_digest(prepared)
            old = kept.results if index == kept.index else {}
            stale = [
                entry
                for entry, digest, one in zip(entries, digests, prepared, strict=True)
                if one.relevant and digest not in old
            ]
            judged = _judged(stale, shares, [one.facts for one in prepared if one.facts])
        results = {
            digest: Result(one.problems + judged[entry], one.ignores)
            if entry in judged
            else old.get(digest) or Result(one.problems, one.ignores)
            for entry, digest, one in zip(entries, digests, prepared, strict=True)
        }
        kept = Kept(digests, index, results)
        cache.keep(kept, dict(zip(digests, prepared, strict=True)))
    return [kept.results[digest] for digest in digests]


@contextmanager
def _shares(entries: Sequence[Entry], jobs: int | None) -> Iterator[list[Share]]:
    """As many shares as there is work for, in processes if there are several."""
    if jobs is not None and jobs < 1:
        raise InvalidValueError(f"`jobs` must be at least 1; got {jobs}.")
    size = sum(_size(entry) for entry in entries)
    wanted = min(jobs or os.cpu_count() or 1, size // SMALL + 1)
    if wanted == 1:
        with _no_collector():
            yield [LocalShare()]
        return
    remote = [RemoteShare() for _ in range(wanted)]
    try:
        yield [*remote]
    finally:
        for share in remote:
            share.close()


@contextmanager
def _no_collector() -> Iterator[None]:
    """No garbage collection: trees hold no cycles, and looking through them costs a third."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _prepared(
    entries: Sequence[Entry], shares: Sequence[Share], progress: Callable[[int], None]
) -> dict[Entry, Prepared]:
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(done)

    def work(share: Share, part: list[Entry]) -> list[tuple[Entry, Prepared]]:
        return list(zip(part, share.prepare(part, count), strict=True))

    return dict(_together(work, shares, _dealt(entries, len(shares))))


def _judged(
    entries: Sequence[Entry], shares: Sequence[Share], facts: list[ModuleFacts]
) -> dict[Entry, list[Coded]]:
    plain = pickle.dumps(facts, pickle.HIGHEST_PROTOCOL)

    def work(share: Share, part: list[Entry]) -> list[tuple[Entry, list[Coded]]]:
        return list(zip(part, share.judge(part, plain), strict=True))

    return dict(_together(work, shares, _dealt(entries, len(shares))))


def _dealt(entries: Sequence[Entry], number: int) -> list[list[Entry]]:
    """The files dealt to shares: the same file to the same share in both stages."""
    parts: list[list[Entry]] = [[] for _ in range(number)]
    for entry in entries:
        parts[crc32(str(entry.path).encode(errors="replace")) % number].append(entry)
    return parts


def _together(
    work: Callable[[Share, list[Entry]], list[tuple[Entry, T]]],
    shares: Sequence[Share],
    parts: Sequence[list[Entry]],
) -> Iterator[tuple[Entry, T]]:
    """Each share's work at the same time."""
    if len(shares) == 1:
        yield from work(shares[0], parts[0])
        return
    with ThreadPoolExecutor(len(shares)) as pool:
        for done in pool.map(work, shares, parts):
            yield from done


def _size(entry: Entry) -> int:
    try:
        return entry.path.stat().st_size
    except OSError:
        return 0


def _denied(error: OSError, paths: Iterable[Path]) -> Finding:
    """The finding of a folder that can't be opened."""
    folder = Path(str(error.filename))
    root = next((path for path in paths if folder.is_relative_to(path)), folder)
    name = folder.relative_to(root).as_posix()
    hit = Hit(Span(1, 1, 1, 1), f"{error.strerror}: this folder was not read")
    return _finding(Entry(folder, str(root), name, "", False), unreadable_file.RULE.code, hit)


def _finding(entry: Entry, code: str, hit: Hit) -> Finding:
    rule = _RULES[code]
    return Finding(
        code, rule.name, rule.severity, entry.name, entry.root, hit.span, hit.message, hit.fix
    )
