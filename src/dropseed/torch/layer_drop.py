"""LayerDrop: a list of layers of which a training pass sees only some."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import overload

import torch
from torch import Tensor, nn

from dropseed.torch import noise
from dropseed.torch.keyed import KeyedLayer


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _kept(depth: int, p: float, key: Tensor | None) -> list[float]:
    """1 for each layer that runs, 0 for the others.

    Drawn on the CPU, where it is read: a key on a GPU is fetched, a fresh seed needs no waiting.
    """
    kept = noise.drop(torch.ones(depth, device="cpu"), p, True, False, key, "none")
    numbers: list[float] = kept.tolist()
    return numbers


class LayerDrop(KeyedLayer, nn.ModuleList):
    """A `torch.nn.ModuleList` that skips layers at random when it is iterated in training.

    Fan, Grave and Joulin 2020, "Reducing Transformer depth on demand with structured dropout",
    section 3.2. Layer i has draw i of the key: ``keep(key, p, len(layers))``. Each iteration draws
    anew, except that with a key from `set_key` every iteration yields the same layers. In
    evaluation, and at ``p == 0``, it yields them all.

    Only iteration drops. `len`, indexing, ``in``, ``+`` and the state are those of the list of all
    layers, and a slice is a plain `torch.nn.ModuleList`: ``layers[::2]`` is the paper's pruning for
    inference. The list never sees an output, so there is nothing to scale, as in the paper; for
    scaled paths there is `DropPath.wrap` with ``mode="batch"``.

    The layers that run depend on the draw, so ``torch.compile`` breaks the graph around the loop in
    training and compiles the layers one by one. A skipped layer's parameters get no gradient:
    `DistributedDataParallel` then wants ``find_unused_parameters=True``, and
    FullyShardedDataParallel the same draws on every rank.

    Args:
        layers: the modules.
        p: the fraction of the layers skipped, in [0, 1].

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1].

    Example:
        >>> import dropseed.torch as dst
        >>> layers = LayerDrop([nn.Linear(1, n) for n in range(1, 9)], 0.5)
        >>> dst.set_key(layers, seed=1)
        1
        >>> [layer.out_features for layer in layers]
        [3, 4, 5, 8]
        >>> [layer.out_features for layer in layers.eval()]
        [1, 2, 3, 4, 5, 6, 7, 8]
    """

    tensor_rate = False  # what runs can't depend on a tensor

    def __init__(self, layers: Iterable[nn.Module] | None = None, p: float = 0.5) -> None:
        noise.checked_rate(p)
        super().__init__(layers)
        self.p = p

    def __iter__(self) -> Iterator[nn.Module]:
        layers = list(self._modules.values())
        if not self.training or self.p == 0:
            return iter(layers)
        kept = _kept(len(layers), self.p, self.key)
        return iter([layer for layer, one in zip(layers, kept, strict=True) if one])

    @overload
    def __getitem__(self, idx: slice) -> nn.ModuleList: ...

    @overload
    def __getitem__(self, idx: int) -> nn.Module: ...

    def __getitem__(self, idx: int | slice) -> nn.Module | nn.ModuleList:
        if isinstance(idx, slice):
            return nn.ModuleList(list(self._modules.values())[idx])
        return super().__getitem__(idx)

    # What `ModuleList` computes by iterating itself.

    def __contains__(self, layer: object) -> bool:
        return layer in self._modules.values()

    def __add__(self, other: Iterable[nn.Module]) -> nn.ModuleList:
        return nn.ModuleList([*self._modules.values(), *other])

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def extra_repr(self) -> str:
        """The rate."""
        return f"p={self.p}"
