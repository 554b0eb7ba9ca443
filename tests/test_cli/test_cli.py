"""The command line, called as the console script calls it."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import dropseed
from dropseed import Key, cli, drop_block, keep
from dropseed.errors import DataError
from dropseed.lab import data, show
from dropseed.lab.run import CHECKPOINT, METRICS, WEIGHTS
from dropseed.lab.settings import Settings
from dropseed.mask.block import gamma_factor

SHORT = ["--epochs", "2", "--train-size", "200", "--batch-size", "50"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, digits):
    """A folder of the test's own, real digits in MNIST's place, and an empty cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda directory=None: digits)
    monkeypatch.setenv(data.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)


@pytest.fixture
def call(capsys):
    """Run the command line; returns status, stdout and stderr."""

    def run(*words):
        status = cli.main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call, monkeypatch):
    """Run a command line that must fail before any data are loaded; returns its one sentence."""

    def run(*words, status=2):
        monkeypatch.setattr(data, "load", lambda directory=None: pytest.fail("data were loaded"))
        returned, out, err = call(*words)
        assert (returned, out) == (status, "")
        assert re.fullmatch(r"dropseed: [^\n]+\n", err)
        return err

    return run


def test_version(call):
    assert call("--version") == (0, f"dropseed {dropseed.__version__}\n", "")


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_help(words, call):
    status, out, err = call(*words)
    assert (status, err) == (0, "")
    assert all(command in out for command in ("train", "demo", "trace", "mask"))


@pytest.mark.parametrize("command", ["train", "demo", "trace", "mask"])
def test_help_of_a_command(command, call):
    assert call(command, "--help")[0] == 0


def test_the_defaults_that_help_shows_are_the_settings(call):
    shown = call("train", "--help")[1]
    defaults = vars(Settings())
    for name in ("epochs", "rate", "seed", "batch_size", "train_size", "device"):
        option = f"--{name.replace('_', '-')} "
        line = next(line for line in shown.splitlines() if option in line)
        assert f"[default: ({defaults[name]})]" in line


def test_train(call, tmp_path):
    status, out, err = call("train", *SHORT)
    assert (status, err) == (0, "")
    assert "runs/mnist-001" in out
    folder = tmp_path / "runs" / "mnist-001"
    metrics = json.loads((folder / METRICS).read_text())
    assert f"Test accuracy {metrics['epochs'][-1]['test_accuracy']:.2%}" in out
    before = (folder / WEIGHTS).read_bytes()
    assert call("train", *SHORT)[0] == 0
    assert (folder / WEIGHTS).read_bytes() == before
    assert (tmp_path / "runs" / "mnist-002" / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("framework", ["keras", "jax"])
def test_train_in_another_framework(framework, call, tmp_path):
    for name in ("torch", framework):
        assert call("train", *SHORT, "--framework", name, "--out", name)[0] == 0
    found, expected = (
        json.loads((tmp_path / name / METRICS).read_text())["epochs"]
        for name in (framework, "torch")
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-3)
    assert call("train", "--resume", "--out", framework)[0] == 0  # finished, and of its framework


def test_a_framework_that_does_not_fit(refused, monkeypatch):
    assert "`framework` must be one of torch, keras, jax" in refused(
        "train", "--framework", "mxnet"
    )
    asked = ("train", "--framework", "jax")
    assert "`device` must be left out: jax chooses its own" in refused(*asked, "--device", "cuda")
    assert "`--ledger` watches PyTorch" in refused(*asked, "--ledger", "book.jsonl")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "keras" else name)
    asked = ("train", "--framework", "keras")
    assert "pip install 'dropseed[keras]'" in refused(*asked, status=1)


