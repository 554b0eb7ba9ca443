"""Token dropout: whole tokens of a sequence removed, or zeroed in their places."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from dropseed.errors import InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.mask.key import integer
from dropseed.torch import noise
from dropseed.torch.keyed import KeyedLayer


@overload
def token_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    scaling: str | None = None,
    prefix: int = 0,
    mode: str = "fixed",
    num_keep: int | None = None,
    return_indices: Literal[False] = False,
) -> Tensor: ...


@overload
def token_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    scaling: str | None = None,
    prefix: int = 0,
    mode: str = "fixed",
    num_keep: int | None = None,
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def token_dropout(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
    scaling: str | None = None,
    prefix: int = 0,
    mode: str = "fixed",
    num_keep: int | None = None,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Drop tokens of a sequence: remove a fixed number of them, or zero each with rate p.

    - ``mode="fixed"``: Liu et al. 2022, "PatchDropout: economizing vision transformers using patch
      dropout", section 3. Each sample keeps its prefix and a random subset of the same size, in
      the sequence's order and without scaling; what follows costs less by the tokens removed.
    - ``mode="bernoulli"``: word dropout, Iyyer et al. 2015, "Deep unordered composition rivals
      syntactic methods for text classification", section 3.1. `dropout` with one draw a token,
      noise shape (N, T) with the prefix counted; the prefix stays as it is.

    Args:
        input: (N, T, D).
        p: the fraction of the T - prefix other tokens dropped, in [0, 1]. Fixed:
            ``int((T - prefix) * (1 - p))`` of them stay, at least one, and none at p = 1.
            Bernoulli also takes a 0-d tensor.
        training: whether to drop.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted" (the default there), "original" or "none", Bernoulli only.
        prefix: how many first tokens always stay, for instance a class token.
        mode: "fixed" or "bernoulli".
        num_keep: how many of the T - prefix tokens stay, instead of `p`. Fixed only.
        return_indices: whether to return the places of the tokens too. Fixed only.

    Returns:
        Tensor (N, prefix + kept, D), or (N, T, D) if Bernoulli; the input itself where nothing is
        dropped. With `return_indices` also the int64 tensor (N, prefix + kept) of the places in
        the input: ``output[i, j] == input[i, indices[i, j]]``.

    Raises:
        TypeError: `input` is no floating-point tensor, `p` no number, `key` no key, or `prefix` or
            `num_keep` no integer.
        ValueError: `input` is not (N, T, D), `p` is outside [0, 1], there are fewer tokens than
            `prefix` or `num_keep`, `mode` or `scaling` is unknown, or an argument belongs to the
            other mode.

    Example:
        >>> from dropseed import Key
        >>> x = torch.arange(6.0).reshape(1, 6, 1)
        >>> token_dropout(x, 0.6, key=Key(0), prefix=1).flatten()
        tensor([0., 3., 4.])
        >>> token_dropout(x, 0.6, key=Key(0), mode="bernoulli", scaling="none").flatten()
        tensor([0., 1., 0., 0., 0., 5.])
    """
    noise.check_input(input)
    _check_options(mode, scaling, num_keep, return_indices)
    prefix = _checked(prefix, "prefix")
    if input.dim() != 3:
        raise InvalidValueError(f"`input` must be (N, T, D); got shape {tuple(input.shape)}.")
    others = input.shape[1] - prefix
    if others < 0:
        raise InvalidValueError(
            f"`prefix` must be at most the number of tokens; got {prefix} for "
            f"`input` of shape {tuple(input.shape)}."
        )
    if mode == "bernoulli":
        output = noise.drop(input, p, training, False, key, scaling or "inverted", (2,))
        if prefix == 0 or output is input:
            return output
        return torch.cat([input[:, :prefix], output[:, prefix:]], 1)
    rate = noise.checked_rate(p).value
    size = _count(others, rate, num_keep) if training else others
    output, indices = _subset(input, key, prefix, others, size)
    return (output, indices) if return_indices else output


def _check_options(
    mode: str, scaling: str | None, num_keep: int | None, return_indices: bool
) -> None:
    if mode not in ("fixed", "bernoulli"):
        raise InvalidValueError(f'`mode` must be "fixed" or "bernoulli"; got {mode!r}.')
    foreign: dict[str, object] = {"scaling": scaling}
    if mode == "bernoulli":
        foreign = {"num_keep": num_keep, "return_indices": return_indices or None}
    for name, value in foreign.items():
        if value is not None:
            raise InvalidValueError(f'`{name}` has no meaning in mode "{mode}"; got {value!r}.')


def _checked(number: int, name: str) -> int:
    """A number of tokens. An int passes by itself: Dynamo can't trace the check of other types."""
    return number if type(number) is int and number >= 0 else integer(number, name, 0, 2**63)


