"""Stochastic depth: whole residual paths dropped, and a residual that runs the kept samples only.

Only `DropPathResidual` reads a mask back, and only where nothing is traced or mapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key, shared_axes
from dropseed.mask.key import integer
from dropseed.torch import autograd, noise
from dropseed.torch.base import ScaledLayer
from dropseed.torch.keyed import KeyedLayer


@noise.overridable
def drop_path(
    input: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
    mode: str = "sample",
) -> Tensor:
    """Drop the residual path of whole samples (stochastic depth): `dropout` with one draw a sample.

    Huang et al. 2016, "Deep networks with stochastic depth", equation 2. The paper draws once a
    batch and scales in inference: that is ``mode="batch", scaling="original"``.

    Args:
        input: (N, *), the output of a residual branch before it is added.
        p: the fraction of the paths dropped, in [0, 1]: a number, or a 0-d tensor.
        training: whether to drop.
        inplace: whether to overwrite the input.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn.
        scaling: "inverted", "original" or "none", as in `dropout`.
        mode: "sample" (one draw a sample, noise shape (N,)) or "batch" (one draw for all).

    Returns:
        Tensor of the input's shape, type and strides.

    Raises:
        TypeError: `input` is no floating-point tensor, `p` no number, or `key` no key.
        ValueError: `input` has no dimensions, `p` is outside [0, 1], or `scaling` or `mode`
            unknown.

    Example:
        >>> from dropseed import Key
        >>> drop_path(torch.ones(4, 2), 0.5, key=Key(0))
        tensor([[2., 2.],
                [2., 2.],
                [0., 0.],
                [0., 0.]])
    """
    noise.check_input(input)
    _check_mode(mode)
    if input.dim() == 0:
        raise InvalidValueError(f"`input` must be (N, *); got shape {tuple(input.shape)}.")
    shared = shared_axes("path", input.dim()) if mode == "sample" else tuple(range(input.dim()))
    return noise.drop(input, p, training, inplace, key, scaling, shared)


def linear_depth(p: float, depth: int, *, first: str = "paper") -> list[float]:
    """The rates of a stack of residual blocks that grow linearly with depth.

    Huang et al. 2016, "Deep networks with stochastic depth", equation 4: block l of L, counted
    from 1, is dropped with rate ``p * l / L``. timm and its descendants begin at rate 0 instead,
    ``p * (l - 1) / (L - 1)``, which never drops the first block.

    Args:
        p: the last block's rate, in [0, 1].
        depth: the number of blocks, L.
        first: "paper" (the first block has rate p / L) or "zero" (rate 0, as in timm).

    Returns:
        L rates, the last of which is `p` (except that a single block has rate 0 under "zero").

    Raises:
        TypeError: `p` is no number, or `depth` no integer.
        ValueError: `p` is outside [0, 1], `depth` negative, or `first` unknown.

    Example:
        >>> linear_depth(0.5, 4)
        [0.125, 0.25, 0.375, 0.5]
        >>> linear_depth(0.5, 5, first="zero")
        [0.0, 0.125, 0.25, 0.375, 0.5]
    """
    rate = noise.checked_rate(p).value
    depth = integer(depth, "depth", 0, 2**63)
    if first not in ("paper", "zero"):
        raise InvalidValueError(f'`first` must be "paper" or "zero"; got {first!r}.')
    if first == "paper":
        return [rate * (block / depth) for block in range(1, depth + 1)]
    return [rate * (block / max(depth - 1, 1)) for block in range(depth)]


class DropPath(ScaledLayer, _DropoutNd):
    """Drop the residual path of whole samples in training; see `drop_path`.

    It stands where timm's `DropPath` and torchvision's `StochasticDepth` do, between a branch that
    has run for every sample and the addition. `DropPath.wrap` spares the dropped samples' work.

    Args:
        p: the fraction of the paths dropped, in [0, 1]: a number, or a 0-d tensor.
        inplace: whether to overwrite the input.
        scaling: "inverted", "original" or "none".
        mode: "sample" (one draw a sample) or "batch" (one draw for all).

    Shape:
        Input and output: (N, *).

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1], or `scaling` or `mode` is unknown.

    Example:
        >>> DropPath(0.1, mode="batch")
        DropPath(p=0.1, inplace=False, mode='batch')
    """

    def __init__(
        self,
        p: float | Tensor = 0.5,
        inplace: bool = False,
        *,
        scaling: str = "inverted",
        mode: str = "sample",
    ) -> None:
        _check_mode(mode)
        super().__init__(p, inplace, scaling=scaling)
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        """Drop paths in training, return the input in evaluation."""
        return drop_path(
            input,
            self.p,
            self.training,
            self.inplace,
            key=self.key,
            scaling=self.scaling,
            mode=self.mode,
        )

    @staticmethod
    def wrap(
        branch: nn.Module,
        p: float | Tensor = 0.5,
        *,
        scaling: str = "inverted",
        mode: str = "sample",
    ) -> DropPathResidual:
        """The whole residual block of a branch, addition included; see `DropPathResidual`.

        Args:
            branch: the module whose output is added to its input.
            p: the fraction of the paths dropped, in [0, 1]: a number, or a 0-d tensor.
            scaling: "inverted", "original" or "none".
            mode: "sample" (one draw a sample) or "batch" (one draw for all).

        Returns:
            A module that computes ``x + drop_path(branch(x))`` and runs the branch on the kept
            samples only.

        Raises:
            TypeError, ValueError: as `DropPathResidual` does.

        Example:
            >>> block = DropPath.wrap(nn.Linear(3, 3), 0.2)
            >>> block(torch.ones(8, 3)).shape
            torch.Size([8, 3])
        """
        return DropPathResidual(branch, p, scaling=scaling, mode=mode)

    def extra_repr(self) -> str:
        """The arguments; the mode where it isn't the usual one."""
        return super().extra_repr() + _mode_repr(self.mode)


