"""SARIF 2.1.0, the format of code scanning.

https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from dropseed.audit.finding import Edit, Finding, Fix, Severity
from dropseed.audit.reporting.baseline import Key, keys, relative
from dropseed.audit.reporting.output.place import in_cell
from dropseed.audit.reporting.output.region import Region, Regions
from dropseed.audit.reporting.release import release
from dropseed.audit.rule import Rule
from dropseed.audit.rules import RULES

SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
ROOT = "SRCROOT"

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}
_INDEX = {rule.code: number for number, rule in enumerate(RULES)}


def render(findings: Sequence[Finding], files: int) -> str:
    """Write findings as a SARIF log.

    Args:
        findings: the findings, sorted.
        files: how many files were read.

    Returns:
        A JSON object.

    Example:
        >>> json.loads(render([], 3))["version"]
        '2.1.0'
    """
    regions, seen = Regions(), Counter[Key]()
    results = []
    for finding, key in zip(findings, keys(findings, Path.cwd()), strict=True):
        results.append(_result(finding, regions.of(finding), _fingerprint(key, seen[key])))
        seen[key] += 1
    run = {
        "tool": {"driver": _driver()},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {ROOT: {"uri": Path.cwd().as_uri() + "/"}},
        "results": results,
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2) + "\n"


def _driver() -> dict[str, Any]:
    return {"name": "dropseed", "version": release(), "rules": [_rule(rule) for rule in RULES]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": rule.name,
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.summary},
        "help": {"text": rule.manual.strip(), "markdown": rule.manual.strip()},
        "defaultConfiguration": {"level": _LEVELS[rule.severity], "enabled": rule.default},
    }


def _result(finding: Finding, region: Region, fingerprint: str) -> dict[str, Any]:
    artifact = _artifact(finding)
    result = {
        "ruleId": finding.code,
        "ruleIndex": _INDEX[finding.code],
        "level": _LEVELS[finding.severity],
        "message": {"text": in_cell(finding)},
        "locations": [
            {"physicalLocation": {"artifactLocation": artifact, "region": _region(region)}}
        ],
        "partialFingerprints": {"dropseedAudit/v1": fingerprint},
    }
    if finding.fix and finding.span.cell is None:  # a notebook's edits are no places in its file
        result["fixes"] = [_fix(finding.fix, artifact)]
    return result


def _fix(fix: Fix, artifact: dict[str, str]) -> dict[str, Any]:
    replacements = [_replacement(edit) for edit in fix.edits]
    change = {"artifactLocation": artifact, "replacements": replacements}
    return {"description": {"text": fix.message}, "artifactChanges": [change]}


def _replacement(edit: Edit) -> dict[str, Any]:
    at = edit.span
    region = _region(Region(at.line, at.end_line, at.column, at.end_column))
    return {"deletedRegion": region, "insertedContent": {"text": edit.text}}


def _region(region: Region) -> dict[str, int]:
    names = {
        "startLine": region.line,
        "startColumn": region.column,
        "endLine": region.end_line,
        "endColumn": region.end_column,
    }
    return {name: value for name, value in names.items() if value is not None}


def _artifact(finding: Finding) -> dict[str, str]:
    path = Path(finding.root, finding.path)
    name = relative(path, Path.cwd())
    if name.startswith("../") or Path(name).is_absolute():
        return {"uri": path.absolute().as_uri()}
    return {"uri": quote(name, errors="surrogateescape"), "uriBaseId": ROOT}


def _fingerprint(key: Key, before: int) -> str:
    """A name for a finding that survives moved lines; equal ones are counted."""
    text = "\0".join((*key, str(before)))
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:32]
