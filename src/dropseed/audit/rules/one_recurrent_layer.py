"""Recurrent layer with a dropout rate and one layer.

The `dropout` of `nn.LSTM`, `nn.GRU` and `nn.RNN` acts between stacked layers: on the outputs of
each but the last. With `num_layers=1` there is nothing between, and nothing is dropped; PyTorch
warns at run time. The model trains without the regularization that its settings claim.

**Wrong**

```python
self.rnn = nn.LSTM(128, 256, dropout=0.5)
```

**Right**

```python
self.rnn = nn.LSTM(128, 256)
self.dropout = nn.Dropout(0.5)  # applied to the outputs in forward
```

or two layers: `nn.LSTM(128, 256, num_layers=2, dropout=0.5)`.

**Silent** where the number of layers is a parameter, where the rate is 0 or depends on a condition,
and in tests.

**When to leave it.** Never: the argument has no effect.

**Source.**
[torch.nn.LSTM](https://docs.pytorch.org/docs/stable/generated/torch.nn.LSTM.html): "introduces a
Dropout layer on the outputs of each LSTM layer except the last layer". Paddle's and Gluon's layers
do the same.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, argument, opaque
from dropseed.audit.reading.rates import Place, inherited, literal
from dropseed.audit.rule import Rule

_TORCH: tuple[Place, Place] = (2, "num_layers"), (5, "dropout")
_GLUON: tuple[Place, Place] = (1, "num_layers"), (3, "dropout")

LAYERS: dict[str, tuple[Place, Place]] = {
    "torch.nn.LSTM": _TORCH,
    "torch.nn.GRU": _TORCH,
    "torch.nn.RNN": ((2, "num_layers"), (6, "dropout")),
    **{f"paddle.nn.{name}": _TORCH for name in ("LSTM", "GRU", "SimpleRNN")},
    **{f"mxnet.gluon.rnn.{name}": _GLUON for name in ("LSTM", "GRU")},
}
"""Canonical name -> where the number of layers and the rate are given."""

DEPTH = 5


def check(file: File) -> Iterator[Hit]:
    """Yield the recurrent layers whose rate has no effect."""
    for call in file.calls:
        if file.in_tests or not _has_rate(call):
            continue
        names = _built(call.func, file)
        if not names or not names <= LAYERS.keys() or opaque(call):
            continue
        if all(_one_layer(call, *LAYERS[name], file) for name in names):
            what = " or ".join(f"`{name.rpartition('.')[2]}`" for name in sorted(names))
            yield file.hit(call, f"`dropout` of {what} acts between layers, and there is one")


def _has_rate(call: ast.Call) -> bool:
    return len(call.args) > 3 or any(keyword.arg == "dropout" for keyword in call.keywords)


def _built(node: ast.expr | None, file: File, depth: int = DEPTH) -> set[str]:
    """The classes that an expression may be, by canonical name; empty if one can't be told."""
    if node is None or depth == 0:
        return set()
    name = file.name_of(node)
    if name:
        return {name if name in LAYERS else inherited(name, file) or name}
    if isinstance(node, ast.IfExp):
        return _all([node.body, node.orelse], file, depth)
    if isinstance(node, ast.Dict):
        return _all(node.values, file, depth)
    if isinstance(node, ast.Subscript):
        return _built(node.value, file, depth)
    if isinstance(node, ast.Call):
        return _looked_up(node, file)
    if isinstance(node, ast.Name | ast.Attribute):
        return _all([at for at in file.values(node) if at is not node], file, depth)
    return set()


def _looked_up(call: ast.Call, file: File) -> set[str]:
    """What `getattr(nn, kind)` may be; what only a recurrent layer takes tells that it is one."""
    if dotted(call.func) != "getattr" or len(call.args) != 2:
        return set()
    if file.name_of(call.args[0]) != "torch.nn":
        return set()
    kind, parent = call.args[1], file.parent(call)
    if isinstance(kind, ast.Constant):
        return {f"torch.nn.{kind.value}"} if isinstance(kind.value, str) else set()
    given = {keyword.arg for keyword in parent.keywords} if isinstance(parent, ast.Call) else set()
    return {"torch.nn.LSTM", "torch.nn.GRU"} if given & {"bidirectional", "num_layers"} else set()


def _all(nodes: list[ast.expr], file: File, depth: int) -> set[str]:
    found = [_built(node, file, depth - 1) for node in nodes]
    return set().union(*found) if all(found) else set()


def _one_layer(call: ast.Call, layers: Place, rate: Place, file: File) -> bool:
    """Whether a rate that is not 0 is given, for one layer."""
    given, number = argument(call, *rate), argument(call, *layers)
    if given is None or literal(given, file) == 0:
        return False
    if any(isinstance(at, ast.IfExp | ast.BoolOp | ast.Compare) for at in ast.walk(given)):
        # `x if x else 0` asks for a rate as much as `x`; `x if layers > 1 else 0` may well be 0.
        if not isinstance(given, ast.IfExp) or not dotted(given.test):
            return False
        if dotted(given.test) != dotted(given.body):
            return False
    return number is None or literal(number, file) == 1


RULE = Rule("DS303", "dropout-of-one-recurrent-layer", Severity.WARNING, __doc__, check)
