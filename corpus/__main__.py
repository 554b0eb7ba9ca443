"""Scan the corpus and print the auditor's precision and recall, rule by rule.

    python -m corpus [FOLDER]

FOLDER is where the packages are downloaded to and unpacked, `build/corpus` by default. Nothing of
them is installed, imported or kept in the repository.

Precision: every finding of the scan in the packages of `packages.txt` was read and judged; the
verdicts are in `findings.csv`. A finding without a verdict is counted apart.
Recall: the files of `recall_files.csv` were read (whole, without their comments, or for dropout
only), and each dropout in them labelled, before any rule ran on them; the labels are in
`recall.csv`. A code that begins with "doubt:" counts for nothing.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from corpus.download import download, requirements
from dropseed.audit.engine import scan
from dropseed.audit.finding import Finding
from dropseed.audit.rule import Rule
from dropseed.audit.rules import RULES

HERE = Path(__file__).parent
NEAR = 3
"""How many lines a finding may be away from a label of the same code and still be meant."""

BY_DEFAULT = {rule.code for rule in RULES if rule.default}

Row = dict[str, str]


def read(name: str) -> list[Row]:
    """The rows of a file of labels."""
    with (HERE / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def findings(requirement: str, folder: Path) -> list[Finding]:
    """Everything that a scan finds in a package."""
    return scan([download(requirement, folder)]).findings


def requirement(row: Row) -> str:
    """The package of a label."""
    return f"{row['package']}=={row['version']}"


def precision(folder: Path, console: Console) -> None:
    """Judge what is found by the verdicts."""
    verdicts = {
        (requirement(row), row["path"], int(row["line"]), row["code"]): row["verdict"]
        for row in read("findings.csv")
    }
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name in track(requirements(HERE / "packages.txt"), "precision", console=console):
        for found in findings(name, folder):
            at = (name, found.path, found.span.line, found.code)
            counts[found.code][verdicts.get(at, "unread")] += 1
    table = Table("rule", "name", "severity", *["right", "wrong", "unread", "precision"])
    total: Counter[str] = Counter()
    for rule in RULES:
        count = counts[rule.code]
        if rule.default:
            total += count
        if count:
            table.add_row(rule.code, rule.name, _severity(rule), *_cells(count))
    table.add_section()
    table.add_row("all", "on by default", "", *_cells(total))
    console.print("Precision", table, sep="\n")


def _severity(rule: Rule) -> str:
    return f"{rule.severity}{' (preview)' if rule.preview else ''}"


def _cells(count: Counter[str]) -> list[str]:
    judged = count["right"] + count["wrong"]
    share = f"{count['right'] / judged:.1%}" if judged else "-"
    return [*(str(count[word]) for word in ("right", "wrong", "unread")), share]


def recall(folder: Path, console: Console) -> None:
    """Look for the labelled mistakes among what is found."""
    labels = [row for row in read("recall.csv") if row["code"].startswith("DS")]
    places: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for name in track(sorted({*map(requirement, labels)}), "recall", console=console):
        for found in findings(name, folder):
            places[name, found.path, found.code].append(found.span.line)
    files = read("recall_files.csv")
    ways = {(requirement(row), row["path"]): row["read"] for row in files}
    counts: dict[str, Counter[bool]] = defaultdict(Counter)
    totals: dict[str, Counter[bool]] = {way: Counter() for way in ways.values()}
    missed = []
    for row in labels:
        lines = places[requirement(row), row["path"], row["code"]]
        hit = any(abs(line - int(row["line"])) <= NEAR for line in lines)
        counts[row["code"]][hit] += 1
        if row["code"] in BY_DEFAULT:
            totals[ways[requirement(row), row["path"]]][hit] += 1
        if not hit:
            missed.append(row)
    table = Table("rule", "name", "severity", "found", "labelled", "recall")
    for rule in RULES:
        if counts[rule.code]:
            table.add_row(rule.code, rule.name, _severity(rule), *_share(counts[rule.code]))
    table.add_section()
    for way, total in totals.items():
        table.add_row("all", "on by default", f"read: {way}", *_share(total))
    packages = {row["package"] for row in files}
    title = f"Recall, on {len(files)} files of {len(packages)} packages"
    console.print(title, table, sep="\n")
    for row in missed:
        console.print(
            f"missed {row['code']} {requirement(row)} {row['path']}:{row['line']}: {row['reason']}",
            highlight=False,
            soft_wrap=True,
        )


def _share(count: Counter[bool]) -> list[str]:
    share = f"{count[True] / count.total():.1%}" if count else "-"
    return [str(count[True]), str(count.total()), share]


def main(folder: str = "build/corpus") -> None:
    """Print both tables."""
    console = Console()
    precision(Path(folder), console)
    recall(Path(folder), console)


if __name__ == "__main__":
    main(*sys.argv[1:])
