"""What a rule is: a code, a name, a severity, a check, and a manual."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dropseed.audit.finding import Severity

if TYPE_CHECKING:
    from dropseed.audit.reading.file import File, Hit


@dataclass(frozen=True)
class Rule:
    """A mistake that can be looked for.

    Attributes:
        code: "DS" and three digits.
        name: the mistake in words, joined by hyphens.
        severity: how much it matters.
        manual: the page of the rule in Markdown: its module's docstring.
        check: yields a hit for each place in a file where the mistake is made.
        preview: whether it runs only when asked for, since it can't yet hold 95% precision.
    """

    code: str
    name: str
    severity: Severity
    manual: str
    check: Callable[[File], Iterator[Hit]]
    preview: bool = False

    @property
    def summary(self) -> str:
        """The first line of the manual."""
        return self.manual.strip().partition("\n")[0].rstrip(".")

    @property
    def default(self) -> bool:
        """Whether it is reported when nothing was selected."""
        return self.severity is not Severity.NOTE and not self.preview
