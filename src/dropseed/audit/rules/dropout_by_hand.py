"""Dropout written by hand that scales wrongly or not at all, or has no train switch.

Of what dropout keeps the expectation has to stay: kept values are divided by the fraction kept.
Without that, or with the fraction dropped in its place, a layer sees other sums in training than
in evaluation, and its outputs there are off by a constant factor. A mask that is drawn whatever
the mode makes predictions random.

**Wrong**

```python
class Dropout(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        mask = torch.bernoulli(torch.full_like(x, 1 - self.p))
        return x * mask
```

**Right**

```python
class Dropout(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        mask = torch.bernoulli(torch.full_like(x, 1 - self.p))
        return x * mask / (1 - self.p)
```

or `F.dropout(x, self.p, self.training)`, which is faster and draws from the same generator.

**Silent** on the scaling where the mask drops words, tokens, edges, paths, labels or modalities,
or a factor can't be followed; on the switch where the code asks for a mode in any way; where noise
or samples are meant; in tests.

**When to leave it.** The model multiplies by the fraction kept in evaluation, out of sight of
this file.

**Source.** Srivastava et al. 2014, section 10 (inverted dropout); Hinton et al. 2012 (scaling in
evaluation).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.active import stays_on
from dropseed.audit.reading.apply import FORWARD
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import Class, File, Function, Hit, argument, number
from dropseed.audit.reading.switch import calls_of
from dropseed.audit.rule import Rule

_UNIFORM = {
    "torch.rand",
    "torch.rand_like",
    "numpy.random.rand",
    "numpy.random.random",
    "numpy.random.random_sample",
    "numpy.random.uniform",
    "tensorflow.random.uniform",
    "tensorflow.random_uniform",
    "jax.random.uniform",
    "keras.random.uniform",
    "keras.backend.random_uniform",
}
_FILLED = {"full": 1, "full_like": 1, "new_full": 1, "fill_": 0, "fill": 0}
_DRAWS = {
    "bernoulli", "bernoulli_", "binomial", "sample", "rand", "rand_like", "random",
    "uniform", "random_sample", "random_uniform", "uniform_",
}  # fmt: skip
_OTHER = re.compile(
    r"word|token|edge|node|adj|graph|patch|label|class|cond|modal|path|depth|layer_?drop|block|span"
    r"|frame|augment|noise|noisy|corrupt|sampl|schedul|teacher|guid|null|mlm|masked|mask_|connect"
    r"|sensor|view|drop\w*feature|sent|item|history|user|seq|unit|batch|time|row|column|zone|swap|mix|cut|aug|data",
    re.IGNORECASE,
)
"""Words for what is dropped whole, and for noise that is no dropout."""
_DROPOUT = re.compile(r"drop_?out|keep_?prob|drop_?(?:rate|prob|path|p\b)", re.IGNORECASE)
_NOISE = re.compile(
    r"augment|noise|noisy|corrupt|sampl|schedul|teacher|guid|null|mlm|init|generat|data|collat",
    re.IGNORECASE,
)
"""Words for what is random on purpose."""
_MODE = re.compile(
    r"(?<!pre)(?<!cons)train|(?<!retri)eval|(?<!la)test|infer|deterministic|phase|mode\b|predict",
    re.IGNORECASE,
)
"""Words of code that asks for the mode."""


def check(file: File) -> Iterator[Hit]:
    """Yield the masks that are wrong."""
    if file.in_tests:
        return
    for call in file.calls:
        name = _last(call.func)
        function = file.function_of(call) if name in _DRAWS else None
        if function is None or not _drops(call, function, file):
            continue
        drawn = _drawn(call, name, file)
        message = _mistake(*drawn, function, file) if drawn else ""
        if message:
            yield file.hit(call, message)


def _drops(call: ast.Call, function: Function, file: File) -> bool:
    """Whether a function drops something, as far as names tell."""
    statement = _lines(file.statement_of(call), file)
    return bool(_DROPOUT.search(_names(function, file)) or _DROPOUT.search(statement))


def _names(function: Function, file: File) -> str:
    owner = file.class_of(function)
    return f"{function.name} {owner.node.name if owner else ''}"


def _lines(node: ast.stmt, file: File) -> str:
    return "\n".join(file.source.lines[node.lineno - 1 : node.end_lineno])


def _drawn(call: ast.Call, name: str, file: File) -> tuple[ast.expr, ast.expr, bool] | None:
    """What a call draws as a mask, a fraction, and whether that is kept; else it is dropped."""
    known = file.called(call)
    if known in _UNIFORM or (name == "uniform_" and [*map(number, call.args)] in ([], [0, 1])):
        return _floored(call, file) or _compared(_under_name(call, file), file)
    kept: ast.expr | None = None
    if known == "torch.bernoulli":
        kept = argument(call, 1, "p")
        if kept is None and call.args and _is_filled(call.args[0], file):
            kept = call.args[0]
    elif known in ("jax.random.bernoulli", "numpy.random.binomial"):
        trials = argument(call, 0, "n")
        if known.startswith("jax") or (trials is not None and number(trials) == 1):
            kept = argument(call, 1, "p")
    elif name in ("bernoulli", "bernoulli_") and not known:
        kept = argument(call, 0, "p")
    elif name == "sample" and isinstance(call.func, ast.Attribute):
        law = call.func.value
        if isinstance(law, ast.Call) and dotted(law.func).endswith("Bernoulli"):
            kept = argument(law, 0, "probs")
    return None if kept is None else (call, kept, True)


def _under_name(call: ast.expr, file: File) -> ast.expr:
    """The first use of the name to which an expression is set, if there is one; else itself."""
    parent = file.parent(call)
    name = dotted(parent.targets[0]) if isinstance(parent, ast.Assign) else ""
    function = file.function_of(call)
    uses = _uses(name, function) if name and function else []
    return uses[0] if uses else call


def _uses(name: str, function: Function) -> list[ast.Name]:
    """Where a local name is read, from the first line on."""
    found = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    return sorted(found, key=lambda at: (at.lineno, at.col_offset))


def _floored(call: ast.expr, file: File) -> tuple[ast.expr, ast.expr, bool] | None:
    """`floor(rand() + kept)`, `(kept + rand()).int()`, in one expression or two."""
    total = file.parent(call)
    if not isinstance(total, ast.BinOp) or not isinstance(total.op, ast.Add):
        return None
    node = _under_name(total, file) if isinstance(file.parent(total), ast.Assign) else total
    user = file.parent(node)
    called = file.parent(user) if isinstance(user, ast.Attribute) else user
    if not isinstance(called, ast.Call) or _last(called.func) not in _FLOORS:
        return None
    return called, total.right if total.left is call else total.left, True


_FLOORS = {"floor", "floor_", "int", "trunc"}


def _last(func: ast.expr) -> str:
    """The last word of what is called."""
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _compared(call: ast.expr, file: File) -> tuple[ast.expr, ast.expr, bool] | None:
    """`rand() < kept`, `rand() > dropped`."""
    parent = file.parent(call)
    if not isinstance(parent, ast.Compare) or len(parent.ops) != 1:
        return None
    sign = parent.ops[0]
    if not isinstance(sign, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
        return None
    left = parent.left is call
    other = parent.comparators[0] if left else parent.left
    return parent, other, isinstance(sign, ast.Lt | ast.LtE) == left


def _filled(node: ast.expr) -> ast.expr | None:
    """The number with which a tensor is filled: `torch.full(size, p)`, `ones_like(x) * p`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        name = node.func.attr
        return argument(node, _FILLED[name], "fill_value") if name in _FILLED else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        for one, other in ((node.left, node.right), (node.right, node.left)):
            if isinstance(one, ast.Call) and dotted(one.func).endswith(("ones", "ones_like")):
                return other
    return None


