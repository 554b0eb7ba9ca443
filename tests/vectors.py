"""The known answers of `mask_vectors.json`, parsed once for the reference and for every kernel."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dropseed.mask import Key

_FILE = json.loads(Path(__file__).with_name("mask_vectors.json").read_text(encoding="utf-8"))
SECTIONS = sorted(set(_FILE) - {"spec"})


def cases(section):
    """The vectors of a section, for `pytest.mark.parametrize("case", ...)`.

    A case has the file's fields as attributes, and two more: `key`, and `keep` as a boolean array
    (of the vector's shape if it has one).
    """
    return [_parse(fields) for fields in _FILE[section]]


def _parse(fields):
    case = SimpleNamespace(**fields)
    if "seed" in fields:
        case.key = Key(case.seed, case.site, case.step)
    if isinstance(fields.get("keep"), str):
        flat = np.array([digit == "1" for digit in case.keep])
        case.keep = flat.reshape(fields.get("shape", -1))
    return case
