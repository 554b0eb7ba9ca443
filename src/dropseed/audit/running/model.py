"""Check a model by running it: where its dropout stands, when it drops, and what that does.

What can only be seen in source, or in training for long, is left to the scan and to the ledger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dropseed.audit.running import switching
from dropseed.audit.running.graph import Call
from dropseed.audit.running.model_report import Report, Row
from dropseed.audit.running.passes import Passes, run
from dropseed.audit.running.place import drops, is_site, misplaced, place
from dropseed.audit.running.places import module_names
from dropseed.audit.running.shift import Norm, norms, shifted
from dropseed.audit.running.sites import rate_of
from dropseed.audit.running.watch import Event, Note
from dropseed.errors import InvalidTypeError, InvalidValueError, MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor, nn

HIGH_RATE = 0.8
"""From here on DS304 reports a rate."""


def check_model(model: nn.Module, example_inputs: Any) -> Report:
    """Run a model, and find what is wrong with its dropout that its source can't show.

    The model runs twice in evaluation and eight times in training; in training its batch
    normalisation goes on by the running statistics, so that one example is enough. Afterwards it is
    as before, and so are the generators of torch, Python and NumPy; what its forward pass does to
    other objects than its modules' attributes stays done.

    Places are those of the dataflow as it ran, whatever the control flow:

    - DS201: dropout straight before batch normalisation. "Straight" looks through views, through
      ReLU, leaky ReLU and PReLU, and through a multiplication by a number: dropout commutes with
      these. It doesn't look through linear layers and convolutions; DS504 measures behind them.
    - DS202: dropout after the output layer, or between it and a loss that the model computes.
      Views, softmax and sigmoid may lie between.
    - DS203: spatial dropout of what has no space: two axes (but after a convolution), or features
      in the last axis, as the linear, recurrent, attention, embedding or normalising layer shows
      that is next to it, element-wise functions in between at most.
    - DS204: element-wise dropout on the maps of a convolution with a kernel larger than 1, also
      behind activations, normalisation and pooling.
    - DS205: two dropouts in a row, or an element-wise one straight before max-pooling. A dropped
      path behind a dropout is no second dropout.
    - DS304: a rate of 0.8 or more.

    What happens over the passes:

    - DS501: a submodule that is still in training mode after ``eval()``, or that ``eval()`` doesn't
      reach.
    - DS502: two evaluation passes that differ, and the first call to do so.
    - DS503: a site that never drops in training: its rate is 0, its switch is off, or nobody calls
      it. A layer that only holds the rate for an attention function is no such site.
    - DS504: a batch normalisation whose input's variance is more than 1.25 times as large in one
      mode as in the other, by dropout before it, and by more than 3 standard errors of the eight
      passes. Li et al. 2018, "Understanding the disharmony between dropout and batch normalization
      by variance shift", measure the same on whole test sets; the examples should be real ones.

    What TorchScript runs isn't seen, nor what is computed in other threads. Compiled models run
    uncompiled.

    Args:
        model: a `torch.nn.Module`, all its parameters initialised.
        example_inputs: what the model is called with: a tensor, a tuple or list of arguments, or a
            dict of named ones. Several examples are better than one.

    Returns:
        The report.

    Raises:
        TypeError: `model` is no module, or `example_inputs` none of these.
        ValueError: the model fails on the inputs in one of the modes, or has parameters that its
            first call will make.
        MissingExtraError: torch isn't installed.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))
        >>> report = check_model(model, torch.randn(64, 8))
        >>> [(note.code, note.site) for note in report.findings]
        [('DS201', '1'), ('DS504', '2')]
        >>> report.sites[0].place
        'after Linear, before BatchNorm1d'
    """
    _check_model(model)
    args, kwargs = _arguments(example_inputs)
    passes = run(model, args, kwargs)
    names = module_names(model)
    shifts = tuple(norms(passes))
    findings = _findings(names, passes, shifts)
    rows = _rows(names, passes, shifts, findings)
    return Report(tuple(rows), shifts, tuple(sorted(findings, key=lambda note: note.code)))


def example_input(shape: Sequence[int], dtype: str = "float32", batch: int = 4) -> Tensor:
    """A batch of random examples.

    Args:
        shape: an example's shape, without the batch.
        dtype: the name of a torch type. Floating-point values are standard normal; integers, which
            may be token numbers, lie in [0, 10).
        batch: the number of examples.

    Returns:
        Tensor of shape (batch, *shape), always the same.

    Raises:
        ValueError: `dtype` is no type of torch's, or a size is negative.

    Example:
        >>> example_input([1, 28, 28]).shape
        torch.Size([4, 1, 28, 28])
        >>> int(example_input([128], "int64").max())
        9
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "torch") from error
    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise InvalidValueError(
            f"`dtype` must name a type of torch's, as float32 or int64 do; got {dtype!r}."
        )
    if min([batch, *shape]) < 0:
        raise InvalidValueError(f"`shape` must not be negative; got {'x'.join(map(str, shape))}.")
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point or kind.is_complex:
        return torch.randn(batch, *shape, generator=generator).to(kind)
    return torch.randint(10, (batch, *shape), generator=generator).to(kind)


