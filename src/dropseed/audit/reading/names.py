"""The names of the frameworks: one spelling for each thing, whatever way it was imported."""

from __future__ import annotations

import re

_SPELLINGS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^torch\.nn\.modules\.\w+\.(?=[A-Z])", "torch.nn."),
        (r"^torch\.nn\.modules\.(?=[A-Z])", "torch.nn."),
        (r"^torch\.functional\.F\.", "torch.nn.functional."),
        (r"^tensorflow\.compat\.v[12]\.", "tensorflow."),
        (r"^(?:tensorflow\.(?:python\.)?keras|tf_keras)\b(?:\.src\b)?", "keras"),
        (r"^keras\.(?:src|api|_tf_keras\.keras)\.", "keras."),
        (r"^keras\.layers\.(?:\w+\.)+(?=[A-Z])", "keras.layers."),
        (r"^keras\.(?:models|engine\.\w+)\.(?=Model$|Sequential$)", "keras."),
        (r"^keras\.(?:engine\.)?base_layer\.Layer$", "keras.layers.Layer"),
        (r"^keras\.Layer$", "keras.layers.Layer"),
        (r"^flax\.linen\.\w+\.(?=[A-Z])", "flax.linen."),
        (r"^flax\.nnx\.nn\.\w+\.", "flax.nnx."),
        (r"^flax\.experimental\.nnx\.", "flax.nnx."),
        (r"^haiku\._src\.\w+\.", "haiku."),
        (r"^equinox\.nn\._\w+\.", "equinox.nn."),
        (r"^torchvision\.ops\.stochastic_depth\.(?=\w)", "torchvision.ops."),
        (r"^pytorch_lightning\.", "lightning."),
        (r"^lightning\.pytorch\.", "lightning."),
        (r"^lightning\.core(?:\.\w+)*\.LightningModule$", "lightning.LightningModule"),
        (r"^flash_attn\.\w*interface\.(?=flash_attn_)", "flash_attn."),
    )
)

FRAMEWORKS = frozenset(
    {"torch", "torchvision", "lightning", "timm", "transformers", "tensorflow", "keras"}
    | {"jax", "flax", "haiku", "equinox"}
)
"""Names that mean the framework, also in a folder that has a module of that name."""

_TORCH_PLAIN = frozenset(
    {"torch.nn.Parameter", "torch.nn.UninitializedParameter", "torch.nn.Buffer"}
)

_MODULES = frozenset(
    {
        "lightning.LightningModule",
        "transformers.PreTrainedModel",
        "transformers.modeling_utils.PreTrainedModel",
        "torch.jit.ScriptModule",
        "torchvision.ops.StochasticDepth",
        "fairseq.models.BaseFairseqModel",
        "fairseq.models.FairseqEncoder",
        "fairseq.models.FairseqDecoder",
        "fairseq.models.FairseqIncrementalDecoder",
        "diffusers.ModelMixin",
        "torch_geometric.nn.MessagePassing",
        "torch_geometric.nn.conv.MessagePassing",
        "mmengine.model.BaseModule",
        "mmengine.model.BaseModel",
        "mmcv.runner.BaseModule",
    }
)


def canonical(name: str) -> str:
    """The one spelling of a framework's name.

    Args:
        name: dotted, as an import leads to it.

    Returns:
        The name by which the rules know it; any other name unchanged.

    Example:
        >>> canonical("torch.nn.modules.dropout.Dropout")
        'torch.nn.Dropout'
    """
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


def is_torch_module(name: str) -> bool:
    """Whether a class of this canonical name is a torch module, as far as names tell."""
    return (
        (name.startswith("torch.nn.") and name[9:10].isupper() and name not in _TORCH_PLAIN)
        or name in _MODULES
        or name.startswith("dropseed.torch.")
    )


TORCH_DROPOUTS: dict[str, str] = {
    "torch.nn.Dropout": "elementwise",
    "torch.nn.Dropout1d": "spatial",
    "torch.nn.Dropout2d": "spatial",
    "torch.nn.Dropout3d": "spatial",
    "torch.nn.AlphaDropout": "elementwise",
    "torch.nn.FeatureAlphaDropout": "spatial",
    "dropseed.torch.Dropout": "elementwise",
    "dropseed.torch.Dropout1d": "spatial",
    "dropseed.torch.Dropout2d": "spatial",
    "dropseed.torch.Dropout3d": "spatial",
    "dropseed.torch.AlphaDropout": "elementwise",
    "torchvision.ops.StochasticDepth": "path",
    "timm.layers.DropPath": "path",
    "timm.models.layers.DropPath": "path",
}
"""The dropout layers of PyTorch's world, and which values they drop together."""

KERAS_DROPOUTS: dict[str, str] = {
    "keras.layers.Dropout": "elementwise",
    "keras.layers.AlphaDropout": "elementwise",
    "keras.layers.GaussianDropout": "elementwise",
    "keras.layers.SpatialDropout1D": "spatial",
    "keras.layers.SpatialDropout2D": "spatial",
    "keras.layers.SpatialDropout3D": "spatial",
}
"""Keras's, likewise."""

JAX_DROPOUTS: dict[str, str] = {
    "flax.linen.Dropout": "elementwise",
    "flax.nnx.Dropout": "elementwise",
    "equinox.nn.Dropout": "elementwise",
}
"""The layers of JAX's libraries, likewise."""

DROPOUTS: dict[str, str] = TORCH_DROPOUTS | KERAS_DROPOUTS | JAX_DROPOUTS
"""Every dropout layer."""
