"""How the CPU kernels behave in a process: threads, forks, memory, caches and first calls."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dropseed.kernels import cpu
from dropseed.mask import Key, Rate, keep
from dropseed.mask.shard import whole

SIZE = 4 * cpu.GRAIN


def mask_of(seed, threads=2):
    out = np.empty(SIZE, np.bool_)
    cpu.keep(out, whole((SIZE,)), Key(seed).words, Rate(0.3).threshold, threads=threads)
    return out


def send_mask(queue):
    queue.put(mask_of(7))


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=300,
    )


def test_concurrent_calls_from_several_threads():
    expected = [keep(Key(seed), 0.3, SIZE) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for seed, mask in enumerate(pool.map(mask_of, [0, 1, 2, 3] * 25)):
            assert np.array_equal(mask, expected[seed % 4])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_draws_the_same_mask(method):
    """The parent has run in parallel before: a forked child must not touch its thread pool."""
    expected = mask_of(7)
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    worker = context.Process(target=send_mask, args=(queue,))
    worker.start()
    assert np.array_equal(queue.get(), expected)
    worker.join()
    assert worker.exitcode == 0


def test_torch_s_thread_count_stays():
    """Numba's OpenMP layer shares torch's pool, and sets its size when it starts."""
    done = run("""
        import torch, dropseed.torch as dst
        torch.set_num_threads(3)
        dst.functional.dropout(torch.ones(2**20), 0.5)
        assert torch.get_num_threads() == 3, torch.get_num_threads()
    """)
    assert done.returncode == 0, done.stderr


def test_no_memory_beyond_the_output():
    """In place on 256 MiB: the process grows by less than a sixteenth of it."""
    done = run("""
        import resource, numpy as np
        from dropseed.kernels import cpu
        from dropseed.mask.shard import whole
        x, small = np.ones((64, 2**20), np.float32), np.ones((4, 2**15), np.float32)
        for shared in ((), (1,)):
            cpu.dropout(small, small, whole(small.shape, shared), (1, 2, 3, 4), 2**30, 1.0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for shared in ((), (1,)):
            cpu.dropout(x, x, whole(x.shape, shared), (1, 2, 3, 4), 2**30, 1.0)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 16 * 1024, grown
    """)
    assert done.returncode == 0, done.stderr


ONE_CALL = """
    import warnings
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        from numba.core import caching
        {before}
        import numpy as np
        from dropseed.kernels import cpu
        from dropseed.mask.shard import whole
        x = np.ones(8, np.float32)
        cpu.dropout(x, x, whole((8,)), (0, 0, 0, 0), 2**31, 2.0)
    assert x.tolist() == [2, 2, 0, 0, 2, 2, 0, 2]
    print(sum("NUMBA_CACHE_DIR" in str(w.message) for w in seen))
"""


def test_kernels_are_cached_on_disk(tmp_path):
    done = run(ONE_CALL.format(before=""), NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "0", done.stderr
    assert list(tmp_path.rglob("cpu._rows-*.nbc"))


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param("caching.CacheImpl._locator_classes = []", id="no folder is writable"),
        pytest.param(
            "def save(*args): raise OSError(28, 'No space left on device')\n"
            "        caching.FunctionCache.save_overload = save",
            id="the disk is full",
        ),
    ],
)
def test_without_a_disk_cache_it_says_so_once(trouble, tmp_path):
    done = run(ONE_CALL.format(before=trouble), NUMBA_CACHE_DIR=str(tmp_path))
    assert done.stdout.strip() == "1", done.stderr
