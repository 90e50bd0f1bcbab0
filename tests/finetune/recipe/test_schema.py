"""The schema's own rules: which keys there are, that each is described, and that nothing can be changed in place."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from hybrid_ft.finetune.recipe.data_section import Source
from hybrid_ft.finetune.recipe.keys import free_keys, keys, sections
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.finetune.recipe.stages import StagesFile

KEYS = [
    "model",
    "model.path",
    "model.revision",
    "model.from_scratch",
    "model.dtype",
    "model.tokenizer",
    "model.new_tokens",
    "model.new_special_tokens",
    "model.chat_template",
    "model.chat_template_kwargs",
    "model.quantize",
    "model.gradient_checkpointing",
    "model.checkpointed_layers",
    "model.adapter",
    "model.merge_adapter",
    "model.lora",
    "model.lora.targets",
    "model.lora.rank",
    "model.lora.alpha",
    "model.lora.dropout",
    "model.lora.modules",
    "model.lora.modules_to_save",
    "model.lora.init",
    "model.lora.layers",
    "model.lora.rslora",
    "model.lora.dora",
    "model.lora.merge",
    "data",
    "data.sources",
    "data.weight_by",
    "data.eval",
    "data.eval.fraction",
    "data.eval.count",
    "data.eval.sources",
    "data.decontaminate",
    "data.max_length",
    "data.on_long_row",
    "data.on_bad_row",
    "data.max_dropped",
    "data.reasoning",
    "data.train_empty_thoughts",
    "data.streaming",
    "data.shuffle_buffer",
    "data.packing",
    "data.seed",
    "data.cache",
    "dpo",
    "dpo.loss",
    "dpo.beta",
    "dpo.label_smoothing",
    "dpo.pairs_per_step",
    "dpo.reference_cache",
    "dpo.on_long_prompt",
    "kto",
    "kto.loss",
    "kto.beta",
    "kto.desirable_weight",
    "kto.undesirable_weight",
    "kto.rows_per_step",
    "kto.reference_cache",
    "kto.on_long_prompt",
    "reward",
    "reward.center_rewards_coefficient",
    "reward.pairs_per_step",
    "reward.on_long_prompt",
    "train",
    "train.epochs",
    "train.steps",
    "train.batch_tokens",
    "train.batch_size",
    "train.tokens_per_step",
    "train.rows_per_step",
    "train.accumulation",
    "train.learning_rate",
    "train.optimizer",
    "train.loraplus_ratio",
    "train.neftune_alpha",
    "train.schedule",
    "train.warmup",
    "train.weight_decay",
    "train.betas",
    "train.max_grad_norm",
    "train.seed",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.loader_workers",
    "train.sharded",
    "train.sequence_parallel",
    "train.check_memory",
    "train.trackers",
    "evaluate",
    "evaluate.every",
    "evaluate.load_best",
    "evaluate.answers",
    "evaluate.samples",
    "evaluate.max_new_tokens",
    "evaluate.suite",
    "evaluate.suite.tasks",
    "evaluate.suite.forgetting",
    "evaluate.suite.limit",
    "evaluate.suite.every",
    "evaluate.suite.best",
    "evaluate.suite.run_code",
    "output",
    "mirror",
    "gpu_price",
]
SOURCE = [
    "path",
    "name",
    "split",
    "revision",
    "format",
    "columns",
    "roles",
    "preference",
    "labels",
    "pairs",
    "only",
    "without",
    "weight",
    "count",
    "repeat",
]
FREE = [
    "model.checkpointed_layers",
    "model.lora.merge",
    "data.cache",
    "train.save_every",
    "train.keep",
    "train.log_every",
    "train.loader_workers",
    "train.sequence_parallel",
    "train.check_memory",
    "train.trackers",
    "evaluate.every",
    "evaluate.suite",
    "output",
    "mirror",
    "gpu_price",
]


def recipe(**more: Any) -> Recipe:
    return Recipe.model_validate({"model": {"path": "tiny"}, "data": {"sources": [{"path": "rows.jsonl"}]}} | more)


def test_a_new_key_is_a_decision() -> None:
    """A key stays for good: users' files hold it. Before adding one here, ask whether a run could know it by itself."""
    assert list(Source.model_fields) == SOURCE
    assert [key for key, _ in keys(Recipe) if ".sources[]." not in key] == KEYS


@pytest.mark.parametrize("schema", [Recipe, StagesFile])
def test_every_key_is_described_and_has_an_example_that_is_right(schema: type[BaseModel]) -> None:
    for key, field in keys(schema):
        assert field.description and field.description.endswith("."), key
        assert field.examples, key
    _check_examples(schema)


def _check_examples(schema: type[BaseModel]) -> None:
    """Each example validates in its section, and is not the default."""
    needed = {name: field.examples[0] for name, field in schema.model_fields.items() if field.is_required()}
    for name, field in schema.model_fields.items():
        example = {name: field.examples[0]} if schema.__name__ == "Entry" else needed | {name: field.examples[0]}
        made = schema.model_validate(example)
        assert field.is_required() or getattr(made, name) != field.get_default(
            call_default_factory=True, validated_data={}
        ), name
        for inner, _ in sections(field.annotation):
            _check_examples(inner)


def test_a_recipe_is_frozen_all_the_way_down() -> None:
    made = recipe(model={"path": "tiny", "lora": {}}, dpo={})
    assert made.model.lora and made.dpo
    for section in (made, made.model, made.model.lora, made.data, made.data.eval, made.dpo, made.train, made.evaluate):
        name = next(iter(type(section).model_fields))
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, getattr(section, name))


def test_changed_makes_a_copy() -> None:
    made = recipe()
    other = changed(made, "model", path="elsewhere", dtype="bfloat16")
    assert (other.model.path, other.model.dtype, other.data) == ("elsewhere", "bfloat16", made.data)
    assert made.model.path == "tiny"


def test_the_learning_rate_is_that_of_what_is_trained() -> None:
    rates = {
        recipe(model={"path": "tiny", "lora": lora}, dpo=dpo).train.learning_rate: (lora, dpo)
        for lora in (None, {})
        for dpo in (None, {})
    }
    assert rates == {2.5e-5: (None, None), 2e-4: ({}, None), 1e-6: (None, {}), 1e-5: ({}, {})}
    assert recipe(train={"learning_rate": 0.5}, dpo={}).train.learning_rate == 0.5
    assert recipe(train=None).train.learning_rate == 2.5e-5


def test_keys_that_may_change_between_two_starts() -> None:
    """``evaluate.every`` decides the weights where the best of them are kept."""
    assert free_keys(recipe()) == FREE
    held_out = {"data": {"sources": [{"path": "rows.jsonl"}], "eval": {"count": 2}}}
    best = recipe(**held_out, evaluate={"every": 2, "load_best": True})
    assert free_keys(best) == [key for key in FREE if key != "evaluate.every"]
