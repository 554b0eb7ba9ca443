"""Dropped weights: DropConnect on any module, with one mask for each of its forward passes.

The parameters stay where they are. For the duration of a pass the dropped weight stands in its
owner's `__dict__`, where Python looks before it asks a module for its parameters.
"""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Collection
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.torch import noise
from dropseed.torch.base import RateLayer
from dropseed.torch.keyed import places

Layer = TypeVar("Layer", bound=nn.Module)

_CHILD = "drop_weights"
# Their own iteration, or their `forward`, takes every child for one of theirs.
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class WeightDrop(RateLayer, _DropoutNd):
    """The rate, the key and the mode of one dropped weight, as `drop_weights` puts it into a model.

    It is a child of the module that owns the weight, so that `train`, `eval`, `set_key`, `set_rate`
    and copies of the model reach it; in its own `eval` mode nothing is dropped. Where
    ``convert(model, kind="dropconnect")`` puts it into a dropout layer's place as well, it passes
    on its input there.

    Args:
        p: the fraction of the weight dropped, in [0, 1]: a number, or a 0-d tensor.

    Shape:
        Input and output: any.

    Raises:
        TypeError, ValueError: `p` is no number in [0, 1].

    Example:
        >>> import dropseed.torch as dst
        >>> layer = drop_weights(nn.Linear(4, 4), "weight", 0.5)
        >>> layer.drop_weights.weight
        WeightDrop(p=0.5)
        >>> dst.sites(layer)
        {'drop_weights.weight': 268894960}
    """

    def __init__(self, p: float | Tensor = 0.5) -> None:
        super().__init__(p)

    def forward(self, input: Tensor) -> Tensor:
        """The input: what is dropped is the weight that reads it."""
        return input

    def drop(self, weight: Tensor) -> Tensor:
        """The weight, elementwise dropped in training, as for one pass."""
        return noise.drop(weight, self.p, self.training, False, self.key, "inverted")

    def extra_repr(self) -> str:
        """The rate."""
        return f"p={self.p}"


def drop_weights(module: Layer, names: str | Collection[str], rate: float | Tensor) -> Layer:
    """Drop weights of any module in training: one mask a weight and pass, for the whole batch.

    DropConnect (Wan et al. 2013, "Regularization of neural networks using DropConnect", section 3)
    in the form of AWD-LSTM's weight drop (Merity, Keskar and Socher 2018, "Regularizing and
    optimizing LSTM language models", section 2): on a recurrent layer's hidden weights the mask is
    the same at all time steps. Survivors are scaled by ``1 / (1 - rate)``.

    A pass is a call of `module`, and each has fresh masks, or those of the key that `set_key`
    wrote. While it lasts the names stand for the dropped weights; parameters, `state_dict` and
    optimizers never see them; nor do they see what a pass itself writes into a dropped weight. A
    module must not run in two threads at once in training, nor call all of its `children()`, which
    have one more. Call `torch.compile` afterwards: what has run compiled goes on as it was.

    Args:
        module: the module, changed in place; inside its wrapper if it is compiled or wrapped for
            data parallelism.
        names: a parameter of it, or several; with dots where a submodule has them, as in
            "out_proj.weight" of `torch.nn.MultiheadAttention`, which is read without a call of
            `out_proj`. Weights that are shared with other modules are dropped here only.
        rate: the fraction dropped, in [0, 1]: a number, or a 0-d tensor.

    Returns:
        The module. Each weight's owner has a child `drop_weights` now, with a `WeightDrop` for each
        name. `remove` takes them away.

    Raises:
        TypeError: `module` is no module, `names` neither a string nor a collection of such, or
            `rate` no number.
        ValueError: `rate` is outside [0, 1]; there is no name; or a name is that of no parameter,
            or of one that isn't floating-point, isn't initialized yet, is dropped already, or
            belongs to a container such as `torch.nn.Sequential` itself. The module is unchanged
            then.

    Example:
        >>> import dropseed.torch as dst
        >>> lstm = drop_weights(nn.LSTM(3, 4), "weight_hh_l0", 0.5)
        >>> dst.set_key(lstm, seed=1)
        1
        >>> outputs, state = lstm(torch.ones(5, 2, 3))
        >>> [name for name, _ in lstm.named_parameters()]
        ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """
    noise.check_rate(rate, "rate")
    inner = _unwrapped(module)
    for name in _checked(inner, names):
        attach(inner, name, WeightDrop(rate))
    return module


