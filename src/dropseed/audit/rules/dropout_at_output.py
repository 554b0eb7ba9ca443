"""Dropout after the output layer, or between logits and loss.

What the output layer gives are the logits: the model's answer. Dropout sets some of them to 0 and
scales the others up, so that in training the loss judges answers that the model never gives
otherwise: a class whose logit is dropped can't be told right. It shows as a training loss that
stays high. Dropout belongs before the output layer.

**Wrong**

```python
class Classifier(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.fc(x))
```

**Right**

```python
class Classifier(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(64, num_classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.fc(self.dropout(x))
```

A layer counts as the output layer if its size is named as a number of classes, labels or words
(`num_classes`, `config.num_labels`, `vocab_size`), if it is named `classifier` or `lm_head`, or
if a forward pass ends in it, dropout, and a sigmoid or softmax.

**Silent** where a block or feature extractor ends in dropout; where something else than a loss or
a softmax takes the values; where nothing names the layer as the output.

**When to leave it.** Never for a model's answer.

**Source.** Srivastava et al. 2014, section 4 and appendix A: dropout acts on input and hidden
units.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.apply import FORWARD
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, argument
from dropseed.audit.reading.flow import Flow, apart, dropped_nothing, flow
from dropseed.audit.reading.steps import Step
from dropseed.audit.rule import Rule

BETWEEN = ("activation", "identity", "reshape", "index", "softmax", "record")
CLASSES = re.compile(
    r"_*(?:n|num|nb|number|no)_?(?:of_?)?(?:\w+_)?(?:class(?:es)?|labels?|tags?|categories|categs?|intents?)"
    r"|(?:n|num)_?(?:cls|items?)|nclass(?:es)?|class_?(?:num|count|number|size)|(?:label|tag)_?(?:num|count|size)"
    r"|(?:\w+_)?vocab(?:ulary)?_?(?:size|len)|n_?vocab|num_?(?:tokens|words|embeddings)"
)
NAMED = re.compile(
    r"classifier|(?:lm|cls|mlm)_head|classification_head|logits(?:_(?:layer|proj))?|fc_cls"
)
MOVING = ("identity", "reshape", "index")
GATES = re.compile(
    r"att|gat(?:e|ing)|rout|weight|scor|mask|pool|fus|expert|align|squeeze|excit|(?-i:SE[A-Z])|mix|point"
    r"|select|cell|adj|(?<!wl)edge|memory|switch|decay|policy|actor",
    re.IGNORECASE,
)
"""Names of what weighs values, or picks from them."""
_LAYERS = ("linear", "conv1", "conv2", "conv3")
LOSS = re.compile(r"loss|criterion|cross_?entropy", re.IGNORECASE)
LOSSES = re.compile(r"crossentropy|nll|bce")


def check(file: File) -> Iterator[Hit]:
    """Yield the dropouts that drop answers."""
    whole = flow(file)
    found = whole.found(lambda step: _mistake(step, whole, file), "elementwise", "spatial")
    for place, _, message in found:
        yield file.hit(place, message)


def _mistake(step: Step, whole: Flow, file: File) -> str | None:
    if dropped_nothing(step):
        return None
    takers = [*step.after(*BETWEEN, "sum"), *step.passed(*BETWEEN, "sum")]
    loss = next((at for at in takers if _judges(at)), None)
    if loss is not None and not apart(step, loss, file):
        return f"dropout straight before `{loss.name}`: it drops logits"
    layer = next((at for at in step.before(*BETWEEN) if _answers(at, file)), None)
    if layer is None:
        layer = next(
            (at for at in step.before(*MOVING) if _gives_odds(at, step, whole, file)), None
        )
    if layer is None or apart(layer, step, file):
        return None
    softmax = any(at.family == "softmax" for at in step.passed(*MOVING, "softmax"))
    if not softmax and not _ends(step, whole, file):
        return None
    return f"dropout after the output layer, which line {file.source.span(layer.site).line} builds"


def _gives_odds(layer: Step, step: Step, whole: Flow, file: File) -> bool:
    """Whether a forward pass ends in a layer, dropout, and a sigmoid or softmax; no gate does."""
    last = {at.name.lower() for at in step.passed(*BETWEEN)} & {"sigmoid", "softmax"}
    if layer.family not in _LAYERS or not last:
        return False
    function, owner = file.function_of(step.node), file.class_of(step.node)
    if owner is None or function is None or function.name not in FORWARD:
        return False
    names = [dotted(at).rpartition(".")[2] for at in _targets(layer.site, file)]
    if any(map(GATES.search, [owner.node.name, *names])):
        return False
    ends = whole.returned[function].everything if function in whole.returned else frozenset()
    return bool(ends & step.passed(*BETWEEN))


def _judges(step: Step) -> bool:
    """Whether a step is a loss of logits, or the log of a softmax."""
    name = step.name.replace("_", "").lower()
    return name.startswith("logsoftmax") or (step.family == "loss" and bool(LOSSES.search(name)))


def _answers(step: Step, file: File) -> bool:
    """Whether a layer is named as the one that gives the answer."""
    call = step.site
    if step.family not in _LAYERS or not isinstance(call, ast.Call):
        return False
    torch = step.kind.startswith("torch.")
    names = ("out_features", "out_channels") if torch else ("units", "features", "filters")
    size = next((at for at in (argument(call, int(torch), name) for name in names) if at), None)
    factors = [] if size is None else _factors(size)
    return any(_counts_classes(at, file) for at in factors) or any(
        NAMED.fullmatch(dotted(target).rpartition(".")[2]) for target in _targets(call, file)
    )


def _counts_classes(node: ast.expr, file: File) -> bool:
    """Whether a size is named as a number of classes; a local one must always be that."""
    if not CLASSES.fullmatch(dotted(node).rpartition(".")[2]):
        return False
    values = file.values(node) if isinstance(node, ast.Name) else []
    names = [dotted(at).rpartition(".")[2] for at in values]
    return len(names) < 2 or all(map(CLASSES.fullmatch, names))


def _factors(node: ast.expr) -> list[ast.expr]:
    """The factors of a product: `num_tasks * num_classes`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return [*_factors(node.left), *_factors(node.right)]
    return [node]


def _targets(call: ast.AST, file: File) -> list[ast.expr]:
    """The names to which a layer is assigned."""
    parent = file.parent(call)
    return parent.targets if isinstance(parent, ast.Assign) else []


def _ends(step: Step, whole: Flow, file: File) -> bool:
    """Whether a function returns what a dropout gives, or a sequence ends in it, and no more."""
    same = [at for at in whole.steps if at.site is step.site]
    if not all(_told(user, file) for at in same for user in at.after(*BETWEEN)):
        return False
    applied = [at for at in same if at.node not in whole.sequences]
    given = {at for value in whole.returned.values() for at in value.everything}
    return not applied or any(given & at.passed(*BETWEEN) for at in applied)


def _told(step: Step, file: File) -> bool:
    """Whether a step is a loss, or in a function that computes one, by its name."""
    call, function = step.node, file.function_of(step.node)
    name = dotted(call.func) if isinstance(call, ast.Call) else ""
    names = (name.rpartition(".")[2], function.name if function else "")
    return step.family == "loss" or any(map(LOSS.search, names))


RULE = Rule("DS202", "dropout-at-output", Severity.WARNING, __doc__, check)
