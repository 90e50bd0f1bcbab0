"""A run that was stopped or killed and started again by the same command ends bit for bit where it would have ended."""

import io
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import LORA
from safetensors.torch import load_file

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import checkpoints

# 12 rows are 4 packs or 4 batches of 3: with accumulation 3, an epoch is a step of 3 and a step of 1
CASES = {
    "full-packed": {},
    "lora-packed": {"model": LORA},
    "full-packed-accumulated": {"train": {"accumulation": 3}},
    "full-padded": {"data": {"packing": False}},
    "lora-padded-accumulated": {"model": LORA, "data": {"packing": False}, "train": {"accumulation": 3}},
}


class Killed(BaseException):
    pass


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, how: str) -> None:
    """In the first forward of step ``step``, counted from 1: a signal, or the end of the process as
    the code sees it."""
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    compute_loss = PackedSFTTrainer.compute_loss
    reached: list[int] = []

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step + 1 == step and not reached:
            reached.append(step)
            if how == "kill":
                raise Killed
            os.kill(os.getpid(), getattr(signal, how))
        return compute_loss(self, *args, **kwargs)

    monkeypatch.setattr(PackedSFTTrainer, "compute_loss", interrupted)


def results(folder: Path) -> dict[str, bytes]:
    """Every weight file of the results, as bytes."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/*.safetensors"))}
    assert found
    return found


def optimizer(folder: Path, step: int) -> dict[str, Any]:
    return load_file(folder / "checkpoints" / f"checkpoint-{step}" / "optimizer-00001.safetensors")


def assert_same_run(one: Any, other: Any, steps: int) -> None:
    assert one.status == other.status == 0
    assert one.metrics() == other.metrics()
    assert sorted(one.metrics()) == list(range(1, steps + 1))
    assert one.metrics("tokens") == other.metrics("tokens")
    ones, others = results(one.folder), results(other.folder)
    assert ones.keys() == others.keys()
    assert [name for name in ones if ones[name] != others[name]] == []
    state, other_state = optimizer(one.folder, steps), optimizer(other.folder, steps)
    assert len(state) >= 30 and state.keys() == other_state.keys()
    assert [name for name in state if not torch.equal(state[name], other_state[name])] == []


FAST = ("full-packed-accumulated",)


@pytest.mark.parametrize(
    "case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_resumed_equals_uninterrupted(start, monkeypatch, case):
    """Killed in the first epoch between two saves, then stopped by a signal in a later one."""
    sections = CASES[case]
    whole = start("whole", **sections)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4, "kill")
        with pytest.raises(Killed):
            start("cut", **sections)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 5, "SIGTERM")
        stopped = start("cut", **sections)
    assert stopped.status == 75 and "stopped by SIGTERM" in stopped.screen
    assert "going on from checkpoint-2" in stopped.screen
    assert max(stopped.metrics()) == 5
    resumed = start("cut", **sections)
    assert "going on from checkpoint-5" in resumed.screen
    assert_same_run(whole, resumed, 6)


@pytest.mark.slow
def test_any_place_in_an_epoch_will_do(start, monkeypatch):
    """After every step: before, at and after the edges of the epochs of 4 steps."""
    train = {"steps": 6, "save_every": 1}
    whole = start("whole", train=train)
    for step in range(2, 7):
        with monkeypatch.context() as patched:
            interrupt_at(patched, step, "kill")
            with pytest.raises(Killed):
                start("cut", train=train)
    assert_same_run(whole, start("cut", train=train), 6)


def test_a_resumed_run_reads_the_tokens_that_were_kept(tiny_base, tmp_path, monkeypatch):
    """No row is asked of the tokenizer again."""
    from rich.console import Console

    from hybrid_ft.finetune.data import encoding_workers
    from hybrid_ft.finetune.recipe.schema import Recipe
    from hybrid_ft.finetune.training.run import run
    from hybrid_ft.finetune.training.sft.stage import SFT

    encoded = []
    real = encoding_workers.encoded_batch

    def spy(way, schema, rows):
        encoded.extend(origin for origin, _ in rows)
        return real(way, schema, rows)

    monkeypatch.setattr(encoding_workers, "encoded_batch", spy)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"a{n}?", "completion": "b"}) + "\n" for n in range(12)))
    data = {"sources": [{"path": str(file)}], "max_length": 64, "cache": str(tmp_path / "kept")}

    def start(output):
        train = {"steps": 4, "batch_tokens": 64, "save_every": 2}
        model = {"path": str(tiny_base)}
        recipe = Recipe.model_validate({"model": model, "data": data, "train": train, "output": str(tmp_path / output)})
        screen = io.StringIO()
        return run(recipe, SFT, Console(file=screen, width=200), False, False), screen.getvalue()

    with monkeypatch.context() as patched:
        interrupt_at(patched, 3, "kill")
        with pytest.raises(Killed):
            start("cut")
    assert len(encoded) == 12
    status, screen = start("cut")
    assert status == 0 and "going on from checkpoint-2" in screen and len(encoded) == 12
    # what was kept is what a run has that prepares its rows itself
    data["cache"] = False
    assert start("whole")[0] == 0 and len(encoded) == 24
    assert results(tmp_path / "cut") == results(tmp_path / "whole")


def test_dropout_is_on_in_these_runs(start):
    """Otherwise the tests above would not see a random state that was not restored."""
    with_dropout = start("one").metrics()
    other_seed = start("two", train={"seed": 1, "steps": 6}).metrics()
    assert with_dropout[1] != other_seed[1]


def test_a_damaged_newest_checkpoint_costs_steps_but_not_the_result(start, monkeypatch):
    whole = start("whole")
    with monkeypatch.context() as patched:
        interrupt_at(patched, 6, "kill")
        with pytest.raises(Killed):
            start("cut")
    weights = whole.folder.parent / "cut/checkpoints/checkpoint-4/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    resumed = start("cut")
    assert "checkpoint-4: model.safetensors is damaged" in resumed.screen
    assert "going on from checkpoint-2" in resumed.screen
    assert_same_run(whole, resumed, 6)


def test_a_run_killed_after_its_last_step_trains_no_more(start, monkeypatch):
    from hybrid_ft.finetune.training import run as training

    whole = start("whole")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(training.ends, "export", lambda *args: (_ for _ in ()).throw(Killed))
        start("cut")
    with monkeypatch.context() as patched:
        interrupt_at(patched, 7, "kill")
        assert_same_run(whole, start("cut"), 6)


def test_a_finished_run_writes_nothing(start, tmp_path):
    def seen() -> dict[str, tuple[int, int, int]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
            for path in [tmp_path, *tmp_path.rglob("*")]
        }

    start()
    before = seen()
    again = start()
    assert again.status == 0 and "finished" in again.screen
    assert seen() == before


def test_stock_loading_is_wrong_for_this_architecture_and_ours_is_right(start, tiny_base):
    """transformers' Trainer puts a checkpoint's names into transformers' model without complaint, and
    not all of them."""
    from transformers import OlmoHybridForCausalLM, Trainer

    import hybrid_ft
    from hybrid_ft.finetune.runs import weights

    checkpoint = start().folder / "checkpoints/checkpoint-6"
    trained = OlmoHybridForCausalLM.from_pretrained(checkpoint).state_dict()

    def wrong(model: torch.nn.Module) -> list[str]:
        return [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, trained[name])]

    class Stock:
        is_fsdp_enabled = is_deepspeed_enabled = False
        model = OlmoHybridForCausalLM.from_pretrained(tiny_base)
        _issue_warnings_after_load = staticmethod(lambda result: None)

    Trainer._load_from_checkpoint(Stock(), str(checkpoint))
    assert [name for name in wrong(Stock.model) if "conv1d" in name]
    ours = hybrid_ft.load(tiny_base)
    assert [name for name in wrong(ours) if "conv1d" in name]
    weights.load_into(ours, checkpoint)
    assert wrong(ours) == []


def test_saving_and_logging_may_change_on_the_way(start, monkeypatch):
    """And the new intervals hold, though the checkpoint's state has the old ones."""
    whole = start("whole")
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3, "kill")
        with pytest.raises(Killed):
            start("cut", train={"log_every": 2})
    resumed = start("cut", train={"save_every": 1, "keep": 9})
    names = sorted(path.name for path in (resumed.folder / "checkpoints").iterdir())
    assert names == [f"checkpoint-{step}" for step in range(2, 7)]
    assert sorted(resumed.metrics()) == [2, 3, 4, 5, 6]
    assert results(resumed.folder) == results(whole.folder)


