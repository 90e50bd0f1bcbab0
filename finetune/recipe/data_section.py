"""The recipe's section data: sources, columns, held-out rows."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from hybrid_ft.finetune.recipe.keys import Free
from hybrid_ft.finetune.recipe.section import NULL_IS_EMPTY, AtLeastOne, Section, Seed, Text


def _as_key(value: Any) -> Any:
    """YAML reads ``{0: user, true: 1}`` as a number and a truth value; as keys they are their spelling."""
    return str(value).lower() if isinstance(value, bool | int | float) else value


_NAME_IS_FILE = BeforeValidator(lambda value: {"file": value} if isinstance(value, str) else value)
Key = Annotated[str, BeforeValidator(_as_key)]
Roles = dict[Key, Literal["system", "user", "assistant", "tool", "environment"]]
Scalar = bool | int | float | str
Preferred = dict[Key, Literal[1, 2, "tie"]]
Labels = dict[Key, bool]
_OF_SIDES = {"chosen", "rejected"}
_OF_OUTPUTS = {"output_1", "output_2", "preference"}
_OF_LISTS = {"answers", "answer", "scores", "ranks"}


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
    """A Jinja2 expression. The message is left out if it is false, blank, or about a missing column."""


class Columns(Section):
    """How columns become messages: a column's name, or a Jinja2 template. datasets/columns/README.md has examples."""

    file: Text | None = Field(None, examples=["gsm8k"])
    """A mapping that ships here, by name, or a .yaml file. columns: gsm8k is short for this."""
    messages: list[Turn] | None = Field(None, min_length=1, examples=[[{"role": "user", "content": "{{ question }}"}]])
    """Every message spelt out."""
    turns: Text | None = Field(None, examples=["dialog"])
    """The column that holds a list of turns, or of texts that user and assistant say in turn."""
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
    label: Text | None = Field(None, examples=["rating"])
    """Of judged answers: the column that says whether the answer was good."""
    answers: Text | None = Field(None, examples=["responses"])
    """Of pairs: the column that holds a list of answers, each a text, a message, or an object (see answer)."""
    answer: Text | None = Field(None, examples=["completion"])
    """The key of the text, or of the messages, in each of those answers."""
    scores: Text | None = Field(None, examples=["ratings"])
    """The column that holds their scores, or the key of the score in each answer; the highest is the best."""
    ranks: Text | None = Field(None, examples=["rank"])
    """The same for ranks; the lowest is the best."""

    @property
    def pairs(self) -> bool:
        """Whether it maps preference pairs, not supervised rows."""
        return self.chosen is not None or self.output_1 is not None or self.answers is not None

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
        if alone := sorted(have & {"preference", *_OF_LISTS}):
            return f"{alone[0]} needs {'output_1 and output_2' if alone[0] == 'preference' else 'answers'}"
        return None

    def _contradiction_of_pairs(self, have: set[str]) -> str | None:
        if have - {*("prompt", "system", "tools"), *_OF_SIDES, *_OF_OUTPUTS, *_OF_LISTS}:
            return "must map rows or pairs, not both"
        if have & _OF_LISTS:
            if "answers" not in have or len(have & {"scores", "ranks"}) != 1 or have & {*_OF_SIDES, *_OF_OUTPUTS}:
                return "must name answers and either scores or ranks, and no other answers"
            if templates := sorted(name for name in have & _OF_LISTS if "{" in str(getattr(self, name))):
                return f"{templates[0]} must be the name of a column or key; a template makes text, not a list"
            return None
        if {"chosen", "rejected"} <= have or {"output_1", "output_2", "preference"} <= have:
            return None
        return "must name chosen and rejected, or output_1, output_2 and preference, or answers and scores"


class Source(Section):
    """Rows to learn from: a file, a folder, a pattern of files, or a hub dataset."""

    path: Text = Field(examples=["data/train.jsonl"])
    """A file, a pattern of files (data/*.jsonl), a folder, the name of a hub dataset, or one file of it
    (hf://datasets/ORG/NAME/FILE); docs/data.md says what is read."""
    name: Text | None = Field(None, examples=["main"])
    """Configuration of a dataset, on the hub or in a folder."""
    split: Text | None = Field(None, examples=["train[:1000]", "test[10%:20%]"])
    """Split, or a part of one; null: train, or the only one there is. A file is one split, train."""
    revision: Text | None = Field(None, examples=["main"])
    """Branch, tag or commit of a hub dataset."""
    format: Literal["messages", "prompt-completion", "alpaca", "sharegpt", "text"] | None = Field(
        None, examples=["alpaca"]
    )
    """Format of the rows; null: recognised from the columns. text: plain text, every token trained, no chat
    template."""
    columns: Annotated[Columns | None, _NAME_IS_FILE] = Field(None, examples=["gsm8k"])
    """Which column is which: a mapping that ships here, by name, a .yaml file, or the mapping itself."""
    roles: Roles | None = Field(None, min_length=1, examples=[{"Human": "user", "Bot": "assistant"}])
    """What the roles of the turns mean, if their names are not known: system, user, assistant, tool or environment."""
    preference: Preferred | None = Field(None, min_length=1, examples=[{"model_a": 1, "model_b": 2, "tie": "tie"}])
    """Of pairs: which output each value of the preference column names: 1, 2 or tie."""
    labels: Labels | None = Field(None, min_length=1, examples=[{"5": True, "1": False}])
    """Of judged answers: which values of the label column mean a good answer (true), and which a bad one."""
    pairs: Literal["best_worst", "all"] = Field("best_worst", examples=["all"])
    """Of lists of answers with scores or ranks: the best against the worst, or every two that differ."""
    only: dict[str, Scalar | list[Scalar]] | None = Field(None, min_length=1, examples=[{"label": True}])
    """Only rows with these values: for each column one value or a list; null: all."""
    without: dict[str, Scalar | list[Scalar]] | None = Field(None, min_length=1, examples=[{"completion": "nan"}])
    """No rows with any of these values, such as the word that stands for a missing answer; null: all."""
    weight: float | None = Field(None, gt=0, examples=[0.5])
    """Share of the mix, by rows or as data.weight_by says. The mix is the largest that the sources can fill, taking no
    row more often than repeat says."""
    count: AtLeastOne | None = Field(None, examples=[5000])
    """Take this many rows, a seeded sample; null: all."""
    repeat: int = Field(1, ge=1, le=1000, examples=[3])
    """How often an epoch trains each chosen row. A held-out row is held out once and not trained."""


