from pathlib import Path

import pytest

from dropseed.errors import RunError
from dropseed.lab import files
from dropseed.lab.folders import choose


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_runs_are_numbered():
    assert choose(None, "mnist", resume=False) == Path("runs/mnist-001")
    for name in ("mnist-001", "mnist-009", "demo-020", "mnist-old"):
        Path("runs", name).mkdir(parents=True)
    assert choose(None, "mnist", resume=False) == Path("runs/mnist-010")
    assert choose(None, "mnist", resume=True) == Path("runs/mnist-009")


@pytest.mark.parametrize("resume", [False, True])
def test_what_the_user_chose(resume):
    assert choose(Path("here"), "mnist", resume) == Path("here")


def test_nothing_to_resume():
    with pytest.raises(RunError, match="There is no run to resume"):
        choose(None, "mnist", resume=True)


@pytest.mark.parametrize(("module", "function"), [(files.os, "fsync"), (Path, "replace")])
def test_a_failed_write_leaves_the_old_file(module, function, tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    path = tmp_path / "deep" / "file"
    files.write_bytes(path, b"old")
    monkeypatch.setattr(module, function, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_bytes(path, b"new")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_files_have_the_usual_permissions(tmp_path):
    files.write_json(tmp_path / "a", {})
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode
