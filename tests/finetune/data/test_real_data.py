"""Published datasets with the real Olmo tokenizer: numbers, none of their text."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.messages.row_forms import recognise
from hybrid_ft.finetune.data.prepare import Prepared, prepare
from hybrid_ft.finetune.data.tokens.control_tokens import ControlTokens
from hybrid_ft.finetune.data.tokens.skeleton import as_rendered
from hybrid_ft.finetune.recipe.schema import changed

pytestmark = pytest.mark.real_data

# file, columns, format, rows, tokens, trained tokens, longest row, rows there before, unused columns
FILES = [
    ("sft/fastchat_dummy_conversation.json", None, "sharegpt", 500, 43_258, 15_727, 128, 0, ["id"]),
    ("sft/gsm8k_train.jsonl", "gsm8k", "columns gsm8k", 7_473, 1_454_541, 757_204, 495, 0, []),
    ("sft/gsm8k_test.jsonl", "gsm8k", "columns gsm8k", 1_319, 262_253, 136_978, 451, 0, []),
    ("sft/legalbench_overruling_test.tsv", "legalbench-overruling", "columns legalbench-overruling", 2_394, 232_170, 4_788, 292, 890, []),
    ("sft/legalbench_overruling_train.tsv", "legalbench-overruling", "columns legalbench-overruling", 6, 453, 12, 82, 0, ["index"]),
    ("sft/lf_identity.json", None, "alpaca", 91, 8_361, 4_228, 185, 0, []),
    ("sft/lf_v1_sft_demo.jsonl", None, "messages", 500, 90_686, 64_212, 551, 1, []),
    ("sft/mbpp.jsonl", "mbpp", "columns mbpp", 974, 195_859, 56_973, 2_686, 0, ["challenge_test_list", "task_id", "test_setup_code"]),
    ("sft/pubmedqa_ori_pqal.json", "pubmedqa", "columns pubmedqa", 1_000, 422_247, 52_292, 945, 0, ["LABELS", "MESHES", "YEAR", "reasoning_free_pred", "reasoning_required_pred"]),
    ("sft/rasbt_instruction_data.json", None, "alpaca", 1_100, 67_317, 14_387, 102, 0, []),
    ("sft/tulu3_sft_sample.jsonl", None, "messages", 100, 46_962, 37_786, 2_815, 0, ["id", "source"]),
    ("tools/lf_glaive_toolcall_en_demo.json", None, "sharegpt", 300, 153_201, 82_583, 4_069, 35, []),
    ("tools/lf_reason_tool_use_demo_50.jsonl", None, "messages", 50, 38_274, 8_541, 3_011, 0, []),
]  # fmt: skip


@pytest.fixture(scope="session")
def folder() -> Path:
    if "HYBRID_FT_REAL_DATA" not in os.environ or "HYBRID_FT_REAL_TOKENIZER" not in os.environ:
        pytest.skip("HYBRID_FT_REAL_DATA and HYBRID_FT_REAL_TOKENIZER are not set")
    return Path(os.environ["HYBRID_FT_REAL_DATA"])


@pytest.fixture(scope="session")
def olmo(folder: Path) -> Any:
    given = Path(os.environ["HYBRID_FT_REAL_TOKENIZER"])
    inner = given / "olmo-instruct"
    return AutoTokenizer.from_pretrained(inner if inner.is_dir() else given)


def made(path: Path, columns: str | None, recipe: Callable[..., Any], tokenizer: Any, **data: Any) -> Prepared:
    wanted = recipe({"path": str(path), "columns": columns}, **data)
    # from scratch: the tiny base has fewer tokens
    return prepare(changed(wanted, "model", chat_template="olmo-instruct", from_scratch=True), tokenizer)


@pytest.mark.parametrize(
    ("file", "columns", "form", "rows", "tokens", "trained", "longest", "duplicates", "unused"),
    FILES,
    ids=[c[0] for c in FILES],
)
def test_counts(
    file: str, columns: str | None, form: str, rows: int, tokens: int, trained: int, longest: int, duplicates: int,
    unused: list[str], folder: Path, olmo: Any, recipe: Callable[..., Any],
) -> None:  # fmt: skip
    prepared = made(folder / file, columns, recipe, olmo)
    (source,), train = prepared.report.sources, prepared.report.train
    assert (source.format, source.read, source.kept, source.ignored) == (form, rows, rows, unused)
    assert (train.rows, train.tokens, train.trained, train.duplicates) == (rows, tokens, trained, duplicates)
    assert train.lengths.max() == longest and not source.control_tokens_as_text.count
    assert prepared.eos_token_ids == [100_257, 100_265]
    assert prepared.packs is not None and sorted(row for pack in prepared.packs for row in pack) == list(range(rows))


@pytest.mark.parametrize("file", [case[0] for case in FILES if case[1] is None])
def test_tokens_are_the_tokenizers_own(
    file: str, folder: Path, olmo: Any, recipe: Callable[..., Any], rows_of: Callable[..., list[Any]]
) -> None:
    """Rendered by the tokenizer's own template and encoded by the tokenizer itself: the same ids, row by row."""
    prepared = made(folder / file, None, recipe, olmo)
    rows = rows_of(folder / file)
    form = recognise(rows[:64], None)
    assert form is not None
    for row, encoded in zip(rows, prepared.train, strict=True):
        conversation = form.convert(row.values)
        messages = as_rendered(conversation, None)
        text = olmo.apply_chat_template(messages, tools=conversation.tools, tokenize=False)
        assert encoded["input_ids"] == olmo(text, add_special_tokens=False).input_ids
        # what is learned: the texts between an assistant's header and the token that ends its turn, split by hand
        spoken = [part.split("<|im_end|>\n<|im_start|>")[0] for part in text.split("<|im_start|>assistant\n")[1:]]
        learned = olmo.decode([token for token in encoded["labels"] if token != -100])
        assert learned == "<|im_end|>".join(spoken)  # the last ends with the text's own end token


