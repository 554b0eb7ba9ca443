"""What other tools start the auditor by: the pre-commit hook and the GitHub Action."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dropseed.audit.rules import RULES

yaml = pytest.importorskip("yaml", reason="needs PyYAML, which comes with the extra `dev`")

ROOT = Path(__file__).parents[2]
WRONG = "import torch.nn.functional as F\n\n\ndef f(x):\n    return F.dropout(x, 0.5)\n"
MAIN = "import sys; from dropseed.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A folder with a file that has a finding, and `dropseed` where the action installs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    program = tmp_path / "dropseed" / "bin" / "dropseed"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{MAIN}' \"$@\"\n")
    program.chmod(0o755)
    (tmp_path / "a.py").write_text(WRONG)
    (tmp_path / "b c.py").write_text("x = 1\n")
    return program


def test_the_hook(command, tmp_path):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert hook["id"] == "dropseed-audit"
    assert {"python", "jupyter"} == set(hook["types_or"])
    words = [str(command), *hook["entry"].split()[1:]]
    assert subprocess.run([*words, "b c.py"], cwd=tmp_path, check=False).returncode == 0
    assert subprocess.run([*words, "a.py", "b c.py"], cwd=tmp_path, check=False).returncode == 1


@pytest.fixture
def step(command, tmp_path):
    """Run the action's audit; returns its exit status, the auditor's, and the log."""
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    (script,) = [at["run"] for at in action["runs"]["steps"] if at.get("id") == "audit"]

    def run(**inputs):
        given = {name: value["default"] for name, value in action["inputs"].items()} | inputs
        env = os.environ | {
            "RUNNER_TEMP": str(tmp_path),
            "GITHUB_OUTPUT": str(tmp_path / "out"),
            "PATHS": given["paths"],
            "ARGS": given["args"],
        }
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        status = subprocess.run(shell, cwd=tmp_path, env=env, check=False).returncode
        log = (tmp_path / "dropseed.sarif").read_text()
        return status, (tmp_path / "out").read_text(), json.loads(log) if log else None

    return run


def test_the_action(step):
    status, out, log = step()
    assert (status, out) == (0, "status=1\n")
    (result,) = log["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "a.py"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"args": "--ignore DS101"}, "status=0\n"),
        ({"paths": "dropseed cache"}, "status=0\n"),
        ({"paths": "cache\na.py", "args": "--severity\nnote"}, "status=1\n"),
    ],
)
def test_inputs_of_the_action(inputs, expected, step, tmp_path):
    (tmp_path / "cache").mkdir()
    status, out, log = step(**inputs)
    assert (status, out) == (0, expected)
    assert len(log["runs"][0]["tool"]["driver"]["rules"]) == len(RULES)


def test_wrong_use_fails_the_action(step):
    status, out, log = step(args="--select DS9")
    assert (status, out, log) == (1, "status=2\n", None)


def test_inputs_are_no_commands(step, tmp_path):
    step(paths="$(touch ran) ; touch ran", args="`touch ran`")
    assert not (tmp_path / "ran").exists()