def test_train_with_a_ledger(call, tmp_path):
    status, out, err = call("train", *SHORT, "--out", "run", "--ledger", "book.jsonl")
    assert (status, err) == (0, "")
    lines = [json.loads(line) for line in (tmp_path / "book.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["phase"] == "training"]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert {(line["site"], line["active"], line["asked"]) for line in training} == {
        ("dropout", True, 0.5)
    }
    assert "1 site (dropout): active in all 8 training steps, off in evaluation." in out
    plain = (tmp_path / "run" / WEIGHTS).read_bytes()
    assert call("train", *SHORT, "--out", "other")[0] == 0
    assert (tmp_path / "other" / WEIGHTS).read_bytes() == plain


def test_a_ledger_that_cannot_be_written(call, tmp_path):
    status, out, err = call("train", *SHORT, "--ledger", "/dev/full/book.jsonl")
    assert (status, out) == (1, "")
    assert re.fullmatch(r"dropseed: [^\n]*/dev/full/book\.jsonl[^\n]*\n", err)
    assert list(tmp_path.iterdir()) == []


def test_demo(call, tmp_path):
    status, out, err = call("demo", *SHORT[:4], "--out", "both")
    assert (status, err) == (0, "")
    for place in (
        "comparison.png",
        "without-dropout/model.safetensors",
        "with-dropout/model.safetensors",
    ):
        assert f"both/{place}" in out
        assert (tmp_path / "both" / place).stat().st_size > 10_000
    assert re.search("after the last epoch.*without dropout.*with dropout", out)
    assert call("demo", *SHORT[:4], "--out", "both", "--resume")[0] == 0


def test_trace(call):
    status, out, err = call("trace", "--input", "1x28x28")
    assert (status, err) == (0, "")
    dropped = int((~keep(Key(0).at("dropout"), 0.5, 1600)).sum())
    assert re.search(r"dropout\s+│ Dropout\s+│ 1x1600\s+│\s+0 │", out)
    assert re.search(r"whole model.*34,826", out)
    assert (
        f"dropout, training:  of 1,600 values {dropped} dropped, the {1600 - dropped} survivors "
        "times 2; another mask at the next pass" in out
    )
    assert "dropout, inference: all 1,600 values pass unchanged, deterministic" in out


def test_trace_of_another_model(call, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make(): return nn.Sequential(nn.Linear(4, 2))\n"
    )
    status, out, _ = call("trace", "mine:make", "--input", "4")
    assert status == 0
    assert "1x2" in out
    assert "No dropout layer was called." in out


def test_trace_shows_what_is_wrong(call, tmp_path):
    (tmp_path / "wrong.py").write_text(
        "from torch import nn\n"
        "def make(): return nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4))\n"
    )
    status, out, _ = call("trace", "wrong:make", "--input", "4")
    assert status == 0
    assert re.search(r"│ 1 +│ Dropout +│ 1x4 +│ +0 │ DS201", out)
    assert re.search(r"^DS201 1: ", out, re.MULTILINE)
    assert "findings" not in call("trace")[1]


def test_trace_of_a_model_that_cannot_be_audited(call, tmp_path):
    (tmp_path / "one.py").write_text(
        "from torch import nn\nclass One(nn.Module):\n    def forward(self, x): return x.view(4)\n"
    )
    status, out, _ = call("trace", "one:One", "--input", "4")
    assert status == 0
    assert "Not audited: " in out


def first_line(call, *words):
    return call("mask", "--shape", "90", *words)[1].splitlines()[0]


def test_trace_names_a_site_that_was_fixed_elsewhere(call, tmp_path):
    """A converted part keeps its sites in a larger model: there its name is not its site's."""
    (tmp_path / "larger.py").write_text(
        "from torch import nn\nimport dropseed.torch as dst\n"
        "def make():\n"
        "    part = nn.Sequential(nn.Dropout(0.5))\n"
        "    dst.convert(part)\n"
        "    return nn.Sequential(part, dst.Dropout(0.5))\n"
    )
    status, out, _ = call("trace", "larger:make", "--input", "90")
    assert status == 0
    (number,) = re.findall(r"^0\.0 \(site number (\d+)\), training:", out, re.MULTILINE)
    dropped = first_line(call, "--site-number", number).count(".")
    assert f"0.0 (site number {number}), training:  of 90 values {dropped} dropped" in out
    dropped = first_line(call, "--site", "1").count(".")
    assert f"\n1, training:  of 90 values {dropped} dropped" in out


def test_mask(call, tmp_path):
    words = "--seed 3 --site features.3 --step 17 --shape 8,90 --rate 0.25 --png a/mask.png"
    status, out, err = call("mask", *words.split())
    assert (status, err) == (0, "")
    mask = keep(Key(3, step=17).at("features.3"), 0.25, (8, 90))
    lines = out.splitlines()
    assert lines[:8] == ["".join("█" if kept else "." for kept in row) for row in mask]
    assert f"kept {mask.sum()} of 720 ({mask.mean():.2%})" in lines[8]
    assert (tmp_path / "a" / "mask.png").read_bytes().startswith(b"\x89PNG")


def test_mask_of_a_numbered_site(call):
    named = call("mask", "--site", "features.3", "--shape", "90")[1].splitlines()[0]
    numbered = call("mask", "--site-number", "461642344", "--shape", "90")[1].splitlines()[0]
    assert named == numbered


def test_mask_of_a_layer_whose_name_is_a_number(call):
    """Layers of a Sequential have such names; `--site` is a name, always."""
    shown = call("mask", "--site", "2", "--seed", "1", "--step", "17", "--shape", "40")[1]
    kept = keep(Key(1, step=17).at("2"), 0.5, 40)
    assert shown.splitlines()[0] == "".join("█" if k else "." for k in kept)


def test_an_empty_mask(call, tmp_path):
    status, out, err = call("mask", "--shape", "0,5", "--png", "empty.PNG")
    assert (status, err) == (0, "")
    assert "kept 0 of 0\n" in out
    assert (tmp_path / "empty.PNG").read_bytes().startswith(b"\x89PNG")


def test_mask_of_a_variant(call):
    rows = call("mask", "--variant", "locked", "--shape", "1,3,30")[1].splitlines()[:3]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0] == call("mask", "--shape", "1,30")[1].splitlines()[0]


