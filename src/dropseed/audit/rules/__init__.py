"""The rules, one file each: a file's docstring is the rule's manual. A new file is a new rule."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from dropseed.audit.rule import Rule

_MODULES = [import_module(f"{__name__}.{found.name}") for found in iter_modules(__path__)]

RULES: tuple[Rule, ...] = tuple(sorted((at.RULE for at in _MODULES), key=lambda rule: rule.code))
"""Every rule, by code."""
