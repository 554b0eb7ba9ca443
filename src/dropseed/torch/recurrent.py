"""Dropout of the state of a recurrent cell: masks that stay fixed over time, and zoneout.

"Fixed over time" needs a beginning, so the layers here take a whole sequence and run the cell's
steps themselves. Masks are drawn again from their key at every step, and once more in backward:
none is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from dropseed.errors import InvalidTypeError, InvalidValueError
from dropseed.kernels import eager
from dropseed.mask import Key
from dropseed.torch import autograd, noise
from dropseed.torch.keyed import KeyedLayer

State: TypeAlias = Tensor | tuple[Tensor, ...]
"""A cell's state: the hidden state h, or a tuple that begins with it, as an LSTM's (h, c)."""

# ---- fixed masks -----------------------------------------------------------------------------


def recurrent_dropout(
    input: Tensor,
    cell: Callable[..., State],
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    state: State | None = None,
    input_p: float | Tensor = 0.0,
    batch_first: bool = False,
    key: Key | Tensor | None = None,
    scaling: str = "inverted",
) -> tuple[Tensor, State]:
    """Run a cell over a sequence, its hidden state dropped before each step by one fixed mask.

    Gal and Ghahramani 2016, "A theoretically grounded application of dropout in recurrent neural
    networks", section 4.1, equation 7: step t reads ``h[t-1] * z_h`` and ``x[t] * z_x``, with the
    same z_h and z_x at all time steps. The outputs are not dropped, nor is the c of an LSTM.

    In a loop of your own, the same is ``dropout(h, p, key=key)`` with one key for the sequence.

    Args:
        input: floating-point tensor (T, N, D), or (N, T, D) if `batch_first`, or (T, D). T is at
            least 1.
        cell: called as ``cell(x, state)`` with x (N, D) or (D), and None as its first state if
            `state` is; returns the new state, a tensor h or a tuple that begins with h.
        p: the fraction of the hidden state dropped, in [0, 1]: a number, or a 0-d tensor. The
            draws have h's shape, (N, H).
        training: whether to drop.
        state: the state before the first step.
        input_p: the fraction of the input dropped. The draws are (N, D) of ``key.fold(1)``.
        batch_first: whether the input and the outputs are (N, T, ...).
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn, one for the sequence.
        scaling: "inverted", "original" or "none", as in `dropout`.

    Returns:
        The hidden states of all steps, (T, N, H), (N, T, H) or (T, H), and the last state.

    Raises:
        TypeError: `input` is no floating-point tensor, `cell` no cell, `p` or `input_p` no number,
            or `key` no key.
        ValueError: `input` has another rank or no time step, `p` or `input_p` is outside [0, 1], or
            `scaling` unknown.

    Example:
        >>> from dropseed import Key
        >>> cell = nn.GRUCell(3, 4)
        >>> outputs, state = recurrent_dropout(torch.ones(5, 2, 3), cell, 0.5, key=Key(0))
        >>> outputs.shape, torch.equal(outputs[-1], state)
        (torch.Size([5, 2, 4]), True)
    """
    _check_cell(cell)
    time = _time_axis(input, batch_first)
    noise.check_rate(p)
    noise.check_rate(input_p, "input_p")
    noise.check_scaling(scaling)
    hidden_key, input_key = key, key
    if training and (noise.draws(p) or noise.draws(input_p)):
        hidden_key = noise.two_words(noise.key_for(key, input))
        input_key = noise.folded(hidden_key, 1) if noise.draws(input_p) else hidden_key
    dropped = noise.drop(input, input_p, training, False, input_key, scaling, (time,))
    outputs = []
    for x in dropped.unbind(time):
        if state is not None:
            h = noise.drop(_hidden(state), p, training, False, hidden_key, scaling)
            state = _replaced(state, h)
        state = cell(x, state)
        outputs.append(_hidden(state))
    return torch.stack(outputs, time), cast(State, state)


class RecurrentDropout(KeyedLayer):
    """Run a cell over a sequence, with dropout masks that are fixed over time.

    See `recurrent_dropout`. A sequence that comes in parts has new masks in each part, unless
    `set_key` has fixed the layer's key.

    Args:
        cell: a `torch.nn.RNNCell`, `LSTMCell` or `GRUCell`, or any module that is called as
            ``cell(x, state)`` and returns the new state. Its parameters are `cell.*` in the
            `state_dict`.
        p: the fraction of the hidden state dropped, in [0, 1]: a number, or a 0-d tensor.
        input_p: the fraction of the input dropped, likewise.
        batch_first: whether input and outputs are (N, T, ...).
        scaling: "inverted", "original" or "none".

    Shape:
        Input (T, N, D), (N, T, D) if `batch_first`, or (T, D), and optionally the first state.
        Output: the hidden states of all steps, (T, N, H), (N, T, H) or (T, H), and the last state.

    Raises:
        TypeError, ValueError: `cell` is no cell, `p` or `input_p` no number in [0, 1], or `scaling`
            unknown.

    Example:
        >>> layer = RecurrentDropout(nn.LSTMCell(3, 4), 0.25)
        >>> outputs, (h, c) = layer(torch.ones(5, 2, 3))
        >>> outputs.shape, c.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """

    p: float | Tensor
    input_p: float | Tensor

    def __init__(
        self,
        cell: nn.Module,
        p: float | Tensor = 0.5,
        *,
        input_p: float | Tensor = 0.0,
        batch_first: bool = False,
        scaling: str = "inverted",
    ) -> None:
        _check_cell(cell, nn.Module)
        noise.check_rate(p)
        noise.check_rate(input_p, "input_p")
        noise.check_scaling(scaling)
        super().__init__()
        self.cell = cell
        self.p = p
        self.input_p = input_p
        self.batch_first = batch_first
        self.scaling = scaling

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the cell over the sequence, with dropout in training."""
        return recurrent_dropout(
            input,
            self.cell,
            self.p,
            self.training,
            state=state,
            input_p=self.input_p,
            batch_first=self.batch_first,
            key=self.key,
            scaling=self.scaling,
        )

    def extra_repr(self) -> str:
        """The rates, and the other arguments where they aren't the usual ones."""
        order = ", batch_first=True" if self.batch_first else ""
        other = noise.scaling_repr(self.scaling)
        return f"p={self.p}, input_p={self.input_p}{order}{other}"


