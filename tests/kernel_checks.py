"""What every kernel must satisfy: plain comparisons with the reference, shared by its tests.

The mutants' test runs the same checks on a kernel that is broken on purpose.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

import vectors
from dropseed.mask import Key, Rate, drop_block, gaussian, keep, shared_axes, uniform
from dropseed.mask.shard import part, whole

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
BITS = {torch.float16: np.int16, torch.bfloat16: np.uint16}


def buffer(tensor):
    """The NumPy array that a kernel takes for a tensor."""
    if tensor.dtype in BITS:
        return tensor.view(torch.int16).numpy().view(BITS[tensor.dtype])
    return tensor.numpy()


def dropped_and_scaled(x, mask, rate):
    """Dropout of a tensor under a mask, by the specification's rounding, in plain torch."""
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = torch.tensor(Rate(rate).scale, dtype=torch.float64).to(compute)
    product = (x.to(compute) * scale).to(x.dtype)
    return torch.where(torch.from_numpy(np.asarray(mask)), product, torch.zeros((), dtype=x.dtype))


def same_bits(a, b):
    """Equal to the bit, any NaN being equal to any other."""
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    equal = a.view(integer) == b.view(integer)
    return bool((equal | (a.isnan() & b.isnan())).all())


def random_tensor(shape, dtype, order=None):
    """Values of many magnitudes, the non-finite ones included, in a memory order of axes."""
    generator = torch.Generator().manual_seed(len(shape))
    order = list(range(len(shape))) if order is None else list(order)
    x = torch.randn([shape[axis] for axis in order], generator=generator, dtype=torch.float64)
    x = (x * 10 ** torch.empty_like(x).uniform_(-6, 6, generator=generator)).to(dtype)
    flat = x.view(-1)
    flat[::7], flat[3::11], flat[5::13] = torch.nan, torch.inf, -0.0
    return x.permute([order.index(axis) for axis in range(len(shape))])


def reference_mask(key, rate, draws):
    """The reference's mask of any draws: each distinct index drawn on its own."""
    index = draws.indices()
    distinct, places = np.unique(index, return_inverse=True)
    if distinct.size and distinct[-1] - distinct[0] < 10**6 + 16 * distinct.size:
        run = keep(key, rate, int(distinct[-1] - distinct[0] + 1), start=int(distinct[0]))
        return run[index - distinct[0]]
    kept = np.array([keep(key, rate, 1, start=int(i))[0] for i in distinct], np.bool_)
    return kept[places].reshape(index.shape)


def check_dropout(kernel, x, draws, key, rate, threads=1):
    """Out of place, in place, and the mask alone, each against the reference."""
    mask = reference_mask(key, rate, draws)
    expected = dropped_and_scaled(x, mask, rate)
    strength = Rate(rate)
    out = torch.empty_like(x)
    source, target = buffer(x), buffer(out)
    words, options = key.words, {"threads": threads}
    kernel.dropout(target, source, draws, words, strength.threshold, strength.scale, **options)
    assert same_bits(out, expected)
    copy = x.clone()
    target = buffer(copy)
    kernel.dropout(target, target, draws, words, strength.threshold, strength.scale, **options)
    assert same_bits(copy, expected)
    if x.is_contiguous() and draws == whole(tuple(x.shape)):
        check_flat(kernel, x, expected, words, strength, threads)
    kept = np.empty_like(source, dtype=np.bool_)
    kernel.keep(kept, draws, words, strength.threshold, **options)
    assert np.array_equal(kept, mask)


def check_flat(kernel, x, expected, words, rate, threads):
    """The entry by address: out of place, and in place."""
    copy = x.clone()
    for out, source in ((torch.empty_like(x), x), (copy, copy)):
        kernel.dropout_flat(
            out.data_ptr(),
            source.data_ptr(),
            buffer(x).reshape(-1),
            x.numel(),
            words,
            rate.threshold,
            rate.scale,
            threads=threads,
        )
        assert same_bits(out, expected)


