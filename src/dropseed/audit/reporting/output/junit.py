"""JUnit's XML, which build servers show as tests: a suite for a file, a failure for a finding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree as ET

from dropseed.audit.finding import Finding
from dropseed.audit.reporting.output.place import place, shown

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(findings: Sequence[Finding], files: int) -> str:
    """Write findings as failed tests; without any, one test passes.

    Args:
        findings: the findings, sorted.
        files: how many files were read.

    Returns:
        An XML document.

    Example:
        >>> ET.fromstring(render([], 3)).attrib["failures"]
        '0'
    """
    suites = ET.Element("testsuites", _counts("dropseed audit", max(len(findings), 1), findings))
    for path, group in groupby(findings, key=lambda at: Path(at.root, at.path)):
        inside = [*group]
        suite = ET.SubElement(suites, "testsuite", _counts(shown(path), len(inside), inside))
        for finding in inside:
            _case(suite, finding, shown(path))
    if not findings:
        suite = ET.SubElement(suites, "testsuite", _counts("dropseed audit", 1, findings))
        ET.SubElement(suite, "testcase", name="no findings", classname="dropseed.audit", time="0")
    ET.indent(suites)
    body = ET.tostring(suites, encoding="us-ascii", xml_declaration=False).decode()
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{body}\n'


def _case(suite: ET.Element, finding: Finding, path: str) -> None:
    case = ET.SubElement(
        suite, "testcase", name=f"{finding.code} {finding.name}", classname=_clean(path), time="0"
    )
    kind, message = finding.severity.value, _clean(finding.message)
    failure = ET.SubElement(case, "failure", type=kind, message=message)
    failure.text = _clean(f"{place(finding)}: {finding.code} {finding.message}")


def _counts(name: str, tests: int, failures: Sequence[Finding]) -> dict[str, str]:
    return {
        "name": _clean(name),
        "tests": str(tests),
        "failures": str(len(failures)),
        "errors": "0",
        "time": "0",
    }


def _clean(text: str) -> str:
    """A text without the characters that XML can't have."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)
