"""The recipe's schema: every key, its meaning, default, range and an example.

docs/recipe.md is made of it by scripts/make_recipe_docs.py: the text under a key is its description there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from hybrid_ft.finetune.recipe.keys import Free
from hybrid_ft.finetune.recipe.losses import DEFAULT, LOSSES
from hybrid_ft.finetune.recipe.yaml_file import dump_yaml

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]

LORA_TARGETS = ("all-linear", "attention", "delta", "recurrent", "mlp")
LEARNING_RATES = {"sft": {"full": 2.5e-5, "lora": 2e-4}, "dpo": {"full": 1e-6, "lora": 1e-5}}

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Beta = Annotated[float, Field(ge=0, lt=1)]
AtLeastOne = Annotated[int, Field(ge=1, le=1_000_000_000)]

# `train:` with every key below it commented out reads as null; it means the defaults.
NULL_IS_EMPTY = BeforeValidator(lambda value: {} if value is None else value)


class Section(BaseModel):
    """A mapping of keys. Values are frozen: a change makes a copy (``changed``)."""

    # strict: "8" is not a number and 8 is not a string; the reader has already decided which is which
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )


class Lora(Section):
    """LoRA: each adapted matrix W becomes W + (alpha / rank) B A, and only A and B are trained.

    `attention` is q, k, v and o of the attention layers, `delta` the projections of layers with a delta rule,
    `recurrent` those of the recurrent layers of any family, `mlp` gate, up and down. Convolutions, what sets decay and
    writing strength (A_log, dt_bias, a_proj, b_proj), norms, embeddings and the head are never adapted.
    """

    targets: Text = Field("all-linear", examples=["delta+mlp"])
    """Layers to adapt: all-linear, attention, delta, recurrent, mlp, or several joined by +."""
    rank: int = Field(32, ge=1, le=1024, examples=[16])
    """Rank of the update."""
    alpha: AtLeastOne = Field(64, examples=[32])
    """The update is scaled by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1, examples=[0.05])
    """Dropout before the adapter. Must be 0 for pairs."""
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1, examples=[[28, 29, 30, 31]])
    """Numbers, from 0, of the layers to adapt; null: all."""
    rslora: bool = Field(False, examples=[True])
    """Scale by alpha / sqrt(rank) (rsLoRA), which keeps the update's size at higher ranks."""
    dora: bool = Field(False, examples=[True])
    """Train the length of each row of a weight apart from its direction (DoRA). Servers may need it merged."""
    merge: bool = Field(False, examples=[True])
    """Also save the whole model with the adapter folded in, as merged/ beside adapter/."""

    @property
    def adapters(self) -> dict[str, Any]:
        """Keywords of ``add_lora``."""
        return self.model_dump(exclude={"merge"})

    @field_validator("targets")
    @classmethod
    def _known_targets(cls, targets: str) -> str:
        wrong = [part for part in targets.split("+") if part not in LORA_TARGETS]
        if wrong:
            raise ValueError(f"must be of {', '.join(LORA_TARGETS)}, or a union such as delta+mlp")
        return targets


