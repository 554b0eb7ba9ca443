"""Multi-sample dropout: one input, many masks, one pass through the head.

Pass i of an input has the key ``fold(i)``; the passes are stacked along the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.mask.key import integer
from dropseed.torch import noise
from dropseed.torch.keyed import KeyedLayer


def multi_sample_dropout(
    input: Tensor,
    head: Callable[[Tensor], Tensor],
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    samples: int = 8,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    reduce: str = "mean",
) -> Tensor:
    """Run a head on several dropped copies of its input at once, and average the outputs.

    Inoue 2019, "Multi-sample dropout for accelerated training and better generalization", section
    3. Copy i is ``dropout(input, p, key=key.fold(i))``. The copies are stacked along the batch, so
    the head is called once with samples * N of them: a batch normalisation in it has the statistics
    of all copies, and what it saves for backward is that of the larger batch.

    The paper averages the losses of the copies, not their outputs: take ``reduce="none"`` for it.
    The loss of the average is not the average of the losses: for a convex loss, such as the
    cross-entropy, it is at most as large (Jensen), and it regularises less, since in a linear head
    averaging the outputs is averaging the masks, which leaves 1 / samples of the noise's variance.

    Args:
        input: floating-point tensor (N, *).
        head: a function of a batch to outputs of the same batch, whose samples it treats alike.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        samples: how many copies, at least 1.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn, one for all copies.
        scaling: "inverted", "original" or "none", as in `dropout`.
        reduce: "mean" (over the copies) or "none" (each copy's output).

    Returns:
        The head's outputs, (N, ...), or (samples, N, ...) under "none". Where all copies are alike
        (in inference, and at rates 0 and 1) the head is called with N of them, and "none" gives an
        expanded view.

    Raises:
        TypeError: `input` is no floating-point tensor, `head` can't be called, `p` is no number,
            `samples` no integer, or `key` no key.
        ValueError: `input` has no batch, `p` is outside [0, 1], `samples` less than 1, `scaling` or
            `reduce` unknown, or the head's output has another batch.

    Example:
        >>> from dropseed import Key
        >>> x, y = torch.ones(4, 16), torch.tensor([0, 1, 2, 0])
        >>> head = nn.Linear(16, 3)
        >>> logits = multi_sample_dropout(x, head, 0.5, samples=8, key=Key(0), reduce="none")
        >>> logits.shape
        torch.Size([8, 4, 3])
        >>> loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.repeat(8))  # the paper's
        >>> bool(nn.functional.cross_entropy(logits.mean(0), y) <= loss)
        True
    """
    noise.check_input(input)
    _check_head(head)
    samples = _check_samples(samples, reduce)
    if input.dim() == 0:
        raise InvalidValueError("`input` must be (N, *); got shape ().")
    noise.check_rate(p)
    noise.check_scaling(scaling)
    if not (training and noise.draws(p)):
        output = head(noise.drop(input, p, training, False, key, scaling))
        _check_batch(output, input.shape[0])
        return output if reduce == "mean" else output.expand(samples, *output.shape)
    output = head(drop_each([input] * samples, p, key, scaling))
    _check_batch(output, samples * input.shape[0])
    outputs = torch.unflatten(output, 0, (samples, input.shape[0]))
    return outputs.mean(0) if reduce == "mean" else outputs


class MultiSampleDropout(KeyedLayer):
    """Run a head on several dropped copies of its input at once; see `multi_sample_dropout`.

    In evaluation this is the head itself, called once, unless `scaling` is "original".

    Args:
        head: the module after the dropout, for instance a classifier. Its parameters are ``head.*``
            in the state.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        samples: how many copies, at least 1.
        scaling: "inverted", "original" or "none".
        reduce: "mean" (of the outputs) or "none" (each copy's output, for the paper's average of
            losses).

    Shape:
        Input: (N, *). Output: (N, ...), or (samples, N, ...) under ``reduce="none"``, in evaluation
        too.

    Raises:
        TypeError, ValueError: `head` is no module, `p` no number in [0, 1], `samples` no integer
            from 1 on, or `scaling` or `reduce` unknown.

    Example:
        >>> layer = MultiSampleDropout(nn.Linear(16, 3), 0.5, samples=4)
        >>> layer(torch.ones(2, 16)).shape
        torch.Size([2, 3])
    """

    p: float | Tensor

    def __init__(
        self,
        head: nn.Module,
        p: float | Tensor = 0.5,
        samples: int = 8,
        *,
        scaling: str = "inverted",
        reduce: str = "mean",
    ) -> None:
        if not isinstance(head, nn.Module):
            raise InvalidTypeError(f"`head` must be a torch.nn.Module; got {head!r}.")
        noise.check_rate(p)
        noise.check_scaling(scaling)
        samples = _check_samples(samples, reduce)
        super().__init__()
        self.head = head
        self.p = p
        self.samples = samples
        self.scaling = scaling
        self.reduce = reduce

    def forward(self, input: Tensor) -> Tensor:
        """The head of the dropped copies in training, of the input in evaluation."""
        return multi_sample_dropout(
            input,
            self.head,
            self.p,
            self.training,
            samples=self.samples,
            key=self.key,
            scaling=self.scaling,
            reduce=self.reduce,
        )

    def extra_repr(self) -> str:
        """The arguments; scaling and reduction where they aren't the usual ones."""
        other = noise.scaling_repr(self.scaling)
        other += "" if self.reduce == "mean" else f", reduce={self.reduce!r}"
        return f"p={self.p}, samples={self.samples}{other}"


# ---- several passes under one key, which paired masks share ------------------------------------


def drop_each(
    passes: Sequence[Tensor], p: float | Tensor, key: Key | Tensor | None, scaling: str
) -> Tensor:
    """The passes stacked along the batch, pass i dropped under ``key.fold(i)``; one seed at most.

    Args:
        passes: floating-point tensors (N, *) of one shape and device.
        p: a checked rate.
        key: a `dropseed.Key`, its tensor form, or None.
        scaling: a checked scaling.

    Returns:
        Tensor (len(passes) * N, *).

    Raises:
        TypeError: `key` is no key.

    Example:
        >>> drop_each([torch.ones(1, 6)] * 2, 0.5, Key(0), "none")
        tensor([[1., 0., 1., 1., 0., 0.],
                [1., 0., 1., 1., 0., 1.]])
    """
    base = noise.key_for(key, passes[0])
    keys = eager.folds(base, len(passes)).unbind()
    return torch.cat(
        [noise.drop(one, p, True, False, k, scaling) for one, k in zip(passes, keys, strict=True)]
    )


def _check_head(head: Any) -> None:
    if not callable(head):
        raise InvalidTypeError(f"`head` must be a module or a function; got {head!r}.")


def _check_samples(samples: Any, reduce: str) -> int:
    if reduce not in ("mean", "none"):
        raise InvalidValueError(f'`reduce` must be "mean" or "none"; got {reduce!r}.')
    return integer(samples, "samples", 1, 2**60)


def _check_batch(output: Tensor, batch: int) -> None:
    if tuple(output.shape[:1]) != (batch,):
        raise InvalidValueError(
            f"`head` must keep the batch of {batch}, its input's first dimension; "
            f"got an output of shape {tuple(output.shape)}."
        )
