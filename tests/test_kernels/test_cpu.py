"""The CPU kernels against the reference: known answers, and properties over every geometry."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import kernel_checks as checks
from dropseed.kernels import cpu
from dropseed.mask import Key, Rate
from dropseed.mask.shard import Draws, part, whole

KEYS = st.builds(
    Key, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
RATES = st.one_of(
    st.sampled_from([0.0, 0.001, 1 / 512, 0.1, 0.25, 0.5, 0.9, 255.5 / 256, 1.0]),
    st.floats(0, 1),
)


def test_vectors():
    checks.check_vectors(cpu)


def test_known_blocks():
    checks.check_blocks(cpu)


def test_all_patterns_of_the_16_bit_types():
    checks.check_all_patterns(cpu)


def test_every_tie_is_settled_exactly():
    checks.check_every_tie(cpu)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), key=KEYS, rate=RATES, dtype=st.sampled_from(checks.FLOATS))
def test_any_layout_and_shared_axes(data, key, rate, dtype):
    shape = tuple(data.draw(st.lists(st.integers(0, 40), max_size=4)))
    assume(math.prod(shape) <= 2**18)
    order = data.draw(st.permutations(range(len(shape))))
    shared = data.draw(st.sets(st.sampled_from(range(len(shape))))) if shape else ()
    threads = data.draw(st.integers(1, 4))
    x = checks.random_tensor(shape, dtype, order)
    checks.check_dropout(cpu, x, whole(shape, shared), key, rate, threads)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), key=KEYS, rate=RATES, dtype=st.sampled_from(checks.FLOATS))
def test_the_affine_law(data, key, rate, dtype):
    shape = tuple(data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3)))
    order = data.draw(st.permutations(range(len(shape))))
    shared = data.draw(st.sets(st.sampled_from(range(len(shape)))))
    x = checks.random_tensor(shape, dtype, order)
    checks.check_affine(cpu, x, whole(shape, shared), key, rate, data.draw(st.integers(1, 4)))


@settings(max_examples=40, deadline=None)
@given(
    key=KEYS,
    size=st.sampled_from([0, 1, 15, 17, 2047, 2048, 2049, 70_000]),
    sigma=st.floats(0, 100),
    dtype=st.sampled_from(checks.FLOATS),
    threads=st.integers(1, 4),
)
def test_gaussian_noise(key, size, sigma, dtype, threads):
    checks.check_gaussian(cpu, checks.random_tensor((size,), dtype), key, sigma, threads)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), key=KEYS, gamma=RATES, dtype=st.sampled_from(checks.FLOATS))
def test_blocks_of_any_shape(data, key, gamma, dtype):
    tops = data.draw(st.sampled_from([(1, 1, 300), (1, 40, 90), (6, 8, 10), (1, 1, 1)]))
    sizes = [data.draw(st.integers(1, top)) for top in tops]
    block = tuple(data.draw(st.integers(1, size)) for size in sizes)
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), *sizes)
    checks.check_drop_block(
        cpu,
        checks.random_tensor(shape, dtype),
        block,
        key,
        gamma,
        data.draw(st.sampled_from([None, 1.25])),
        data.draw(st.booleans()),
        data.draw(st.integers(0, 5)),
        data.draw(st.integers(1, 3)),
    )


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("gamma", [0.0004, 1 / 256, 0.02])
def test_blocks_of_large_maps(gamma, shared):
    """More draws than a chunk, more rows than a piece, more threads than samples."""
    x = checks.random_tensor((2, 7, 1, 100, 200), torch.float32)
    checks.check_drop_block(cpu, x, (1, 6, 70), Key(5, 6, 7), gamma, None, shared, 3, 3)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), key=KEYS, rate=RATES, dtype=st.sampled_from(checks.FLOATS))
def test_dropped_weights_of_any_shape(data, key, rate, dtype):
    sizes = tuple(data.draw(st.integers(1, top)) for top in (5, 40, 300))
    start, threads = data.draw(st.integers(0, 2**20)), data.draw(st.integers(1, 3))
    checks.check_drop_connect(cpu, sizes, dtype, key, rate, start, threads)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", checks.FLOATS, ids=str)
@pytest.mark.parametrize("sizes", [(3, 2, 2 * cpu.CHUNK + 7), (5, 70, 1000), (40, 300, 33)])
def test_dropped_weights_of_large_layers(sizes, dtype, threads):
    """Rows of several chunks, tiles that the rows don't fill, more tiles than lanes."""
    checks.check_drop_connect(cpu, sizes, dtype, Key(3, 4, 5), 0.3, 2, threads)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), key=KEYS, rate=RATES)
