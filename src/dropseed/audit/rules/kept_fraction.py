"""Fraction kept, passed as the fraction dropped.

TensorFlow 1 and the papers speak of the probability to keep a value or, for whole layers, of its
survival; PyTorch, Keras, TensorFlow 2 and JAX's libraries of the fraction that is dropped. Handed
over unchanged, 0.9 kept becomes 0.9 dropped. It shows as a training loss that hardly falls, while
that of evaluation is much better.

**Wrong**

```python
self.dropout = nn.Dropout(keep_prob)
```

**Right**

```python
self.dropout = nn.Dropout(1 - keep_prob)
```

The other way round, `nn.Dropout(1 - drop_prob)` is the same mistake.

**Silent** on `tf.nn.dropout(x, keep_prob)`, whose second argument was the fraction kept before
TensorFlow 2; on names that say neither kept nor dropped; where a name for the fraction kept is set
to the fraction dropped; and in tests.

**When to leave it.** A variable called `keep_prob` that holds the fraction dropped: rename it.

**Source.** Srivastava et al. 2014, section 4 (p is the probability of *retaining* a unit);
[torch.nn.Dropout](https://docs.pytorch.org/docs/stable/generated/torch.nn.Dropout.html) (p is the
probability to be *zeroed*). KerasCV 0.9.0 builds `Dropout(self.survival_probability)`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, number
from dropseed.audit.reading.rates import PLACES, rates
from dropseed.audit.rule import Rule

_SHARE = r"(?:prob(?:ability|abilities|a|s)?|rate|ratio|p|frac(?:tion)?)"
_KEPT = re.compile(
    rf"(?:\w*_)?(?:keep(?:ing)?|retain|retention|kept|surviv(?:al|e|or))_?{_SHARE}"
    r"|(?:\w*_)?(?:prob|p|rate)_?(?:keep|kept|retain|survive)|\w*drop(?:out)?_keep\w*"
)
_DROPPED = re.compile(rf"(?:\w*_)?drop(?:out|path|_path|_connect|connect)?_?{_SHARE}")
_LOOKUPS = {"get", "getattr", "pop", "float"}


def check(file: File) -> Iterator[Hit]:
    """Yield the rates that are a fraction kept."""
    for call, name, rate in (*rates(file), *_named(file)):
        what = f"`{name.rpartition('.')[2]}` takes the fraction dropped"
        kept = _kept(rate, file)
        dropped = _one_minus_dropped(rate)
        if file.in_tests:
            return
        if kept:
            yield file.hit(call, f"{what}; `{kept}` is the fraction kept")
        elif dropped:
            yield file.hit(call, f"{what}, which is `{dropped}` itself")


def _named(file: File) -> Iterator[tuple[ast.Call, str, ast.expr]]:
    """The arguments that are named as a fraction dropped, of calls of anything else."""
    for call in file.calls:
        for given in call.keywords:
            name = given.arg or ""
            named = "drop" in name and _DROPPED.fullmatch(name)
            if named and file.called(call) not in PLACES:
                yield call, name, given.value


def _kept(rate: ast.expr, file: File) -> str:
    """The name of a fraction kept that a rate is, or ""."""
    word = _word(rate)
    if _KEPT.fullmatch(word.lower()):
        return "" if _set_to_dropped(rate, file) else word
    if isinstance(rate, ast.Name | ast.Attribute):
        words = [_word(value) for value in file.values(rate) if value is not rate]
        if len(words) == 1 and _KEPT.fullmatch(words[0].lower()):
            return words[0]
    return ""


def _one_minus_dropped(rate: ast.expr) -> str:
    """The name of a fraction dropped whose complement a rate is, or ""."""
    if isinstance(rate, ast.BinOp) and isinstance(rate.op, ast.Sub) and number(rate.left) == 1:
        word = _word(rate.right)
        return word if _DROPPED.fullmatch(word.lower()) else ""
    return ""


def _set_to_dropped(rate: ast.expr, file: File) -> bool:
    """Whether a name for the fraction kept is set to something else: `keep_prob = dropout`."""
    values = [value for value in file.values(rate) if value is not rate]
    return any(
        isinstance(value, ast.BinOp) or "drop" in dotted(value).lower() for value in values
    ) and not any(isinstance(value, ast.Constant) for value in values)


def _word(node: ast.expr) -> str:
    """The last name of a name, an attribute or an item asked for by its name."""
    if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in _LOOKUPS:
        texts = [at for at in node.args if isinstance(at, ast.Constant | ast.Name | ast.Attribute)]
        words = [_word(at) for at in texts]
        return next((word for word in words if _KEPT.fullmatch(word.lower())), "")
    if isinstance(node, ast.Subscript):
        node = node.slice
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return dotted(node).rpartition(".")[2]


RULE = Rule("DS302", "kept-fraction-as-rate", Severity.ERROR, __doc__, check)
