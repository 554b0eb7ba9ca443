"""Which release of dropseed this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def release() -> str:
    """The installed version; "0" where the source is used without an installation.

    Returns:
        The version.

    Example:
        >>> release()[0].isdigit()
        True
    """
    try:
        return version("dropseed")
    except PackageNotFoundError:
        return "0"
