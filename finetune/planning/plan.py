"""``hybrid-ft plan``: what a recipe needs, before anything is rented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.machines.empty_model import empty_model
from hybrid_ft.finetune.machines.gpus import Gpu, Offer, find, read_table
from hybrid_ft.finetune.machines.shape import Shape, shape_of
from hybrid_ft.finetune.planning import view
from hybrid_ft.finetune.planning.estimate import COUNTS, Case, case, cases, changes
from hybrid_ft.finetune.planning.work import Work, read_rows, work_of
from hybrid_ft.finetune.recipe.load import load_recipe
from hybrid_ft.finetune.recipe.model_section import Lora
from hybrid_ft.finetune.recipe.schema import Recipe, changed
from hybrid_ft.finetune.recipe.shipped import find_recipe
from hybrid_ft.finetune.recipe.stages import load_stages
from hybrid_ft.finetune.recipe.yaml_file import read_yaml
from hybrid_ft.finetune.runs.storage import checkpoint_bytes
from hybrid_ft.finetune.runs.team import check_teams
from hybrid_ft.finetune.training.own_tokens import check_heads
from hybrid_ft.hybrid_model.families.known import family_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True)
class Asked:
    """The options. ``gpu``: a key of the table; ``gpus``: how many; ``price``: USD for one and an hour; ``prices``: a
    file in the table's form; ``tokens``: of an epoch, where the rows are not here."""

    gpu: str | None = None
    gpus: int | None = None
    price: float | None = None
    prices: str | None = None
    tokens: int | None = None
    measure: bool = False


@dataclass(frozen=True)
class PlannedModel:
    """A recipe's model without weights. ``save``: bytes of a checkpoint."""

    config: PreTrainedConfig
    shape: Shape
    save: int
    weights: int

    @classmethod
    def of(cls, recipe: Recipe) -> PlannedModel:
        """Without its weights: shapes alone are read."""
        bfloat16 = recipe.model.dtype != "float32"  # as on a GPU, wherever this is asked
        model = empty_model(recipe, bfloat16)
        optimizer = recipe.train.optimizer
        shape = shape_of(model, model.config, bfloat16, recipe.model.quantize, optimizer)
        shape = replace(shape, keeps_start=recipe.keeps_start)
        return cls(model.config, shape, checkpoint_bytes(model, optimizer), sum(p.numel() for p in model.parameters()))


def run_file(file: str, overrides: Sequence[str], asked: Asked, say: Callable[[str], None]) -> int:
    """The plan of a recipe, or of each stage of a file. Returns 0. Raises InputError as ``run`` does."""
    if "stages" not in read_yaml(find_recipe(file)).value:
        return run(load_recipe(file, overrides), asked, say)
    recipes = [stage.recipe for stage in load_stages(file, overrides).stages if stage.recipe is not None]
    several = len(recipes) > 1
    if asked.tokens is not None and several:
        raise InputError(f"--tokens: {file} has several stages, each with rows of its own; plan its recipes one by one")
    for number, recipe in enumerate(recipes, start=1):
        say(f"stage {number} of {len(recipes)}  {recipe.stage}")
        run(_on_first(recipe, recipes[0]), asked, say, alone=not several)
    return 0


def _on_first(recipe: Recipe, first: Recipe) -> Recipe:
    """A later stage trains what the one before it leaves, which is not there yet and has the shape of
    the first one's base."""
    if recipe is first:
        return recipe
    keys: dict[str, Any] = {"path": first.model.path, "revision": first.model.revision}
    keys |= {"tokenizer": recipe.model.tokenizer or first.model.tokenizer}
    if recipe.model.adapter and first.model.lora:  # handed on
        keys |= {"adapter": None, "lora": first.model.lora}
    return changed(recipe, "model", **keys)


