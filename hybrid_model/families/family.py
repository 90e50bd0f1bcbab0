"""The record of a family: all that the rest knows of an architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig as Config
from transformers import PreTrainedModel

Head = Callable[[Config, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

VLLM = "0.20.2"
"""The version whose classes docs/families.md lists."""
PEFT_REFUSES = "PEFT opens no such adapter, because mamba-ssm's fused kernel would leave it out"


@dataclass(frozen=True)
class Mixing:
    """The work of mixing tokens in one layer, beside its products with weights.

    per_token  operations a token of a recurrent state
    per_pair   operations a pair of query and key
    window     tokens that a query sees at most; None for its whole history
    exchanged  16-bit numbers a token that go to other processes and come back, where they share a row's tokens by heads
    """

    per_token: int = 0
    per_pair: int = 0
    window: int | None = None
    exchanged: int = 0


@dataclass(frozen=True, eq=False)
class Released:
    """Files that are read and written tensor by tensor, in one dtype, because transformers writes others than it reads.

    shapes     of a config: name and shape of every tensor of a released checkpoint
    named      of tensors by their names in memory, and a config: the same under the released names
    joined     of a released name: the tensor in memory that it is a part of; None where it is a tensor of its own
    current    of a name: what it is called today
    counted    of what files hold and a config: changed in place, so that tensors that others cut in another way count
               as the released ones
    """

    shapes: Callable[[Config], dict[str, tuple[int, ...]]]
    named: Callable[[dict[str, torch.Tensor], Config], dict[str, torch.Tensor]]
    joined: Callable[[str], str | None]
    current: Callable[[str], str]
    counted: Callable[[dict[str, tuple[Path, tuple[int, ...]]], Config], None]


@dataclass(frozen=True)
class Step:
    """What a training step keeps of a layer, where families differ. Layers are of attention or of the delta rule.

    delta      names of the projections that read a delta layer's normed input, and of the one that ends it
    after      whether attention's layers norm what mixer and MLP give; else what they get, as the delta rule's do
    gated      whether a gate as wide as the queries comes with them, and its sigmoid multiplies what attention gives
    experts    whether routed experts, beside a shared one with a gate, may stand in an MLP's place
    """

    delta: tuple[str, ...] = ()
    out: str = ""
    after: bool = False
    gated: bool = False
    experts: bool = False


@dataclass(frozen=True, eq=False)
class Family:
    """One architecture of transformers, or several that differ in their sizes alone.

    name          as documents call it
    model_types   ``model_type`` of the text models' configs, and the class of the language model of each
    classes       language models of ours, by model_type, where transformers has none
    frames        ``model_type`` of a multimodal config around a text config, and the text config's own
    mixings       of a config: for each layer what mixes its tokens
    lora          of a config: set name to a pattern of the module names in it, after ``layers.``
    refused       pattern of module names that no set holds, to the reason
    experts       parameter names of routed experts that LoRA can adapt, after ``layers.N.``; a set of their own
    router        pattern of the names of the parameters that choose experts
    own           class name of a module to a function from its class to ours; other recurrent mixers are transformers'
    remembers     whether its decoder layers are own ones, which take a layout and keep caches of ours
    forks         whether a segment may continue another one exactly
    heads         of a config: of each kind of its mixers the heads that processes which share a row's tokens exchange,
                  1 where they cannot; None where no config's can be
    continues     whether a filled cache can be continued with several tokens at once
    carried       patterns of tensor names in checkpoints that no text model has and an export copies
    rewritten     pairs of what transformers writes in a tensor's name and what the released files have there
    repair        of a config's raw JSON: mended where transformers would read it wrong; raises InputError
    misread       of a loaded config: why the model built from it is wrong; None where it is right
    float32       endings of parameter names that stay in float32
    head          of a config, hidden states [M, D] and the head's weight [V, D]: both as their product gives the
                  logits; None where they are as they stand
    before        of a config: learnt vectors before every document, which all documents of a batch share
    released      how its files are written, where that is not as transformers does it or as the base has it
    step          what a training step keeps of its layers, proven by a trace; None: not known
    serve_flags   what ``vllm serve`` needs for it
    unserved      those of ``model_types`` that vLLM, in the version ``VLLM``, has no class for
    tiny          sizes of a random model for tests, by model_type
    """

    name: str
    model_types: Mapping[str, str]
    mixings: Callable[[Config], list[tuple[Mixing, ...]]]
    lora: Callable[[Config], dict[str, str]]
    refused: Mapping[str, str] = field(default_factory=dict)
    experts: tuple[str, ...] = ()
    router: str = r"(?!)"
    classes: Mapping[str, type[PreTrainedModel]] = field(default_factory=dict)
    frames: Mapping[str, str] = field(default_factory=dict)
    own: Mapping[str, Callable[[type[nn.Module]], type[nn.Module]]] = field(default_factory=dict)
    remembers: bool = False
    forks: bool = True
    heads: Callable[[Config], tuple[int, ...]] | None = None
    continues: bool = True
    carried: tuple[str, ...] = ()
    rewritten: tuple[tuple[str, str], ...] = ()
    repair: Callable[[dict[str, Any]], dict[str, Any]] = lambda raw: raw
    misread: Callable[[Config], str | None] = lambda config: None
    float32: tuple[str, ...] = ("A_log", "dt_bias")
    head: Head | None = None
    before: Callable[[Config], int] = lambda config: 0
    released: Released | None = None
    step: Step | None = None
    serve_flags: str = ""
    unserved: tuple[str, ...] = ()
    tiny: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def shares_heads(self) -> bool:
        """Whether processes can share a row's tokens, by exchange of heads."""
        return self.heads is not None

    @property
    def architecture(self) -> str:
        """transformers' class of the language model; the first, where there are several."""
        return next(iter(self.model_types.values()))

    def most_processes(self, config: Config) -> int:
        """Among how many a row's tokens can be shared."""
        return 1 if self.heads is None else min(self.heads(config))

    def language_model(self, model_type: str) -> type[PreTrainedModel]:
        """The class of the language model of a config's ``model_type``."""
        return self.classes.get(model_type) or getattr(transformers, self.model_types[model_type])


