"""Short runs on real digits: stopped, resumed, loaded by workers, replayed."""

import errno
import json
import os
import signal

import pytest
import safetensors.torch
import torch
from rich.console import Console

from dropseed import Key, keep
from dropseed.errors import DropseedError, RunError
from dropseed.lab import files
from dropseed.lab import train as trainer
from dropseed.lab.interrupt import StoppedError
from dropseed.lab.models import DROPOUT_SITE, mnist_convnet, normalise
from dropseed.lab.run import CHECKPOINT, CURVES, METRICS, TIMING, WEIGHTS, resume_run, start_run
from dropseed.lab.settings import Settings

SETTINGS = Settings(epochs=2, seed=3, train_size=300, batch_size=80, threads=1)
STEPS = 8
QUIET = Console(quiet=True)


def trained(run, digits, workers=0):
    trainer.train(run, digits, workers=workers, console=QUIET)
    return result(run.folder)


def result(folder):
    """The reproducible part of a run, as bytes."""
    return (folder / WEIGHTS).read_bytes(), (folder / METRICS).read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(digits, tmp_path_factory):
    run = start_run(tmp_path_factory.mktemp("runs") / "whole", SETTINGS)
    trained(run, digits)
    return run


def before_step(monkeypatch, number, act):
    """Have `act` called when the step `number` (counted from 0) is about to be done."""
    step = trainer._step

    def watched(run, images, labels):
        if run.position.step == number:
            act()
        step(run, images, labels)

    monkeypatch.setattr(trainer, "_step", watched)


