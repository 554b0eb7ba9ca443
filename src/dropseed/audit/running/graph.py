"""The dataflow of a forward pass as it ran: which call took what which other call gave.

It is recorded while the model runs, so that every model that runs has one, whatever its control
flow. Layers of torch's and dropout layers are one call each, and so are functions outside of them.

A graph of `torch.export` would show less and cost more. It has the operations that other people's
dropout layers come apart into (of a ConvNeXt's dropped paths no name is left), and there is none
where control flow depends on values, as layer drop does in BART and wav2vec 2.0, or where outputs
are of other types, as GPT-2's cache is. Of small Transformers it takes 0.2 to 1.6 s, a recorded
pass 10 to 70 ms.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.draws import function_mode
from dropseed.audit.running.places import Entry, Places, caller
from dropseed.audit.running.watch import Event, standing_in, watch

if TYPE_CHECKING:
    from torch import Tensor, nn

    Look = Callable[["Call", Sequence[Tensor], Sequence[Tensor]], None]

_BY_SHAPE = re.compile(r"new_\w+|\w+_like")  # functions that take no values
_CONTAINERS = ("torch.nn.modules.container", "torch.nn.modules.transformer")


@dataclass(eq=False)
class Call:
    """One call in a forward pass.

    Attributes:
        name: the layer's class or the function's name; "input" and "output" at the model's ends.
        path: the qualified name of the layer, or of the innermost module that called the function.
        caller: "file:line" outside of torch.
        module: the layer; None if it is a function.
        sources: the calls that gave its tensors, in order; None for what no call gave.
        shapes: the shapes of these tensors.
        on_parameter: whether the first of them is a parameter.
        events: the dropout calls that it is, or has inside.
        users: the calls that took what it gave.
    """

    name: str
    path: str
    caller: str | None
    module: nn.Module | None
    sources: list[Call | None]
    shapes: list[tuple[int, ...]]
    on_parameter: bool
    events: list[Event]
    users: list[Call] = field(default_factory=list)

    @property
    def word(self) -> str:
        """The name, the same for a layer and its function: "leakyrelu", "conv2d"."""
        return word(self.name)


@dataclass(frozen=True)
class Pass:
    """A forward pass that was recorded.

    Attributes:
        calls: its calls, in order.
        events: its dropout calls, in order.
        modules: the modules that ran by their names; in angle brackets what the model doesn't hold.
    """

    calls: list[Call]
    events: list[Event]
    modules: dict[str, nn.Module]


def record(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    look: Look | None = None,
) -> Pass:
    """Run a model once and record the dataflow.

    Args:
        model: the model, in the mode in which it is to run.
        args: its positional arguments.
        kwargs: its named arguments.
        look: called after each call with the call, the tensors that it took and those that it gave.

    Returns:
        The pass. The last call is "output", whose sources gave the model's main result: the first
        tensor in it that has dimensions, leaving out what is named a loss.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU())
        >>> [call.name for call in record(model, [torch.ones(2, 4)], {}).calls]
        ['input', 'Linear', 'ReLU', 'output']
    """
    with watch(model) as events:
        recorder = _Recorder(model, events, look)
        recorder.begin(list(tensors((args, kwargs))))
        with recorder.recording():
            output = model(*args, **kwargs)
        recorder.end(output)
    return Pass(recorder.calls, events, recorder.modules)


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples, dicts and dataclasses, in order.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors({"a": torch.tensor(1), "b": [torch.tensor(2), "c"]})]
        [1, 2]
    """
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    else:
        for part in _parts(value):
            yield from tensors(part)


def word(name: str) -> str:
    """A layer's or a function's name, the same for both.

    Example:
        >>> word("LeakyReLU") == word("leaky_relu_")
        True
    """
    return name.replace("_", "").lower()


def _parts(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [*value.values()]
    if isinstance(value, list | tuple):
        return [*value]
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name) for one in fields(value)]
    return []


def _end(name: str) -> Call:
    return Call(name, "", None, None, [], [], False, [])


@dataclass
class _Open:
    """A call that runs, and what there was when it began."""

    inputs: list[Tensor]
    versions: list[int]
    sources: list[Call | None]
    calls: int
    events: int


