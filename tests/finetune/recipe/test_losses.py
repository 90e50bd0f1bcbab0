"""The table of losses against TRL's own computation: names, values of equal models, normalisation, smoothing,
sorting."""

import re
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import DPOConfig, DPOTrainer

from hybrid_ft.finetune.recipe.losses import DEFAULT, LOSSES
from hybrid_ft.finetune.recipe.schema import Dpo

PAIRS = 5
LENGTHS = [(3, 5), (2, 2), (7, 4), (5, 6), (4, 1)]  # tokens of the chosen and the rejected answer


def answers(seed: int, spread: float = 0.5) -> list[torch.Tensor]:
    """Log-probabilities of every token, of the chosen answers and then of the rejected ones."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [pair[0] for pair in LENGTHS] + [pair[1] for pair in LENGTHS]
    return [-1 + spread * torch.randn(length, generator=generator, dtype=torch.float64) for length in lengths]


def trl_loss(
    loss: str, policy: list[torch.Tensor], reference: list[torch.Tensor], beta: float = 0.3, smoothing: float = 0.1
) -> float:
    """``DPOTrainer._compute_loss`` of answers whose log-probabilities are given, after a prompt of one token."""
    longest = max(map(len, policy))
    log_probs = torch.stack([torch.cat([tokens, tokens.new_zeros(longest - len(tokens))]) for tokens in policy])
    mask = torch.stack([torch.arange(longest + 1) <= len(tokens) for tokens in policy]).long()
    mask[:, 0] = 0
    sums = torch.stack([tokens.sum() for tokens in reference])
    chosen, rejected = sums.chunk(2)
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    nothing = torch.zeros_like(log_probs)
    head = SimpleNamespace(log_probs=log_probs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    def same(values: torch.Tensor) -> torch.Tensor:
        return values

    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same),
        args=SimpleNamespace(discopop_tau=0.05),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[loss],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=smoothing,
        use_weighting=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    return float(DPOTrainer._compute_loss(trainer, lambda **_: head, inputs, False))


def alone(tokens: list[torch.Tensor], pair: int) -> list[torch.Tensor]:
    return [tokens[pair], tokens[pair + PAIRS]]


def test_the_losses_are_trl_s() -> None:
    assert set(LOSSES) == set(re.findall(r"`'(\w+)'`", DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]))
    with pytest.raises(ValueError, match="Unknown loss type") as error:
        trl_loss("none", answers(0), answers(1))
    assert set(LOSSES) == set(re.findall(r"'(\w+)'", str(error.value)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("beta", "smoothing"), [(0.1, 0.1), (0.5, 0.001), (5.0, 0.4)])
def test_value_for_equal_models(loss: str, beta: float, smoothing: float) -> None:
    row, policy = LOSSES[loss], answers(0)
    value = trl_loss(loss, policy, policy, beta, smoothing)
    if row.when_equal is None:
        assert value == trl_loss(loss, policy, answers(1), beta, smoothing), "it reads the reference"
    else:
        assert value == pytest.approx(row.when_equal(beta, smoothing), rel=1e-6)
        assert value != trl_loss(loss, policy, answers(1), beta, smoothing)


@pytest.mark.parametrize("loss", LOSSES)
def test_normalised(loss: str) -> None:
    """Answers of twice the length with the same log-probabilities per token are the same to a loss that normalises."""
    policy, reference = answers(0), answers(1)
    value = trl_loss(loss, policy, reference)
    longer = trl_loss(loss, [torch.cat([t, t]) for t in policy], [torch.cat([t, t]) for t in reference])
    assert (longer == pytest.approx(value, rel=1e-9)) == LOSSES[loss].normalised


@pytest.mark.parametrize("loss", LOSSES)
def test_smoothing(loss: str) -> None:
    policy, reference = answers(0), answers(1)
    values = [trl_loss(loss, policy, reference, smoothing=smoothing) for smoothing in (0.0, 0.1, 0.2)]
    assert (values[1] != values[2]) == (LOSSES[loss].smoothing != "none")
    assert (not torch.isfinite(torch.tensor(values[0]))) == (LOSSES[loss].smoothing == "needed")


@pytest.mark.parametrize("loss", LOSSES)
def test_parts_of_a_step_add_up(loss: str) -> None:
    """Computed pair by pair and weighed, the pairs give the loss of the step, unless it sorts them."""
    policy, reference = answers(0), answers(1)
    whole = trl_loss(loss, policy, reference)
    parts = torch.tensor([trl_loss(loss, alone(policy, pair), alone(reference, pair)) for pair in range(PAIRS)])
    weights = {"pairs": torch.ones(PAIRS), "chosen tokens": torch.tensor([float(pair[0]) for pair in LENGTHS])}
    right = {
        by: float((parts * weight).sum() / weight.sum()) == pytest.approx(whole, 1e-6) for by, weight in weights.items()
    }
    assert right == {by: by == LOSSES[loss].weighs_by and not LOSSES[loss].sorts for by in weights}


def test_a_beta_above_1_needs_a_loss_per_token() -> None:
    assert all(row.normalised for row in LOSSES.values() if row.beta > 1)


def test_defaults_are_the_table_s() -> None:
    assert Dpo().loss == DEFAULT
    for name, row in LOSSES.items():
        for beta in ({}, {"beta": None}):
            assert Dpo.model_validate({"loss": name, **beta}).beta == row.beta
    assert Dpo.model_validate({"loss": None, "beta": 2}).model_dump(include={"loss", "beta"}) == {
        "loss": DEFAULT,
        "beta": 2.0,
    }
