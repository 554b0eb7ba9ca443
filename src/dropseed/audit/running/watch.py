"""Watch a running PyTorch program: one event for every dropout call, whoever's it is.

Torch's functions are seen by a `TorchFunctionMode`, modules by global hooks, dropseed's functions
by others that stand in for them, and what a call drew by a dispatch mode that is open while it
runs. The program's results and its random stream are those that it has unwatched.
"""

from __future__ import annotations

import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from types import FunctionType
from typing import TYPE_CHECKING, Any

from dropseed.audit.running import asked
from dropseed.audit.running.asked import Asked
from dropseed.audit.running.draws import function_mode, is_innermost, is_plain
from dropseed.audit.running.measured import Call
from dropseed.audit.running.places import Entry, Places, caller, calling_function

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class Note:
    """A finding about a running model.

    Attributes:
        code: the rule's code, for instance "DS501".
        site: where in the model; "" for the model as a whole.
        message: one sentence without a full stop at its end.

    Example:
        >>> Note("DS501", "encoder.drop", "still in training mode after eval()").code
        'DS501'
    """

    code: str
    site: str
    message: str


@dataclass(frozen=True, slots=True)
class Event:
    """One call of a dropout.

    Attributes:
        site: the module's qualified name, and for a call of a function the function behind a
            colon: "encoder.0.drop", "encoder.0.attn:scaled_dot_product_attention", "head:dropout#2"
            for the second of several. The model itself goes by its class.
        kind: the module's class or the function's name.
        rate: the rate asked for; None if it can't be read.
        active: whether it dropped.
        why: why it did or didn't, in words; also what can't be seen of an active one.
        shape: the input's shape; None if the input is no tensor.
        realised: the fraction dropped; None if inactive or not to be seen. By the mask that was
            drawn, or by how many of the input's values that aren't 0 are 0 in the output.
        draws: how many independent draws `realised` is the mean of; 0 if that is unknown.
        ratio: the mean absolute value of the output over that of the input (activations average
            to about 0, so that the ratio of plain means would say nothing); None if inactive or
            not to be seen.
        key: dropseed's key in words, also the one that was drawn; None for anybody else's.
        training: whether the innermost module is in training mode; None outside of modules.
        root_training: whether the watched model is.
        known: whether the call is inside of the watched model.
        grad: whether gradients flow: "grad", "no_grad" or "inference".
        backward: whether it ran in a backward pass, as what a checkpoint recomputes does.
        caller: "file:line" of the call, outside of torch.
        digest: a hash of the mask, or of what it is made from; "" if inactive or not asked for.
    """

    site: str
    kind: str
    rate: float | None
    active: bool
    why: str
    shape: tuple[int, ...] | None
    realised: float | None
    draws: int
    ratio: float | None
    key: str | None
    training: bool | None
    root_training: bool | None
    known: bool
    grad: str
    backward: bool
    caller: str | None
    digest: str


@contextmanager
def watch(
    model: nn.Module | None = None,
    record: Callable[[Event], None] | None = None,
    *,
    digests: bool | Callable[[], bool] = False,
    all_draws: bool = False,
) -> Iterator[list[Event]]:
    """See every dropout call of the code inside.

    Seen are torch's dropout modules and functions, its attention and its recurrent layers,
    dropseed's layers and functions, other people's modules whose names say that they drop, and
    their functions so named while they draw a mask. Unseen are TorchScript, other threads (but
    not the backward pass of this one) and fused kernels that aren't torch's. Compiled code runs
    eagerly meanwhile.

    An active call takes about 0.2 ms more, and as long as to read its input, its mask and its
    output once (on one core, 4.5 ns a value; torch's own dropout takes 9). An inactive one takes
    0.05 ms more, any other module 0.015, any other call of torch 0.002. No tensor is kept.

    Args:
        model: the model whose modules' names make the sites; by default the outermost module that
            runs first.
        record: called with each event; by default they are collected in a list.
        digests: whether to hash what each call drew, or a function that says so at each call.
        all_draws: whether every random function of torch's is an event, also where no name says
            that it drops.

    Yields:
        The events so far; an empty list if `record` is given.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1)).eval()
        >>> with watch(model) as events:
        ...     _ = model(torch.ones(2, 4))
        >>> [(event.site, event.rate, event.active, event.why) for event in events]
        [('1', 0.1, False, 'module.training is False')]
    """
    events: list[Event] = []
    wanted = digests if callable(digests) else lambda: bool(digests)
    watcher = _Watcher(Places(model), record or events.append, wanted, all_draws)
    with watcher.watching():
        yield events


class _Here(threading.local):
    """What differs between threads.

    Attributes:
        hidden: whether the mode is off for a fast path's sake.
        call: the call that runs outside of all modules.
    """

    hidden = False
    call: Call | None = None


