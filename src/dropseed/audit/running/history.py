"""What dropout did over a run, site by site, and in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dropseed.audit.running.watch import Event

_SURE = 20.0  # so many values were to drop, and none did: by chance once in exp(20) times
_SIGMAS = 6.0
_NAMED = 3  # so many sites are named, more are counted
_RUNS = 4  # runs of steps that are kept of each site; more are told by counts


@dataclass
class Totals:
    """Sums over the calls of a site that dropped.

    Attributes:
        asked: the lowest and the highest rate asked for.
        draws: how many independent draws are counted: a sample of the batch counts as one where
            the draws can't be.
        dropped: how many of them dropped.
        expected: how many were to.
        variance: of that number.
        exact: whether all draws were counted.
    """

    asked: tuple[float, float] = (math.inf, -math.inf)
    draws: int = 0
    dropped: float = 0.0
    expected: float = 0.0
    variance: float = 0.0
    exact: bool = True

    def add(self, event: Event) -> None:
        """Take a call that dropped."""
        if event.rate is None or event.realised is None:
            return
        self.asked = min(self.asked[0], event.rate), max(self.asked[1], event.rate)
        draws = event.draws or (event.shape[0] if event.shape else 1)
        self.exact = self.exact and event.draws > 0
        self.draws += draws
        self.dropped += draws * event.realised
        self.expected += draws * event.rate
        self.variance += draws * event.rate * (1 - event.rate)

    def remark(self) -> str:
        """What is odd about the fraction dropped, in words; "" if nothing is."""
        low, high = self.asked
        asked = f"asked {low:g}" if low == high else f"asked {low:g} to {high:g}"
        if self.expected > _SURE and self.dropped == 0:
            return f"{asked}, dropped nothing"
        if self.draws - self.expected > _SURE and self.dropped == self.draws:
            return f"{asked}, dropped everything"
        if self.exact and abs(self.dropped - self.expected) > _SIGMAS * self.variance**0.5 + 1:
            return f"{asked}, dropped {self.dropped / self.draws:.3g}"
        return ""


@dataclass
class Site:
    """What one site did.

    Attributes:
        runs: its first states in training, as (first step, last step, state), where a state is
            "on", "off" or "on in some calls"; a step without a call is in none.
        steps: in how many training steps it had each state.
        changes: how many runs there were.
        off: why it was off in training, the last time it was.
        on: why it was on in evaluation, the last time it was; "" if it never was.
        totals: of the calls that dropped.
    """

    runs: list[tuple[int, int, str]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    changes: int = 0
    last: tuple[int, str] = (0, "")
    off: str = ""
    on: str = ""
    totals: Totals = field(default_factory=Totals)

    def train(self, step: int, states: set[bool]) -> None:
        """Take a training step in which the site's calls were active, or not, or both."""
        state = "on in some calls" if len(states) == 2 else "on" if True in states else "off"
        self.steps[state] = self.steps.get(state, 0) + 1
        if self.last == (step - 1, state):
            if self.changes <= _RUNS:
                self.runs[-1] = (self.runs[-1][0], step, state)
        else:
            self.changes += 1
            if self.changes <= _RUNS:
                self.runs.append((step, step, state))
        self.last = (step, state)

    def in_training(self, steps: int) -> str:
        """What it did in so many training steps, in words."""
        told = self._pieces(steps)
        why = f" ({self.off})" if "off" in self.steps and self.off else ""
        if steps == 0:
            return f"{' and '.join(self.steps)} in training{why}"
        if len(told) == 1 and self.changes <= _RUNS:
            state = "active" if told[0][1] == "on" else told[0][1]
            return f"{state} in {_all_steps(steps)}{why}"
        if len(told) == 2 and self.changes <= _RUNS:
            return f"{told[0][1]} until step {told[0][0]}, then {told[1][1]}{why}"
        counts = {**self.steps, "not called": steps - sum(self.steps.values())}
        parts = [f"{state} in {number}" for state, number in counts.items() if number]
        return f"{', '.join(parts)} of {steps} training steps{why}"

    def _pieces(self, steps: int) -> list[tuple[int, str]]:
        """The states one after the other, each with its last step, also those without a call."""
        pieces: list[tuple[int, str]] = []
        at = 0
        for first, last, state in [*self.runs, (steps + 1, steps + 1, "end")]:
            if first > at + 1:
                pieces.append((first - 1, "not called"))
            pieces.append((last, state))
            at = last
        return pieces[:-1]


