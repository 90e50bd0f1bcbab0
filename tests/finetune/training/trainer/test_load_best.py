"""``evaluate.load_best``: the result is the checkpoint of the lowest held-out loss, to the last bit."""

import json
import shutil

import pytest
from run_helpers import killed_in
from safetensors.torch import load_file

from hybrid_ft.errors import InputError

# so fast that the held-out loss falls and then rises again
BEST = {
    "held_out": 6,
    "train": {"steps": 10, "save_every": 4, "keep": 1, "learning_rate": 3e-2, "schedule": "constant"},
    "evaluate": {"every": 1, "load_best": True},
}


def best_step(run) -> int:
    losses = run.metrics("eval_loss")
    return min(losses, key=losses.__getitem__)


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(start_once):
    return start_once("whole", **BEST)


def test_the_result_has_the_best_weights_and_no_other(whole):
    run = whole
    step = best_step(run)
    assert step < 10, "the last step is the best one: this run shows nothing"
    kept = sorted(path.name for path in (run.folder / "checkpoints").iterdir())
    assert kept == sorted([f"checkpoint-{step}", "checkpoint-10"])
    best, result, last = (
        weights(run.folder / place)
        for place in (f"checkpoints/checkpoint-{step}", "model", "checkpoints/checkpoint-10")
    )
    assert all((best[name] == result[name]).all() for name in best)
    assert not all((last[name] == result[name]).all() for name in last)
    assert f"the weights of checkpoint-{step}" in run.screen
    after = float(run.screen.partition("held-out loss  ")[2].split()[1])
    assert after == pytest.approx(run.metrics("eval_loss")[step], abs=1e-4)


def test_without_it_the_last_weights_are_the_result(start):
    run = start(**BEST | {"evaluate": {"every": 1}})
    last, result = weights(run.folder / "checkpoints/checkpoint-10"), weights(run.folder / "model")
    assert all((last[name] == result[name]).all() for name in last)


@pytest.mark.parametrize("lost", [pytest.param(False, marks=pytest.mark.slow), True], ids=["", "its machine lost"])
def test_a_run_killed_on_the_way_has_the_same_best(start, whole, monkeypatch, tmp_path, lost):
    """Also where nothing is left of the run but its mirror."""
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    how = BEST | ({"mirror": str(tmp_path / "mirror")} if lost else {})
    for step in (3, best_step(whole) + 1, 10):
        with killed_in(monkeypatch, PackedSFTTrainer, step - 1):
            start("cut", **how)
        if lost:
            shutil.rmtree(tmp_path / "cut")
    cut = start("cut", **how)
    assert (cut.folder / "model/model.safetensors").read_bytes() == (
        whole.folder / "model/model.safetensors"
    ).read_bytes()
    assert cut.metrics("eval_loss") == whole.metrics("eval_loss")


def test_a_damaged_best_checkpoint_is_told_and_not_replaced_by_another(start, tmp_path, monkeypatch):
    from hybrid_ft.finetune.training import run as training

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training.ends, "export", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        start(**BEST)
    folder = tmp_path / "run"
    step = min(
        (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if "eval_loss" in line),
        key=lambda line: line["eval_loss"],
    )["step"]
    file = folder / f"checkpoints/checkpoint-{step}/model.safetensors"
    shutil.copy(file, folder.parent / "kept")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"checkpoint-{step}: .*it had the lowest held-out loss") as caught:
        start(**BEST)
    assert caught.value.status == 5 and not (folder / "model").exists()
    shutil.copy(folder.parent / "kept", file)
    assert start(**BEST).status == 0


def test_it_needs_held_out_losses_on_the_way(tmp_path):
    from hybrid_ft.finetune.recipe.load import load_recipe

    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "r.yaml").write_text(
        f"model: {{path: tiny}}\ndata: {{sources: [{{path: {tmp_path}/rows.jsonl}}]}}\nevaluate: {{load_best: true}}\n"
    )
    with pytest.raises(InputError, match=r"r.yaml:3: evaluate.load_best: needs held-out losses on the way"):
        load_recipe(tmp_path / "r.yaml")