def _is_filled(node: ast.expr, file: File, depth: int = 3) -> bool:
    """Whether a tensor holds one number everywhere, or 1 - that number."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and number(node.left) == 1:
        return depth > 0 and _is_filled(node.right, file, depth - 1)
    if isinstance(node, ast.Name) and depth:
        values = file.values(node)
        return len(values) == 1 and _is_filled(values[0], file, depth - 1)
    return _filled(node) is not None


# ---- what is done with a mask -----------------------------------------------------------------


def _mistake(mask: ast.expr, rate: ast.expr, is_kept: bool, function: Function, file: File) -> str:
    """What is wrong with a mask; "" if nothing, or if it can't be told."""
    if _is_unswitched(mask, rate, function, file):
        return "this mask is drawn in evaluation, too: nothing asks for the mode here"
    if not _multiplied(mask, function, file):
        return ""
    kept = _text(rate, file) if is_kept else _rest(_text(rate, file))
    factors = {_text(at, file) for at in _divisors(function)}
    if _rest(kept) in factors and kept not in factors:
        return f"the mask keeps `{kept}` of the values and the scale is 1 / ({_rest(kept)})"
    if _OTHER.search(_names(function, file)):
        return ""
    if not factors and not _scales_otherwise(mask, function, kept, file):
        return f"the mask keeps `{kept}` of the values, which nothing scales by 1 / ({kept})"
    return ""


