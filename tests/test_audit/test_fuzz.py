"""No text, no syntax tree and no notebook crashes the engine."""

import contextlib
import json

import hypothesmith
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropseed.audit.engine import check_source
from dropseed.audit.reading.source import UnreadableError, decode, parse

SLOW = settings(
    max_examples=40, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True
)

WORDS = [
    "dropout", "F", "nn", "self", "training", "p", "x", "torch", "keep_prob", "layers", "logits",
    "Dropout", "eval", "train", "forward", "no_grad", "model", "deterministic", "key", "rate",
]  # fmt: skip
IMPORTS = (
    "import torch, keras, jax, flax.linen as fl\nfrom torch import nn\n"
    "import torch.nn.functional as F\nfrom keras import layers\n"
)


def names():
    return st.sampled_from(WORDS)


def expressions():
    """Expressions of the words that rules look for, in shapes that nobody wrote on purpose."""
    atoms = st.one_of(
        names(), st.sampled_from(["0", "1", "0.5", "50", "True", "None", "'train'", "*x", "..."])
    )
    return st.recursive(
        atoms.filter(lambda atom: atom[0] != "*"),
        lambda inner: st.one_of(
            st.builds("{}.{}".format, names(), names()),
            st.builds("{}({}, {})".format, inner, inner, inner),
            st.builds("nn.Dropout({})({})".format, inner, inner),
            st.builds("F.dropout({}, {}={})".format, inner, names(), inner),
            st.builds("nn.Sequential({}, nn.Dropout({}), *{})".format, inner, inner, inner),
            st.builds("self.{}({})".format, names(), inner),
            st.builds("({} if {} else {})".format, inner, inner, inner),
            st.builds("({} and not {})".format, inner, inner),
            st.builds("(lambda {}: {})".format, names(), inner),
            st.builds("[{} for {} in {}]".format, inner, names(), inner),
            st.builds("({} / (1 - {}))".format, inner, inner),
            st.builds("({} < {})".format, inner, inner),
        ),
        max_leaves=8,
    )


def indented(block):
    return "\n".join("    " + line for line in block.split("\n"))


def blocks():
    lines = st.one_of(
        st.builds("{} = {}".format, names(), expressions()),
        st.builds("self.{} = {}".format, names(), expressions()),
        st.builds("{}, {} = {}".format, names(), names(), expressions()),
        st.builds("return {}".format, expressions()),
        st.builds("({} := {})".format, names(), expressions()),
        st.builds("{} *= {}".format, names(), expressions()),
        expressions(),
    )
    joined = st.lists(lines, min_size=1, max_size=4).map("\n".join)
    return st.recursive(
        joined,
        lambda inner: st.one_of(
            st.builds("if {}:\n{}".format, expressions(), inner.map(indented)),
            st.builds("for {} in {}:\n{}".format, names(), expressions(), inner.map(indented)),
            st.builds("with torch.no_grad():\n{}".format, inner.map(indented)),
            st.builds("def {}(self, {}=1):\n{}".format, names(), names(), inner.map(indented)),
            st.builds("class {}(nn.Module):\n{}".format, names(), inner.map(indented)),
            st.builds("class {}({}):\n{}".format, names(), names(), inner.map(indented)),
            st.builds("try:\n{}\nexcept x as {}:\n    pass".format, inner.map(indented), names()),
            st.builds("{}\n{}".format, inner, inner),
        ),
        max_leaves=6,
    )


def survives(text):
    with contextlib.suppress(UnreadableError):
        check_source(text)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(blocks(), min_size=1, max_size=4).map("\n".join))
def test_dropout_words_in_any_order(text):
    survives(IMPORTS + text)


@SLOW
@given(hypothesmith.from_grammar())
def test_any_program_of_the_grammar(text):
    survives(text)


@SLOW
@given(hypothesmith.from_node())
def test_any_tree(text):
    survives(text)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text(text):
    survives(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(), st.booleans())
def test_any_bytes(data, notebook):
    with contextlib.suppress(UnreadableError):
        parse(decode(data, notebook))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["cells", "cell_type", "source", "metadata", "language_info", "name"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.lists(st.text(max_size=20), max_size=3))
def test_any_notebook(value, texts):
    cells = [{"cell_type": "code", "source": text} for text in texts]
    for book in (value, {"cells": [value, *cells]}, {"cells": cells, "metadata": value}):
        with contextlib.suppress(UnreadableError):
            parse(decode(json.dumps(book).encode(), notebook=True))


def test_most_of_what_is_made_parses():
    """The strategies are of use only if the rules see what they make."""
    parsed = []

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(blocks())
    def count(text):
        try:
            parsed.append(len(check_source(IMPORTS + text)) >= 0)
        except UnreadableError:
            parsed.append(False)

    count()
    assert sum(parsed) > len(parsed) / 2


def test_a_crash_would_be_seen(monkeypatch):
    def crash(*_):
        raise RecursionError

    monkeypatch.setattr("dropseed.audit.engine.judge", crash)
    with pytest.raises(RecursionError):
        survives("x = 1")
