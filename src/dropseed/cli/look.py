"""A scan as the command line asks for it: selected, compared with what is known, and fixed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from dropseed.audit.engine import scan
from dropseed.audit.finding import Finding
from dropseed.audit.reporting.baseline import (
    Key,
    read_baseline,
    relative,
    unknown,
    within,
    write_baseline,
)
from dropseed.audit.reporting.config import Config, matches
from dropseed.audit.reporting.fix import Fixed, difference, fix_all, write_fixed
from dropseed.audit.reporting.output.text import counted
from dropseed.audit.reporting.select import chosen, without_preview
from dropseed.cli.screen import progress, say


class Look:
    """Looks at files for what is to be reported; after each look `files` were read.

    Args:
        paths: files and folders.
        config: what counts.
        jobs: how many processes share the work; None for one for each core.
        cache: where results are kept, or None.
    """

    def __init__(
        self, paths: Sequence[Path], config: Config, jobs: int | None, cache: Path | None
    ) -> None:
        for code in without_preview(config):
            say(f"{code} is in preview; add `--preview` to run it.")
        self.files = 0
        self._paths, self._config, self._jobs, self._cache = paths, config, jobs, cache
        self._baseline = config.baseline
        self._known: Counter[Key] | None = None
        self._gone: Counter[Key] = Counter()
        if self._baseline and self._baseline.exists():
            self._known = read_baseline(self._baseline)

    def __call__(self, contents: Mapping[Path, bytes]) -> list[Finding]:
        """The findings, where files have other contents than on the disk."""
        with progress() as tell:
            report = scan(
                [path for path in self._paths if not self._is_excluded(path)],
                exclude=self._config.exclude,
                jobs=self._jobs,
                cache=self._cache,
                contents=contents,
                progress=tell,
            )
        self.files = report.files
        findings = chosen(report, self._config)
        if self._baseline and self._known is not None:
            folder = self._baseline.parent
            findings, self._gone = unknown(findings, self._known, folder, contents)
        return findings

    def fix(self) -> list[Finding]:
        """Make the fixes; what is left."""
        fixed = fix_all(self)
        write_fixed(fixed)
        _say_refused(fixed)
        if fixed.count:
            mistakes = counted(sum(fixed.count.values()), "mistake")
            say(f"Fixed {mistakes} in {counted(len(fixed.count), 'file')}.")
        return fixed.findings if set(fixed.old) <= set(fixed.new) else self({})

    def difference(self) -> bytes:
        """What fixing would change, as a diff."""
        fixed = fix_all(self)
        _say_refused(fixed)
        return difference(fixed, lambda path: relative(path, Path.cwd()))

    def begin_baseline(self, findings: Sequence[Finding]) -> bool:
        """Write the baseline where one was asked for and isn't there; whether that was done."""
        if self._baseline is None or self._known is not None:
            return False
        write_baseline(self._baseline, findings)
        say(
            f"Wrote {counted(len(findings), 'finding')} to {self._baseline}; from now on only new "
            "ones are reported."
        )
        return True

    def gone(self) -> str:
        """A sentence about known findings that are there no more, or ""."""
        if self._baseline is None:
            return ""
        number = within(self._gone, self._baseline.parent, self._paths)
        if not number:
            return ""
        what = counted(number, "known finding")
        return f"{what} not found any more; delete {self._baseline} to have it written anew.\n"

    def _is_excluded(self, path: Path) -> bool:
        """Whether a file was given by name, as hooks do, though the configuration excludes it."""
        patterns = self._config.exclude
        return path.is_file() and any(
            matches(path, pattern, self._config.root) for pattern in patterns
        )


def _say_refused(fixed: Fixed) -> None:
    for path, reason in fixed.refused.items():
        say(f"{path} was left as it is: {reason}.")
