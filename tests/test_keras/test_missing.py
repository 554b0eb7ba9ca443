"""What is said where Keras or its back end is missing."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(
    find_spec("keras") is None, reason="needs Keras: pip install 'dropseed[keras]'"
)

BLOCKED = """
import sys
sys.modules[{name!r}] = None
try:
    import dropseed.keras
except ImportError as error:
    print(type(error).__name__, error)
"""


def said(name, backend):
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-c", BLOCKED.format(name=name)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_without_keras():
    assert said("keras", "torch") == (
        "MissingExtraError `keras` is not installed. Install it with: pip install 'dropseed[keras]'"
    )


@pytest.mark.parametrize(("backend", "module"), [("jax", "jax"), ("tensorflow", "tensorflow")])
def test_without_the_back_end(backend, module):
    text = said(module, backend)
    assert text.startswith(f"ImportError Keras's back end needs `{module}`")
    assert 'os.environ["KERAS_BACKEND"]' in text


def test_the_core_imports_no_keras():
    code = "import sys, dropseed, dropseed.mask; dropseed.keep; print('keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
