"""Find what an activation checkpoint, or a compiler, recomputes with another mask.

The gradient is then that of another network than the one whose loss was computed, and nothing says
so. Compared are the draws of every random call, hashed as they are drawn, and what every module
and custom `autograd.Function` makes of the same input, in the forward pass and when recomputed: so
it doesn't matter what comes after. Compiled code can't be looked into; its gradient is held
against finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any

from dropseed.audit.running.asked import DROPS
from dropseed.audit.running.draws import unseen
from dropseed.audit.running.finite import TOLERANCE, gradient_error
from dropseed.audit.running.places import Entry, Places, caller
from dropseed.audit.running.sketch import Sketch, are_close, sketches
from dropseed.audit.running.watch import Event, Note, watch
from dropseed.errors import InvalidTypeError, InvalidValueError

if TYPE_CHECKING:
    from torch import Tensor, nn

_OFF = "off"


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A random call that was recomputed.

    Attributes:
        site: where it is, as in `dropseed.audit.running.watch.Event`.
        kind: the module's class or the function's name.
        forward: hashes of what it drew in the forward pass; "off" where it didn't drop, "" where
            its draws can't be seen.
        recomputed: those of the recomputation.
        differs: whether the recomputation drew what the forward pass didn't.
    """

    site: str
    kind: str
    forward: tuple[str, ...]
    recomputed: tuple[str, ...]
    differs: bool


@dataclass(frozen=True, slots=True)
class RecomputeReport:
    """What was recomputed.

    Attributes:
        sites: the random calls that were.
        findings: what differs, code DS508; empty if nothing does.
        random_calls: how many random calls the forward pass made.
        compiled: whether a part of the model is.
        gradient_error: for compiled code the distance of the gradient from finite differences, as
            a fraction of it; None if nothing is compiled, or if it can't be measured.
    """

    sites: tuple[Recomputed, ...]
    findings: tuple[Note, ...]
    random_calls: int
    compiled: bool = False
    gradient_error: float | None = None

    def __str__(self) -> str:
        lines = [f"{_count(self.random_calls, 'random call')} in the forward pass"]
        lines[0] += f", {_count(len(self.sites), 'site')} recomputed"
        if self.random_calls == 0:
            lines[0] += ". Is the model in training mode?"
        if self.compiled:
            off = self.gradient_error
            far = "can't be measured" if off is None else f"is off by {off:.1e} of itself"
            lines.append(f"the compiled gradient {far}")
        lines += [f"{note.code} {note.site or 'model'}: {note.message}" for note in self.findings]
        return "\n".join(lines if self.findings else [*lines, "nothing differs"])


