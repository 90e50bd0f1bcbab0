"""The recipe's schema: every key, its meaning, default, range and an example.

docs/recipe.md is made of it by scripts/make_recipe_docs.py: the text under a key is its description there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from hybrid_ft.finetune.recipe.data_section import Data
from hybrid_ft.finetune.recipe.keys import Free
from hybrid_ft.finetune.recipe.losses import DEFAULT, LOSSES
from hybrid_ft.finetune.recipe.model_section import Model
from hybrid_ft.finetune.recipe.preference_section import Kto, Reward
from hybrid_ft.finetune.recipe.section import NULL_IS_EMPTY, AtLeastOne, Section, Seed, Text
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE, STAGE_KINDS
from hybrid_ft.finetune.recipe.yaml_file import dump_yaml

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]

Beta = Annotated[float, Field(ge=0, lt=1)]


class Dpo(Section):
    """Preference tuning. With this section the rows are pairs. The base is the reference with
    which answers are compared.

    The reference's log-probabilities are computed once, before the first step, and kept in a cache; no second model is
    held in memory. Those of a stream are computed with each micro-batch, by a copy of the trained weights. A prompt is
    computed once for both of its answers.
    """

    loss: LossName = Field(DEFAULT, examples=["sigmoid"])
    """TRL's name of the loss, see the table below; null: the default, which Olmo Hybrid was tuned with."""
    beta: float = Field(None, gt=0, validate_default=True, examples=[0.1])
    """How strongly the model is kept close to the reference; null: 5 for sigmoid_norm, which is per token, otherwise
    0.1."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, examples=[0.1])
    """Share of the pairs believed to be the wrong way round, for the losses that take it."""
    pairs_per_step: AtLeastOne = Field(32, examples=[128])
    """Pairs per optimizer step, over all processes and micro-batches."""
    reference_cache: Text | None = Field(None, examples=["runs/reference"])
    """A folder for the reference's log-probabilities, which runs may share; null: reference/ in the run's folder. Of a
    stream it holds those of the held-out pairs."""
    on_long_prompt: Literal["drop", "cut_start", "error"] = Field("drop", examples=["cut_start"])
    """What happens to a prompt that leaves its answers no room. cut_start: its oldest tokens are cut off."""

    @field_validator("loss", mode="before")
    @classmethod
    def _default_loss(cls, loss: Any) -> Any:
        return DEFAULT if loss is None else loss

    @field_validator("beta", mode="before")
    @classmethod
    def _default_beta(cls, beta: Any, info: ValidationInfo) -> Any:
        return LOSSES[info.data.get("loss", DEFAULT)].beta if beta is None else beta


class Train(Section):
    """Length, batch sizes, optimizer and learning rate."""

    epochs: float = Field(1.0, gt=0, le=10_000, examples=[3])
    """Passes over the rows."""
    steps: AtLeastOne | None = Field(None, examples=[1000])
    """Optimizer steps, instead of epochs."""
    batch_tokens: int = Field(4096, ge=1, le=2**24, examples=[32768])
    """Most tokens in a micro-batch, if rows are packed."""
    batch_size: AtLeastOne = Field(8, examples=[16])
    """Rows in a padded micro-batch, if they are not packed."""
    tokens_per_step: AtLeastOne | None = Field(None, examples=[131072])
    """Tokens per optimizer step, over all processes, if rows are packed: a multiple of batch_tokens; null: batch_tokens
    times accumulation."""
    rows_per_step: AtLeastOne | None = Field(None, examples=[32])
    """Rows per optimizer step, over all processes, if they are not packed: a multiple of batch_size; null: batch_size
    times accumulation."""
    accumulation: AtLeastOne = Field(1, examples=[4])
    """Micro-batches per optimizer step, over all processes, if the two keys above are null. Set
    dpo.pairs_per_step, kto.rows_per_step or reward.pairs_per_step instead for these stages."""
    learning_rate: float | None = Field(None, gt=0, le=1, examples=[1e-5])
    """Peak learning rate. null: 2.5e-5 for all weights and 2e-4 for LoRA; for dpo and kto 1e-6 and 1e-5, for reward
    1e-5 and 1e-4 (TRL's). Those for all weights are Ai2's for Olmo Hybrid; LoRA takes about ten times as much. With
    Gated DeltaNet at alpha 32 (tinker-cookbook's sweep on Qwen3.5) 3e-4 is best at every rank from 4 to 128, the same
    product as 1.5e-4 at alpha 64, and 1e-3 does harm."""
    optimizer: Literal["adamw", "adamw_bf16", "muon"] = Field("adamw", examples=["adamw_bf16"])
    """adamw: weights, gradients and both moments in float32, 16 bytes for a trained number. adamw_bf16: all of them in
    bfloat16, weights with 8 bits more, rounded at random: 9 bytes, so that all weights of a 7B are trained on one 80 GB
    GPU. The arithmetic is bfloat16 then, on a CPU too. muon: torch's Muon for the matrices of layers (on a CPU in
    float32), with updates of the size of AdamW's, and AdamW for everything else; one moment for a matrix, 12 bytes.
    Whether it gains anything on a model that was pretrained with AdamW is not known."""
    loraplus_ratio: float | None = Field(None, ge=1, le=1000, examples=[16])
    """LoRA+: B learns this many times as fast as A, and so do single vectors (DoRA's lengths, norms). null: all at one
    rate. Lower the learning rate to half or so with it."""
    neftune_alpha: float | None = Field(None, gt=0, le=1000, examples=[5])
    """NEFTune: in training every embedding of a document of L tokens in D dimensions gets uniform noise of up to alpha
    / sqrt(L D). null: none."""
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", examples=["cosine"])
    """Shape of the learning rate after the warm-up; linear and cosine end at 0."""
    warmup: float = Field(0.03, ge=0, lt=1, examples=[0.1])
    """Share of the steps in which the learning rate rises from 0, rounded down to whole steps."""
    weight_decay: float = Field(0.0, ge=0, le=1, examples=[0.1])
    """Decoupled weight decay, of AdamW and of Muon."""
    betas: list[Beta] = Field(default_factory=lambda: [0.9, 0.95], min_length=2, max_length=2, examples=[[0.9, 0.999]])
    """AdamW's decay rates of the two moments."""
    max_grad_norm: float = Field(1.0, gt=0, examples=[0.5])
    """Gradients with a larger norm are scaled down to it."""
    seed: Seed = Field(42, examples=[7])
    """Seed of the order of batches, of new weights and of dropout."""
    save_every: Annotated[AtLeastOne, Free()] = Field(500, examples=[100])
    """Steps between checkpoints. One is also written when the run is stopped by a signal."""
    keep: Annotated[AtLeastOne, Free()] = Field(2, examples=[5])
    """How many of the newest checkpoints are kept."""
    log_every: Annotated[AtLeastOne, Free()] = Field(1, examples=[10])
    """Steps between lines of metrics."""
    loader_workers: Annotated[int, Free()] = Field(0, ge=0, le=64, examples=[4])
    """Processes that prepare batches ahead of training."""
    sharded: bool | Literal["machine"] = Field(False, examples=[True])
    """Divide weights, gradients and optimizer among the processes (FSDP2); machine: among those of each machine, which
    exchange gradients once a step (HSDP), for machines with a slow link between them; false: each holds a copy
    (DDP)."""
    sequence_parallel: Annotated[AtLeastOne, Free()] = Field(1, examples=[2])
    """Processes that share the tokens of each micro-batch, each computing whole sequences of some heads: a divisor of
    the number of processes. A step is the same rows. For packed rows and for dpo and kto; not with a base in int8, nor
    with Kimi Linear, Ling, Jamba, Samba and Nemotron-Flash."""
    check_memory: Annotated[bool, Free()] = Field(True, examples=[False])
    """Refuse, before the weights are read, a step that cannot fit the GPU; false: try it anyway."""
    trackers: Annotated[list[Literal["tensorboard", "trackio", "wandb"]], Free()] = Field(
        default_factory=list, examples=[["tensorboard"]]
    )
    """Where metrics go in addition to metrics.jsonl."""


class Suite(Section):
    """Evaluation tasks for the run's model, before and after, with the table of ``hybrid-ft evaluate``."""

    tasks: list[Text] = Field(min_length=1, examples=[["gsm8k", "mine.yaml"]])
    """Names of shipped tasks, or files; lm_eval:NAME for lm_eval's own."""
    forgetting: list[Text] = Field(default_factory=list, examples=[["ifeval"]])
    """Tasks that training may make worse, shown in a block of their own."""
    limit: AtLeastOne | None = Field(None, examples=[200])
    """How many rows of each task, a seeded sample; null: all."""
    every: AtLeastOne | None = Field(None, examples=[500])
    """Steps between evaluations; null: only before and after."""
    best: Text | None = Field(None, examples=["gsm8k"])
    """A task. The result is the checkpoint with the best score in its first measure, among those evaluated during
    training and the last."""
    run_code: bool = Field(False, examples=[True])
    """Allow tasks to run code that the model writes."""


class Evaluate(Section):
    """What is measured on held-out rows, and which prompts are answered before and after."""

    every: Annotated[AtLeastOne | None, Free(unless="evaluate.load_best")] = Field(None, examples=[100])
    """Steps between held-out losses; null: only before and after. One is taken at the end in any case, if there are
    held-out rows."""
    load_best: bool = Field(False, examples=[True])
    """Make the checkpoint with the lowest held-out loss the result; it is kept beside the newest ones."""
    answers: int = Field(0, ge=0, examples=[50])
    """Held-out prompts answered greedily before and after, scored by exact match with the reference answer."""
    samples: list[Text] = Field(default_factory=list, examples=[["Why is the sky blue?"]])
    """Fixed prompts answered before and after."""
    max_new_tokens: AtLeastOne = Field(256, examples=[512])
    """Most tokens in an answer."""
    suite: Annotated[Suite | None, Free(unless="evaluate.suite.best")] = Field(None, examples=[{"tasks": ["gsm8k"]}])
    """Tasks of `hybrid-ft evaluate`; null: none."""

    @property
    def keeps_best(self) -> bool:
        """Whether a checkpoint is chosen, and so kept beside the newest ones."""
        return self.load_best or bool(self.suite and self.suite.best)


class Recipe(Section):
    """What one run does: a base, rows, and how they are trained on."""

    model: Annotated[Model, NULL_IS_EMPTY] = Field(examples=[{"path": "tiny"}])
    """The base that is trained."""
    data: Annotated[Data, NULL_IS_EMPTY] = Field(examples=[{"sources": [{"path": "data/train.jsonl"}]}])
    """What it is trained on."""
    dpo: Dpo | None = Field(None, examples=[{"beta": 5}])
    """Preference tuning; null: the rows are not pairs. {} means the defaults below."""
    kto: Kto | None = Field(None, examples=[{"beta": 0.2}])
    """Preference tuning on answers judged good or bad, alone; in place of dpo. {} means the defaults below."""
    reward: Reward | None = Field(None, examples=[{"center_rewards_coefficient": 0.01}])
    """A reward model, trained on pairs; in place of dpo. {} means the defaults below."""
    train: Annotated[Train, NULL_IS_EMPTY] = Field(
        default_factory=Train, validate_default=True, examples=[{"epochs": 2}]
    )
    """Length, learning rate and batch sizes."""
    evaluate: Annotated[Evaluate, NULL_IS_EMPTY] = Field(default_factory=Evaluate, examples=[{"answers": 50}])
    """What is measured on held-out rows."""
    output: Annotated[Text | None, Free()] = Field(None, examples=["runs/mine"])
    """The run's folder; null: runs/ and the recipe file's stem."""
    mirror: Annotated[Text | None, Free()] = Field(None, examples=["s3://my-runs/mine"])
    """A place to copy every checkpoint and the result to, from which a fresh machine can resume: s3://, gs://,
    hf://buckets/, ssh:// or a folder. null: none."""

    gpu_price: Annotated[float | None, Free()] = Field(None, gt=0, le=10_000, examples=[2.5])
    """USD for one GPU for an hour: the run's end, its page and watch then say what its steps have cost. null: the price
    that `hybrid-ft plan` has for the GPU, if it is one of its table."""

    @field_validator("train")
    @classmethod
    def _default_learning_rate(cls, train: Train, info: ValidationInfo) -> Train:
        """By what is trained; the keys before this one have been read."""
        if train.learning_rate is not None or "model" not in info.data:
            return train
        stage = next((name for name in PREFERENCE if info.data.get(name) is not None), "sft")
        kind = STAGE_KINDS[stage]
        return train.model_copy(update={"learning_rate": kind.lora if info.data["model"].lora else kind.full})

    @property
    def stage(self) -> str:
        """The command that runs it: sft, or the name of its section of a preference stage."""
        return next((name for name in PREFERENCE if getattr(self, name) is not None), "sft")

    @property
    def preference(self) -> Any:
        """The section of its preference stage; None for supervised fine-tuning."""
        return next((section for name in PREFERENCE if (section := getattr(self, name)) is not None), None)

    @property
    def pairs_or_rows(self) -> int | None:
        """Of a step in a preference stage."""
        return getattr(self.preference, STAGE_KINDS[self.stage].per_step, None)

    @property
    def of_pairs(self) -> Any:
        """The section of a stage whose rows are pairs."""
        return self.preference if STAGE_KINDS[self.stage].rows == "pairs" else None

    @property
    def keeps_start(self) -> bool:
        """Whether the values that the trained weights start with are kept beside them: a stream's pairs come without
        their reference."""
        return self.dpo is not None and self.data.streaming

    def to_yaml(self) -> str:
        """The resolved recipe, every default written out; ``load_recipe`` reads it back as an equal recipe."""
        return dump_yaml(self.model_dump(exclude={name for name in PREFERENCE if getattr(self, name) is None}))


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    """The recipe with other values in one of its sections, which are not validated."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
