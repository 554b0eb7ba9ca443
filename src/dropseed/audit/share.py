"""A share of a scan's files: parsed and walked, kept, and judged when all facts are known.

A share lives in this process, or in another one that keeps its trees between the two stages.
"""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from dropseed.audit.finding import Span
from dropseed.audit.reading.facts import ModuleFacts
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.files import Entry
from dropseed.audit.reading.project import Project
from dropseed.audit.reading.source import Source, UnreadableError, decode, parse
from dropseed.audit.reporting.ignore import Ignore, ignores
from dropseed.audit.rules import RULES, unreadable_file
from dropseed.errors import DropseedError

RELEVANT = (
    "drop",
    "keep_prob",
    "keepprob",
    "eval(",
    "no_grad",
    "inference_mode",
    "scaled_dot_product",
    "flash_attn",
    "memory_efficient_attention",
    "stochastic_depth",
    ".train(false",
    "def train",
    "def eval",
    "def predict",
    "def infer",
    "def validat",
    "bernoulli",
    "deterministic",
)
"""A file without any of these words has no finding; it is parsed for its facts only."""

BATCH = 50
"""How many files a process reads before it says so."""

Coded = tuple[str, Hit]
"""A rule's code and its hit."""


@dataclass
class Prepared:
    """What a file gives in the first stage.

    Attributes:
        facts: what other files need; None if it could not be parsed.
        digest: of the facts.
        problems: what could not be read or parsed.
        ignores: its comments that silence rules.
        relevant: whether rules may find something in it.
    """

    facts: ModuleFacts | None = None
    digest: bytes = b""
    problems: list[Coded] = field(default_factory=list)
    ignores: list[Ignore] = field(default_factory=list)
    relevant: bool = False


class Share(Protocol):
    """The two stages of some of a scan's files."""

    def prepare(self, entries: Sequence[Entry], done: Callable[[int], None]) -> list[Prepared]:
        """Read, parse and walk files; `done` is told how many more are ready."""

    def judge(self, entries: Sequence[Entry], facts: bytes) -> list[list[Coded]]:
        """Apply the rules to files; `facts` are those of all files, pickled."""


class LocalShare:
    """A share in this process."""

    def __init__(self) -> None:
        self._files: dict[Entry, File] = {}

    def prepare(self, entries: Sequence[Entry], done: Callable[[int], None]) -> list[Prepared]:
        """Read, parse and walk files; `done` is told how many more are ready."""
        found = []
        for entry in entries:
            prepared, file = _prepare(entry)
            if file is not None:
                self._files[entry] = file
            found.append(prepared)
            done(1)
        return found

    def judge(self, entries: Sequence[Entry], facts: bytes) -> list[list[Coded]]:
        """Apply the rules to files; those that were not prepared are now."""
        project = Project(pickle.loads(facts))
        return [self._judge(entry, project) for entry in entries]

    def _judge(self, entry: Entry, project: Project) -> list[Coded]:
        file = self._files.pop(entry, None) or _prepare(entry)[1]
        if file is None:
            return []
        try:
            return judge(file, project)
        except Exception as error:  # a rule's own mistake must not cost the other files
            reason = (
                f"not checked: a rule failed ({type(error).__name__}: {error}); please report it"
            )
            return [_unreadable(UnreadableError(reason))]


class RemoteShare:
    """A share in a process of its own, which ends with the share."""

    def __init__(self) -> None:
        code = (
            "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
            "from dropseed.audit.share import serve; serve(sys.stdin.buffer, sys.stdout.buffer)"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._send(sys.path)

    def prepare(self, entries: Sequence[Entry], done: Callable[[int], None]) -> list[Prepared]:
        """Read, parse and walk files; `done` is told how many more are ready."""
        self._send(("prepare", entries))
        found: list[Prepared] = []
        while len(found) < len(entries):
            batch = self._receive()
            found += batch
            done(len(batch))
        return found

    def judge(self, entries: Sequence[Entry], facts: bytes) -> list[list[Coded]]:
        """Apply the rules to files; `facts` are those of all files, pickled."""
        self._send(("judge", entries, facts))
        hits: list[list[Coded]] = self._receive()
        return hits

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(message, self._process.stdin, pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except OSError as error:
            raise self._ended() from error

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            return pickle.load(self._process.stdout)
        except EOFError as error:
            raise self._ended() from error

    def _ended(self) -> DropseedError:
        status = self._process.wait()
        return DropseedError(
            f"A process of the scan ended with status {status}, for want of memory perhaps. "
            "Scan with `--jobs 1`."
        )


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """What a share's process does: answer requests until there are no more.

    Args:
        requests: pickled ("prepare", entries) and ("judge", entries, facts).
        answers: pickled results: of "prepare" in batches.
    """
    gc.disable()  # trees hold no cycles, and looking through them costs a third
    share = LocalShare()
    while True:
        try:
            name, entries, *rest = pickle.load(requests)
        except EOFError:
            return
        if name == "judge":
            pickle.dump(share.judge(entries, *rest), answers, pickle.HIGHEST_PROTOCOL)
        else:
            for first in range(0, len(entries), BATCH):
                batch = share.prepare(entries[first : first + BATCH], lambda _: None)
                pickle.dump(batch, answers, pickle.HIGHEST_PROTOCOL)
                answers.flush()
        answers.flush()


def judge(file: File, project: Project) -> list[Coded]:
    """Apply every rule to a file.

    Args:
        file: the parsed file.
        project: the facts of all files.

    Returns:
        The hits, each with its rule's code.
    """
    file.project = project
    return [(rule.code, hit) for rule in RULES for hit in rule.check(file)]


def _prepare(entry: Entry) -> tuple[Prepared, File | None]:
    try:
        data = entry.read()
        source = decode(data, notebook=entry.path.suffix == ".ipynb")
        tree, left_out = parse(source)
    except UnreadableError as error:
        return Prepared(problems=[_unreadable(error)]), None
    except OSError as error:
        problem = UnreadableError(error.strerror or str(error))
        return Prepared(problems=[_unreadable(problem)]), None
    file = File(source, tree, entry.module, entry.package)
    problems = [_unreadable(error, source) for error in left_out]
    text = source.text.lower()
    relevant = any(word in text for word in RELEVANT)
    prepared = Prepared(file.facts, file.facts.digest(), problems, ignores(source), relevant)
    return prepared, file if relevant else None


def _unreadable(error: UnreadableError, source: Source | None = None) -> Coded:
    line, cell = error.line, source.cell_at(error.line) if source else None
    if cell:
        line -= cell.line
    span = Span(line, error.column, line, error.column + 1, cell.number if cell else None)
    return unreadable_file.RULE.code, Hit(span, error.reason)
