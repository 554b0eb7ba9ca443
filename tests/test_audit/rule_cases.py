"""What the tests of the rules share.

A case is Python source, before which the usual imports are put. Each line at which the rule must
hit ends in `# wrong`; where no line does, the rule must be silent.
"""

import ast
import inspect
from pathlib import Path
from textwrap import dedent
from types import ModuleType

from dropseed.audit.engine import scan
from dropseed.audit.finding import Edit
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.reading.source import Source, parse
from dropseed.audit.rule import Rule
from dropseed.audit.rules import RULES

PRELUDE = (
    "import torch, torchvision, math, random, numpy as np; from torch import nn, Tensor; "
    "import torch.nn.functional as F; import tensorflow as tf, keras; from keras import layers; "
    "import jax, jax.numpy as jnp; import flax, flax.linen; from flax import nnx; "
    "import equinox as eqx, haiku as hk\n"
)
MARK = "# wrong"


def hits(text: str, code: str) -> list[int]:
    """The lines of a case at which a rule hits."""
    return _lines(text, _rule(code))


def marked(text: str) -> list[int]:
    """The lines of a case at which a rule must hit."""
    return [line for line, at in enumerate(_plain(text).split("\n"), 1) if at.endswith(MARK)]


def messages(text: str, code: str) -> list[str]:
    """The messages of a rule's hits in a case."""
    return [hit.message for hit in _checked(text, _rule(code))]


def fixed(text: str, code: str) -> str:
    """A case with a rule's fixes made, which must still parse; of overlapping ones the first."""
    mended = PRELUDE + _plain(text)
    for edit in _in_order(_checked(text, _rule(code))):
        first = _position(mended, edit.span.line, edit.span.column)
        last = _position(mended, edit.span.end_line, edit.span.end_column)
        mended = mended[:first] + edit.text + mended[last:]
    ast.parse(mended)
    return mended.removeprefix(PRELUDE)


def scanned(folder: Path, files: dict[str, str], code: str) -> list[tuple[str, int]]:
    """The places (path, line) at which a rule hits in files that are scanned together.

    Args:
        folder: an empty folder.
        files: path -> case. No import is put before it.
        code: the rule's.
    """
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_plain(text))
    return [(at.path, at.span.line) for at in scan([folder]).findings if at.code == code]


def marked_in(files: dict[str, str]) -> list[tuple[str, int]]:
    """The places at which a rule must hit in files that are scanned together."""
    return sorted((name, line) for name, text in files.items() for line in marked(text))


def mutants(module: ModuleType, changes, cases) -> list[str]:
    """The changes to a rule's source that no case notices: there should be none.

    Args:
        module: the rule's module, which keeps as it is.
        changes: pairs of a piece of its source, which stands there once, and what replaces it.
        cases: texts, or parameter sets that begin with one.
    """
    texts = [case if isinstance(case, str) else case.values[0] for case in cases]
    return [
        f"{old} -> {new}"
        for old, new in changes
        if not any(_notices(module, old, new, at) for at in texts)
    ]


def _notices(module: ModuleType, old: str, new: str, text: str) -> bool:
    source = inspect.getsource(module)
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    namespace = {"__name__": module.__name__}
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    try:
        return _lines(text, namespace["RULE"]) != marked(text)
    except Exception:
        return True


def _rule(code: str) -> Rule:
    return next(rule for rule in RULES if rule.code == code)


def _plain(text: str) -> str:
    return dedent(text).lstrip("\n")


def _checked(text: str, rule: Rule) -> list[Hit]:
    source = Source(PRELUDE + _plain(text))
    return sorted(rule.check(File(source, parse(source)[0], "module")), key=lambda hit: hit.span)


def _lines(text: str, rule: Rule) -> list[int]:
    return [hit.span.line - PRELUDE.count("\n") for hit in _checked(text, rule)]


def _in_order(found: list[Hit]) -> list[Edit]:
    """The edits from the last to the first, so that none moves another's place."""
    chosen: list[Edit] = []
    for hit in found:
        edits = hit.fix.edits if hit.fix else ()
        if all(_apart(edit, other) for edit in edits for other in chosen):
            chosen += edits
    return sorted(chosen, key=lambda edit: edit.span, reverse=True)


def _apart(one: Edit, other: Edit) -> bool:
    first, second = sorted((one.span, other.span))
    if (first.line, first.column) == (second.line, second.column):
        return False
    return (first.end_line, first.end_column) <= (second.line, second.column)


def _position(text: str, line: int, column: int) -> int:
    return sum(len(at) for at in text.splitlines(keepends=True)[: line - 1]) + column - 1