def test_it_learns(uninterrupted):
    epochs = json.loads((uninterrupted.folder / METRICS).read_text())["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[1]["test_loss"] < epochs[0]["test_loss"]
    assert epochs[1]["test_accuracy"] > 0.6


def test_what_is_saved(uninterrupted, digits):
    folder = uninterrupted.folder
    assert {path.name for path in folder.iterdir()} == {
        CHECKPOINT,
        CURVES,
        METRICS,
        TIMING,
        WEIGHTS,
    }
    metrics = json.loads((folder / METRICS).read_text())
    assert Settings(**metrics["settings"]) == SETTINGS
    assert metrics["versions"]["torch"] == torch.__version__
    assert len(json.loads((folder / TIMING).read_text())["seconds"]) == 2
    assert (folder / CURVES).read_bytes().startswith(b"\x89PNG")
    model = mnist_convnet().eval()
    model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    hits = model(normalise(torch.from_numpy(digits.test_images))).argmax(1).numpy()
    assert (hits == digits.test_labels).mean() == metrics["epochs"][-1]["test_accuracy"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_a_stopped_run_resumed_equals_the_whole_run(
    number, step, digits, uninterrupted, monkeypatch, tmp_path
):
    """Also after the last step of an epoch (3), before its test."""
    with monkeypatch.context() as patch:
        before_step(patch, step, lambda: signal.raise_signal(number))
        with pytest.raises(StoppedError, match=f"after step {step + 1} of {STEPS}") as caught:
            trained(start_run(tmp_path / "run", SETTINGS), digits)
    assert caught.value.status == 128 + number
    torch.manual_seed(999)
    assert trained(resume_run(tmp_path / "run", {}), digits) == result(uninterrupted.folder)


def test_a_run_stopped_at_every_step_equals_the_whole_run(
    digits, uninterrupted, monkeypatch, tmp_path
):
    step = trainer._step
    monkeypatch.setattr(
        trainer, "_step", lambda *args: (step(*args), signal.raise_signal(signal.SIGINT))
    )
    run = start_run(tmp_path / "run", SETTINGS)
    for _ in range(STEPS):
        with pytest.raises(StoppedError):
            trained(run, digits)
        run = resume_run(tmp_path / "run", {})
    assert trained(run, digits) == result(uninterrupted.folder)


def test_a_signal_at_the_very_end_is_not_lost(digits, uninterrupted, monkeypatch, tmp_path):
    """What follows, such as the demo's second run, must not begin."""
    draw = trainer.curves
    monkeypatch.setattr(
        trainer, "curves", lambda runs: (signal.raise_signal(signal.SIGINT), draw(runs))[1]
    )
    with pytest.raises(StoppedError):
        trained(start_run(tmp_path / "run", SETTINGS), digits)
    assert result(tmp_path / "run") == result(uninterrupted.folder)


def test_a_crashed_run_resumes_from_its_last_epoch(digits, uninterrupted, monkeypatch, tmp_path):
    def crash():
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        before_step(patch, 6, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            trained(start_run(tmp_path / "run", SETTINGS), digits)
    run = resume_run(tmp_path / "run", {})
    assert run.position.step == 4
    assert trained(run, digits) == result(uninterrupted.folder)


def test_a_finished_run_resumed_stays_as_it_is(digits, uninterrupted):
    before = result(uninterrupted.folder)
    assert trained(resume_run(uninterrupted.folder, {}), digits) == before


def test_workers_change_no_number(digits, uninterrupted, tmp_path):
    run = start_run(tmp_path / "run", SETTINGS)
    assert trained(run, digits, workers=2) == result(uninterrupted.folder)


def test_nothing_draws_from_the_generators_of_torch(digits, uninterrupted, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert trained(start_run(tmp_path / "run", SETTINGS), digits) == result(uninterrupted.folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_run(digits, uninterrupted, tmp_path):
    other = Settings(**{**vars(SETTINGS), "seed": 4})
    weights, _ = trained(start_run(tmp_path / "run", other), digits)
    assert weights != result(uninterrupted.folder)[0]


def test_the_masks_of_a_run_can_be_replayed(digits, tmp_path):
    run = start_run(tmp_path / "run", SETTINGS)
    seen = []

    def record(layer, inputs, output):
        if layer.training:
            seen.append((inputs[0].detach().clone(), output.detach().clone()))

    run.learner.model.get_submodule(DROPOUT_SITE).register_forward_hook(record)
    trained(run, digits)
    assert [len(inputs) for inputs, _ in seen] == [80, 80, 80, 60] * 2
    for step, (inputs, output) in enumerate(seen):
        mask = keep(Key(SETTINGS.seed, step=step).at(DROPOUT_SITE), 0.5, tuple(inputs.shape))
        assert torch.equal(output, torch.where(torch.from_numpy(mask), inputs * 2, 0.0))


def test_every_epoch_shows_every_image_once_in_an_order_of_its_own():
    first, second = (trainer.order(SETTINGS, epoch) for epoch in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(300))
    assert not torch.equal(first, second)
    assert torch.equal(first, trainer.order(Settings(seed=3, train_size=300, epochs=9), 0))


def test_the_callers_threads_are_given_back(uninterrupted, digits):
    before = torch.get_num_threads()
    trained(resume_run(uninterrupted.folder, {}), digits)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("write", range(-3, 8))
def test_a_full_disk_loses_nothing(write, digits, uninterrupted, monkeypatch, tmp_path):
    """Three writes begin the training, three follow each epoch, and two end it."""
    calls = iter(range(-3, 100))
    sync = os.fsync

    def full(handle):
        if next(calls) == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    run = start_run(tmp_path / "run", SETTINGS)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            trained(run, digits)
    assert caught.value.filename.startswith(str(tmp_path / "run"))
    begun = (tmp_path / "run" / CHECKPOINT).exists()
    assert begun == (write > -3)
    again = resume_run(tmp_path / "run", {}) if begun else start_run(tmp_path / "run", SETTINGS)
    assert trained(again, digits) == result(uninterrupted.folder)
    assert len(list((tmp_path / "run").iterdir())) == 5


def test_a_folder_in_use_is_left_alone(uninterrupted):
    before = result(uninterrupted.folder)
    with pytest.raises(RunError, match=r"is not empty\. Continue the run there with `--resume`"):
        start_run(uninterrupted.folder, SETTINGS)
    assert result(uninterrupted.folder) == before


def test_two_runs_do_not_share_a_folder(tmp_path):
    """Both found it empty; the second one must not overwrite the first."""
    first, second = (start_run(tmp_path / "run", SETTINGS) for _ in range(2))
    first.begin()
    with pytest.raises(RunError, match="is not empty"):
        second.begin()
    first.begin()


def test_what_a_killed_process_leaves_is_not_in_the_way(digits, uninterrupted, tmp_path):
    (tmp_path / ".writing-abc").mkdir()
    (tmp_path / ".writing-abc" / CHECKPOINT).write_bytes(b"half")
    assert trained(start_run(tmp_path, SETTINGS), digits) == result(uninterrupted.folder)


def test_a_new_run_leaves_nothing_before_it_begins(tmp_path):
    (tmp_path / "mine").mkdir()
    for folder in (tmp_path / "deep" / "run", tmp_path / "mine"):
        start_run(folder, SETTINGS)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_there_must_be_something_to_resume(tmp_path):
    with pytest.raises(RunError, match="There is no run to resume"):
        resume_run(tmp_path, {})


@pytest.mark.parametrize("setting", ["rate", "seed", "epochs", "batch_size", "train_size"])
def test_other_settings_are_refused(setting, uninterrupted):
    with pytest.raises(ValueError, match=f"`{setting}` is"):
        resume_run(uninterrupted.folder, {setting: 1})


def damage_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda c: b"", lambda c: c[:-100], lambda c: b"nonsense", damage_a_bit]
)
def test_a_damaged_checkpoint_is_refused(damage, uninterrupted, tmp_path):
    content = (uninterrupted.folder / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(damage(content))
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged"):
        resume_run(tmp_path, {})


def change(*path, value):
    """A change of one entry of a checkpoint's state; `value` may be a function of the old one."""

    def act(state):
        *outer, last = path
        for name in outer:
            state = state[name]
        state[last] = value(state[last]) if callable(value) else value

    return act


@pytest.mark.parametrize(
    "damage",
    [
        change("settings", "rate", value=2.0),
        change("settings", value=3),
        change("learner", "optimiser", "param_groups", value=[]),
        change("learner", "model", value={}),
        change("learner", "schedule", "last_epoch", value=3),
        change("position", value=None),
        change("position", "step", value=3),
        change("position", "step", value=STEPS + 1),
        change("position", "step", value=float(STEPS)),
        change("position", "epochs", value=lambda epochs: [*epochs, epochs[-1]]),
        change("position", "epochs", value=lambda epochs: epochs[:-1]),
        change("position", "epochs", value=[{}, {}]),
        change("position", "epochs", value="ab"),
        change("position", "epochs", 0, "test_loss", value=None),
        change("position", "timing", value=[]),
        change("position", "loss", value="much"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(damage, uninterrupted, tmp_path):
    state = torch.load(uninterrupted.folder / CHECKPOINT, weights_only=True)
    damage(state)
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged \([^)]"):
        resume_run(tmp_path, {})


def test_a_device_that_is_gone_is_no_damage(uninterrupted, tmp_path):
    state = torch.load(uninterrupted.folder / CHECKPOINT, weights_only=True)
    state["settings"]["device"] = "cuda:99"
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match="`device` 'cuda:99'"):
        resume_run(tmp_path, {})


@pytest.mark.parametrize("state", [{}, {"settings": {"rate": 0.5, "unknown": 1}}, [1, 2]])
def test_a_checkpoint_of_something_else_is_refused(state, tmp_path):
    torch.save(state, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged"):
        resume_run(tmp_path, {})


class Command:
    def __reduce__(self):
        return os.mkdir, ("made-by-a-checkpoint",)


def test_a_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"settings": Command()}, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match=r"checkpoint\.pt is damaged"):
        resume_run(tmp_path, {})
    assert not os.path.exists("made-by-a-checkpoint")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there(device, tmp_path):
    with pytest.raises(ValueError, match="`device`"):
        start_run(tmp_path / "run", Settings(device=device))
    assert not (tmp_path / "run").exists()


def test_more_images_than_there_are(digits, tmp_path):
    run = start_run(tmp_path / "run", Settings())
    with pytest.raises(DropseedError, match="`train_size` must be at most 400"):
        trained(run, digits)


@pytest.mark.parametrize("damage", ["tensor", "no groups", "too many epochs"])
def test_a_checkpoint_of_something_else_is_one_sentence(damage, uninterrupted, tmp_path):
    state = torch.load(uninterrupted.folder / CHECKPOINT, weights_only=True)
    if damage == "no groups":
        state["learner"]["optimiser"]["param_groups"] = []
    elif damage == "too many epochs":
        state["position"]["epochs"] *= 5
    torch.save(torch.ones(3) if damage == "tensor" else state, tmp_path / CHECKPOINT)
    with pytest.raises(RunError, match="is damaged"):
        resume_run(tmp_path, {})
