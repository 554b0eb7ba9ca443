"""dropseed for PyTorch. Write ``import dropseed.torch as dst``; Numba loads at the first call."""

import sys as _sys

from dropseed.errors import MissingExtraError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise MissingExtraError("torch", "torch") from error

from dropseed.torch import functional
from dropseed.torch.concrete import ConcreteDropout, concrete_regularization
from dropseed.torch.convert import convert, revert, sites
from dropseed.torch.cutout import Cutout
from dropseed.torch.drop_block_layers import DropBlock1d, DropBlock2d, DropBlock3d
from dropseed.torch.drop_connect_layers import (
    DropConnectConv1d,
    DropConnectConv2d,
    DropConnectConv3d,
    DropConnectLinear,
)
from dropseed.torch.embedding import EmbeddingDropout
from dropseed.torch.keyed import key_tensor, set_key
from dropseed.torch.layer_drop import LayerDrop
from dropseed.torch.layers import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    GaussianDropout,
    LockedDropout,
    SpatialDropout1d,
    SpatialDropout2d,
    SpatialDropout3d,
)
from dropseed.torch.max_norm import constrain, max_norm, max_norm_
from dropseed.torch.multi_sample import MultiSampleDropout
from dropseed.torch.paired import PairedDropout
from dropseed.torch.paths import DropPath, DropPathResidual, linear_depth
from dropseed.torch.recurrent import RecurrentDropout, Zoneout
from dropseed.torch.schedule import set_rate
from dropseed.torch.tokens import PatchDropout, TokenDropout
from dropseed.torch.weights import WeightDrop, drop_weights, remove

__all__ = [
    "AlphaDropout",
    "ConcreteDropout",
    "Cutout",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnectConv1d",
    "DropConnectConv2d",
    "DropConnectConv3d",
    "DropConnectLinear",
    "DropPath",
    "DropPathResidual",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "LayerDrop",
    "LockedDropout",
    "MultiSampleDropout",
    "PairedDropout",
    "PatchDropout",
    "RecurrentDropout",
    "SpatialDropout1d",
    "SpatialDropout2d",
    "SpatialDropout3d",
    "TokenDropout",
    "WeightDrop",
    "Zoneout",
    "concrete_regularization",
    "constrain",
    "convert",
    "drop_weights",
    "functional",
    "key_tensor",
    "linear_depth",
    "max_norm",
    "max_norm_",
    "remove",
    "revert",
    "set_key",
    "set_rate",
    "sites",
]

if _guard := _sys.modules.get("dropseed.audit.running.guard"):  # it wants to see our calls, too
    _guard.attach()
