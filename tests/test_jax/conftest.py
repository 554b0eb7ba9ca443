"""The routes by which draws are made."""

from functools import partial

import pytest

from dropseed import Key


def _by_kernel(words, **options):
    from dropseed.jax import host

    if options["geometry"].size == 0:  # an empty array never reaches it
        return _by_xla(words, spread=False, **options)
    assert host.takes(options["kind"], options["geometry"])
    return host.by_kernel(words, **options)


def _by_xla(words, *, spread, **options):
    from dropseed.jax import primitive

    return primitive.by_xla(words, spread=spread, **options)


ROUTES = {
    "kernel": _by_kernel,
    "xla": partial(_by_xla, spread=False),
    "xla, spread": partial(_by_xla, spread=True),
}


@pytest.fixture(params=list(ROUTES))
def route(request):
    """A compiled function of (words, kind, geometry) for each route."""
    jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
    if request.param == "kernel":
        pytest.importorskip("numba", reason="needs dropseed[torch]")
    return jax.jit(ROUTES[request.param], static_argnames=("kind", "geometry"))


@pytest.fixture(params=[False, True], ids=["kernel", "xla"])
def each_route(request, monkeypatch):
    """Both ways in which a program on one device may be compiled."""
    jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
    from dropseed.jax import host

    if request.param:
        monkeypatch.setattr(host, "takes", lambda *_: False)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def quick():
    """Compile without most of XLA's optimisations, where many programs are only run once."""
    jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def key():
    """A key all of whose words are large."""
    return Key(2**63 + 5, 2**32 - 77, 2**32 - 1)
