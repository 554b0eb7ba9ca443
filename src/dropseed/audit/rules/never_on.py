"""Functional dropout that never drops.

`F.alpha_dropout` and `F.feature_alpha_dropout` have `training=False` as their default, unlike
`F.dropout`: without the argument they return their input, in training, too. So do timm's and mmcv's
`drop_path`. Nothing fails; the model overfits as one without dropout does, and another rate changes
nothing.

**Wrong**

```python
class Block(nn.Module):
    def forward(self, x):
        return F.alpha_dropout(F.selu(self.linear(x)), 0.1)
```

**Right**

```python
class Block(nn.Module):
    def forward(self, x):
        return F.alpha_dropout(F.selu(self.linear(x)), 0.1, training=self.training)
```

**Silent** where `training` is given, as `False`, too, or may be hidden in `*args` or `**options`;
at a rate of 0; and in tests.

**When to leave it.** Never: a call that does nothing can go.

**Source.** [torch.nn.functional.alpha_dropout](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.alpha_dropout.html)
and [feature_alpha_dropout](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.feature_alpha_dropout.html)
document `training=False` as the default. There is no fix to apply: it would change the training.
"""

from __future__ import annotations

from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit, argument, number, opaque
from dropseed.audit.reading.functionals import functional_calls
from dropseed.audit.rule import Rule


def check(file: File) -> Iterator[Hit]:
    """Yield the calls that return their input."""
    if file.in_tests:
        return
    for call, name, function in functional_calls(file):
        if function.default is not False or function.switch is None or opaque(call):
            continue
        if argument(call, function.switch, function.switch_name) is not None:
            continue
        if number(argument(call, function.rate, function.rate_name)) != 0:
            what = name.rpartition(".")[2]
            yield file.hit(call, f"`{what}` without `{function.switch_name}=` never drops")


RULE = Rule("DS102", "dropout-never-on", Severity.ERROR, __doc__, check)
