"""The pytest plugin: fixtures about a model's dropout, and a guard around every test.

Installing dropseed is enough for pytest to load it. It imports torch only where a test uses one of
the fixtures, or for `--dropout-guard`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from dropseed.audit.running.guard import Guard
    from dropseed.audit.running.sites import Site

_OPTION = "--dropout-guard"
_GUARD: pytest.StashKey[Guard] = pytest.StashKey()
_KEPT = "dropout_incidents"  # an attribute of the reports, which pytest-xdist brings to the parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--dropout-guard`."""
    parser.getgroup("dropseed").addoption(
        _OPTION,
        nargs="?",
        const="warn",
        choices=("warn", "error"),
        help="Watch every test for dropout that is on or off at the wrong time: list what was "
        "found at the end (warn, also without a value), or let the test fail (error).",
    )


@pytest.fixture
def assert_deterministic_eval() -> Callable[..., None]:
    """`assert_deterministic_eval(model, *inputs, **kwargs)`: evaluating twice gives equal bits."""
    from dropseed.audit.running.assertions import assert_deterministic_eval

    return assert_deterministic_eval


@pytest.fixture
def assert_drops_in_training() -> Callable[..., None]:
    """`assert_drops_in_training(model, *inputs, p=None)`: every dropout drops, by its rate."""
    from dropseed.audit.running.assertions import assert_drops_in_training

    return assert_drops_in_training


@pytest.fixture
def dropout_sites() -> Callable[..., list[Site]]:
    """`dropout_sites(model)`: the layers that drop, each with `name, kind, rate, training`."""
    from dropseed.audit.running.sites import sites

    return sites


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Guard a test, its fixtures included."""
    mode = item.config.getoption(_OPTION)
    if mode is None:
        return (yield)
    from dropseed.audit.running.guard import guard

    item.stash[_GUARD] = guard("record" if mode == "warn" else mode)
    with item.stash[_GUARD]:
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the report of a test's end carry what its guard saw."""
    report = yield
    if report.when == "teardown" and _GUARD in item.stash:
        found = [
            (one.code, one.path, one.line, one.message) for one in item.stash[_GUARD].incidents
        ]
        setattr(report, _KEPT, found)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what the guards saw: each line once, with the number of tests that came by."""
    reports = [report for group in terminalreporter.stats.values() for report in group]
    found: dict[tuple[str, str, int], list[str]] = {}
    for report in reports:
        for code, path, line, message in getattr(report, _KEPT, ()):
            found.setdefault((code, path, line), []).append(message)
    if not found:
        return
    terminalreporter.section(f"dropout guard: {len(found)} found")
    for (code, path, line), messages in found.items():
        tests = f"{len(messages)} test{'s' if len(messages) > 1 else ''}"
        terminalreporter.line(f"{_near(path)}:{line}: {code} {messages[0]} ({tests})")


def _near(path: str) -> str:
    """A path as seen from here, if it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
