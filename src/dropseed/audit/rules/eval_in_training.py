"""Training that goes on in evaluation mode.

`model.eval()` holds until `model.train()`. Where validation runs inside the training loop and
nothing switches back before the next optimizer step, dropout is on up to the first validation and
off from then on, and BatchNorm's statistics stop. It shows as a training loss that drops at the
first validation, and as overfitting that no rate changes.

**Wrong**

```python
model.train()
for epoch in range(epochs):
    for x, y in loader:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
    model.eval()
    validate(model, held_out)
```

**Right**

```python
for epoch in range(epochs):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()
    model.eval()
    validate(model, held_out)
```

**Silent** where `train()` comes before the next step, in the loop or in a function that it calls;
where the loop ends after `eval()`; on copies, teachers and frozen parts, which no optimizer of the
file trains; and in tests.

**When to leave it.** Fine-tuning in evaluation mode on purpose: say so beside the `eval()`.

**Source.** [torch.nn.Module.eval](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.eval)
is `train(False)`: a state, not a scope.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.conditions import counter, held
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, Scope
from dropseed.audit.reading.holders import ANY, covers, same
from dropseed.audit.reading.modes import Event, Modes
from dropseed.audit.reading.switch import leaves, mode_at
from dropseed.audit.rule import Rule

_RETURNS = (ast.Return, ast.Raise)
_EXITS = (*_RETURNS, ast.Break)
_PLAIN = re.compile(r"_?(?:model|net|network|classifier|clf)_?")
_COPIES = re.compile(
    r"(?:^|[._])(?:ema|avg|ref)(?:$|[._])|teacher|target|momentum|average|frozen|reference", re.I
)


def check(file: File) -> Iterator[Hit]:
    """Yield the `eval()` calls after which training goes on."""
    called = file.facts.attributes
    if file.in_tests or "step" not in called or not {"eval", "train"} & called:
        return
    modes = Modes(file)
    seen: set[ast.AST] = set()
    for scope in modes.scopes:
        events = modes.events(scope)
        if not any(event.kind == "step" for event in events):
            continue
        for event in events:
            if event.kind != "eval" or event.node in seen or event.model == ANY:
                continue
            if _stuck(event, events, scope, file) and _trained(event, events):
                seen.add(event.node)
                message = f"`{event.model}` is in evaluation mode at the next optimizer step, too"
                yield file.hit(event.node, message)


def _stuck(event: Event, events: list[Event], scope: Scope, file: File) -> bool:
    """Whether in a loop around an `eval()` the next step comes before any `train()`."""
    for loop in _loops(event.place, scope, file):
        if isinstance(loop.body[-1], _EXITS) or _leaves(event.place, loop, file):
            continue
        if _in_one_round(event.place, loop, file):
            continue
        inside = [other for other in events if loop in file.ancestors(other.place)]
        at = inside.index(event)
        optimizers = {other.model for other in inside if other.kind == "step"}
        for other in [*inside[at + 1 :], *inside[:at]]:
            if other.kind == "step" and _of(other, event.model, len(optimizers) == 1):
                if mode_at(event.place, file) == "eval" and mode_at(other.place, file) == "train":
                    continue
                return True
            if other.kind in ("train", "unknown") and covers(other.model, event.model):
                break
    return False


def _loops(node: ast.AST, scope: Scope, file: File) -> Iterator[ast.For | ast.While]:
    """The loops of a function around a node, from the inside out."""
    for parent in file.ancestors(node):
        if parent is scope:
            return
        if isinstance(parent, ast.For | ast.While):
            yield parent


def _leaves(node: ast.AST, loop: ast.For | ast.While, file: File) -> bool:
    """Whether what follows a node in its blocks always leaves the loop, or it is a handler's."""
    child = node
    for parent in file.ancestors(node):
        if parent is loop:
            return False
        if isinstance(parent, ast.ExceptHandler):
            return True
        if isinstance(parent, ast.If) and child in parent.body and leaves(parent.body):
            innermost = next(_loops(parent, file.tree, file), None)
            inner = innermost is not loop and not isinstance(parent.body[-1], _RETURNS)
            if not inner and not isinstance(parent.body[-1], ast.Continue):
                return True
        child = parent
    return False


def _in_one_round(node: ast.AST, loop: ast.For | ast.While, file: File) -> bool:
    """Whether a node runs in one round of a loop only, the last as a rule: `i == len(loader)`."""
    name = counter(loop) if isinstance(loop, ast.For) else ""
    return bool(name) and any(
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Eq if truth else ast.NotEq)
        and any(
            dotted(side.left if isinstance(side, ast.BinOp) else side) == name
            and not (isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mod))
            for side in (test.left, test.comparators[0])
        )
        for test, truth in held(node, file)
    )


def _trained(event: Event, events: list[Event]) -> bool:
    """Whether the model that an `eval()` switches is the one whose weights the steps change."""
    model = event.model
    if _COPIES.search(model):
        return False
    for other in events:
        if other.kind == "train" and same(other.model, model):
            return True
        if other.kind == "step" and other.weights is not None and _of(other, model, False):
            return True
    # Nothing is known of it: what is evaluated after a step has been trained by it.
    before = events[: events.index(event)]
    plain = _PLAIN.fullmatch(model.rpartition(".")[2]) is not None
    return plain and any(other.kind == "step" for other in before)


def _of(step: Event, model: str, alone: bool) -> bool:
    """Whether a step changes a model's weights; one that is alone does if nothing is known."""
    return alone if step.weights is None else model.rpartition(".")[2] in step.weights


RULE = Rule("DS108", "training-in-evaluation-mode", Severity.ERROR, __doc__, check)