class HeldOut(Section):
    """Rows kept from training: a share or a number of the training rows, split by prompt, or separate files."""

    fraction: float = Field(0.0, ge=0, lt=1, examples=[0.01])
    """Share of the rows, split by prompt so that no prompt is on both sides. For a stream: share of the prompts, by
    their hash."""
    count: AtLeastOne | None = Field(None, examples=[200])
    """Number of rows, instead of fraction. For a stream: how many held-out rows are kept and measured; null: 500."""
    sources: list[Source] = Field(default_factory=list, examples=[[{"path": "data/held-out.jsonl"}]])
    """Separate files, instead of fraction and count; keys as in data.sources."""

    @property
    def wanted(self) -> bool:
        """Whether the recipe asks for held-out rows at all."""
        return bool(self.fraction or self.count or self.sources)


class Data(Section):
    """What is read, and how rows become batches."""

    sources: list[Source] = Field(min_length=1, examples=[[{"path": "data/train.jsonl"}]])
    """What to train on, a list of files and hub datasets."""
    weight_by: Literal["rows", "tokens"] = Field("rows", examples=["tokens"])
    """What the sources' weights are shares of. tokens: the trained tokens (in a pair, of both answers), for sources
    whose rows differ in length."""
    eval: Annotated[HeldOut, NULL_IS_EMPTY] = Field(default_factory=HeldOut, examples=[{"fraction": 0.01}])
    """Held-out rows; none by default."""
    decontaminate: list[Text] = Field(default_factory=list, examples=[["gsm8k", "test.jsonl"]])
    """Evaluation tasks, by name or file, and files of rows: training rows that contain half of the 8-word sequences of
    one of their questions are dropped and counted, as Ai2 does (Olmo 3's report, 4.2.1)."""
    max_length: int = Field(4096, ge=2, le=2**20, examples=[16384])
    """Most tokens in a row."""
    on_long_row: Literal["drop", "cut", "split", "error"] = Field("drop", examples=["cut"])
    """What happens to a longer row. cut: its end is cut off; at least one trained token must remain. split: plain
    text is trained in pieces, none of which is lost; a conversation is dropped."""
    on_bad_row: Literal["error", "skip"] = Field("error", examples=["skip"])
    """What happens to a row that cannot be read: the run is refused, or the row is counted and skipped."""
    max_dropped: float = Field(0.01, ge=0, le=1, examples=[0.05])
    """The run is refused if a larger share of the rows would be dropped."""
    reasoning: Literal["template", "text", "drop"] = Field("template", examples=["text"])
    """What happens to reasoning, which comes as a field (reasoning_content) or in `<think>` tags. template: the chat
    template writes it or leaves it out; text: it is written into the answer, in tags; drop: it is left out."""
    train_empty_thoughts: bool = Field(True, examples=[False])
    """Whether to train an empty thought that the chat template itself puts before an answer. Must be true for pairs."""
    streaming: bool = Field(False, examples=[True])
    """Read rows while training, for datasets larger than the disk; needs train.steps. docs/data.md says what
    differs."""
    shuffle_buffer: AtLeastOne = Field(10_000, examples=[50_000])
    """For a stream: how many rows are shuffled and packed together, and held in memory at 8 bytes per token."""
    packing: bool = Field(True, examples=[False])
    """Rows laid end to end without padding; no row can see another. Always on for dpo, kto and reward."""
    seed: Seed = Field(0, examples=[1])
    """Seed of samples and of the held-out split."""
    cache: Annotated[Text | Literal[False] | None, Free()] = Field(None, examples=["runs/tokens", False])
    """A folder for tokenized rows, which runs may share: a start with the same rows reads them there. false: none are
    kept; null: the environment variable HYBRID_FT_CACHE, or .tokens beside the run's folder, except sources smaller
    than 1 MB."""

    @property
    def plain_text(self) -> bool:
        """Whether every source is said to be plain text."""
        return all(source.format == "text" for source in (*self.sources, *self.eval.sources))
