"""A line for each site and step, and a summary that is right about healthy and broken runs."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import dropseed.torch as dst
from dropseed.audit.running.ledger import ledger
from dropseed.errors import InvalidTypeError, RunError


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Net(nn.Module):
    """Two layers, a function and attention."""

    def __init__(self, p=0.1):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.drop = nn.Dropout(p)
        self.own = dst.Dropout(p)
        self.p = p

    def forward(self, x):
        x = self.own(self.drop(self.linear(x)))
        x = functional.dropout(x, self.p, self.training)
        q = x[None]
        p = self.p if self.training else 0.0
        return functional.scaled_dot_product_attention(q, q, q, dropout_p=p)[0]


SITES = ["drop", "own", "dropout", "scaled_dot_product_attention"]
X = torch.randn(64, 16)


def step(model, optimizer, x=X):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def run(model, steps, evaluate=None, before=None, path=None):
    """Train; ``before(step)`` comes before each step and `evaluate` after each fifth."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with ledger(model, path) as book:
        for number in range(1, steps + 1):
            if before:
                before(number)
            step(model, optimizer)
            if evaluate and number % 5 == 0:
                evaluate(model)
    return book


def validate(model):
    model.eval()
    with torch.no_grad():
        model(X)
    model.train()


# ---- lines ------------------------------------------------------------------------------------


def test_a_line_for_each_site_and_step():
    book = run(Net(), 3)
    assert [(line["step"], line["site"]) for line in book.lines] == [
        (number, site) for number in (1, 2, 3) for site in SITES
    ]
    assert book.steps == 3
    for line in book.lines:
        assert (line["phase"], line["mode"], line["grad"]) == ("training", "train", "grad")
        assert (line["active"], line["calls"], line["asked"]) == (True, 1, 0.1)
        assert line["realised"] == pytest.approx(0.1, abs=0.05)
        assert line["caller"].startswith(__file__)


def test_what_a_line_says():
    line = run(Net(), 1).lines[1]
    assert list(line) == [
        *("step", "phase", "mode", "grad", "site", "kind", "caller", "calls", "active", "why"),
        *("asked", "realised", "ratio", "key"),
    ]
    assert (line["kind"], line["why"]) == ("Dropout", "module.training is True")
    assert line["ratio"] == pytest.approx(1.0, abs=0.1)
    assert line["key"].startswith("seed=")


def test_evaluation_belongs_to_the_step_that_comes_next():
    lines = run(Net(), 6, validate).lines
    evaluated = [line for line in lines if line["phase"] == "evaluation"]
    assert {line["step"] for line in evaluated} == {6}
    assert {line["active"] for line in evaluated} == {False}
    assert {(line["mode"], line["grad"]) for line in evaluated} == {("eval", "no_grad")}
    assert {line["realised"] for line in evaluated} == {None}


def test_several_passes_in_a_step_are_one_line():
    model, optimizer = Net(), torch.optim.SGD(Net().parameters(), 0.1)
    optimizer.add_param_group({"params": [*model.parameters()]})
    with ledger(model) as book:
        for _ in range(4):
            model(X).sum().backward()
        optimizer.step()
    assert [line["calls"] for line in book.lines] == [4] * 4
    assert len({line["realised"] for line in book.lines}) > 1


def test_calls_of_one_site_that_differ_have_a_line_each():
    def forward(x):
        for number in range(4):
            x = functional.dropout(x, 0.5, training=number < 3)
        return linear(x)

    linear = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(linear.parameters(), 0.1)
    with ledger(linear) as book:
        forward(X).sum().backward()
        optimizer.step()
    assert [(line["active"], line["calls"]) for line in book.lines] == [(True, 3), (False, 1)]
    assert book.summary() == "1 site (dropout): on in some calls in the one training step."


def test_a_file_has_the_same_lines(tmp_path):
    path = tmp_path / "ledger.jsonl"
    book = run(Net(), 2, path=path)
    assert book.lines == []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    torch.manual_seed(0)
    assert lines == run(Net(), 2).lines
    run(Net(), 2, path=str(path))  # and a second run is appended
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2 * len(lines)
    assert "4 sites: active in all 2 training steps." in book.summary()


