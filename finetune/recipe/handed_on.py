"""What a stage starts from: the model of the one before, or its adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.recipe.mistakes import Wrong

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

PREVIOUS = "previous"
"""As model.adapter: that of the stage before."""


@dataclass(frozen=True)
class Before:
    """The stage before and the folder that it fills; ``recipe``: None for an export, or where it has mistakes."""

    kind: str
    folder: Path
    recipe: Recipe | None

    @property
    def model(self) -> str:
        """The folder of its whole model."""
        return str(self.folder / ("merged" if self.recipe and self.recipe.model.lora else "model"))

    @property
    def adapter(self) -> str:
        """The folder of its adapter, if it leaves one."""
        return str(self.folder / "adapter")


def take_over(raw: dict[str, Any], before: Before | None) -> list[Wrong]:
    """Put what the stage before makes in place of a recipe's own base. ``before``: None for a first or only stage."""
    model = {} if raw.get("model") is None else raw["model"]
    if not isinstance(model, dict):
        return []
    adapter = model.get("adapter")
    wrong = _wrong(adapter, bool(model.get("merge_adapter")), "reward" in raw, before)
    if wrong:  # the checks that follow would say it again
        model = {key: value for key, value in model.items() if key not in ("adapter", "merge_adapter")}
    if before is not None:
        model = {key: value for key, value in model.items() if key not in ("revision", "tokenizer", "from_scratch")}
        model["path"] = before.model
        if adapter == PREVIOUS and before.recipe is not None and not wrong:
            base = before.recipe.model
            model |= {"path": base.path, "revision": base.revision, "adapter": before.adapter}
    if wrong or before is not None:
        raw["model"] = model
    return [Wrong(("model", "adapter"), wrong)] if wrong else []


def _wrong(adapter: Any, merged: bool, scores: bool, before: Before | None) -> str | None:
    """Why a stage cannot start from ``adapter``; ``merged``: folded into the base first; ``scores``:
    for a reward model."""
    if before is None:
        rule = "is the adapter of the stage before, and no stage comes before this one; name an adapter's folder"
        return f"got previous, which {rule}" if adapter == PREVIOUS else None
    if adapter is None or not isinstance(adapter, str):
        return None
    if adapter != PREVIOUS:
        rule = "must be previous, for the adapter of the stage before, or left out, for its model"
        return f"got {shown(adapter)}; {rule}"
    if before.kind == "export":
        return "got previous; the stage before is an export, which leaves no adapter; leave the key out"
    if before.recipe is None:
        return None
    if before.recipe.model.lora is None:
        return "got previous; the stage before must train an adapter: give it model.lora"
    if before.recipe.model.merge_adapter:
        return "got previous; the stage before leaves its model whole (model.merge_adapter); leave the key out"
    if scores and before.kind != "reward" and not merged:
        return "got previous, a language model's adapter, which has no head that scores; set model.merge_adapter: true"
    if before.kind == "reward" and merged:
        return "got previous, a reward model's adapter, which is not merged for another stage; leave model.merge_adapter out"
    return None
