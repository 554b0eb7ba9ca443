"""Functional dropout that stays on in evaluation.

`F.dropout(x, p)` drops, whatever mode the module is in: its `training` argument is True by default,
and nothing connects it to `model.eval()`. Predictions are then random: the same input gives another
output at each call, and the accuracy is lower than the model's. It shows as a validation loss
that is noisier and higher than that of the same data in training, or as two equal requests with
different answers. The same holds for `hk.dropout` and `tf.nn.dropout`, which have no such argument,
and for `training=self.train`, which is a method of the module and so always true;
`training=not self.training` drops in evaluation only.

**Wrong**

```python
class Block(nn.Module):
    def forward(self, x):
        return F.dropout(self.linear(x), 0.5)
```

**Right**

```python
class Block(nn.Module):
    def forward(self, x):
        return F.dropout(self.linear(x), 0.5, training=self.training)
```

or a layer, built in `__init__`: `self.dropout = nn.Dropout(0.5)`.

**Silent** where the call runs in training only: under `if self.training`, behind an early
return, at a rate that the mode switches, in a function that is called from such places only or is
named `training_step`; where the rate is an argument and nobody in the file gives one above 0; where
noise in evaluation is the design and the code says so (Monte-Carlo dropout, a prenet, an
augmentation); in a class that can be called and is no module, as a transform of data; and in tests.

**When to leave it.** Monte-Carlo dropout (Gal and Ghahramani 2016) wants dropout in evaluation.
Write `training=True` and say so in the function's docstring.

**Source.** [torch.nn.functional.dropout](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html)
documents `training=True` as the default;
[torchvision.ops.stochastic_depth](https://docs.pytorch.org/vision/stable/generated/torchvision.ops.stochastic_depth.html)
likewise. In torchvision 0.14.1 the Swin Transformer's attention had this mistake.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.finding import Fix, Severity
from dropseed.audit.reading.active import stays_on
from dropseed.audit.reading.edits import add_argument, reaches_self
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, argument, opaque
from dropseed.audit.reading.functionals import FUNCTIONALS, Functional, functional_calls
from dropseed.audit.reading.switch import always_true, implied
from dropseed.audit.rule import Rule


def check(file: File) -> Iterator[Hit]:
    """Yield the calls that drop in evaluation."""
    for call, name, function in functional_calls(file):
        switch = _switch(call, function)
        if switch is not None and not file.in_tests and implied(switch, True, file) == "eval":
            what = name.rpartition(".")[2]
            yield file.hit(call, f"`{what}` drops in evaluation and not in training")
            continue
        if not function.default or opaque(call) or not _certain(call, name, file):
            continue
        if switch is not None and not always_true(switch, file):
            continue
        rate = argument(call, function.rate, function.rate_name)
        if stays_on(call, rate, file):
            yield _hit(call, name, function, switch, file)
    for call in file.calls_by_name.get("functools.partial", ()):
        if _partial_stays_on(call, file):
            message = "this dropout drops in evaluation, too: no call of it gives `training=`"
            yield file.hit(call, message)


def _switch(call: ast.Call, function: Functional) -> ast.expr | None:
    if function.switch is None:
        return None
    return argument(call, function.switch, function.switch_name)


def _certain(call: ast.Call, name: str, file: File) -> bool:
    """Whether it is certain that a call is part of a model.

    In a class that can be called and is no module it may be a transform of data. Keras's and
    TensorFlow's count in the methods of a layer, outside of functions for `cond`.
    """
    owner = file.class_of(call)
    if not name.startswith(("tensorflow.", "keras.")):
        return owner is None or "__call__" not in owner.methods or file.is_module(owner)
    return (
        owner is not None
        and file.scope_of(call) is file.method_of(call)
        and file.inherits(owner, "keras.")
        and not any(keyword.arg == "keep_prob" for keyword in call.keywords)
    )


def _partial_stays_on(partial: ast.Call, file: File) -> bool:
    """Whether `partial(F.dropout, p=0.1)` gets a name that is called without a switch."""
    function = FUNCTIONALS.get(file.name_of(partial.args[0])) if partial.args else None
    given = {keyword.arg for keyword in partial.keywords}
    if not function or not function.default or given & {None, function.switch_name}:
        return False
    place: ast.AST | None = file.parent(partial)
    while isinstance(place, ast.IfExp):
        place = file.parent(place)
    target = dotted(place.targets[0]) if isinstance(place, ast.Assign) else ""
    calls = [call for call in file.calls if target and dotted(call.func) == target]
    rate = argument(partial, function.rate, function.rate_name)
    return any(stays_on(call, rate, file) for call in calls) and not any(
        opaque(call) or _switch(call, function) is not None for call in calls
    )


def _hit(
    call: ast.Call, name: str, function: Functional, switch: ast.expr | None, file: File
) -> Hit:
    what = name.rpartition(".")[2]
    if switch is not None:
        fix = Fix("Pass `self.training`", (file.replace(switch, "self.training"),))
        message = f"`{file.text(switch)}` is a method: `{what}` drops in evaluation, too"
        return file.hit(call, message, fix)
    if function.switch is None:
        return file.hit(call, f"`{what}` drops in evaluation, too: nothing asks for the mode here")
    message = f"`{what}` without `{function.switch_name}=` drops in evaluation, too"
    return file.hit(call, message, _fix(call, function.switch_name, file))


def _fix(call: ast.Call, keyword: str, file: File) -> Fix | None:
    """Pass `training=self.training`, in a method of a module."""
    if not reaches_self(call, file):
        return None
    edit = add_argument(call, f"{keyword}=self.training", file)
    return Fix(f"Pass `{keyword}=self.training`", (edit,)) if edit else None


RULE = Rule("DS101", "dropout-always-on", Severity.ERROR, __doc__, check)
