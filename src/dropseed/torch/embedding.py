"""Embedding dropout: one draw a word, looked up as the word's vector is.

The (V, D) weight is never masked: V draws are made, and each vector that was looked up is dropped
or scaled by its word's draw. Backward keeps one factor and one flag a token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as theirs
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Key
from dropseed.torch import noise
from dropseed.torch.keyed import KeyedLayer


def embedding_dropout(
    input: Tensor,
    weight: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Look words up and drop whole words: all occurrences of a word in the batch alike.

    Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks", section 4.2: word types are dropped, not tokens.

    Args:
        input: int64 or int32 tensor of any shape: the words' numbers, in [0, V).
        weight: floating-point tensor (V, D). The draws are one a row, noise shape (V,).
        p: the fraction of the words dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop. Without it this is `torch.nn.functional.embedding`.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.
        padding_idx: the word whose vector has no gradient.
        max_norm: vectors with a larger norm are renormalised, in `weight` itself.
        norm_type: the norm that `max_norm` means.
        scale_grad_by_freq: whether to divide a word's gradient by its count in the batch.
        sparse: whether the gradient of `weight` is a sparse tensor.

    Returns:
        Tensor (*, D) for an input of shape (*), of the weight's type. The vector of a dropped word
        is +0, also where it is NaN or infinite.

    Raises:
        TypeError: `input` is no tensor of int32 or int64, `weight` no floating-point tensor, `p` no
            number, or `key` no key.
        ValueError: `weight` has another rank, `p` is outside [0, 1], or `scaling` unknown.
        IndexError: a word is outside [0, V), on a CPU.

    Example:
        >>> from dropseed import Key
        >>> words = torch.tensor([0, 2, 2, 1])
        >>> embedding_dropout(words, torch.ones(4, 2), 0.5, key=Key(0))
        tensor([[2., 2.],
                [0., 0.],
                [0., 0.],
                [2., 2.]])
    """
    _check_words(input)
    if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.is_complex()):
        got = weight.dtype if isinstance(weight, Tensor) else type(weight).__name__
        raise InvalidTypeError(f"`weight` must be a floating-point tensor; got {got}.")
    if weight.dim() != 2:
        raise InvalidValueError(
            f"`weight` must be (V, D), one row a word; got shape {tuple(weight.shape)}."
        )
    factors = _factors(weight, p, training, key, scaling)
    vectors = theirs.embedding(
        input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
    )
    return _apply(vectors, input, factors)


class EmbeddingDropout(KeyedLayer):
    """Drop whole words of an embedding in training; see `embedding_dropout`.

    The embedding keeps its settings: padding, sparse gradients, a largest norm, gradients by
    frequency. In evaluation this is the embedding itself, unless `scaling` is "original".

    Args:
        embedding: the `torch.nn.Embedding` to wrap. Its weight is `embedding.weight` in the
            `state_dict`.
        p: the fraction of the words dropped, in [0, 1]: a number, or a 0-d tensor.
        scaling: "inverted", "original" or "none".

    Shape:
        Input: (*), int32 or int64. Output: (*, D).

    Raises:
        TypeError, ValueError: `embedding` is no `torch.nn.Embedding`, `p` no number in [0, 1], or
            `scaling` unknown.

    Example:
        >>> layer = EmbeddingDropout(nn.Embedding(10, 3), 0.1)
        >>> layer(torch.tensor([[1, 2], [2, 9]])).shape
        torch.Size([2, 2, 3])
        >>> list(layer.state_dict())
        ['embedding.weight']
    """

    p: float | Tensor

    def __init__(
        self, embedding: nn.Embedding, p: float | Tensor = 0.5, *, scaling: str = "inverted"
    ) -> None:
        if not isinstance(embedding, nn.Embedding):
            raise InvalidTypeError(
                f"`embedding` must be a torch.nn.Embedding; got {type(embedding).__name__}."
            )
        noise.check_rate(p)
        noise.check_scaling(scaling)
        super().__init__()
        self.embedding = embedding
        self.p = p
        self.scaling = scaling

    def forward(self, input: Tensor) -> Tensor:
        """Look up the words' vectors, and drop words in training."""
        _check_words(input)
        factors = _factors(self.embedding.weight, self.p, self.training, self.key, self.scaling)
        return _apply(self.embedding(input), input, factors)

    def extra_repr(self) -> str:
        """The rate, and the scaling where it isn't the usual one."""
        other = noise.scaling_repr(self.scaling)
        return f"p={self.p}{other}"


def _check_words(input: Any) -> None:
    if not isinstance(input, Tensor) or input.dtype not in (torch.int64, torch.int32):
        got = input.dtype if isinstance(input, Tensor) else type(input).__name__
        raise InvalidTypeError(
            f"`input` must be an int64 or int32 tensor of words' numbers; got {got}."
        )


def _factors(
    weight: Tensor, p: float | Tensor, training: bool, key: Key | Tensor | None, scaling: str
) -> Tensor | None:
    """Each word's factor (V,), 0 if it is dropped; None where nothing is to be done."""
    double = weight.dtype in (torch.float64, torch.complex128)
    compute = torch.float64 if double else torch.float32
    # Expanded, so that nothing of size V is written where nothing is dropped.
    ones = weight.new_ones((), dtype=compute).expand(len(weight))
    factors = noise.drop(ones, p, training, False, key, scaling)
    return None if factors is ones else factors


def _apply(vectors: Tensor, input: Tensor, factors: Tensor | None) -> Tensor:
    if factors is None:
        return vectors
    factor = theirs.embedding(input, factors[:, None])
    return torch.where(factor != 0, (vectors * factor).to(vectors.dtype), 0.0)
