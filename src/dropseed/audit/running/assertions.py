"""What a project's tests can say of a model's dropout: off in evaluation, on in training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.guard import allow
from dropseed.audit.running.sites import sites
from dropseed.audit.running.watch import Event, watch
from dropseed.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor, nn

_CHANCE = 1e-9


def assert_deterministic_eval(model: nn.Module, *inputs: Any, **kwargs: Any) -> None:
    """Fail if two evaluation passes of a model differ in a single bit.

    The model runs in evaluation mode without gradients, and then has its modes and buffers back.

    Args:
        model: the model.
        inputs: what it is called with.
        kwargs: what it is called with by name.

    Raises:
        AssertionError: the passes differ; the message names the random calls.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> assert_deterministic_eval(model, torch.ones(1, 2))
    """
    __tracebackhide__ = True
    import torch

    with _borrowed(model, training=False), torch.no_grad(), allow():
        first = _copies(model(*_copied(inputs), **_copied(kwargs)))
        with watch(model, all_draws=True) as events:
            second = model(*_copied(inputs), **_copied(kwargs))
    if _same(first, list(_tensors(second))):
        return
    active = _each_once(_call(event) for event in events if event.active)
    found = "\n".join(f"  {line}" for line in active) or (
        "  no random call was seen: look for state that a pass changes, or for random numbers "
        "that aren't torch's"
    )
    raise AssertionError(
        f"two evaluation passes of {type(model).__name__} differ. In evaluation these are on:\n"
        f"{found}"
    )


def assert_drops_in_training(
    model: nn.Module, *inputs: Any, p: float | Mapping[str, float] | None = None, **kwargs: Any
) -> None:
    """Fail unless every dropout of a model drops in training, by its rate.

    The model makes one pass in training mode, and then has its modes and buffers back. A site is a
    layer that drops (see `dropout_sites`) or a call of a function that does.

    Args:
        model: the model.
        inputs: what it is called with.
        p: the rate that every site should have, or those of some sites by name; by default the
            rates that the sites ask for.
        kwargs: what it is called with by name.

    Raises:
        AssertionError: there is no site, a site didn't run or drop, or it dropped another fraction
            than its rate; a site that is right fails so with a probability below 1e-9.
        ValueError: a rate is outside [0, 1], or `p` names no site.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 99), torch.nn.Dropout(0.5))
        >>> assert_drops_in_training(model, torch.ones(9, 2), p=0.5)
    """
    __tracebackhide__ = True
    with _borrowed(model, training=True), allow(), watch(model) as events:
        model(*_copied(inputs), **_copied(kwargs))
    seen = _by_site(events)
    wanted = _wanted(p, [*seen, *(site.name for site in sites(model))])
    wrong = [
        f"{site}: it never ran" for site in sites(model) if site.rate and site.name not in seen
    ]
    for name, calls in seen.items():
        problem = _problem(calls, wanted.get(name))
        if problem:
            wrong.append(f"{_call(calls[0])}: {problem}")
    if not seen and not wrong:
        wrong = ["it has no dropout"]
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise AssertionError(f"{type(model).__name__} doesn't drop as it should:\n{lines}")


# ---- what was seen ---------------------------------------------------------------------------


def _by_site(events: Sequence[Event]) -> dict[str, list[Event]]:
    seen: dict[str, list[Event]] = {}
    for event in events:
        seen.setdefault(event.site, []).append(event)
    return seen


def _wanted(p: Any, names: Iterable[str]) -> dict[str, float]:
    """The rate wanted of each site that `p` speaks of."""
    if p is None:
        return {}
    rates = dict(p) if isinstance(p, Mapping) else dict.fromkeys(names, p)
    for name, rate in rates.items():
        if not isinstance(rate, int | float):
            raise InvalidTypeError(f"`p` must be a rate, or rates by site; got {rate!r}.")
        if not 0 <= rate <= 1:
            raise InvalidValueError(f"`p` must be in [0, 1]; got {rate}.")
        if name not in set(names):
            raise InvalidValueError(f"`p` names no site: {name!r}. There are {sorted(set(names))}.")
    return rates


def _problem(calls: Sequence[Event], wanted: float | None) -> str:
    """What is wrong with the calls of a site; "" if nothing is."""
    first = calls[0]
    rate = first.rate if wanted is None else wanted
    if wanted is not None and first.rate is not None and not math.isclose(first.rate, wanted):
        return f"p={wanted:g} was expected"
    if rate == 0 or all(event.rate == 0 for event in calls):
        return ""
    if not any(event.active for event in calls):
        return f"it never drops ({first.why})"
    draws = sum(event.draws for event in calls if event.realised is not None)
    if rate is None or not draws:
        return ""
    dropped = sum(event.realised * event.draws for event in calls if event.realised is not None)
    if _is_unlikely(dropped / draws, rate, draws):
        return f"it dropped {dropped / draws:.4g} of {draws} draws"
    return ""


def _is_unlikely(fraction: float, rate: float, draws: int) -> bool:
    """Whether a fraction is one that so many draws give with a chance below 1e-9.

    By Chernoff's bound, the chance is at most twice the exponential of minus the number of draws
    times the relative entropy of the fraction to the rate (Hoeffding 1963, theorem 1).
    """
    entropy = 0.0
    for observed, expected in ((fraction, rate), (1 - fraction, 1 - rate)):
        if observed > 0:
            entropy += observed * math.log(observed / expected) if expected > 0 else math.inf
    return draws * entropy > math.log(2 / _CHANCE)


def _call(event: Event) -> str:
    rate = "" if event.rate is None else f", p={event.rate:g}"
    at = f", at {event.caller}" if event.caller else ""
    return f"{event.site} ({event.kind}{rate}{at}; {event.why})"


def _each_once(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


# ---- running a model and leaving no trace ----------------------------------------------------


@contextmanager
def _borrowed(model: nn.Module, training: bool) -> Iterator[None]:
    """A model in a mode; its modes and buffers come back."""
    import torch

    modes = {module: module.training for module in model.modules()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()}
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers.items():
                buffer.copy_(value)


def _copied(value: Any) -> Any:
    """Arguments whose tensors a model may write into."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if type(value) in (list, tuple):
        return type(value)(_copied(one) for one in value)
    if type(value) is dict:
        return {key: _copied(one) for key, one in value.items()}
    return value


def _copies(output: Any) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(output)]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an output, in order."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(map(_same_bits, first, second))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality that tells 0 from -0 and holds for NaN."""
    import torch

    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = (one.detach().contiguous().reshape(-1).view(torch.uint8) for one in (a, b))
    return torch.equal(a, b)
