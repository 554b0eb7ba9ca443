"""When the dropout of a model is on: in evaluation it shouldn't be, in training it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING

from dropseed.audit.running.graph import Call
from dropseed.audit.running.passes import Passes, Watched
from dropseed.audit.running.sites import is_dropout, rate_of
from dropseed.audit.running.watch import Event, Note

if TYPE_CHECKING:
    from torch import nn

_DROPS_NOTHING = 20  # expected drops of which none came: by chance once in exp(20) times


def left_in_training(passes: Passes) -> Iterator[Note]:
    """DS501: what is still in training mode after ``model.eval()`` and an evaluation pass.

    Of modules inside of each other the outermost is named. A module that the model doesn't hold is
    named if its mode matters: if it drops, or normalises by the batch.

    Args:
        passes: the model's passes.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    watched = passes.evaluation[0]
    on = [name for name, training in watched.modes.items() if training]
    for name in on:
        if not any(_is_inside(name, other) for other in on):
            number = sum(_is_inside(other, name) for other in on)
            more = f", with {number} modules in it" if number else ""
            yield Note("DS501", name, f"still in training mode after eval(){more}")
    dropping = {event.site for event in watched.flow.events if event.active}
    for name, module in watched.flow.modules.items():
        matters = name in dropping or isinstance(module, _BatchNorm)
        if name not in watched.modes and module.training and matters:
            yield Note(
                "DS501",
                name,
                "in training mode in evaluation: eval() doesn't reach it, since it is no submodule "
                "of the model (built in forward, or kept in a plain list)",
            )


def differing(passes: Passes) -> Iterator[Note]:
    """DS502: what differs between two evaluation passes.

    The call named first is the first whose output differs: all calls before it gave the same.

    Args:
        passes: the model's passes.
    """
    active = {
        event.site: event
        for watched in passes.evaluation
        for event in watched.flow.events
        if event.active
    }
    culprit = _first_difference(*passes.evaluation)
    if culprit is not None:
        site = _site(culprit)
        event = active.pop(site, None)
        why = f" ({event.why})" if event else ""
        yield Note(
            "DS502",
            site,
            f"two evaluation passes differ, and this call is the first to: {culprit.name} at "
            f"{culprit.caller}{why}",
        )
    for site, event in active.items():
        yield Note("DS502", site, f"drops in evaluation ({event.why}), at {event.caller}")


def _first_difference(one: Watched, other: Watched) -> Call | None:
    """The first call that gave something else in two passes; None if the outputs are the same."""
    given, again = (watched.digests[watched.flow.calls[-1]] for watched in (one, other))
    if given and given == again:
        return None
    for call, twin in zip_longest(one.flow.calls, other.flow.calls):
        if call is None or twin is None or (call.name, call.path) != (twin.name, twin.path):
            return call or twin
        if one.digests.get(call) != other.digests.get(twin):
            return call
    return None


def _site(call: Call) -> str:
    if call.events:
        return call.events[0].site
    return call.path if call.module is not None else f"{call.path}:{call.name}".lstrip(":")


def never_on(site: str, passes: Passes) -> Note | None:
    """DS503: a site that was called and never dropped in training.

    Args:
        site: the name of a site that has an event.
        passes: the model's passes.
    """
    events = [event for one in passes.training for event in one.flow.events if event.site == site]
    active = [event for event in events if event.active]
    if not events:
        return Note("DS503", site, "never drops in training: it is called in evaluation only")
    if not active:
        return Note("DS503", site, f"never drops in training: {events[0].why}")
    seen = [event for event in active if event.realised is not None]
    expected = sum((event.rate or 0) * _draws(event) for event in seen)
    if expected > _DROPS_NOTHING and not any(event.realised for event in seen):
        return Note("DS503", site, f"asked for {active[0].rate:g}, it dropped nothing in training")
    return None


def _draws(event: Event) -> int:
    """How many draws a dropout made at least: where nobody knows, one for each example."""
    return event.draws or (event.shape or (0,))[0]


def unused(names: Mapping[nn.Module, str], passes: Passes) -> Iterator[Note]:
    """DS503: dropout layers that the model has and never calls in training.

    Silent if the layer only holds the rate for a function that its parent calls, if the part of the
    model that has it isn't called either, and if TorchScript calls it, where nobody sees.

    Args:
        names: the names of the model's modules.
        passes: its passes.
    """
    from torch.jit import ScriptModule

    both = [*passes.training, *passes.evaluation]
    ran = {module for watched in both for module in watched.flow.modules.values()}
    by_name = {name: module for module, name in names.items()}
    functions = {
        (event.site.rpartition(":")[0], event.rate)
        for watched in passes.training
        for event in watched.flow.events
        if event.active and event.site not in by_name
    }
    for module, name in names.items():
        if acts_uncalled(module):
            if rate_of(module) == 0:
                yield Note("DS503", name, "never drops in training: p=0")
            continue
        if module in ran or not is_dropout(module) or not rate_of(module):
            continue
        owner = _owner(name, by_name)
        if by_name[owner] not in ran or isinstance(module, ScriptModule):
            continue
        if (name.rpartition(".")[0], rate_of(module)) not in functions:
            yield Note("DS503", name, "never drops in training: the layer is never called")


def acts_uncalled(module: nn.Module) -> bool:
    """Whether a layer drops without being called: dropseed's `LayerDrop` and `WeightDrop`."""
    kind = type(module)
    own = kind.__module__.startswith("dropseed.torch.")
    return own and kind.__name__ in ("LayerDrop", "WeightDrop")


def _owner(name: str, modules: Mapping[str, nn.Module]) -> str:
    """The nearest module around one that is no mere list or dict of modules."""
    from torch import nn

    parent = name.rpartition(".")[0]
    listed = isinstance(modules[parent], nn.ModuleList | nn.ModuleDict)
    return _owner(parent, modules) if parent and listed else parent


def _is_inside(name: str, other: str) -> bool:
    """Whether a module's name says that it is inside of another's."""
    return name != other and (not other or name.startswith(f"{other}."))
