"""The operations of `by_ops` by the PyTorch front end's kernels, which store no masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dropseed.torch import functional, noise

_LOW = 0xFFFFFFFF
_RECENT = 256
"""How many calls of a layer a checkpoint may lie behind."""
_DROP_BLOCKS: tuple[Any, ...] = (
    functional.drop_block1d,
    functional.drop_block2d,
    functional.drop_block3d,
)


def once(recent: dict[int, Any], draw: Callable[[], Tensor]) -> Tensor:
    """What ``draw()`` gives, and the same again where a checkpoint recomputes the call.

    Args:
        recent: what latest calls gave, which is changed.
        draw: a function that gives something else each time.

    Returns:
        Its value.

    Example:
        >>> drawn, recent = iter(range(1, 9)), {}
        >>> def call(x):
        ...     return torch.sin(once(recent, lambda: torch.tensor(next(drawn))) * x)
        >>> x = torch.zeros(1, requires_grad=True)
        >>> for _ in range(2):
        ...     y = torch.utils.checkpoint.checkpoint(call, x, use_reentrant=False)
        ...     print(torch.autograd.grad(y, x)[0])
        tensor([1.])
        tensor([2.])
    """
    if torch.compiler.is_compiling() or not _may_be_recomputed():
        return draw()
    # A checkpoint sets torch's generator back: a number from it tells a call from all others, and
    # is the same when the call is made again.
    call = int(torch.randint(2**63 - 1, (), device="cpu"))
    if call not in recent:
        recent[call] = draw()
        for old in list(recent)[:-_RECENT]:
            del recent[old]
    words: Tensor = recent[call]
    return words


def _may_be_recomputed() -> bool:
    """Whether a checkpoint is recording or recomputing, or something else that looks like it."""
    hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None or torch._C._current_graph_task_id() != -1


def as_key(words: Tensor) -> Tensor:
    """The tensor form of a key, ``[seed, site + 2**32 * step]``, from a state's words."""
    words = words.to(torch.int64) & _LOW
    return words[0::2] | words[1::2] << 32


def fold(words: Tensor, n: int) -> Tensor:
    """The words of the n-th key derived from a key."""
    key = noise.folded(as_key(words), n)
    return torch.stack((key & _LOW, key >> 32 & _LOW), 1).reshape(-1)


def dropout(inputs: Tensor, words: Tensor, rate: float, shared: Sequence[int] = ()) -> Tensor:
    """Zero what draws below the rate and scale the rest."""
    return noise.drop(inputs, rate, True, False, as_key(words), "inverted", tuple(shared))


def alpha_dropout(inputs: Tensor, words: Tensor, rate: float, shared: Sequence[int] = ()) -> Tensor:
    """Set what is dropped to SELU's saturation, and restore mean and variance."""
    return noise.alpha(inputs, rate, True, False, as_key(words), tuple(shared))


def gaussian_dropout(inputs: Tensor, words: Tensor, rate: float) -> Tensor:
    """Multiply by normal draws of mean 1."""
    return noise.gaussian(inputs, rate, True, False, as_key(words))


def drop_block(
    inputs: Tensor,
    words: Tensor,
    rate: float,
    block: Sequence[int],
    shared: bool,
    exact: bool,
    normalization: str,
) -> Tensor:
    """Zero blocks of feature maps (N, C, *L) and scale the rest."""
    output: Tensor = _DROP_BLOCKS[len(block) - 1](
        inputs,
        rate,
        tuple(block),
        key=as_key(words),
        shared=shared,
        exact=exact,
        normalization=normalization,
    )
    return output


def drop_connect(inputs: Tensor, weight: Tensor, words: Tensor, rate: float) -> Tensor:
    """A linear layer that drops weights (O, I), by a mask for each sample."""
    return functional.drop_connect_linear(inputs, weight, None, rate, key=as_key(words))
