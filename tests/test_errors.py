import pickle

import pytest

from dropseed import errors

ALL = [
    errors.DropseedError("text"),
    errors.InvalidValueError("text"),
    errors.InvalidTypeError("text"),
    errors.MissingExtraError("numba", "torch"),
    errors.DataError("text"),
    errors.RunError("text"),
    errors.DropoutError("text"),
]


def test_none_is_forgotten():
    classes = {c for c in vars(errors).values() if isinstance(c, type)}
    assert {type(error) for error in ALL} == classes


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_one_class_catches_all(error):
    assert isinstance(error, errors.DropseedError)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (errors.InvalidValueError, ValueError),
        (errors.InvalidTypeError, TypeError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_built_in_bases(error, builtin):
    assert issubclass(error, builtin)


def test_missing_extra_gives_the_command():
    error = errors.MissingExtraError("numba", "torch")
    assert str(error) == (
        "`numba` is not installed. Install it with: pip install 'dropseed[torch]'"
    )


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_errors_cross_processes(error):
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error)