def remove(module: Layer, names: str | Collection[str] | None = None) -> Layer:
    """Take away what `drop_weights` put into a module; `revert` is for what `convert` put there.

    Args:
        module: the module that was given to `drop_weights`.
        names: the weights' names, as given there; by default all of them.

    Returns:
        The module, as it was before.

    Raises:
        TypeError: `module` is no module, or `names` no collection of strings.
        ValueError: nothing of that name is dropped, or nothing at all. The module is unchanged
            then.

    Example:
        >>> layer = drop_weights(nn.Linear(4, 4), ["weight", "bias"], 0.5)
        >>> remove(layer, "bias").drop_weights
        WeightDrops(
          (weight): WeightDrop(p=0.5)
        )
        >>> remove(layer)
        Linear(in_features=4, out_features=4, bias=True)
    """
    inner = _unwrapped(module)
    passes = {one.full_name: one for one in _passes(inner)}
    wanted = list(passes) if names is None else _listed(names)
    missing = [name for name in wanted if name not in passes]
    if missing or not wanted:
        raise InvalidValueError(
            f"`names` must name weights that are dropped; got {missing or names!r}. "
            f"{type(inner).__name__} has {reprlib.repr(list(passes))}."
        )
    for name in wanted:
        drop = _holder(inner.get_submodule(passes[name].path), passes[name].name)
        if drop is not None and drop._original is not None:
            raise InvalidValueError(
                f"`names` has {name!r}, whose drop `convert` put into a dropout layer's place, "
                "too. Take both away by dropseed.torch.revert(model)."
            )
    for name in wanted:
        passes[name].remove_from(inner)
    return module


def attach(module: nn.Module, name: str, drop: WeightDrop) -> None:
    """Let a `WeightDrop` drop a weight of a module, which `why_not` has found nothing against."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if _CHILD not in owner._modules:
        owner.add_module(_CHILD, WeightDrops())
    owner.get_submodule(_CHILD).add_module(leaf, drop)
    drop.training = owner.training
    _Pass(path, leaf).register(module)


def detach(model: nn.Module, drops: Collection[WeightDrop]) -> None:
    """Let some `WeightDrop`s of a model drop nothing any more."""
    for module in list(model.modules()):
        for one in _passes(module):
            if _holder(module.get_submodule(one.path), one.name) in drops:
                one.remove_from(module)


def why_not(owner: nn.Module, name: str) -> str | None:
    """What stands against dropping a parameter of a module, as the end of a sentence; or None."""
    if isinstance(owner, torch.jit.ScriptModule):
        return "was compiled by TorchScript: drop it before that"
    weight = owner._parameters.get(name)
    if weight is None:
        return "is no parameter"
    if isinstance(weight, UninitializedParameter):
        return "isn't initialized yet: call the module once before"
    if not (weight.is_floating_point() or weight.is_complex()):
        return f"is {weight.dtype}, not floating-point"
    if _holder(owner, name) is not None:
        return "is dropped already: call `remove` first"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.sparse:
        return "has sparse gradients: build the embedding with sparse=False"
    if isinstance(owner, _LISTS):
        return f"belongs to a {type(owner).__name__}, which would take the new child for its own"
    if hasattr(owner, _CHILD) and not isinstance(owner._modules.get(_CHILD), WeightDrops):
        return f"belongs to a {type(owner).__name__}, which has another `{_CHILD}`"
    return None


class WeightDrops(nn.Module):
    """The child of a module that holds the `WeightDrop` of each of its dropped weights."""


class _Pass:
    """The two hooks that begin and end a module's pass for one of its weights."""

    def __init__(self, path: str, name: str) -> None:
        self.path, self.name = path, name
        self.full_name = f"{path}.{name}" if path else name
        # Where the owner keeps what `enter` found in the name's place, one for each call under way.
        self.stack = f"_outer_{name}"
        self.handles: tuple[RemovableHandle, ...] = ()  # also keep the hooks' numbers in a pickle

    def register(self, module: nn.Module) -> None:
        self.handles = (
            # First, before hooks that compute with the weight, as of old weight normalisation.
            module.register_forward_pre_hook(self.enter, prepend=True),
            module.register_forward_hook(self.leave, always_call=True),
        )

    def enter(self, module: nn.Module, _: Any) -> None:
        owner = module.get_submodule(self.path)
        own = vars(owner)
        if self.stack in own and not _is_nested(module):
            self._forget(owner)
        # The replicas of data parallelism have plain tensors in the place of parameters.
        weights = own if getattr(owner, "_is_replica", False) else owner._parameters
        weight, drop = weights.get(self.name), _holder(owner, self.name)
        if weight is None or drop is None:
            raise InvalidValueError(
                f"`{self.full_name}` can't be dropped any more: since `drop_weights`, the "
                "parameter was put elsewhere or its module replaced. Call `remove`."
            )
        if drop.training or self.stack in own:
            own.setdefault(self.stack, []).append(own.pop(self.name, None))
            own[self.name] = drop.drop(weight)

    def leave(self, module: nn.Module, *_: Any) -> None:
        owner = module.get_submodule(self.path)
        own = vars(owner)
        if self.stack not in own:
            return  # in evaluation, or where a hook before `enter` has raised
        own.pop(self.name, None)
        outer = own[self.stack].pop()
        if outer is not None:
            own[self.name] = outer
        if not own[self.stack]:
            del own[self.stack]
        if isinstance(owner, nn.RNNBase):
            owner._update_flat_weights()

    def remove_from(self, module: nn.Module) -> None:
        for handle in self.handles:
            handle.remove()
        owner = module.get_submodule(self.path)
        self._forget(owner)
        drops = owner._modules.get(_CHILD)
        if isinstance(drops, WeightDrops):
            drops._modules.pop(self.name, None)
            if not drops._modules:
                del owner._modules[_CHILD]

    def _forget(self, owner: nn.Module) -> None:
        """Undo what a pass that never ended has left."""
        vars(owner).pop(self.name, None)
        vars(owner).pop(self.stack, None)


