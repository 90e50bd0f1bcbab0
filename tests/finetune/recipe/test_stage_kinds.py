"""A stage is a line of the list: commands, sections, rates and records go by it."""

from pathlib import Path

import pytest
from typer.main import get_command

from hybrid_ft import cli
from hybrid_ft.finetune.hub.card import _LEFT_OUT
from hybrid_ft.finetune.recipe.schema import Recipe
from hybrid_ft.finetune.recipe.stage_kinds import PREFERENCE, STAGE_KINDS
from hybrid_ft.finetune.recipe.stages import Entry

PLAIN = {"model": {"path": "tiny"}, "data": {"sources": [{"path": "rows.jsonl"}]}}


@pytest.mark.parametrize("name", STAGE_KINDS)
def test_a_stage_of_the_list_is_a_command_an_entry_and_a_file(name: str, root: Path) -> None:
    kind = STAGE_KINDS[name]
    module, _, record = kind.record.partition(":")
    text = root.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8")
    assert f"\n{record} = Stage(\n" in text and f'name="{name}"' in text
    command = get_command(cli.app).commands[name]  # type: ignore[attr-defined]
    assert command.help == f"{kind.help} The same command resumes a run that was stopped."
    assert (
        Entry.model_fields[name].description
        == f"{kind.title[0].upper()}{kind.title[1:]}: a recipe, or the name of its file."
    )


def test_the_stages_stand_in_one_order() -> None:
    assert list(Entry.model_fields) == [*STAGE_KINDS, "export"]
    assert [name for name in Recipe.model_fields if name in STAGE_KINDS] == list(PREFERENCE)
    assert list(get_command(cli.app).commands)[: len(STAGE_KINDS)] == list(STAGE_KINDS)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PREFERENCE)
def test_a_section_is_one_of_its_stage(name: str) -> None:
    kind = STAGE_KINDS[name]
    recipe = Recipe.model_validate(PLAIN | {name: {kind.per_step: 12}})
    assert recipe.stage == name and recipe.preference is getattr(recipe, name)
    assert recipe.pairs_or_rows == 12
    assert (recipe.of_pairs is recipe.preference) == (kind.rows == "pairs")
    assert recipe.train.learning_rate == kind.full
    adapters = Recipe.model_validate(PLAIN | {"model": {"path": "tiny", "lora": {}}, name: {}})
    assert adapters.train.learning_rate == kind.lora


def test_without_a_section_it_is_supervised() -> None:
    recipe = Recipe.model_validate(PLAIN)
    assert (recipe.stage, recipe.preference, recipe.of_pairs, recipe.pairs_or_rows) == ("sft", None, None, None)
    assert recipe.train.learning_rate == STAGE_KINDS["sft"].full


def test_no_card_names_a_cache_of_this_machine() -> None:
    """Every section's folder for the reference's log-probabilities is a path here."""
    with_cache = {
        name
        for name in PREFERENCE
        if "reference_cache" in Recipe.model_validate(PLAIN | {name: {}}).preference.__class__.model_fields
    }
    assert with_cache == {"dpo", "kto"}
    assert {(name, "reference_cache") for name in with_cache} <= set(_LEFT_OUT)
