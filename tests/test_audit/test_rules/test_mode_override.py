"""DS110: override of `train` or `eval` that forgets its parent, or the return value."""

from textwrap import dedent

import pytest

from dropseed.audit.rules import mode_override
from test_audit.rule_cases import fixed, hits, marked, marked_in, messages, mutants, scanned

CODE = "DS110"

NO_PARENT = [
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, loader):  # wrong
                for x in loader:
                    self.step(x)

        class Other(nn.Module):
            def train(self, mode, epochs=3):  # wrong
                for epoch in range(epochs):
                    self.step(mode)
        """,
        id="training loops",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):  # wrong
                self.backbone.eval()
        """,
        id="train without its parent",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):  # wrong
                pass

            def eval(self):  # wrong
                self.frozen = True
                return self
        """,
        id="nothing at all, and eval",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self):  # wrong
                for batch in self.data:
                    self.step(batch)
        """,
        id="a training loop in the place of train",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):  # wrong
                self.head.train()
                return self
        """,
        id="a child whose mode is fixed",
    ),
]

NO_RETURN = [
    pytest.param(
        """
        class LoraLinear(nn.Linear):
            def train(self, mode=True):  # wrong
                def turned(w):
                    return w.T

                nn.Linear.train(self, mode)
                self.weight.data -= turned(self.lora)
        """,
        id="a function inside that returns",
    ),
    pytest.param(
        """
        class Quantized(ABC):
            def train(self, mode=True):  # wrong
                self.weight.requires_grad = mode
                super().train(mode)
        """,
        id="a mix-in",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):  # wrong
                super().train(mode)
                self.freeze()
        """,
        id="train",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def eval(self):  # wrong
                super().eval()
                self.cache = None  # forget it
        """,
        id="eval",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):  # wrong
                nn.Module.train(self, mode and self.tuned)
                self.cache = None
        """,
        id="by the parent's name",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @torch.no_grad()
            def train(self, mode=True):  # wrong
                super().train(mode)
                if mode:
                    self.cache = {}
        """,
        id="without gradients",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode: bool = True):  # wrong
                self.training = mode
                for child in self.children():
                    child.train(mode)
        """,
        id="the parent's work done by hand",
    ),
    pytest.param(
        """
        class Pair(nn.Module):
            def train(self, mode=True):  # wrong
                self.student.train(mode)

            def eval(self):  # wrong
                self.student.eval()
        """,
        id="handed on",
    ),
]

WRONG = [*NO_PARENT, *NO_RETURN]