def _count(others: int, rate: float, num_keep: int | None) -> int:
    """How many of the tokens after the prefix stay."""
    if num_keep is None:
        # 10 * (1 - 0.8) is 1.99...: what is a whole number but for its rounding counts as one.
        size = max(1, int(others * (1 - rate) + 1e-9)) if rate < 1 else 0
        return min(size, others)
    num_keep = _checked(num_keep, "num_keep")
    if num_keep > others:
        raise InvalidValueError(
            f"`num_keep` must be at most the number of tokens after the prefix, {others}; "
            f"got {num_keep}."
        )
    return num_keep


def _subset(
    input: Tensor, key: Key | Tensor | None, prefix: int, others: int, size: int
) -> tuple[Tensor, Tensor]:
    """The prefix and `size` of the other tokens of each sample, and their places."""
    samples, tokens, features = input.shape
    if size == others:
        return input, torch.arange(tokens, device=input.device).expand(samples, tokens)
    always = torch.arange(prefix, device=input.device).expand(samples, prefix)
    if size == 0:
        indices = always
    else:
        words = noise.key_for(key, input)
        chosen = eager.subset(words, others, size, samples)
        indices = torch.cat([always, chosen + prefix], 1)
    # Whole rows of the (N * T, D) matrix: several times as fast as `gather` along the second axis,
    # and backward keeps one index a token.
    first = torch.arange(samples, device=input.device)[:, None] * tokens
    rows = input.reshape(samples * tokens, features).index_select(0, (first + indices).flatten())
    return rows.reshape(samples, prefix + size, features), indices


class TokenDropout(KeyedLayer):
    """Drop tokens of a sequence in training; see `token_dropout`.

    Args:
        p: the fraction of the tokens dropped, in [0, 1]: a number, or a 0-d tensor if Bernoulli.
        scaling: "inverted", "original" or "none"; ``mode="bernoulli"`` only.
        prefix: how many first tokens always stay.
        mode: "fixed" (a random subset of one size stays, the sequence gets shorter) or
            "bernoulli" (tokens are zeroed).
        num_keep: how many tokens stay beside the prefix, instead of `p`; ``mode="fixed"`` only.
        return_indices: whether to return the places of the tokens too; ``mode="fixed"`` only.

    Shape:
        Input: (N, T, D). Output: (N, prefix + kept, D), or (N, T, D) if Bernoulli.

    Raises:
        TypeError, ValueError: as `token_dropout` does, for what doesn't depend on an input.

    Example:
        >>> TokenDropout(0.25)(torch.ones(2, 8, 3)).shape
        torch.Size([2, 6, 3])
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        *,
        scaling: str | None = None,
        prefix: int = 0,
        mode: str = "fixed",
        num_keep: int | None = None,
        return_indices: bool = False,
    ) -> None:
        _check_options(mode, scaling, num_keep, return_indices)
        (noise.check_rate if mode == "bernoulli" else noise.checked_rate)(p)
        noise.check_scaling(scaling or "inverted")
        super().__init__()
        self.p = p
        self.scaling = scaling
        self.prefix = _checked(prefix, "prefix")
        self.mode = mode
        self.tensor_rate = mode == "bernoulli"  # a shape can't depend on a tensor
        self.num_keep = None if num_keep is None else _checked(num_keep, "num_keep")
        self.return_indices = return_indices

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Drop tokens in training, return the input in evaluation."""
        return token_dropout(
            input,
            self.p,
            self.training,
            key=self.key,
            scaling=self.scaling,
            prefix=self.prefix,
            mode=self.mode,
            num_keep=self.num_keep,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        """The arguments; those of one mode where they are set."""
        names = ["prefix", "mode"]
        names += [name for name in ("scaling", "num_keep") if getattr(self, name) is not None]
        names += ["return_indices"] if self.return_indices else []
        return f"p={self.p}, " + ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class PatchDropout(TokenDropout):
    """Remove a fixed number of patches in training, keeping the class token; see `token_dropout`.

    `TokenDropout` in its fixed mode with a prefix of one token, under the paper's and timm's name:
    Liu et al. 2022, "PatchDropout: economizing vision transformers using patch dropout",
    section 3. It stands after the position embedding is added.

    Args:
        p: the fraction of the patches dropped, in [0, 1].
        prefix: how many first tokens always stay.
        num_keep: how many patches stay, instead of `p`.
        return_indices: whether to return the places of the tokens too, the prefix's included.

    Shape:
        Input: (N, T, D). Output: (N, prefix + kept, D).

    Raises:
        TypeError, ValueError: as `TokenDropout` does.

    Example:
        >>> PatchDropout(0.5)(torch.ones(2, 197, 3)).shape
        torch.Size([2, 99, 3])
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        prefix: int = 1,
        num_keep: int | None = None,
        return_indices: bool = False,
    ) -> None:
        super().__init__(p, prefix=prefix, num_keep=num_keep, return_indices=return_indices)