def _is_unswitched(mask: ast.expr, rate: ast.expr, function: Function, file: File) -> bool:
    """Whether a mask is drawn in evaluation, too, in a module's forward pass or a part of it."""
    owners = _owners(function, file)
    asked = [function, *(at.node for at in owners if function.name not in FORWARD)]
    if not owners or any(map(_asks_for_mode, asked)):
        return False
    if _NOISE.search(_names(function, file)) or "augment" in file.name:
        return False
    if isinstance(rate, ast.BinOp):
        rate = rate.right  # of `1 - rate`
    place = mask if isinstance(mask, ast.Call) else next(_calls(mask), None)
    return place is not None and stays_on(place, rate, file)


def _owners(function: Function, file: File) -> list[Class]:
    """The modules whose method a function is, or which call it."""
    places = [function] if file.class_of(function) else calls_of(function, file)
    owners = [owner for owner in map(file.class_of, places) if owner is not None]
    return [at for at in owners if file.is_module(at) or file.inherits(at, "keras.")]


def _asks_for_mode(code: ast.AST) -> bool:
    """Whether code may ask for the mode in any way, docstrings and what it only keeps aside."""
    waiting = [code]
    while waiting:
        node = waiting.pop()
        if any(map(_MODE.search, _words(node))):
            return True
        if isinstance(node, ast.Call) and _last(node.func) in ("train", "eval"):
            waiting += [*node.args, *node.keywords]
        elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
            waiting += node.body  # what it is given counts where it is used
        elif not _is_kept(node) and not _is_text(node):
            waiting += ast.iter_child_nodes(node)
    return False


