"""What of the code, a tokenizer and rows tells one run from another."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from hybrid_ft.finetune.recipe import shipped
from hybrid_ft.finetune.runs import identity


@pytest.fixture
def code(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package that the digest is of."""
    for name in ("kernels", "hybrid_model", "finetune"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    monkeypatch.setattr(shipped, "PACKAGE_ROOT", tmp_path)
    identity.code_digest.cache_clear()
    yield tmp_path
    identity.code_digest.cache_clear()


@pytest.mark.parametrize(
    ("file", "decides"),
    [
        ("finetune/generation/chat.py", False),
        ("finetune/recipe/mistakes.py", False),
        ("finetune/runs/console.py", False),
        ("finetune/evaluation/answers.py", False),
        ("finetune/training/trainer.py", True),
        ("finetune/training/dpo/batches.py", True),
        ("finetune/data/packing.py", True),
        ("finetune/models.py", True),
        ("hybrid_model/layers/attention.py", True),
        ("kernels/short_conv/op.py", True),
    ],
)
def test_code_counts_where_it_decides_weights(code: Path, file: str, decides: bool) -> None:
    before = identity.code_digest()
    assert before == identity.code_digest()
    with (code / file).open("a") as edited:
        edited.write("# a comment\n")
    identity.code_digest.cache_clear()  # as a new process finds it
    assert (identity.code_digest() != before) is decides


def test_a_finished_run_is_not_touched_by_a_comment_in_a_command(
    start: Any, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(train={"steps": 2}).status == 0
    with (code / "finetune/generation/chat.py").open("a") as edited:
        edited.write("# a comment\n")
    identity.code_digest.cache_clear()  # as a new process finds it
    again = start(train={"steps": 2})
    assert again.status == 0 and "this run is finished" in again.screen


def test_a_tokenizer_is_its_words_and_its_template(tiny_tokenizer: Any) -> None:
    same, other, larger = (copy.deepcopy(tiny_tokenizer) for _ in range(3))
    other.chat_template += " "
    larger.add_tokens(["word"])
    digests = [identity.tokenizer_digest(one) for one in (tiny_tokenizer, same, other, larger)]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_rows_are_their_numbers_in_their_order_with_what_stands_beside() -> None:
    def of(rows: list[list[int]], packs: Any = None) -> str:
        return identity.rows_digest([(Dataset.from_dict({"ids": rows}), packs)], ["ids"])

    assert of([[1, 2], [3]]) == of([[1, 2], [3]])
    assert len({of([[1, 2], [3]]), of([[1], [2, 3]]), of([[3], [1, 2]]), of([[1, 2], [3]], [[0], [1]])}) == 4


def test_values_are_shown_short() -> None:
    assert identity.short_digest(None) == "not set" and identity.short_digest(0.5) == "0.5"
    assert identity.short_digest(identity.digest(b"")) == "sha256:e3b0c44298fc..."
