"""The base of a recipe that names an adapter alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hybrid_ft.errors import shown
from hybrid_ft.finetune.recipe.checks import TRAINED_PRESETS
from hybrid_ft.finetune.recipe.handed_on import PREVIOUS
from hybrid_ft.finetune.recipe.mistakes import Wrong

CONFIG = "adapter_config.json"


def take_base(raw: dict[str, Any], folder: Path) -> list[Wrong]:
    """Set ``model.path``, and ``model.revision``, where they are left out and ``model.adapter`` is a
    folder that says them.

    ``folder``: the recipe's, where a relative path may start. What else is wrong with the adapter is found when it is
    opened.
    """
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("path") is not None or not isinstance(model.get("adapter"), str):
        return []
    if model["adapter"] == PREVIOUS:
        return []
    given = os.path.expanduser(model["adapter"])
    places = [Path(given, CONFIG), folder / given / CONFIG]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        there = any(os.path.isdir(place.parent) for place in places)
        found = f"no {CONFIG} in it" if there else "no such folder"
        fix = "name the folder of an adapter, or set model.path to the base of a hub's adapter"
        rule = f"got {shown(model['adapter'])}; {found}; {fix}"
        return _only(raw, "adapter", rule)
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        base, revision = said["base_model_name_or_path"], said.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        base = revision = None
    if not isinstance(base, str) or not base:
        return _only(raw, "path", f"left out, and {file} names no base model; set it to the adapter's base")
    raw["model"] = model | {"path": base}
    if isinstance(revision, str) and not os.path.exists(base):
        raw["model"].setdefault("revision", revision)
    if os.path.isabs(base) and not os.path.isdir(base):
        return _only(
            raw, "path", f"left out; {file} says {shown(base)}, where nothing is; set it to where the base lies now"
        )
    return []


def _only(raw: dict[str, Any], key: str, rule: str) -> list[Wrong]:
    """A mistake, which the checks that follow would otherwise say again, as a missing model.path."""
    raw["model"]["path"] = TRAINED_PRESETS[0]
    return [Wrong(("model", key), rule)]