def _is_nested(module: nn.Module) -> bool:
    """Whether a call of a module runs within another, rather than after one that was interrupted.

    Torch calls no hook when a call ends by a KeyboardInterrupt.
    """
    if torch.compiler.is_compiling():
        return True
    frame: FrameType | None = sys._getframe()
    calls = 0
    while frame is not None:
        called = frame.f_code is nn.Module._call_impl.__code__
        calls += called and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls > 1


def _passes(module: nn.Module) -> list[_Pass]:
    hooks = [getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values()]
    return [one for one in reversed(hooks) if isinstance(one, _Pass)]


def _holder(owner: nn.Module, name: str) -> WeightDrop | None:
    drops = owner._modules.get(_CHILD)
    drop = drops._modules.get(name) if isinstance(drops, WeightDrops) else None
    return drop if isinstance(drop, WeightDrop) else None


def _checked(module: nn.Module, names: Any) -> list[str]:
    """The names of weights that can be dropped; everything that can be wrong is found here."""
    listed = _listed(names)
    if not listed:
        raise InvalidValueError(f"`names` must name a parameter at least; got {names!r}.")
    owners = {
        f"{prefix}.{leaf}" if prefix else leaf: (owner, leaf)
        for prefix, owner in module.named_modules(remove_duplicate=False)
        for leaf, weight in owner._parameters.items()
        if weight is not None
    }
    known = f"is no parameter: {type(module).__name__} has {reprlib.repr(list(owners))}"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        raise InvalidValueError(
            "`module` is the projection of an attention, which reads its weight without a call: "
            'give the attention instead, with the name "out_proj.weight".'
        )
    met = []
    for name in listed:
        reason = why_not(*owners[name]) if name in owners else known
        if _is_parametrized(module, name):
            reason = "is parametrized already, by torch.nn.utils.parametrize"
        if reason is None and owners[name] in met:
            reason = "is named twice"
        if reason is not None:
            raise InvalidValueError(
                f"`names` must name floating-point parameters, once each; {name!r} {reason}."
            )
        met.append(owners[name])
    return listed


def _is_parametrized(module: nn.Module, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    owner = dict(module.named_modules(remove_duplicate=False)).get(path)
    return owner is not None and parametrize.is_parametrized(owner, leaf)


def _unwrapped(module: Any) -> nn.Module:
    """The module inside the wrappers of compilation and data parallelism."""
    if not isinstance(module, nn.Module):
        raise InvalidTypeError(f"`module` must be a torch.nn.Module; got {type(module).__name__}.")
    return [place.module for place in places(module) if not place.name][-1]


def _listed(names: Any) -> list[str]:
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, Collection) or not all(isinstance(name, str) for name in listed):
        raise InvalidTypeError(f"`names` must be a name or a collection of names; got {names!r}.")
    return list(listed)
