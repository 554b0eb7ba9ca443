"""What a user asks of an audit: `[tool.dropseed.audit]` of pyproject.toml, and over it the options.

```toml
[tool.dropseed.audit]
select = ["DS1", "DS301"]
ignore = ["DS110"]
severity = "warning"
preview = false
exclude = ["third_party"]
baseline = "dropout.json"

[tool.dropseed.audit.per-file-ignores]
"tests/*" = ["DS3"]
```
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from dropseed.audit.finding import Severity
from dropseed.audit.reporting.ignore import PREFIX
from dropseed.audit.rules import RULES
from dropseed.errors import InvalidTypeError, InvalidValueError

TABLE = "[tool.dropseed.audit]"


@dataclass(frozen=True)
class Config:
    """What is read, which rules are reported, and where they are not.

    Attributes:
        select: codes or prefixes; None selects what is on by default.
        ignore: codes or prefixes that are left out.
        severity: the least that is reported of what no full code selects.
        preview: whether rules in preview run.
        exclude: patterns of files and folders that are not read.
        per_file_ignores: pattern -> codes or prefixes that are left out in the files it matches.
        baseline: the file of findings that are known, or None.
        root: the folder that patterns are relative to: that of pyproject.toml.
    """

    select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] = ()
    severity: Severity = Severity.WARNING
    preview: bool = False
    exclude: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    baseline: Path | None = None
    root: Path = field(default_factory=Path.cwd)


def read_config(start: Path) -> Config:
    """The configuration of a file or folder: from the nearest pyproject.toml that has the table.

    Args:
        start: the first path of the audit.

    Returns:
        The configuration; the defaults if there is no such file.

    Raises:
        ValueError: a pyproject.toml on the way can't be read, or has unknown keys, codes or words.
        TypeError: a key's value has the wrong type.

    Example:
        >>> read_config(Path("/")).severity.value
        'warning'
    """
    absolute = Path(os.path.abspath(start))
    for folder in (absolute, *absolute.parents):
        path = folder / "pyproject.toml"
        if path.is_file():
            table = _table(path)
            if table is not None:
                return _config(table, path)
    return Config()


def with_options(
    config: Config,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    severity: str | None = None,
    preview: bool = False,
    exclude: Sequence[str] = (),
    baseline: Path | None = None,
) -> Config:
    """Lay the command line's options over a configuration.

    Args:
        config: the configuration.
        select: takes the place of the configuration's `select` and `ignore`.
        ignore: is added to its `ignore`.
        severity: takes the place of its `severity`.
        preview: turns preview on.
        exclude: is added to its `exclude`; relative to the working directory or a scanned folder.
        baseline: takes the place of its `baseline`.

    Returns:
        A new configuration.

    Raises:
        ValueError: an unknown code or severity.

    Example:
        >>> with_options(Config(ignore=("DS303",)), select=["DS1,DS3"], ignore=["DS302"]).ignore
        ('DS302',)
    """
    added = codes(ignore, "`--ignore`")
    if select:
        config = replace(config, select=codes(select, "`--select`"), ignore=added)
    else:
        config = replace(config, ignore=config.ignore + added)
    if severity is not None:
        config = replace(config, severity=_severity(severity, "`--severity`"))
    return replace(
        config,
        preview=config.preview or preview,
        exclude=config.exclude + _anchored(exclude, Path.cwd()),
        baseline=baseline or config.baseline,
    )


def codes(words: Sequence[str], where: str) -> tuple[str, ...]:
    """Codes and prefixes out of a user's words; "ALL" is the prefix of all.

    Args:
        words: codes or prefixes, several in a word parted by commas.
        where: what the words were given to, for the message.

    Returns:
        The codes, in upper case.

    Raises:
        InvalidValueError: no rule's code begins so; the message names the nearest.

    Example:
        >>> codes(["ds101, DS3", "ALL"], "`--select`")
        ('DS101', 'DS3', 'DS')
    """
    found = tuple(part.strip().upper() for word in words for part in word.split(","))
    found = tuple(PREFIX if code == "ALL" else code for code in found if code)
    if words and not found:
        raise InvalidValueError(f"{where} needs a code, for instance DS101, DS1 or ALL.")
    for code in found:
        known = code.startswith(PREFIX) and any(rule.code.startswith(code) for rule in RULES)
        if not known:
            raise InvalidValueError(f"{where} has {code}, which is no rule's code.{hint(code)}")
    return found


def hint(word: str) -> str:
    """The rule that a wrong code or a name may have meant, as a sentence.

    Args:
        word: what was written.

    Returns:
        A sentence with a space before it.

    Example:
        >>> hint("unused-ignores")
        ' Did you mean DS002?'
    """
    names = {rule.name.upper(): rule.code for rule in RULES}
    names |= {rule.code: rule.code for rule in RULES}
    nearest = get_close_matches(word.upper(), names, n=1)
    return f" Did you mean {names[nearest[0]]}?" if nearest else " See `dropseed audit --rules`."


def matches(path: Path, pattern: str, root: Path) -> bool:
    """Whether a pattern names a file, a folder around it, or the file's name alone.

    Args:
        path: the file.
        pattern: with `*`, `?` and `**`; relative to the root, or a name.
        root: what the pattern is relative to.

    Returns:
        True if it does.

    Example:
        >>> matches(Path("/a/tests/deep/b.py"), "tests", Path("/a"))
        True
        >>> matches(Path("/a/tests/deep/b.py"), "deep/*.py", Path("/a"))
        False
    """
    whole = Path(os.path.abspath(path)).as_posix()
    pattern = pattern.rstrip("/")
    base = Path(os.path.abspath(root / pattern)).as_posix()
    if fnmatchcase(path.name, pattern):
        return True
    bases = {base, base.replace("/**/", "/")}
    return any(fnmatchcase(whole, one) or fnmatchcase(whole, f"{one}/*") for one in bases)


def _anchored(patterns: Iterable[str], root: Path) -> tuple[str, ...]:
    """The patterns, and those with a folder in them absolute, too."""
    patterns = tuple(pattern.rstrip("/") for pattern in patterns)
    deep = [pattern for pattern in patterns if "/" in pattern]
    return patterns + tuple(Path(os.path.abspath(root / pattern)).as_posix() for pattern in deep)


def _table(path: Path) -> dict[str, Any] | None:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        for part in re.findall(r"\w+", TABLE):
            table = table.get(part, {}) if isinstance(table, dict) else {}
    except (OSError, ValueError) as error:
        raise InvalidValueError(f"{path} can't be read: {error}.") from error
    return table or None


def _config(table: dict[str, Any], path: Path) -> Config:
    values: dict[str, Any] = {}
    for key, value in table.items():
        read = _KEYS.get(key)
        if read is None:
            nearest = get_close_matches(key, _KEYS, n=1)
            meant = f" Did you mean `{nearest[0]}`?" if nearest else f" It has {', '.join(_KEYS)}."
            raise InvalidValueError(f"{TABLE} in {path} has no key `{key}`.{meant}")
        values[key.replace("-", "_")] = read(value, f"`{key}` of {TABLE} in {path}", path.parent)
    return Config(**values, root=path.parent)


def _strings(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidTypeError(f"{where} must be a list of strings; got {value!r}.")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidTypeError(f"{where} must be a string; got {value!r}.")
    return value


def _switch(value: object, where: str, root: Path) -> bool:
    if not isinstance(value, bool):
        raise InvalidTypeError(f"{where} must be true or false; got {value!r}.")
    return value


def _codes(value: object, where: str, root: Path) -> tuple[str, ...]:
    return codes(_strings(value, where), where)


def _severity(value: object, where: str) -> Severity:
    word = _string(value, where).lower()
    if word not in list(Severity):
        raise InvalidValueError(f"{where} must be one of {', '.join(Severity)}; got {value!r}.")
    return Severity(word)


def _per_file(value: object, where: str, root: Path) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise InvalidTypeError(f"{where} must be a table of pattern = codes; got {value!r}.")
    return {
        pattern: _codes(found, f"{pattern!r} in {where}", root) for pattern, found in value.items()
    }


_KEYS: dict[str, Callable[[Any, str, Path], Any]] = {
    "select": _codes,
    "ignore": _codes,
    "severity": lambda value, where, root: _severity(value, where),
    "preview": _switch,
    "exclude": lambda value, where, root: _anchored(_strings(value, where), root),
    "per-file-ignores": _per_file,
    "baseline": lambda value, where, root: root / _string(value, where),
}
