"""What the JAX tests compare with: outputs by the specification, in NumPy."""

import numpy as np

from dropseed import Rate, keep


def same_bits(a, b):
    """Equal to the bit, any NaN being equal to any other.

    XLA computes on a CPU with subnormal numbers flushed to zero: what is or was one may be 0.
    """
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    integer = {2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize]
    wide = [n.astype(np.float64) for n in (a, b)]
    least = 2.0**-1010 if a.dtype.itemsize == 8 else 2.0**-114
    tiny = (wide[0] == 0) & (np.abs(wide[1]) < least)
    signs = np.signbit(wide[0]) == np.signbit(wide[1])
    equal = a.view(integer) == b.view(integer)
    return bool((equal | (np.isnan(wide[0]) & np.isnan(wide[1])) | (tiny & signs)).all())


def expected(key, x, rate, *, noise=None, scaling="inverted", **shard):
    """Dropout by the specification, in NumPy."""
    x = np.asarray(x)
    mask = keep(key, rate, x.shape if noise is None else noise, **shard)
    compute = np.float64 if x.dtype == np.float64 else np.float32
    with np.errstate(all="ignore"):
        scale = compute(Rate(rate).factors(scaling).training)
        product = (x.astype(compute) * scale).astype(x.dtype)
    return np.where(mask, product, np.zeros((), x.dtype))


def values(shape, dtype):
    """Values of many magnitudes, the non-finite ones included."""
    generator = np.random.default_rng(len(shape))
    x = np.asarray(generator.standard_normal(shape) * 10 ** generator.uniform(-6, 6, shape))
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
    flat = x.reshape(-1)
    flat[::7], flat[3::11], flat[5::13] = np.nan, np.inf, -0.0
    return flat.reshape(shape)
