"""Keys in PyTorch: a key as a tensor, and a key of its own for each layer of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.mask import Key, site_number

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


class KeyedLayer(nn.Module):
    """A layer that may hold a key of its own, in the non-persistent buffer `key`.

    Its site is its qualified name's number, unless `site` holds one that was fixed by `convert`.
    """

    key: Tensor | None
    site: int | None = None
    tensor_rate: bool = True  # whether `p` may be a 0-d tensor
    # What `convert` put it in the place of, and the rate that it came with. A tuple, because a
    # module that is an attribute would be a submodule.
    _original: tuple[nn.Module, float] | None = None

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
    site is its qualified name, unless `convert` fixed another; a layer that occurs in two places
    has the first one's. A layer that is called twice in a step uses its mask twice.

    Args:
        model: any module, also one that is compiled or wrapped for data parallelism.
        seed: integer in [0, 2**64), or None to take the keys away.
        step: integer in [0, 2**32).

    Returns:
        The number of layers found.

    Raises:
        TypeError, ValueError: as `Key` does.
        ValueError: two layers have the same site; then no key is changed.

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
    layers = [(name, layer, site_of(name, layer)) for name, layer in named_layers(model)]
    if key is not None:
        check_sites([(name, site) for name, _, site in layers], {})
    device = next((p.device for p in model.parameters()), None)
    with torch.inference_mode(False):  # backward may need a key, and can't keep an inference tensor
        for _, layer, site in layers:
            # A new tensor: the old one may still wait for its backward pass.
            layer.key = None if key is None else key_tensor(replace(key, site=site), device)
    return len(layers)


class Place(NamedTuple):
    """Where a module is: by its name without wrappers' prefixes, and in its parent."""

    name: str
    module: nn.Module
    parent: nn.Module | None
    child: str


def places(model: nn.Module) -> Iterator[Place]:
    """Every place of every module in a model; one that is met again is not entered again."""
    seen: set[nn.Module] = set()

    def walk(place: Place, path: tuple[str, ...]) -> Iterator[Place]:
        yield place
        module = place.module
        if module in seen:
            return
        seen.add(module)
        for name, child in module._modules.items():
            if child is not None:
                inner = path if _wraps(module, name) else (*path, name)
                yield from walk(Place(".".join(inner), child, module, name), inner)

    return walk(Place("", model, None, ""), ())


def named_layers(model: nn.Module) -> Iterator[tuple[str, KeyedLayer]]:
    """The dropseed layers of a model by their names without wrappers' prefixes, each layer once."""
    seen: set[nn.Module] = set()
    for name, module, _, _ in places(model):
        if isinstance(module, KeyedLayer) and module not in seen:
            seen.add(module)
            yield name, module


def site_of(name: str, layer: KeyedLayer) -> int:
    """The site of a layer: its name's number, or the one that was fixed."""
    return site_number(name) if layer.site is None else layer.site


def check_sites(named: Sequence[tuple[str, int]], given: Mapping[str, int]) -> None:
    """Refuse two layers with one site, and show the `sites` of `convert` that tell them apart."""
    names: dict[int, str] = {}
    for name, site in named:
        if site in names:
            taken = {other for _, other in named}
            free = next(n % 2**32 for n in range(site + 1, 2**33) if n % 2**32 not in taken)
            raise InvalidValueError(
                f"`model` has two layers with the same site {site}: {names[site]!r} and {name!r}. "
                "Give one of them another number: "
                f"dropseed.torch.convert(model, sites={ {**given, name: free} }). Copies of one "
                "converted part get sites of their own by revert(model) and then convert(model)."
            )
        names[site] = name


def _wraps(module: nn.Module, child: str) -> bool:
    """Whether a module merely wraps its child: its name is then no part of a site's name."""
    if child == "module":  # data parallelism's wrappers, and those that copy their form
        return len(module._modules) == 1 and not module._parameters
    return child in _WRAPPERS
