"""Where a rate is written: which argument of which layer or function it is, and its value."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, argument, default_of, number
from dropseed.audit.reading.functionals import ATTENTION, FUNCTIONALS
from dropseed.audit.reading.names import DROPOUTS

Place = tuple[int, str]
"""Position and keyword of an argument; position 99 where only the keyword is meant."""

_KEYWORDS = {
    "keras": "rate",
    "flax": "rate",
    "timm": "drop_prob",
}
"""How a library's dropout layers call their rate, if not `p`."""

_LAYERS: dict[str, tuple[Place, ...]] = {
    "torch.nn.MultiheadAttention": ((2, "dropout"),),
    "torch.nn.TransformerEncoderLayer": ((3, "dropout"),),
    "torch.nn.TransformerDecoderLayer": ((3, "dropout"),),
    "torch.nn.Transformer": ((5, "dropout"),),
    "torch.nn.LSTM": ((5, "dropout"),),
    "torch.nn.GRU": ((5, "dropout"),),
    "torch.nn.RNN": ((6, "dropout"),),
    "torchvision.ops.DropBlock2d": ((0, "p"),),
    "torchvision.ops.DropBlock3d": ((0, "p"),),
    **{
        f"keras.layers.{name}": ((99, "dropout"), (99, "recurrent_dropout"))
        for name in ("LSTM", "GRU", "SimpleRNN", "LSTMCell", "GRUCell", "SimpleRNNCell")
    },
    "keras.layers.MultiHeadAttention": ((3, "dropout"),),
    "flax.linen.MultiHeadDotProductAttention": ((99, "dropout_rate"),),
    "flax.linen.MultiHeadAttention": ((99, "dropout_rate"),),
    "flax.linen.SelfAttention": ((99, "dropout_rate"),),
    "flax.nnx.MultiHeadAttention": ((99, "dropout_rate"),),
    "equinox.nn.MultiheadAttention": ((99, "dropout_p"),),
    "tensorflow.layers.Dropout": ((0, "rate"),),
    "tensorflow.layers.dropout": ((1, "rate"),),
}

PLACES: dict[str, tuple[Place, ...]] = {
    **{name: ((at.rate, at.rate_name),) for name, at in FUNCTIONALS.items()},
    **{name: (place,) for name, place in ATTENTION.items()},
    **{name: ((0, _KEYWORDS.get(name.partition(".")[0], "p")),) for name in DROPOUTS},
    **_LAYERS,
    # The second argument of tf.nn.dropout was the fraction kept before TensorFlow 2.
    "tensorflow.nn.dropout": ((99, "rate"),),
}
"""Canonical name -> the arguments that are rates."""

TRANSFORMERS = frozenset(name for name in PLACES if "Transformer" in name or "Multi" in name)
"""The layers of Transformers."""

DEPTH = 4


def rates(file: File) -> Iterator[tuple[ast.Call, str, ast.expr]]:
    """Each rate that a file gives: the call, the canonical name of what is called, the rate.

    A scanned class that inherits from a dropout layer counts, unless it has a constructor of its
    own, whose arguments may mean something else.

    Args:
        file: the file.

    Returns:
        An iterator in the order of the text.
    """
    for call in file.calls:
        name = file.called(call)
        if name and name not in PLACES:
            name = inherited(name, file)
        for place in PLACES.get(name, ()):
            rate = argument(call, *place)
            if rate is not None:
                yield call, name, rate


def inherited(name: str, file: File) -> str:
    """The framework's class that a scanned class is but for its name, or "".

    Args:
        name: the canonical name of what is called.
        file: where that is done.

    Returns:
        The name of the class whose constructor is called in fact.
    """
    for ancestor in file.project.ancestors(name) if file.project.class_facts(name) else ():
        facts = file.project.class_facts(ancestor)
        if facts is None:
            return ancestor
        if "__init__" in facts.methods:
            return ""
    return ""


def literal(value: ast.expr | None, file: File) -> float | None:
    """The number that an expression is: written there, or in the one assignment to its name.

    Args:
        value: a number, a name, an attribute of self, or any other expression.
        file: where it stands.

    Returns:
        The number; None where it can't be told, and for the default of a parameter or a field.
    """
    return _value(value, file, False)


def by_default(value: ast.expr | None, file: File) -> float | None:
    """Like `literal`, but where nobody has given another number: defaults count.

    Args:
        value: a number, a name, an attribute of self, or any other expression.
        file: where it stands.

    Returns:
        The number, or None.
    """
    return _value(value, file, True)


def _value(value: ast.expr | None, file: File, defaults: bool) -> float | None:
    for _ in range(DEPTH):
        found = number(value)
        if found is not None or value is None:
            return found
        value = _origin(value, file, defaults)
    return None


def _origin(value: ast.expr, file: File, defaults: bool) -> ast.expr | None:
    """The expression that a name or an attribute is set to, if that is done in one place only."""
    if isinstance(value, ast.Name):
        bindings = file.bindings(value.id, value)
        if len(bindings) != 1:
            return None
        if isinstance(bindings[0], ast.arg):
            function = file.function_of(bindings[0]) if defaults else None
            return default_of(bindings[0], function) if function else None
        return file.assigned(bindings[0])
    if isinstance(value, ast.Attribute) and dotted(value.value) == "self":
        values = file.values(value)
        field = any(isinstance(file.scope_of(at), ast.ClassDef) for at in values)
        return values[0] if len(values) == 1 and (defaults or not field) else None
    return None
