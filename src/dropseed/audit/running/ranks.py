"""Whether the ranks of a distributed run share masks: what each drew once, in the run's store.

Nothing waits: a rank that writes no ledger, or is late, is left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import count
from typing import Any

from dropseed.audit.running.watch import Event

_OPENED = count()  # ledgers so far: the same number on every rank
_CHANCE = -20.0  # masks that are equal by chance more often than exp(this) say nothing


class Ranks:
    """The masks of one step, by site, on this rank and on the others."""

    def __init__(self) -> None:
        self._number = next(_OPENED)
        self._masks: dict[str, list[str]] = {}
        self._chance: dict[str, float] = {}
        self._told = False

    def wanted(self) -> bool:
        """Whether the events that come should carry hashes."""
        return not self._told and _world()[1] > 1

    def add(self, event: Event) -> None:
        """Take an event of the step that is compared."""
        if event.active and event.digest and not self._told:
            self._masks.setdefault(event.site, []).append(event.digest)
            chance = self._chance.get(event.site, 0.0) + _log_chance(event)
            self._chance[event.site] = chance

    def tell(self) -> None:
        """Write this rank's masks to the store, at the end of the step."""
        if self.wanted() and self._masks:
            sure = {s: m for s, m in self._masks.items() if self._chance[s] < _CHANCE}
            _store().set(self._key(_world()[0]), json.dumps(sure))
            self._told = True

    def compared(self) -> tuple[int, list[str], list[str]]:
        """The number of ranks that told, the sites that share a mask on all, and those that don't.

        A site that only some ranks have is in neither list.
        """
        size = _world()[1]
        if not self._told or size < 2:
            return 0, [], []
        keys = [self._key(number) for number in range(size)]
        told = [json.loads(_store().get(key)) for key in keys if _store().check([key])]
        common = [site for site in told[0] if all(site in masks for masks in told)]
        shared = [site for site in common if all(m[site] == told[0][site] for m in told)]
        return len(told), shared, [site for site in common if site not in shared]

    def _key(self, rank: int) -> str:
        return f"dropseed/ledger/{self._number}/{rank}"


def _log_chance(event: Event) -> float:
    """The logarithm of the probability that two ranks' masks are equal by chance."""
    if event.key is not None:
        return -math.inf
    rate = event.rate or 0.0
    equal = rate**2 + (1 - rate) ** 2
    return event.draws * math.log(equal) if 0 < equal < 1 else 0.0


def _world() -> tuple[int, int]:
    """This process's rank and the number of them; (0, 1) outside of a distributed run."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def _store() -> Any:
    from torch.distributed import distributed_c10d

    default: Callable[[], Any] = distributed_c10d._get_default_store
    return default()
