"""Where a dropout stands in the dataflow of a model, and whether that is a mistake.

Between two calls, what makes no difference is looked through:

- `VIEWS` hand on the same numbers, or some of them, in another shape, order or type. So does a
  dropout that is off.
- `COMMUTING` is what dropout may as well stand behind: ReLU and its leaky kin, and also the
  multiplication or division by a number.
- `POINTWISE` works on each value alone.

Nothing else is: a residual addition, a concatenation or a linear layer ends the search.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import cache

from dropseed.audit.running.asked import runs_as_torchs
from dropseed.audit.running.graph import Call, word
from dropseed.audit.running.watch import Event

_KEEPING = r"identity|contiguous|clone|detach|data|to|type|float|half|bfloat16|double"
VIEWS = (
    rf"{_KEEPING}|view|viewas|reshape|reshapeas|flatten|unflatten|permute|transpose|t|h|mt|mh"
    r"|adjoint|swapaxes|swapdims|movedim|moveaxis|squeeze|unsqueeze|expand|expandas|getitem|narrow"
    r"|select|chunk|split|tensorsplit|unbind"
)
COMMUTING = r"relu|leakyrelu|prelu"
POINTWISE = (
    rf"{COMMUTING}|relu6|elu|celu|selu|gelu|silu|mish|hardswish|hardsigmoid|hardtanh|softplus"
    r"|sigmoid|tanh"
)
_SCALING = r"mul|div"
_NORM = r"(sync)?batchnorm(\dd)?|(group|layer|rms|instance)norm(\dd)?"
_BATCH_NORM = r"(sync)?batchnorm(\dd)?"
_POOL = r"(adaptive)?(max|avg)pool\dd(withindices)?"
_MAX_POOL = r"(adaptive)?maxpool\dd(withindices)?"
_CONVOLUTION = r"conv(transpose)?\dd"
_LINEAR = r"linear|bilinear|addmm"
_ATTENTION = r"multiheadattention(forward)?|scaleddotproductattention"
_PRODUCT = r"matmul|bmm|baddbmm|einsum"
_RECURRENT = r"lstm|gru|rnn"
_LAST = (
    rf"linear|layernorm|rmsnorm|embedding|{_RECURRENT}|{_ATTENTION}"  # features in the last axis
)
_LINK = r"softmax|logsoftmax|sigmoid|logsigmoid"
_LOSS = (
    r"(crossentropy|nll|bce|bcewithlogits|mse|l1|smoothl1|huber|kldiv)(loss)?|binarycrossentropy\w*"
)


def place(call: Call) -> str:
    """Where a dropout stands, in words: "after ReLU, before Linear".

    Args:
        call: the dropout's.
    """
    if _is(call, _RECURRENT):
        return f"between {call.name} layers"
    before, after = _previous(call, VIEWS), _following(call, VIEWS)
    if _is(call, _ATTENTION) or (
        before and _is(before, "softmax") and any(_is(user, _PRODUCT) for user in after)
    ):
        return "attention probabilities"
    parts = ["on a weight" if call.on_parameter else _behind(before), _ahead(after)]
    return ", ".join(part for part in parts if part)


def _behind(call: Call | None) -> str:
    if call is None:
        return ""
    return "on the input" if call.name == "input" else f"after {_shown(call)}"


def _ahead(calls: list[Call]) -> str:
    names = [_shown(call) for call in calls if call.name != "output"]
    ends = ["at the output"] if len(names) < len(calls) else []
    if names:
        several = dict.fromkeys(names)
        ends.append("before " + " and ".join(several))
    return ", ".join(ends)


def misplaced(call: Call) -> Iterator[tuple[str, str]]:
    """The mistakes of a dropout's place and rate.

    Args:
        call: a dropout's that is active in training.

    Yields:
        The code and the message of each.
    """
    for code, check in _CHECKS.items():
        message = check(call, form(call))
        if message:
            yield code, message


def _before_batch_norm(call: Call, kind: str) -> str | None:
    """Alpha dropout is spared, which keeps the variance; dropped paths come before an addition."""
    if kind == "path" or "alpha" in word(call.events[0].kind):
        return None
    norm = next(
        (user for user in _following(call, VIEWS, COMMUTING) if _is(user, _BATCH_NORM)), None
    )
    if norm is None:
        return None
    return (
        f"dropout straight before {_named(norm)}, whose running variance then holds in training "
        "only; put the dropout behind the normalisation"
    )


def _at_output(call: Call, kind: str) -> str | None:
    """Only behind an output layer: what ends in other layers gives features to another model."""
    layer = _previous(call, VIEWS, _LINK)
    if kind == "path" or layer is None or not _is(layer, rf"{_LINEAR}|{_CONVOLUTION}"):
        return None
    for user in _following(call, VIEWS, _LINK):
        if user.name == "output":
            return (
                f"dropout after the output layer, {_named(layer)}: what the model gives is dropped "
                "at random; put it before that layer"
            )
        if _is(user, _LOSS):
            return f"dropout between the output layer, {_named(layer)}, and the loss {user.name}"
    return None


def _without_space(call: Call, kind: str) -> str | None:
    """Linear layers, recurrent ones and the like have the features last, where space would be."""
    around = [_previous(call, _KEEPING, POINTWISE), *_following(call, _KEEPING, POINTWISE)]
    near = [one for one in around if one is not None]
    maps = any(_is(one, rf"{_CONVOLUTION}|{_POOL}") for one in near)
    if kind != "channels" or not call.shapes or maps:
        return None
    shape = call.shapes[0]
    if len(shape) <= 2:
        return f"spatial dropout on the shape {shape}, which has no space; use Dropout"
    last = next((one for one in near if _is(one, _LAST)), None)
    if last is None:
        return None
    return (
        f"spatial dropout drops whole positions: axis 1 of {shape}, but {_named(last)} has the "
        "features in the last; transpose, or use Dropout"
    )


def _on_maps(call: Call, kind: str) -> str | None:
    if kind not in ("elements", "alpha"):
        return None
    maps = _previous(call, _KEEPING, rf"{POINTWISE}|{_NORM}|{_POOL}")
    if maps is None or not _is(maps, _CONVOLUTION) or max(_kernel(maps), default=1) == 1:
        return None
    space = call.shapes[0][-len(_kernel(maps)) :]
    if math.prod(space) == 1:
        return None
    return (
        f"element-wise dropout on the maps of {_named(maps)}, where neighbours tell what was "
        "dropped; drop whole channels (Dropout1d to Dropout3d) or blocks"
    )


def _in_a_row(call: Call, kind: str) -> str | None:
    if kind == "path":
        return None
    first = _previous(call, VIEWS, COMMUTING)
    if first is not None and drops(first) and form(first) != "path":
        return f"two dropouts in a row: the one before is {_named(first)}"
    pool = next((user for user in _following(call, VIEWS, COMMUTING) if _is(user, _MAX_POOL)), None)
    if pool is not None and kind == "elements":
        return (
            f"dropout straight before {_named(pool)}, which picks among what was kept, so that "
            "less is dropped than asked for; put it behind"
        )
    return None


_CHECKS: dict[str, Callable[[Call, str], str | None]] = {
    "DS201": _before_batch_norm,
    "DS202": _at_output,
    "DS203": _without_space,
    "DS204": _on_maps,
    "DS205": _in_a_row,
}


def drops(call: Call) -> bool:
    """Whether a call is a dropout that is active, and nothing else besides.

    Example:
        >>> from torch import nn, ones
        >>> from dropseed.audit.running.graph import record
        >>> calls = record(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)), [ones(1, 2)], {}).calls
        >>> [call.name for call in calls if drops(call)]
        ['Dropout']
    """
    computes = call.module is not None and sum(one.numel() for one in call.module.parameters()) > 1
    return _is_dropout(call) and not computes and any(event.active for event in call.events)


def form(call: Call) -> str:
    """What a dropout drops at once: "elements", "channels", "path", or "other".

    "alpha" are elements that are not set to 0.
    """
    kind, module = call.events[0].kind, call.module
    if module is not None and runs_as_torchs(module):
        kind = type(module).forward.__qualname__.partition(".")[0]
    name = word(kind)
    if getattr(module, "noise_shape", None) is not None or getattr(module, "channels_last", False):
        return "other"
    return next((form for form, names in _FORMS.items() if re.fullmatch(names, name)), "other")


_FORMS = {
    "elements": r"dropout|gaussiandropout",
    "alpha": r"alphadropout",
    "channels": r"(spatial)?dropout[123]d|feature(alpha)?dropout",
    "path": r"\w*(droppath|stochasticdepth)\w*",
}


def is_site(event: Event) -> bool:
    """Whether a dropout was asked for: attention and recurrent layers have a rate of 0 if not."""
    by_the_way = re.fullmatch(rf"{_ATTENTION}|{_RECURRENT}", word(event.kind))
    return bool(event.rate) or by_the_way is None


def is_batch_norm(call: Call) -> bool:
    """Whether a call is a batch normalisation."""
    return _is(call, _BATCH_NORM)


def feeding(call: Call) -> list[Call]:
    """The active dropouts on the way to a call, back to the last normalisations before it.

    Args:
        call: where the way ends.

    Returns:
        They, the nearest first.
    """
    found, seen, todo = [], {call}, [call]
    while todo:
        for source in todo.pop(0).sources:
            if source is None or source in seen:
                continue
            seen.add(source)
            if any(event.active for event in source.events):
                found.append(source)
            if not _is(source, _NORM):
                todo.append(source)
    return found


def _previous(call: Call, *through: str) -> Call | None:
    """The nearest call before that isn't looked through."""
    source = _main(call)
    while source is not None and _is_looked_through(source, through):
        source = _main(source)
    return source