@dataclass
class History:
    """What the sites of a model did, and in which mode the model was trained.

    Attributes:
        sites: by name, in the order of their first calls.
        steps: how many training steps there were.
        in_eval_mode: the training steps that the model was in eval mode: first, last and number.
        other_steps: how many steps were made by optimizers that hold no parameter of the model.
        evaluated: whether an evaluation was seen.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    steps: int = 0
    in_eval_mode: tuple[int, int, int] = (0, 0, 0)
    other_steps: int = 0
    evaluated: bool = False

    def site(self, name: str) -> Site:
        """A site, new at its first call."""
        return self.sites.setdefault(name, Site())

    def trained_in_eval_mode(self) -> None:
        """Count the present step as one in eval mode."""
        first, _, number = self.in_eval_mode
        self.in_eval_mode = (first or self.steps, self.steps, number + 1)

    def lines(self) -> list[str]:
        """The history in words, a sentence a line."""
        told = [f"{text[0].upper()}{text[1:]}." for text in self._about_the_run()]
        told += [f"{names}: {text}." for names, text in _grouped(self.sites, self._deeds)]
        remarks = _grouped(self.sites, lambda site: site.totals.remark())
        return told + [f"{names}: {text}." for names, text in remarks]

    def _about_the_run(self) -> list[str]:
        told = []
        if not self.sites:
            steps = f" in {_all_steps(self.steps)}" if self.steps else ""
            told.append(f"no dropout call was seen{steps}")
        if self.steps == 0 and self.other_steps:
            told.append(
                "no optimizer step of the model's parameters was seen, but "
                f"{self.other_steps} of other parameters: pass the model that is trained"
            )
        first, last, number = self.in_eval_mode
        if number:
            told.append(f"{_which_steps(first, last, number, self.steps)} trained in eval mode")
        return told

    def _deeds(self, site: Site) -> str:
        parts = []
        if site.steps:
            parts.append(site.in_training(self.steps))
        elif self.steps:
            parts.append("never called in training")
        if site.on:
            parts.append(f"on during validation ({site.on})")
        elif self.evaluated:
            parts.append("off in evaluation")
        return ", ".join(parts)


def _grouped(sites: dict[str, Site], told: Callable[[Site], str]) -> list[tuple[str, str]]:
    """The sites with the same words together, by name or number; those without words left out."""
    groups: dict[str, list[str]] = {}
    for name, site in sites.items():
        groups.setdefault(told(site), []).append(name)
    return [(named(names), text) for text, names in groups.items() if text]


def named(names: Iterable[str]) -> str:
    """Sites as a sentence names them.

    Example:
        >>> named(["a", "b"]), named("abcde")
        ('2 sites (a, b)', '5 sites')
    """
    names = list(names)
    count = f"{len(names)} site{'' if len(names) == 1 else 's'}"
    return f"{count} ({', '.join(names)})" if len(names) <= _NAMED else count


def _all_steps(steps: int) -> str:
    return "the one training step" if steps == 1 else f"all {steps} training steps"


def _which_steps(first: int, last: int, number: int, steps: int) -> str:
    if number == steps:
        return f"{_all_steps(steps)} {'was' if steps == 1 else 'were'}"
    if number == 1:
        return f"step {first} of {steps} was"
    if last - first + 1 == number:
        return f"steps {first} to {last} of {steps} were"
    return f"{number} of {steps} steps, between {first} and {last}, were"