def test_mask_of_blocks(call):
    words = "--variant drop_block --block-size 3 --shape 1,2,6,30 --rate 0.3 --seed 2"
    status, out, err = call("mask", *words.split())
    assert (status, err) == (0, "")
    gamma = 0.3 * gamma_factor((6, 30), (3, 3))
    rows = drop_block(Key(2), gamma, (1, 2, 6, 30), 3).reshape(12, 30)
    assert out.splitlines()[:12] == ["".join("█" if kept else "." for kept in row) for row in rows]
    assert "drop_block of 3, seed 2" in out


BASE = """
import sys
for name in ("torch", "numba", "matplotlib", "pooch", "safetensors"):
    sys.modules[name] = None
from dropseed.cli import main
sys.exit(main(sys.argv[1:]))
"""


def fresh(code, *words, **options):
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, **options
    )


def test_mask_needs_the_base_install_alone():
    run = fresh(BASE, "mask", "--shape", "8,16")
    assert (run.returncode, run.stderr) == (0, "")
    assert "kept " in run.stdout


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["mask", "--shape", "8,16", "--png", "m.png"], "matplotlib"),
        (["train"], "torch"),
        (["demo"], "torch"),
        (["trace"], "torch"),
    ],
)
def test_a_missing_extra(words, package):
    run = fresh(BASE, *words)
    assert run.returncode == 1
    assert run.stderr == (
        f"dropseed: `{package}` is not installed. Install it with: pip install 'dropseed[lab]'\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["train", "--rate", "1.5"],
            "`rate` must be in [0, 1]; got 1.5. It is the fraction dropped",
        ),
        (["train", "--rate", "nan"], "`rate` must be in [0, 1]; got nan."),
        (["train", "--rate", "half"], "Invalid value for '--rate': "),
        (["train", "--epochs", "0"], "`epochs` must be in [1, 10001); got 0."),
        (["train", "--train-size", "60001"], "`train_size` must be in [1, 60001); got 60001."),
        (["train", "--seed", "-1"], "`seed` must be in"),
        (["train", "--threads", "0"], "`threads` must be in"),
        (["train", "--workers", "-1"], "`workers` must be in [0, 256]; got -1."),
        (["train", "--device", "abacus"], "`device` 'abacus' is unknown to torch or absent here."),
        (["demo", "--rate", "-1"], "`rate` must be in [0, 1]; got -1.0."),
        (["trace", "--input", "1x28xa"], "`--input` must read like 1x28x28; got '1x28xa'."),
        (["trace", "--input", "28x28x1"], "`--input` 28x28x1 is not what the model takes"),
        (
            ["trace", "--input", "1x100000000x1000000"],
            "`--input` 1x100000000x1000000 is too large; at most 16,777,216 values",
        ),
        (["trace", "--input", "1x" * 64 + "1"], "`--input` must read like 1x28x28"),
        (["trace", "nowhere:make"], "`MODEL` nowhere:make could not be made (ModuleNotFoundError"),
        (["trace", "nowhere"], "`MODEL` must read module:factory; got 'nowhere'."),
        (["trace", "builtins:dict"], "`MODEL` builtins:dict must make a torch.nn.Module"),
        (["mask", "--shape", "8,"], "`--shape` must read like 8,1600; got '8,'."),
        (["mask", "--shape", "8,-1"], "`--shape` must read like 8,1600; got '8,-1'."),
        (["mask", "--shape", "9" * 5000], "`--shape` must read like 8,1600; got '999"),
        (["mask", "--shape", "99999999999"], "at most 67,108,864 can be shown"),
        (["mask", "--shape", "8", "--rate", "2"], "`rate` must be in [0, 1]; got 2.0."),
        (
            ["mask", "--shape", "8", "--site-number", "4294967296"],
            "`site` must be in [0, 4294967296)",
        ),
        (["mask", "--shape", "8", "--site", "a", "--site-number", "1"], "exclude each other"),
        (["mask", "--shape", "8", "--variant", "spatial"], "takes (N, C, *)"),
        (["mask", "--shape", "8", "--variant", "blob"], "`variant` must be one of"),
        (["mask", "--shape", "1,1,4,4", "--variant", "drop_block"], "`block_size` is needed"),
        (
            ["mask", "--shape", "1,1,4,4", "--variant", "drop_block", "--block-size", "5"],
            "`block_size` must be between 1 and the map (4, 4) in each dimension; got 5.",
        ),
        (
            ["mask", "--shape", "1,1,4,4", "--block-size", "2"],
            '`block_size` and `shared` belong to "drop_block"',
        ),
        (["mask", "--shape", "1_0,3"], "`--shape` must read like"),
        (["mask", "--shape", "8", "--png", "a.jpg"], "`--png` must end in .png; got 'a.jpg'."),
        (["mask", "--shape", "8", "--step", "-1"], "`step` must be in [0, 4294967296)"),
        (["mask"], "Missing option '--shape'. See `dropseed --help`."),
        (["paint"], "No such command 'paint'."),
        (["train", "--colour", "red"], "No such option: --colour"),
    ],
)
def test_wrong_use(words, sentence, refused, tmp_path):
    assert sentence in refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_not_overwritten(call, refused, tmp_path):
    assert call("train", *SHORT, "--out", "run")[0] == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert "`--out` run is not empty. Continue the run there with `--resume`" in refused(
        "train", *SHORT, "--out", "run", status=1
    )
    for option, value in (("rate", "0.4"), ("batch-size", "32"), ("seed", "1")):
        sentence = refused("train", "--resume", "--out", "run", f"--{option}", value)
        assert f"`{option.replace('-', '_')}` is" in sentence
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_nothing_to_resume(refused, tmp_path):
    assert "There is no run to resume" in refused("train", "--resume", status=1)
    assert "There is no run to resume" in refused("train", "--resume", "--out", "a", status=1)
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_checkpoint(refused, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"not a checkpoint")
    sentence = refused("train", "--resume", "--out", "run", status=1)
    assert f"run/{CHECKPOINT} is damaged" in sentence
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == b"not a checkpoint"


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/dropseed", "/dev/full"])
@pytest.mark.parametrize("command", ["train", "demo"])
def test_an_output_folder_that_cannot_be_written(out, command, refused, tmp_path):
    (tmp_path / "file").touch()
    assert out in refused(command, "--out", out, status=1)


