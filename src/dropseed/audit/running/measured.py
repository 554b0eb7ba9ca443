"""What a dropout call did, measured while it runs."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from dropseed.audit.running.asked import MASK, ZEROS, Asked
from dropseed.audit.running.draws import Draw, Sums, hash_of, is_plain, recorded, sums


@dataclass
class Call:
    """A call while it runs.

    Attributes:
        asked: what it asks for.
        site: where it is.
        before: its input's sums, if its zeros tell what is dropped.
        after: its output's.
        draws: its random operations.
    """

    asked: Asked
    site: str
    before: Sums | None = None
    after: Sums | None = None
    draws: list[Draw] = field(default_factory=list)

    def begin(self, exits: ExitStack, digests: bool) -> None:
        """Measure before the call, and record its draws until `exits` close."""
        if self.asked.active is False:
            return
        if ZEROS in self.asked.ways and is_plain(self.asked.input):
            self.before = sums(self.asked.input)
        if not self.asked.own:  # whose kernels draw by no operation of torch's
            self.draws = exits.enter_context(recorded(digests))

    def end(self, output: Any) -> None:
        """Measure after the call; `output` is None where it failed."""
        if self.before and is_plain(output):
            self.after = sums(output)
        if self.asked.active is None:
            self._judge()

    def _judge(self) -> None:
        """Whether it dropped, where only the call shows that."""
        lost = self.before and self.after and self.after.nonzero < self.before.nonzero
        asked = self.asked
        asked.active = bool(self.draws or lost)
        if not asked.active and asked.rate == 0:
            asked.why = "p=0"
        elif not asked.active and asked.why.endswith("True"):
            asked.why += ", but it drew nothing"
        elif asked.active and asked.why.endswith("False"):
            asked.why += ", but it dropped"

    def realised(self) -> tuple[float | None, int]:
        """The fraction dropped, and the number of independent draws if that is known, else 0."""
        if not self.asked.active:
            return None, 0
        for way in self.asked.ways:
            found = self._by_mask() if way == MASK else self._by_zeros()
            if found[0] is not None:
                return found
        return None, 0

    def ratio(self) -> float | None:
        """The output's mean magnitude over the input's."""
        if self.asked.active and self.before and self.after and self.before.magnitude:
            return self.after.magnitude / self.before.magnitude
        return None

    def digest(self) -> str:
        """A hash of the mask, or of what it is made from; "" if there is none."""
        if not self.asked.active:
            return ""
        if self.asked.own:
            return hash_of(self.asked.key.encode()) if self.asked.key else ""
        return "".join(draw.digest for draw in self.draws)

    def _by_mask(self) -> tuple[float | None, int]:
        masks = [draw for draw in self.draws if draw.dropped is not None and draw.size]
        size = sum(draw.size for draw in masks)
        return (sum(draw.dropped or 0 for draw in masks) / size if size else None), size

    def _by_zeros(self) -> tuple[float | None, int]:
        noise = any("normal" in draw.operation or "randn" in draw.operation for draw in self.draws)
        before, after = self.before, self.after
        if noise or not before or not after or not before.nonzero:
            return None, 0
        if after.nonzero > before.nonzero:
            return None, 0
        draws = before.nonzero if self._is_elementwise(before.size) else 0
        return 1 - after.nonzero / before.nonzero, draws

    def _is_elementwise(self, size: int) -> bool:
        if self.asked.own:
            return self.asked.elementwise
        return "block" not in self.asked.kind.lower() and size in [one.size for one in self.draws]
