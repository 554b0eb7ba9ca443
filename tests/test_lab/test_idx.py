import numpy as np
import pytest

from dropseed.errors import DataError
from dropseed.lab.idx import from_idx, to_idx


def test_a_header_by_hand():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert to_idx(array) == bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 0, 1, 2, 3, 4, 5])


def test_round_trip(digits):
    for array in digits:
        np.testing.assert_array_equal(from_idx(to_idx(array)), array)


def test_what_was_read_can_be_written_to():
    from_idx(to_idx(np.zeros(2, np.uint8)))[0] = 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an IDX file"),
        (b"\x1f\x8b\x08\x00", "not an IDX file"),
        (b"\0\0\x0d\1\0\0\0\0", "not an IDX file"),
        (b"\0\0\x08\3\0\0", "within its header"),
        (b"\0\0\x08\1\0\0\0\2\0", "has 10 bytes; this one has 9"),
        (b"\0\0\x08\1\0\0\0\2\0\0\0", "has 10 bytes; this one has 11"),
    ],
)
def test_anything_else_is_refused(content, reason):
    with pytest.raises(DataError, match=reason):
        from_idx(content)