def _following(call: Call, *through: str) -> list[Call]:
    """The nearest calls after that aren't looked through."""
    found: list[Call] = []
    for user in call.users:
        passing = _main(user) is call and _is_looked_through(user, through)
        found += _following(user, *through) if passing else [user]
    return list(dict.fromkeys(found))


def _main(call: Call) -> Call | None:
    """Where a call's data comes from: its first tensor, or in a product with a number the other."""
    if not call.sources:
        return None
    sizes = [math.prod(shape) for shape in call.shapes]
    return call.sources[sizes.index(max(sizes)) if _is(call, _SCALING) else 0]


def _is_looked_through(call: Call, through: tuple[str, ...]) -> bool:
    if _is_dropout(call) and not any(event.active for event in call.events):
        return True
    scales = COMMUTING in through and _is(call, _SCALING)
    return (scales and _is_scaling(call)) or any(_is(call, names) for names in through)


def _is_scaling(call: Call) -> bool:
    return sum(math.prod(shape) > 1 for shape in call.shapes) <= 1


def _is_dropout(call: Call) -> bool:
    return bool(call.events) and not _is(call, rf"{_ATTENTION}|{_RECURRENT}")


def _is(call: Call, names: str) -> bool:
    return re.fullmatch(names, call.word) is not None


def _kernel(call: Call) -> tuple[int, ...]:
    """The size of a convolution's kernel."""
    size: tuple[int, ...] = getattr(call.module, "kernel_size", ())
    return size or call.shapes[1][2:]


def _named(call: Call) -> str:
    return f"{_shown(call)} `{call.path}`" if call.module is not None else _shown(call)


def _shown(call: Call) -> str:
    """A layer by its class, and a function by that of its layer, if it has one."""
    if call.module is not None:
        return call.name
    return "addition" if call.word == "add" else _layers().get(call.word, call.name)


@cache
def _layers() -> dict[str, str]:
    from torch import nn

    return {word(name): name for name in dir(nn) if isinstance(getattr(nn, name), type)}
