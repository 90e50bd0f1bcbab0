"""Every stage's rows are read as what they are when a task is looked for among them."""

from pathlib import Path

import pytest

from hybrid_ft.finetune.evaluation.contamination import training_texts
from hybrid_ft.finetune.recipe.schema import Recipe

PAIR = '{"prompt": "one", "chosen": "two", "rejected": "three"}\n'
JUDGED = '{"prompt": "one", "completion": "two", "label": true}\n'
ROW = '{"prompt": "one", "completion": "two"}\n'


@pytest.mark.parametrize(("stage", "line"), [("sft", ROW), ("dpo", PAIR), ("kto", JUDGED), ("reward", PAIR)])
def test_the_text_of_every_stage_s_rows(stage: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(line)
    raw = {"model": {"path": "tiny"}, "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}]}}
    recipe = Recipe.model_validate(raw | ({} if stage == "sft" else {stage: {}}))
    (text,) = training_texts(recipe)
    assert {"one", "two"} <= set(text.split())
