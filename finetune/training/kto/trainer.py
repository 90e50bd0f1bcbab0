"""TRL's KTOTrainer on judged answers whose prompts are computed once.

Its losses run unchanged on the log-probabilities. The KL term is of the whole step: before its micro-batches the
mismatched answers are computed without gradients, so that neither the size of the micro-batches nor the number of
processes changes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader
from trl import KTOTrainer

from hybrid_ft.finetune.runs.processes import Processes
from hybrid_ft.finetune.runs.team import Team
from hybrid_ft.finetune.training import seams
from hybrid_ft.finetune.training.answer_log_probs import answer_log_probs
from hybrid_ft.finetune.training.kto.batches import (
    ANSWER,
    PARTS,
    StepCollator,
    bounds_of,
    laid_out_answers,
    mismatched,
)
from hybrid_ft.finetune.training.kto.metrics import AnswerSums
from hybrid_ft.finetune.training.kto.sampler import StepSampler
from hybrid_ft.finetune.training.own_tokens import own_answers
from hybrid_ft.finetune.training.portions import Row, micro_batches
from hybrid_ft.finetune.training.shared_prompts import count_work, dealt
from hybrid_ft.finetune.training.step_trainer import StepTrainer
from hybrid_ft.hybrid_model.families.known import family_of


class AnswerTrainer(StepTrainer, KTOTrainer):
    """``train_dataset`` and ``eval_dataset`` have the columns of ``PARTS``, ``label``, the reference's and ``row``;
    steps lie in them as ``bounds_of`` says.

    rows_per_step  over all processes
    batch_tokens   of a micro-batch, each prompt counted once
    max_length     tokens of a prompt with a mismatched answer
    """

    parts = PARTS

    def __init__(self, *args: Any, max_length: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pad_token_id, self.kl = self._tokenizer.pad_token_id, 0.0
        self.most = max_length if self.calculate_KL else None
        if isinstance(self.model, PeftModel):
            # TRL keeps a copy of the adapter for the reference, whose log-probabilities are computed before it is moved
            self.model.delete_adapter("ref")
        plain = seams.plain_model(self.model)
        # without the entropies and mean logits that TRL has its head report
        seams.use_fused_head(plain)
        frozen, self.forks = plain is not self.model, family_of(plain.config).forks
        self.sums = {mode: AnswerSums(self.beta) for mode in ("train", "eval")}
        self.data_collator = StepCollator(
            self.pad_token_id,
            self.batch_tokens,
            self.most,
            count_work(plain.config, frozen, ANSWER),
            self.forks,
            # backward computes the gradients of activations, and of weights where these are trained
            1 / 2 if frozen else 1 / 3,
            self.team.count,
            self.team.number,
        )

    def padded(self, rows: Sequence[Row]) -> dict[str, Any]:
        return laid_out_answers(rows, self.pad_token_id, self.forks)

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def get_train_dataloader(self) -> DataLoader:
        """Whole steps, in every process the same; the collator takes this process's part."""
        bounds = bounds_of(len(self.train_dataset), self.rows_per_step)
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=StepSampler(bounds, self.args.data_seed),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )
        return prepare_data_loader(loader, num_processes=1, process_index=0)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any) -> torch.Tensor:
        """The step's KL term, then its micro-batches."""
        if self.calculate_KL:
            total = self.kl_sum(model, inputs["mismatched"], self.team)
            self.kl = max(0.0, self.processes.sum([total])[0] / len(inputs["rows"]))
        return super().training_step(model, inputs, *args)

    def kl_sum(self, model: torch.nn.Module, batches: Iterable[dict[str, Any]], team: Team) -> float:
        """Sum of log pi - log pi_ref over the mismatched answers of this team's micro-batches, or 0 where another
        process of it says that."""
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad(), self.arithmetic():
            for batch in batches:
                mine = self._prepare_inputs(own_answers(batch, team))
                gains = self._log_probs(model, mine) - batch["ref_logps"].to(self.args.device)
                if batch["share"] and team.speaks:
                    total += gains.double().sum().cpu()
                self.watchdog.beat()
        return float(total)

    def _log_probs(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        """Of each answer, [B]."""
        found = answer_log_probs(model, batch["answers"], batch["input_ids"], use_cache=False, fused_lm_head=True)
        return found.log_probs.sum(-1)

    def _compute_kl_logps(self, model: torch.nn.Module, batch: dict[str, Any]) -> torch.Tensor | None:
        """The step's KL term, which TRL takes for the mean over a micro-batch; the reference's part is in it."""
        return torch.full((1,), self.kl, device=self.args.device) if self.calculate_KL else None

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any], return_outputs: bool) -> Any:
        mode = "train" if self.model.training else "eval"
        seen: list[torch.Tensor] = []
        if self.calculate_KL:
            inputs = inputs | {"ref_KL_logps": torch.zeros(1, device=self.args.device)}
        loss = super()._compute_loss(partial(answer_log_probs, model, seen=seen), inputs, return_outputs)
        if self.counted:
            self.sums[mode].add(seen[0], inputs, self.kl)
        return loss

    def reference(self, rows: Sequence[Row]) -> tuple[torch.Tensor]:
        """The model's log-probabilities of some answers as it starts, float32 [rows], in one micro-batch."""
        answers = self.padded([row | {"label": True} for row in rows])
        batch = self._prepare_inputs(own_answers(answers, self.team))
        with self.measuring():
            return (self._log_probs(self.model, batch).float().cpu(),)

    def held_out(self, alone: bool = False) -> dict[str, float]:
        """As in ``StepTrainer``; the KL term is of all held-out rows."""
        if self.calculate_KL:
            processes, team = (Processes(), Team()) if alone else (self.processes, self.team)
            rows, total = self.eval_dataset, 0.0
            with self.measuring():
                for first, last in pairwise(bounds_of(len(rows), self.rows_per_step)):
                    if processes.any(self.stop.now):
                        self.stop.agreed = True
                        break
                    others = mismatched(list(rows.select(range(first, last))), self.most or 0)
                    portions, _ = dealt(others, ANSWER, self.batch_tokens, team.count, team.number)
                    total += self.kl_sum(self.model, micro_batches(others, portions, self.padded), team)
            self.kl = max(0.0, processes.sum([total])[0] / len(rows))
        return super().held_out(alone)
