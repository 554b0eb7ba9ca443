"""Modes of one function, what the random operations inside a call drew, and reading tensors.

Nothing here changes what a program computes, or where its random stream stands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_MASKS = {"bernoulli", "bernoulli_", "native_dropout"}
_NEVER_DRAWS = {"_scaled_dot_product_flash_attention_for_cpu"}  # though torch tags it as random


@dataclass(frozen=True, slots=True)
class Draw:
    """What one random operation drew.

    Attributes:
        operation: its name in torch: "bernoulli_".
        size: how many numbers; 0 if they can't be read.
        dropped: how many of them drop; None if they are no mask.
        digest: a hash of the numbers, or of the seeds of a fused attention; "" unless asked for.
    """

    operation: str
    size: int
    dropped: int | None
    digest: str


@dataclass(frozen=True, slots=True)
class Sums:
    """What is read of a tensor: the number of values, of those that aren't 0, and a mean.

    Attributes:
        size: the number of values.
        nonzero: how many are neither 0 nor infinite nor NaN.
        magnitude: the mean of the absolute values.
    """

    size: int
    nonzero: int
    magnitude: float


@contextmanager
def recorded(digests: bool = False) -> Iterator[list[Draw]]:
    """The draws of the code inside, as they come.

    Args:
        digests: whether to hash them.

    Example:
        >>> import torch
        >>> with recorded() as draws:
        ...     _ = torch.nn.functional.dropout(torch.ones(5), 0.5)
        >>> [(draw.operation, draw.size) for draw in draws]
        [('bernoulli_', 5)]
    """
    draws: list[Draw] = []

    def run(operation: Any, args: Any, kwargs: Any) -> Any:
        output = operation(*args, **kwargs)
        if is_random(operation):
            draws.append(drawn(operation, output, digests))
        return output

    try:
        with dispatch_mode(run):
            yield draws
    finally:
        _forget_closed_modes()


def _forget_closed_modes() -> None:
    """Correct torch's flags of open modes, which stay up if two are not closed from the inside."""
    import torch
    from torch.utils import _python_dispatch as modes

    if torch._C._len_torch_dispatch_stack() == 0:
        for flag in ("", "_non_infra"):
            setattr(modes, f"_is_in{flag}_torch_dispatch_mode", False)
        modes._is_in_any_mode_without_ignore_compile_internals = False
        modes.set_is_in_mode_without_ignore_compile_internals(False)  # type: ignore[attr-defined]


def is_random(operation: Any) -> bool:
    """Whether an operation of torch's draws from a generator."""
    import torch

    tagged = torch.Tag.nondeterministic_seeded in operation.tags
    return tagged and _name(operation) not in _NEVER_DRAWS


def drawn(operation: Any, output: Any, digests: bool) -> Draw:
    """What a random operation drew.

    Args:
        operation: the operation.
        output: what it returned.
        digests: whether to hash that.
    """
    name = _name(operation)
    with unseen():
        if name in _MASKS:
            numbers = output[1] if name == "native_dropout" else output
            if not is_plain(numbers):
                return Draw(name, 0, None, "")
            dropped = numbers.numel() - int(numbers.count_nonzero())
            return Draw(name, numbers.numel(), dropped, digest(numbers != 0) if digests else "")
        tensors = [one for one in _tuple(output) if is_plain(one)]
        seeds = [one for one in tensors if one.dtype.is_signed and one.numel() <= 2]
        told = (seeds if "attention" in name else tensors)[:2] if digests else []
        size = tensors[0].numel() if tensors and "attention" not in name else 0
        return Draw(name, size, None, "".join(map(digest, told)))


def sums(tensor: Tensor) -> Sums:
    """Count and average a tensor's values."""
    import torch

    with unseen():
        narrow = tensor.dtype in (torch.float16, torch.bfloat16)
        norm = torch.linalg.vector_norm(tensor, 1, dtype=torch.float32 if narrow else None)
        total, nonzero = float(norm), int(tensor.count_nonzero())
        if not abs(total) < float("inf"):
            nonzero = int(tensor[tensor.isfinite()].count_nonzero())
        return Sums(tensor.numel(), nonzero, total / max(tensor.numel(), 1))


def digest(tensor: Tensor) -> str:
    """A hash of a tensor's numbers, whatever its strides."""
    import torch

    flat = tensor.detach().resolve_conj().resolve_neg().reshape(-1).contiguous()
    return hash_of(flat.view(torch.uint8).cpu().numpy() if flat.numel() else b"")


def hash_of(numbers: Any) -> str:
    """A short hash of bytes."""
    return hashlib.blake2b(numbers, digest_size=8).hexdigest()


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor whose numbers can be read here and now."""
    import torch

    return (
        type(value) in (torch.Tensor, torch.nn.Parameter)
        and not value.is_meta
        and value.layout is torch.strided
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._functorch.is_legacy_batchedtensor(value)
        and torch._C._get_tracing_state() is None
        and not (value.is_cuda and torch.cuda.is_current_stream_capturing())
    )


@contextmanager
def unseen() -> Iterator[None]:
    """Neither autograd nor anybody's modes see the operations inside."""
    import torch
    from torch.utils._python_dispatch import _disable_current_modes

    with torch.no_grad(), _disable_current_modes():
        yield


def dispatch_mode(run: Callable[[Any, Any, Any], Any]) -> Any:
    """A `TorchDispatchMode` that answers by ``run(operation, args, kwargs)``."""
    return _mode_classes()[0](run)


def function_mode(run: Callable[[Any, Any, Any], Any]) -> Any:
    """A `TorchFunctionMode` that answers by ``run(function, args, kwargs)``."""
    return _mode_classes()[1](run)


def is_innermost(mode: Any) -> bool:
    """Whether a `TorchFunctionMode` is the one that a call of torch asks first."""
    from torch import overrides

    return overrides._get_current_function_mode() is mode  # type: ignore[no-untyped-call]


@cache
def _mode_classes() -> tuple[Any, Any]:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Dispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __init__(self, run: Callable[[Any, Any, Any], Any]) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self.run = run

        def __torch_dispatch__(
            self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return self.run(operation, args, kwargs or {})

    class Function(TorchFunctionMode):
        def __init__(self, run: Callable[[Any, Any, Any], Any]) -> None:
            super().__init__()
            self.run = run

        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return self.run(function, args, kwargs or {})

    return Dispatch, Function


def _name(operation: Any) -> str:
    name: str = operation._schema.name
    return name.partition("::")[2]


def _tuple(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)