def test_nothing_is_lost_when_a_run_is_interrupted(tmp_path):
    path = tmp_path / "ledger.jsonl"
    code = f"""
        import os, torch
        from torch import nn
        from dropseed.audit.running.ledger import ledger
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with ledger(model, {str(path)!r}):
            for number in range(5):
                model(torch.ones(8, 4)).sum().backward()
                optimizer.step()
            os._exit(1)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    steps = [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_numbers_that_json_has_not(tmp_path):
    path = tmp_path / "ledger.jsonl"
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with ledger(model, path):
        model(torch.full((8, 4), float("nan")))

    def refuse(constant):
        raise AssertionError(constant)

    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line, parse_constant=refuse)["ratio"] is None


def test_memory_does_not_grow_with_a_path(tmp_path):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with ledger(model, tmp_path / "ledger.jsonl") as book:
        for number in range(40):
            model.train(number % 2 == 0)
            step(model, optimizer)
    assert (book.lines, book._rows) == ([], {})
    assert all(len(site.runs) <= 4 for site in book._history.sites.values())


@pytest.mark.parametrize("path", ["missing/ledger.jsonl", "."])
def test_a_file_that_can_not_be_written(path, tmp_path):
    with (
        pytest.raises(RunError, match=r"`path` .* can't be appended to"),
        ledger(Net(), tmp_path / path),
    ):
        pass


@pytest.mark.parametrize("model", [[nn.Dropout()], "model", nn.Dropout])
def test_no_model(model):
    with (
        pytest.raises(InvalidTypeError, match=r"`model` must be a torch\.nn\.Module"),
        ledger(model),
    ):
        pass


def test_every_hook_is_removed():
    from torch.nn.modules.module import _has_any_global_hook
    from torch.optim import optimizer

    before = len(optimizer._global_optimizer_post_hooks)
    with pytest.raises(ZeroDivisionError), ledger(Net()):
        raise ZeroDivisionError
    assert len(optimizer._global_optimizer_post_hooks) == before
    assert not _has_any_global_hook()


# ---- healthy runs -----------------------------------------------------------------------------


def test_a_healthy_run():
    book = run(Net(), 20, validate)
    assert book.summary() == "4 sites: active in all 20 training steps, off in evaluation."


def test_a_healthy_run_without_evaluation():
    assert run(Net(), 20).summary() == "4 sites: active in all 20 training steps."


def test_a_healthy_run_of_one_step():
    assert run(Net(), 1).summary() == "4 sites: active in the one training step."


def test_few_sites_are_named():
    book = run(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1), nn.Dropout(0.2)), 2)
    assert book.summary() == "2 sites (1, 2): active in all 2 training steps."


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_is_no_evaluation_and_counts_once(reentrant):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(16, 16)
            self.net = Net()

        def forward(self, x):
            return checkpoint(self.net, self.first(x), use_reentrant=reentrant)

    book = run(Block(), 4)
    assert book.summary() == "4 sites: active in all 4 training steps."
    assert {line["calls"] for line in book.lines} == {1}


def test_two_optimizers_that_step_together_make_one_step():
    model = Net()
    groups = [[model.linear.weight], [model.linear.bias]]
    optimizers = [torch.optim.SGD(group, 1e-3) for group in groups]
    with ledger(model) as book:
        for _ in range(5):
            model(X).sum().backward()
            for optimizer in optimizers:
                optimizer.step()
    assert book.summary() == "4 sites: active in all 5 training steps."


def test_another_models_optimizer_and_dropout_are_not_counted():
    model, other = Net(), nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3) for m in (model, other)]
    with ledger(model) as book:
        for _ in range(3):
            for m, optimizer in zip((model, other), optimizers, strict=True):
                step(m, optimizer)
    assert book.summary() == "4 sites: active in all 3 training steps."
    assert {line["site"] for line in book.lines} == {*SITES}


def test_without_a_model_the_first_one_is_taken():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with ledger() as book:
        step(model, optimizer)
        validate(model)
    assert book.summary() == "4 sites: active in the one training step, off in evaluation."


def test_gradient_accumulation_and_a_closure():
    model = Net(0.2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = model(X).square().mean()
        loss.backward()
        return loss

    with ledger(model) as book:
        for _ in range(2):
            optimizer.step(closure)
    assert book.summary() == "4 sites: active in all 2 training steps."


def test_a_fast_path_in_evaluation_counts_as_off():
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True)
    optimizer = torch.optim.SGD(layer.parameters(), 1e-3)
    with ledger(layer) as book:
        for _ in range(2):
            layer(X[None]).sum().backward()
            optimizer.step()
            layer.eval()
            with torch.no_grad():
                layer(X[None])
            layer.train()
    assert book.summary() == "4 sites: active in all 2 training steps, off in evaluation."


def test_low_and_high_rates_that_are_kept_to():
    layers = [nn.Dropout(p) for p in (1e-6, 0.001, 0.5, 0.999)]
    book = run(nn.Sequential(nn.Linear(16, 16), *layers), 20)
    assert book.summary() == "4 sites: active in all 20 training steps."


def test_evaluation_with_gradients_between_steps():
    def evaluate(model):
        model.eval()
        model(X)
        model.train()

    book = run(Net(), 10, evaluate)
    assert book.summary() == "4 sites: active in all 10 training steps, off in evaluation."


def test_forward_passes_without_an_optimizer():
    model = Net()
    with ledger(model) as book:
        model(X).sum().backward()
        validate(model)
    assert book.summary() == "4 sites: on in training, off in evaluation."
    assert {line["step"] for line in book.lines} == {1}


def test_what_comes_after_the_last_step_is_written_and_changes_nothing():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with ledger(model) as book:
        step(model, optimizer)
        model(X)
    assert book.lines[-1]["step"] == 2
    assert book.summary() == "4 sites: active in the one training step."


def test_a_model_without_dropout():
    assert (
        run(nn.Linear(16, 16), 3).summary() == "No dropout call was seen in all 3 training steps."
    )


def test_an_empty_run():
    with ledger(Net()) as book:
        pass
    assert (book.summary(), book.lines) == ("No dropout call was seen.", [])


# ---- broken runs ------------------------------------------------------------------------------


def test_off_for_good_after_an_evaluation():
    """Megatron-LM 411: one pass in eval mode sets the rate to 0 for ever."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.p = 0.1

        def forward(self, x):
            if not self.training:
                self.p = 0.0
            q = self.linear(x)[None]
            return functional.scaled_dot_product_attention(q, q, q, dropout_p=self.p)[0]

    model = nn.Sequential(*(Attention() for _ in range(12)))
    book = run(model, 20, validate)
    assert book.summary() == (
        "12 sites: on until step 5, then off (dropout_p=0 passed, the module is in training mode), "
        "off in evaluation."
    )


