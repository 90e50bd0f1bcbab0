"""Keys set on the command line."""

import pytest
from recipe_files import MINIMAL, mistakes, write

from hybrid_ft.finetune.recipe.load import load_recipe

pytestmark = pytest.mark.usefixtures("folder")


def test_overrides_reach_everywhere() -> None:
    recipe = load_recipe(
        write(MINIMAL),
        [
            "train.steps=5",
            "train.steps=7",
            "data.sources.0.split=test",
            "model.lora.rank=4",
            "evaluate.samples=[a, b: c]"[:-6] + "]",
        ],
    )
    assert (recipe.train.steps, recipe.data.sources[0].split) == (7, "test")
    assert recipe.model.lora is not None and recipe.model.lora.rank == 4
    assert recipe.evaluate.samples == ["a"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "override 'train.steps': must be key=value"),
        ("=5", "override '=5': must be key=value"),
        ("train..steps=5", "override 'train..steps=5': must be key=value"),
        ("train.steps=abc", "override train.steps: got 'abc'; must be a whole number"),
        ("train.stps=5", "override train.stps: unknown key train.stps; did you mean train.steps?"),
        ("steps=5", "override steps: unknown key steps; did you mean train.steps?"),
        (
            "data.sources.1.path=x",
            "override data.sources.1.path: data.sources has no item '1'; must be 0",
        ),
        ("model.path.x=1", "override model.path.x: model.path is 'tiny', which has no key 'x'"),
        ("train.seed.x=1", "override train.seed.x: train.seed: got a mapping with x; must be a whole number"),
        (
            "data.sources=[{path: gone.jsonl}]",
            "override data.sources: data.sources.0.path: got 'gone.jsonl'; there is no such data file",
        ),
        ("train.betas=[1", "override train.betas: not YAML"),
        (
            "model.gradient_checkpointing=foo",
            "override model.gradient_checkpointing: got 'foo'; must be true or false or 'selective'",
        ),
        (
            "model.checkpointed_layers=atuo",
            "override model.checkpointed_layers: got 'atuo'; must be a whole number or 'auto'; did you mean auto?",
        ),
    ],
)
def test_mistaken_override(override: str, said: str) -> None:
    found = mistakes(MINIMAL, override)
    assert len(found) == 1, found
    assert found[0].startswith(said)
