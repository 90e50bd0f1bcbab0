"""A step on pairs against TRL's own trainer on transformers' own model: the same losses, the same gradients."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from run_helpers import gradients, move, our_step
from trl import DPOConfig, DPOTrainer

LOSSES = re.findall(r"`'(\w+)'`", DPOConfig.__dataclass_fields__["loss_type"].metadata["help"])
SORTING = ("aot", "aot_unpaired")


class StockTrainer(DPOTrainer):
    """TRL as it is, on pairs that come in tokens."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@pytest.fixture(scope="module")
def stock(steady_base: Path, tiny_tokenizer: Any, make_pairs: Any, tmp_path_factory: Any) -> Any:
    """TRL's trainer whose model has left its reference, and the pairs."""
    from transformers import OlmoHybridForCausalLM

    pairs = make_pairs(12)
    policy, reference = (OlmoHybridForCausalLM.from_pretrained(steady_base, dtype=torch.float32) for _ in range(2))
    move(policy, 0.02)
    args = DPOConfig(
        str(tmp_path_factory.mktemp("stock")),
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        remove_unused_columns=False,
    )
    trainer = StockTrainer(policy, reference, args, train_dataset=pairs, processing_class=tiny_tokenizer)
    return trainer, pairs


def stock_step(stock: Any, loss: str, beta: float, smoothing: float) -> tuple[float, torch.Tensor]:
    trainer, pairs = stock
    trainer.loss_types, trainer.beta, trainer.label_smoothing = [loss], beta, smoothing
    trainer.model.zero_grad()
    value = trainer.compute_loss(trainer.model.eval(), trainer.data_collator(list(pairs)))
    value.backward()
    return float(value.detach()), gradients(trainer.model)


# a loss of each way to a step: pair by pair, sorted, by the token, one side for itself
FAST = ("sigmoid", "sigmoid_norm", "apo_zero", "bco_pair", "aot", "discopop")


@pytest.mark.parametrize(
    "loss", [loss if loss in FAST else pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES]
)
def test_every_loss_is_trl_s(stock: Any, make_trainer: Any, loss: str) -> None:
    beta = 2.0 if loss == "sigmoid_norm" else 0.3
    smoothing = 0.1 if loss in ("robust", "exo_pair", *SORTING) else 0.0
    expected, expected_gradient = stock_step(stock, loss, beta, smoothing)
    budget = 10_000 if loss in SORTING else 100
    trainer = make_trainer(stock[1], batch_tokens=budget, moved=0.02, loss=loss, beta=beta, label_smoothing=smoothing)
    assert (len(trainer.data_collator(list(trainer.train_dataset))["micro_batches"]) > 3) == (loss not in SORTING)
    value, gradient = our_step(trainer)
    assert value == pytest.approx(expected, rel=1e-5)
    # discopop divides the rewards by 0.05 in an exponent, and so their rounding
    within = 5e-5 if loss == "discopop" else 1e-5
    assert (gradient - expected_gradient).norm() < within * expected_gradient.norm()


def test_trl_s_own_trainer_shares_prompts_too(
    stock: Any, steady_base: Path, tiny_tokenizer: Any, tmp_path: Path
) -> None:
    """A user's script needs our model and our collator: the two columns reach the model as keywords."""
    import hybrid_ft
    from hybrid_ft.finetune.training.dpo.batches import padded_pairs

    policy, reference = (hybrid_ft.load(steady_base, dtype=torch.float32) for _ in range(2))
    move(policy, 0.02)
    ran: list[int] = []
    policy.model.layers[0].register_forward_hook(lambda module, inputs, output: ran.append(output.shape[:2].numel()))
    args = DPOConfig(str(tmp_path), max_length=None, use_cpu=True, bf16=False, report_to="none", loss_type=["sigmoid"])
    args.gradient_checkpointing = args.remove_unused_columns = False
    trainer = StockTrainer(
        policy,
        reference,
        args,
        data_collator=lambda pairs: padded_pairs(pairs, tiny_tokenizer.pad_token_id),
        train_dataset=stock[1],
        processing_class=tiny_tokenizer,
    )
    trainer.beta = 0.3
    value = trainer.compute_loss(policy, trainer.data_collator(list(stock[1])))
    value.backward()
    expected, expected_gradient = stock_step(stock, "sigmoid", 0.3, 0.0)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-5)
    assert (gradients(policy) - expected_gradient).norm() < 1e-5 * expected_gradient.norm()
    prompts = {tuple(pair["prompt_ids"]) for pair in stock[1]}
    answers = sum(len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in stock[1])
    assert ran == [sum(map(len, prompts)) + answers]


