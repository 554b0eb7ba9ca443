"""DropBlock as modules, in one to three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from dropseed.mask.shard import each_dimension
from dropseed.torch.base import RateLayer
from dropseed.torch.drop_block import (
    check_normalization,
    drop_block1d,
    drop_block2d,
    drop_block3d,
)


class _DropBlock(RateLayer, _DropoutNd):
    """What the layers share: all but the number of dimensions."""

    function: Any
    rank: int

    def __init__(
        self,
        p: float | Tensor = 0.1,
        block_size: int | Sequence[int] = 7,
        inplace: bool = False,
        *,
        shared: bool = False,
        exact: bool = False,
        normalization: str = "sample",
    ) -> None:
        check_normalization(normalization)
        each_dimension(block_size, "block_size", self.rank, low=1)
        super().__init__(p, inplace)
        self.block_size = block_size
        self.shared = shared
        self.exact = exact
        self.normalization = normalization

    def forward(self, input: Tensor) -> Tensor:
        """Drop blocks in training, return the input in evaluation."""
        output: Tensor = self.function(
            input,
            self.p,
            self.block_size,
            self.training,
            self.inplace,
            key=self.key,
            shared=self.shared,
            exact=self.exact,
            normalization=self.normalization,
        )
        return output

    def extra_repr(self) -> str:
        """The arguments; those behind `inplace` where they aren't the usual ones."""
        parts = [f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"]
        parts += ["shared=True"] if self.shared else []
        parts += ["exact=True"] if self.exact else []
        usual = self.normalization == "sample"
        parts += [] if usual else [f"normalization={self.normalization!r}"]
        return ", ".join(parts)


class DropBlock1d(_DropBlock):
    """Drop stretches of a sequence's channels in training; see `functional.drop_block1d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        block_size: the length of a block.
        inplace: whether to overwrite the input.
        shared: whether the channels share their blocks.
        exact: whether the fraction dropped is `p` exactly, overlaps and borders included.
        normalization: "sample", "batch" or "expectation".

    Shape:
        Input and output: (N, C, L) or (C, L).

    Raises:
        TypeError, ValueError: as `functional.drop_block2d` does, for what needs no input.

    Example:
        >>> DropBlock1d(0.1, 5, exact=True)
        DropBlock1d(p=0.1, block_size=5, inplace=False, exact=True)
    """

    function = staticmethod(drop_block1d)
    rank = 1


class DropBlock2d(_DropBlock):
    """Drop square regions of feature maps in training; see `functional.drop_block2d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        block_size: the block's edge, or (height, width).
        inplace: whether to overwrite the input.
        shared: whether the channels share their blocks.
        exact: whether the fraction dropped is `p` exactly, overlaps and borders included.
        normalization: "sample", "batch" or "expectation".

    Shape:
        Input and output: (N, C, H, W) or (C, H, W).

    Raises:
        TypeError, ValueError: as `functional.drop_block2d` does, for what needs no input.

    Example:
        >>> DropBlock2d(0.1, 7)
        DropBlock2d(p=0.1, block_size=7, inplace=False)
    """

    function = staticmethod(drop_block2d)
    rank = 2


class DropBlock3d(_DropBlock):
    """Drop cubes of volumes' feature maps in training; see `functional.drop_block3d`.

    Args:
        p: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.
        block_size: the cube's edge, or (depth, height, width).
        inplace: whether to overwrite the input.
        shared: whether the channels share their blocks.
        exact: whether the fraction dropped is `p` exactly, overlaps and borders included.
        normalization: "sample", "batch" or "expectation".

    Shape:
        Input and output: (N, C, D, H, W) or (C, D, H, W).

    Raises:
        TypeError, ValueError: as `functional.drop_block2d` does, for what needs no input.

    Example:
        >>> DropBlock3d(0.1, 3, normalization="batch")
        DropBlock3d(p=0.1, block_size=3, inplace=False, normalization='batch')
    """

    function = staticmethod(drop_block3d)
    rank = 3
