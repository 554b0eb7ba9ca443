import math

import pytest

from dropseed.lab.settings import Settings


@pytest.mark.parametrize(
    ("setting", "value", "kind"),
    [
        ("rate", 1.5, ValueError),
        ("rate", -0.1, ValueError),
        ("rate", math.nan, ValueError),
        ("rate", "0.5", TypeError),
        ("epochs", 0, ValueError),
        ("epochs", 1.0, TypeError),
        ("batch_size", 0, ValueError),
        ("train_size", 0, ValueError),
        ("train_size", 60_001, ValueError),
        ("seed", -1, ValueError),
        ("seed", 2**64, ValueError),
        ("threads", 0, ValueError),
        ("device", 0, TypeError),
    ],
)
def test_what_is_out_of_range_is_named(setting, value, kind):
    with pytest.raises(kind, match=f"`{setting}`"):
        Settings(**{setting: value})


def test_the_last_batch_may_be_smaller():
    settings = Settings(epochs=3, train_size=10, batch_size=4)
    assert (settings.steps_per_epoch, settings.steps) == (3, 9)


def test_other_settings_are_named():
    with pytest.raises(ValueError, match=r"`rate` is 0\.5 in the run to be resumed; got 0\.2"):
        Settings(rate=0.5).must_agree({"epochs": Settings().epochs, "rate": 0.2})
