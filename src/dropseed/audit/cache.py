"""What a scan keeps for the next: each file's facts and hits, by the digest of its content.

A cache that can't be read is as good as none, and one that can't be written is not written.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path

from dropseed.audit.reading.files import Entry
from dropseed.audit.reporting.ignore import Ignore
from dropseed.audit.share import Coded, Prepared


@dataclass
class Result:
    """What a scan says of a file.

    Attributes:
        hits: what was found in it, with the codes of the rules.
        ignores: its comments that silence rules.
    """

    hits: list[Coded]
    ignores: list[Ignore]


@dataclass
class Kept:
    """What a scan keeps of its files.

    Attributes:
        digests: of the files' contents, in the order of the scan.
        index: the digest of the facts of all files, on which hits may depend.
        results: by the digest of a file's content.
    """

    digests: list[bytes] = field(default_factory=list)
    index: bytes = b""
    results: dict[bytes, Result] = field(default_factory=dict)


class Cache:
    """The kept results of scans of the same roots.

    Args:
        folder: where they are kept; None keeps nothing.
        entries: the files of this scan.
    """

    def __init__(self, folder: Path | None, entries: Sequence[Entry]) -> None:
        roots = sorted({os.path.abspath(entry.root) for entry in entries})
        name = _digest([*map(os.fsencode, roots), version()]).hex()
        self._kept = folder / f"{name}.results" if folder else None
        self._facts = folder / f"{name}.facts" if folder else None

    def kept(self) -> Kept:
        """What the last scan found."""
        found = _load(self._kept)
        return found if isinstance(found, Kept) else Kept()

    def prepared(self) -> dict[bytes, Prepared]:
        """What the files of the last scan gave in the first stage, by their digests."""
        found = _load(self._facts)
        return found if isinstance(found, dict) else {}

    def keep(self, kept: Kept, prepared: dict[bytes, Prepared]) -> None:
        """Write what a scan found, for the next."""
        for path, thing in ((self._facts, prepared), (self._kept, kept)):
            if path is not None:
                with contextlib.suppress(OSError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    partial = path.with_suffix(f".{os.getpid()}")
                    partial.write_bytes(pickle.dumps(thing, pickle.HIGHEST_PROTOCOL))
                    partial.replace(path)


def default_folder() -> Path:
    """Where results are kept unless another folder is given."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "dropseed" / "audit"


def digest_of(entry: Entry) -> bytes:
    """The digest of a file's content and name; of one that can't be read, of its name."""
    try:
        data = entry.read()
    except OSError as error:
        data = b"\0" + str(error.errno).encode()
    return _digest([entry.module.encode(), entry.name.encode(errors="replace"), data])


def index_digest(prepared: Iterable[Prepared]) -> bytes:
    """The digest of what files know of each other."""
    return _digest(one.digest for one in prepared)


@cache
def version() -> bytes:
    """The digest of the auditor's own source: any change to a rule is another version."""
    folder = Path(__file__).parent
    return _digest(path.read_bytes() for path in sorted(folder.rglob("*.py")))


def _digest(parts: Iterable[bytes]) -> bytes:
    total = blake2b(digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()


def _load(path: Path | None) -> object:
    if path is None:
        return None
    try:
        return pickle.loads(path.read_bytes())
    except Exception:  # whatever a broken file makes of itself
        return None
