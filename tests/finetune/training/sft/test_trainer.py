"""What a run trains on, and how its losses and answers are reckoned."""

import json
import math
from typing import Any

import pytest
import torch
from run_helpers import plain_model, rows_in, wrap_loss
from torch.nn.functional import cross_entropy


def loss_row_by_row(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Mean negative log-likelihood over the trained tokens of all rows, by their weights, each row alone through
    transformers' layers."""
    total, weighed = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        weights = torch.tensor(row.get("weights") or [1.0] * len(row["labels"]), dtype=torch.float64)[1:]
        losses = cross_entropy(logits.double(), labels, ignore_index=-100, reduction="none")
        total = total + (losses * weights).sum()
        weighed += weights[labels != -100].sum()
    return total / weighed


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the model got in training: a micro-batch each, with its step and the rows of that step."""
    batches: list[dict[str, Any]] = []

    def spy(trainer: Any, inputs: dict[str, Any], loss: Any) -> Any:
        batches.append({"step": trainer.state.global_step + 1, "step_rows": list(trainer.counts.rows), **inputs})
        return loss

    wrap_loss(monkeypatch, spy)
    return batches


@pytest.mark.parametrize("packing", [True, False])
def test_every_epoch_shows_every_row_once_in_another_order(start, seen, packing):
    """13 rows, 3 micro-batches a step: neither batches nor steps divide an epoch."""
    run = start(rows=13, data={"packing": packing}, train={"accumulation": 3, "steps": None, "epochs": 3.0})
    micro_batches = len(run.prepared.packs) if packing else math.ceil(13 / 3)
    per_epoch = math.ceil(micro_batches / 3)
    assert max(run.metrics()) == 3 * per_epoch
    rows = sorted(tuple(ids) for ids in run.prepared.train["input_ids"])
    orders = []
    for epoch in range(3):
        steps = range(epoch * per_epoch + 1, (epoch + 1) * per_epoch + 1)
        orders.append([row for batch in seen if batch["step"] in steps for row in rows_in(batch)])
        assert sorted(orders[-1]) == rows
    assert len({tuple(order) for order in orders}) == 3
    real = sum(len(row) for row in rows)
    slots = sum(batch["input_ids"].numel() for batch in seen)
    assert run.metrics("tokens")[3 * per_epoch] == 3 * real
    padding = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    shares = [line["padding"] for line in padding]
    if packing:
        assert slots == 3 * real and shares == [0.0] * len(shares)
    else:
        assert all(0 < share < 0.7 for share in shares)


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradient_are_the_mean_over_all_trained_tokens_of_the_step(start, seen, packing, weights, steady_base):
    """Against transformers' layers in float64, one row at a time, with micro-batches of unequal numbers of tokens."""
    run = start(
        rows=10,
        weights=weights,
        model={"path": str(steady_base)},
        data={"packing": packing},
        train={"accumulation": 3, "steps": 1, "max_grad_norm": 1e9},
    )
    assert len({int((batch["labels"] != -100).sum()) for batch in seen}) == len(seen) == 3
    model = plain_model(steady_base)
    loss = loss_row_by_row(model, [run.prepared.train[row] for row in seen[0]["step_rows"]])
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    assert run.metrics()[1] == pytest.approx(loss.item(), rel=1e-5)
    assert run.metrics("grad_norm")[1] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize(("packing", "weights"), [(True, False), (False, False), (True, True)])
def test_held_out_loss_is_that_of_each_row_alone(start, packing, weights, steady_base):
    run = start(
        rows=6,
        weights=weights,
        held_out=7,
        model={"path": str(steady_base)},
        data={"packing": packing},
        train={"steps": 2},
        evaluate={"every": 1},
    )
    rows = list(run.prepared.eval)
    record = json.loads((run.folder / "run.json").read_text())
    with torch.no_grad():
        before = loss_row_by_row(plain_model(steady_base), rows).item()
        after = loss_row_by_row(plain_model(run.folder / "model"), rows).item()
    assert record["before"]["held_out"]["loss"] == pytest.approx(before, rel=1e-5)
    assert run.metrics("eval_loss")[2] == pytest.approx(after, rel=1e-5)
    assert f"{before:.4f}" in run.screen and f"{after:.4f}" in run.screen


def test_evaluating_does_not_change_the_training(start):
    with_dropout = start("one", held_out=5, evaluate={"every": 1, "answers": 2, "samples": ["ab"]})
    without = start("two")
    assert with_dropout.metrics() == without.metrics()


def test_what_is_measured_before_is_not_measured_again(start, monkeypatch):
    from hybrid_ft.finetune.evaluation import answers

    class Killed(BaseException):
        pass

    calls: list[int] = []
    answer_held_out = answers.answer_held_out

    def counted(*args: Any) -> Any:
        calls.append(1)
        return answer_held_out(*args)

    def killed(trainer: Any, inputs: Any, loss: Any) -> Any:
        raise Killed

    monkeypatch.setattr(answers, "answer_held_out", counted)
    sections = {"held_out": 4, "evaluate": {"answers": 3, "samples": ["hello"]}}
    with monkeypatch.context() as patched, pytest.raises(Killed):
        wrap_loss(patched, killed)
        start(**sections)
    assert calls == [1]
    run = start(**sections)
    assert calls == [1, 1]
    lines = {
        name: (run.folder / f"{name}.jsonl").read_text().splitlines() for name in ("answers-before", "answers-after")
    }
    assert [len(rows) for rows in lines.values()] == [3, 3]
    assert json.loads(lines["answers-before"][0])["origin"] == "held.jsonl:1"
    assert "exact answers" in run.screen and "hello" in run.screen


def test_answers_are_exact_or_not(monkeypatch):
    from datasets import Dataset

    from hybrid_ft.finetune.evaluation import answers as evaluate
    from hybrid_ft.finetune.recipe.schema import Evaluate

    asked: list[Any] = []

    def answer(model: Any, tokenizer: Any, prompts: Any, end_ids: list[int], max_new_tokens: int) -> list[str]:
        asked.append((list(prompts), end_ids, max_new_tokens))
        return [" right\n", "wrong"]

    monkeypatch.setattr(evaluate, "answer", answer)
    rows = Dataset.from_dict(
        {
            "prompt_ids": [[index] for index in range(5)],
            "answer": ["right"] * 5,
            "origin": [f"held.jsonl:{index}" for index in range(5)],
        }
    )

    class Words:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return f"asked {ids[0]}" if skip_special_tokens else "<s>"

    answers = evaluate.answer_held_out(None, Words(), rows, [9], Evaluate(answers=2, max_new_tokens=7))
    assert asked == [([[0], [2]], [9], 7)]
    assert [(row["origin"], row["exact"]) for row in answers] == [("held.jsonl:0", True), ("held.jsonl:2", False)]
    assert [row["question"] for row in answers] == ["asked 0", "asked 2"]
