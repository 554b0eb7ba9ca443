"""Element-wise dropout on convolution maps.

Neighbours in a map are alike: what is dropped at one place can be read from the next.
Element-wise dropout behind a convolution then takes little information away and mostly lowers the
learning rate. Whole channels (`nn.Dropout2d`, `SpatialDropout2D`) or whole blocks (DropBlock)
have to go.

**Wrong**

```python
features = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(64, 64, 3))
```

**Right**

```python
features = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Dropout2d(0.3), nn.Conv2d(64, 64, 3))
```

**Silent** behind convolutions of sequences, global pooling, flattening and every other change of
shape; behind a convolution of kernel 1, unless it is normalized or pooled and another convolution
follows; where `noise_shape` or `broadcast_dims` is given.

**When to leave it.** The network was published or tuned with it, as DenseNet and WideResNet were.

**Source.** Tompson et al. 2015, [Efficient Object Localization Using Convolutional
Networks](https://arxiv.org/abs/1411.4280), section 3.2; Ghiasi, Lin and Le 2018,
[DropBlock](https://arxiv.org/abs/1810.12890), section 1.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from dropseed.audit.finding import Severity
from dropseed.audit.reading.facts import dotted
from dropseed.audit.reading.file import File, Hit, argument, number
from dropseed.audit.reading.flow import apart, dropped_nothing, flow
from dropseed.audit.reading.steps import Step
from dropseed.audit.rule import Rule

BETWEEN = ("activation", "identity", "batch norm", "norm", "max pool", "mean pool", "resize")


_POOLS = ("max pool", "mean pool")
_CONVOLUTION = re.compile(r"conv\w*[23]d$", re.IGNORECASE)
_ACTIVATION = re.compile(r"norm|activ|nonlinearity|swish|silu|relu|gelu|\bact\d?\b", re.IGNORECASE)


def check(file: File) -> Iterator[Hit]:
    """Yield the element-wise dropouts that act on maps."""
    for place, _, maps in flow(file).found(lambda step: _source(step, file), "elementwise"):
        message = f"element-wise dropout on maps, beside `{maps.name}`: neighbours are alike"
        yield file.hit(place, message)


def _source(step: Step, file: File) -> Step | None:
    """The convolution whose maps a dropout acts on, or that takes what the dropout gives."""
    if dropped_nothing(step) or _pooled_to_one(step):
        return None
    maps = next((at for at in step.before(*BETWEEN) if _maps(at)), None)
    if maps is not None:
        return None if apart(maps, step, file) else maps
    before = step.before("batch norm", "identity")
    if not any(at.family in ("activation", *_POOLS) or _activates(at) for at in before):
        return None
    normal = ("batch norm", *_POOLS)
    any_kernel = any(at.family in normal for at in step.before("activation", "identity"))
    after = (at for at in step.after(*BETWEEN) if _convolves(at))
    maps = next((at for at in after if any_kernel or _maps(at)), None)
    return None if maps is None or apart(step, maps, file) else maps


def _maps(step: Step) -> bool:
    """Whether a step is a convolution over neighbours, in two or three dimensions."""
    if not _convolves(step) or not isinstance(step.site, ast.Call):
        return False
    keras = not step.kind.startswith("torch.")
    size = argument(step.site, 1 if keras else 2, "kernel_size")
    sizes = size.elts if isinstance(size, ast.Tuple | ast.List) else [size]
    return not all(number(at) == 1 for at in sizes)


def _convolves(step: Step) -> bool:
    """Whether a step is a convolution, as `DepthwiseConv2d` of the project is by its name."""
    return step.family in ("conv2", "conv3") or bool(_CONVOLUTION.search(step.name))


def _activates(step: Step) -> bool:
    """Whether a function or layer of the project normalizes or activates, by its name."""
    func = step.node.func if isinstance(step.node, ast.Call) else None
    return not step.family and bool(_ACTIVATION.search(f"{step.name} {dotted(func)}"))


def _pooled_to_one(step: Step) -> bool:
    """Whether global pooling lies between the maps and the dropout."""
    passed = ("activation", "identity", "batch norm", "norm")
    return any(
        at.name.lower().replace("_", "").startswith(("adaptive", "global"))
        for at in step.before(*passed)
    )


RULE = Rule("DS204", "elementwise-dropout-on-maps", Severity.NOTE, __doc__, check)
