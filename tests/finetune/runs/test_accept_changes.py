"""A run goes on with something changed only when its user says so, and says then what has changed."""

import json

import pytest
from run_helpers import copied

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs import identity


@pytest.fixture(scope="module")
def killed_run(start_once):
    """A run of 6 steps that was killed in step 5, of which checkpoint-4 is there."""
    from hybrid_ft.finetune.training.sft.trainer import PackedSFTTrainer

    class Killed(BaseException):
        pass

    compute_loss = PackedSFTTrainer.compute_loss

    def killed(self, *args, **kwargs):
        if self.state.global_step == 4:
            raise Killed
        return compute_loss(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(PackedSFTTrainer, "compute_loss", killed)
        start_once()
    return start_once.place / "run"


@pytest.fixture
def stopped(killed_run, tmp_path):
    copied(killed_run, tmp_path / "run")


def test_a_changed_recipe_is_refused_and_then_accepted_and_holds(stopped, start, tmp_path):
    changed = {"learning_rate": 1e-3, "schedule": "constant", "steps": 7}
    with pytest.raises(InputError, match=r"train.learning_rate was 0.01, is 0.001 .*--accept-changes") as caught:
        start(train=changed)
    assert caught.value.status == 2
    run = start(train=changed, accept=True)
    assert run.status == 0 and "going on from checkpoint-4" in run.screen
    assert "changed   train.learning_rate, train.schedule, train.steps: accepted" in run.screen
    rates = run.metrics("learning_rate")
    assert rates[4] == 0.01 * (6 - 3) / 6 and rates[5] == rates[7] == 1e-3
    record = json.loads((run.folder / "run.json").read_text())
    assert record["accepted"][0]["changed"]["train.learning_rate"] == [0.01, 0.001]
    assert "learning_rate: 0.001" in (run.folder / "recipe.yaml").read_text()
    # it is that run now
    assert "finished" in start(train=changed).screen


def test_changed_rows_are_refused_and_then_accepted(stopped, start):
    with pytest.raises(InputError, match="rows was sha256"):
        start(seed=1)
    assert start(seed=1, accept=True).status == 0


@pytest.mark.parametrize(
    ("what", "value", "key"),
    [("code_digest", lambda: "sha256:other", "code"), ("library_versions", lambda: {"version.trl": "9.9"}, "version.")],
)
def test_changed_code_is_refused(stopped, start, monkeypatch, what, value, key):
    monkeypatch.setattr(identity, what, value)
    with pytest.raises(InputError, match=f"belongs to another run: {key}"):
        start()
    assert start(accept=True).status == 0


def test_another_number_of_processes_goes_on_and_is_said_once(stopped, start, tmp_path):
    record = tmp_path / "run/run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"processes": 4}))
    assert "processes 1, was 4: a step is the same rows, and rounds differently" in start().screen
    assert json.loads(record.read_text())["processes"] == 1


def test_accepting_nothing_changes_nothing(start):
    whole = start("whole")
    accepted = start("accepted", accept=True)
    assert "changed" not in accepted.screen and "accepted" not in json.loads((accepted.folder / "run.json").read_text())
    ones, others = (run.folder / "model/model.safetensors" for run in (whole, accepted))
    assert ones.read_bytes() == others.read_bytes()