def _check_model(model: object) -> None:
    """Refuse what can't be checked. Another framework's models would go another way from here."""
    homes = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    if homes & {"keras", "tf_keras"}:
        raise InvalidTypeError(
            "`model` is a Keras model. Keras models come with the Keras front end."
        )
    try:
        from torch import nn
        from torch.nn.parameter import is_lazy
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "torch") from error
    if not isinstance(model, nn.Module):
        hint = f" Pass a model: {model.__name__}(...)." if isinstance(model, type) else ""
        raise InvalidTypeError(f"`model` must be a torch.nn.Module; got {model!r}.{hint}")
    if any(is_lazy(one) for one in [*model.parameters(), *model.buffers()]):
        raise InvalidValueError(
            "`model` has lazy layers, whose first call makes their parameters. Call it once before."
        )


def _arguments(example_inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    import torch

    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, tuple | list):
        return example_inputs, {}
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    raise InvalidTypeError(
        "`example_inputs` must be a tensor, a tuple of arguments or a dict of named ones; got "
        f"{type(example_inputs).__name__}."
    )


# ---- the report -------------------------------------------------------------------------------


def _findings(names: Mapping[nn.Module, str], passes: Passes, shifts: Sequence[Norm]) -> list[Note]:
    found = [
        *_misplaced(passes),
        *switching.left_in_training(passes),
        *switching.differing(passes),
        *filter(None, (switching.never_on(site, passes) for site in _events(passes))),
        *switching.unused(names, passes),
        *filter(None, map(shifted, shifts)),
    ]
    return list(dict.fromkeys(found))


def _misplaced(passes: Passes) -> Iterator[Note]:
    for call in _calls(passes):
        if drops(call):
            for code, message in misplaced(call):
                yield Note(code, call.events[0].site, message)
    for site, events in _events(passes).items():
        rate = max((event.rate or 0 for event in events if event.active), default=0)
        if rate >= HIGH_RATE:
            message = f"a rate of {rate:g}, which few networks bear; was the fraction kept meant?"
            yield Note("DS304", site, message)


def _rows(
    names: Mapping[nn.Module, str],
    passes: Passes,
    shifts: Sequence[Norm],
    findings: Sequence[Note],
) -> Iterator[Row]:
    modules = {name: module for module, name in names.items()}
    modules.setdefault(type(modules[""]).__name__, modules[""])
    events = _events(passes)
    places = _places(passes)
    silent = [note.site for note in findings if note.code == "DS503" and note.site not in events]
    uncalled = [name for name, module in modules.items() if switching.acts_uncalled(module)]
    for site in dict.fromkeys([*events, *silent, *uncalled]):
        module = modules.get(site)
        fed = {norm.name for norm in shifts if site in norm.fed_by}
        seen = events.get(site, [])
        yield Row(
            name=site,
            kind=seen[0].kind if seen else type(module).__name__,
            rate=seen[0].rate if seen or module is None else rate_of(module),
            shape=next((event.shape for event in seen if event.shape is not None), None),
            place="; ".join(places.get(site, [_place_of_uncalled(site)])),
            parameters=sum(one.numel() for one in module.parameters()) if module else 0,
            dropped=_dropped(seen),
            findings=tuple(
                note
                for note in findings
                if note.site == site or (note.code == "DS504" and note.site in fed)
            ),
        )


def _place_of_uncalled(site: str) -> str:
    """The place of a dropped weight, which its name tells; of other layers without a call none."""
    layer, found, weight = site.rpartition(".drop_weights.")
    return f"on the {weight} of {layer}" if found else ""


def _dropped(events: Sequence[Event]) -> float | None:
    """The fraction dropped in training, by how many draws each rests on where that is known."""
    seen = [
        (event.realised, event.draws)
        for event in events
        if event.realised is not None and event.root_training
    ]
    total = sum(draws for _, draws in seen)
    if total:
        return sum(realised * draws for realised, draws in seen) / total
    return sum(realised for realised, _ in seen) / len(seen) if seen else None


def _calls(passes: Passes) -> Iterator[Call]:
    """The calls of training that have a dropout."""
    for watched in passes.training:
        yield from (call for call in watched.flow.calls if call.events)


def _places(passes: Passes) -> dict[str, dict[str, None]]:
    """In how many words, each once, the places of each site."""
    found: dict[str, dict[str, None]] = {}
    for call in _calls(passes):
        for event in call.events:
            found.setdefault(event.site, {})[place(call)] = None
    return found


def _events(passes: Passes) -> dict[str, list[Event]]:
    """The events of each site, those of training first.

    Sites come in the order of evaluation, where none is left out at random.
    """
    found: dict[str, list[Event]] = {}
    for watched in [*passes.evaluation, *passes.training]:
        found |= {event.site: [] for event in watched.flow.events if event.site not in found}
    for watched in [*passes.training, *passes.evaluation]:
        for event in watched.flow.events:
            if is_site(event):
                found[event.site].append(event)
    return {site: events for site, events in found.items() if events}
