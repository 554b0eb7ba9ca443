"""A rule's page, made of its docstring: for `--explain`, and for `docs/rules/`.

    python -m dropseed.audit.manual FOLDER

writes the pages of all rules, and their index, into a folder.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dropseed.audit.rule import Rule
from dropseed.audit.rules import RULES


def page(rule: Rule) -> str:
    """The manual page of a rule.

    Args:
        rule: the rule.

    Returns:
        Markdown that ends in a line end.

    Example:
        >>> page(RULES[0]).partition(chr(10))[0]
        '# DS001: unreadable-file'
    """
    head = f"# {rule.code}: {rule.name}\n\nSeverity: {rule.severity}, {reported(rule)}.\n\n"
    first, _, rest = rule.manual.strip().partition("\n")
    return f"{head}**{first}**\n{rest.rstrip()}\n"


def reported(rule: Rule) -> str:
    """When a rule's findings are reported, in words."""
    if rule.preview:
        return "reported with `--preview`"
    return "on by default" if rule.default else f"reported with `--severity {rule.severity}`"


def pages() -> dict[str, str]:
    """Every page by its file's name, and the index, `README.md`."""
    lines = [
        "# The auditor's rules",
        "",
        "| code | mistake | name | severity |",
        "|---|---|---|---|",
    ]
    for rule in RULES:
        severity = f"{rule.severity}{', preview' if rule.preview else ''}"
        link = f"[{rule.code}]({rule.code}.md)"
        lines.append(f"| {link} | {rule.summary} | `{rule.name}` | {severity} |")
    note = "Errors and warnings are on by default. `dropseed audit --explain CODE` prints a page."
    index = "\n".join([*lines, "", note, ""])
    return {"README.md": index, **{f"{rule.code}.md": page(rule) for rule in RULES}}


def main(folder: str) -> None:
    """Write the pages into a folder, and take away those of rules that are gone.

    Args:
        folder: an existing folder or a new one.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    written = pages()
    for old in place.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (place / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
