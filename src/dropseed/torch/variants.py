"""Every variant in three choices: who shares a draw, by which law, and where it enters."""

from __future__ import annotations

from typing import NamedTuple


class Variant(NamedTuple):
    """One row of the table of variants.

    ``noise_shape`` is a name of `dropseed.mask.shape.VARIANTS`, or says in words what no such name
    does; ``functional`` is empty where there is only a layer.
    """

    layer: str
    functional: str
    noise_shape: str
    law: str
    enters: str
    source: str


_BERNOULLI = "Bernoulli"

VARIANTS = (
    Variant("Dropout", "dropout", "elementwise", _BERNOULLI, "activation", "Hinton et al. 2012"),
    Variant(
        "SpatialDropout1d",
        "spatial_dropout1d",
        "spatial",
        _BERNOULLI,
        "activation",
        "Tompson et al. 2015",
    ),
    Variant(
        "SpatialDropout2d",
        "spatial_dropout2d",
        "spatial",
        _BERNOULLI,
        "activation",
        "Tompson et al. 2015",
    ),
    Variant(
        "SpatialDropout3d",
        "spatial_dropout3d",
        "spatial",
        _BERNOULLI,
        "activation",
        "Tompson et al. 2015",
    ),
    Variant(
        "AlphaDropout",
        "alpha_dropout",
        "elementwise",
        "Bernoulli, affine",
        "activation",
        "Klambauer et al. 2017",
    ),
    Variant(
        "FeatureAlphaDropout",
        "feature_alpha_dropout",
        "spatial",
        "Bernoulli, affine",
        "activation",
        "Klambauer et al. 2017",
    ),
    Variant(
        "GaussianDropout",
        "gaussian_dropout",
        "elementwise",
        "Gaussian",
        "activation",
        "Srivastava et al. 2014",
    ),
    Variant(
        "ConcreteDropout",
        "concrete_dropout",
        "elementwise",
        "concrete, learned rate",
        "activation",
        "Gal et al. 2017",
    ),
    Variant(
        "DropBlock1d",
        "drop_block1d",
        "drop_block",
        _BERNOULLI,
        "activation",
        "Ghiasi et al. 2018",
    ),
    Variant(
        "DropBlock2d",
        "drop_block2d",
        "drop_block",
        _BERNOULLI,
        "activation",
        "Ghiasi et al. 2018",
    ),
    Variant(
        "DropBlock3d",
        "drop_block3d",
        "drop_block",
        _BERNOULLI,
        "activation",
        "Ghiasi et al. 2018",
    ),
    Variant(
        "DropConnectLinear",
        "drop_connect_linear",
        "drop_connect, a mask a sample",
        _BERNOULLI,
        "weight",
        "Wan et al. 2013",
    ),
    Variant(
        "DropConnectConv1d",
        "drop_connect_conv",
        "drop_connect, a mask a sample",
        _BERNOULLI,
        "weight",
        "Wan et al. 2013",
    ),
    Variant(
        "DropConnectConv2d",
        "drop_connect_conv",
        "drop_connect, a mask a sample",
        _BERNOULLI,
        "weight",
        "Wan et al. 2013",
    ),
    Variant(
        "DropConnectConv3d",
        "drop_connect_conv",
        "drop_connect, a mask a sample",
        _BERNOULLI,
        "weight",
        "Wan et al. 2013",
    ),
    Variant(
        "WeightDrop",
        "",
        "drop_connect, a mask a pass",
        _BERNOULLI,
        "weight",
        "Merity et al. 2018",
    ),
    Variant(
        "LockedDropout",
        "locked_dropout",
        "locked",
        _BERNOULLI,
        "activation",
        "Gal and Ghahramani 2016",
    ),
    Variant(
        "EmbeddingDropout",
        "embedding_dropout",
        "embedding",
        _BERNOULLI,
        "embedding",
        "Gal and Ghahramani 2016",
    ),
    Variant(
        "TokenDropout",
        "token_dropout",
        "token",
        "fixed count, or Bernoulli",
        "token",
        "Liu et al. 2022",
    ),
    Variant("PatchDropout", "token_dropout", "token", "fixed count", "token", "Liu et al. 2022"),
    Variant("Cutout", "cutout", "rectangles", "uniform places", "input", "DeVries and Taylor 2017"),
    Variant("DropPath", "drop_path", "path", _BERNOULLI, "path", "Huang et al. 2016"),
    Variant("LayerDrop", "", "one draw a layer", _BERNOULLI, "path", "Fan et al. 2020"),
    Variant(
        "RecurrentDropout",
        "recurrent_dropout",
        "locked",
        _BERNOULLI,
        "state",
        "Gal and Ghahramani 2016",
    ),
    Variant(
        "Zoneout",
        "zoneout",
        "elementwise, anew each step",
        _BERNOULLI,
        "state",
        "Krueger et al. 2017",
    ),
    Variant(
        "MultiSampleDropout",
        "multi_sample_dropout",
        "elementwise, a mask a sample",
        _BERNOULLI,
        "activation",
        "Inoue 2019",
    ),
    Variant(
        "PairedDropout",
        "dropout_pair",
        "elementwise, a mask a half",
        _BERNOULLI,
        "activation",
        "Liang et al. 2021, Gao et al. 2021",
    ),
)
