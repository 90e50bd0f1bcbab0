"""The recipe's section model: base, tokenizer, adapters."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from hybrid_ft.finetune.recipe.keys import Free
from hybrid_ft.finetune.recipe.section import AtLeastOne, Section, Text

LORA_TARGETS = ("all-linear", "attention", "delta", "recurrent", "mlp", "experts")


def _compiles(text: str) -> str:
    try:
        re.compile(f"(?:{text})")
    except re.error as error:
        raise ValueError(f"must be a name or a regular expression: {error.msg}") from None
    return text


Pattern = Annotated[Text, AfterValidator(_compiles)]


class Lora(Section):
    """LoRA: each adapted matrix W becomes W + (alpha / rank) B A, and only A and B are trained.

    `attention` is q, k, v and o of the attention layers, `delta` the projections of layers with a delta rule,
    `recurrent` those of the recurrent layers of any family, `mlp` gate, up and down, `experts` those of all routed
    experts, each with factors of its own. Convolutions, the parameters of decay and writing strength (A_log, dt_bias,
    a_proj, b_proj), norms, routers, embeddings and the head are never adapted.
    """

    targets: Text = Field("all-linear", examples=["delta+mlp"])
    """Layers to adapt: all-linear, attention, delta, recurrent, mlp, experts, or several joined by +. all-linear is all
    but the routed experts."""
    rank: int = Field(32, ge=1, le=1024, examples=[16])
    """Rank of the update."""
    alpha: AtLeastOne = Field(64, examples=[32])
    """The update is scaled by alpha / rank. Alpha times the learning rate is what carries over between ranks and tools,
    so keep alpha when you change the rank."""
    dropout: float = Field(0.0, ge=0, lt=1, examples=[0.05])
    """Dropout before the adapter. Must be 0 for dpo, kto and reward."""
    modules: list[Pattern] | None = Field(None, min_length=1, examples=[["self_attn.q_proj", "mlp.*"]])
    """Modules to adapt instead of `targets`: the ends of their names (`q_proj`, `self_attn.q_proj`), or regular
    expressions. Each must be among those of `all-linear`."""
    modules_to_save: list[Pattern] | None = Field(None, min_length=1, examples=[["embed_tokens", "lm_head"]])
    """Modules to train in full beside the adapted ones, and to save with the adapter: names as for `modules`, of norms,
    convolutions, projections, the embedding or the head. Name a norm by its whole path: `model.norm`."""
    init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"] = Field(
        "default", examples=["pissa_niter_16"]
    )
    """How A and B are initialised. pissa: with the largest singular values of the weights (`niter`: by that many fast
    iterations); olora: with an orthogonal factor of them. These two are saved with twice the rank, so that the adapter
    fits the base."""
    layers: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1, examples=[[28, 29, 30, 31]])
    """Numbers, from 0, of the layers to adapt; null: all."""
    rslora: bool = Field(False, examples=[True])
    """Scale by alpha / sqrt(rank) (rsLoRA), which keeps the update's size at higher ranks."""
    dora: bool = Field(False, examples=[True])
    """Train the length of each row of a weight separately from its direction (DoRA). Servers may need it merged."""
    merge: Annotated[bool, Free()] = Field(False, examples=[True])
    """Also save the whole model with the adapter merged, as merged/ beside adapter/; works on a finished run too."""

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
    """A preset (tiny: the small trained base that ships here; 190M, 1B, 7B, samba-421M, samba-1.3B: shapes), a model
    folder, or a hub name. May be left out where `adapter` is a folder, which names its base."""
    revision: Text | None = Field(None, examples=["main"])
    """Branch, tag or commit of a hub name."""
    from_scratch: bool = Field(False, examples=[True])
    """Start from random weights in that shape. The vocabulary is sized to the tokenizer, rounded up to a multiple of
    64."""
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", examples=["bfloat16"])
    """Arithmetic of the run. auto: bfloat16 on a GPU, float32 on a CPU."""
    tokenizer: Text | None = Field(None, examples=["allenai/olmo-3-tokenizer-instruct-dev"])
    """A tokenizer folder or hub name; null: the model's own."""
    new_tokens: list[Text] = Field(default_factory=list, examples=[["pembrolizumab"]])
    """Texts that become one token each, in messages too. Their rows of the embedding and of the head start at the mean
    of the tokens that the text had before, and are trained; with LoRA, only these rows of them. A vocabulary that grows
    is padded like the base's."""
    new_special_tokens: list[Text] = Field(default_factory=list, examples=[["<|tool|>"]])
    """The same for control tokens: only the chat template can write them, and answers are shown without them."""
    chat_template: Text | None = Field(None, examples=["olmo-instruct"])
    """olmo-instruct (ships here) or a .jinja file; null: the tokenizer's own."""
    chat_template_kwargs: dict[Text, Any] | None = Field(None, examples=[{"enable_thinking": False}])
    """Arguments for the chat template, in training, in answers, and by default in chat and generate. A row's column
    chat_template_kwargs overrides them. null: those saved with the tokenizer."""
    quantize: Literal["nf4", "int8"] | None = Field(None, examples=["nf4"])
    """Keep the base's large matrices in 4 or 8 bits (QLoRA) while `lora` is trained on them; needs bitsandbytes. The
    adapter is saved as usual, and merged into the unquantised base."""
    gradient_checkpointing: bool | Literal["selective", "offload"] | None = Field(None, examples=["selective"])
    """Compute activations again in the backward pass instead of storing them; selective keeps the outputs of attention
    and, on a GPU, of the delta rule; offload keeps the layers' inputs in the host's memory, pinned, for long rows: with
    LoRA 246 kB a token of the 7B. null: on with a GPU, off on a CPU."""
    checkpointed_layers: Annotated[Annotated[int, Field(ge=0)] | Literal["auto"] | None, Free()] = Field(
        None, examples=["auto"]
    )
    """How many layers `gradient_checkpointing` computes again; the others keep their activations, attention's first.
    auto: as few as the GPU's free memory allows when the run starts, which the screen says; on a CPU all. null: all.
    The numbers of a run do not depend on it."""
    adapter: Text | None = Field(None, examples=["runs/sft/adapter"])
    """A LoRA adapter folder on `path`, or a hub name, to start from. Its training continues, with its own layers, rank
    and alpha. In a file of stages, `previous` means the adapter of the stage before, unmerged."""
    merge_adapter: bool = Field(False, examples=[True])
    """Merge `adapter` into the base first and train the result: all weights, or a new adapter with `lora`."""
    lora: Lora | None = Field(None, validate_default=True, examples=[{"rank": 16}])
    """Train low-rank adapters; null: every weight is trained. {} means the defaults below."""

    @field_validator("lora")
    @classmethod
    def _adapter_goes_on(cls, lora: Lora | None, info: ValidationInfo) -> Lora | None:
        """An adapter that goes on training is LoRA; the keys before this one have been read."""
        goes_on = info.data.get("adapter") and not info.data.get("merge_adapter")
        return Lora() if goes_on and lora is None else lora
