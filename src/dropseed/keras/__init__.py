"""dropseed for Keras 3. Write ``import dropseed.keras as dsk``; any back end, the same masks."""

from dropseed.errors import MissingExtraError

try:
    import keras as _keras  # noqa: F401
except ModuleNotFoundError as error:
    missing = str(error.name).partition(".")[0]
    if missing == "keras":
        raise MissingExtraError("keras", "keras") from error
    raise ImportError(
        f"Keras's back end needs `{missing}`, which is not installed. Choose one that is, for "
        'instance by os.environ["KERAS_BACKEND"] = "torch" before Keras is imported, or install '
        f"it with: pip install {missing}"
    ) from error

from dropseed.keras.convert import convert
from dropseed.keras.drop_block import DropBlock1D, DropBlock2D, DropBlock3D
from dropseed.keras.drop_connect import DropConnect, DropConnectDense
from dropseed.keras.keyed import set_key, sites
from dropseed.keras.layers import (
    AlphaDropout,
    Dropout,
    DropPath,
    GaussianDropout,
    MonteCarloDropout,
    SpatialDropout1D,
    SpatialDropout2D,
    SpatialDropout3D,
)

__all__ = [
    "AlphaDropout",
    "DropBlock1D",
    "DropBlock2D",
    "DropBlock3D",
    "DropConnect",
    "DropConnectDense",
    "DropPath",
    "Dropout",
    "GaussianDropout",
    "MonteCarloDropout",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "convert",
    "set_key",
    "sites",
]