class DropPathResidual(KeyedLayer):
    """A residual block, ``x + drop_path(branch(x))``, whose branch runs on the kept samples only.

    The addition is part of it: the dropped samples then pass through as they are, and nothing of
    theirs is computed or saved, forward or backward. Under one key it equals the unwrapped
    residual for every branch that treats samples independently. Those that don't:

    - Batch normalisation sees the kept samples only, in its statistics too, and refuses a single
      value a channel.
    - A dropout inside the branch has the masks of a batch of the kept samples.

    Where all samples are dropped the branch is not called, so its parameters get no gradient at all
    rather than zeros: `DistributedDataParallel` then wants ``find_unused_parameters=True``, and
    FullyShardedDataParallel the same draws on every rank.

    Which samples are kept must be known before the branch runs, so a GPU synchronises. Where values
    can't decide what runs (compiled, exported and traced code, `vmap` and functorch's other
    transforms, tensor subclasses, dispatch modes) the branch runs on all samples and the mask drops
    the rest: the same result without the saving.

    Args:
        branch: a module of one argument that keeps its input's shape. Its parameters are named
            ``branch.*`` in the state.
        p: the fraction of the paths dropped, in [0, 1]: a number, or a 0-d tensor.
        scaling: "inverted", "original" or "none".
        mode: "sample" (one draw a sample) or "batch" (one draw for all).

    Shape:
        Input and output: (N, *).

    Raises:
        TypeError: `branch` is no module, or `p` no number.
        ValueError: `p` is outside [0, 1], or `scaling` or `mode` unknown; in a call, the branch's
            output has another shape than its input.

    Example:
        >>> import dropseed.torch as dst
        >>> block = DropPathResidual(nn.Identity(), 0.5)
        >>> dst.set_key(block, seed=3)
        1
        >>> block(torch.ones(4, 2))
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.],
                [3., 3.]])
    """

    def __init__(
        self,
        branch: nn.Module,
        p: float | Tensor = 0.5,
        *,
        scaling: str = "inverted",
        mode: str = "sample",
    ) -> None:
        if not isinstance(branch, nn.Module):
            raise InvalidTypeError(f"`branch` must be a torch.nn.Module; got {branch!r}.")
        noise.check_rate(p)
        noise.check_scaling(scaling)
        _check_mode(mode)
        super().__init__()
        self.branch = branch
        self.p = p
        self.scaling = scaling
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        """The input plus the branch of the kept samples; in evaluation plus the branch of all."""
        noise.check_input(input)
        if self.training and autograd.is_eager(input):
            return self._kept_only(input)
        return input + self._drop(self._run(input))

    def _kept_only(self, input: Tensor) -> Tensor:
        # What a path is multiplied by: the scale of the kept ones is rounded to the compute type
        # where it is used, so it is held in double here.
        factors = self._drop(input.new_ones(input.shape[:1], dtype=torch.float64))
        kept = factors.nonzero().squeeze(1)
        if kept.numel() == 0:
            return input
        if kept.numel() == input.shape[0]:
            return input + eager.scaled(self._run(input), factors[0])
        output = eager.scaled(self._run(input.index_select(0, kept)), factors[kept[0]])
        dtype = torch.result_type(input, output)  # under autocast the branch has a type of its own
        apply: Callable[..., Tensor] = _AddRows.apply
        return apply(input.to(dtype), output.to(dtype), kept)

    def _drop(self, paths: Tensor) -> Tensor:
        return drop_path(
            paths, self.p, self.training, key=self.key, scaling=self.scaling, mode=self.mode
        )

    def _run(self, input: Tensor) -> Tensor:
        output: Tensor = self.branch(input)
        if output.shape != input.shape:
            raise InvalidValueError(
                f"`branch` must keep its input's shape {tuple(input.shape)}; "
                f"got {tuple(output.shape)}."
            )
        return output

    def extra_repr(self) -> str:
        """The arguments; scaling and mode where they aren't the usual ones."""
        other = noise.scaling_repr(self.scaling)
        return f"p={self.p}{other}{_mode_repr(self.mode)}"


class _AddRows(torch.autograd.Function):
    """``input.index_add(0, rows, values)``; torch's own would keep the values for backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return input.index_add(0, rows, values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        (rows,) = ctx.saved_tensors
        return gradient, gradient.index_select(0, rows), None


def _check_mode(mode: str) -> None:
    if mode not in ("sample", "batch"):
        raise InvalidValueError(f'`mode` must be "sample" or "batch"; got {mode!r}.')


def _mode_repr(mode: str) -> str:
    return "" if mode == "sample" else f", mode={mode!r}"
