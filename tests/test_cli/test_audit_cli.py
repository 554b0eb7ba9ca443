"""`dropseed audit`, called as the console script calls it."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dropseed import cli
from dropseed.audit.rules import RULES

MAIN = "import sys; from dropseed.cli import main; sys.exit(main(sys.argv[1:]))"

WRONG = """import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5)
"""
MENDED = WRONG.replace("0.5)", "0.5, training=self.training)")
RIGHT = "x = 1\n"
LINE = "7:16: DS101 `dropout` without `training=` drops in evaluation, too"


def book(*sources):
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    return json.dumps({"cells": cells, "nbformat": 4}, indent=1) + "\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of the test's own, and an empty cache."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    return folder


@pytest.fixture
def call(capfd):
    """Run `dropseed audit`; returns status, stdout and stderr."""

    def run(*words):
        status = cli.main(["audit", *map(str, words)])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def refused(call):
    """Run a command line that must fail; returns its one sentence."""

    def run(*words):
        status, out, err = call(*words)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"dropseed: [^\n]+\n", err)
        return err

    return run


def put(**files):
    """Write files, `a` as a.py."""
    for name, text in files.items():
        Path(f"{name}.py").write_text(text)


def test_nothing_is_found(call):
    put(a=RIGHT)
    assert call() == (0, "Found nothing in 1 file.\n", "")


def test_something_is_found(call):
    put(a=WRONG, b=RIGHT)
    out = f"a.py:{LINE}\nFound 1 error in 2 files (1 fixable with --fix).\n"
    assert call() == (1, out, "")
    assert call(".") == (1, out, "")
    assert call("--exit-zero") == (0, out, "")


def test_paths(call):
    Path("src/deep").mkdir(parents=True)
    put(**{"src/a": WRONG, "src/deep/b": WRONG, "c": WRONG})
    assert re.findall(r"^\S+?(?=:)", call("src", "c.py")[1], re.M) == [
        "c.py",
        "src/a.py",
        "src/deep/b.py",
    ]
    assert call("src/deep")[1].startswith("src/deep/b.py:")
    assert json.loads(call("src/deep", "--format", "json")[1])[0]["path"] == "b.py"
    assert call(Path("src/a.py").absolute())[1].startswith(str(Path("src/a.py").absolute()))


def test_an_empty_folder(call):
    assert call() == (0, "Found nothing in 0 files.\n", "")


def test_notebooks(call):
    Path("b.ipynb").write_text(book("x = 1", WRONG))
    assert call()[1].startswith(f"b.ipynb:cell 2:{LINE}\n")


def test_a_file_that_does_not_parse_is_one_finding(call):
    put(a="x = 1\nprint 'two'\n", b=WRONG)
    status, out, err = call()
    assert (status, err) == (1, "")
    assert re.match(
        r"a\.py:2:\d+: DS001 syntax error for Python 3\.\d+: [^\n]+\nb\.py:7:16: DS101 ", out
    )
    assert call("--select", "DS3")[0] == 1
    assert call("--ignore", "DS001,DS101")[0] == 0


def test_scanned_code_is_never_run(call):
    run = "import pathlib\npathlib.Path('ran').touch()\n"
    put(conftest=run, setup=run, a=f"import conftest\n{run}{WRONG}")
    assert call("--fix")[0] == 0
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.py"], "`PATHS` has 'gone.py', which does not exist."),
        (["a.py", "gone"], "`PATHS` has 'gone', which does not exist."),
        (["loop"], "`PATHS` has 'loop', which can't be read."),
        (["--select", "DS9"], "`--select` has DS9, which is no rule's code."),
        (["--select", "unused-ignores"], "Did you mean DS002?"),
        (["--ignore", ""], "`--ignore` needs a code"),
        (["--severity", "high"], "`--severity` must be one of error, warning, note; got 'high'."),
        (["--format", "xml"], "`--format` must be one of text, full, json, github, sarif, junit"),
        (["--explain", "DS999"], "`--explain` has DS999, which is no rule's code."),
        (["--explain", "unused-ignores"], "Did you mean DS002?"),
        (["--jobs", "0"], "`jobs` must be"),
        (["--jobs", "two"], "Invalid value for '--jobs'"),
        (["--baseline", "a.py"], "`--baseline` a.py can't be read"),
        (["--baseline", "."], "`--baseline` . can't be read"),
        (["--input", "1x2"], "`--input` and `--dtype` belong to `--model`."),
        (["--fix=maybe"], "'--fix'"),
        (["--colour"], "No such option: --colour"),
    ],
)
def test_wrong_use(words, sentence, refused, here):
    put(a=RIGHT)
    Path("loop").symlink_to("loop")
    assert sentence in refused(*words)
    assert sorted(path.name for path in here.iterdir()) == ["a.py", "loop"]


def test_a_wrong_configuration(refused):
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nslect = []\n")
    assert "has no key `slect`. Did you mean `select`?" in refused()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], "DS101 DS303"),
        (["--select", "DS1"], "DS101"),
        (["--select", "DS1", "--select", "DS303"], "DS101 DS303"),
        (["--select", "DS1,DS303"], "DS101 DS303"),
        (["--select", "ALL"], "DS101 DS303"),
        (["--select", "ALL", "--severity", "note"], "DS101 DS303 DS304"),
        (["--select", "DS304"], "DS304"),
        (["--ignore", "DS1"], "DS303"),
        (["--ignore", "DS"], ""),
        (["--severity", "error"], "DS101"),
        (["--severity", "note"], "DS101 DS303 DS304"),
    ],
)
def test_selection(words, found, call):
    more = "\n\nrnn = nn.LSTM(3, 3, dropout=0.5)\ndrop = nn.Dropout(0.95)\n"
    put(a=WRONG + more)
    status, out, _ = call(*words, "--format", "json")
    assert sorted(at["code"] for at in json.loads(out)) == found.split()
    assert status == bool(found)


def test_preview_is_asked_for(call, monkeypatch):
    from dataclasses import replace

    from dropseed.audit.reporting import config, select

    rules = [replace(one, preview=one.code == "DS101") for one in RULES]
    monkeypatch.setattr(select, "RULES", rules)
    monkeypatch.setattr(config, "RULES", rules)
    put(a=WRONG)
    assert call("--no-cache") == (0, "Found nothing in 1 file.\n", "")
    status, _, err = call("--no-cache", "--select", "DS101")
    assert (status, err) == (0, "dropseed: DS101 is in preview; add `--preview` to run it.\n")
    assert call("--no-cache", "--preview")[0] == 1


def test_the_configuration_and_the_options(call):
    put(a=WRONG)
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nignore = ['DS101']\n")
    assert call()[0] == 0
    assert call("--select", "DS1")[0] == 1
    assert call("--severity", "note")[0] == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--exclude", "old"],
        ["--exclude", "old/"],
        ["--exclude", "a.py"],
        ["--exclude", "*.py"],
        ["--exclude", "src/old"],
        ["--exclude", "src/old/*"],
        ["--exclude", "b", "--exclude", "*/a.py"],
        ["src/old/a.py", "--exclude", "a.py"],
        ["src", "--exclude", "old/a.py"],
        ["src", "--exclude", "src/old"],
    ],
)
def test_excluded(words, call):
    Path("src/old").mkdir(parents=True)
    put(**{"src/old/a": WRONG, "b": RIGHT})
    assert call(*words)[0] == 0


@pytest.mark.parametrize(
    "words", [["--exclude", "ol"], ["--exclude", "src/a.py"], ["src", "--exclude", "./a.py"]]
)
def test_not_excluded(words, call):
    Path("src/old").mkdir(parents=True)
    put(**{"src/old/a": WRONG})
    assert call(*words)[0] == 1


@pytest.mark.parametrize("words", [[], ["src"], ["src/old/a.py"], ["src/old"]])
def test_excluded_by_the_configuration(words, call):
    Path("src/old").mkdir(parents=True)
    put(**{"src/old/a": WRONG})
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nexclude = ['src/old']\n")
    assert call(*words)[0] == 0


def test_ignores_of_files(call):
    Path("tests").mkdir()
    put(**{"tests/a": WRONG, "b": WRONG})
    table = "[tool.dropseed.audit.per-file-ignores]\n'tests/*' = ['DS1']\n"
    Path("pyproject.toml").write_text(table)
    assert call("--select", "DS1")[1].startswith("b.py:")
    assert call("tests", "--select", "DS1")[0] == 0


@pytest.mark.parametrize(
    "comment", ["# noqa", "# noqa: DS101", "# noqa: DS1,E501", "# dropseed: ignore[DS101] why"]
)
def test_comments(comment, call):
    put(a=WRONG.replace("0.5)", f"0.5)  {comment}"))
    Path("b.ipynb").write_text(book(WRONG.replace("0.5)", f"0.5)  {comment}")))
    assert call() == (0, "Found nothing in 2 files.\n", "")


def test_comments_without_effect_are_found_and_taken_out(call):
    put(a="x = 1  # noqa: DS101\ny = 2  # noqa: E501, DS3  # keep\nz = 3  # noqa\n")
    Path("b.ipynb").write_text(book("x = 1", "y = 1  # dropseed: ignore[DS303] why\n# end"))
    status, out, _ = call()
    assert status == 1
    assert out.splitlines() == [
        "a.py:1:8: DS002 DS101 silences nothing here",
        "a.py:2:8: DS002 DS3 silences nothing here",
        "b.ipynb:cell 2:1:8: DS002 DS303 silences nothing here",
        "Found 3 warnings in 2 files (3 fixable with --fix).",
    ]
    assert call("--fix")[0] == 0
    assert Path("a.py").read_text() == "x = 1\ny = 2  # noqa: E501  # keep\nz = 3  # noqa\n"
    assert Path("b.ipynb").read_text() == book("x = 1", "y = 1\n# end")


@pytest.mark.parametrize("style", ["json", "sarif", "junit"])
@pytest.mark.parametrize("words", [[], ["--statistics"], ["--fix", "--statistics"]])
@pytest.mark.parametrize("text", [WRONG, RIGHT, "(\n"])
def test_formats_for_programs_are_alone_on_stdout(style, words, text, call):
    put(a=text)
    _, out, _ = call("--format", style, *words)
    ET.fromstring(out) if style == "junit" else json.loads(out)
    assert out.endswith("\n")


def test_full_and_github(call):
    put(a=WRONG)
    out = call("--format", "full")[1]
    assert "7 |         return F.dropout(x, 0.5)\n  |                ^^^^^^^^^^^^^^^^^\n" in out
    assert "help: Pass `training=self.training`" in out
    assert call("--format", "github")[1].startswith("::error file=a.py,line=7,col=16,")


def test_statistics_and_source(call):
    put(a=WRONG, b=WRONG)
    out = call("--statistics", "--show-source")[1]
    assert out.count("^^^^") == 8
    assert out.endswith(
        "Found 2 errors in 2 files (2 fixable with --fix).\n"
        "code   name               severity  count  fixable\n"
        "DS101  dropout-always-on  error         2        2\n"
    )


def test_fix(call):
    put(a=WRONG, b=WRONG.replace("\n", "\r\n"), c="def broken(:\n", d=RIGHT)
    Path("b.py").write_bytes(WRONG.replace("\n", "\r\n").encode())
    Path("e.ipynb").write_text(book(WRONG))
    status, out, err = call("--fix")
    assert err == "dropseed: Fixed 3 mistakes in 3 files.\n"
    assert re.fullmatch(r"c\.py:1:\d+: DS001 [^\n]+\nFound 1 error in 5 files\.\n", out)
    assert status == 1
    assert Path("a.py").read_text() == MENDED
    assert Path("b.py").read_bytes() == MENDED.replace("\n", "\r\n").encode()
    assert Path("e.ipynb").read_text() == book(MENDED)
    before = {path: path.stat().st_mtime_ns for path in Path().iterdir()}
    assert call("--fix") == (1, out, "")
    assert {path: path.stat().st_mtime_ns for path in Path().iterdir()} == before


def test_only_what_is_reported_is_fixed(call):
    put(a=WRONG, b=WRONG.replace("0.5)", "0.5)  # noqa: DS101"))
    assert call("--fix", "--ignore", "DS101")[0] == 0
    assert Path("a.py").read_text() == WRONG
    call("--fix")
    assert "noqa" in Path("b.py").read_text()
    assert "training" not in Path("b.py").read_text()


def test_a_fix_that_cannot_be_written_is_a_sentence(call, monkeypatch):
    put(a=WRONG, b=WRONG)
    replace = Path.replace

    def fail(self, target):
        if target.name == "a.py":
            raise PermissionError(13, "Permission denied")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    status, out, err = call("--fix")
    assert status == 1
    assert err == (
        "dropseed: a.py was left as it is: Permission denied.\n"
        "dropseed: Fixed 1 mistake in 1 file.\n"
    )
    assert out.startswith(f"a.py:{LINE}\n")


def test_the_difference_is_what_fix_does(call, capfd):
    nested = WRONG.replace("F.dropout(x, 0.5)", "F.dropout(F.dropout(x), 0.5)")
    put(a=WRONG, b=nested, c=RIGHT)
    Path("e.ipynb").write_text(book(WRONG, nested))
    status, patch, err = call("--diff")
    assert (status, err) == (1, "")
    assert "--- a/a.py\n+++ b/a.py\n" in patch
    assert Path("a.py").read_text() == WRONG
    names = ["a.py", "b.py", "c.py", "e.ipynb"]
    assert call("--diff", "--exit-zero")[0] == 0
    subprocess.run(["git", "apply", "-"], input=patch, text=True, check=True)
    patched = [Path(name).read_bytes() for name in names]
    assert call("--diff") == (0, "", "")
    put(a=WRONG, b=nested)
    Path("e.ipynb").write_text(book(WRONG, nested))
    call("--fix")
    assert [Path(name).read_bytes() for name in names] == patched


def test_baseline(call):
    put(a=WRONG)
    status, out, err = call("--baseline", "known.json")
    assert (status, out) == (0, "")
    assert err == (
        "dropseed: Wrote 1 finding to known.json; from now on only new ones are reported.\n"
    )
    assert call("--baseline", "known.json") == (0, "Found nothing in 1 file.\n", "")
    put(a="# moved\n\n" + WRONG, b=WRONG)
    assert call("--baseline", "known.json")[1].startswith("b.py:")
    assert call("a.py", "--baseline", "known.json")[0] == 0
    assert call("--baseline", "known.json", "--fix")[0] == 0
    assert "training" not in Path("a.py").read_text()
    assert Path("b.py").read_text() == MENDED
    put(a=RIGHT)
    out = call("--baseline", "known.json", "--statistics")[1]
    assert "1 known finding not found any more; delete known.json" in out
    assert "known" not in call("b.py", "--baseline", "known.json", "--statistics")[1]


def test_the_baseline_of_the_configuration(call):
    Path("src").mkdir()
    put(**{"src/a": WRONG})
    Path("pyproject.toml").write_text("[tool.dropseed.audit]\nbaseline = 'known.json'\n")
    assert call("src")[0] == 0
    assert Path("known.json").exists()
    assert call()[0] == call("src/a.py")[0] == 0
    assert call("--diff") == (0, "", "")


def test_a_difference_writes_no_baseline(call):
    put(a=WRONG)
    assert call("--baseline", "known.json", "--diff")[0] == 1
    assert not Path("known.json").exists()


def test_rules(call):
    status, out, err = call("--rules")
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        [rule.code, rule.name] for rule in RULES
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_explain(rule, call):
    status, out, err = call("--explain", rule.code.lower())
    assert (status, err) == (0, "")
    assert out.startswith(f"# {rule.code}")
    assert rule.summary in out
    assert call("--explain", rule.name) == (0, out, "")


@pytest.mark.parametrize("number", range(501, 509))
def test_explain_what_running_models_show(number, call):
    status, out, err = call("--explain", f"DS{number}")
    assert (status, err) == (0, "")
    assert out.startswith(f"# DS{number}\n")
    assert 30 < len(out.split("\n\n")[2]) < 1500
    assert "Args:" not in out


def test_help_names_every_option(call):
    status, out, _ = call("--help")
    assert status == 0
    for option in ("select", "format", "fix", "baseline", "explain", "rules", "model", "input"):
        assert f"--{option}" in out


def test_results_are_kept_in_the_cache_alone(call, here, tmp_path):
    put(a=WRONG)
    first = call()
    assert call() == first
    assert [*(tmp_path / "cache").rglob("*.results")]
    assert [path.name for path in here.iterdir()] == ["a.py"]


def test_without_a_cache(call, tmp_path):
    put(a=WRONG)
    assert call("--no-cache")[0] == 1
    assert not (tmp_path / "cache").exists()


def fresh(*words, **options):
    return subprocess.run(
        [sys.executable, "-c", MAIN, "audit", *words],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_a_terminal_that_lacks_characters():
    put(a=WRONG.replace("return", "'\u2713'; return"))
    run = fresh("--show-source", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (run.returncode, run.stderr) == (1, "")
    assert "'\\u2713'; return" in run.stdout


def test_a_pipe_that_is_closed():
    put(a="x = 1  # noqa: DS101\n" * 3000)
    command = f"{sys.executable} -c '{MAIN}' audit | head -n 1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.stderr == ""
    assert run.stdout.startswith("a.py:1:")


def test_ctrl_c(call, monkeypatch):
    from dropseed.cli import look

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(look, "scan", interrupted)
    assert call() == (130, "", "dropseed: Interrupted.\n")


def on_a_terminal(*words):
    """What a terminal shows of a run."""
    screen, end = pty.openpty()
    code = f"from dropseed.cli import screen; screen.PATIENCE = -1.0; {MAIN}"
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    env.pop("NO_COLOR", None)
    run = subprocess.Popen(
        [sys.executable, "-c", code, "audit", *words], stdout=end, stderr=end, env=env
    )
    os.close(end)
    shown = b""
    try:
        while chunk := os.read(screen, 4096):
            shown += chunk
    except OSError:  # how a terminal without a program ends
        pass
    os.close(screen)
    return run.wait(), shown.decode()


def test_colours_and_a_bar_on_a_terminal():
    put(a=WRONG)
    status, shown = on_a_terminal("--no-cache")
    assert status == 1
    assert "Reading files" in shown
    assert "\x1b[1;31mDS101\x1b[0m" in shown


def test_no_colours_in_formats_for_programs_on_a_terminal():
    put(a=WRONG)
    shown = on_a_terminal("--no-cache", "--format", "json")[1]
    assert json.loads(shown[shown.index("[\r\n") :])[0]["code"] == "DS101"


def test_pages_are_drawn_on_a_terminal():
    shown = on_a_terminal("--explain", "DS101")[1]
    assert "**Wrong**" not in shown
    assert "Wrong" in shown


MODEL = """
import torch
from torch import nn

