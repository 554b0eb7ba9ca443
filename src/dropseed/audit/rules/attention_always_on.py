"""Attention dropout that stays on in evaluation.

`F.scaled_dot_product_attention` has no `training` argument: it drops attention weights at any
`dropout_p` above 0, also after `model.eval()`. The functions of flash-attn and xformers are the
same. Predictions are random, and a cached generation differs from one without a cache.

**Wrong**

```python
class Attention(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)
```

**Right**

```python
class Attention(nn.Module):
    def forward(self, q, k, v):
        rate = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
```

**Silent** where the mode switches the rate, there or where the file calls the function that has it
as an argument; where the call runs in training only; where the rate is always 0; in tests; and
where the code says that it is meant so.

**When to leave it.** Monte-Carlo dropout that says so.

**Source.** [torch.nn.functional.scaled_dot_product_attention](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html)
warns: "This function always applies dropout according to the specified `dropout_p` argument."
[flash-attn](https://github.com/Dao-AILab/flash-attention) says of `dropout_p` that it
"should be set to 0.0 during evaluation".
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.finding import Fix, Severity
from dropseed.audit.reading.active import stays_on
from dropseed.audit.reading.edits import reaches_self
from dropseed.audit.reading.file import File, Hit, argument
from dropseed.audit.reading.functionals import ATTENTION
from dropseed.audit.rule import Rule


def check(file: File) -> Iterator[Hit]:
    """Yield the calls whose rate no mode switches."""
    for call, name in file.calls_to(*ATTENTION):
        position, keyword = ATTENTION[name]
        rate = argument(call, position, keyword)
        if rate is not None and stays_on(call, rate, file):
            what = name.rpartition(".")[2]
            message = f"`{keyword}` of `{what}` is not switched off in evaluation"
            yield file.hit(call, message, _fix(rate, file))


def _fix(rate: ast.expr, file: File) -> Fix | None:
    """Let the mode of the module choose between the rate and 0."""
    if not reaches_self(rate, file):
        return None
    text = file.text(rate)
    if isinstance(rate, ast.IfExp | ast.Lambda | ast.NamedExpr):
        text = f"({text})"
    edit = file.replace(rate, f"{text} if self.training else 0.0")
    return Fix("Switch the rate by `self.training`", (edit,))


RULE = Rule("DS104", "attention-always-on", Severity.ERROR, __doc__, check)