def test_a_missing_state_file_is_no_fresh_start(start, tmp_path, monkeypatch):
    """Not even where the manifest, too, was made without it."""
    with monkeypatch.context() as patched:
        interrupt_at(patched, 3, "kill")
        with pytest.raises(Killed):
            start()
    checkpoint = tmp_path / "run/checkpoints/checkpoint-2"
    for name in ("optimizer-00001.safetensors", "scheduler.json", "random_state.safetensors", "trainer_state.json"):
        content = (checkpoint / name).read_bytes()
        (checkpoint / name).unlink()
        checkpoints.commit(checkpoint.rename(checkpoint.with_name("staged")), checkpoint)
        with pytest.raises(InputError, match=f"{name} is missing"):
            start()
        (checkpoint / name).write_bytes(content)


def test_metrics_lines_are_those_of_one_run(start, monkeypatch):
    """A killed run leaves lines of steps that are taken again; they are not told twice."""
    with monkeypatch.context() as patched:
        interrupt_at(patched, 4, "kill")
        with pytest.raises(Killed):
            start(train={"log_every": 1})
    lines = (start().folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_loss_over_several_steps_is_not_cut_by_a_checkpoint(start, monkeypatch):
    """The sum since the last line is lost with the process, so a line ends where a checkpoint does."""
    train = {"log_every": 4, "save_every": 3, "steps": 8}
    whole = start("whole", train=train)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 6, "kill")
        with pytest.raises(Killed):
            start("cut", train=train)
    assert sorted(whole.metrics()) == [3, 4, 6, 8]
    assert start("cut", train=train).metrics() == whole.metrics()