class Model(Section):
    """The base that is trained, its tokenizer and chat template."""

    path: Text = Field(examples=["allenai/Olmo-Hybrid-7B"])
    """A preset (tiny: the small trained base that ships here; 190M, 1B, 7B: shapes), a model folder, or a hub name."""
    revision: Text | None = Field(None, examples=["main"])
    """Branch, tag or commit of a hub name."""
    from_scratch: bool = Field(False, examples=[True])
    """Start from random weights in that shape. The vocabulary is sized to the tokenizer, rounded up to a multiple of 64."""
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", examples=["bfloat16"])
    """Arithmetic of the run. auto: bfloat16 on a GPU, float32 on a CPU."""
    tokenizer: Text | None = Field(None, examples=["allenai/olmo-3-tokenizer-instruct-dev"])
    """A tokenizer folder or hub name; null: the model's own."""
    chat_template: Text | None = Field(None, examples=["olmo-instruct"])
    """olmo-instruct (ships here) or a .jinja file; null: the tokenizer's own."""
    gradient_checkpointing: bool | None = Field(None, examples=[True])
    """Compute activations again in the backward pass instead of keeping them. null: on with a GPU, off on a CPU."""
    adapter: Text | None = Field(None, examples=["runs/sft/adapter"])
    """A LoRA adapter folder on `path`, or a hub name, to start from. It goes on training as it is, with its own layers, rank and alpha. In a file of stages `previous`: that of the stage before, not merged."""
    merge_adapter: bool = Field(False, examples=[True])
    """Fold `adapter` into the base first, and train that: every weight, or a new adapter by `lora`."""
    lora: Lora | None = Field(None, validate_default=True, examples=[{"rank": 16}])
    """Train low-rank adapters; null: every weight is trained. {} means the defaults below."""

    @field_validator("lora")
    @classmethod
    def _adapter_goes_on(cls, lora: Lora | None, info: ValidationInfo) -> Lora | None:
        """An adapter that goes on training is LoRA; the keys before this one have been read."""
        goes_on = info.data.get("adapter") and not info.data.get("merge_adapter")
        return Lora() if goes_on and lora is None else lora


def _as_key(value: Any) -> Any:
    """YAML reads ``{0: user, true: 1}`` as a number and a truth value; as keys they are their spelling."""
    return str(value).lower() if isinstance(value, bool | int | float) else value


_NAME_IS_FILE = BeforeValidator(lambda value: {"file": value} if isinstance(value, str) else value)
Key = Annotated[str, BeforeValidator(_as_key)]
Roles = dict[Key, Literal["system", "user", "assistant", "tool", "environment"]]
Preferred = dict[Key, Literal[1, 2, "tie"]]


class Turn(Section):
    """One message of a column mapping."""

    role: Literal["system", "user", "assistant", "tool", "environment"] = Field(examples=["user"])
    """Whose turn it is."""
    content: str | None = Field(None, examples=["{{ question }}"])
    """Its text, a Jinja2 template over the row's columns."""
    reasoning: str | None = Field(None, examples=["{{ thoughts }}"])
    """The reasoning before an assistant's text, a template."""
    tool_calls: Text | None = Field(None, examples=["answers"])
    """The column that holds the calls, as objects or as JSON text."""
    when: Text | None = Field(None, examples=["system"])
    """A Jinja2 expression. The message is left out where it is false, blank, or about a column that is not there."""