def _is_kept(node: ast.AST) -> bool:
    """Whether a statement only keeps a name: `self.mode = mode`."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Name)
        and isinstance(node.targets[0], ast.Attribute)
    )


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _words(node: ast.AST) -> list[str]:
    """The names and texts that a node itself holds, those of functions and classes aside."""
    held = (getattr(node, at, None) for at in ("id", "attr", "arg", "value"))
    return [at for at in held if isinstance(at, str)]


def _calls(node: ast.expr) -> Iterator[ast.Call]:
    return (at for at in ast.walk(node) if isinstance(at, ast.Call))


def _multiplied(mask: ast.expr, function: Function, file: File) -> bool:
    """Whether values are multiplied by a mask, which has no other use."""
    names, found = {""}, False
    waiting: list[ast.expr] = [mask]
    while waiting:
        end, product = _carried(waiting.pop(), file)
        found = found or product
        parent = file.parent(end)
        if isinstance(parent, ast.Assign) and len(parent.targets) == 1:
            name = dotted(parent.targets[0])
            if not name or "." in name:
                return False
            if name not in names and not product:
                names.add(name)
                waiting += [at for at in _uses(name, function) if at.lineno > parent.lineno]
        elif isinstance(parent, ast.AugAssign):
            found = found or isinstance(parent.op, ast.Mult)
        elif not product and not isinstance(parent, ast.Expr):
            return False
    return found


def _carried(node: ast.expr, file: File) -> tuple[ast.expr, bool]:
    """The largest expression that is a mask, scaled or cast, or that is multiplied by it."""
    product = False
    while True:
        parent = file.parent(node)
        if isinstance(parent, ast.BinOp) and isinstance(parent.op, ast.Mult | ast.Div):
            if isinstance(parent.op, ast.Div) and parent.right is node:
                return node, product
            other = parent.right if parent.left is node else parent.left
            product = product or (isinstance(parent.op, ast.Mult) and _is_data(other))
        elif isinstance(parent, ast.Attribute) and parent.attr in _PASSING:
            pass
        elif isinstance(parent, ast.Call) and (parent.func is node or _casts(parent, node)):
            product = product or dotted(parent.func).endswith((".mul", ".multiply"))
        else:
            return node, product
        node = parent


_PASSING = {
    "float", "half", "double", "to", "type", "type_as", "astype", "cuda", "data", "detach",
    "contiguous", "view", "expand", "expand_as", "unsqueeze", "mul", "mul_", "div", "div_",
}  # fmt: skip


_CASTS = {
    "Variable", "cast", "mul", "multiply", "asarray", "tensor", "div", "FloatTensor",
}  # fmt: skip


def _casts(call: ast.Call, node: ast.expr) -> bool:
    return dotted(call.func).rpartition(".")[2] in _CASTS and node in call.args


def _is_data(node: ast.expr) -> bool:
    """Whether a factor is more than a number: a name, or a call of something."""
    return not isinstance(node, ast.Constant | ast.BinOp) and "scale" not in dotted(node)


def _divisors(function: Function) -> Iterator[ast.expr]:
    """Everything by which a function divides."""
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node.right if isinstance(node, ast.BinOp) else node.value
        elif isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in _DIVIDING:
            yield from node.args[-1:]
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("div", "div_"):
            yield from node.args[:1]


_DIVIDING = {"div", "divide", "true_divide", "truediv"}


def _scales_otherwise(mask: ast.expr, function: Function, kept: str, file: File) -> bool:
    """Whether a function, or its class, may scale in another way than by dividing."""
    owner = file.class_of(function)
    whole = owner.node if owner else function
    if re.search(r"scal|\*\*\s*-|inverted|renorm|normaliz", _lines(function, file)):
        return True
    drawing = {*ast.walk(mask)}
    return any(
        kept in (_text(at.left, file), _text(at.right, file))
        for at in ast.walk(whole)
        if isinstance(at, ast.BinOp) and isinstance(at.op, ast.Mult) and at not in drawing
    )


# ---- the fraction kept, as text ---------------------------------------------------------------


def _text(node: ast.expr, file: File, depth: int = 4) -> str:
    """An expression with local names written out, so that equal ones are equal texts."""
    if isinstance(node, ast.Name) and depth:
        values = file.values(node)
        if len(values) == 1 and values[0] is not node:
            return _text(values[0], file, depth - 1)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub) and number(node.left) == 1:
        return _rest(_text(node.right, file, depth))
    value, filled = number(node), _filled(node)
    if filled is not None:
        return _text(filled, file, depth)
    return ast.unparse(node) if value is None else f"{value:g}"


def _rest(text: str) -> str:
    """1 - a text."""
    if text.startswith("1 - "):
        return text.removeprefix("1 - ")
    try:
        return f"{1 - float(text):g}"
    except ValueError:
        return f"1 - {text}"


RULE = Rule("DS402", "dropout-by-hand", Severity.WARNING, __doc__, check)
