"""WHAT is dropped: masks as pure functions of a key. NumPy and the standard library only."""

from dropseed.mask import schedule
from dropseed.mask.key import Key, site_number
from dropseed.mask.rate import Factors, Rate
from dropseed.mask.reference import drop_block, gaussian, integers, keep, subset, uniform
from dropseed.mask.shape import noise_shape, shared_axes

__all__ = [
    "Factors",
    "Key",
    "Rate",
    "drop_block",
    "gaussian",
    "integers",
    "keep",
    "noise_shape",
    "schedule",
    "shared_axes",
    "site_number",
    "subset",
    "uniform",
]