# ---- zoneout ---------------------------------------------------------------------------------


def zoneout(
    new: Tensor,
    previous: Tensor,
    p: float | Tensor = 0.5,
    training: bool = True,
    *,
    key: Key | Tensor | None = None,
) -> Tensor:
    """Let a random fraction of a state keep its previous value; in inference, mix the two.

    Krueger et al. 2017, "Zoneout: regularizing RNNs by randomly preserving hidden activations",
    section 3: ``d * previous + (1 - d) * new``, where d is 1 with probability p. Nothing is scaled.

    Args:
        new: floating-point tensor of any shape, for instance (N, H): the state after a step.
        previous: the state before it, of the same shape.
        p: the fraction that keeps its previous value, in [0, 1]: a number, or a 0-d tensor.
        training: whether to draw. Without it the result is the expectation,
            ``p * previous + (1 - p) * new``.
        key: a `dropseed.Key` or its tensor form; by default a seed is drawn. A key serves one
            draw: give each time step its own, as `Zoneout` does.

    Returns:
        Tensor of that shape: `new` where the draw keeps, `previous` where it drops.

    Raises:
        TypeError: `new` or `previous` is no floating-point tensor, `p` no number, or `key` no key.
        ValueError: the shapes differ, or `p` is outside [0, 1].

    Example:
        >>> from dropseed import Key
        >>> zoneout(torch.ones(8), torch.zeros(8), 0.5, key=Key(0))
        tensor([1., 1., 0., 0., 1., 1., 0., 1.])
        >>> zoneout(torch.ones(2), torch.zeros(2), 0.25, training=False)
        tensor([0.7500, 0.7500])
    """
    _check_states(new, previous)
    noise.check_rate(p)
    if not isinstance(p, Tensor) and (p == 0 or (p == 1 and not training)):
        return new if p == 0 else previous
    if not training:
        one = torch.ones((), dtype=torch.float64, device=new.device)
        kept = noise.drop(one, p, False, False, None, "original")
        return eager.scaled(previous, 1 - kept) + eager.scaled(new, kept)
    if key is None and not noise.draws(p):
        key = Key(0)  # every draw of any key drops
    key = noise.two_words(noise.key_for(key, new))
    # A copy of a rate that is a tensor, since it may be written anew before backward.
    rate = (0.0, p.clone()) if isinstance(p, Tensor) else (float(p), None)
    return _zone(new, previous, key, *rate)


