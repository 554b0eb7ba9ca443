"""The cases, the doctests and Keras's own tests, on each back end that is installed."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LAYERS = ("dropout", "spatial_dropout", "alpha_dropout", "gaussian_dropout")
# Keras converts torch's tensors in a way that NumPy has deprecated.
IGNORED = "ignore:__array__ implementation:DeprecationWarning"

pytestmark = pytest.mark.skipif(
    find_spec("keras") is None, reason="needs Keras: pip install 'dropseed[keras]'"
)


def backend(name):
    missing = find_spec(name) is None
    return pytest.param(
        name, marks=pytest.mark.skipif(missing, reason=f"needs {name}: pip install {name}")
    )


each_backend = pytest.mark.parametrize("name", [backend(n) for n in ("torch", "jax", "tensorflow")])


def run(name, *arguments, cwd, paths=()):
    """Run pytest on a back end in a process of its own."""
    environment = os.environ | {
        "KERAS_BACKEND": name,
        "DROPSEED_KERAS_CASES": "1",
        "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@each_backend
def test_cases(name):
    code, output = run(name, "-W", IGNORED, HERE / "cases", ROOT / "src/dropseed/keras", cwd=ROOT)
    assert code == 0, output


@each_backend
def test_keras_own_tests_pass_with_our_layers(name, tmp_path):
    folder = Path(find_spec("keras").origin).parent / "src" / "layers" / "regularization"
    files = [folder / f"{layer}_test.py" for layer in LAYERS]
    plugin = ("-c", os.devnull, "--rootdir", tmp_path, "-p", "substitutes")
    code, output = run(name, *plugin, *files, cwd=tmp_path, paths=[HERE, ROOT / "src"])
    assert code == 0, output
    assert int(re.search(r"dropseed drew (\d+) times", output)[1]) > 30
    assert int(re.search(r"(\d+) passed", output)[1]) >= 31
    assert "deselected" not in output


def test_a_failing_case_fails(tmp_path):
    case = tmp_path / "test_case.py"
    case.write_text("import keras\n\ndef test():\n    assert keras.backend.backend() == 'none'\n")
    name = next(n for n in ("torch", "jax", "tensorflow") if find_spec(n))
    code, output = run(name, "-W", IGNORED, case, cwd=tmp_path)
    assert code == 1, output
    assert f"'{name}' == 'none'" in output
