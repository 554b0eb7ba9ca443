"""What a dropout call asks for: its rate, its switch and its input, whoever's call it is."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.draws import is_plain, unseen

if TYPE_CHECKING:
    from torch import nn

DROPS = re.compile(r"drop|stochastic_?depth|zoneout", re.IGNORECASE)
"""Names of modules and functions that drop."""

MASK, ZEROS = "mask", "zeros"
"""Ways to see what was dropped: the mask that is drawn; the output's zeros beside the input's."""

_TO_ZERO = re.compile(
    r"dropout[123]d|(spatial|locked)_?dropout([123]d)?|drop_?(path|block([123]d)?)", re.IGNORECASE
)
_NOT_TO_ZERO = re.compile(r"alpha|gauss|concrete|zoneout|connect|variational", re.IGNORECASE)
_RATES = ("p", "drop_prob", "drop_rate", "dropout_p", "dropout_prob", "dropout", "rate", "prob")


@dataclass
class Asked:
    """A call's request.

    Attributes:
        kind: the module's class or the function's name.
        rate: the rate; None if it can't be read.
        active: whether it will drop; None if only the call itself shows that.
        why: why it will or won't, in words.
        input: what it drops from; None if that isn't known.
        ways: the ways to see what it dropped, the better one first.
        elementwise: whether every value of the input has a draw of its own.
        own: whether it is dropseed's.
        key: dropseed's key in words, if there is one.
    """

    kind: str
    rate: float | None
    active: bool | None
    why: str
    input: Any = None
    ways: tuple[str, ...] = (MASK,)
    elementwise: bool = False
    own: bool = False
    key: str | None = None


# ---- functions --------------------------------------------------------------------------------


def is_dropout(function: Any) -> bool:
    """Whether a function of torch's drops."""
    return function in _functions()


def draws(function: Any) -> bool:
    """Whether a function of torch's draws what a mask by hand, or a seed, is made of."""
    return function in _drawing()


def is_seed(function: Any) -> bool:
    """Whether a function is the one by which dropseed draws its seed."""
    return bool(function == _seeding())


def by_torch(function: Any, args: Any, kwargs: Any, module: nn.Module | None) -> Asked:
    """What a call of a function of torch's that drops asks for.

    Args:
        function: the function.
        args: its positional arguments.
        kwargs: its named ones.
        module: the innermost module that runs.
    """
    names = _functions()[function]
    given = dict(zip(names, args, strict=False)) | kwargs
    kind, switch = function.__name__, "dropout_p" if "query" in names else "p"
    rate = number(given.get(switch, 0.0 if switch == "dropout_p" else 0.5))
    training = None
    if "training" in names:
        training = bool(given.get("training", given.get("train", True)))
    if module is not None and runs_as_torchs(module):
        kind = type(module).__name__
        active, why = _by_mode(module, rate)
    else:
        active, why = _by_arguments(rate, training, switch, module)
    ways = (MASK,) if "query" in names else (MASK, ZEROS)
    return Asked(kind, rate, active, why, given.get(names[0]), ways)


def by_dropseed(kind: str, given: dict[str, Any], module: nn.Module | None) -> Asked:
    """What a call of one of dropseed's functions asks for.

    Args:
        kind: the function's name.
        given: its arguments by name.
        module: the innermost module that runs.
    """
    rate = number(given.get("p"))
    active, why = _by_arguments(rate, bool(given.get("training", True)), "p", module)
    elementwise = kind == "dropout" and given.get("noise_shape") is None
    return _dropseeds(kind, rate, active, why, given.get("input"), elementwise, given.get("key"))


def is_by_hand(function: Any, caller: str) -> bool:
    """Whether a random function of torch's draws the mask of a function whose name says so."""
    return function in _masking() and DROPS.search(caller) is not None


def by_hand(function: Any, args: Any, caller: str) -> Asked:
    """What a function by hand asks for, seen while it draws its mask.

    Args:
        function: the function of torch's that it draws by.
        args: its positional arguments.
        caller: the function's name.
    """
    kept = number(args[1]) if "bernoulli" in function.__name__ and len(args) > 1 else None
    kind = caller if DROPS.search(caller) else function.__name__
    rate = None if kept is None else 1 - kept
    return Asked(kind, rate, True, "it drew; a call that draws nothing can't be seen")


@cache
def _functions() -> dict[Any, tuple[str, ...]]:
    """The functions of torch that drop, with their first parameters."""
    import torch
    from torch.nn import functional

    several = ("dropout", "alpha_dropout", "feature_alpha_dropout")
    table: dict[Any, tuple[str, ...]] = {torch.native_dropout: ("input", "p", "training")}
    for name in (*several, "dropout1d", "dropout2d", "dropout3d"):
        table[getattr(functional, name)] = ("input", "p", "training", "inplace")
    for name in (*several, "feature_dropout"):
        for function in (getattr(torch, name), getattr(torch, f"{name}_")):
            table[function] = ("input", "p", "training")
    table[functional.scaled_dot_product_attention] = ("query", "key", "value", "mask", "dropout_p")
    table[functional.multi_head_attention_forward] = (
        *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight"),
        *("in_proj_bias", "bias_k", "bias_v", "add_zero_attn", "dropout_p", "out_proj_weight"),
        *("out_proj_bias", "training"),
    )
    return table


