"""How findings are written: one file for each format, each with a `render(findings, files)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dropseed.audit.finding import Finding
from dropseed.audit.reporting.output import full, github, json, junit, sarif, text

FORMATS: dict[str, Callable[[Sequence[Finding], int], str]] = {
    "text": text.render,
    "full": full.render,
    "json": json.render,
    "github": github.render,
    "sarif": sarif.render,
    "junit": junit.render,
}
"""Format -> its function, which takes sorted findings and the number of files read."""

FOR_PEOPLE = ("text", "full")
"""The formats that may have other sentences beside them."""