def run(recipe: Recipe, asked: Asked, say: Callable[[str], None], alone: bool = True) -> int:
    """Print the plan. Returns 0. ``alone``: --tokens may be given, which would be unclear of one of several stages.

    Raises InputError for a recipe, an option or a table that is wrong.
    """
    kinds = _kinds(asked)
    model = PlannedModel.of(recipe)
    prepared, why = read_rows(recipe)
    if prepared is not None and asked.tokens is not None:
        raise InputError("--tokens: the recipe's rows are on this machine and are counted; leave it out")
    size = recipe.train.sequence_parallel
    check_heads(model.config, size)
    counts = (asked.gpus,) if asked.gpus else tuple(count for count in COUNTS if not count % size) or (size,)
    check_teams(counts[0], size)
    work = work_of(recipe, model.config, prepared, why, asked.tokens, counts[0] // size)
    trained = model.shape.trained
    how = "all trained" if trained == model.weights else f"{trained:,} trained"
    say(view.line("model", f"{recipe.model.path}: {model.weights:,} parameters, {how}"))
    say(view.line("data", view.rows(work, away=prepared is None, alone=alone)))
    if asked.measure:
        from hybrid_ft.finetune.planning.measure import measure

        for text in measure(recipe, model.config, work):
            say(text)
    found = list(cases(recipe, model.shape, work, kinds, counts, model.save))
    shown = _shown(found, asked)
    for text in view.described(recipe, shown, work):
        say(text)
    say(view.saves(recipe, model.save, work))
    others = [one for one in found if one is not shown]
    keys = _Keys(recipe, model, work)
    if not shown.fits:
        for text in view.mended(shown, keys.offers(shown.gpu, counts)):
            say(text)
    for text in view.alternatives(others, lambda one: keys.offers(one.gpu, counts)):
        say(text)
    return 0


def _kinds(asked: Asked) -> list[Gpu]:
    """Those of the table, the wanted one first, at the wanted price."""
    table = read_table(asked.prices)
    if asked.gpu is None:
        if asked.price is not None:
            raise InputError("--price: goes with --gpu, whose hour it is; --prices FILE sets those of several kinds")
        return list(table.values())
    wanted = find(table, asked.gpu)
    if asked.price is not None:
        table[wanted.key] = replace(wanted, offers=(Offer(asked.price, "--price", None),))
    return [table[wanted.key], *(gpu for key, gpu in table.items() if key != wanted.key)]


def _shown(found: Sequence[Case], asked: Asked) -> Case:
    """In full: the wanted kind; or the cheapest that fits; or the one with the most memory."""
    if asked.gpu is not None:
        return found[0]
    fitting = [one for one in found if one.fits]
    if fitting:
        return min(fitting, key=view.cost)
    return max(found, key=lambda one: one.gpu.memory)


@dataclass
class _Keys:
    """What would make a recipe fit."""

    recipe: Recipe
    model: PlannedModel
    work: Work
    made: dict[tuple[bool, str | None, str], PlannedModel] = field(default_factory=dict)
    """the model as other keys have it"""

    def offers(self, gpu: Gpu, counts: Sequence[int]) -> list[view.Offered]:
        """Of the numbers of GPUs the smallest that some keys make fit; and that from which on the largest number's keys
        do, which cost least."""
        found: list[view.Offered] = []
        for count in counts:
            one = self._first(gpu, count)
            if one and (not found or one.kind != found[-1].kind):
                found.append(one)
        return [*found[:1], *found[1:][-1:]]

    def _first(self, gpu: Gpu, count: int) -> view.Offered | None:
        """By the first combination of keys with which it fits."""
        recipe, heads = self.recipe, family_of(self.model.config).most_processes(self.model.config)
        for combination in changes(recipe, count, heads):
            other, of = recipe, self.model
            for section, key, value in combination:
                other = changed(other, section, **{key: Lora() if key == "lora" else value})
            kind = (other.model.lora is not None, other.model.quantize, other.train.optimizer)
            if kind != (recipe.model.lora is not None, recipe.model.quantize, recipe.train.optimizer):
                of = self.made[kind] = self.made.get(kind) or PlannedModel.of(other)
            found = case(other, of.shape, _with_tokens(self.work, other, recipe), gpu, count, of.save)
            if found.fits:
                keys = " ".join(f"{section}.{key}={_written(value)}" for section, key, value in combination)
                now = case(recipe, self.model.shape, self.work, gpu, count, self.model.save)
                return view.Offered(now, found, keys)
        return None


def _written(value: Any) -> str:
    return (
        {True: "true", False: "false", None: "null"}[value] if value is None or isinstance(value, bool) else str(value)
    )


def _with_tokens(work: Work, other: Recipe, recipe: Recipe) -> Work:
    """With smaller micro-batches there are more of them in a step."""
    share = other.train.batch_tokens / recipe.train.batch_tokens
    if share == 1:
        return work
    tokens = min(work.batch.tokens, other.train.batch_tokens)
    batch = replace(work.batch, tokens=tokens, labelled=min(work.batch.labelled, tokens))
    dealt = round(work.dealt / share) if work.dealt == work.micro_batches else work.dealt
    return replace(work, batch=batch, micro_batches=round(work.micro_batches / share), dealt=dealt)
