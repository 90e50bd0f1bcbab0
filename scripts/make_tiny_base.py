"""Makes hybrid_model/tiny: a tokenizer, and a small trained language model.

    python scripts/make_tiny_base.py [--out hybrid_model/tiny] [--seed 7] [--text-steps 1600]

Three phases, each with its own kind of row, because a model that starts on text takes many times as long to find out
that it can copy:

    copies   3 to 12 tokens of a vocabulary of 60, then the same again
    recall   over the whole vocabulary: keys with values, then each key again, and its value is to follow
    text     tiny_base_text, plain language modelling, with some recall rows between

One thread, so that the same seed gives the same weights on the same machine and torch. The tokenizer also reads the
quickstart's training rows, to have words for them; the model never does.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tiny_base_text import document, documents, notes
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, OlmoHybridForCausalLM, PreTrainedTokenizerFast

import hybrid_ft
from hybrid_ft.hybrid_model.checkpoint.save import save, verify

ROOT = Path(__file__).resolve().parent.parent
PAD, END = "<|pad|>", "<|endoftext|>"
TURN_END = "<|im_end|>"
CONTROL = [PAD, END, "<|im_start|>", TURN_END, "<functions>", "</functions>", "<function_calls>", "</function_calls>"]
VOCABULARY = 1024
# Capitals and digits never carry the space before them, so that a name, a date or a sum has the same tokens behind
# a space and behind a quotation mark: what is copied is a run of tokens, not of letters.
WORDS = r'": "?|"?, "| ?\p{Ll}+|\p{Lu}\p{Ll}*|\p{N}| ?[^\s\p{L}\p{N}]+|\s+|.'
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STEP_TOKENS = 2000
COPY_STEPS, RECALL_STEPS = 80, 240
RATE = 2e-3


class Row(NamedTuple):
    """Tokens and their labels; -100 where nothing is to be learned."""

    ids: list[int]
    labels: list[int]


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE, digits one by one, with a plain chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=CONTROL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=4096)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def copies(rng: random.Random, vocabulary: list[int], end: int) -> Row:
    """A run of 3 to 12 tokens, then the same again. One to a row: with more, copying takes twice as long to appear."""
    run = rng.choices(vocabulary, k=rng.randint(3, 12))
    return Row([end, *run, end, *run, end], [-100] * (len(run) + 2) + [*run, end])


def recall(rng: random.Random, vocabulary: list[int], few: list[int], end: int) -> Row:
    """1 to 8 keys of 1 or 2 tokens with values of 1 to 6, then the keys in another order, each value to be named.

    Values of a few symbols alone are the harder ones: the token before does not tell where in the value one is.
    """
    pairs = []
    for _ in range(rng.randint(1, 8)):
        key = rng.choices(vocabulary, k=rng.randint(1, 2))
        pairs.append((key, rng.choices(few if rng.random() < 0.4 else vocabulary, k=rng.randint(1, 6))))
    ids, labels = [end], [-100]
    for key, value in rng.sample(pairs, len(pairs)):
        ids += [*key, *value, end]
        labels += [-100] * (len(key) + len(value) + 1)
    for key, value in pairs:
        ids += [*key, *value, end]
        labels += [*[-100] * len(key), *value, end]
    return Row(ids, labels)


def text_row(tokenizer: PreTrainedTokenizerFast, text: str) -> Row:
    end = tokenizer.eos_token_id
    ids = [end, *tokenizer.encode(text, add_special_tokens=False), end]
    return Row(ids, [-100, *ids[1:]])


def right(model: OlmoHybridForCausalLM, rows: list[Row]) -> float:
    """Share of the labelled tokens that the model ranks first."""
    ids, labels, positions = lay(rows)
    with torch.no_grad():
        best = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :-1].argmax(-1)
    wanted = labels[0, 1:]
    counted = wanted != -100
    return float((best == wanted)[counted].float().mean())


def lay(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows end to end, [1, N] each: tokens, labels, positions that restart with every row."""
    ids = [token for row in rows for token in row.ids]
    # A row's first token is not to be predicted from the row before it.
    labels = [label for row in rows for label in (-100, *row.labels[1:])]
    positions = [place for row in rows for place in range(len(row.ids))]
    return torch.tensor([ids]), torch.tensor([labels]), torch.tensor([positions])