def check_affine(kernel, x, draws, key, rate, threads=1):
    """The affine law: survivors scaled and shifted, the dropped filled."""
    strength, words = Rate(rate), key.words
    scale, shift, fill = 1.5, 0.25, -0.75
    mask = torch.from_numpy(np.array(reference_mask(key, strength, draws)))
    wide = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    expected = torch.where(mask, (wide * scale + shift).to(x.dtype), fill)
    copy = x.clone()
    for target, source in ((torch.empty_like(x), x), (copy, copy)):
        y = buffer(target)
        z = y if target is source else buffer(source)
        kernel.dropout(
            y, z, draws, words, strength.threshold, (scale, shift, fill), threads=threads
        )
        assert same_bits(target, expected)


def check_gaussian(kernel, x, key, sigma, threads=1):
    """Gaussian noise on contiguous elements: its draws, and what it makes of them."""
    draws = np.empty(x.numel(), np.float32)
    kernel.normals(draws, key.words)
    assert np.abs(draws - gaussian(key, x.numel())).max(initial=0) < 2**-18
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    factors = torch.from_numpy(draws).to(wide).reshape(x.shape) * sigma + 1
    expected = (x.to(wide) * factors).to(x.dtype)
    copy = x.clone()
    for out, source in ((torch.empty_like(x), x), (copy, copy)):
        kernel.gaussian_flat(
            out.data_ptr(),
            source.data_ptr(),
            buffer(x).reshape(-1),
            x.numel(),
            key.words,
            sigma,
            threads=threads,
        )
        assert same_bits(out, expected)


def check_drop_block(kernel, x, block, key, gamma, scale=None, shared=False, start=0, threads=1):
    """Blocks out of place, in place, and with the channels innermost; and how many they drop.

    `x` is (N, C, L1, L2, L3); the first sample is number `start` of the batch, the next one every
    other.
    """
    sizes, words, threshold = tuple(x.shape), key.words, Rate(gamma).threshold
    whole_batch = (start + 2 * sizes[0], *sizes[1:])
    mask = drop_block(key, gamma, whole_batch, block, shared=shared)[start::2][: sizes[0]]
    mask = torch.from_numpy(np.array(mask))
    kept = mask.flatten(1).sum(1).tolist()
    factors = [scale or (mask[0].numel() / number if number else 0.0) for number in kept]
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    factor = torch.tensor(factors, dtype=torch.float64).to(wide).reshape(-1, 1, 1, 1, 1)
    expected = torch.where(mask, (x.to(wide) * factor).to(x.dtype), 0.0)
    options = {"shared": shared, "order": (start, 2)}
    for last in (False, True):
        rows = (x.movedim(1, -1) if last else x).contiguous()
        copy = rows.clone()
        for out, source in ((torch.empty_like(rows), rows), (copy, copy)):
            y = buffer(out).reshape(-1)
            source = y if out is source else buffer(source).reshape(-1)
            kernel.drop_block(
                y,
                source,
                sizes,
                block,
                words,
                threshold,
                scale,
                channels_last=last,
                threads=threads,
                **options,
            )
            assert same_bits(out.movedim(-1, 1) if last else out, expected)
    counts = np.empty(sizes[0], np.int64)
    kernel.drop_block_counts(counts, sizes, block, words, threshold, **options)
    assert counts.tolist() == [mask[0].numel() - number for number in kept]


def check_blocks(kernel):
    """The known masks of DropBlock."""
    for case in vectors.cases("drop_block"):
        n, channels, *sizes = case.shape
        thin = [1] * (3 - len(sizes))
        edges = [*thin, *[case.block_size] * len(sizes)]
        x = np.ones(case.keep.size, np.float32)
        shape, threshold = (n, channels, *thin, *sizes), Rate(case.gamma).threshold
        kernel.drop_block(
            x, x, shape, tuple(edges), case.key.words, threshold, 1.0, shared=case.shared
        )
        assert np.array_equal(x.reshape(case.shape) == 1, case.keep)