@pytest.mark.parametrize("budget", [10_000, 60])
def test_all_pairs_of_a_list_are_trl_s_step(stock: Any, make_trainer: Any, budget: int) -> None:
    """The prompt and each of its four answers are computed once, in one micro-batch; a small one takes what it can."""
    prompt, answers = list(stock[1]["prompt_ids"][0]), list(stock[1]["chosen_ids"][:4])
    both = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    pairs = Dataset.from_list(
        [
            {"prompt_ids": prompt, "chosen_ids": answers[good], "rejected_ids": answers[bad], "origin": f"list:{n}"}
            for n, (good, bad) in enumerate(both)
        ]
    )
    expected, expected_gradient = stock_step((stock[0], pairs), "sigmoid", 0.3, 0.0)
    trainer = make_trainer(pairs, batch_tokens=budget, moved=0.02, loss="sigmoid", beta=0.3)
    ran: list[int] = []
    trainer.model.model.layers[0].register_forward_hook(lambda module, inputs, output: ran.append(output.shape[1]))
    value, gradient = our_step(trainer)
    assert value == pytest.approx(expected, rel=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-5 * expected_gradient.norm()
    if budget == 10_000:
        assert ran == [len(prompt) + sum(map(len, answers))]
    trainer.prompts = [0, 1, 0, 1, 2, 2]
    trainer.rows_per_step = 2
    steps = [sorted(step["rows"]) for step in trainer.get_train_dataloader()]
    assert sorted(steps) == [[0, 2], [1, 3], [4, 5]]


def test_micro_batches_do_not_change_the_step(make_trainer: Any, make_pairs: Any) -> None:
    pairs = make_pairs(24)
    value, gradient = our_step(make_trainer(pairs, moved=0.02))
    for budget in (60, 150, 400):
        trainer = make_trainer(pairs, batch_tokens=budget, moved=0.02)
        again, other = our_step(trainer)
        assert again == pytest.approx(value, rel=1e-6)
        assert (other - gradient).norm() < 2e-6 * gradient.norm()


def test_order_of_pairs_does_not_change_the_step(make_trainer: Any, make_pairs: Any) -> None:
    pairs = make_pairs(16)
    value, gradient = our_step(make_trainer(pairs, moved=0.02))
    again, other = our_step(make_trainer(pairs.shuffle(seed=3), moved=0.02))
    assert again == pytest.approx(value, rel=1e-6)
    assert (other - gradient).norm() < 2e-6 * gradient.norm()


def test_exchanged_answers_exchange_the_numbers(make_trainer: Any, make_pairs: Any) -> None:
    """To the last bit."""
    pairs = make_pairs(9)
    names = {"chosen_ids": "rejected_ids", "rejected_ids": "chosen_ids"}
    found = []
    for rows in (
        pairs,
        pairs.rename_columns({"chosen_ids": "a", "rejected_ids": "chosen_ids"}).rename_column("a", "rejected_ids"),
    ):
        trainer = make_trainer(rows, moved=0.02, loss="sigmoid", beta=0.3)
        our_step(trainer)
        ours = trainer.sums["train"].take()
        references = trainer.train_dataset["ref_chosen_logps"], trainer.train_dataset["ref_rejected_logps"]
        found.append((ours, [list(column) for column in references]))
    (one, references), (other, exchanged) = found
    assert names.keys() <= set(pairs.column_names)
    assert references == exchanged[::-1]
    assert one["rewards/margins"] == -other["rewards/margins"] != 0
    for side, opposite in (("chosen", "rejected"), ("rejected", "chosen")):
        for name in ("logps/{}", "{}_gain", "{}_tokens"):
            assert one[name.format(side)] == other[name.format(opposite)]


def test_lora_is_compared_with_the_base(make_trainer: Any, make_pairs: Any) -> None:
    """The reference of a fresh adapter is the model without it; only the adapter has gradients."""
    trainer = make_trainer(make_pairs(8), batch_tokens=100, moved=0.05, lora=True)
    before = list(trainer.train_dataset["ref_chosen_logps"])
    value, gradient = our_step(trainer)
    assert value != pytest.approx(0.6931, abs=1e-3)
    assert gradient.norm() > 0
    with trainer.model.disable_adapter():
        of_base = [float(trainer.reference([pair])[0]) for pair in trainer.train_dataset]
    assert of_base == pytest.approx(before, rel=1e-6)
    assert all("lora_" in name for name, p in trainer.model.named_parameters() if p.grad is not None)
    assert list(trainer.model.peft_config) == ["default"]


def test_only_answers_are_projected(make_trainer: Any, make_pairs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head sees the tokens before an answer's, once each, and no prompt or padding."""
    from hybrid_ft.finetune.training import log_prob_head as cpu_head

    seen = []
    project = cpu_head.token_log_probs

    def watched(hidden: torch.Tensor, *rest: Any) -> Any:
        seen.append(len(hidden))
        return project(hidden, *rest)

    monkeypatch.setattr(cpu_head, "token_log_probs", watched)
    pairs = make_pairs(12)
    trainer = make_trainer(pairs, batch_tokens=120, moved=0.02)
    seen.clear()
    our_step(trainer)
    assert sum(seen) == sum(len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in pairs)


def test_every_prompt_runs_once(make_trainer: Any, make_pairs: Any) -> None:
    """Every fifth pair has the prompt of the one before it: four pairs of prompts among ten."""
    pairs = make_pairs(10, prompts=(20, 30))
    trainer = make_trainer(pairs)
    ran = []
    trainer.model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: ran.append(output.shape[:2].numel())
    )
    our_step(trainer)
    prompts = {tuple(pair["prompt_ids"]) for pair in pairs}
    answers = sum(len(pair["chosen_ids"]) + len(pair["rejected_ids"]) for pair in pairs)
    assert len(prompts) == 8
    assert ran == [sum(map(len, prompts)) + answers]
