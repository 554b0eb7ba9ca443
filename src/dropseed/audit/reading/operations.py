"""What layers, functions and tensor methods do to values, in a few families."""

from __future__ import annotations

import re
from functools import cache

from dropseed.audit.reading.names import DROPOUTS

_PATTERNS: dict[str, str] = {
    "activation": (
        r"relu|relu6|leakyrelu|elu|selu|celu|gelu|silu|mish|swish|softplus|softsign|tanh|sigmoid"
        r"|hardtanh|hardswish|hardsigmoid|logsigmoid|p?relu|threshold|activation|act"
    ),
    "identity": (
        r"identity|contiguous|to|cuda|cpu|type|typeas|float|half|double|bfloat16|clone|cast"
        r"|requiresgrad|astensor|converttotensor|maskedfill"
    ),
    "reshape": (
        r"(?:batch)?(?:view|reshape|flatten|unflatten|squeeze|unsqueeze|expanddims|permute|transpose"
        r"|swapaxes|swapdims|moveaxis|movedim|rearrange|expand)(?:as)?|m?t"
    ),
    "index": r"\[\]|select|narrow|chunk|split|unbind|gather|indexselect|maskedselect",
    "batch norm": r"(?:lazy|sync)?batchnorm(?:\dd)?|batchnormalization",
    "norm": (
        r"(?:layer|group|rms|(?:lazy)?instance)norm(?:\dd)?|(?:layer|group)normalization"
        r"|localresponsenorm"
    ),
    "linear": r"(?:lazy)?linear|dense|densegeneral",
    "conv1": r"(?:lazy|separable)?conv(?:olution)?(?:transpose)?1d(?:transpose)?",
    "conv2": r"(?:lazy|separable|depthwise)?conv(?:olution)?(?:transpose)?2d(?:transpose)?",
    "conv3": r"(?:lazy)?conv(?:olution)?(?:transpose)?3d(?:transpose)?",
    "max pool": r"(?:adaptive|global)?max_?pool(?:ing)?(?:\dd)?",
    "mean pool": r"(?:adaptive|global)?(?:avg|average)_?pool(?:ing)?(?:\dd)?",
    "resize": r"upsample|interpolate|upsampling\dd|(?:zero)?pad(?:ding)?(?:\dd)?",
    "recurrent": r"lstm|gru|rnn|simplernn",
    "embedding": r"embedding|embed",
    "softmax": r"(?:log)?softmax(?:\dd)?",
    "sum": r"\+|add",
    "loss": (
        r"(?:crossentropy|nll|bce|bcewithlogits|mse|l1|smoothl1|huber|kldiv|multilabelsoftmargin"
        r"|multimargin)(?:loss)?|binarycrossentropy(?:withlogits)?|(?:sparse)?softmaxcrossentropy\w*"
        r"|sigmoidcrossentropy\w*|sigmoidbinarycrossentropy"
    ),
}
OF_ONE = frozenset({*_PATTERNS, "elementwise", "spatial", "path", "alpha"} - {"sum", "recurrent"})
"""The families that work on their first argument alone."""

_FAMILIES = {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}
_FRAMEWORKS = re.compile(
    r"(?:torch|keras|tensorflow|flax|haiku|equinox|jax|optax|einops|tf_slim|dropseed)\."
)

DROPPING: dict[str, str] = {
    "torch.nn.functional.dropout": "elementwise",
    "torch.dropout": "elementwise",
    "torch.nn.functional.dropout1d": "spatial",
    "torch.nn.functional.dropout2d": "spatial",
    "torch.nn.functional.dropout3d": "spatial",
    "tensorflow.nn.dropout": "elementwise",
    "tensorflow.layers.dropout": "elementwise",
    "haiku.dropout": "elementwise",
    "dropout of a shape": "path",
}
"""The functions that drop, and which values they drop together.

A "dropout of a shape" is a layer whose `noise_shape` is given.
"""

_ALPHA = {kind for kind in DROPOUTS if kind.endswith(("AlphaDropout", "GaussianDropout"))}


@cache
def family(kind: str) -> str:
    """The family of a layer, function, method or operator.

    Args:
        kind: its canonical name; of a tensor's method the name behind a dot; an operator's sign.

    Returns:
        "activation", "identity", "reshape", "batch norm", ...; for what drops "elementwise",
        "spatial", "path" or "alpha"; "" for anything else.

    Example:
        >>> family("torch.nn.ReLU"), family("torch.flatten"), family(".view"), family("my.ReLU")
        ('activation', 'reshape', 'reshape', '')
    """
    if kind in _ALPHA:
        return "alpha"
    if kind in DROPOUTS or kind in DROPPING:
        return DROPOUTS.get(kind) or DROPPING[kind]
    module, _, name = kind.rpartition(".")
    if name.endswith("Output"):
        return "record"
    if module and not _FRAMEWORKS.match(kind):
        return ""
    word = name.replace("_", "").lower()
    return next((at for at, names in _FAMILIES.items() if names.fullmatch(word)), "")