class Columns(Section):
    """Which column is which of ours: a column's name, or a Jinja2 template. datasets/columns/README.md has examples."""

    file: Text | None = Field(None, examples=["gsm8k"])
    """A mapping that ships here, by name, or a .yaml file. columns: gsm8k is short for this."""
    messages: list[Turn] | None = Field(None, min_length=1, examples=[[{"role": "user", "content": "{{ question }}"}]])
    """Every message spelt out."""
    turns: Text | None = Field(None, examples=["dialog"])
    """The column that holds a list of turns."""
    role: Text | None = Field(None, examples=["speaker"])
    """The key of a turn's role in such a list."""
    content: Text | None = Field(None, examples=["text"])
    """The key of a turn's text in such a list."""
    prompt: Text | None = Field(None, examples=["question"])
    """What is asked: a text, or a list of turns."""
    completion: Text | None = Field(None, examples=["answer"])
    """The answer that is trained."""
    system: Text | None = Field(None, examples=["instructions"])
    """The system text."""
    tools: Text | None = Field(None, examples=["functions"])
    """The column that holds function definitions."""
    chosen: Text | None = Field(None, examples=["good"])
    """Of pairs: the better answer."""
    rejected: Text | None = Field(None, examples=["bad"])
    """Of pairs: the other answer."""
    output_1: Text | None = Field(None, examples=["response_a"])
    """Of pairs: one answer."""
    output_2: Text | None = Field(None, examples=["response_b"])
    """Of pairs: the other one."""
    preference: Text | None = Field(None, examples=["winner"])
    """The column that says which of output_1 and output_2 is better."""

    @property
    def pairs(self) -> bool:
        """Whether it maps preference pairs, not supervised rows."""
        return self.chosen is not None or self.output_1 is not None

    def named(self) -> dict[str, str]:
        """Which column, or template, each of our columns comes from."""
        apart = {"file", "messages", "role", "content"}
        return {name: value for name, value in self if name not in apart and value is not None}

    def contradiction(self) -> str | None:
        """What is wrong with keys that are each fine; None where nothing is."""
        have = {name for name, value in self if value is not None}
        if self.file is not None:
            return "must be a file or a mapping, not both" if len(have) > 1 else None
        if self.pairs:
            return self._contradiction_of_pairs(have)
        ways = [name for name in ("messages", "turns", "prompt") if name in have]
        if len(ways) != 1 or ("prompt" in have) != ("completion" in have):
            return "must have messages, turns, or prompt and completion; chosen and rejected for pairs"
        if have & {"role", "content"} and "turns" not in have:
            return "role and content are keys of the turns; name the column that holds those: turns"
        if self.messages and self.system:
            return "messages spells every message out; put system among them"
        for turn in self.messages or ():
            if turn.content is None and turn.tool_calls is None:
                return f"the {turn.role} message must have content or tool_calls"
        return "preference needs output_1 and output_2" if "preference" in have else None

    def _contradiction_of_pairs(self, have: set[str]) -> str | None:
        if have - {"prompt", "system", "tools", "chosen", "rejected", "output_1", "output_2", "preference"}:
            return "must map rows or pairs, not both"
        if {"chosen", "rejected"} <= have or {"output_1", "output_2", "preference"} <= have:
            return None
        return "must name chosen and rejected, or output_1, output_2 and preference"


class Source(Section):
    """Rows to learn from, of one file or one hub dataset."""

    path: Text = Field(examples=["data/train.jsonl"])
    """A file (jsonl, json, csv, tsv, parquet, also packed as .gz or .bz2), or the name of a hub dataset."""
    name: Text | None = Field(None, examples=["main"])
    """Configuration of a hub dataset."""
    split: Text = Field("train", examples=["test"])
    """Split of a hub dataset."""
    revision: Text | None = Field(None, examples=["main"])
    """Branch, tag or commit of a hub dataset."""
    format: Literal["messages", "prompt-completion", "alpaca", "sharegpt"] | None = Field(None, examples=["alpaca"])
    """Format of the rows; null: recognised from the columns."""
    columns: Annotated[Columns | None, _NAME_IS_FILE] = Field(None, examples=["gsm8k"])
    """Which column is which: a mapping that ships here, by name, a .yaml file, or the mapping itself."""
    roles: Roles | None = Field(None, examples=[{"Human": "user", "Bot": "assistant"}])
    """What the roles of the turns mean, where they have other names than ours."""
    preference: Preferred | None = Field(None, examples=[{"model_a": 1, "model_b": 2, "tie": "tie"}])
    """Of pairs: which output each value of the preference column names."""
    weight: float | None = Field(None, gt=0, examples=[0.5])
    """Share of the mix. No row is repeated, so the mix is the largest that the sources can fill."""
    count: AtLeastOne | None = Field(None, examples=[5000])
    """Take this many rows, a seeded sample; null: all."""


class HeldOut(Section):
    """Rows kept from training: a share or a number of the training rows, split by prompt, or files of their own."""

    fraction: float = Field(0.0, ge=0, lt=1, examples=[0.01])
    """Share of the rows, split by prompt so that no prompt is on both sides."""
    count: AtLeastOne | None = Field(None, examples=[200])
    """Number of rows, in place of fraction."""
    sources: list[Source] = Field(default_factory=list, examples=[[{"path": "data/held-out.jsonl"}]])
    """Files of their own, in place of fraction and count; keys as in data.sources."""

    @property
    def wanted(self) -> bool:
        """Whether the recipe asks for held-out rows at all."""
        return bool(self.fraction or self.count or self.sources)