def answers_only(tokenizer: PreTrainedTokenizerFast, text: str) -> Row:
    """A text of keys and values (``notes``), with labels on the values that it is asked for."""
    row = text_row(tokenizer, text)
    tokens = tokenizer.convert_ids_to_tokens(row.ids)
    labels, inside = [-100] * len(row.ids), False
    for place, token in enumerate(tokens):
        if inside and token != "." and place and "?" not in tokens[place - 1]:
            labels[place] = row.ids[place]
        inside = "?" in token or (inside and token != ".")
    return Row(row.ids, labels)


def phases(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, text_steps: int
) -> list[tuple[str, int, Callable[[float], Row]]]:
    """Name, steps and a row for the share of the phase that is done."""
    end = tokenizer.eos_token_id
    # The vocabulary grows from 60 tokens to all: what copies the known ones takes in the new ones one by one.
    order = rng.sample(range(len(CONTROL), len(tokenizer)), len(tokenizer) - len(CONTROL))
    digits = tokenizer.convert_tokens_to_ids(list("0123456789"))

    def mixed(done: float) -> Row:
        known = order[: 60 + int(min(1.0, 1.5 * done) * (len(order) - 60))]
        return copies(rng, known, end) if rng.random() < 0.3 else recall(rng, known, digits, end)

    def text(_: float) -> Row:
        return mixed(1.0) if rng.random() < 0.15 else text_row(tokenizer, document(rng))

    return [
        ("copies", COPY_STEPS, lambda _: copies(rng, order[:60], end)),
        ("recall", RECALL_STEPS, mixed),
        ("text", text_steps, text),
    ]


def probes(tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, list[Row]]:
    """Rows that are measured again and again and never trained on."""
    rng = random.Random(seed)
    end, every = tokenizer.eos_token_id, list(range(len(CONTROL), len(tokenizer)))
    return {
        "copied": [copies(rng, every, end) for _ in range(60)],
        "recalled": [recall(rng, every, every, end) for _ in range(30)],
        "asked": [answers_only(tokenizer, notes(rng)) for _ in range(60)],
    }


def train(
    model: OlmoHybridForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int, text_steps: int, curve: Path
) -> None:
    """Train in place and write the curve: a JSON line every 20 steps."""
    rng = random.Random(seed)
    measured = probes(tokenizer, seed + 10**6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.0)
    last = COPY_STEPS + RECALL_STEPS + text_steps
    step = tokens = 0
    started = time.process_time()
    with curve.open("w", encoding="utf-8") as out:
        for phase, steps, make in phases(tokenizer, rng, text_steps):
            for done in range(steps):
                rows: list[Row] = []
                while sum(len(row.ids) for row in rows) < STEP_TOKENS:
                    rows.append(make(done / steps))
                falling = max(0, step - COPY_STEPS) / (last - COPY_STEPS)
                rate = RATE * min(1.0, (step + 1) / 20) * (0.525 + 0.475 * math.cos(math.pi * falling))
                for group in optimizer.param_groups:
                    group["lr"] = rate
                ids, labels, positions = lay(rows)
                model.train()
                loss = model(input_ids=ids, labels=labels, position_ids=positions, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                step, tokens = step + 1, tokens + ids.shape[1]
                if step % 20 == 0 or step == last:
                    model.eval()
                    line = {"step": step, "phase": phase, "tokens": tokens, "loss": round(loss.item(), 4)}
                    line |= {name: round(right(model, rows), 4) for name, rows in measured.items()}
                    line |= {"cpu_seconds": round(time.process_time() - started)}
                    print(json.dumps(line), file=out, flush=True)
                    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the tiny trained base.")
    parser.add_argument("--out", type=Path, default=ROOT / "hybrid_model" / "tiny")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--text-steps", type=int, default=1600)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)

    rows = (ROOT / "datasets" / "quickstart" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [turn["content"] for row in rows[:3000] for turn in json.loads(row)["messages"]]
    tokenizer = make_tokenizer([*documents(arguments.seed, 6000), *turns])
    model = hybrid_ft.load("tiny", from_scratch=True, vocab_size=len(tokenizer), seed=arguments.seed)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(tokenizer)} tokens")

    train(model, tokenizer, arguments.seed, arguments.text_steps, arguments.out / "training.jsonl")
    ends = [tokenizer.convert_tokens_to_ids(TURN_END), tokenizer.eos_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    save(model.eval(), arguments.out, tokenizer)
    print(f"relative difference of plain transformers' logits: {verify(arguments.out, model):.1e}")


if __name__ == "__main__":
    main()