RIGHT = [
    pytest.param(
        """
        class Agent(Base):
            def train(self, mode=True):
                super().train(epochs=3)

            def eval(self):
                super().eval()
        """,
        id="another train of another parent",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):
                super().train(mode)
                self.freeze()
                return self
        """,
        id="both",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):
                return super(Net, self).train(mode and not self.frozen)

            def eval(self):
                return self.train(False)
        """,
        id="in one line",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):
                nn.Module.train(self, mode and self.tuned)
                self.cache = None
                return self
        """,
        id="both, by the parent's name",
    ),
    pytest.param(
        """
        class Frozen(nn.Module):
            def train(self, mode=True):
                \"\"\"A frozen network stays as it is.\"\"\"
                return self
        """,
        id="frozen",
    ),
    pytest.param(
        """
        class Exported(nn.Module):
            def train(self, mode=True):
                raise NotImplementedError("this model only predicts")
        """,
        id="refused",
    ),
    pytest.param(
        """
        class Trainer(Base):
            def train(self, loader):
                for x in loader:
                    self.step(x)

        class Net(nn.Module):
            def train(self, loader):
                for x in loader:
                    self.step(x)

            def eval(self):
                return self.train_mode(False)
        """,
        id="training loops of what may be no module, or has its own eval",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True, deep=False):
                super().train(mode)
                return self

        class Other(nn.Module):
            @property
            def train(self):
                return self.training and self.ready
        """,
        id="more arguments, or none",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def eval(self, loader):
                for x in loader:
                    print(self(x))
        """,
        id="an evaluation loop",
    ),
    pytest.param(
        """
        class Trainer:
            def train(self):
                self.model.train()

            def eval(self):
                self.model.eval()
        """,
        id="no module",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @property
            def train(self):
                return self._train
        """,
        id="a property",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @staticmethod
            def train(mode=True):
                print(mode)
        """,
        id="a static method",
    ),
    pytest.param(
        """
        def train(self, mode=True):
            pass
        """,
        id="a function",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):
                self.training = mode
                return self
        """,
        id="the flag set by hand",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):
                super().train(mode)
                if mode:
                    return self
                return self
        """,
        id="in two places",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @classmethod
            def train(cls, mode=True):
                cls.mode = mode
        """,
        id="a class method",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def forward(self, x):
                return x
        """,
        id="no override",
    ),
    pytest.param(
        """
        class Model(keras.Model):
            def train(self, mode=True):
                self.mode = mode
        """,
        id="Keras, which has no such method",
    ),
    pytest.param(
        """
        class Outer(nn.Module):
            class Settings:
                def train(self):
                    self.on = True
        """,
        id="a class inside a module",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def train(self, mode=True):
                self.model.train(mode=mode)
                return self
        """,
        id="handed on by keyword",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            def training_step(self, batch):
                self.train()
        """,
        id="a call",
    ),
    pytest.param(
        """
        class Net(nn.Module):
            @registered
            def train(self, mode=True):
                self.mode = mode
        """,
        id="a decorator that nobody knows",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


@pytest.mark.parametrize("text", NO_PARENT)
def test_says_that_the_parent_is_forgotten(text):
    said = ("does not call `super().", "`train` is something else here")
    assert all(any(part in message for part in said) for message in messages(text, CODE))
    assert fixed(text, CODE) == dedent(text).lstrip("\n")


@pytest.mark.parametrize("text", NO_RETURN)
def test_the_fix_returns_the_module(text):
    assert all(message.endswith("does not return the module") for message in messages(text, CODE))
    mended = fixed(text, CODE)
    assert hits(mended, CODE) == []
    assert mended.count("return self") == len(marked(text))
    lines = [line for line in mended.split("\n") if line.strip() != "return self"]
    assert lines == dedent(text).lstrip("\n").split("\n")


@pytest.mark.parametrize(
    "body",
    [
        " super().train(mode)",
        "\n        super().train(mode); self.mode = mode;",
    ],
)
def test_no_fix_where_a_line_holds_more(body):
    text = f"class Net(nn.Module):\n    def train(self, mode=True):{body}\n"
    assert hits(text, CODE) == [2]
    assert fixed(text, CODE) == text


def test_modules_are_known_through_other_files(tmp_path):
    files = {
        "net/base.py": "from torch import nn\nclass Base(nn.Module):\n    pass\n",
        "net/model.py": """
            from .base import Base

            class Net(Base):
                def train(self, mode=True):  # wrong
                    super().train(mode)
        """,
        "tests/test_model.py": """
            from net.base import Base

            class Net(Base):
                def train(self, mode=True):
                    super().train(mode)
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


MUTANTS = [
    ('if name == "train" and _hides(method, owner, file):', "if False:"),
    ("return plain and certain and", "return plain and"),
    (' and "eval" not in owner.methods', ""),
    (" and not _switches(method)\n\n\ndef _trivial", "\n\n\ndef _trivial"),
    ("not method.decorator_list and", ""),
    ("if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):", "if True:"),
    ("or _trivial(method)", ""),
    ("ast.Raise | ast.Return)", "ast.Raise)"),
    ("ast.Raise | ast.Return)", "ast.Return)"),
    ("if not file.is_module(owner) and not _calls_parent(method):", "if False:"),
    ('dotted(node) == "self.training"', "False"),
    ('if "self" in given:', "if False:"),
    ("set(given) == set(modes)", "True"),
    ("elif not _returns(method)", "else"),
    ("len(names) == 1 if", "True if"),
    ("set(names[1:]) <= MODES", "True"),
    ('"torch.no_grad", ', ""),
    ("any(file.name_of(at) not in _DECORATORS for at in marks)", "False"),
]


def test_mutants():
    assert mutants(mode_override, MUTANTS, CASES) == []
