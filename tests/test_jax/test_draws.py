"""The draws of every route against the reference: known answers, and properties."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vectors
from dropseed import Key, Rate, gaussian, keep, uniform
from dropseed.mask import shared_axes
from dropseed.mask.shard import part

jax = pytest.importorskip("jax", reason="needs dropseed[jax]")
pytestmark = pytest.mark.usefixtures("quick")
jnp = jax.numpy
dsj = pytest.importorskip("dropseed.jax")
primitive = pytest.importorskip("dropseed.jax.primitive")
xla = pytest.importorskip("dropseed.kernels.xla")
draws = pytest.importorskip("dropseed.jax.shards").draws
Geometry = xla.Geometry

KEYS = st.builds(
    Key, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
RATES = st.one_of(
    st.sampled_from([0.0, 2**-32, 0.001, 1 / 512, 0.1, 0.25, 0.5, 0.9, 255.5 / 256, 1.0]),
    st.integers(0, 256).map(lambda byte: byte / 256),
    st.floats(0, 1),
)
SHAPES = [(), (0,), (3, 0, 2), (100_000,), (4, 32), (9, 1), (6, 7, 7, 2)]

slow = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

by_xla = jax.jit(primitive.by_xla, static_argnames=("kind", "geometry", "spread"))


def words(key, rate, base=0):
    """What the routes take."""
    threshold = Rate(rate).threshold
    everything = threshold == 2**32
    low = 0 if everything else threshold
    return np.array([*key.words, base % 2**32, base >> 32, low, everything], np.uint32)


def mask(route, key, rate, place):
    geometry = Geometry(place.shape, place.strides, None)
    return np.asarray(route(words(key, rate, place.base), kind="keep", geometry=geometry))


@pytest.mark.parametrize("case", vectors.cases("keep"), ids=lambda case: str(case.rate))
def test_vectors(route, case):
    place = part(case.count, case.start)
    assert np.array_equal(mask(route, case.key, case.rate, place), case.keep)


@pytest.mark.parametrize("start", [0, 5])
def test_a_known_offset(route, start):
    case = next(case for case in vectors.cases("keep") if case.start == 0)
    geometry = Geometry((case.count - start,), (1,), start)
    got = route(words(case.key, case.rate, start), kind="keep", geometry=geometry)
    assert np.array_equal(got, case.keep[start:])


def test_pins(route):
    for case in vectors.cases("pins"):
        for rate in case.keeps + case.drops:
            kept = mask(route, case.key, rate, part(16, case.index // 16 * 16))
            assert kept[case.index % 16] == (rate in case.keeps)


@slow
@given(key=KEYS, rate=RATES, shape=st.sampled_from(SHAPES))
def test_any_key_rate_and_shape(route, key, rate, shape):
    place = part(shape)
    assert np.array_equal(mask(route, key, rate, place), keep(key, rate, shape))


def test_every_tie_is_settled_exactly(route):
    key = Key(2**63 + 5, 77, 2**32 - 1)
    for start in (0, 2**36 - 32, 2**48 - 48, 2**62 + 16):
        for at in (0, 17, 63):
            u = round(uniform(key, 1, start=start + at)[0] * 2**32 - 0.5)
            for rate in (u / 2**32, (u + 1) / 2**32):
                got = mask(route, key, rate, part(64, start))
                assert np.array_equal(got, keep(key, rate, 64, start=start))
                assert got[at] == (rate == u / 2**32)


@pytest.mark.parametrize("start", [1, 15, 2**32 - 7, 2**36 - 16, 2**44 - 9, 2**60 + 1, 2**63 - 500])
def test_far_indices(route, start):
    place = part(500, start)
    assert np.array_equal(
        mask(route, Key(3, 4, 5), 0.1, place), keep(Key(3, 4, 5), 0.1, 500, start=start)
    )


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize(
    ("shape", "start", "stride", "of"),
    [
        ((4, 5), (1, 2), (1, 1), (9, 9)),
        ((2, 3, 32), (1, 0, 32), (1, 1, 1), (4, 3, 64)),
        ((2, 2, 3), (2**40, 1, 0), (3, 1, 2), (4, 4, 8)),
        ((2, 2), (2**31, 0), (2**29, 1), (1, 2)),
    ],
)
def test_shards_by_xla(spread, shape, start, stride, of):
    place = part(shape, start, stride, of)
    key, rate = Key(11, 12, 13), 0.3
    want = keep(key, rate, shape, start=start, stride=stride, of=of)
    for offset in {place.base % 16, None}:
        geometry = Geometry(place.shape, place.strides, offset)
        got = by_xla(
            jnp.asarray(words(key, rate, place.base)), kind="keep", geometry=geometry, spread=spread
        )
        assert np.array_equal(got, want)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), key=KEYS)
def test_any_shard(data, key):
    rank = data.draw(st.integers(1, 3))
    of = data.draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    start = [data.draw(st.integers(0, n - 1)) for n in of]
    stride = [data.draw(st.integers(1, 3)) for _ in of]
    room = [(n - 1 - s) // t + 1 for n, s, t in zip(of, start, stride, strict=True)]
    shape = tuple(data.draw(st.integers(1, r)) for r in room)
    place = draws(shape, tuple(start), tuple(stride), tuple(of))
    got = primitive.keep(
        jnp.asarray(np.array(key.words, np.uint32)), 2**30 + 1, False, place.base, place.geometry
    )
    want = keep(key, (2**30 + 1) / 2**32, shape, start=start, stride=stride, of=of)
    assert np.array_equal(got, want)


def test_rows_of_words_are_keys_of_their_own(route):
    keys = [Key(5, 1, 2), Key(2**64 - 1, 3, 4), Key(0)]
    rates = [0.1, 1.0, 0.5]
    geometry = Geometry((5, 7), (7, 1), 0)
    rows = np.stack([words(key, rate) for key, rate in zip(keys, rates, strict=True)])
    for batch in (rows[:2], np.stack([rows, rows[::-1]])):
        got = np.asarray(route(batch, kind="keep", geometry=geometry))
        flat = got.reshape(-1, 5, 7)
        for i, row in enumerate(batch.reshape(-1, 8)):
            assert np.array_equal(flat[i], route(row, kind="keep", geometry=geometry))
    assert np.array_equal(got[0, 0], keep(keys[0], 0.1, (5, 7)))
    assert not got[0, 1].any()


@pytest.mark.parametrize("case", vectors.cases("gaussian"), ids=lambda case: str(case.start))
def test_normal_vectors(case):
    place = draws(len(case.values), case.start)
    words = jnp.asarray(np.array(case.key.words, np.uint32))
    got = primitive.normals(words, place.base, place.geometry)
    assert np.abs(np.asarray(got, np.float64) - case.values).max() < 2**-18


@pytest.mark.parametrize(
    ("shape", "base"), [((5_000,), 2**36 - 16), ((4, 32), 0), ((0, 3), 0), ((), 0)]
)
def test_normal_draws(route, shape, base):
    key, size = Key(2**40, 3, 4), int(np.prod(shape))
    place = part(shape)
    geometry = Geometry(place.shape, place.strides, 0)
    got = np.asarray(route(words(key, 0.0, base), kind="normals", geometry=geometry))
    assert got.dtype == np.float32
    assert np.abs(got.reshape(-1) - gaussian(key, size, start=base)).max(initial=0) < 2**-18


@pytest.mark.parametrize("offset", [3, None])
@pytest.mark.parametrize("spread", [False, True])
def test_normal_draws_that_begin_within_a_block(spread, offset):
    got = by_xla(
        jnp.asarray(words(Key(9), 0.0, 35)),
        kind="normals",
        geometry=Geometry((4, 25), (25, 1), offset),
        spread=spread,
    )
    want = gaussian(Key(9), 100, start=35).reshape(4, 25)
    assert np.abs(got - want).max() < 2**-18


def test_extreme_integers_have_finite_normal_draws():
    """The logarithm of the smallest and the largest integer, the cosine at its quarter turns."""
    u = jnp.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], jnp.uint32)
    want = -np.log((np.asarray(u, np.float64) + 1) / 2**32)
    got = np.asarray(xla._minus_log(u), np.float64)
    assert np.abs(got - want).max() < 2e-6
    assert abs(got[-2] / want[-2] - 1) < 1e-6
    v = jnp.array([0, 2**30, 2**31, 3 * 2**30, 1, 2**32 - 1, 2**30 + 1], jnp.uint32)
    want = np.cos(2 * np.pi * np.asarray(v, np.float64) / 2**32)
    assert np.abs(np.asarray(xla._cosine(v)) - want).max() < 2e-7


@pytest.mark.parametrize(
    ("geometry", "spread", "row"),
    [
        (Geometry((8, 4, 32), (128, 32, 1), 0), True, (1, (8, 4), 32)),
        (Geometry((8, 4, 32), (128, 32, 1), 0), False, (3, (), 1024)),
        (Geometry((8, 4, 32), (128, 32, 1), None), True, (1, (8, 4), 32)),
        (Geometry((8, 3, 10), (30, 10, 1), 0), True, (2, (8,), 30)),
        (Geometry((8, 1), (1, 0), 0), True, (2, (), 8)),
        (Geometry((8, 4), (8, 2), 0), False, (0, (8, 4), 1)),
        (Geometry((8, 4), (8, 1), 0), False, (1, (8,), 4)),
        (Geometry((), (), 0), True, (0, (), 1)),
    ],
)
def test_rows(geometry, spread, row):
    assert xla.run_of(geometry, spread) == row


@pytest.mark.parametrize("case", vectors.cases("noise"), ids=lambda case: case.variant)
def test_noise_vectors(case):
    shared = shared_axes(case.variant, len(case.shape))
    noise = [1 if axis in shared else None for axis in range(len(case.shape))]
    output = dsj.dropout(case.key, jnp.ones(case.shape), case.rate, noise_shape=noise)
    assert np.array_equal(np.asarray(output) != 0, case.keep)


@pytest.mark.parametrize("case", vectors.cases("shard"), ids=lambda case: str(case.of))
def test_shard_vectors(case):
    shard = {"start": case.start, "stride": case.stride, "of": case.of}
    assert np.array_equal(dsj.keep(case.key, case.rate, case.shape, **shard), case.keep)