def test_never_called_again():
    def before(number):
        model.training = number <= 3  # of this module only

    class Switched(nn.Linear):
        def forward(self, x):
            x = super().forward(x)
            return functional.dropout(x, 0.1) if self.training else x

    model = Switched(16, 16)
    root = nn.Sequential(model)
    book = run(root, 20, before=before)
    assert book.summary() == "1 site (0:dropout): on until step 3, then not called."


def test_on_during_validation():
    class Always(nn.Linear):
        def forward(self, x):
            return functional.dropout(super().forward(x), 0.1)

    book = run(Always(16, 16), 10, validate)
    assert book.summary() == (
        "1 site (dropout): active in all 10 training steps, "
        "on during validation (training=True passed, the module is in eval mode)."
    )


def test_validation_without_eval():
    def evaluate(model):
        with torch.no_grad():
            model(X)

    book = run(Net(), 10, evaluate)
    assert book.summary() == (
        "4 sites: active in all 10 training steps, "
        "on during validation (the model was in training mode)."
    )


def test_an_epoch_in_eval_mode():
    def before(number):
        model.train(number <= 10)

    model = Net()
    book = run(model, 20, before=before)
    first, *others = book.summary().splitlines()
    assert first == "Steps 11 to 20 of 20 were trained in eval mode."
    assert others == [
        "3 sites (drop, own, dropout): on until step 10, then off (module.training is False).",
        "1 site (scaled_dot_product_attention): on until step 10, then off "
        "(dropout_p=0 passed, the module is in eval mode).",
    ] or all("on until step 10, then off" in line for line in others)


def test_the_whole_run_in_eval_mode():
    """`validate` without train() behind it, before the first step."""
    model = Net().eval()
    book = run(model, 4)
    assert book.summary().startswith("All 4 training steps were trained in eval mode.")
    assert {line["phase"] for line in book.lines} == {"training"}


