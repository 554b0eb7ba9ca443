"""What the tests of the PyTorch front end share."""

import warnings

import numpy as np
import pytest
import torch

from dropseed import Key, Rate, keep
from dropseed.torch import autograd, key_tensor

with warnings.catch_warnings():
    # Torch imports this at its first forward derivative, and calls what it has deprecated itself.
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp

ROUTES = {
    "mask": autograd._by_mask,
    "op": autograd._by_op,
    "function": autograd._by_function,
}


@pytest.fixture(autouse=True)
def _fresh_torch():
    """Every test starts from one seed, without what an earlier one compiled."""
    torch.manual_seed(0)
    torch._dynamo.reset()


@pytest.fixture
def key():
    """A key whose every part is large: both words have their sign bit set."""
    return Key(2**63 + 7, 2**32 - 5, 2**32 - 1)


@pytest.fixture
def words(key):
    return key_tensor(key)


@pytest.fixture(params=ROUTES)
def forced(request, monkeypatch):
    """The name of a route that every call takes, backward included, whatever it needs."""
    monkeypatch.setattr(autograd, "route", lambda _: ROUTES[request.param])
    return request.param


@pytest.fixture
def expected():
    """What dropout must give, bit for bit, by the NumPy reference."""

    def compute(x, p, key, shared=(), scaling="inverted"):
        shape = [1 if axis in shared else size for axis, size in enumerate(x.shape)]
        mask = torch.from_numpy(np.array(keep(key, p, shape)))
        half = x.dtype in (torch.float16, torch.bfloat16)
        wide = x.detach().to(torch.float32 if half else x.dtype)
        factor = torch.tensor(Rate(p).factors(scaling).training, dtype=wide.dtype)
        return torch.where(mask, (wide * factor).to(x.dtype), torch.zeros((), dtype=x.dtype))

    return compute


@pytest.fixture
def same_bits():
    """Whether tensors agree in type and in every bit, the zeros' signs included."""

    def compare(*tensors):
        first, *others = tensors
        for other in others:
            assert other.dtype == first.dtype
            assert other.shape == first.shape
            assert torch.equal(*(_bits(t) for t in (first, other)))
        return True

    return compare


def _bits(tensor):
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    sizes = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(sizes[tensor.element_size()])