class Data(Section):
    """What is read, and how rows become batches."""

    sources: list[Source] = Field(min_length=1, examples=[[{"path": "data/train.jsonl"}]])
    """What to train on, a list of files and hub datasets."""
    eval: Annotated[HeldOut, NULL_IS_EMPTY] = Field(default_factory=HeldOut, examples=[{"fraction": 0.01}])
    """Held-out rows; none by default."""
    max_length: int = Field(4096, ge=2, le=2**20, examples=[16384])
    """Tokens of the longest row."""
    on_long_row: Literal["drop", "cut", "error"] = Field("drop", examples=["cut"])
    """What becomes of a longer row. cut: its end goes; at least one trained token must stay."""
    on_bad_row: Literal["error", "skip"] = Field("error", examples=["skip"])
    """What becomes of a row that cannot be read: the run is refused, or the row is counted and left out."""
    max_dropped: float = Field(0.01, ge=0, le=1, examples=[0.05])
    """The run is refused when a larger share of the rows would be dropped."""
    packing: bool = Field(True, examples=[False])
    """Rows laid end to end without padding; no row can see another. Always on for pairs."""
    seed: Seed = Field(0, examples=[1])
    """Seed of samples and of the held-out split."""


class Dpo(Section):
    """Preference tuning. Present: the rows are pairs. Answers are compared with what the base, the reference, gives them.

    The reference's log-probabilities are computed once, before the first step, and kept in a cache; no second model is
    held in memory. A prompt is computed once for both of its answers.
    """

    loss: LossName = Field(DEFAULT, examples=["sigmoid"])
    """TRL's name of the loss, see the table below; null: the default, which Olmo Hybrid was tuned with."""
    beta: float = Field(None, gt=0, validate_default=True, examples=[0.1])
    """How strongly the model is held to the reference; null: 5 for sigmoid_norm, which is per token, otherwise 0.1."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, examples=[0.1])
    """Share of the pairs believed to be the wrong way round, for the losses that take it."""
    pairs_per_step: AtLeastOne = Field(32, examples=[128])
    """Pairs of one optimizer step, over all processes, however many micro-batches they fill."""
    reference_cache: Text | None = Field(None, examples=["runs/reference"])
    """A folder for the reference's log-probabilities, which runs may share; null: reference/ in the run's folder."""
    on_long_prompt: Literal["drop", "cut_start", "error"] = Field("drop", examples=["cut_start"])
    """What becomes of a prompt that leaves its answers no room. cut_start: its oldest tokens go."""

    @field_validator("loss", mode="before")
    @classmethod
    def _default_loss(cls, loss: Any) -> Any:
        return DEFAULT if loss is None else loss

    @field_validator("beta", mode="before")
    @classmethod
    def _default_beta(cls, beta: Any, info: ValidationInfo) -> Any:
        return LOSSES[info.data.get("loss", DEFAULT)].beta if beta is None else beta


class Train(Section):
    """How long, how fast, in what portions. The optimizer is AdamW."""

    epochs: float = Field(1.0, gt=0, le=10_000, examples=[3])
    """Passes over the rows."""
    steps: AtLeastOne | None = Field(None, examples=[1000])
    """Optimizer steps, in place of epochs."""
    batch_tokens: int = Field(4096, ge=1, le=2**24, examples=[32768])
    """Tokens of one micro-batch at most, where rows are packed."""
    batch_size: AtLeastOne = Field(8, examples=[16])
    """Rows of one padded micro-batch, where they are not packed."""
    tokens_per_step: AtLeastOne | None = Field(None, examples=[131072])
    """Tokens of one optimizer step, over all processes, where rows are packed: a multiple of batch_tokens."""
    rows_per_step: AtLeastOne | None = Field(None, examples=[32])
    """Rows of one optimizer step, over all processes, where they are not packed: a multiple of batch_size."""
    accumulation: AtLeastOne = Field(1, examples=[4])
    """Micro-batches of one optimizer step, over all processes, where the two keys above are null. For pairs set
    dpo.pairs_per_step instead."""
    learning_rate: float | None = Field(None, gt=0, le=1, examples=[1e-5])
    """Peak learning rate. null: 2.5e-5 for all weights and 2e-4 for LoRA; for pairs 1e-6 and 1e-5."""
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", examples=["cosine"])
    """Course of the learning rate after the warm-up; linear and cosine end at 0."""
    warmup: float = Field(0.03, ge=0, lt=1, examples=[0.1])
    """Share of the steps in which the learning rate rises from 0, rounded down to whole steps."""
    weight_decay: float = Field(0.0, ge=0, le=1, examples=[0.1])
    """AdamW's weight decay."""
    betas: list[Beta] = Field(default_factory=lambda: [0.9, 0.95], min_length=2, max_length=2, examples=[[0.9, 0.999]])
    """AdamW's decay rates of the two moments."""
    max_grad_norm: float = Field(1.0, gt=0, examples=[0.5])
    """Gradients with a larger norm are scaled down to it."""
    seed: Seed = Field(42, examples=[7])
    """Seed of the order of batches, of new weights and of dropout."""
    save_every: Annotated[AtLeastOne, Free()] = Field(500, examples=[100])
    """Steps between checkpoints. One is also written when the run is stopped by a signal."""
    keep: Annotated[AtLeastOne, Free()] = Field(2, examples=[5])
    """Checkpoints kept, the newest."""
    log_every: Annotated[AtLeastOne, Free()] = Field(1, examples=[10])
    """Steps between lines of metrics."""
    loader_workers: Annotated[int, Free()] = Field(0, ge=0, le=64, examples=[4])
    """Processes that put batches together ahead of the training."""
    sharded: bool = Field(False, examples=[True])
    """Divide weights, gradients and optimizer among the processes (FSDP2); false: each holds a copy (DDP)."""
    trackers: Annotated[list[Literal["tensorboard", "trackio", "wandb"]], Free()] = Field(
        default_factory=list, examples=[["tensorboard"]]
    )
    """Where metrics go beside metrics.jsonl, which is always written."""


