"""Spatial dropout on data without space.

`nn.Dropout1d`, `nn.Dropout2d` and `nn.Dropout3d` drop whole channels: axis 1 of (N, C, ...). What
a linear layer gives has no space behind that axis. Of flat data (N, D) `Dropout1d` takes N for
the channels and drops whole examples; `Dropout2d` drops single values, warns, and is to become an
error in PyTorch. Of a sequence (N, T, D) axis 1 is time: whole positions go, with all of their
features, where features were meant to.

**Wrong**

```python
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)
        self.dropout = nn.Dropout2d(0.5)

    def forward(self, x):
        x = x.view(-1, 320)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))
```

**Right**

```python
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(320, 50), nn.Linear(50, 10)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        x = x.view(-1, 320)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))
```

On a sequence bring the channels to axis 1: `self.dropout(x.transpose(1, 2)).transpose(1, 2)`.

**Silent** where the axes are moved or the data is reshaped before, as in `x.unsqueeze(2)` and
`x.permute(0, 2, 1)`; where the linear layer may work along time; in Keras, whose channels are
last.

**When to leave it.** Whole positions are to be dropped, as in word dropout: then say so in a
comment.

**Source.**
[torch.nn.Dropout2d](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout2d.html) and
[torch.nn.Dropout1d](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout1d.html)
document the shapes; Tompson et al. 2015, section 3.2 (SpatialDropout).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.axes import axes
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.flow import apart, flow
from dropseed.audit.reading.steps import Step
from dropseed.audit.rule import Rule

ELEMENTS = ("activation", "identity", "elementwise", "spatial", "alpha", "norm")
"""What leaves the axes as they are and may work on any data."""
LAST = ("linear", "recurrent", "embedding")
"""What has its features in the last axis."""
_MOVED = re.compile(r"transpose|permute|rearrange|swapaxes|movedim|moveaxis|\.m?T\b|mixer|time")
_WORDS = re.compile(r"word|token|position|step|frame", re.IGNORECASE)

_EFFECTS = {
    "1d": "drops whole examples of flat data (N, D)",
    "2d": "takes flat data (N, D), which has no space, for now: it is to become an error",
    "3d": "drops whole examples of flat data (N, D), and is to refuse it",
}


def check(file: File) -> Iterator[Hit]:
    """Yield the spatial dropouts whose input has no space, or its features in the last axis."""
    for place, _, message in flow(file).found(lambda step: _mistake(step, file), "spatial"):
        yield file.hit(place, message)


def _mistake(step: Step, file: File) -> str | None:
    if not step.kind.startswith(("torch.", "dropseed.")) or _channels_last(step):
        return None
    if any(axes(at) == 2 and not apart(at, step, file) for at in step.inputs):
        effect = _EFFECTS.get(step.name[-2:].lower(), "takes flat data (N, D), which has no space")
        return f"`{step.name}` {effect}"
    source = _features_last(step, file)
    if source is None:
        return None
    return f"`{step.name}` straight after `{source.name}`, whose features are in the last axis"


def _channels_last(step: Step) -> bool:
    return isinstance(step.site, ast.Call) and any(
        keyword.arg == "channels_last" for keyword in step.site.keywords
    )


def _features_last(step: Step, file: File) -> Step | None:
    """The layer behind which a dropout would drop positions.

    A linear layer may work along time, before the one-dimensional dropout of channels, where its
    class moves axes or no other linear layer follows; and whole words may be meant to go behind an
    embedding, if a name says so.
    """
    families: tuple[str, ...] = LAST
    if step.kind.lower().endswith("1d"):
        families = ("recurrent",)
        if not _WORDS.search(ast.unparse(step.node)):
            families += ("embedding", "linear") if _in_a_row(step, file) else ("embedding",)
    return next(
        (
            at
            for at in step.before(*ELEMENTS)
            if at.family in families and not apart(at, step, file)
        ),
        None,
    )


def _in_a_row(step: Step, file: File) -> bool:
    """Whether a linear layer takes what a dropout gives, in a class that moves no axes."""
    owner = file.class_of(step.site)
    moved = owner is None or _MOVED.search(ast.unparse(owner.node))
    return not moved and any(at.family == "linear" for at in step.after(*ELEMENTS))


RULE = Rule("DS203", "spatial-dropout-without-space", Severity.ERROR, __doc__, check)
