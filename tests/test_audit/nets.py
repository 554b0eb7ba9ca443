"""What the tests of the model's checks share."""

from torch import nn

from dropseed.audit.running.model import check_model


class Net(nn.Module):
    """A model of some modules and a forward function, which is given the model too."""

    def __init__(self, forward, **modules):
        super().__init__()
        self._run = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, *args, **kwargs):
        return self._run(self, *args, **kwargs)


def found(model, inputs):
    """The codes and sites of the findings of a model."""
    return {(note.code, note.site) for note in check_model(model, inputs).findings}


def codes(model, inputs):
    """The codes of the findings of a model."""
    return {code for code, _ in found(model, inputs)}