def test_any_shard(data, key, rate):
    rank = data.draw(st.integers(1, 4))
    of = data.draw(st.lists(st.integers(1, 30), min_size=rank, max_size=rank))
    start = [data.draw(st.integers(0, n - 1)) for n in of]
    stride = [data.draw(st.integers(1, 3)) for _ in of]
    room = [(n - 1 - s) // t + 1 for n, s, t in zip(of, start, stride, strict=True)]
    shape = [data.draw(st.integers(1, r)) for r in room]
    start[0] += data.draw(st.sampled_from([0, 2**20, 2**40]))
    order = data.draw(st.permutations(range(rank)))
    x = checks.random_tensor(shape, torch.float32, order)
    checks.check_dropout(cpu, x, part(shape, start, stride, of), key, rate)


SHAPES = [
    (3 * cpu.CHUNK + 5,),
    (5, cpu.CHUNK + 3),
    (2, 70, 33, 31),
    (3, 2, 300, 70),
    (1, 600, 9, 9),
    (7, 3, 64, 64),
    (600, 700),
]


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 7, 8, 9, 511, 512, 513, 514, 516, 520, 1025])
@pytest.mark.parametrize("rows", [7, 64, 2051])
def test_tiles_of_any_width(rows, columns):
    """Each width has its way to turn a tile, and the last tile across has what is left."""
    if rows * columns > 2**17:
        rows = 100
    x = checks.random_tensor((columns, rows), torch.float32, (1, 0))
    checks.check_dropout(cpu, x, whole((columns, rows)), Key(21, 22, 23), 0.3)
    x = checks.random_tensor((2, columns, rows), torch.float32, (0, 2, 1))
    draws = part((2, columns, rows), (0, 0, 3), 1, (2, columns, rows + 5))
    checks.check_dropout(cpu, x, draws, Key(24), 0.3)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_large_geometries(shape, threads):
    """More than a chunk, a tile and a thread's share, in every memory order."""
    assert math.prod(shape) >= cpu.CHUNK
    for order in itertools.islice(itertools.permutations(range(len(shape))), 0, None, 5):
        x = checks.random_tensor(shape, torch.float32, order)
        for shared in ((), tuple(range(2, len(shape))), tuple(range(1, len(shape) - 1))):
            checks.check_dropout(cpu, x, whole(shape, shared), Key(11, 12, 13), 0.3, threads)


@pytest.mark.parametrize("start", [2**32 - 7, 2**36 - 16, 2**44 - 9, 2**60 + 1, 2**63 - 5000])
def test_far_indices(start):
    x = checks.random_tensor((5000,), torch.float64)
    checks.check_dropout(cpu, x, part(5000, start), Key(3, 4, 5), 0.1)


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", checks.FLOATS, ids=str)
def test_thread_count_does_not_enter(dtype, threads):
    x = checks.random_tensor((5 * cpu.GRAIN + 17,), dtype)
    checks.check_dropout(cpu, x, whole(tuple(x.shape)), Key(8), 0.2, threads)


def test_numpy_callers_use_numba_s_threads(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu.numba, "get_num_threads", lambda: seen.append(1) or 2)
    x = np.ones(4 * cpu.GRAIN, np.float32)
    cpu.dropout(x, x, whole(x.shape), Key(0).words, Rate(0.5).threshold, 2.0)
    assert seen


def test_scale_is_rounded_once():
    """1 / (1 - 0.3) in double, then float32; not the quotient of float32 numbers."""
    x, rate = np.full(64, 3.0, np.float32), Rate(0.3)
    cpu.dropout(x, x, whole(x.shape), Key(0).words, rate.threshold, rate.scale)
    assert set(x.tolist()) == {0.0, float(np.float32(3) * np.float32(rate.scale))}


def test_words_of_any_block():
    out = np.empty(16 * 4, np.uint32)
    cpu.words(out, Key(5).words, 3, 2**40)
    one = np.empty(4, np.uint32)
    cpu.words(one, Key(5).words, 3, 2**40 + 15)
    assert np.array_equal(out[-4:], one)


def test_draws_may_start_anywhere_in_a_block():
    for base in range(16):
        x = checks.random_tensor((100,), torch.float32)
        checks.check_dropout(cpu, x, Draws((100,), base, (1,)), Key(1), 0.4)