@cache
def _drawing() -> frozenset[Any]:
    import torch

    names = {"randint_like", "randn", "randn_like", "randperm", "normal", "multinomial", "poisson"}
    in_place = {"normal_", "random_", "exponential_", "log_normal_", "cauchy_", "geometric_"}
    return frozenset(
        {
            *_masking(),
            _seeding(),
            *(getattr(torch, name) for name in names),
            *(getattr(torch.Tensor, name) for name in in_place),
        }
    )


@cache
def _masking() -> frozenset[Any]:
    import torch

    in_place = {torch.Tensor.bernoulli_, torch.Tensor.uniform_}
    return frozenset({torch.bernoulli, torch.rand, torch.rand_like, *in_place})


@cache
def _seeding() -> Any:
    import torch

    return torch.randint


def _by_arguments(
    rate: float | None, training: bool | None, switch: str, module: nn.Module | None
) -> tuple[bool, str]:
    where = ""
    if module is not None:
        where = f", the module is in {'training' if module.training else 'eval'} mode"
    if training is False:
        return False, f"training=False passed{where}"
    if training is None or rate == 0:
        return rate != 0, f"{switch}={'?' if rate is None else format(rate, 'g')} passed{where}"
    return True, f"training=True passed{where}"


# ---- modules ----------------------------------------------------------------------------------


def by_module(module: nn.Module, inputs: tuple[Any, ...]) -> Asked | None:
    """What a call of a module asks for; None if it's no dropout, or runs as torch's layers do.

    Args:
        module: the module.
        inputs: its positional arguments.
    """
    from torch import nn

    first, kind = inputs[0] if inputs else None, type(module).__name__
    if runs_as_torchs(module):
        return None  # the function that it calls is seen
    if type(module).__module__.startswith("dropseed.torch."):
        return _by_dropseeds_layer(module, kind, first) if hasattr(module, "p") else None
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return _by_torchs_layer(module, kind, first)
    if _drops(module) and not any(_drops(child) for child in module.children()):
        ways = (ZEROS, MASK) if len(inputs) == 1 and not _NOT_TO_ZERO.search(kind) else (MASK,)
        return Asked(kind, _rate_of(module), None, _mode(module), first, ways)
    return None


def runs_as_torchs(module: nn.Module) -> bool:
    """Whether a module's forward is that of one of torch's dropout layers."""
    forward = getattr(type(module), "forward", None)
    return getattr(forward, "__module__", "") == "torch.nn.modules.dropout"


def has_fast_path(module: nn.Module) -> bool:
    """Whether a module may take a path in evaluation that torch leaves if a mode is on."""
    from torch import nn

    takers = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
    forward = getattr(type(module), "forward", None)
    return not module.training and any(forward is taker.forward for taker in takers)


def _by_torchs_layer(module: Any, kind: str, first: Any) -> Asked | None:
    from torch import nn

    rate = number(module.dropout)
    active, why = _by_mode(module, rate)
    if isinstance(module, nn.RNNBase):
        if rate == 0:
            return None
        if module.num_layers == 1:
            active, why = False, "one layer, and dropout goes between layers"
    return Asked(kind, rate, active, why, first)


def _by_dropseeds_layer(module: Any, kind: str, first: Any) -> Asked:
    rate = number(module.p)
    active, why = _by_mode(module, rate)
    key = getattr(module, "key", None)
    return _dropseeds(kind, rate, active, why, first, kind == "Dropout", key)


def _dropseeds(
    kind: str,
    rate: float | None,
    active: bool,
    why: str,
    first: Any,
    elementwise: bool,
    key: Any,
) -> Asked:
    ways = (ZEROS,) if elementwise or _TO_ZERO.fullmatch(kind) else ()
    return Asked(kind, rate, active, why, first, ways, elementwise, True, key_words(key))


def _drops(module: nn.Module) -> bool:
    """Whether a module drops and does nothing else, by its name."""
    from torch.nn.modules.dropout import _DropoutNd

    named = isinstance(module, _DropoutNd) or DROPS.search(type(module).__name__) is not None
    return named and next(module.parameters(), None) is None


def _by_mode(module: nn.Module, rate: float | None) -> tuple[bool, str]:
    if module.training and rate == 0:
        return False, "p=0"
    return module.training, _mode(module)


def _mode(module: nn.Module) -> str:
    return f"module.training is {module.training}"


def _rate_of(module: nn.Module) -> float | None:
    rates = (number(getattr(module, name, None)) for name in _RATES)
    rate = next((rate for rate in rates if rate is not None), None)
    kept = number(getattr(module, "keep_prob", None))
    return 1 - kept if rate is None and kept is not None else rate


# ---- values -----------------------------------------------------------------------------------


def number(value: Any) -> float | None:
    """A number, or a tensor that holds one, as a float; None for anything else."""
    if isinstance(value, int | float):
        return float(value)
    if not hasattr(value, "__float__"):
        return None
    with suppress(TypeError, ValueError, RuntimeError), unseen():
        return float(value)
    return None


def key_words(key: Any) -> str | None:
    """A key of dropseed's in words; None for none, and for one that can't be read.

    Args:
        key: a `dropseed.Key`, its int64 tensor ``[seed, site + 2**32 * step]``, a 0-d seed, or
            None.
    """
    if not hasattr(key, "tolist"):
        return key and f"seed={key.seed}, site={key.site}, step={key.step}"
    if not is_plain(key):
        return None
    with unseen():
        seed, place = (*key.reshape(-1).tolist(), 0)[:2]
    return f"seed={seed % 2**64}, site={place % 2**32}, step={place // 2**32 % 2**32}"