def test_a_picture_that_cannot_be_written(call):
    status, _, err = call("mask", "--shape", "8", "--png", "/dev/full/mask.png")
    assert status == 1
    assert re.fullmatch(
        r"dropseed: File exists \(/dev/full\)\. Choose a folder, not a file\.\n", err
    )


def test_a_full_disk_during_the_run(call, monkeypatch, tmp_path):
    """The checkpoint of the first epoch is there after the second's couldn't be written."""
    sync, calls = os.fsync, iter(range(100))

    def full(handle):
        if next(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, err = call("train", *SHORT, "--out", "run")
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"dropseed: No space left on device (run/{CHECKPOINT}). Free some space")
    assert len(json.loads((tmp_path / "run" / METRICS).read_text())["epochs"]) == 1
    assert call("train", "--resume", "--out", "run")[0] == 0


MAIN = "import sys; from dropseed.cli import main; sys.exit(main(sys.argv[1:]))"


def test_a_full_disk_behind_stdout():
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [sys.executable, "-c", MAIN, "mask", "--shape", "8"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert run.returncode == 1
    assert re.fullmatch(r"dropseed: No space left on device\. [^\n]+\n", run.stderr)


def test_data_that_are_not_mnist(call, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    status, _, err = call("train", "--data", "nowhere")
    assert status == 1
    assert re.fullmatch(
        r"dropseed: MNIST could not be loaded; tried nowhere [^\n]+`--data DIR`\.\n", err
    )


@pytest.mark.parametrize("command", ["train", "demo"])
def test_data_that_fail_leave_no_folder_in_the_way(command, call, monkeypatch, tmp_path):
    def fail(directory=None):
        raise DataError("no network")

    words = [command, *SHORT[:4], "--out", "deep/run"]
    with monkeypatch.context() as patch:
        patch.setattr(data, "load", fail)
        assert call(*words) == (1, "", "dropseed: no network\n")
    assert list(tmp_path.iterdir()) == []
    assert call(*words)[0] == 0


def test_memory_that_does_not_suffice(call, monkeypatch):
    def fail(*arguments):
        raise MemoryError("Unable to allocate 728. TiB")

    monkeypatch.setattr(show, "whole_mask", fail)
    assert call("mask", "--shape", "8") == (
        1,
        "",
        "dropseed: Out of memory. Ask for something smaller, or free some memory.\n",
    )


@pytest.mark.parametrize("where", [0, 1, 3])
def test_tracebacks_on_request_only(where, monkeypatch):
    words = ["train", "--rate", "2"]
    with pytest.raises(ValueError, match="`rate`"):
        cli.main([*words[:where], "--debug", *words[where:]])
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match="`rate`"):
        cli.main(words)


def test_ctrl_c_before_training(call, monkeypatch):
    def interrupted(directory=None):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "load", interrupted)
    assert call("train", *SHORT) == (
        130,
        "",
        "dropseed: Interrupted. A run that had begun goes on with `--resume`.\n",
    )


TRAIN_DIGITS = """
import sys
import numpy as np
from dropseed.cli import main
from dropseed.lab import data
arrays = np.load("digits.npz")
data.load = lambda directory=None: data.Mnist(*(arrays[f"arr_{i}"] for i in range(4)))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "0"), (signal.SIGTERM, "2")])
def test_a_real_signal(number, workers, call, digits, tmp_path):
    """Sent to the whole process group, as a terminal does; then the run is resumed."""
    import numpy as np

    np.savez("digits.npz", *digits)
    words = [
        "train",
        "--epochs",
        "200",
        "--train-size",
        "200",
        "--batch-size",
        "20",
        "--threads",
        "1",
    ]
    running = subprocess.Popen(
        [sys.executable, "-c", TRAIN_DIGITS, *words, "--out", "run", "--workers", workers],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "run" / METRICS
    deadline = time.monotonic() + 60
    while not (metrics.exists() and json.loads(metrics.read_text())["epochs"]):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, number)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 128 + number
    assert re.fullmatch(
        r"dropseed: Interrupted after step \d+ of 2000, saved in run\. Give the same command "
        r"with `--resume` to go on\.\n",
        err,
    )
    state = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert f"after step {state['position']['step']} of" in err
