"""Edits that several rules make."""

import pytest

from dropseed.audit.reading import edits
from dropseed.audit.reading.file import File
from dropseed.audit.reading.source import Source, parse


def read(text):
    source = Source(text)
    return File(source, parse(source)[0], "net")


@pytest.mark.parametrize(
    ("imports", "spelling"),
    [
        ("from torch import nn", "nn.ModuleList"),
        ("import torch.nn as layers", "layers.ModuleList"),
        ("import torch", "torch.nn.ModuleList"),
        ("from torch.nn import ModuleList as Modules", "Modules"),
        ("from torch.nn import functional", ""),
        ("import keras", ""),
        ("", ""),
    ],
)
def test_spelling(imports, spelling):
    assert edits.spelling("torch.nn.ModuleList", read(imports)) == spelling


@pytest.mark.parametrize(
    ("call", "column"),
    [("f(x)", 4), ("f((x))", 6), ("f(x, )", 4), ("f(*x)", 5), ("f(p=(x) )", 8), ("f(é)", 4)],
)
def test_add_argument(call, column):
    file = read(call)
    edit = edits.add_argument(file.calls[0], "q=1", file)
    assert (edit.span.line, edit.span.column, edit.text) == (1, column, ", q=1")


def test_a_call_without_arguments_gets_none():
    file = read("f()")
    assert edits.add_argument(file.calls[0], "q=1", file) is None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("def f(self):\n  a = 1  # one\n  # end\n", (2, 15, "\n  new")),
        ("def f(self):\n\tif a:\n\t\tb = (1,\n\t\t  2)\n", (4, 7, "\n\tnew")),
        ("def f(self): a = 1\n", None),
        ("def f(self):\n  return 1\n", None),
        ("def f(self):\n  raise ValueError\n", None),
    ],
)
def test_append(body, place):
    file = read(body)
    edit = edits.append(file.functions[0], "new", file)
    assert (edit and (edit.span.line, edit.span.column, edit.text)) == place
