"""A ledger of what dropout really did in a run: a line for each site and step."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from dropseed.audit.running.history import History, named
from dropseed.audit.running.ranks import Ranks
from dropseed.audit.running.watch import Event, watch
from dropseed.errors import InvalidTypeError, RunError

if TYPE_CHECKING:
    from torch import nn

Line = dict[str, Any]


@contextmanager
def ledger(model: nn.Module | None = None, path: str | Path | None = None) -> Iterator[Ledger]:
    """Write down what every dropout call of a run does, whoever's dropout it is.

    A step ends with ``step()`` of an optimizer that holds a parameter of the model, so that a plain
    training loop needs no other call; two optimizers that step one after the other end one step.
    An evaluation belongs to the step that comes next. What a checkpoint recomputes is left out.

    A line is a dict, in a file a line of JSON:

    - `step`, from 1; `phase`: "training" if gradients flow and an optimizer's step follows, else
      "evaluation"; `mode` of the model: "train" or "eval"; `grad`: "grad", "no_grad" or
      "inference";
    - `site`, `kind` and `caller` as in `dropseed.audit.running.watch.Event`, and how many `calls`
      in the step;
    - `active`, and `why` or why not; `asked`, the rate; `realised`, the fraction dropped; `ratio`,
      of the output's mean magnitude to the input's; `key` of the last call.

    Compiled code runs eagerly meanwhile. A call of an active dropout takes about 0.2 ms more, and
    as long as to read its input, its mask and its output once: a training step of a small MLP or
    Transformer on one core takes 1.5 times as long. The memory held grows by a line for each site
    and step; with a path it doesn't grow.

    Args:
        model: the model; by default the outermost module that runs first.
        path: a file to which the lines are appended, step by step; by default they are kept in
            `lines`.

    Yields:
        The ledger.

    Raises:
        TypeError: `model` is no module.
        RunError: the file can't be written.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> with ledger(model) as book:
        ...     for _ in range(3):
        ...         model(torch.ones(64, 4)).sum().backward()
        ...         optimizer.step()
        >>> print(book.summary())
        1 site (1): active in all 3 training steps.
        >>> [(line["step"], line["site"], line["asked"]) for line in book.lines]
        [(1, '1', 0.5), (2, '1', 0.5), (3, '1', 0.5)]
    """
    from torch import nn
    from torch.nn.modules.module import register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_post_hook

    if not (model is None or isinstance(model, nn.Module)):
        raise InvalidTypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
    with ExitStack() as exits:
        file = None if path is None else exits.enter_context(_opened(Path(path)))
        book = Ledger(model, file)
        exits.callback(book._close)
        exits.enter_context(watch(model, book._dropped, digests=book._ranks.wanted))
        exits.callback(register_module_forward_pre_hook(book._ran).remove)
        exits.callback(register_optimizer_step_post_hook(book._stepped).remove)
        yield book


class Ledger:
    """The lines of a run, and what they say.

    Attributes:
        lines: the lines so far; none if they go to a file.
        steps: how many training steps have ended.
    """

    def __init__(self, model: nn.Module | None, file: TextIO | None) -> None:
        self.lines: list[Line] = []
        self._model = model
        self._modules = set() if model is None else {*model.modules()}
        self._file = file
        self._history = History()
        self._ranks = Ranks()
        self._rows: dict[tuple[Any, ...], _Row] = {}
        self._passes: set[tuple[bool, bool]] = set()  # (in training mode, with gradients)

    @property
    def steps(self) -> int:
        """How many training steps have ended."""
        return self._history.steps

    def summary(self) -> str:
        """Say in words what happened, a sentence a line.

        A rate is called wrong only beyond six standard deviations, and "nothing" was dropped only
        where 20 values were to. Passes without gradients are evaluations, in whatever mode.

        Returns:
            For instance "4 sites: active in all 20 training steps, off in evaluation."
        """
        told, shared, others = self._ranks.compared()
        lines = self._history.lines()
        if told > 1 and shared:
            lines.append(f"{named(shared)}: all ranks share a mask ({told} ranks, in one step).")
        if told > 1 and others:
            lines.append(f"{named(others)}: masks differ between {told} ranks.")
        return "\n".join(lines)

    # -- what happens in the run

    def _ran(self, module: nn.Module, inputs: Any) -> None:
        import torch

        if self._model is None:
            self._model, self._modules = module, {*module.modules()}
        grad = torch.is_grad_enabled()
        if module is self._model or (grad and module in self._modules):
            self._passes.add((self._model.training, grad))

    def _dropped(self, event: Event) -> None:
        if event.backward or not event.known:
            return
        key = (event.site, event.active, event.root_training, event.grad)
        self._rows.setdefault(key, _Row(event)).add(event)
        site = self._history.site(event.site)
        if event.active:
            site.totals.add(event)
        if event.grad == "grad":
            self._ranks.add(event)

    def _stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if not self._holds_parameters(optimizer):
            self._history.other_steps += 1
        elif self._passes or self._rows:  # else it steps right after another one
            self._history.steps += 1
            mode = (True, True) in self._passes_with_rows()
            if not mode:
                self._history.trained_in_eval_mode()
            self._end(self.steps, mode, counted=True)
            self._ranks.tell()

    def _holds_parameters(self, optimizer: Any) -> bool:
        if self._model is None:
            return True
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        return any(id(parameter) in held for parameter in self._model.parameters())

    def _passes_with_rows(self) -> set[tuple[bool, bool]]:
        """The modes of the passes; what isn't called as a module is only seen by its rows."""
        rows = {(bool(row.mode), row.grad == "grad") for row in self._rows.values()}
        return self._passes | rows

    # -- the end of a step

    def _end(self, step: int, mode: bool | None, *, counted: bool) -> None:
        """Write the rows; those with gradients in `mode` are the training, in a counted step."""
        history, states = self._history, dict[str, set[bool]]()
        history.evaluated |= bool(self._passes_with_rows() - {(mode, True)})
        for row in self._rows.values():
            training = row.grad == "grad" and row.mode is mode
            self._write(row.line(step, "training" if training else "evaluation"))
            site = history.site(row.site)
            if training:
                states.setdefault(row.site, set()).add(row.active)
                site.off = site.off if row.active else row.why
            elif row.active:
                site.on = "the model was in training mode" if row.mode else row.why
        if counted:
            for name, state in states.items():
                history.site(name).train(step, state)
        self._rows.clear()
        self._passes.clear()

    def _close(self) -> None:
        """Write what came after the last step, and all of a run without an optimizer."""
        passes = self._passes_with_rows()
        mode = True if (True, True) in passes else None
        if self._rows or passes:
            self._end(self.steps + 1, mode, counted=self.steps == 0)
        self._model, self._modules = None, set()  # which the ledger may outlive

    def _write(self, line: Line) -> None:
        if self._file is None:
            self.lines.append(line)
            return
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class _Row:
    """The calls of one site in a step that were in the same mode."""

    def __init__(self, event: Event) -> None:
        self.site, self.active, self.why = event.site, event.active, event.why
        self.mode, self.grad = event.root_training, event.grad
        self._events = 0
        self._last = event
        self._realised: list[float] = [0.0, 0.0]  # weighted sum, and sum of weights
        self._ratio: list[float] = [0.0, 0.0]

    def add(self, event: Event) -> None:
        self._events += 1
        self._last = event
        for sums, value in ((self._realised, event.realised), (self._ratio, event.ratio)):
            if value is not None:
                weight = event.draws or 1
                sums[0] += weight * value
                sums[1] += weight

    def line(self, step: int, phase: str) -> Line:
        event = self._last
        return {
            "step": step,
            "phase": phase,
            "mode": "train" if self.mode else "eval",
            "grad": self.grad,
            "site": self.site,
            "kind": event.kind,
            "caller": event.caller,
            "calls": self._events,
            "active": self.active,
            "why": event.why,
            "asked": event.rate,
            "realised": _mean(self._realised),
            "ratio": _mean(self._ratio),
            "key": event.key,
        }


def _mean(sums: list[float]) -> float | None:
    mean = sums[0] / sums[1] if sums[1] else math.nan
    return mean if math.isfinite(mean) else None


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        reason = error.strerror or error
        raise RunError(f"`path` {path} can't be appended to ({reason}).") from error
    with file:
        yield file