def test_eval_mode_is_seen_without_any_dropout_call():
    class Switched(nn.Linear):
        def forward(self, x):
            x = super().forward(x)
            return functional.dropout(x, 0.1) if self.training else x

    def evaluate(model):
        model.eval()

    book = run(Switched(16, 16), 20, evaluate)
    assert book.summary() == (
        "Steps 6 to 20 of 20 were trained in eval mode.\n"
        "1 site (dropout): on until step 5, then not called."
    )


def test_a_part_in_eval_mode():
    """Lightning 20105: the root is in training mode, a pretrained part is not."""
    model = nn.Sequential(Net().eval(), nn.Dropout(0.1))
    lines = run(model, 4).summary().splitlines()
    assert "1 site (1): active in all 4 training steps." in lines
    assert any("off in all 4 training steps (module.training is False)" in line for line in lines)
    assert not any("eval mode." in line for line in lines)


def test_asked_and_dropped_nothing():
    class RoundedDropout(nn.Module):
        """It rounds the rate to 8 bits, as flash-attention does."""

        def __init__(self, p):
            super().__init__()
            self.p = p

        def forward(self, x):
            mask = torch.rand_like(x) >= int(self.p * 256) / 256
            return x * mask if self.training else x

    model = nn.Sequential(nn.Linear(16, 64), RoundedDropout(0.001), RoundedDropout(0.1))
    lines = run(model, 40).summary().splitlines()
    assert lines[0] == "2 sites (1, 2): active in all 40 training steps."
    assert "1 site (1): asked 0.001, dropped nothing." in lines


def test_asked_and_dropped_everything():
    class BrokenDropout(nn.Module):
        p = 0.1

        def forward(self, x):
            return x * 0

    book = run(nn.Sequential(nn.Linear(16, 16), BrokenDropout()), 3)
    assert "1 site (1): asked 0.1, dropped everything." in book.summary().splitlines()


def test_another_rate_than_asked(monkeypatch):
    original = torch.Tensor.bernoulli_
    layer = nn.Dropout(0.1)
    model = nn.Sequential(nn.Linear(16, 64), layer)

    class Rounding(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.bernoulli_.float:
                args = (args[0], 1 - 0.0625)
            return func(*args, **(kwargs or {}))

    assert original is torch.Tensor.bernoulli_
    with Rounding():
        book = run(model, 20)
    assert "1 site (1): asked 0.1, dropped 0.06" in book.summary()


def test_on_and_off_by_turns():
    def before(number):
        model[1].train(number % 3 != 0)

    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1))
    book = run(model, 30, before=before)
    assert book.summary() == (
        "1 site (1): on in 20, off in 10 of 30 training steps (module.training is False)."
    )


def test_a_rate_that_is_scheduled():
    def before(number):
        model[1].p = 0.0 if number <= 10 else 0.01 * number

    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1))
    book = run(model, 20, before=before)
    assert book.summary() == "1 site (1): off until step 10, then on (p=0)."


def test_the_wrong_model():
    """Its copy is trained."""
    model, copy = Net(), Net()
    optimizer = torch.optim.SGD(copy.parameters(), 1e-3)
    with ledger(model) as book:
        for _ in range(3):
            step(copy, optimizer)
    assert "no optimizer step of the model's parameters was seen, but 3 of other" in (
        book.summary().lower()
    )


# ---- ranks ------------------------------------------------------------------------------------


def _rank(rank, port, queue):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    told = [_summary(seed) for seed in (7, 7 + rank)]  # masks that are shared, and that are not
    told.append(_summary(7) if rank == 0 else torch.distributed.barrier())  # a ledger on one only
    queue.put((rank, told))
    torch.distributed.destroy_process_group()


def _summary(seed):
    model = Net(0.5)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    torch.manual_seed(seed)
    with ledger(model) as book:
        step(model, optimizer)
        step(model, optimizer)
    torch.distributed.barrier()
    return book.summary().splitlines()[-1]


def test_ranks_that_share_masks_those_that_do_not_and_a_rank_without_a_ledger():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = [(rank, port, queue) for rank in range(2)]
    ranks = [context.Process(target=_rank, args=one, daemon=True) for one in arguments]
    for process in ranks:
        process.start()
    told = dict(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(timeout=60)
    for summaries in told.values():
        assert summaries[0] == "4 sites: all ranks share a mask (2 ranks, in one step)."
        assert summaries[1] == "4 sites: masks differ between 2 ranks."
    assert told[0][2] == "4 sites: active in all 2 training steps."
