"""Keys in PyTorch: a key as a tensor, and a key of its own for each layer of a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Key, site_number

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class KeyedLayer(nn.Module):
    """A layer that may hold a key of its own, in the non-persistent buffer `key`."""

    key: Tensor | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("key", None, persistent=False)


def key_tensor(key: Key, device: torch.device | str | None = None) -> Tensor:
    """The tensor form of a key, which compiled code takes without compiling again.

    Args:
        key: the key.
        device: where the tensor lives; by default the current device.

    Returns:
        int64 tensor of shape (2,): ``[seed, site + 2**32 * step]``, each a two's complement bit
        pattern.

    Raises:
        TypeError: `key` is no `Key`.

    Example:
        >>> import dropseed.torch as dst
        >>> from dropseed import Key
        >>> dst.key_tensor(Key(7, site=1, step=2))
        tensor([         7, 8589934593])
    """
    if not isinstance(key, Key):
        raise InvalidTypeError(f"`key` must be a dropseed.Key; got {key!r}.")
    words = key.seed, key.site + 2**32 * key.step
    return torch.tensor([_signed(word) for word in words], dtype=torch.int64, device=device)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def set_key(model: nn.Module, seed: int | None, step: int = 0) -> int:
    """Give every dropseed layer of a model a key of its own, or take the keys away.

    Called once a step, it makes the masks of a whole run a function of two integers. A layer's
    site is its qualified name; a layer that occurs in two places has the first one's. A layer that
    is called twice in a step uses its mask twice.

    Args:
        model: any module, also one that is compiled or wrapped for data parallelism.
        seed: integer in [0, 2**64), or None to take the keys away.
        step: integer in [0, 2**32).

    Returns:
        The number of layers found.

    Raises:
        TypeError, ValueError: as `Key` does.
        ValueError: two names have the same site; then no key is changed.

    Example:
        >>> import dropseed.torch as dst
        >>> model = nn.Sequential(nn.Linear(4, 4), dst.Dropout(0.5))
        >>> dst.set_key(model, seed=1, step=0)
        1
        >>> x = torch.ones(1, 4)
        >>> torch.equal(model(x), model(x))
        True
    """
    key = None if seed is None else Key(seed, step=step)
    layers = list(_named_layers(model))
    sites: dict[int, str] = {}
    for name, _ in layers:
        site = site_number(name)
        if key is not None and site in sites:
            raise InvalidValueError(
                f"`model` has two layers with the same site {site}: {sites[site]!r} and {name!r}. "
                "Rename one of them."
            )
        sites[site] = name
    device = next((p.device for p in model.parameters()), None)
    with torch.inference_mode(False):  # backward may need a key, and can't keep an inference tensor
        for name, layer in layers:
            # A new tensor: the old one may still wait for its backward pass.
            layer.key = None if key is None else key_tensor(key.at(name), device)
    return len(layers)


def _named_layers(model: nn.Module) -> Iterator[tuple[str, KeyedLayer]]:
    """The dropseed layers of a model by their names without wrappers' prefixes, each layer once."""
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, path: tuple[str, ...]) -> Iterator[tuple[str, KeyedLayer]]:
        if module in seen:
            return
        seen.add(module)
        if isinstance(module, KeyedLayer):
            yield ".".join(path), module
        for name, child in module.named_children():
            yield from walk(child, path if _wraps(module, name) else (*path, name))

    return walk(model, ())


def _wraps(module: nn.Module, child: str) -> bool:
    """Whether a module merely wraps its child: its name is then no part of a site's name."""
    if child == "module":  # data parallelism's wrappers, and those that copy their form
        return len(module._modules) == 1 and not module._parameters
    return child in _WRAPPERS