def check_recompute(
    model: nn.Module, inputs: Any, *, loss: Callable[[Any], Tensor] | None = None
) -> RecomputeReport:
    """Run a model forward and backward, and find what is recomputed with another mask.

    A checkpoint that doesn't keep the random state (``preserve_rng_state=False``), a layer whose
    seed or counter runs on, a mask from NumPy: each makes gradients silently wrong (OLMo-core pull
    request 828, PyTorch issues 190717 and 190758). Any checkpoint that runs the model's Python code
    again in the backward pass is looked into, reentrant or not, torch's or not.

    The model runs in the mode that it is in; put it into training mode. Its gradients, its buffers
    and torch's random state are put back; counters of its own have moved on.

    What a module computes is compared up to rounding, with a tolerance of 1e-4 of its norm (more in
    16 bits), where no random function of torch's explains a difference. A layer behind one that
    differs is only checked by its draws. Noise that is added at the end of a checkpoint is found
    too, though no gradient depends on it.

    A model with parts under `torch.compile` is checked twice: run eagerly, as any other, and
    compiled, by one number, the slope of the loss along its gradient. That takes eight more passes
    and a loss in float32 or float64 that repeats under one seed. It sees a wrong mask whose rate is
    above about 0.002, and doesn't say where.

    Args:
        model: the model.
        inputs: its input: a tensor, a tuple of arguments, or a dict of named ones.
        loss: makes a 0-d tensor of the model's output; by default a fixed combination of
            all floating-point tensors in it.

    Returns:
        The report; print it, or look at its `findings`.

    Raises:
        TypeError: `model` is no module.
        ValueError: there is no loss to differentiate.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.checkpoint import checkpoint
        >>> class Block(nn.Sequential):
        ...     def forward(self, x):
        ...         run = super().forward
        ...         return checkpoint(run, x, use_reentrant=False, preserve_rng_state=False)
        >>> model = Block(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8))
        >>> report = check_recompute(model, torch.ones(4, 8))
        >>> [(note.code, note.site) for note in report.findings]
        [('DS508', '1')]
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
    arguments, named = _arguments(inputs)

    def run() -> Tensor:
        output = model(*arguments, **named)
        return _total(output) if loss is None else _checked(loss(output))

    compiled, error = _is_compiled(model), None
    with _left_as_it_was(model, (arguments, named)) as leaves:
        trace = _Trace(Places(model))
        broken = trace.of(run)
        if compiled:
            error = gradient_error(run, leaves)
    sites = trace.sites()
    return RecomputeReport(
        sites=tuple(site for site in sites if site.recomputed),
        findings=(*_findings(sites, trace.differing()), *broken, *_of_gradient(error)),
        random_calls=trace.random_calls,
        compiled=compiled,
        gradient_error=error,
    )


# ---- both passes, side by side ----------------------------------------------------------------

_Results = list[tuple[tuple[Sketch, ...], tuple[Sketch, ...]]]
"""Calls of a module: the sketches of what went in and of what came out."""


@dataclass
class _Passes:
    """What one place did, in the forward pass and in the backward pass."""

    kind: str = ""
    caller: str | None = None
    draws: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    results: tuple[_Results, _Results] = field(default_factory=lambda: ([], []))


class _Trace:
    """A forward and a backward pass, call by call."""

    def __init__(self, places: Places) -> None:
        self.random_calls = 0
        self._places = places
        self._passes: dict[str, _Passes] = {}

    def of(self, run: Callable[[], Tensor]) -> list[Note]:
        """Run a loss and its backward pass; what torch's checkpoint itself finds is returned."""
        from torch.utils.checkpoint import CheckpointError, set_checkpoint_early_stop

        with ExitStack() as exits:
            model = self._places.model
            exits.enter_context(set_checkpoint_early_stop(False))  # else the last call is cut off
            exits.enter_context(watch(model, self._event, digests=True, all_draws=True))
            exits.enter_context(self._places.follow(self._entered, self._left))
            exits.enter_context(_functions_seen(self._function))
            try:
                run().backward()  # type: ignore[no-untyped-call]
            except CheckpointError as error:
                first = str(error).strip().splitlines()[0]
                return [Note("DS508", "", f"torch's checkpoint stops the recomputation: {first}")]
        return []

    def sites(self) -> list[Recomputed]:
        """The random calls, with whether they differ."""
        found = []
        for site, passes in self._passes.items():
            forward, again = map(tuple, passes.draws)
            appears = not forward and DROPS.search(passes.kind) is not None
            known = "" not in forward and (bool(forward) or appears)
            differs = known and bool({*again} - {*forward, ""})
            if forward or again:
                found.append(Recomputed(site, passes.kind, forward, again, differs))
        return found

    def differing(self) -> list[str]:
        """The modules and functions that made something else of the same input."""
        return [
            site
            for site, passes in self._passes.items()
            if any(_is_another(call, passes.results[0]) for call in passes.results[1])
        ]

    def _event(self, event: Event) -> None:
        drawn = event.digest if event.active else _OFF
        passes = self._at(event.site, event.caller, drawn)
        passes.kind = event.kind
        passes.draws[event.backward].append(drawn)
        self.random_calls += event.active and not event.backward

    def _at(self, site: str, caller: str | None, drawn: str = "") -> _Passes:
        """A site's passes. A recomputation that has lost its module is found by the line."""
        if site not in self._passes and _in_backward():
            same = [
                passes for passes in self._passes.values() if caller and passes.caller == caller
            ]
            same.sort(key=lambda passes: drawn not in passes.draws[0])
            if same:
                return same[0]
        return self._passes.setdefault(site, _Passes(caller=caller))

    def _entered(self, entry: Entry, inputs: Any) -> None:
        entry.call = sketches(inputs)

    def _left(self, entry: Entry, output: Any, kwargs: Any) -> None:
        if output is not None and entry.known:
            before = entry.call + sketches(kwargs)
            self._at(entry.name, None).results[_in_backward()].append((before, sketches(output)))

    def _function(self, name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before = sketches((args, kwargs))
        output = function(*args, **kwargs)
        site = self._places.site(self._places.innermost(), name)
        self._at(site, f"{caller()} {name}").results[_in_backward()].append(
            (before, sketches(output))
        )
        return output


def _is_another(call: Any, forward: _Results) -> bool:
    before, after = call
    same_input = [result for given, result in forward if are_close(given, before)]
    return bool(same_input) and not any(are_close(result, after) for result in same_input)


@contextmanager
def _functions_seen(call: Callable[..., Any]) -> Iterator[None]:
    """Hand calls of custom autograd functions on; a checkpoint, which is one too, runs plainly."""
    from torch.autograd import Function

    original = Function.__dict__["apply"]

    @classmethod  # type: ignore[misc]
    @wraps(original.__func__)
    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        bound = original.__get__(None, cls)
        if "checkpoint" in cls.__name__.lower():
            return bound(*args, **kwargs)
        return call(cls.__name__, bound, args, kwargs)

    Function.apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        Function.apply = original  # type: ignore[method-assign]


def _in_backward() -> bool:
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


# ---- findings ---------------------------------------------------------------------------------


def _findings(sites: list[Recomputed], differing: list[str]) -> Iterator[Note]:
    named = [site.site for site in sites if site.differs]
    for site in sites:
        if site.differs:
            yield Note("DS508", site.site, _said(site))
    for name in sorted(differing, key=len, reverse=True):  # what is inside of a module first
        if not any(_is_within(site, name.partition(":")[0]) for site in named):
            named.append(name)
            message = "makes something else of the same input when it is recomputed"
            yield Note("DS508", name, f"{message}; gradients are wrong")


def _is_within(site: str, name: str) -> bool:
    return name in ("", site) or site.startswith((f"{name}.", f"{name}:"))


def _said(site: Recomputed) -> str:
    new = next(drawn for drawn in site.recomputed if drawn not in (*site.forward, ""))
    if new == _OFF:
        return "drops in the forward pass and not when it is recomputed; gradients are wrong"
    if not site.forward or set(site.forward) == {_OFF}:
        return "drops when it is recomputed and not in the forward pass; gradients are wrong"
    drew = f"drew {_brief(site.forward[0])} in the forward pass and {_brief(new)} when recomputed"
    return f"{drew}; gradients are wrong"


def _of_gradient(error: float | None) -> Iterator[Note]:
    if error is not None and error > TOLERANCE:
        message = f"the compiled gradient is off by {error:.2g} of itself from finite differences"
        yield Note("DS508", "", f"{message}: something is recomputed with another mask")


def _brief(digest: str) -> str:
    return digest[:8]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---- the run ----------------------------------------------------------------------------------


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def _total(output: Any) -> Tensor:
    """A fixed combination of an output's values, with signs and weights like noise."""
    import torch
    from torch.utils._pytree import tree_leaves

    leaves = tree_leaves(output) + tree_leaves(getattr(output, "__dict__", {}))
    total = torch.zeros((), dtype=torch.float64)
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and leaf.requires_grad:
            numbers = torch.arange(leaf.numel(), dtype=torch.float64, device=leaf.device)
            weights = (12.9898 * (numbers + 1)).sin().reshape(leaf.shape)
            total = total.to(leaf.device) + (leaf.double() * weights).sum()
    return _checked(total)


def _checked(total: Any) -> Tensor:
    import torch

    if isinstance(total, torch.Tensor) and total.requires_grad and total.numel() == 1:
        return total
    raise InvalidValueError(
        "`loss` must give a 0-d tensor that requires grad; without it, the model's output must "
        "hold a floating-point tensor that does. Pass a `loss`, and call no no_grad."
    )


def _is_compiled(model: nn.Module) -> bool:
    return any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


@contextmanager
def _left_as_it_was(model: nn.Module, inputs: Any) -> Iterator[list[Tensor]]:
    """Put gradients, buffers and torch's random state back afterwards; gives the leaves."""
    import torch
    from torch.utils._pytree import tree_leaves

    tensors = [*model.parameters(), *(x for x in tree_leaves(inputs) if hasattr(x, "grad_fn"))]
    leaves = [tensor for tensor in tensors if tensor.is_leaf and tensor.requires_grad]
    grads = [leaf.grad for leaf in leaves]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    for leaf in leaves:
        leaf.grad = None
    devices = {tensor.device for tensor in tensors if tensor.is_cuda}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield leaves
    finally:
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad
        with unseen():
            for buffer, value in buffers:
                buffer.copy_(value)
