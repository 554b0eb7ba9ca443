"""The foreign function: where it is used, where it must not be, and that it survives."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dropseed import Key, keep
from dropseed.errors import MissingExtraError

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")
host = pytest.importorskip("dropseed.jax.host")
Geometry = pytest.importorskip("dropseed.kernels.xla").Geometry

KEY = Key(7, 8, 9)
NAME = "dropseed_keep"


def text(function, *arguments):
    return jax.jit(function).lower(*arguments).as_text()


@pytest.fixture
def numba():
    pytest.importorskip("numba", reason="needs dropseed[torch]")


@pytest.mark.usefixtures("numba")
def test_programs_of_one_cpu_call_it():
    x = jnp.ones((8, 5))
    assert NAME in text(lambda x: dsj.dropout(KEY, x, 0.3), x)
    assert NAME in text(lambda x: dsj.dropout(KEY, x, 0.3, start=3), x)
    assert NAME in text(jax.grad(lambda x: dsj.dropout(KEY, x, 0.3).sum()), x)
    assert "dropseed_normals" in text(lambda x: dsj.gaussian(KEY, x, 0.3), x)


@pytest.mark.usefixtures("numba")
def test_what_it_does_not_draw():
    assert host.takes("keep", Geometry((4, 8), (8, 1), None))
    assert not host.takes("keep", Geometry((4, 8), (16, 1), 0))  # rows apart
    assert not host.takes("keep", Geometry((4,), (2,), 0))  # every other draw
    assert not host.takes("normals", Geometry((4, 8), (8, 1), 3))  # from within a block
    assert not host.takes("normals", Geometry((4, 8), (8, 1), None))


def test_many_cores_draw_by_xla(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: host.CORES + 1)
    assert not host.takes("keep", Geometry((4,), (1,), 0))


def test_without_numba_xla_draws(monkeypatch):
    monkeypatch.setitem(sys.modules, "dropseed.jax.foreign", None)
    monkeypatch.delattr(dsj, "foreign", raising=False)
    host._registered.cache_clear()
    jax.clear_caches()
    assert not host.takes("keep", Geometry((4,), (1,), 0))
    assert np.array_equal(dsj.keep(KEY, 0.3, 50), keep(KEY, 0.3, 50))
    host._registered.cache_clear()


@pytest.mark.usefixtures("numba")
def test_a_refused_handler_is_a_warning(monkeypatch):
    from dropseed.jax import foreign

    def refuse(kind):
        raise RuntimeError("version 9 is wanted")

    monkeypatch.setattr(foreign, "register", refuse)
    host._registered.cache_clear()
    with pytest.warns(UserWarning, match="version 9 is wanted.*same bits"):
        assert not host.takes("keep", Geometry((4,), (1,), 0))
    host._registered.cache_clear()


@pytest.mark.usefixtures("numba")
def test_xla_refuses_a_handler_of_another_version(tmp_path):
    """What a later XLA would do to ours: an error when it is registered, not a crash later."""
    code = (
        "from dropseed.jax import foreign\n"
        "foreign.API_VERSION = 9, 9\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "import dropseed.jax as dsj\n"
        "from dropseed.jax import host\n"
        "print(int(dsj.keep(dsj.key(0), 0.5, 8).sum()), host._registered('keep'))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["5", "False"]


def test_an_exported_program_calls_nothing_of_ours():
    function = jax.jit(lambda words: dsj.keep(words, 0.3, (6, 5)))
    words = dsj.key(KEY)
    exported = jax.export.export(function)(words)
    assert NAME not in exported.mlir_module()
    assert np.array_equal(exported.call(words), keep(KEY, 0.3, (6, 5)))


def test_threads():
    function = jax.jit(lambda words, x: dsj.dropout(words, x, 0.3))
    x = jnp.ones(70_000)

    def run(seed):
        return np.asarray(function(dsj.key(seed), x)) != 0

    with ThreadPoolExecutor(8) as pool:
        masks = list(pool.map(run, range(24)))
    for seed in range(0, 24, 5):
        assert np.array_equal(masks[seed], keep(Key(seed), 0.3, 70_000))


def test_a_program_on_disk(tmp_path):
    """A second process finds the compiled program, and registers the function it calls."""
    code = (
        "import jax, numpy as np, dropseed.jax as dsj\n"
        "from dropseed import Key, keep\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.config.update('jax_persistent_cache_min_entry_size_bytes', 0)\n"
        "f = jax.jit(lambda words: dsj.keep(words, 0.3, 1000))\n"
        "print(np.array_equal(f(dsj.key(5)), keep(Key(5), 0.3, 1000)))\n"
    )
    variables = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        command = [sys.executable, "-c", code]
        run = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert run.stdout.split() == ["True"]
    assert list(tmp_path.iterdir())


def test_what_is_missing_is_named():
    """Without JAX, Flax or Equinox: one sentence with the command."""
    for absent, module in (
        ("jax", "dropseed.jax"),
        ("flax", "dropseed.jax.nnx"),
        ("equinox", "dropseed.jax.equinox"),
    ):
        code = f"import sys; sys.modules[{absent!r}] = None\nimport {module}"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == 1
        last = run.stderr.strip().splitlines()[-1]
        assert MissingExtraError.__name__ in last
        assert f"`{absent}` is not installed. Install it with: pip install" in last


def test_what_is_loaded():
    code = (
        "import sys, dropseed.jax\n"
        "print(*sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'numba', 'flax', "
        "'equinox', 'keras', 'tensorflow'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []


def test_unknown_names():
    with pytest.raises(AttributeError, match="no attribute 'haiku'"):
        _ = dsj.haiku
