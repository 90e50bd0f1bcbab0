"""Answers to prompts, in batches of equal cost, or a file of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import GenerationConfig

import hybrid_ft
from hybrid_ft.errors import STORAGE, InputError
from hybrid_ft.finetune.data.sources.rows import BadRow
from hybrid_ft.finetune.data.tokens.arguments import COLUMN, row_arguments
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation.model_digest import model_digest
from hybrid_ft.finetune.generation.partial_answers import PartialAnswers, windows
from hybrid_ft.finetune.generation.prompt_file import MOST_LINES
from hybrid_ft.finetune.runs import device
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.identity import digest_of
from hybrid_ft.hybrid_model.adapter_weights import merged
from hybrid_ft.hybrid_model.checkpoint.adapter_files import CONFIG, check_adapter, read_adapter
from hybrid_ft.hybrid_model.checkpoint.adapter_start import open_adapter
from hybrid_ft.hybrid_model.checkpoint.config import check_generation_config, find_config
from hybrid_ft.hybrid_model.checkpoint.generation_config import end_tokens
from hybrid_ft.hybrid_model.checkpoint.load import check_finite
from hybrid_ft.hybrid_model.checkpoint.tokenizer import check_vocabulary, load_tokenizer
from hybrid_ft.hybrid_model.scorer import refuse_scorer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 16_384
"""Prompt and answer columns of one batch: bounds the keys and values that attention keeps."""
BATCH_ROWS = 64


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken. temperature 0: always the likeliest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def config(self, end_ids: list[int], pad_id: int, max_new_tokens: int) -> GenerationConfig:
        """Every setting that shapes an answer, so that none is taken from the model's own generation config."""
        sample = self.temperature > 0
        return GenerationConfig(
            do_sample=sample,
            temperature=self.temperature if sample else 1.0,
            top_p=self.top_p if sample else 1.0,
            top_k=0 if sample else 50,
            repetition_penalty=1.0,
            num_beams=1,
            use_cache=True,
            max_new_tokens=max_new_tokens,
            eos_token_id=end_ids,
            pad_token_id=pad_id,
        )


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    end_ids: list[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
) -> list[str]:
    """The text that follows each prompt, up to an end token or ``max_new_tokens``; greedy unless told otherwise.

    Prompts of like length share a batch, padded on the left. Control tokens are left out of the texts.
    """
    answers = [""] * len(prompts)
    config = sampling.config(
        end_ids, end_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id, max_new_tokens
    )
    with torch.random.fork_rng() if sampling.temperature else nullcontext():
        torch.manual_seed(sampling.seed) if sampling.temperature else None
        for rows in _batches([len(prompt) for prompt in prompts], max_new_tokens):
            for row, ids in zip(rows, _continue(model, [prompts[row] for row in rows], config), strict=True):
                answers[row] = str(tokenizer.decode(ids, skip_special_tokens=True))
    return answers


def _batches(lengths: list[int], max_new_tokens: int) -> Iterator[list[int]]:
    """Rows that are answered together, longest first, so that memory runs out at the start or not at all."""
    rows: list[int] = []
    columns = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if rows and (len(rows) == BATCH_ROWS or (len(rows) + 1) * columns > BATCH_TOKENS):
            yield rows
            rows = []
        if not rows:
            columns = lengths[row] + max_new_tokens
        rows.append(row)
    if rows:
        yield rows


def _continue(
    model: PreTrainedModel | PeftModel, prompts: list[list[int]], config: GenerationConfig
) -> list[list[int]]:
    """The new tokens of each prompt, without the end token and what comes after it."""
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    pad = config.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, longest:].tolist()
    ends = set(config.eos_token_id)
    return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in out]


def load_for_answers(path: str) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """A model to talk to, and its tokenizer.

    path: a saved model, an adapter folder (the base is the one its config names), a hub name, or the preset tiny.
    Loaded onto the GPU where there is one. Raises InputError where there is nothing to load.
    """
    tokenizer = tokenizer_for_answers(path)
    return model_for_answers(path), tokenizer


