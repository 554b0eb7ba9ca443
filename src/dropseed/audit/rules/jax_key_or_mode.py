"""Dropout in JAX with a key used twice, without a key, or in the wrong mode.

JAX has no hidden generator and its libraries no global mode: the key and the switch are passed by
hand, at each call, and three things go wrong. One key given to two dropouts drops the same places
in both, so that what the first has spared the second spares, too; so does one key for every turn
of a loop. `deterministic=False` or `inference=False` written out in a forward pass or in an
evaluation drops in evaluation, and so does `deterministic=train`. And a Flax module that is applied
in training without `rngs={"dropout": key}` fails.

**Wrong**

```python
import haiku as hk


def block(x, key):
    h = hk.dropout(key, 0.1, jax.nn.relu(x))
    return x + hk.dropout(key, 0.1, h @ h.T)
```

**Right**

```python
import haiku as hk


def block(x, key):
    first, second = jax.random.split(key)
    h = hk.dropout(first, 0.1, jax.nn.relu(x))
    return x + hk.dropout(second, 0.1, h @ h.T)
```

**Silent** where a key is set anew between two uses or they exclude each other; where the switch is
a variable; where noise in evaluation is the design and the code says so; on modules whose dropout
can't be seen; and in tests.

**When to leave it.** Dropouts that are to drop alike, as in a locked or shared mask.

**Source.** [JAX's pseudorandom numbers](https://docs.jax.dev/en/latest/random-numbers.html): "never
reuse keys"; [flax.linen.Dropout](https://flax.readthedocs.io/en/stable/api_reference/flax.linen/layers.html#flax.linen.Dropout);
[equinox.nn.Dropout](https://docs.kidger.site/equinox/api/nn/dropout/). eqxvision 0.2.0's Swin
Transformer drops twice with one key.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.active import given_for
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import (
    Class,
    File,
    Function,
    Hit,
    Scope,
    argument,
    number,
    opaque,
)
from dropseed.audit.reading.modes import called_function
from dropseed.audit.reading.names import JAX_DROPOUTS
from dropseed.audit.reading.switch import by_design, implied, leaves, trains_only
from dropseed.audit.rule import Rule

_LIBRARIES = frozenset({"jax", "flax", "haiku", "equinox", "haliax"})
_KEYS = ("key", "rng", "dropout_rng", "dropout_key", "rng_key", "prng_key", "prng")
_OFF = frozenset({"deterministic", "inference"})
_ON = frozenset({"train", "training", "is_training"})
_EVALUATES = re.compile(
    r"_?(?:eval|evaluate|evaluation|valid|validate|validation|val|test|predict|infer|inference)(?:_.*)?"
)
_APPLIED = frozenset({"apply", "apply_fn"})
_MODELS = frozenset({"model", "net", "network", "module"})
_ATTENTION = frozenset(
    f"flax.linen.{name}"
    for name in ("MultiHeadDotProductAttention", "MultiHeadAttention", "SelfAttention")
)


def check(file: File) -> Iterator[Hit]:
    """Yield the dropouts whose key or switch is wrong."""
    if file.in_tests or not any(
        name.partition(".")[0] in _LIBRARIES for name in file.facts.imports.values()
    ):
        return
    yield from _reused(file)
    for call in file.calls:
        turned = next((at for at in call.keywords if _turned(at, file)), None)
        if turned is not None:
            yield file.hit(turned, f"`{file.text(turned)}` is the wrong way round")
        switch = _hard_coded(call)
        if switch is None:
            continue
        if _drops(call, file) or _evaluates(call, file):
            if not trains_only(call, file) and not by_design(call, file):
                yield file.hit(switch, f"`{file.text(switch)}` drops in evaluation, too")
        elif _without_key(call, file):
            yield file.hit(call, 'dropout needs a key here: `rngs={"dropout": key}`')


# ---- one key for two ---------------------------------------------------------------------


def _reused(file: File) -> Iterator[Hit]:
    used: dict[tuple[Scope, str], list[ast.Call]] = {}
    for call in file.calls:
        key = _key(call, file) or _handed_on(call, file)
        if isinstance(key, ast.Name):
            used.setdefault((file.scope_of(call), key.id), []).append(call)
    for (scope, name), calls in used.items():
        bound = file.bound_in(scope).get(name, [])
        for second, call in enumerate(calls):
            before = calls[:second]
            if any(_both(first, call, bound, file) for first in before) or _repeated(
                call, bound, scope, file
            ):
                yield file.hit(call, f"`{name}` is the key of two dropouts, which then drop alike")


def _key(call: ast.Call, file: File) -> ast.expr | None:
    """The key that a call of a dropout takes."""
    if file.called(call) == "haiku.dropout":
        return argument(call, 0, "rng")
    if file.called(call) == "jax.random.bernoulli":
        around = f"{getattr(file.function_of(call), 'name', '')} {file.text(call)}"
        owner = file.class_of(call)
        dropped = "drop" in f"{around} {owner.node.name if owner else ''}".lower()
        return argument(call, 0, "key") if dropped else None
    name = dotted(_gone_through(call.func, file)).rpartition(".")[2].lower()
    if "dropout" not in name and "drop_path" not in name and name != "drop":
        return None
    given = next((given.value for given in call.keywords if given.arg in _KEYS), None)
    return given or _key_of_own(call, file)


def _key_of_own(call: ast.Call, file: File) -> ast.expr | None:
    """The key that a call gives to a dropout function of the file."""
    function = called_function(call, file)
    if function is None:
        return None
    given = (given_for(at, function, call, file) for at in _parameters(function))
    return next((at for at in given if at is not None), None)


def _parameters(function: Function) -> list[ast.arg]:
    """The parameters of a function that are keys, by their names."""
    every = function.args
    return [at for at in (*every.posonlyargs, *every.args, *every.kwonlyargs) if at.arg in _KEYS]


def _handed_on(call: ast.Call, file: File, depth: int = 3) -> ast.expr | None:
    """The key that a call gives to a function of the file whose dropout takes it."""
    function = called_function(call, file) if depth else None
    if function is None:
        return None
    for parameter in _parameters(function):
        given = given_for(parameter, function, call, file)
        if isinstance(given, ast.Name) and any(
            isinstance(key, ast.Name) and key.id == parameter.arg
            for at in ast.walk(function)
            if isinstance(at, ast.Call)
            and (key := _key(at, file) or _handed_on(at, file, depth - 1))
        ):
            return given
    return None


def _gone_through(node: ast.expr, file: File) -> ast.expr:
    """What a loop goes through of which a name is one in turn; else the name."""
    for loop in file.ancestors(node):
        if isinstance(node, ast.Name) and isinstance(loop, ast.For):
            target, through = loop.target, loop.iter
            while isinstance(target, ast.Tuple) and isinstance(through, ast.Call):
                parts = [node.id in _bound(at) for at in target.elts]
                if True not in parts:
                    break
                at = parts.index(True) - (dotted(through.func) == "enumerate")
                if not 0 <= at < len(through.args):
                    break
                target, through = target.elts[parts.index(True)], through.args[at]
            if isinstance(target, ast.Name) and target.id == node.id:
                return through
    return node


def _bound(target: ast.expr) -> set[str]:
    return {at.id for at in ast.walk(target) if isinstance(at, ast.Name)}


def _both(first: ast.Call, second: ast.Call, bound: list[ast.AST], file: File) -> bool:
    """Whether two calls run one after the other with the same key."""
    start, end = _position(first), _position(second)
    if any(start <= _position(binding) <= end for binding in bound):
        return False
    child: ast.AST = first
    after = [second, *file.ancestors(second)]
    for parent in file.ancestors(first):
        if isinstance(parent, ast.If | ast.Try | ast.IfExp | ast.Match):
            if parent in after:  # in two arms of one statement only one runs
                return _arm(parent, child) == _arm(parent, after[after.index(parent) - 1])
            arm = getattr(parent, _arm(parent, child), None)
            if isinstance(parent, ast.If) and isinstance(arm, list) and leaves(arm):
                return False
        elif isinstance(parent, ast.Return):
            return parent in after
        child = parent
    return True


def _arm(parent: ast.AST, child: ast.AST) -> str:
    """The field of a statement in which a part of it stands."""
    for name, value in ast.iter_fields(parent):
        if value is child:
            return name
        if isinstance(value, list) and child in value:
            return name if isinstance(child, ast.stmt) else f"{name}{value.index(child)}"
    return ""


def _repeated(call: ast.Call, bound: list[ast.AST], scope: Scope, file: File) -> bool:
    """Whether a call is repeated by a loop that leaves its key as it is."""
    child: ast.AST = call
    for parent in file.ancestors(call):
        if parent is scope:
            return False
        if isinstance(parent, ast.For | ast.While) and child in parent.body:
            inside = any(parent in file.ancestors(binding) for binding in bound)
            return not inside and not leaves(parent.body)
        child = parent
    return False


def _position(node: ast.AST) -> tuple[int, int]:
    return (getattr(node, "lineno", 0), getattr(node, "col_offset", 0))


# ---- the wrong mode ----------------------------------------------------------------------


def _hard_coded(call: ast.Call) -> ast.keyword | None:
    """The argument that switches dropout on for good."""
    for given in call.keywords:
        if isinstance(given.value, ast.Constant):
            off = given.arg in _OFF and given.value.value is False
            if off or (given.arg in _ON and given.value.value is True):
                return given
    return None


def _turned(given: ast.keyword, file: File) -> bool:
    """Whether a switch is given what means the opposite: `deterministic=train`."""
    if not isinstance(given.value, ast.Name | ast.Attribute | ast.UnaryOp):
        return False
    mode = implied(given.value, True, file)
    return (given.arg in _OFF and mode == "train") or (given.arg in _ON and mode == "eval")


def _drops(call: ast.Call, file: File) -> bool:
    """Whether a call is that of a dropout in a forward pass, or builds one that is always on."""
    if file.function_of(call) is None:
        return False
    name = file.called(call)
    if name == "flax.linen.Dropout":
        return True
    if name in _ATTENTION:
        rate = argument(call, 99, "dropout_rate")
        return rate is not None and number(rate) != 0
    layers = [call.func, *(value for value in file.values(call.func) if value is not call.func)]
    return any(file.dropout_kind(layer) in JAX_DROPOUTS for layer in layers)


def _evaluates(call: ast.Call, file: File) -> bool:
    """Whether a model is applied in a function that evaluates."""
    function = file.function_of(call)
    if function is None or not _EVALUATES.fullmatch(function.name.lower()):
        return False
    name = dotted(call.func).rpartition(".")[2]
    if name in _APPLIED:
        return True
    switch = _hard_coded(call)
    return name in _MODELS and switch is not None and switch.arg in _OFF


# ---- no key ------------------------------------------------------------------------------


def _without_key(call: ast.Call, file: File) -> bool:
    """Whether a Flax module of this file that has dropout is applied in training without keys."""
    if not isinstance(call.func, ast.Attribute) or call.func.attr != "apply" or opaque(call):
        return False
    if any(given.arg == "rngs" for given in call.keywords):
        return False
    built = file.values(call.func.value)
    owners = {at.name: at for at in file.classes}
    found = [owners.get(file.called(at)) if isinstance(at, ast.Call) else None for at in built]
    return bool(found) and all(owner is not None and _has_dropout(owner, file) for owner in found)


def _has_dropout(owner: Class, file: File) -> bool:
    return any(
        file.called(call) == "flax.linen.Dropout"
        and file.class_of(call) is owner
        and number(argument(call, 0, "rate")) != 0
        and not any(given.arg == "rng_collection" for given in call.keywords)
        for call in file.calls
    )


RULE = Rule("DS109", "jax-dropout-key-or-mode", Severity.ERROR, __doc__, check)
