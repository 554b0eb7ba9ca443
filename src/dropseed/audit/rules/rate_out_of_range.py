"""Rate outside [0, 1], or a rate of 1.

A rate is the fraction that is dropped. 50 is no percentage: PyTorch refuses it when the layer is
built, Keras too, but a functional may only fail at the first batch, and Equinox takes it. A rate of
1 drops everything: the loss stays where it is, and all gradients behind the layer are 0.

**Wrong**

```python
drop = nn.Dropout(50)
```

**Right**

```python
drop = nn.Dropout(0.5)
```

**Silent** on anything but a number that is written out: there, in the one assignment to its name,
or, above 1, as a default; and in tests, where wrong rates are given on purpose.

**When to leave it.** A rate of 1 that is to silence a branch: say so with a comment and an ignore.

**Source.** [torch.nn.Dropout](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html)
and [keras.layers.Dropout](https://keras.io/api/layers/regularization_layers/dropout/) define the
rate as a fraction between 0 and 1.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.rates import by_default, literal, rates
from dropseed.audit.rule import Rule


def check(file: File) -> Iterator[Hit]:
    """Yield the rates that are none."""
    if file.in_tests:
        return
    for call, name, rate in rates(file):
        value = _given(rate, file)
        if value is None or 0 <= value < 1:
            continue
        what = f"`{name.rpartition('.')[2]}` at rate {value:g}"
        if value == 1:
            yield file.hit(call, f"{what} drops everything")
        elif value > 1:
            yield file.hit(call, f"{what}: a rate is a fraction in [0, 1], no percentage")
        else:
            yield file.hit(call, f"{what}: a rate is a fraction in [0, 1]")


def _given(rate: ast.expr, file: File) -> float | None:
    """The rate that is written out; a default counts above 1, since 1 and -1 may mean "none"."""
    if isinstance(rate, ast.Constant) and rate.value is True:
        return 1
    value = literal(rate, file)
    if value is None:
        default = by_default(rate, file)
        return default if default is not None and default > 1 else None
    return value


RULE = Rule("DS301", "rate-out-of-range", Severity.ERROR, __doc__, check)
