"""A reward model on a stream of pairs: a run that was killed and stopped ends as the uninterrupted one."""

import json
from typing import Any

import pytest
from run_helpers import resumed_and_whole, timeless
from stage_runs import streams_of_pairs

from hybrid_ft.finetune.training.reward.trainer import ScoreTrainer


@pytest.fixture
def go(tmp_path: Any, tiny_base: Any) -> Any:
    """``go("run")``: as ``streams_of_pairs`` says."""
    from hybrid_ft.finetune.training.reward.stage import REWARD

    return streams_of_pairs(tmp_path, tiny_base, REWARD)


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_killed_and_stopped_it_ends_as_the_uninterrupted_run(go: Any, monkeypatch: Any, workers: int) -> None:
    resumed, whole = resumed_and_whole(monkeypatch, go, ScoreTrainer, train={"loader_workers": workers})
    records = [json.loads((folder / "run.json").read_text()) for folder in (resumed, whole)]
    assert records[0]["data"] == records[1]["data"]
    account = records[1]["data"]["account"]
    assert account["sources"][0]["rows_read"] == 25 and account["train"]["pairs_held_out"] == 2
    assert account["sources"][0]["dropped"]["not JSON"]["rows"] == 1
    # a pass ends with what is left of it
    assert [line["pairs"] for line in timeless(whole) if "pairs" in line] == [4, 4, 4, 4, 4, 2, 4, 4]


def test_a_run_says_what_it_reads_and_held_out_pairs_are_no_part_of_it(go: Any, monkeypatch: Any) -> None:
    seen: list[str] = []
    step = ScoreTrainer.training_step

    def taken(self: Any, model: Any, inputs: Any, *args: Any) -> Any:
        seen.extend(inputs["rows"])
        return step(self, model, inputs, *args)

    monkeypatch.setattr(ScoreTrainer, "training_step", taken)
    run = go("run")
    assert run.status == 0
    assert "4 pairs each, in micro-batches of at most 128 tokens; of 9 shuffled pairs at a time" in run.screen
    assert len(seen) == 30 and len(set(seen)) == len(set(seen[:22])) == 22  # none twice before the pass has ended
    assert "22 pairs" not in run.screen and "2 pairs held out; in pass 2" in run.screen