def _select(
    new: Tensor, previous: Tensor, key: Tensor, p: float, tensor_p: Tensor | None
) -> Tensor:
    return torch.where(_mask(key, p, tensor_p, new.shape), new, previous)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    _, _, key, ctx.p, tensor_p = inputs
    ctx.save_for_backward(key, tensor_p)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    key, tensor_p = ctx.saved_tensors
    mask = _mask(key, ctx.p, tensor_p, gradient.shape)
    return torch.where(mask, gradient, 0.0), torch.where(mask, 0.0, gradient), None, None, None


def _fake(new: Tensor, previous: Tensor, key: Tensor, p: float, tensor_p: Tensor | None) -> Tensor:
    return torch.where(new.new_empty(new.shape, dtype=torch.bool), new, previous)


_zone = autograd.recomputed(
    "zoneout",
    "(Tensor new, Tensor previous, Tensor key, float p, Tensor? tensor_p) -> Tensor",
    _select,
    _fake,
    _setup,
    _backward,
)


def _mask(key: Tensor, p: float, tensor_p: Tensor | None, shape: Sequence[int]) -> Tensor:
    """The mask of a key, True where kept: by `drop`, which takes every kind of rate, of ones."""
    ones = torch.ones((), device=key.device).expand(shape)
    rate = p if tensor_p is None else tensor_p
    return noise.drop(ones, rate, True, False, key, "none") != 0