class _Watcher:
    """Three ways to a call (torch's function, dropseed's, a module), and one to its event."""

    def __init__(
        self,
        places: Places,
        record: Callable[[Event], None],
        digests: Callable[[], bool],
        all_draws: bool,
    ) -> None:
        import torch

        self._places = places
        self._record = record
        self._digests = digests
        self._all_draws = all_draws
        self._mode = function_mode(self._torchs)
        self._here = _Here()
        backwards = (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)
        self._backwards = {function: _unasked(function) for function in backwards}

    @contextmanager
    def watching(self) -> Iterator[None]:
        with _eagerly(), ExitStack() as exits:
            exits.enter_context(self._mode)
            exits.enter_context(self._places.follow(self._entered, self._left))
            exits.enter_context(standing_in(self._dropseeds))
            yield

    # -- functions

    def _torchs(self, function: Any, args: Any, kwargs: Any) -> Any:
        if function in self._backwards:
            with self._mode:  # it is off while it answers, and what is recomputed is to be seen
                return self._backwards[function](*args, **kwargs)
        if asked.draws(function):
            return self._drawing(function, args, kwargs)
        if not asked.is_dropout(function) or self._open_call():
            return function(*args, **kwargs)
        entry = self._places.innermost()
        module = entry.module if entry else None
        request = asked.by_torch(function, args, kwargs, module)
        is_layer = entry is not None and asked.runs_as_torchs(entry.module)
        site = (entry.name or request.kind) if entry and is_layer else None
        return self._run(request, site, entry, lambda: function(*args, **kwargs))

    def _drawing(self, function: Any, args: Any, kwargs: Any) -> Any:
        """What may be dropseed's seed, or the mask of a function by hand."""
        call, name = self._open_call(), calling_function()
        if call is None and (self._all_draws or asked.is_by_hand(function, name)):
            entry = self._places.innermost()
            request = asked.by_hand(function, args, name)
            return self._run(request, None, entry, lambda: function(*args, **kwargs))
        output = function(*args, **kwargs)
        if call and call.asked.own and asked.is_seed(function) and is_plain(output):
            call.asked.key = call.asked.key or asked.key_words(output)
        return output

    def _dropseeds(self, function: Any, args: Any, kwargs: Any) -> Any:
        if self._open_call():
            return function(*args, **kwargs)
        try:
            given = inspect.signature(function).bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says what is wrong
        given.apply_defaults()
        entry = self._places.innermost()
        module = entry.module if entry else None
        request = asked.by_dropseed(function.__name__, given.arguments, module)
        return self._run(request, None, entry, lambda: function(*args, **kwargs))

    def _run(
        self, request: Asked, site: str | None, entry: Entry | None, function: Callable[[], Any]
    ) -> Any:
        call = Call(request, site or self._places.site(entry, request.kind))
        output = None
        try:
            with self._opened(call), ExitStack() as exits:
                call.begin(exits, self._digests())
                output = function()
            return output
        finally:
            self._end(call, entry, output)

    # -- modules

    def _entered(self, entry: Entry, inputs: Any) -> None:
        self._spare_fast_path(entry)
        request = asked.by_module(entry.module, inputs)
        if request:
            entry.call = Call(request, entry.name or request.kind)
            entry.call.begin(entry.exits, self._digests())

    def _left(self, entry: Entry, output: Any, kwargs: Any) -> None:
        entry.exits.close()
        if entry.call:
            self._end(entry.call, entry, output)

    def _spare_fast_path(self, entry: Entry) -> None:
        """Turn the mode off where torch would leave its fast path for it, and on again inside."""
        hide = asked.has_fast_path(entry.module)
        if hide == self._here.hidden or (hide and not is_innermost(self._mode)):
            return
        turns = (self._turn_on, self._turn_off)
        turns[hide]()
        entry.exits.callback(turns[not hide])

    def _turn_on(self) -> None:
        self._mode.__enter__()
        self._here.hidden = False

    def _turn_off(self) -> None:
        self._mode.__exit__(None, None, None)
        self._here.hidden = True

    # -- the call that runs, of which what it calls is a part

    def _open_call(self) -> Call | None:
        top = self._places.top()
        call: Call | None = top.call if top else self._here.call
        return call

    @contextmanager
    def _opened(self, call: Call) -> Iterator[None]:
        top = self._places.top()
        if top:
            top.call = call
        else:
            self._here.call = call
        try:
            yield
        finally:
            if top:
                top.call = None
            else:
                self._here.call = None

    def _end(self, call: Call, entry: Entry | None, output: Any) -> None:
        import torch

        call.end(output)
        request, model = call.asked, self._places.model
        realised, draws = call.realised()
        unknown = request.active and realised is None
        shape = getattr(request.input, "shape", None)
        self._record(
            Event(
                site=call.site,
                kind=request.kind,
                rate=request.rate,
                active=bool(request.active),
                why=request.why + ("; what it dropped can't be seen" if unknown else ""),
                shape=None if shape is None else tuple(shape),
                realised=realised,
                draws=draws,
                ratio=call.ratio(),
                key=request.key,
                training=entry.module.training if entry else None,
                root_training=model.training if model is not None else None,
                known=entry is None or entry.known,
                grad=self._places.grad_mode(),
                backward=torch._C._current_graph_task_id() != -1,
                caller=caller(),
                digest=call.digest() if self._digests() else "",
            )
        )


def _unasked(function: Any) -> Any:
    """A copy of a function of torch's that doesn't hand its call on to modes."""
    names = dict.fromkeys(("has_torch_function", "has_torch_function_unary"), lambda *_: False)
    copy = FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run what is compiled eagerly: Dynamo would trace the watching too."""
    import torch

    with torch.compiler.set_stance("force_eager"):
        # What is compiled warns of global hooks, which don't matter to what runs eagerly.
        warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global")
        silence = warnings.filters[0]
        try:
            yield
        finally:
            with suppress(ValueError):
                warnings.filters.remove(silence)  # type: ignore[attr-defined]


@contextmanager
def standing_in(call: Callable[[Any, Any, Any], Any]) -> Iterator[None]:
    """Hand calls of dropseed's functions on, if its PyTorch front end is loaded.

    Args:
        call: called with the function, its positional and its named arguments.
    """
    module = sys.modules.get("dropseed.torch.functional")
    names = [] if module is None else [name for name in module.__all__ if name != "r_drop_loss"]
    originals = {name: getattr(module, name) for name in names}

    def stand_in(original: Any) -> Any:
        return wraps(original)(lambda *args, **kwargs: call(original, args, kwargs))

    try:
        for name, original in originals.items():
            setattr(module, name, stand_in(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)
