"""Every vector of `mask_vectors.json`, through the reference."""

import hashlib

import numpy as np
import pytest

import vectors
from dropseed import Key, Rate, drop_block, gaussian, integers, keep, subset, uniform
from dropseed.mask import noise_shape, shared_axes, site_number
from dropseed.mask.philox import philox4x32
from dropseed.mask.shard import whole

TESTED = {
    "drop_block",
    "fold",
    "gaussian",
    "integer",
    "keep",
    "noise",
    "output_16_bit",
    "philox",
    "pins",
    "rates",
    "shard",
    "subset",
    "uniform",
}


def test_no_section_is_forgotten():
    assert set(vectors.SECTIONS) == TESTED


@pytest.mark.parametrize("section", vectors.SECTIONS)
def test_sections_have_cases(section):
    assert vectors.cases(section)


@pytest.mark.parametrize("case", vectors.cases("philox"))
def test_philox(case):
    assert [int(word) for word in philox4x32(tuple(case.counter), case.key)] == case.words


def test_philox_takes_arrays():
    cases = vectors.cases("philox")
    counters = np.array([case.counter for case in cases])
    for row, case in enumerate(cases):
        words = philox4x32(tuple(counters.T), case.key)
        assert [int(w[row]) for w in words] == case.words
        assert all(w.dtype == np.uint32 and w.shape == (len(cases),) for w in words)


@pytest.mark.parametrize("case", vectors.cases("keep"))
def test_keep(case):
    mask = keep(case.key, case.rate, case.count, start=case.start)
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, case.keep)


@pytest.mark.parametrize(
    "case", [case for case in vectors.cases("keep") if hasattr(case, "site_name")]
)
def test_site_names(case):
    assert site_number(case.site_name) == case.site
    assert Key(case.seed, step=case.step).at(case.site_name) == case.key


@pytest.mark.parametrize("case", vectors.cases("pins"))
def test_pins(case):
    assert uniform(case.key, 1, start=case.index) * 2**32 == case.u + 0.5
    assert integers(case.key, 2**32, 1, start=case.index) == case.u
    assert all(keep(case.key, rate, 1, start=case.index).all() for rate in case.keeps)
    assert not any(keep(case.key, rate, 1, start=case.index).any() for rate in case.drops)
    expected = np.sqrt(-2 * np.log((case.u + 1) / 2**32)) * np.cos(2 * np.pi * case.v / 2**32)
    assert gaussian(case.key, 1, start=case.index) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", vectors.cases("rates"))
def test_rates(case):
    rate = Rate(case.rate)
    assert rate.threshold == case.threshold
    assert rate.scale == float.fromhex(case.scale)
    assert np.float32(rate.scale) == float.fromhex(case.scale_float32)
    assert rate.factors("original").inference == float.fromhex(case.original)


@pytest.mark.parametrize("case", vectors.cases("fold"))
def test_fold(case):
    folded = case.key.fold(case.n)
    assert folded == Key(case.seed_out, case.site, case.step)
    assert folded.fold(1).seed == case.then_fold_1


@pytest.mark.parametrize("case", vectors.cases("uniform"))
def test_uniform(case):
    assert uniform(case.key, len(case.values), start=case.start).tolist() == case.values


@pytest.mark.parametrize("case", vectors.cases("integer"))
def test_integers(case):
    drawn = integers(case.key, case.n, len(case.values), start=case.start)
    assert drawn.tolist() == case.values


@pytest.mark.parametrize("case", vectors.cases("subset"))
def test_subset(case):
    assert subset(case.key, case.n, case.size).tolist() == case.values


@pytest.mark.parametrize("case", vectors.cases("gaussian"))
def test_gaussian(case):
    drawn = gaussian(case.key, len(case.values), start=case.start)
    np.testing.assert_allclose(drawn, case.values, rtol=1e-12, atol=1e-15)
    if hasattr(case, "u"):
        assert integers(case.key, 2**32, 1, start=case.start) == case.u


@pytest.mark.parametrize("case", vectors.cases("shard"))
def test_shard(case):
    mask = keep(case.key, case.rate, case.shape, start=case.start, stride=case.stride, of=case.of)
    assert np.array_equal(mask, case.keep)


@pytest.mark.parametrize("case", vectors.cases("noise"))
def test_noise(case):
    shape = noise_shape(case.variant, case.shape)
    assert shape == tuple(case.noise_shape)
    shared = shared_axes(case.variant, len(case.shape))
    mask = np.expand_dims(keep(case.key, case.rate, shape), shared)
    assert np.array_equal(np.broadcast_to(mask, case.shape), case.keep)
    # The same by the indices that kernels take.
    draws = keep(case.key, case.rate, shape).ravel()
    assert np.array_equal(draws[whole(tuple(case.shape), shared).indices()], case.keep)


@pytest.mark.parametrize("case", vectors.cases("drop_block"))
def test_drop_block(case):
    options = {"block_size": case.block_size, "shared": case.shared}
    assert noise_shape("drop_block", case.shape, **options) == tuple(case.noise_shape)
    mask = drop_block(case.key, case.gamma, case.shape, **options)
    assert np.array_equal(mask, case.keep)


@pytest.mark.parametrize("case", vectors.cases("output_16_bit"))
def test_output_of_16_bit_types(case):
    patterns = np.arange(2**16, dtype=np.uint16)
    scale = np.float32(Rate(case.rate).scale)
    with np.errstate(over="ignore", invalid="ignore"):
        if case.dtype == "float16":
            output = (patterns.view(np.float16).astype(np.float32) * scale).astype(np.float16)
            bits, not_a_number = output.view(np.uint16), 0x7E00
        else:
            output = (patterns.astype(np.uint32) << 16).view(np.float32) * scale
            word = output.view(np.uint32)
            bits, not_a_number = ((word + 0x7FFF + (word >> 16 & 1)) >> 16), 0x7FC0
    bits = np.where(np.isnan(output), not_a_number, bits)
    bits = np.where(keep(case.key, case.rate, 2**16), bits, 0)
    assert hashlib.sha256(bits.astype("<u2").tobytes()).hexdigest() == case.sha256