def test_no_tools_in_a_third_of_the_rows(folder: Path, rows_of: Callable[..., list[Any]]) -> None:
    rows = rows_of(folder / "tools/lf_glaive_toolcall_en_demo.json")
    form = recognise(rows[:64], None)
    assert form is not None and sum(form.convert(row.values).tools is None for row in rows) == 109


def test_reasoning_is_not_dropped_in_silence(folder: Path, olmo: Any, recipe: Callable[..., Any]) -> None:
    prepared = made(folder / "tools/lf_reason_tool_use_demo_50.jsonl", None, recipe, olmo)
    assert prepared.report.sources[0].count("reasoning_not_shown").count == 50


def test_held_out_rows_of_gsm8k(folder: Path, olmo: Any, recipe: Callable[..., Any]) -> None:
    prepared = made(folder / "sft/gsm8k_train.jsonl", "gsm8k", recipe, olmo, eval={"count": 500})
    assert prepared.eval is not None and (len(prepared.train), len(prepared.eval)) == (6_973, 500)
    assert all("#### " in row["answer"] for row in prepared.eval)
    header = olmo("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    assert all(row["prompt_ids"] == row["input_ids"][: len(row["prompt_ids"])] for row in prepared.eval)
    assert all(row["prompt_ids"][-len(header) :] == header for row in prepared.eval)


def test_preference_rows_are_no_demonstrations(folder: Path, olmo: Any, recipe: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="no assistant turn|ends on a user turn"):
        made(folder / "preference/lf_dpo_en_demo.json", None, recipe, olmo)
    with pytest.raises(InputError, match="columns in no known format"):
        made(folder / "preference/tulu3_preference_sample.jsonl", None, recipe, olmo)


def test_no_text_of_the_tokenizer_can_be_forged(olmo: Any) -> None:
    control = ControlTokens(olmo)
    assert len(control.ids) == 22
    for name in control.ids:
        (encoding,) = control.encode([f"a {name} b"])
        assert control.count(encoding.ids) == 0 and olmo.decode(encoding.ids) == f"a {name} b"