def wrong():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.BatchNorm1d(8))

def right():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.drop, self.head = nn.Embedding(10, 4), nn.Dropout(0.1), nn.Linear(4, 2)

    def forward(self, tokens, scale):
        return self.head(self.drop(self.embed(tokens)) * scale.unsqueeze(-1))
"""


@pytest.fixture
def model(here, monkeypatch):
    (here / "my_models.py").write_text(MODEL)
    yield "my_models"
    sys.modules.pop("my_models", None)


def test_a_model(call, model):
    status, out, err = call("--model", f"{model}:wrong", "--input", "8")
    assert (status, err) == (1, "")
    assert re.match(r"site +kind +rate +shape +place", out)
    assert re.search(r"^1 +Dropout +0\.5 +4x8 +after Linear, before BatchNorm1d .*DS201", out, re.M)
    assert re.search(r"^DS201 1: ", out, re.M)
    assert call("--model", f"{model}:wrong", "--input", "8", "--exit-zero")[0] == 0
    assert call("--model", f"{model}:right", "--input", "8")[0] == 0


def test_a_model_on_a_terminal(model):
    status, shown = on_a_terminal("--model", f"{model}:wrong", "--input", "8")
    assert status == 1
    assert "\x1b[1;31mDS201\x1b[0m 1: " in shown
    assert "after Linear" in shown


def test_a_model_as_json(call, model):
    status, out, _ = call("--model", f"{model}:wrong", "--input", "8", "--format", "json")
    report = json.loads(out)
    assert status == 1
    assert "DS201" in [note["code"] for note in report["findings"]]
    assert report["sites"][0]["name"] == "1"


def test_findings_about_models_are_selected(call, model):
    words = ("--model", f"{model}:wrong", "--input", "8")
    found = call(*words, "--ignore", "DS2")[1]
    assert "DS201" not in found


def test_a_model_with_two_inputs(call, model):
    words = ["--model", f"{model}:Two", "--input", "5", "--dtype", "int64"]
    status, out, _ = call(*words, "--input", "5", "--dtype", "float32")
    assert status == 0
    assert re.search(r"^drop +Dropout +0\.1 +4x5x4 ", out, re.M)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--model", "my_models:right"], "`--model` needs `--input`, one example's shape"),
        (["--model", "my_models:right", "--input", "x"], "`--input` must read like 1x28x28"),
        (["--model", "my_models:right", "--input", "9"], "9"),
        (["--model", "my_models:gone", "--input", "8"], "`--model` my_models:gone could not be"),
        (["--model", "my_models", "--input", "8"], "`--model` must read module:factory"),
        (["--model", "my_models:torch", "--input", "8"], "could not be made"),
        (["--model", "my_models:right", "--input", "8", "--dtype", "x"], "`dtype` must name"),
        (
            ["--model", "my_models:right", "--input", "8", "--dtype", "x", "--dtype", "y"],
            "`--dtype` must be given once",
        ),
        (
            ["--model", "my_models:right", "--input", "8", "--format", "sarif"],
            "`--format` with `--model` must be text or json",
        ),
        (["--model", "my_models:right", "--input", "8", "--fix"], "exclude each other"),
        (["--model", "my_models:right", "--input", "8", "my_models.py"], "exclude each other"),
    ],
)
def test_wrong_models(words, sentence, refused, model):
    assert sentence in refused(*words)


def test_torch_is_needed_for_models_only():
    put(a=WRONG)
    code = f"import sys; sys.modules['torch'] = sys.modules['numpy'] = None; {MAIN}"
    command = [sys.executable, "-c", code, "audit"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (1, "")
    more = ["--model", "a:b", "--input", "8"]
    run = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == (
        "dropseed: `torch` is not installed. Install it with: pip install 'dropseed[torch]'\n"
    )
