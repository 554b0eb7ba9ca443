"""Training or evaluation: what the conditions around a piece of code say about the mode.

A switch is an expression by which code asks for the mode: `self.training`, `is_train`,
`not deterministic`, `mode == "train"`. This file knows no dropout.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import Class, File, Function, default_of

Mode = Literal["train", "eval"]

_TRAIN = re.compile(
    r"_*(?:(?:is|in|do|for|at|self)_?)?train(?:ing)?(?:_?(?:mode|phase|flag|time|step|now|state))?_*"
    r"|dropout_?(?:on|enabled|active|switch|flag)|learning_phase|is_grad_enabled|requires_grad|mc_?\w*|stochastic"
)
_EVAL = re.compile(
    r"_*(?:(?:is|in|do|for|at)_?)?(?:eval(?:uate|uation|uating)?|test(?:ing)?|infer(?:ence|ring)?"
    r"|predict(?:ing|ion)?|validat(?:e|ion|ing)|decod(?:e|ing)|generat(?:e|ing))"
    r"(?:_?(?:mode|phase|flag|time|only|now))?_*|deterministic|freeze|frozen|disable_?dropout"
)
_ASKED = re.compile(
    r"(?:enable|apply|use|do|with|allow|force|activate|add)_?(?:mc_?)?(?:dropout|drop|noise|masking)"
    r"|augment|dropout|drop"
)
"""A switch as a function's argument, a setting as an attribute."""
_CONVERSIONS = {"bool", "int", "float", "cast", "to", "float32", "as_tensor", "tensor", "constant"}
_EXITS = (ast.Return, ast.Raise, ast.Continue, ast.Break)
_TRAINS = re.compile(r"_*(?:train|fit|training)(?:_\w+)?|\w+_train(?:ing)?|\w*train_step")
_RUNS = re.compile(
    r"_*(?:forward|call|__call__|predict|infer|inference|eval|evaluate|evaluation|test|valid|validate"
    r"|validation|sample|generate|decode|encode|embed|transform|score)(?:_\w+)?"
)
"""Functions that others call, in evaluation, too."""
_BY_DESIGN = re.compile(
    r"monte.?carlo|\bmc\b|mc.?drop|drop\w*.?mc|bayes|pre.?net|uncertain|perma", re.IGNORECASE
)
_MEANT = re.compile(
    r"intention|deliberate|on purpose|by design|regardless of|\balways\b|\btest.time\b"
    r"|\b(?:keep|kept|stay|remain|leave|left)\w*\b.{0,20}\b(?:on|active|enabled)\b"
    r"|\b(?:even|also|both|zero|no|without|skip\w*|disabl\w*)\b.{0,40}"
    r"\b(?:inference|test\w*|eval\w*|predict\w*)",
    re.IGNORECASE,
)
"""What is said of dropout that stays on, or of one that callers turn off."""
_ALWAYS = re.compile(r"^always|\balways$", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.\s|\n\s*\n")
_NOISE = re.compile(
    r"\b(?:augment\w*|perturb\w*|corrupt\w*|strategy|transform|dataset|collat\w*"
    r"|random (?:drop|mask|eras)\w*|(?:drop|mask) (?:feature|edge|node|word|token)s?)\b",
    re.IGNORECASE,
)
"""Names of functions, classes and conditions that are there to add noise."""
_SAMPLES = re.compile(
    r"range\(.*(?:sampl|mc|pass|draw|estimat|ensembl|repeat|trials)", re.IGNORECASE
)
DEPTH = 4
MANY = 6
"""Of how many assignments or calls of one name others are followed."""


def implied(test: ast.expr, truth: bool, file: File, depth: int = DEPTH) -> Mode | None:
    """The mode that holds wherever a condition is true, or false.

    Args:
        test: the condition.
        truth: which of the two.
        file: where it stands.
        depth: how many local assignments are followed.

    Returns:
        "train", "eval", or None where the condition says nothing of it.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return implied(test.operand, not truth, file, depth)
    if isinstance(test, ast.NamedExpr):
        return implied(test.value, truth, file, depth)
    if isinstance(test, ast.BoolOp):
        parts = [implied(value, truth, file, depth) for value in test.values]
        if isinstance(test.op, ast.And) == truth:  # all of the parts hold
            return next((part for part in parts if part), None)
        return parts[0] if len(set(parts)) == 1 else None
    if isinstance(test, ast.Compare):
        return _compared(test, truth, file, depth)
    if isinstance(test, ast.Call):
        return _called(test, truth, file, depth)
    word = _word(test)
    if _EVAL.fullmatch(word) and not always_true(test, file):
        return "eval" if truth else "train"
    if _asks(word, test, file):
        return "train" if truth else "eval"
    if depth and isinstance(test, ast.Name | ast.Attribute):
        values = file.values(test)
        if len(values) > MANY:
            return None
        modes = {implied(value, truth, file, depth - 1) for value in values}
        return modes.pop() if len(modes) == 1 else None
    return None


def _asks(word: str, test: ast.expr, file: File) -> bool:
    """Whether a word asks for training; `use_dropout` does so as an argument of a call only."""
    if _TRAIN.fullmatch(word):
        return not always_true(test, file)
    if not _ASKED.fullmatch(word):
        return False
    if isinstance(test, ast.Name):
        arguments = [at for at in file.bindings(test.id, test) if isinstance(at, ast.arg)]
        return any(_asked_of(at, file) for at in arguments)
    functions = (file.function_of(value) for value in file.values(test) if value is not test)
    return word not in ("dropout", "drop") and any(
        at is not None and at.name != "__init__" for at in functions
    )


def _asked_of(argument: ast.arg, file: File) -> bool:
    """Whether a call of a function turns dropout on by an argument: a rate is no such thing."""
    function = file.function_of(argument)
    if function is None or function.name == "__init__":
        return False
    if argument.arg not in ("dropout", "drop"):
        return True
    default = default_of(argument, function)
    return isinstance(default, ast.Constant) and isinstance(default.value, bool)


def always_true(node: ast.expr, file: File) -> bool:
    """Whether an expression is `self.train` of a torch module: a method, which is always true."""
    if isinstance(node, ast.Call) and not node.args:
        node = node.func  # `self.train()` even sets the mode
    if not isinstance(node, ast.Attribute) or dotted(node) not in ("self.train", "self.eval"):
        return False
    owner = file.class_of(node)
    return owner is not None and node.attr not in owner.attributes and file.is_module(owner)


def _word(node: ast.expr) -> str:
    """The last name of an expression, in lower case."""
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    if isinstance(node, ast.Name):
        return node.id.lower()
    if isinstance(node, ast.Subscript):
        return _word(node.slice)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.lower()
    return ""


def _compared(test: ast.Compare, truth: bool, file: File, depth: int) -> Mode | None:
    """`mode == "train"`, `training is True`, `phase != "eval"`."""
    if len(test.ops) != 1:
        return None
    if isinstance(test.ops[0], ast.NotEq | ast.IsNot):
        truth = not truth
    elif not isinstance(test.ops[0], ast.Eq | ast.Is):
        return None
    left, right = test.left, test.comparators[0]
    for one, other in ((left, right), (right, left)):
        if isinstance(other, ast.Constant) and not isinstance(other.value, str):
            told = other.value in (0, 1)
            return implied(one, truth == bool(other.value), file, depth) if told else None
    for side in (right, left):
        word = _word(side)
        if _EVAL.fullmatch(word) or word in ("val", "valid", "dev"):
            return "eval" if truth else None
        if _TRAIN.fullmatch(word):
            return "train" if truth else "eval"
    return None


def _called(call: ast.Call, truth: bool, file: File, depth: int) -> Mode | None:
    """`bool(training)`, `self.is_training()`, `getattr(self, "training", False)`."""
    word = _word(call.func)
    if word in ("getattr", "get") and len(call.args) >= 1:
        return implied(
            call.args[min(1, len(call.args) - 1) if word == "getattr" else 0], truth, file, 0
        )
    if word in _CONVERSIONS and call.args:
        return implied(call.args[0], truth, file, depth)
    return implied(call.func, truth, file, 0)


def mode_at(node: ast.AST, file: File) -> Mode | None:
    """The mode that the conditions around a node, and early returns before it, leave open.

    Args:
        node: any node of the file.
        file: the file.

    Returns:
        "train" if the node runs in training only, "eval" if in evaluation only, else None.
    """
    child = node
    for parent in file.ancestors(node):
        for test, truth in _conditions(child, parent):
            mode = implied(test, truth, file) if _asks_for_mode(test, file) else None
            if mode:
                return mode
        child = parent
    return None


def asked_at(node: ast.AST, file: File) -> bool:
    """Whether any condition around a node, or early return before it, asks for the mode.

    `if self.training or self.keep_on` leaves both modes open, but it was thought of.
    """
    child = node
    for parent in file.ancestors(node):
        if any(_asks_for_mode(test, file) for test, _ in _conditions(child, parent)):
            return True
        child = parent
    return False


def _asks_for_mode(test: ast.expr, file: File) -> bool:
    key = ("asks for the mode", test)
    if key not in file.memo:
        file.memo[key] = any(implied(part, True, file) for part in _parts(test))
    return bool(file.memo[key])


def _parts(test: ast.expr) -> Iterator[ast.expr]:
    """A condition and what it is made of; what is compared with None or a number asks nothing."""
    waiting: list[ast.AST] = [test]
    while waiting:
        part = waiting.pop()
        if isinstance(part, ast.expr):
            yield part
        sides = part.comparators if isinstance(part, ast.Compare) else []
        if not any(isinstance(at, ast.Constant) and not isinstance(at.value, str) for at in sides):
            waiting += ast.iter_child_nodes(part)


def _conditions(child: ast.AST, parent: ast.AST) -> Iterator[tuple[ast.expr, bool]]:
    """The conditions that hold for a child because of where it stands in its parent."""
    if isinstance(parent, ast.IfExp):
        if child is not parent.test:
            yield parent.test, child is parent.body
    elif isinstance(parent, ast.BoolOp):
        for value in parent.values[: parent.values.index(child)]:  # type: ignore[arg-type]
            yield value, isinstance(parent.op, ast.And)
    elif isinstance(parent, ast.If | ast.While) and child is not parent.test:
        yield parent.test, child in parent.body
    if isinstance(parent, ast.ClassDef | ast.Module):
        return
    for block in ("body", "orelse", "finalbody"):
        statements = getattr(parent, block, None)
        if isinstance(statements, list) and child in statements:
            for before in statements[: statements.index(child)]:
                if isinstance(before, ast.Assert):
                    yield before.test, True
                elif isinstance(before, ast.If):
                    if leaves(before.body):
                        yield before.test, False
                    elif before.orelse and leaves(before.orelse):
                        yield before.test, True


def leaves(body: list[ast.stmt]) -> bool:
    """Whether a block always ends by leaving the blocks around it."""
    last = body[-1]
    if isinstance(last, ast.If):
        return bool(last.orelse) and leaves(last.body) and leaves(last.orelse)
    return isinstance(last, _EXITS)


def switched(node: ast.expr, file: File) -> bool:
    """Whether a value depends on the mode: `p if self.training else 0.0`, or a local set so."""
    waiting: list[tuple[ast.AST, int]] = [(node, DEPTH)]
    seen: set[ast.AST] = set()
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, ast.Name | ast.Attribute | ast.Call) and implied(part, True, file, 0):
            return True
        if depth and isinstance(part, ast.Name):
            bindings = [at for at in file.bindings(part.id, part)[: 4 * MANY] if at not in seen]
            seen.update(bindings)
            for binding in bindings:
                value = file.assigned(binding)
                if value is not None and mode_at(binding, file):
                    return True
                if value is not None:
                    waiting.append((value, depth - 1))
        if isinstance(part, ast.Attribute) and dotted(part):
            if _switched_attribute(part, file):
                return True
        else:
            waiting += [(child, depth) for child in ast.iter_child_nodes(part)]
    return False


def _switched_attribute(node: ast.Attribute, file: File) -> bool:
    """Whether an attribute of self is set by the mode, or is a property that asks for it."""
    owner = file.class_of(node)
    if owner is None or dotted(node.value) != "self":
        return False
    for value in owner.attributes.get(node.attr, ()):
        setter = file.function_of(value)
        if mode_at(value, file) or (setter is not None and setter.name in ("train", "eval")):
            return True
        choices = (part for part in ast.walk(value) if isinstance(part, ast.IfExp))
        if any(_asks_for_mode(choice.test, file) for choice in choices):
            return True
    method = owner.methods.get(node.attr)
    return method is not None and any(
        isinstance(part, ast.Attribute) and implied(part, True, file, 0) is not None
        for statement in method.body
        for part in ast.walk(statement)
    )


def trains_only(node: ast.AST, file: File, depth: int = DEPTH) -> bool:
    """Whether a node runs in training only, as far as its file shows.

    Because of conditions, of the name of its function (`training_step`), or since its function is
    called from such places only.
    """
    if mode_at(node, file) == "train":
        return True
    function = file.method_of(node) or file.function_of(node)
    if function is None or depth == 0:
        return False
    name = function.name.lower()
    if _TRAINS.fullmatch(name):
        return True
    if _RUNS.fullmatch(name):
        return False
    calls = list(calls_of(function, file))
    left = depth - 1 if len(calls) <= MANY else 0
    return bool(calls) and all(trains_only(call, file, left) for call in calls)


def calls_of(function: Function, file: File) -> Iterator[ast.Call]:
    """The calls of a function or method within its file, recursive ones aside."""
    name, owner = function.name, file.class_of(function)
    method = isinstance(file.parent(function), ast.ClassDef)
    for text in (f"self.{name}", f"cls.{name}") if method else (name,):
        for call in file.calls_by_text.get(text, ()):
            if method and owner is not None and not _has(owner, file.class_of(call), file):
                continue
            if not any(at is function for at in file.ancestors(call)):
                yield call


def _has(owner: Class, other: Class | None, file: File) -> bool:
    """Whether a class has the methods of another one: it is that one, or inherits from it."""
    return other is owner or (other is not None and owner.name in file.lineage(other))


def by_design(node: ast.AST, file: File) -> bool:
    """Whether code says that its noise is meant to be on in evaluation, too.

    By the name or docstring of a function or class around it (Monte-Carlo dropout, a prenet), by
    a condition (`if mc_dropout`), a comment beside it, the names of its module and packages, or a
    loop over samples.
    """
    names, docstrings = [re.sub(r"[._]", " ", file.name)], []
    for at in file.ancestors(node):
        if isinstance(at, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names += [_spaced(at.name), *map(_spaced, _names_of_bases(at))]
            docstrings.append(ast.get_docstring(at, clean=False) or "")
        elif isinstance(at, ast.If | ast.IfExp):
            names.append(" ".join(map(_spaced, _names(at.test))))
    return (
        any(_BY_DESIGN.search(at) or _ALWAYS.search(at) for at in names)
        or any(_NOISE.search(at) for at in names[1:])
        or any(_said(text) for text in docstrings)
        or _commented(node, file)
        or _sampled(node, file)
    )


def _said(text: str) -> bool:
    """Whether a docstring says that dropout is meant to be on in evaluation."""
    if _BY_DESIGN.search(text):
        return True
    sentences = _SENTENCE_END.split(text) if "drop" in text.lower() else []
    return any("drop" in at.lower() and _MEANT.search(" ".join(at.split())) for at in sentences)


def _commented(node: ast.AST, file: File) -> bool:
    """Whether a comment says so: beside a node, or on dropout in its class or function."""
    statement = file.statement_of(node)
    first, last = max(statement.lineno - 2, 0), statement.end_lineno or statement.lineno
    owner = file.class_of(node)
    around = owner.node if owner else file.function_of(node)
    begin, end = (around.lineno, around.end_lineno or 0) if around else (0, 0)
    return any(
        first < number <= last or (begin <= number <= end and about_dropout)
        for number, about_dropout in _designs(file)
    )


@lru_cache(maxsize=1)
def _designs(file: File) -> list[tuple[int, bool]]:
    """The lines whose comments say that noise is meant, and whether they are about dropout."""
    return [
        (number, "drop" in file.source.lines[number - 1].lower())
        for number, text in file.comments.items()
        if _BY_DESIGN.search(text) or _MEANT.search(text)
    ]


def _names_of_bases(node: ast.AST) -> list[str]:
    bases = node.bases if isinstance(node, ast.ClassDef) else ()
    return [dotted(base).rpartition(".")[2] for base in bases]


def _names(node: ast.AST) -> list[str]:
    return [
        at.id if isinstance(at, ast.Name) else at.attr
        for at in ast.walk(node)
        if isinstance(at, ast.Name | ast.Attribute)
    ]


def _sampled(node: ast.AST, file: File, depth: int = 2) -> bool:
    """Whether a node, or a call of its method, stands in a loop over a number of samples."""
    loops: list[ast.AST] = []
    for at in file.ancestors(node):
        loops += at.generators if isinstance(at, ast.ListComp | ast.GeneratorExp) else [at]
    ranges = [at.iter for at in loops if isinstance(at, ast.For | ast.comprehension)]
    if any(isinstance(at, ast.Call) and _SAMPLES.search(file.text(at)) for at in ranges):
        return True
    function = file.method_of(node)
    calls = list(calls_of(function, file)) if function is not None and depth else []
    return any(_sampled(call, file, depth - 1) for call in calls[:MANY])


def _spaced(name: str) -> str:
    """`MCDropout` and `mc_dropout` as words: "MC Dropout", "mc dropout"."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", " ", name).strip()
