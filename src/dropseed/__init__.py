"""dropseed: dropout whose masks are pure functions of a seed."""

from dropseed.mask import Key, Rate, drop_block, gaussian, integers, keep, schedule, subset, uniform

__version__ = "0.1.0"

__all__ = [
    "Key",
    "Rate",
    "__version__",
    "drop_block",
    "gaussian",
    "integers",
    "keep",
    "schedule",
    "subset",
    "uniform",
]
