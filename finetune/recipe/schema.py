"""The recipe's schema: every key, its meaning, default and range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from hybrid_ft.finetune.recipe.losses import DEFAULT, LOSSES
from hybrid_ft.finetune.recipe.yaml_file import dump_yaml

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]

LORA_TARGETS = ("all-linear", "attention", "delta", "mlp")
LEARNING_RATES = {"sft": {"full": 2.5e-5, "lora": 2e-4}, "dpo": {"full": 1e-6, "lora": 1e-5}}

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Beta = Annotated[float, Field(ge=0, lt=1)]
AtLeastOne = Annotated[int, Field(ge=1, le=1_000_000_000)]

# `train:` with every key below it commented out reads as null; it means the defaults.
NULL_IS_EMPTY = BeforeValidator(lambda value: {} if value is None else value)


class Section(BaseModel):
    # strict: "8" is no number and 8 no text; the reader has already decided what is what
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Lora(Section):
    """Low-rank adapters. conv, A_log, dt_bias and norms are never adapted."""

    targets: Text = "all-linear"
    """all-linear, attention, delta, mlp, or a union such as delta+mlp"""
    rank: int = Field(32, ge=1, le=1024)
    alpha: AtLeastOne = 64
    """the update is scaled by alpha / rank"""
    dropout: float = Field(0.0, ge=0, lt=1)
    merge: bool = False
    """also save the model with the adapter folded in"""

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: str) -> str:
        wrong = [part for part in targets.split("+") if part not in LORA_TARGETS]
        if wrong:
            raise ValueError(f"must be of {', '.join(LORA_TARGETS)}, or a union such as delta+mlp")
        return targets


class Model(Section):
    """The base that is trained."""

    path: Text = Field(examples=["tiny"])
    """a preset (tiny: the small trained base that ships here; 190M, 1B, 7B: shapes), a local folder, or a hub name"""
    revision: Text | None = None
    """of a hub name: branch, tag or commit"""
    from_scratch: bool = False
    """random weights in that shape, the vocabulary sized to the tokenizer (rounded up to a multiple of 64)"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 on a CPU"""
    tokenizer: Text | None = None
    """a folder or hub name; null: the model's own"""
    chat_template: Text | None = None
    """olmo-instruct (ships here) or a .jinja file; null: the tokenizer's own"""
    gradient_checkpointing: bool | None = None
    """null: on with a GPU, off on a CPU"""
    lora: Lora | None = None
    """null: every weight is trained"""


def _as_key(value: Any) -> Any:
    """YAML reads ``{0: user, true: 1}`` as a number and a truth value; as keys they are their spelling."""
    return str(value).lower() if isinstance(value, bool | int | float) else value


Key = Annotated[str, BeforeValidator(_as_key)]
Roles = dict[Key, Literal["system", "user", "assistant", "tool", "environment"]]
Preferred = dict[Key, Literal[1, 2, "tie"]]


class Turn(Section):
    """One message of a mapping."""

    role: Literal["system", "user", "assistant", "tool", "environment"] = Field(examples=["user"])
    content: str | None = None
    """a Jinja2 template over the row's columns: "{{ question }}" """
    reasoning: str | None = None
    """a template for the reasoning before an assistant's text"""
    tool_calls: Text | None = None
    """the column that holds the calls, as objects or as JSON text"""
    when: Text | None = None
    """a Jinja2 expression; the message is left out where it is false, blank, or about a column that is not there"""

    @model_validator(mode="after")
    def _says_something(self) -> Turn:
        if self.content is None and self.tool_calls is None:
            raise ValueError(f"the {self.role} message must have content or tool_calls")
        return self