def check_drop_connect(kernel, sizes, dtype, key, rate, start=0, threads=1):
    """The product and both gradients, against masks that are written out."""
    n, outputs, inputs = sizes
    x, w, gy = (
        torch.randn(shape, dtype=torch.float64).to(dtype)
        for shape in ((n, inputs), (outputs, inputs), (n, outputs))
    )
    strength, order = Rate(rate), (start, 2)
    mask = keep(key, rate, (n, outputs, inputs), start=start, stride=2)
    weights = torch.from_numpy(np.array(mask)).double() * strength.scale
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    numbers = sizes, key.words, strength.threshold, strength.scale
    y, gx, gw = (torch.full((t.numel(),), torch.nan, dtype=wide).numpy() for t in (gy, x, w))
    flat = [buffer(t).reshape(-1) for t in (x, w, gy)]
    kernel.drop_connect(y, *flat[:2], *numbers, order=order, threads=threads)
    kernel.drop_connect_backward(gx, gw, *flat, *numbers, order=order, threads=threads)
    x, w, gy = x.double(), w.double(), gy.double()
    for actual, formula, one, other in (
        (y, "noi,ni,oi->no", x, w),
        (gx, "noi,no,oi->ni", gy, w),
        (gw, "noi,ni,no->oi", x, gy),
    ):
        want = torch.einsum(formula, weights, one, other).numpy().reshape(-1)
        size = float(np.abs(want).max(initial=0)) + inputs**0.5
        assert np.abs(actual - want).max(initial=0) <= 40 * torch.finfo(wide).eps * size


def check_mask(kernel, key, rate, draws, expected):
    """The mask alone against known answers."""
    out = np.empty(draws.shape, np.bool_)
    kernel.keep(out, draws, key.words, Rate(rate).threshold)
    assert np.array_equal(out.ravel(), np.asarray(expected).ravel())


def check_masks(kernel):
    """The known masks of contiguous draws, and the draws that are pinned to a rate."""
    for case in vectors.cases("keep"):
        check_mask(kernel, case.key, case.rate, part(case.count, case.start), case.keep)
    for case in vectors.cases("pins"):
        for rate in case.keeps + case.drops:
            check_mask(kernel, case.key, rate, part(1, case.index), [rate in case.keeps])


def check_every_tie(kernel):
    """Thresholds at and just above a draw's own integer: all four planes decide."""
    key = Key(2**63 + 5, 77, 2**32 - 1)
    for start in (0, 2**36 - 20, 2**48 - 21, 2**62 + 3):
        for at in (0, 17, 63):
            u = round(uniform(key, 1, start=start + at)[0] * 2**32 - 0.5)
            for rate in (u / 2**32, (u + 1) / 2**32):
                draws = part(64, start)
                check_mask(kernel, key, rate, draws, reference_mask(key, rate, draws))


def check_vectors(kernel):
    """Every known answer that a kernel can give."""
    check_masks(kernel)
    for case in vectors.cases("philox"):
        c0, c1, c2, c3 = case.counter
        out = np.empty(4, np.uint32)
        kernel.words(out, (*case.key, c2, c3), c1 // 2**28, c0 + 2**32 * (c1 % 2**28))
        assert out.tolist() == case.words
    for case in vectors.cases("shard"):
        draws = part(case.shape, case.start, case.stride, case.of)
        check_mask(kernel, case.key, case.rate, draws, case.keep)
    for case in vectors.cases("noise"):
        draws = whole(tuple(case.shape), shared_axes(case.variant, len(case.shape)))
        check_mask(kernel, case.key, case.rate, draws, case.keep)


def check_all_patterns(kernel):
    """Dropout of all 65,536 patterns of each 16-bit type, against the published digests."""
    for case in vectors.cases("output_16_bit"):
        dtype = getattr(torch, case.dtype)
        x = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.int16)).view(dtype)
        rate, out, draws = Rate(case.rate), torch.empty_like(x), whole((65536,))
        kernel.dropout(buffer(out), buffer(x), draws, case.key.words, rate.threshold, rate.scale)
        bits = buffer(out).view(np.uint16).copy()
        bits[out.isnan().numpy()] = 0x7E00 if dtype == torch.float16 else 0x7FC0
        assert hashlib.sha256(bits.astype("<u2").tobytes()).hexdigest() == case.sha256
