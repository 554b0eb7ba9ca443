"""Rate far from what is usual.

At a rate of 0.8 or more a layer passes a fifth of its values or less; few networks train well so.
It may be a fraction kept that was passed as the fraction dropped: papers and TensorFlow 1 give the
fraction kept. Whole channels are dropped at 0.2 to 0.3, and inside a Transformer 0.1 is usual;
more than half of the channels, or half of a Transformer's values, is far from custom. Between
dense layers 0.5 is usual.

**Wrong**

```python
self.dropout = nn.Dropout(0.9)
```

**Right**

```python
self.dropout = nn.Dropout(0.1)
```

**Silent** on rates that are given from outside without a default, and in tests.

**When to leave it.** A search found the rate, or the input is huge and redundant, as one-hot words
are.

**Source.** Srivastava et al. 2014, appendix A.4 (0.5 to 0.2 dropped in hidden layers); Tompson et
al. 2015, section 3.1 (whole channels); Vaswani et al. 2017, section 5.4 (0.1).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.names import DROPOUTS
from dropseed.audit.reading.rates import TRANSFORMERS, by_default, rates
from dropseed.audit.rule import Rule

HIGH = 0.8
"""From here on anywhere."""
HIGH_FOR_CHANNELS = 0.5
"""Above it, where whole channels go."""
HIGH_IN_TRANSFORMER = 0.5
"""From here on in a Transformer."""


def check(file: File) -> Iterator[Hit]:
    """Yield the rates that few networks bear."""
    if file.in_tests:
        return
    for call, name, rate in rates(file):
        value = by_default(rate, file)
        if value is None or value >= 1:
            continue
        what = f"`{name.rpartition('.')[2]}` drops {value:.0%}"
        if value >= HIGH:
            yield file.hit(call, f"{what}; was the fraction kept meant?")
        elif DROPOUTS.get(name) == "spatial" and value > HIGH_FOR_CHANNELS:
            yield file.hit(call, f"{what}; 20% to 30% is usual for whole channels")
        elif value >= HIGH_IN_TRANSFORMER and _in_transformer(call, name, file):
            yield file.hit(call, f"{what}; 10% is usual in a Transformer")


def _in_transformer(call: ast.Call, name: str, file: File) -> bool:
    """Whether a layer is a Transformer's, or belongs to a class that is called so."""
    owner = file.class_of(call)
    return name in TRANSFORMERS or (owner is not None and "Transformer" in owner.node.name)


RULE = Rule("DS304", "unusual-rate", Severity.NOTE, __doc__, check)
