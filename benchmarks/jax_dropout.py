"""Dropout under `jax.jit`: every route, against `jax.random.bernoulli` and `where`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import dropseed.jax as dsj
from benchmarks.harness import Bar, per_element, show, show_bars
from dropseed.jax import host
from dropseed.kernels import cpu
from dropseed.mask import Rate
from dropseed.mask.shard import whole

SIZE = 2**20
_KEY = dsj.key(7, "features.3", 2)
_THEIRS = jax.random.key(7)


@contextmanager
def _kernel(used: bool) -> Iterator[None]:
    """Compile with the CPU kernel or without, wherever it could be used."""
    takes = host.takes
    host.takes = takes if used else lambda *_: False
    try:
        yield
    finally:
        host.takes = takes


def _bernoulli(x: jax.Array, rate: float) -> jax.Array:
    mask = jax.random.bernoulli(_THEIRS, 1 - rate, x.shape)
    return jnp.where(mask, x / (1 - rate), 0)


def _ours(x: jax.Array, rate: float) -> jax.Array:
    return dsj.dropout(_KEY, x, rate)


def _by_callback(x: jax.Array, rate: float) -> jax.Array:
    """The same kernel, called back through Python."""
    strength, draws = Rate(rate), whole(x.shape)

    def draw(words: Any) -> np.ndarray:
        mask = np.empty(x.shape, np.bool_)
        key = tuple(int(word) for word in np.asarray(words))
        cpu.keep(mask, draws, key, strength.threshold, threads=1)
        return mask

    @jax.checkpoint
    def apply(x: jax.Array) -> jax.Array:
        mask = jax.pure_callback(draw, jax.ShapeDtypeStruct(x.shape, jnp.bool_), _KEY)
        return jnp.where(mask, x * strength.scale, 0)

    return apply(x)


ROUTES: dict[str, tuple[Callable[[jax.Array, float], jax.Array], bool]] = {
    "bernoulli + where": (_bernoulli, False),
    "XLA's operations": (_ours, False),
    "CPU kernel, foreign function": (_ours, True),
    "CPU kernel, Python callback": (_by_callback, True),
}


def _programs(rate: float, x: jax.Array) -> dict[str, dict[str, Callable[[], object]]]:
    """A compiled forward, and a compiled forward and backward, of each route."""
    forward: dict[str, Callable[[], object]] = {}
    both: dict[str, Callable[[], object]] = {}
    for name, (apply, used) in ROUTES.items():

        def there(x: jax.Array, apply: Any = apply) -> jax.Array:
            return apply(x, rate)

        def and_back(x: jax.Array, there: Any = there) -> tuple[jax.Array, jax.Array]:
            y, back = jax.vjp(there, x)
            return y, back(x)[0]

        with _kernel(used):
            one, two = jax.jit(there), jax.jit(and_back)
            jax.block_until_ready((one(x), two(x)))
        forward[name] = lambda one=one: jax.block_until_ready(one(x))
        both[name] = lambda two=two: jax.block_until_ready(two(x))
    return {"forward": forward, "forward and backward": both}


def _medians(calls: Mapping[str, Callable[[], object]], seconds: float = 4.0) -> dict[str, float]:
    """The median time of each call, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def routes() -> None:
    """2^20 elements in float32, forward and backward, at a rate with ties and one without."""
    rows, bars = [], []
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SIZE), jnp.float32)
    double = jax.jit(lambda x: x * 2)
    jax.block_until_ready(double(x))
    for rate in (0.1, 0.5):
        for way, calls in _programs(rate, x).items():
            t = _medians({"x * 2": lambda: jax.block_until_ready(double(x)), **calls})
            rows.append([f"{rate}, {way}", *(per_element(seconds, SIZE) for seconds in t.values())])
            theirs = t["bernoulli + where"]
            for name in ("XLA's operations", "CPU kernel, foreign function"):
                least = -3.0 if "foreign" in name else -1.0
                bars.append(Bar(f"{rate}, {way}: bernoulli over {name}", theirs / t[name], least))
    show(
        "Dropout under jit, 2^20 float32 elements, ns an element",
        ["rate, way", "x * 2", "bernoulli + where", "XLA", "foreign function", "callback"],
        rows,
        f"JAX {jax.__version__}. The kernel draws on one thread, XLA on all.",
    )
    show_bars("JAX bars", bars)


def variants() -> None:
    """The other laws, against the formula written out with `jax.random`."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(SIZE), jnp.float32)
    maps = x.reshape(16, 32, 32, 64)

    def theirs(x: jax.Array) -> jax.Array:
        return x * (1 + 0.5 * jax.random.normal(_THEIRS, x.shape))

    def blocks(x: jax.Array) -> jax.Array:
        draws = jax.random.bernoulli(_THEIRS, 0.003, (16, 26, 26, 64))
        low, high = (0, 0), (6, 6)
        covered = jax.lax.reduce_window(
            jnp.pad(draws, (low, high, high, low)),
            False,
            jax.lax.bitwise_or,
            (1, 7, 7, 1),
            (1, 1, 1, 1),
            "valid",
        )
        return jnp.where(covered, 0, x)

    calls = {
        "gaussian, jax.random": (jax.jit(theirs), x),
        "gaussian": (jax.jit(lambda x: dsj.gaussian(_KEY, x, 0.2)), x),
        "alpha": (jax.jit(lambda x: dsj.alpha(_KEY, x, 0.1)), x),
        "spatial": (jax.jit(lambda x: dsj.spatial(_KEY, x, 0.1)), maps),
        "drop_block, jax.random": (jax.jit(blocks), maps),
        "drop_block": (jax.jit(lambda x: dsj.drop_block(_KEY, x, 0.1)), maps),
    }
    ready = {name: lambda f=f, x=x: jax.block_until_ready(f(x)) for name, (f, x) in calls.items()}
    for call in ready.values():
        call()
    t = _medians(ready)
    rows = [[name, per_element(seconds, SIZE)] for name, seconds in t.items()]
    show("Other laws under jit, 2^20 float32 elements, forward", ["", "ns an element"], rows)


def main() -> None:
    routes()
    variants()


if __name__ == "__main__":
    main()