class Zoneout(KeyedLayer):
    """Run a cell over a sequence; at each step some of its state keeps its previous value.

    See `zoneout`. For an LSTM (Krueger et al. 2017, section 3) the new h is made from the new c
    before that is zoned out. In evaluation the states are expectations. Time step t has the masks
    of ``key.fold(t)`` for h, and of ``key.fold(t).fold(1)`` for c.

    Args:
        cell: a `torch.nn.RNNCell`, `LSTMCell` or `GRUCell`, or any module that is called as
            ``cell(x, state)`` and returns the new state: h, or a tuple that begins with h and c.
            Its parameters are `cell.*` in the `state_dict`.
        p: the fraction of the hidden state h that keeps its previous value, in [0, 1]: a number, or
            a 0-d tensor.
        cell_p: the fraction of the cell state c that does, likewise. Only for a cell that has one.
        batch_first: whether input and outputs are (N, T, ...).

    Shape:
        Input (T, N, D), (N, T, D) if `batch_first`, or (T, D), and optionally the first state,
        zeros if it is None. Output: the hidden states of all steps, (T, N, H), (N, T, H) or (T, H),
        and the last state.

    Raises:
        TypeError, ValueError: `cell` is no cell, or `p` or `cell_p` no number in [0, 1]. In
            `forward`: the input has another rank or no time step, or the cell has no c.

    Example:
        >>> layer = Zoneout(nn.LSTMCell(3, 4), 0.05, cell_p=0.5)
        >>> outputs, (h, c) = layer(torch.ones(5, 2, 3))
        >>> outputs.shape, torch.equal(outputs[-1], h)
        (torch.Size([5, 2, 4]), True)
    """

    p: float | Tensor
    cell_p: float | Tensor

    def __init__(
        self,
        cell: nn.Module,
        p: float | Tensor = 0.5,
        *,
        cell_p: float | Tensor = 0.0,
        batch_first: bool = False,
    ) -> None:
        _check_cell(cell, nn.Module)
        noise.check_rate(p)
        noise.check_rate(cell_p, "cell_p")
        super().__init__()
        self.cell = cell
        self.p = p
        self.cell_p = cell_p
        self.batch_first = batch_first

    def forward(self, input: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run the cell over the sequence, with zoneout in training and its expectation else."""
        time = _time_axis(input, self.batch_first)
        noise.check_rate(self.p)
        noise.check_rate(self.cell_p, "cell_p")
        steps = input.unbind(time)
        outputs = []
        for x, *keys in zip(steps, *self._keys(input, len(steps)), strict=True):
            state = self._zoned(self.cell(x, state), state, *keys)
            outputs.append(_hidden(state))
        return torch.stack(outputs, time), cast(State, state)

    def _keys(self, input: Tensor, steps: int) -> tuple[Sequence[Tensor | None], ...]:
        """The keys of h and those of c, one a time step."""
        none = (None,) * steps
        if not self.training or not (noise.draws(self.p) or noise.draws(self.cell_p)):
            return none, none
        key = noise.key_for(self.key, input)
        keys = eager.folds(key, steps)
        if not noise.draws(self.cell_p):
            return keys.unbind(), none
        return keys.unbind(), torch.vmap(eager.fold, (0, None))(keys, 1).unbind()

    def _zoned(
        self, new: State, previous: State | None, key: Tensor | None, cell_key: Tensor | None
    ) -> State:
        h = _hidden(new)
        before = torch.zeros_like(h) if previous is None else _hidden(previous)
        h = zoneout(h, before, self.p, self.training, key=key)
        if not isinstance(self.cell_p, Tensor) and self.cell_p == 0:
            return _replaced(new, h)
        if isinstance(new, Tensor) or len(new) < 2:
            raise InvalidValueError(
                f"`cell_p` must be 0 for a cell whose state is h alone; got {self.cell_p}."
            )
        c = new[1]
        before = torch.zeros_like(c) if previous is None else previous[1]
        c = zoneout(c, before, self.cell_p, self.training, key=cell_key)
        return h, c, *new[2:]

    def extra_repr(self) -> str:
        """The rates, and the order of the axes where it isn't the usual one."""
        order = ", batch_first=True" if self.batch_first else ""
        return f"p={self.p}, cell_p={self.cell_p}{order}"


# ---- what they share -------------------------------------------------------------------------


def _hidden(state: State) -> Tensor:
    return state if isinstance(state, Tensor) else state[0]


def _replaced(state: State, h: Tensor) -> State:
    return h if isinstance(state, Tensor) else (h, *state[1:])


def _check_cell(cell: Any, kind: type = object) -> None:
    if isinstance(cell, nn.RNNBase) or not callable(cell) or not isinstance(cell, kind):
        raise InvalidTypeError(
            f"`cell` must make one step, as torch.nn.LSTMCell does; got {type(cell).__name__}."
        )


def _check_states(new: Any, previous: Any) -> None:
    for name, state in (("new", new), ("previous", previous)):
        noise.check_input(state, name)
    if new.shape != previous.shape:
        raise InvalidValueError(
            f"`previous` must have the shape of `new`, {tuple(new.shape)}; "
            f"got {tuple(previous.shape)}."
        )


def _time_axis(input: Any, batch_first: bool) -> int:
    noise.check_input(input)
    if input.dim() not in (2, 3):
        order = "(N, T, D)" if batch_first else "(T, N, D)"
        raise InvalidValueError(
            f"`input` must be {order} or, without a batch, (T, D); got {input.dim()} dimensions."
        )
    time = 1 if batch_first and input.dim() == 3 else 0
    if input.shape[time] == 0:
        raise InvalidValueError(
            f"`input` must have a time step at least; got shape {tuple(input.shape)}."
        )
    return time