def is_scorer(config: Any) -> bool:
    """Whether a checkpoint's config says that it holds a reward model, or another classifier, and no language model."""
    return any(str(name).endswith("ForSequenceClassification") for name in config.architectures or ())


def scaled(scale: Callable[[Config], float]) -> Head:
    """The head of a family whose logits are multiplied."""
    return lambda config, hidden, weight: (hidden * scale(config), weight)


def at(layers: list[int], pattern: str) -> str:
    """A pattern of module names in these layers alone, for families whose layers call different mixers the same."""
    return rf"({'|'.join(map(str, layers))})\.{pattern}" if layers else r"(?!)"


def attention(config: Config, window: int | None = None, query: int | None = None, value: int | None = None) -> Mixing:
    """Scores and values of one attention layer: two products of two operations for each pair and head's place."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    both, heads = (query or head) + (value or head), config.num_attention_heads
    exchanged = both * (heads + (getattr(config, "num_key_value_heads", None) or heads))
    return Mixing(per_pair=2 * heads * both, window=window, exchanged=exchanged)


def delta(heads: int, key: int, value: int, key_heads: int | None = None) -> Mixing:
    """A delta rule's heads each read their K x V state with k, write it, and read it with q. Gates
    are exchanged in float32."""
    exchanged = 2 * (key_heads or heads) * key + 2 * heads * value + 4 * heads
    return Mixing(per_token=6 * heads * key * value, exchanged=exchanged)


def ssd(heads: int, head_dim: int, state: int, groups: int = 1) -> Mixing:
    """Mamba-2: every head writes its state and reads it; heads of a group read and write by the same vectors."""
    exchanged = 2 * heads * head_dim + 2 * groups * state + 4 * heads
    return Mixing(per_token=4 * heads * head_dim * state, exchanged=exchanged)


def ssd_heads(config: Config, heads: int, activation: str) -> tuple[int, ...]:
    """Of Mamba-2 beside attention; with another activation than SiLU its scan is transformers', of whole rows."""
    return (config.num_attention_heads, heads) if activation == "silu" else (1,)


def is_of_sizes(error: Exception) -> bool:
    """Whether building a model failed by its config: of torch's RuntimeErrors those that speak of sizes alone.

    Others, a failed compilation's or an allocator's, are no fault of the file and keep their traceback.
    """
    words = ("dimension", "overflow", "shape", "size")
    return not isinstance(error, RuntimeError) or any(word in str(error) for word in words)
