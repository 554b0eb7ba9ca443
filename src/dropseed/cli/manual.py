"""`dropseed audit --rules` and `--explain`: what the rules are."""

from __future__ import annotations

import inspect
import re

from dropseed import audit
from dropseed.cli.screen import write, write_page
from dropseed.errors import InvalidValueError

RUNTIME = {
    **dict.fromkeys(("DS501", "DS502", "DS503", "DS504"), "check_model"),
    **dict.fromkeys(("DS505", "DS506", "DS507"), "guard"),
    "DS508": "check_recompute",
}
"""Code -> function of `dropseed.audit` that finds it in running code; its docstring says what."""


def show_rules(word: str | None) -> int:
    """List all rules, or show the page of one.

    Args:
        word: the code or the name of a rule, or None.

    Returns:
        The exit status.

    Raises:
        InvalidValueError: it is no rule's.
    """
    from dropseed.audit.manual import page
    from dropseed.audit.reporting.config import hint
    from dropseed.audit.reporting.output.table import rules
    from dropseed.audit.rules import RULES

    if word is None:
        write(rules(), colours=True)
        return 0
    for rule in RULES:
        if word.lower() in (rule.code.lower(), rule.name):
            write_page(page(rule))
            return 0
    if word.upper() in RUNTIME:
        write_page(_runtime_page(word.upper()))
        return 0
    raise InvalidValueError(f"`--explain` has {word}, which is no rule's code.{hint(word)}")


def _runtime_page(code: str) -> str:
    """What a function's docstring says of a code, or all of it before its arguments."""
    name = RUNTIME[code]
    text = inspect.getdoc(getattr(audit, name)) or ""
    about = text.partition("\nArgs:")[0].strip()
    item = re.search(rf"^- {code}: (.*?)(?=^- |^\S|\Z)", about, re.MULTILINE | re.DOTALL)
    words = " ".join(item[1].split()) if item else about
    return f"# {code}\n\nFound in running models, by `dropseed.audit.{name}`.\n\n{words}\n"
