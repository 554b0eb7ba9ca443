"""Two dropouts in a row, or dropout straight before max-pooling.

Two dropouts of rates p and q, with nothing between but activations, are one of rate 1 - (1 - p)(1
- q): 0.5 twice drops three values of four. Mostly one of them is forgotten: a block ends with
dropout, and the next one begins with it.

Max-pooling picks the largest of a window. Before it, in training, the largest that was kept is
scaled up and picked; in evaluation, without dropout, the largest of all. The two differ in their
mean, and the rate of what is passed on is far less than the rate that was given.

**Wrong**

```python
classifier = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))
features = nn.Sequential(nn.Conv1d(3, 64, 3), nn.Dropout(0.3), nn.MaxPool1d(2))
```

**Right**

```python
classifier = nn.Sequential(nn.Dropout(0.5), nn.ReLU(), nn.Linear(64, 10))
features = nn.Sequential(nn.Conv1d(3, 64, 3), nn.MaxPool1d(2), nn.Dropout(0.3))
```

**Silent** on dropped paths behind dropout; on spatial dropout before pooling, which makes no
difference; where the two dropouts exclude each other.

**When to leave it.** Max-pooling dropout is meant (Wu and Gu 2015), with their pooling in
evaluation.

**Source.** Wu and Gu 2015, [Towards dropout training for convolutional neural
networks](https://arxiv.org/abs/1512.00242), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.flow import apart, dropped_nothing, flow
from dropseed.audit.reading.steps import Step
from dropseed.audit.rule import Rule

BETWEEN = ("activation", "identity", "reshape", "index")


def check(file: File) -> Iterator[Hit]:
    """Yield the second of two dropouts, and the dropouts before max-pooling."""
    found = flow(file).found(lambda step: _mistake(step, file), "elementwise", "spatial")
    for place, _, message in found:
        yield file.hit(place, message)


def _mistake(step: Step, file: File) -> str | None:
    if dropped_nothing(step):
        return None
    first = next((at for at in step.before(*BETWEEN) if _drops(at, step)), None)
    if first is not None and not apart(first, step, file):
        return f"two dropouts in a row: the first is in line {file.source.span(first.site).line}"
    pool = next((at for at in step.after(*BETWEEN) if at.family == "max pool"), None)
    if pool is None or step.family != "elementwise" or apart(step, pool, file):
        return None
    return f"dropout straight before `{pool.name}`, which picks what was kept"


def _drops(step: Step, other: Step) -> bool:
    return (
        step.family in ("elementwise", "spatial")
        and step.site is not other.site
        and not dropped_nothing(step)
    )


RULE = Rule("DS205", "dropouts-in-a-row", Severity.NOTE, __doc__, check, preview=True)