class Evaluate(Section):
    """What is measured on held-out rows, and which prompts are answered before and after."""

    every: Annotated[AtLeastOne | None, Free(unless="evaluate.load_best")] = Field(None, examples=[100])
    """Steps between held-out losses. One is always taken at the end when there are held-out rows."""
    load_best: bool = Field(False, examples=[True])
    """The result is the checkpoint with the lowest held-out loss, which is kept beside the newest ones."""
    answers: int = Field(0, ge=0, examples=[50])
    """Held-out prompts answered greedily before and after, scored by exact match with the reference answer."""
    samples: list[Text] = Field(default_factory=list, examples=[["Why is the sky blue?"]])
    """Fixed prompts answered before and after."""
    max_new_tokens: AtLeastOne = Field(256, examples=[512])
    """Tokens of the longest answer."""


class Recipe(Section):
    """What one run does: a base, rows, and how they are trained on."""

    model: Annotated[Model, NULL_IS_EMPTY] = Field(examples=[{"path": "tiny"}])
    """The base that is trained."""
    data: Annotated[Data, NULL_IS_EMPTY] = Field(examples=[{"sources": [{"path": "data/train.jsonl"}]}])
    """What it is trained on."""
    dpo: Dpo | None = Field(None, examples=[{"beta": 5}])
    """Preference tuning; null: the rows are conversations, for supervised fine-tuning. {} means the defaults below."""
    train: Annotated[Train, NULL_IS_EMPTY] = Field(
        default_factory=Train, validate_default=True, examples=[{"epochs": 2}]
    )
    """How long, how fast, in what portions."""
    evaluate: Annotated[Evaluate, NULL_IS_EMPTY] = Field(default_factory=Evaluate, examples=[{"answers": 50}])
    """What is measured on held-out rows."""
    output: Annotated[Text | None, Free()] = Field(None, examples=["runs/mine"])
    """The run's folder; null: runs/ and the recipe file's stem."""

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
