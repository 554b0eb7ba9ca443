"""The variance shift that dropout makes at the input of a batch normalisation.

Li, Chen, Hu and Yang 2018, "Understanding the disharmony between dropout and batch normalization by
variance shift", sections 3 and 4: the variance that normalisation has learned in training, with
dropout's noise in it, isn't the one that it meets in evaluation.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from dropseed.audit.running.graph import Call
from dropseed.audit.running.passes import Passes, Watched
from dropseed.audit.running.place import feeding
from dropseed.audit.running.watch import Note

LARGEST_SHIFT = 1.25
"""DS504 reports a variance that is more than this many times the one in the other mode."""

_CERTAIN = 3  # standard errors


@dataclass(frozen=True)
class Norm:
    """A batch normalisation.

    Attributes:
        name: its qualified name; for a function that of the module that calls it, a colon and the
            function.
        ratio: the variance of its input in evaluation over that in training. The mean variance of
            the channels is meant, and in training that of several passes.
        error: the ratio's standard error, from the differences between the passes.
        fed_by: the names of the active dropout sites before it, up to the normalisations before.
    """

    name: str
    ratio: float
    error: float
    fed_by: tuple[str, ...]


def norms(passes: Passes) -> Iterator[Norm]:
    """The batch normalisations of a model, in order.

    Left out are those whose variance can't be compared: it is 0 or not finite, or there is but one
    value a channel, or the call comes in one mode only.

    Args:
        passes: the model's passes.
    """
    evaluation = _by_place(passes.evaluation[0])
    training = [_by_place(one) for one in passes.training]
    for key, (call, _) in training[0].items():
        values = [one[key][1] for one in training if key in one]
        reference = evaluation[key][1] if key in evaluation else math.nan
        mean = statistics.fmean(values)
        if not (0 < mean < math.inf and 0 < reference < math.inf):
            continue
        error = statistics.stdev(values) / math.sqrt(len(values)) / mean if values[1:] else 0.0
        ratio = reference / mean
        sites = [event.site for source in feeding(call) for event in source.events]
        yield Norm(key[0], ratio, ratio * error, tuple(dict.fromkeys(sites)))


def shifted(norm: Norm) -> Note | None:
    """DS504: a shift that dropout makes, is large, and is no chance."""
    far = max(norm.ratio, 1 / norm.ratio) > LARGEST_SHIFT
    if not (norm.fed_by and far and abs(norm.ratio - 1) > _CERTAIN * norm.error):
        return None
    sites = ", ".join(f"`{site}`" for site in norm.fed_by)
    return Note(
        "DS504",
        norm.name,
        f"the variance of its input in evaluation is {norm.ratio:.2f} times that in training, for "
        f"which it is normalised; dropout before it: {sites}",
    )


def _by_place(watched: Watched) -> dict[tuple[str, int], tuple[Call, float]]:
    """The variances by the name of the call and how often it came before."""
    found: dict[tuple[str, int], tuple[Call, float]] = {}
    for call in watched.flow.calls:
        if call in watched.variances:
            name = call.path if call.module is not None else f"{call.path}:{call.name}".lstrip(":")
            times = sum(name == other for other, _ in found)
            variance = watched.variances[call]
            found[name, times] = call, math.nan if variance is None else variance
    return found
