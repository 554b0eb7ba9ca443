"""`training=True` written out where evaluation runs, too.

The forward pass is the same code in training and in evaluation. With `training=True` written into
it, dropout is on in both, and predictions are random. In Keras the argument overrides what
`model.predict` and `model(x, training=False)` ask for.

**Wrong**

```python
class Block(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)
```

**Right**

```python
class Block(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=self.training)
```

and in Keras `self.dropout(x, training=training)` in `call`, or no argument at all: Keras passes the
mode on.

**Silent** where the code runs in training only, as under `if self.training` and in a `train_step`;
in what is named or documented as Monte-Carlo dropout; in a loop that samples several passes; where
the layer is known to be no dropout; in tests.

**When to leave it.** Monte-Carlo dropout (Gal and Ghahramani 2016): say so in a docstring or a
comment.

**Source.** [torch.nn.functional.dropout](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.dropout.html);
[keras.layers.Dropout](https://keras.io/api/layers/regularization_layers/dropout/): `training`
chooses between dropping and doing nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Fix, Severity
from dropseed.audit.reading.active import stays_on
from dropseed.audit.reading.edits import reaches_self
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, argument
from dropseed.audit.reading.functionals import functional_calls
from dropseed.audit.reading.names import KERAS_DROPOUTS
from dropseed.audit.reading.switch import calls_of
from dropseed.audit.rule import Rule

_GENERATOR = re.compile(r"generator|pix2?pix|\bgan\b", re.IGNORECASE)
_EVALUATES = re.compile(r"_*(?:predict|evaluat|validat|infer|test)\w*|\w+_(?:prediction|inference)")
_KERAS = {"keras", "tensorflow", "tf_keras"}
_RANGES = {"range", "trange", "tqdm", "tqdm.trange", "tf.range"}
_MAY_DROP = re.compile(r"keras\.layers\.\w*(?:RNN|LSTM|GRU|Attention|Bidirectional)\w*")


def check(file: File) -> Iterator[Hit]:
    """Yield the calls that are told to train."""
    for call, name, function in functional_calls(file):
        if function.switch is None:
            continue
        switch = argument(call, function.switch, function.switch_name)
        rate = argument(call, function.rate, function.rate_name)
        if switch is not None and _true(switch) and stays_on(call, rate, file):
            yield _hit(call, name.rpartition(".")[2], switch, file)
    if any(target.split(".")[0] in _KERAS for target in file.facts.imports.values()):
        for call in file.calls:
            if _keras_layer_drops(call, file) and not _samples(call, file):
                yield _hit(call, file.text(call.func), None, file)


def _true(switch: ast.expr) -> bool:
    return isinstance(switch, ast.Constant) and switch.value is True


def _keras_layer_drops(call: ast.Call, file: File) -> bool:
    """Whether a call tells a dropout layer of Keras, or what may hold one, to train in evaluation.

    The second is known in the `call` of a layer or model, and in a function that is named for it.
    """
    switch = argument(call, 99, "training")
    if switch is None or not _true(switch) or not stays_on(call, None, file):
        return False
    if _generates(call, file):
        return False
    layers = [call.func] if isinstance(call.func, ast.Call) else file.values(call.func)
    kinds = {file.layer_kind(layer) for layer in layers if isinstance(layer, ast.Call)}
    if kinds and kinds <= KERAS_DROPOUTS.keys():
        return True
    if any(kind.startswith("keras.layers.") and not _MAY_DROP.match(kind) for kind in kinds):
        return False
    owner, function = file.class_of(call), file.function_of(call)
    if function is None or not isinstance(call.func, ast.Name | ast.Attribute):
        return False
    if function.name == "call" and owner is not None and file.inherits(owner, "keras."):
        return bool(kinds)
    last = dotted(call.func).rpartition(".")[2]
    plain = owner is not None and "call" in owner.methods
    if last == "self" and plain and "drop" not in file.source.text.lower():
        return False
    if function.name.startswith("_") and not any(calls_of(function, file)):
        return False  # who calls it, and when, stands elsewhere
    return _EVALUATES.fullmatch(function.name) is not None and last == last.lower()


def _generates(call: ast.Call, file: File) -> bool:
    """Whether a call belongs to a generator whose noise is dropout (Isola et al. 2017, pix2pix).

    Such code also runs its batch normalization in training mode.
    """
    function = file.function_of(call)
    words = [
        file.name,
        *(at.name for at in file.ancestors(call) if isinstance(at, ast.FunctionDef | ast.ClassDef)),
    ]
    return any(_GENERATOR.search(word) for word in words) or any(
        isinstance(node, ast.Call)
        and file.layer_kind(node.func) == "keras.layers.BatchNormalization"
        and isinstance(argument(node, 99, "training"), ast.Constant)
        for node in ast.walk(function or file.tree)
    )


def _samples(call: ast.Call, file: File) -> bool:
    """Whether a call is repeated on one input: Monte-Carlo dropout, whatever it is named."""
    for at in file.ancestors(call):
        loops = at.generators if isinstance(at, ast.ListComp | ast.GeneratorExp) else [at]
        for loop in loops:
            over = loop.iter if isinstance(loop, ast.For | ast.comprehension) else None
            if isinstance(over, ast.Call) and dotted(over.func) in _RANGES:
                return True
    return False


def _hit(call: ast.Call, what: str, switch: ast.expr | None, file: File) -> Hit:
    fix = None
    if switch is not None and reaches_self(call, file):
        fix = Fix("Pass `self.training`", (file.replace(switch, "self.training"),))
    return file.hit(call, f"`training=True` keeps `{what}` on in evaluation, too", fix)


RULE = Rule("DS105", "hard-coded-training", Severity.ERROR, __doc__, check)
