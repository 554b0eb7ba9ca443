"""What is printed and drawn."""

import io

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console
from torch import nn

from dropseed import Key, Rate, keep
from dropseed.lab import pictures, show
from dropseed.lab.trace import Drops, trace


def printed(act, width=80, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    act(Console(file=stream, width=width))
    stream.flush()
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    "shape", [(5,), (3, 4), (2, 3, 4), (1,), (3, 100_000), (0,), (2, 0), (0, 2)]
)
def test_a_mask_drawn_in_pieces_is_the_mask(shape):
    rows = show.whole_mask(Key(9, 2, 3), Rate(0.3), shape)
    np.testing.assert_array_equal(rows.ravel(), keep(Key(9, 2, 3), 0.3, shape).ravel())


def test_a_mask_too_large_is_refused():
    with pytest.raises(ValueError, match=r"`--shape` has 1,000,000,000,000 values"):
        show.whole_mask(Key(0), Rate(0.5), (10**6, 10**6))


def test_a_mask_in_text():
    rows = np.array([[True, False, True], [False, False, True]])
    assert printed(lambda console: show.print_mask(rows, console)) == "█.█\n..█\n"
    assert printed(lambda console: show.print_mask(rows, console), encoding="ascii") == "#.#\n..#\n"


def test_what_does_not_fit_is_said():
    lines = printed(lambda c: show.print_mask(np.ones((20, 100), bool), c), 60).splitlines()
    assert lines == ["█" * 60] * 16 + ["Shown: 16 of 20 rows, 60 of 100 values each."]


def test_the_table_of_a_model_with_layers_that_are_not_called():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    table = printed(lambda console: console.print(show.trace_table(trace(model, [2]), 20)))
    assert all(text in table for text in ("1x3", "not called", "11", "20"))
    assert len({len(line) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("drops", "sentence"),
    [
        (
            Drops(1600, 799, 2.0, 809, True),
            "of 1,600 values 799 dropped, the 801 survivors times 2;",
        ),
        (
            Drops(1600, 799, 2.0, 809, True),
            "another mask at the next pass (809 values change sides)",
        ),
        (Drops(1600, 799, 2.0, 809, True), "all 1,600 values pass unchanged, deterministic"),
        (
            Drops(10, 10, float("nan"), 0, True),
            "10 dropped, no survivors; the same at the next pass",
        ),
        (Drops(10, 5, 1.0, 5, False), "drop, inference: the values are changed"),
    ],
)
def test_what_a_dropout_does_in_words(drops, sentence):
    assert sentence in show.drop_sentences("drop", drops)


METRICS = {"train_loss": 0.2, "train_accuracy": 0.94, "test_loss": 0.05, "test_accuracy": 0.985}


def test_runs_side_by_side():
    runs = {name: {**METRICS, "seconds": 12.34} for name in ("without dropout", "dropout 0.5")}
    table = printed(lambda console: console.print(show.comparison_table(runs)))
    for text in ("98.50%", "0.0500 nats", "94.00%", "+4.50 points", "12.3 s"):
        assert table.count(text) == 2


def read_png(content):
    return matplotlib.image.imread(io.BytesIO(content), format="png")


def test_curves_are_a_picture():
    epochs = [{"epoch": number, **METRICS} for number in (1, 2, 3)]
    picture = read_png(pictures.curves({"one": epochs, "two": epochs[:1]}))
    assert picture.shape == (504, 1200, 4)
    assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 10


def test_the_picture_of_a_mask_has_its_cells():
    """A mask kept on its left half is dark on the left of the picture and light on the right."""
    rows = np.tile(np.arange(40) < 20, (4, 1))
    picture = read_png(pictures.mask(rows, "half"))[100:400, :, :3].mean(axis=(0, 2))
    assert picture[300:500].mean() < 0.4 < 0.9 < picture[800:1000].mean()
