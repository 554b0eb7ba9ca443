"""Comment that silences a rule which finds nothing there.

A comment that outlives its mistake hides the next one.

**Wrong**

```python
x = self.dropout(x)  # noqa: DS101
```

**Right**

```python
x = self.dropout(x)
```

**When to leave it.** Never; `--fix` takes the code out of the comment, and the comment with its
last code. A bare `# noqa` belongs to other linters, too, and is never reported.

**Source.** The habit of [ruff's unused-noqa](https://docs.astral.sh/ruff/rules/unused-noqa/).
"""

from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.rule import Rule


def check(file: File) -> Iterator[Hit]:
    """Nothing: which comments are unused is known when all rules have run."""
    return iter(())


RULE = Rule("DS002", "unused-ignore", Severity.WARNING, __doc__, check)