def tokenizer_for_answers(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of what ``load_for_answers`` opens, once all that can be known without the weights is in order."""
    transformers.utils.logging.disable_progress_bar()
    folder = Path(path).expanduser()
    if (folder / CONFIG).is_file():
        adapter = read_adapter(folder)
        try:
            config = find_config(adapter.base, adapter.revision, weights=True)
        except InputError as error:
            raise InputError(f"{folder / CONFIG}: base_model_name_or_path: {error}", error.status) from None
        if adapter.config.task_type == "SEQ_CLS":
            raise InputError(f"{folder}: makes a reward model of its base, which gives scores and writes nothing")
        config.vocab_size = check_adapter(folder, adapter, config)
        check_generation_config(folder, config)
        # PEFT alone saves an adapter without one
        own = (folder / "tokenizer.json").is_file()
        tokenizer = load_tokenizer(folder) if own else load_tokenizer(adapter.base, adapter.revision)
    else:
        config = find_config(path, weights=True)
        refuse_scorer(config, path)
        tokenizer = load_tokenizer(folder if folder.is_dir() else path)
    check_vocabulary(tokenizer, config)
    return tokenizer


def model_for_answers(path: str) -> PreTrainedModel | PeftModel:
    """The model of ``load_for_answers``, in eval mode."""
    folder = Path(path).expanduser()
    model = _with_adapter(folder) if (folder / CONFIG).is_file() else hybrid_ft.load(path)
    model = model.to(device.kind())
    return model.eval()


def _with_adapter(folder: Path) -> PreTrainedModel:
    """The base that an adapter names, with the adapter folded in: one matrix product a layer instead of three."""
    adapter = read_adapter(folder)
    model = merged(open_adapter(hybrid_ft.load(adapter.base, revision=adapter.revision), folder))
    check_finite(folder, model)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return model


def run(
    path: str,
    prompts: Path,
    rows: list[tuple[int, dict[str, Any]]],
    out: Path | None,
    max_new_tokens: int,
    sampling: Sampling,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """``hybrid-ft generate``: answer the rows that were read from ``prompts``, into ``out`` or onto the terminal.

    ``arguments``: for the chat template; a row's own go over them. What was answered before a kill is not answered
    again. Raises InputError.
    """
    if out is not None and out.exists() and out.samefile(prompts):
        raise InputError(f"{out}: is the file of prompts; name another file for the answers")
    tokenizer = tokenizer_for_answers(path)
    encoder = PromptEncoder(tokenizer, arguments)
    encoded: list[list[int]] = []
    mistakes: list[str] = []
    for number, row in rows:
        messages = row["messages"] if "messages" in row else [{"role": "user", "content": row["prompt"]}]
        try:
            own = row_arguments(row.get(COLUMN))
            encoded.append(encoder(messages, row.get("tools"), own))
        except (ValueError, BadRow) as error:
            mistakes.append(f"{prompts}:{number}: {error}")
    if mistakes:
        raise InputError("\n".join(mistakes[:MOST_LINES]))
    how = [sampling.temperature, sampling.top_p, sampling.seed, max_new_tokens]
    kept = None
    if out is not None:
        kept = PartialAnswers(out, digest_of([model_digest(path), how, encoded]), len(rows))
    if kept is None or len(kept.answers) < len(rows):
        with kept.told() if kept else nullcontext():
            model = model_for_answers(path)
            end_ids = end_tokens(model, tokenizer, encoder.eos_token_ids)
            for part in kept.missing() if kept else windows(0, len(rows)):
                chance = replace(sampling, seed=sampling.seed + part.start)
                answers = answer(model, tokenizer, encoded[part], end_ids, max_new_tokens, chance)
                if kept:
                    kept.add(answers)
                else:
                    print(*_lines(rows[part], answers), sep="", end="", flush=True)
    if out and kept:
        try:
            write_text(out, "".join(_lines(rows, kept.answers)))
        except OSError as error:
            raise InputError(
                f"{out}: cannot be written ({error.strerror}); the answers are in {kept.path}", STORAGE
            ) from None
        kept.path.unlink()
    return 0


def _lines(rows: list[tuple[int, dict[str, Any]]], answers: list[str]) -> Iterator[str]:
    for (_, row), text in zip(rows, answers, strict=True):
        yield json.dumps({**row, "answer": text}, ensure_ascii=False) + "\n"
