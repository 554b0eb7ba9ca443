"""File that can't be read or parsed.

The file was not checked: it has a syntax error for the Python that runs the auditor, is not a text
in the encoding that it declares, holds null bytes, or may not be read. All other files were
checked. A notebook's cell that does not parse is left out, and the other cells are checked.

**Wrong**

```python
print "epoch", epoch
```

**Right**

```python
print("epoch", epoch)
```

**When to leave it.** Templates and files for another Python belong into `exclude`.

**Source.** The [language reference](https://docs.python.org/3/reference/grammar.html) of the Python
that runs.
"""

from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.file import File, Hit
from dropseed.audit.rule import Rule


def check(file: File) -> Iterator[Hit]:
    """Nothing: the engine reports what it could not parse."""
    return iter(())


RULE = Rule("DS001", "unreadable-file", Severity.ERROR, __doc__, check)