class Columns(Section):
    """Which column of a dataset is which of ours: a column's name, or a Jinja2 template ("{{ question }}")."""

    file: Text | None = None
    """a mapping that ships here, by name, or a .yaml file; `columns: gsm8k` is short for this"""
    messages: list[Turn] | None = Field(None, min_length=1)
    """every message spelt out"""
    turns: Text | None = None
    """the column that holds a list of turns"""
    role: Text | None = None
    """of such a turn: the key of its role"""
    content: Text | None = None
    """of such a turn: the key of its text"""
    prompt: Text | None = None
    completion: Text | None = None
    system: Text | None = None
    tools: Text | None = None
    """the column that holds function definitions"""
    chosen: Text | None = None
    rejected: Text | None = None
    output_1: Text | None = None
    output_2: Text | None = None
    preference: Text | None = None
    """the column that says which of output_1 and output_2 is better"""

    @property
    def pairs(self) -> bool:
        """Whether it maps preference pairs, not supervised rows."""
        return self.chosen is not None or self.output_1 is not None

    def named(self) -> dict[str, str]:
        """Which column, or template, each of our columns comes from."""
        apart = {"file", "messages", "role", "content"}
        return {name: value for name, value in self if name not in apart and value is not None}

    @model_validator(mode="after")
    def _one_way(self) -> Columns:
        have = {name for name, value in self if value is not None}
        if self.file is not None:
            if len(have) > 1:
                raise ValueError("must be a file or a mapping, not both")
            return self
        if self.pairs:
            if have - {"prompt", "system", "tools", "chosen", "rejected", "output_1", "output_2", "preference"}:
                raise ValueError("must map rows or pairs, not both")
            if not ({"chosen", "rejected"} <= have or {"output_1", "output_2", "preference"} <= have):
                raise ValueError("must name chosen and rejected, or output_1, output_2 and preference")
            return self
        ways = [name for name in ("messages", "turns", "prompt") if name in have]
        if len(ways) != 1 or ("prompt" in have) != ("completion" in have):
            raise ValueError("must have messages, turns, or prompt and completion; chosen and rejected for pairs")
        if (self.role or self.content) and self.turns is None:
            raise ValueError("role and content are keys of the turns; name the column that holds those: turns")
        if self.messages and self.system:
            raise ValueError("messages spells every message out; put system among them")
        if self.preference is not None:
            raise ValueError("preference needs output_1 and output_2")
        return self


class Source(Section):
    """Rows to learn from."""

    path: Text = Field(examples=["data/train.jsonl"])
    """a local file (jsonl, json, csv, tsv, parquet, also .gz and .bz2), or a hub dataset's name"""
    name: Text | None = None
    """of a hub dataset: its configuration"""
    split: Text = "train"
    """of a hub dataset"""
    revision: Text | None = None
    """of a hub dataset"""
    format: Literal["messages", "prompt-completion", "alpaca", "sharegpt"] | None = None
    """null: recognised from the columns"""
    columns: Annotated[
        Columns | None, BeforeValidator(lambda value: {"file": value} if isinstance(value, str) else value)
    ] = None
    """which column is which: a mapping that ships here, by name, a .yaml file, or the mapping itself"""
    roles: Roles | None = None
    """what the roles of the turns mean, where they have other names: {Human: user, Bot: assistant}"""
    preference: Preferred | None = None
    """of pairs: which output each value of the preference column names, 1, 2 or tie"""
    weight: float | None = Field(None, gt=0)
    """share of the mix; no row is repeated, so the mix is the largest that the sources can fill"""
    count: AtLeastOne | None = None
    """take this many rows, a seeded sample"""


class HeldOut(Section):
    """Rows kept from training: a share or a number of the training rows, split by prompt, or files of their own."""

    fraction: float = Field(0.0, ge=0, lt=1)
    count: AtLeastOne | None = None
    sources: list[Source] = Field(default_factory=list)

    @property
    def wanted(self) -> bool:
        """Whether the recipe asks for held-out rows at all."""
        return bool(self.fraction or self.count or self.sources)


class Data(Section):
    """What is read, and how rows become batches."""

    sources: list[Source] = Field(min_length=1)
    eval: Annotated[HeldOut, NULL_IS_EMPTY] = Field(default_factory=HeldOut)
    max_length: int = Field(4096, ge=2, le=2**20)
    """tokens of the longest row"""
    on_long_row: Literal["drop", "cut", "error"] = "drop"
    """cut: from the end; at least one trained token must stay"""
    on_bad_row: Literal["error", "skip"] = "error"
    max_dropped: float = Field(0.01, ge=0, le=1)
    """the run refuses to start when a larger share of the rows would be dropped"""
    packing: bool = True
    """rows end to end without padding; they cannot see each other"""
    seed: Seed = 0
    """of samples and of the held-out split"""


