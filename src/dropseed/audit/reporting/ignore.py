"""The comments that silence rules, and what is left of one when codes are taken out.

Two kinds count, for findings that begin or end in their line: `# noqa: DS101, DS2` as other linters
have it, and `# dropseed: ignore[DS101] the reason`. A bare `# noqa` silences all rules.
"""

from __future__ import annotations

import contextlib
import re
import tokenize
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from dropseed.audit.finding import Edit, Finding, Span
from dropseed.audit.reading.source import Source

PREFIX = "DS"
"""What the code of every rule begins with."""

_LIST = r"[A-Z]+[0-9]+(?:[,\s]+[A-Z]+[0-9]+)*"
_NOQA = re.compile(rf"#\s*noqa\b(?:\s*:\s*(?P<codes>{_LIST}))?", re.IGNORECASE)
_OURS = re.compile(r"#\s*dropseed\s*:\s*ignore\b(?:\s*\[(?P<codes>[^\]#]*)\])?[^#]*", re.IGNORECASE)
_PRESENT = re.compile(
    rf"#\s*noqa\b(?!\s*:\s*[A-Z]+[0-9])|#\s*noqa\s*:[^\n]*{PREFIX}|#\s*dropseed\s*:",
    re.IGNORECASE,
)
"""What a text has if any of its comments matters here; few have, and tokenizing takes long."""


@dataclass(frozen=True, slots=True)
class Ignore:
    """A comment that silences rules in its line.

    Attributes:
        span: where it is; of several in one comment, its part.
        codes: the codes and prefixes that it names of this auditor's rules; None for a bare
            `# noqa`.
        line: the text of its line.
    """

    span: Span
    codes: tuple[str, ...] | None
    line: str

    @property
    def noqa(self) -> bool:
        """Whether it is a `# noqa`, which other linters read, too."""
        return _NOQA.match(self.line, self.span.column - 1) is not None

    def silences(self, finding: Finding) -> bool:
        """Whether it silences a finding of its file."""
        at = finding.span
        if self.span.cell != at.cell or self.span.line not in (at.line, at.end_line):
            return False
        return self.codes is None or finding.code.startswith(self.codes)


def ignores(source: Source) -> list[Ignore]:
    """The comments of a source that silence this auditor's rules.

    Args:
        source: the file; it parses.

    Returns:
        The comments, in order.

    Example:
        >>> [found.codes for found in ignores(Source("f()  # noqa: E501, DS101"))]
        [('DS101',)]
    """
    if not _PRESENT.search(source.text):
        return []
    found = []
    for line, column, comment in _comments(source):
        for match in (*_NOQA.finditer(comment), *_OURS.finditer(comment)):
            codes = _codes(match)
            if codes is None or codes or match.re is _OURS:
                text = source.lines[line - 1]
                found.append(Ignore(_span(source, line, column, match), codes, text))
    return found


def without(ignore: Ignore, unused: Collection[str]) -> Edit:
    """Take codes out of a comment, and the comment away if it has no others.

    Args:
        ignore: the comment.
        unused: which of its codes go.

    Returns:
        The edit.

    Example:
        >>> (one,) = ignores(Source("f()  # noqa: E501, DS101"))
        >>> without(one, ["DS101"]).text
        '# noqa: E501'
    """
    start, end = ignore.span.column - 1, ignore.span.end_column - 1
    before, comment, after = ignore.line[:start], ignore.line[start:end], ignore.line[end:]
    match = _NOQA.match(comment) or _OURS.match(comment)
    kept = [code for code in _split(match) if code.upper() not in unused] if match else []
    if match and kept:
        text = comment[: match.start("codes")] + ", ".join(kept) + comment[match.end("codes") :]
    elif not after.strip():
        start, end, text = len(before.rstrip()), len(ignore.line), ""
    else:
        end = len(ignore.line) - len(after.lstrip())
        text = "" if after.lstrip().startswith("#") else "# "
    return Edit(replace(ignore.span, column=start + 1, end_column=end + 1), text)


def _comments(source: Source) -> Iterator[tuple[int, int, str]]:
    """(line from 1, column from 0, text) of each comment."""
    lines = (f"{line}\n" for line in source.lines)
    # The parser takes a few texts that the tokenizer of older Pythons gives up on.
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(lambda: next(lines, "")):
            if token.type == tokenize.COMMENT:
                yield *token.start, token.string


def _codes(match: re.Match[str]) -> tuple[str, ...] | None:
    if match.re is _NOQA and match["codes"] is None:
        return None
    codes = (code.upper() for code in _split(match))
    return tuple(code for code in codes if match.re is _OURS or code.startswith(PREFIX))


def _split(match: re.Match[str]) -> list[str]:
    return re.findall(r"[^,\s]+", match["codes"] or "")


def _span(source: Source, line: int, column: int, match: re.Match[str]) -> Span:
    cell = source.cell_at(line)
    line -= cell.line if cell else 0
    end = column + match.start() + len(match[0].rstrip())
    return Span(line, column + match.start() + 1, line, end + 1, cell.number if cell else None)
