"""The kernel for devices that have none of their own: the same bits, tested on a CPU."""

import numpy as np
import pytest
import torch

from dropseed import Key, Rate, keep
from dropseed.kernels import cpu, eager
from dropseed.mask.shard import whole
from dropseed.torch import functional as ours
from dropseed.torch import key_tensor, launch

KEYS = [Key(0), Key(1, 2, 3), Key(2**63, 2**31, 2**31), Key(2**64 - 1, 2**32 - 1, 2**32 - 1)]
THRESHOLDS = [0, 1, 255, 2**24 - 1, 2**24, 2**31, 2**31 + 1, 3865470566, 2**32 - 1, 2**32]


def by_cpu(key, threshold, shape):
    mask = np.empty(shape, np.bool_)
    cpu.keep(mask, whole(shape), key.words, threshold)
    return mask


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("tensor", [False, True])
def test_masks(key, threshold, tensor):
    limit = torch.tensor(threshold) if tensor else threshold
    for shape in ((1000,), (3, 5, 7), (1,), (), (0, 2)):
        mask = eager.keep(key_tensor(key), limit, shape)
        assert mask.dtype == torch.bool
        assert (mask.numpy() == keep(key, threshold / 2**32, shape)).all()
        assert (mask.numpy() == by_cpu(key, threshold, shape)).all()


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 1, 2**63, 2**64 - 1])
def test_a_seed_alone_is_a_key(seed):
    bits = torch.tensor(seed - 2**64 if seed >= 2**63 else seed)
    mask = eager.keep(bits, 2**31, (500,))
    assert (mask.numpy() == keep(Key(seed), 0.5, 500)).all()


def test_ties_are_settled_exactly():
    """At the very integer of a draw, the draw is kept; one above, it is dropped."""
    words = key_tensor(Key(3))
    u = sum(eager._bytes(words, 1, plane) << (24 - 8 * plane) for plane in range(4))
    for index, value in enumerate(u.tolist()):
        assert eager.keep(words, value, (16,))[index]
        assert not eager.keep(words, value + 1, (16,))[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("function", [ours.dropout, ours.dropout2d])
@pytest.mark.parametrize("tensor_rate", [False, True])
def test_a_device_without_a_kernel(dtype, function, tensor_rate, key, same_bits, monkeypatch):
    """With the CPU's kernel taken away, the front end gives the same tensors."""
    p = torch.tensor(0.1, dtype=torch.float64) if tensor_rate else 0.1
    x = torch.randn(4, 3, 5, 6).to(dtype).to(memory_format=torch.channels_last)
    views = [x, x[:, ::2], x.transpose(0, 3), x[:1].expand(4, 3, 5, 6)]
    x[0, 0, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])

    def results():
        for view in views:
            leaf = view.detach().requires_grad_()
            output = function(leaf, p, key=key)
            output.backward(view)
            in_place = view.clone()
            assert function(in_place, p, inplace=True, key=key) is in_place
            yield from (output, leaf.grad, in_place)

    wanted = list(results())
    monkeypatch.setattr(launch, "LIKE", {})
    monkeypatch.setattr(launch, "cpu_kernel", None)
    for result, want in zip(results(), wanted, strict=True):
        assert same_bits(result.nan_to_num(7), want.nan_to_num(7))
        assert result.stride() == want.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_pattern_of_a_half(dtype, rate, same_bits):
    x = torch.arange(2**16).to(torch.uint16).view(dtype)
    want = ours.dropout(x, rate, key=Key(1))
    output = eager.apply(x, torch.from_numpy(keep(Key(1), rate, 2**16)), Rate(rate).scale)
    assert same_bits(output.nan_to_num(7), want.nan_to_num(7))
    assert torch.equal(output.isnan(), want.isnan())


def test_dropped_is_plus_zero():
    x = torch.tensor([torch.nan, -torch.inf, -1.0, -0.0])
    output = eager.apply(x, torch.zeros(4, dtype=torch.bool), 2.0)
    assert output.tolist() == [0, 0, 0, 0]
    assert not torch.signbit(output).any()