class Train(Section):
    """How long, how fast, in what portions."""

    epochs: float = Field(1.0, gt=0, le=10_000)
    steps: AtLeastOne | None = None
    """overrides epochs"""
    batch_tokens: int = Field(4096, ge=1, le=2**24)
    """packing: tokens of one micro-batch at most"""
    batch_size: AtLeastOne = 8
    """no packing: rows of one padded micro-batch"""
    accumulation: AtLeastOne = 1
    """micro-batches per step"""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """null: 2.5e-5 for all weights, 2e-4 for LoRA; with dpo 1e-6 and 1e-5; a loaded recipe holds the number"""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = Field(0.03, ge=0, lt=1)
    """share of the steps, rounded down"""
    weight_decay: float = Field(0.0, ge=0, le=1)
    betas: list[Beta] = Field(default_factory=lambda: [0.9, 0.95], min_length=2, max_length=2)
    """AdamW's"""
    max_grad_norm: float = Field(1.0, gt=0)
    seed: Seed = 42
    """of the order of batches, new weights and dropout"""
    save_every: AtLeastOne = 500
    """steps"""
    keep: AtLeastOne = 2
    """checkpoints kept"""
    log_every: AtLeastOne = 1
    """steps"""
    loader_workers: int = Field(0, ge=0, le=64)
    """processes that put batches together ahead of the training"""
    sharded: bool = False
    """of several processes: weights, gradients and optimizer divided among them (FSDP2), not a copy in each (DDP)"""
    trackers: list[Literal["tensorboard", "trackio", "wandb"]] = Field(default_factory=list)
    """beside metrics.jsonl, which is always written"""


class Dpo(Section):
    """What is learned from pairs. Answers are compared with what the base, the reference, makes of them."""

    loss: LossName = DEFAULT
    """TRL's name; null: sigmoid_norm, which Olmo Hybrid was tuned with: log-probabilities per token"""
    beta: float = Field(None, gt=0, validate_default=True)
    """how strongly the model is held to the reference; null: 5 for sigmoid_norm, else 0.1; a loaded recipe holds it"""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """share of the pairs believed to be the wrong way round; for robust, exo_pair and aot"""
    pairs_per_step: AtLeastOne = 32
    """pairs of one optimizer step, over all processes, however many micro-batches they fill"""
    reference_cache: Text | None = None
    """a folder that runs may share; null: reference/ in the run's folder"""
    on_long_prompt: Literal["drop", "cut_start", "error"] = "drop"
    """of a prompt that leaves its answers no room; cut_start: the oldest tokens go"""

    @field_validator("loss", mode="before")
    @classmethod
    def _default_loss(cls, loss: Any) -> Any:
        return DEFAULT if loss is None else loss

    @field_validator("beta", mode="before")
    @classmethod
    def _default_beta(cls, beta: Any, info: ValidationInfo) -> Any:
        return LOSSES[info.data.get("loss", DEFAULT)].beta if beta is None else beta


class Evaluate(Section):
    """What is measured on held-out rows."""

    every: AtLeastOne | None = None
    """steps between held-out losses; one is always taken at the end when there are held-out rows"""
    load_best: bool = False
    """the result is the checkpoint with the lowest held-out loss, which is kept beside the newest ones"""
    answers: int = Field(0, ge=0)
    """held-out prompts answered greedily before and after, scored by exact match with the reference answer"""
    samples: list[Text] = Field(default_factory=list)
    """fixed prompts answered before and after"""
    max_new_tokens: AtLeastOne = 256


class Recipe(Section):
    model: Annotated[Model, NULL_IS_EMPTY]
    data: Annotated[Data, NULL_IS_EMPTY]
    dpo: Dpo | None = None
    """present: the rows are pairs, for preference tuning"""
    train: Annotated[Train, NULL_IS_EMPTY] = Field(default_factory=Train, validate_default=True)
    evaluate: Annotated[Evaluate, NULL_IS_EMPTY] = Field(default_factory=Evaluate)
    output: Text | None = None
    """the run's folder; null: runs/ and the recipe file's stem; a loaded recipe holds the folder"""

    @field_validator("train")
    @classmethod
    def _default_learning_rate(cls, train: Train, info: ValidationInfo) -> Train:
        """By what is trained; the keys before this one have been read."""
        if train.learning_rate is not None or "model" not in info.data:
            return train
        pairs, lora = info.data.get("dpo") is not None, info.data["model"].lora is not None
        rates = LEARNING_RATES["dpo" if pairs else "sft"]
        return train.model_copy(update={"learning_rate": rates["lora" if lora else "full"]})

    def to_yaml(self) -> str:
        """The resolved recipe, every default written out; ``load_recipe`` reads it back as an equal recipe."""
        return dump_yaml(self.model_dump(exclude={"dpo"} if self.dpo is None else None))


def changed(recipe: Recipe, section: str, **values: Any) -> Recipe:
    """The recipe with other values in one of its sections, which are not validated."""
    return recipe.model_copy(update={section: getattr(recipe, section).model_copy(update=values)})
