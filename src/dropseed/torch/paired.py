"""Paired masks: two passes of the same samples in one batch, with equal or independent masks.

Pass i of a key has the key ``fold(i)``, as it would have in a call of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.torch import noise
from dropseed.torch.keyed import KeyedLayer
from dropseed.torch.multi_sample import drop_each


def dropout_pair(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    equal: bool = False,
) -> Tensor:
    """Drop a batch that holds two passes of the same samples, ``torch.cat([x, x])``.

    - Independent masks: Gao, Yao and Chen 2021, "SimCSE: simple contrastive learning of sentence
      embeddings", section 3 (the two masks of a sentence make the positive pair), and Liang et al.
      2021, "R-Drop: regularized dropout for neural networks", section 2.1. The halves have the
      keys ``fold(0)`` and ``fold(1)``, and so the masks that two calls with those keys have.
    - Equal masks: both halves have ``fold(0)``, so that they differ only in what else differs
      between them. SimCSE calls it "fixed 0.1", its ablation in section 3.

    Args:
        input: floating-point tensor (2N, *), the first pass before the second.
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop. Without it any first dimension will do.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn, one for both halves.
        scaling: "inverted", "original" or "none", as in `dropout`.
        equal: whether the halves share their mask.

    Returns:
        Tensor of the input's shape and type.

    Raises:
        TypeError: `input` is no floating-point tensor, `p` no number, or `key` no key.
        ValueError: the first dimension is odd, or there is none; `p` is outside [0, 1], or
            `scaling` unknown.

    Example:
        >>> from dropseed import Key
        >>> x = torch.ones(1, 6)
        >>> dropout_pair(torch.cat([x, x]), 0.5, key=Key(0))
        tensor([[2., 0., 2., 2., 0., 0.],
                [2., 0., 2., 2., 0., 2.]])
        >>> dropout_pair(torch.cat([x, x]), 0.5, key=Key(0), equal=True)
        tensor([[2., 0., 2., 2., 0., 0.],
                [2., 0., 2., 2., 0., 0.]])
    """
    noise.check_input(input)
    if training and (input.dim() == 0 or input.shape[0] % 2):
        raise InvalidValueError(
            "`input` must hold two passes of the same samples, (2N, *) as torch.cat([x, x]) makes "
            f"it; got shape {tuple(input.shape)}."
        )
    noise.check_rate(p)
    noise.check_scaling(scaling)
    if not (training and noise.draws(p)):
        return noise.drop(input, p, training, False, key, scaling)
    if not equal:
        return drop_each(input.chunk(2), p, key, scaling)
    first = eager.fold(noise.key_for(key, input), 0)
    halves = torch.unflatten(input, 0, (2, input.shape[0] // 2))
    return noise.drop(halves, p, True, False, first, scaling, (0,)).flatten(0, 1)


class PairedDropout(KeyedLayer):
    """Drop a batch of two passes, ``torch.cat([x, x])``, in training; see `dropout_pair`.

    The batch must come first in every input of the layer, which excludes sequences of the form
    (T, N, D). A plain `Dropout` gives the halves independent masks too; here they are those of two
    separate passes with the keys ``fold(0)`` and ``fold(1)``, or equal.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        scaling: "inverted", "original" or "none".
        equal: whether the halves share their mask.

    Shape:
        Input and output: (2N, *); in evaluation any.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` is unknown.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(16, 16), PairedDropout(0.1), nn.Linear(16, 3))
        >>> x, y = torch.ones(4, 16), torch.tensor([0, 1, 2, 0])
        >>> logits = model(torch.cat([x, x]))
        >>> likelihood = nn.functional.cross_entropy(logits, y.repeat(2))
        >>> loss = likelihood + 0.5 * r_drop_loss(*logits.chunk(2))
    """

    p: float | Tensor

    def __init__(
        self, p: float | Tensor = 0.5, *, scaling: str = "inverted", equal: bool = False
    ) -> None:
        noise.check_rate(p)
        noise.check_scaling(scaling)
        super().__init__()
        self.p = p
        self.scaling = scaling
        self.equal = equal

    def forward(self, input: Tensor) -> Tensor:
        """Drop both halves in training, return the input in evaluation."""
        return dropout_pair(
            input, self.p, self.training, key=self.key, scaling=self.scaling, equal=self.equal
        )

    def extra_repr(self) -> str:
        """The arguments; the scaling where it isn't the usual one."""
        other = noise.scaling_repr(self.scaling)
        return f"p={self.p}, equal={self.equal}{other}"


def r_drop_loss(logits_a: Tensor, logits_b: Tensor, reduction: str = "batchmean") -> Tensor:
    """How far two passes' predictions are apart: ``(KL(a || b) + KL(b || a)) / 2``.

    Liang et al. 2021, "R-Drop: regularized dropout for neural networks", equation 2. The paper adds
    it, times a weight alpha, to the sum of both passes' negative log-likelihoods. The gradient goes
    to both passes. Types of 16 bits are computed in float32.

    Args:
        logits_a: floating-point tensor (*, C), the classes last.
        logits_b: the other pass's logits, of the same shape.
        reduction: "batchmean" (the sum divided by the first dimension's size, which is the batch
            if there is one), "sum", or "none" (one value for each distribution, for instance to
            leave out padding).

    Returns:
        Tensor of shape (), or (*) under "none", of the logits' type. At least 0; an empty batch
        has 0. A class of logit -inf in both has no part in it; in one only, the result is inf.

    Raises:
        TypeError: `logits_a` or `logits_b` is no real floating-point tensor.
        ValueError: they have other shapes or no dimension, or `reduction` is unknown.

    Example:
        >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]])
        >>> r_drop_loss(a, b)
        tensor(0.3808)
        >>> r_drop_loss(a, a + 5)
        tensor(0.)
    """
    for name, logits in (("logits_a", logits_a), ("logits_b", logits_b)):
        if not isinstance(logits, Tensor) or not logits.is_floating_point():
            got = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
            raise InvalidTypeError(f"`{name}` must be a floating-point tensor; got {got}.")
    if logits_a.shape != logits_b.shape or logits_a.dim() == 0:
        raise InvalidValueError(
            "`logits_a` and `logits_b` must be (*, C) and of one shape; "
            f"got {tuple(logits_a.shape)} and {tuple(logits_b.shape)}."
        )
    if reduction not in ("batchmean", "sum", "none"):
        raise InvalidValueError(
            f'`reduction` must be "batchmean", "sum" or "none"; got {reduction!r}.'
        )
    dtype = torch.promote_types(logits_a.dtype, logits_b.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    log_a, log_b = (torch.log_softmax(x, -1, dtype=wide) for x in (logits_a, logits_b))
    neither = torch.isneginf(log_a) & torch.isneginf(log_b)
    # Both divergences at once; each term is at least 0, so that nothing cancels in the sum.
    terms = (log_a.exp() - log_b.exp()) * (log_a - log_b).masked_fill(neither, 0.0)
    losses = terms.sum(-1) / 2
    if reduction == "none":
        return losses.to(dtype)
    batch = logits_a.shape[0] if reduction == "batchmean" and logits_a.dim() > 1 else 1
    return (losses.sum() / max(batch, 1)).to(dtype)
