"""TRL's DPOTrainer on pairs whose prompts are computed once.

Its losses run unchanged on the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from trl import DPOTrainer

from hybrid_ft.finetune.recipe.losses import LOSSES
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.answer_log_probs import answer_log_probs
from hybrid_ft.finetune.training.dpo.batches import Pair, chosen_tokens, laid_out_pairs
from hybrid_ft.finetune.training.dpo.metrics import PairSums
from hybrid_ft.finetune.training.own_tokens import own_answers
from hybrid_ft.finetune.training.pair_steps import PARTS, PairCollator
from hybrid_ft.finetune.training.shared_prompts import count_work
from hybrid_ft.finetune.training.starting_values import StartingValues
from hybrid_ft.finetune.training.step_trainer import StepTrainer
from hybrid_ft.finetune.training.streamed import StreamedTrainer
from hybrid_ft.hybrid_model.families.known import family_of


class PairTrainer(StepTrainer, DPOTrainer):
    """``train_dataset`` and ``eval_dataset`` have the columns of ``Pair``, the reference's among them, and ``row``.

    pairs_per_step  over all processes; in a micro-batch of ``batch_tokens`` each prompt counts once
    """

    parts = PARTS

    def __init__(self, *args: Any, pairs_per_step: int, **kwargs: Any) -> None:
        super().__init__(*args, rows_per_step=pairs_per_step, **kwargs)
        self.pad_token_id = self._tokenizer.pad_token_id
        if isinstance(self.model, PeftModel):
            # TRL keeps a copy of the adapter for the reference, whose log-probabilities are computed before it is moved
            self.model.delete_adapter("ref")
        plain = seams.plain_model(self.model)
        # without the entropies and mean logits that TRL has its head report
        seams.use_fused_head(plain)
        self.forks = family_of(plain.config).forks
        loss = LOSSES[self.loss_types[0]]
        self.sums = {mode: PairSums(self.beta, loss.normalised) for mode in ("train", "eval")}
        self.data_collator = PairCollator(
            partial(laid_out_pairs, pad_token_id=self.pad_token_id, forks=self.forks),
            self.batch_tokens,
            count_work(plain.config, frozen_weights=plain is not self.model),
            chosen_tokens if loss.weighs_by == "chosen tokens" else lambda pair: 1,
            self.team.count,
            self.team.number,
        )

    def padded(self, rows: Sequence[Pair]) -> dict[str, Any]:
        return laid_out_pairs(rows, self.pad_token_id, self.forks)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        seen: list[torch.Tensor] = []
        loss = super()._compute_loss(partial(answer_log_probs, model, seen=seen), inputs, return_outputs)
        if self.counted:
            self.sums[mode].add(seen[0], inputs)
        return loss

    def compute_ref_log_probs(
        self, model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return super().compute_ref_log_probs(partial(answer_log_probs, model), inputs)

    def reference(self, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's log-probabilities of both answers as it starts, float32 [P] each, in one micro-batch."""
        batch = self._prepare_inputs(own_answers(self.padded(pairs), self.team))
        with self.measuring():
            # without a model of its own TRL takes the base without adapters, and one may have been trained before
            self.ref_model = self.model
            try:
                chosen, rejected = self.compute_ref_log_probs(self.model, batch)
            finally:
                self.ref_model = None
        return chosen.float().cpu(), rejected.float().cpu()


class StreamedPairTrainer(StreamedTrainer, PairTrainer):
    """DPO on a stream: the reference's log-probabilities are computed for each micro-batch as it comes, by the model
    with the values that it had when ``keep_start`` was called."""

    started: StartingValues

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # backward computes the gradients of activations, and of weights where these are trained
        collator, with_reference = self.data_collator, 3 / 2 if isinstance(self.model, PeftModel) else 4 / 3

        def work(pairs: Sequence[Pair]) -> tuple[int, int]:
            shared, unshared = collator.work(pairs)
            return round(with_reference * shared), round(with_reference * unshared)

        self.data_collator = replace(collator, work=work)

    def keep_start(self) -> None:
        """The model is its own reference as it is now."""
        self.started = StartingValues(self.model)

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if "ref_chosen_logps" not in inputs:
            inputs = inputs | self._reference_of(inputs)
        return super()._compute_loss(model, inputs, return_outputs)

    def _reference_of(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """``ref_chosen_logps`` and ``ref_rejected_logps``, [P] each."""
        # in eval mode, where nothing is checkpointed; TRL would turn that off and on, with other hooks than a run has
        with self.measuring(), self.started.put_in():
            found = answer_log_probs(
                self.model, batch["answers"], batch["input_ids"], use_cache=False, fused_lm_head=True
            )
        chosen, rejected = found.log_probs.sum(1).chunk(2)
        return {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
