"""Dropout straight before batch normalization.

In training dropout raises the variance of what it gives, by the factor 1 / (1 - rate) at a mean
of 0, and batch normalization keeps a running average of that variance. In evaluation dropout is
off: the variance falls, the running average does not, and every value leaves the layer with a
wrong scale. It shows as an evaluation that is worse than training would let one expect, and that
gets better when dropout is taken out or the statistics are computed anew with dropout off.

**Wrong**

```python
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(64))
```

**Right**

```python
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5))
```

"Straight" means that between the two are only activations, and changes of shape: along the layers
of a `Sequential`, or along the values of `forward`.

**Silent** where a linear layer, a convolution, pooling, an addition or a concatenation lies
between; before other normalizations, which keep no running average; before batch normalization
without `track_running_stats`; behind alpha dropout, which keeps the variance, and dropped paths;
where the two stand under conditions that exclude each other.

**When to leave it.** The rate is small, and evaluation was compared with the other order.

**Source.** Li, Chen, Hu and Yang 2018, [Understanding the Disharmony between Dropout and Batch
Normalization by Variance Shift](https://arxiv.org/abs/1801.05134), sections 3 and 4.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit, argument
from dropseed.audit.reading.flow import apart, dropped_nothing, flow
from dropseed.audit.reading.steps import Step
from dropseed.audit.rule import Rule

_NAMED = re.compile(r"(?:bn|batch_?norm)(?:_?\d+)?", re.IGNORECASE)
BETWEEN = ("activation", "identity", "reshape", "index")


def check(file: File) -> Iterator[Hit]:
    """Yield the dropouts whose output batch normalization takes."""
    found = flow(file).found(lambda step: _norm(step, file), "elementwise", "spatial")
    for place, step, norm in found:
        message = (
            f"`{step.name}` straight before `{norm.name or 'batch normalization'}`, whose running "
            "variance then holds in training only"
        )
        yield file.hit(place, message)


def _norm(step: Step, file: File) -> Step | None:
    """The batch normalization that takes what a dropout gives."""
    norm = next((at for at in step.after(*BETWEEN) if _shifts(at, file)), None)
    if norm is None or dropped_nothing(step) or apart(step, norm, file):
        return None
    return norm


def _shifts(step: Step, file: File) -> bool:
    if step.family != "batch norm" and not _is_named(step, file):
        return False
    tracked = (
        argument(step.site, 4, "track_running_stats") if isinstance(step.site, ast.Call) else None
    )
    return not (isinstance(tracked, ast.Constant) and tracked.value is False)


def _is_named(step: Step, file: File) -> bool:
    """Whether a layer is of a class that is given, and named as batch normalization: `self.bn`."""
    func = step.node.func if isinstance(step.node, ast.Call) and not step.kind else None
    if not isinstance(func, ast.Attribute) or not _NAMED.fullmatch(func.attr):
        return False
    built = file.values(func)
    return bool(built) and all(
        isinstance(at, ast.Call) and isinstance(at.func, ast.Name) and _is_given(at.func, file)
        for at in built
    )


def _is_given(name: ast.Name, file: File) -> bool:
    """Whether a name is an argument and nothing else."""
    return all(isinstance(at, ast.arg) for at in file.bindings(name.id, name))


RULE = Rule("DS201", "dropout-before-batch-norm", Severity.WARNING, __doc__, check)