class _Recorder:
    def __init__(self, model: nn.Module, events: list[Event], look: Look | None) -> None:
        from torch.utils.weak import WeakIdKeyDictionary

        self.calls: list[Call] = []
        self.modules: dict[str, nn.Module] = {}
        self._places = Places(model)
        self._events = events
        self._look = look
        self._givers: Any = WeakIdKeyDictionary()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """See every call of the code inside."""
        with ExitStack() as exits:
            exits.enter_context(function_mode(self._function))
            exits.enter_context(self._places.follow(self._entered, self._left))
            exits.enter_context(standing_in(self._function))
            yield

    def begin(self, inputs: list[Tensor]) -> None:
        """Open the pass with the model's inputs."""
        self._give(_end("input"), inputs)

    def end(self, output: Any) -> None:
        """Close the pass with the model's output."""
        end = _end("output")
        end.sources = [self._givers.get(tensor) for tensor in _main_result(output)]
        self.calls.append(end)
        if self._look:
            self._look(end, [], [*tensors(output)])
        for call in self.calls:
            for source in dict.fromkeys(call.sources):
                if source is not None:
                    source.users.append(call)
        for call in self.calls:
            if call.events and call.module is None and call.word != word(call.events[0].kind):
                _move_to_product(call)

    def _function(self, function: Any, args: Any, kwargs: Any) -> Any:
        if _is_measured():
            return function(*args, **kwargs)
        opened = self._opened((args, kwargs))
        entry = self._places.innermost()
        if entry and entry.call and not entry.call.inputs:
            entry.call = opened  # it was called with named arguments, which hooks aren't shown
        output = function(*args, **kwargs)
        del self.calls[opened.calls :]
        given = self._given(opened, output)
        if given:
            name = _function_name(function)
            self._add(opened, name, entry.name if entry else "", None, given)
        return output

    def _entered(self, entry: Entry, inputs: Any) -> None:
        entry.call = self._opened(inputs)
        self.modules.setdefault(entry.name, entry.module)

    def _left(self, entry: Entry, output: Any, kwargs: Any) -> None:
        opened = entry.call
        given = self._given(opened, output)
        kind = type(entry.module).__name__
        sites = (entry.name, entry.name or kind)
        drops = any(event.site in sites for event in self._events[opened.events :])
        if drops or _is_layer(entry.module):
            del self.calls[opened.calls :]
        else:
            given = [tensor for tensor in given if tensor not in self._givers]
        if given:
            self._add(opened, kind, entry.name, entry.module, given)

    def _given(self, opened: _Open, output: Any) -> list[Tensor]:
        """The tensors that a call gave: new ones, and those of its inputs that it changed.

        One that hands on its input as it was gave nothing, unless it is a dropout.
        """
        before = dict(zip(map(id, opened.inputs), opened.versions, strict=True))
        changed = [one for one in opened.inputs if _version(one) != before[id(one)]]
        dropout = len(self._events) > opened.events
        new = [one for one in tensors(output) if dropout or id(one) not in before]
        return [*new, *changed]

    def _opened(self, values: Any) -> _Open:
        inputs = list(tensors(values))
        versions = [_version(tensor) for tensor in inputs]
        sources = [self._givers.get(tensor) for tensor in inputs]
        return _Open(inputs, versions, sources, len(self.calls), len(self._events))

    def _add(
        self, opened: _Open, name: str, path: str, module: nn.Module | None, given: list[Tensor]
    ) -> None:
        import torch

        inputs = opened.inputs
        by_shape = _BY_SHAPE.fullmatch(name) is not None
        call = Call(
            name=name,
            path=path,
            caller=caller(),
            module=module,
            sources=[] if by_shape else opened.sources,
            shapes=[] if by_shape else [tuple(tensor.shape) for tensor in inputs],
            on_parameter=bool(inputs) and isinstance(inputs[0], torch.nn.Parameter),
            events=self._events[opened.events :],
        )
        self._give(call, given)
        if self._look:
            self._look(call, inputs, given)

    def _give(self, call: Call, outputs: Sequence[Tensor]) -> None:
        self.calls.append(call)
        for tensor in outputs:
            self._givers[tensor] = call


def _is_measured() -> bool:
    """Whether it is this package that called the function, to see what a dropout did."""
    name: str = sys._getframe(3).f_globals.get("__name__", "")  # behind the mode's two frames
    return name.startswith("dropseed.audit.")


def _move_to_product(mask: Call) -> None:
    """Make a dropout by hand the call that applies the mask, and not the one that draws it."""
    made = {mask}
    call = mask
    while call.users:
        call = call.users[0]
        data = [source for source in call.sources if source not in made and source is not None]
        if data:
            call.events, mask.events = mask.events, []
            call.sources = [*data]
            return
        made.add(call)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _main_result(output: Any) -> list[Tensor]:
    """A model's first tensor that has dimensions and isn't named a loss; none, if there is none."""
    if isinstance(output, Mapping):
        output = {name: value for name, value in output.items() if "loss" not in str(name)}
    return [tensor for tensor in tensors(output) if tensor.dim()][:1]


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is one of torch's own that computes by itself."""
    home = type(module).__module__
    return home.startswith("torch.nn.modules.") and home not in _CONTAINERS


def _function_name(function: Any) -> str:
    name: str = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        name = getattr(function.__self__, "__name__", name)  # of an attribute: "T"
    return name.strip("_")
