"""DS104: attention dropout that stays on in evaluation."""

import pytest

from dropseed.audit.rules import attention_always_on
from test_audit.rule_cases import fixed, hits, marked, marked_in, mutants, scanned

CODE = "DS104"

WRONG = [
    pytest.param(
        """
        class Attention(nn.Module):
            def __init__(self, dropout):
                super().__init__()
                self.dropout = dropout
                self.drop = nn.Dropout(dropout)

            def forward(self, q, k, v):
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout)  # wrong
                return F.scaled_dot_product_attention(x, x, x, None, self.drop.p)  # wrong
        """,
        id="at the rate of the constructor",
    ),
    pytest.param(
        """
        from flash_attn import flash_attn_func, flash_attn_varlen_func
        from flash_attn.flash_attn_interface import flash_attn_unpadded_qkvpacked_func as packed

        class Attention(nn.Module):
            def forward(self, q, k, v, at, longest):
                x = flash_attn_func(q, k, v, self.p, causal=True)  # wrong
                x = flash_attn_varlen_func(q, k, v, at, at, longest, longest, 0.1)  # wrong
                return packed(x, at, longest, self.p)  # wrong
        """,
        id="flash-attn",
    ),
    pytest.param(
        """
        import xformers.ops

        class Attention(nn.Module):
            def forward(self, q, k, v):
                return xformers.ops.memory_efficient_attention(q, k, v, p=self.p)  # wrong
        """,
        id="xformers",
    ),
    pytest.param(
        """
        def attend(q, k, v, dropout_p=0.0):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)  # wrong

        class Attention(nn.Module):
            def forward(self, q, k, v):
                return attend(q, k, v, self.config.attention_dropout)
        """,
        id="in a function that gets the rate from forward",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                rate = self.p if self.use_dropout else 0.0
                return F.scaled_dot_product_attention(  # wrong
                    q, k, v, dropout_p=rate, is_causal=self.training
                )
        """,
        id="where the mode switches something else",
    ),
]

RIGHT = [
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(
                    q, k, v, dropout_p=self.p if self.training else 0.0
                )
        """,
        id="switched",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                p = 0.0 if not self.training else self.drop.p
                return F.scaled_dot_product_attention(q, k, v, None, p)
        """,
        id="switched in a local",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p * self.training)
        """,
        id="multiplied by the switch",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                dropout_p = self.p
                if not self.training:
                    dropout_p = 0.0
                return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        """,
        id="set to 0 in evaluation",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                if self.training:
                    return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p)
                return F.scaled_dot_product_attention(q, k, v)
        """,
        id="under the switch",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
                return F.scaled_dot_product_attention(x, x, x, is_causal=True)
        """,
        id="without a rate",
    ),
    pytest.param(
        """
        def sdpa_attention_forward(module, query, key, value, dropout=0.0, **kwargs):
            return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        """,
        id="a rate whose giver can't be seen",
    ),
    pytest.param(
        """
        def attend(q, k, v, dropout_p=0.0, training=False):
            if not training:
                dropout_p = 0.0
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)

        class Attention(nn.Module):
            def forward(self, q, k, v):
                return attend(q, k, v, self.p, self.training)
        """,
        id="a function with a switch",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def _attend(self, q, k, v, rate):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=rate)

            def forward(self, q, k, v):
                return self._attend(q, k, v, self.p if self.training else 0.0)
        """,
        id="a method whose caller switches the rate",
    ),
    pytest.param(
        """
        from flash_attn.flash_attn_triton import flash_attn_func

        class Attention(nn.Module):
            def forward(self, q, k, v, bias):
                return flash_attn_func(q, k, v, bias, True)
        """,
        id="flash-attn's kernels in Triton, without dropout",
    ),
    pytest.param(
        """
        import xformers.ops as xops

        class Attention(nn.Module):
            def forward(self, q, k, v, mask):
                x = xops.memory_efficient_attention(q, k, v, attn_bias=mask)
                return xops.memory_efficient_attention(x, x, x, p=self.p if self.training else 0.0)
        """,
        id="xformers, switched or without a rate",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def __init__(self):
                super().__init__()
                self.attention_dropout = 0.0

            def forward(self, q, k, v):
                rate = self.attention_dropout
                return F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        """,
        id="a rate that is always 0",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def forward(self, q, k, v):
                if not self.training:
                    self.dropout_p = 0
                return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout_p)
        """,
        id="an attribute that the mode sets",
    ),
    pytest.param(
        """
        class Attention(nn.Module):
            def train(self, mode=True):
                self.dropout_p = self.p if mode else 0.0
                return super().train(mode)

            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout_p)
        """,
        id="an attribute that train sets",
    ),
    pytest.param(
        """
        class BayesianAttention(nn.Module):
            def forward(self, q, k, v):
                return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p)
        """,
        id="meant, by the name",
    ),
]

CASES = [*WRONG, *RIGHT]


@pytest.mark.parametrize("text", CASES)
def test_hits(text):
    assert hits(text, CODE) == marked(text)


def test_files_are_taken_together(tmp_path):
    files = {
        "net/ops.py": "from torch.nn.functional import scaled_dot_product_attention as attend",
        "net/base.py": """
            from torch import nn

            class Base(nn.Module):
                @property
                def rate(self):
                    return self.p if self.training else 0.0
        """,
        "net/model.py": """
            from .base import Base
            from .ops import attend

            class Attention(Base):
                def forward(self, q, k, v):
                    q = attend(q, k, v, dropout_p=self.rate)
                    return attend(q, k, v, dropout_p=self.p)  # wrong
        """,
        "test_attention.py": """
            from net.ops import attend

            def test_attend(q):
                assert attend(q, q, q, dropout_p=0.5).isfinite()
        """,
    }
    assert scanned(tmp_path, files, CODE) == marked_in(files)


FIXES = [
    ("dropout_p=self.p", "dropout_p=self.p if self.training else 0.0"),
    ("dropout_p=(self.p)", "dropout_p=(self.p if self.training else 0.0)"),
    ("None, 0.1", "None, 0.1 if self.training else 0.0"),
    (
        "dropout_p=self.p if self.flash else 0.1",
        "dropout_p=(self.p if self.flash else 0.1) if self.training else 0.0",
    ),
]


@pytest.mark.parametrize(("before", "after"), FIXES)
def test_fix(before, after):
    text = (
        "class Attention(nn.Module):\n    def forward(self, q, k, v):\n"
        "        return F.scaled_dot_product_attention(q, k, v, {})\n"
    )
    assert fixed(text.format(before), CODE) == text.format(after)
    assert hits(text.format(after), CODE) == []


def test_no_fix_outside_of_a_module():
    text = "def attend(q, k, v):\n    return F.scaled_dot_product_attention(q, k, v, None, 0.1)\n"
    assert hits(text, CODE) == [2]
    assert fixed(text, CODE) == text


MUTANTS = [
    ("rate is not None and stays_on(call, rate, file)", "rate is not None"),
    ("rate is not None and stays_on(call, rate, file)", "stays_on(call, rate, file)"),
    ("stays_on(call, rate, file)", "stays_on(call, None, file)"),
    ("argument(call, position, keyword)", "argument(call, 99, keyword)"),
    ("argument(call, position, keyword)", "argument(call, position, 'p')"),
]


def test_mutants():
    assert mutants(attention_always_on, MUTANTS, CASES) == []
