"""The hub: its token, and whether what a recipe names can be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hybrid_ft.errors import InputError, one_line
from hybrid_ft.finetune.data.report.account import counted
from hybrid_ft.finetune.doctor.finding import Finding, absent
from hybrid_ft.finetune.recipe.hub_files import hub_dataset

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.schema import Recipe

# the hub's own errors, and those of the network library below it, whose name differs by release
_NETWORK: Any = (*HfHubHTTPError.__bases__, OSError, RuntimeError)


def token() -> Finding:
    """What the token may do; never the token."""
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        return Finding("hub token", "none: public models and data only", here=False)
    try:
        who: dict[str, Any] = HfApi().whoami()
    except _NETWORK as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 401:
            return Finding("hub token", "the hub does not take it: log in again, hf auth login", red=True)
        return Finding("hub token", f"the hub cannot be asked ({type(error).__name__})", here=False)
    access = who.get("auth", {}).get("accessToken", {})
    return Finding("hub token", f"of {who.get('name', 'nobody')}, may {access.get('role', 'do what is not said')}")


def model(recipe: Recipe) -> Finding:
    from hybrid_ft.hybrid_model.checkpoint.config import find_config

    try:
        config = find_config(recipe.model.path, recipe.model.revision, weights=True)
    except InputError as error:
        return Finding("model", str(error), red=True)
    return Finding("model", f"{recipe.model.path}: {config.model_type}, {config.num_hidden_layers} layers")


def tokenizer(recipe: Recipe) -> Finding:
    from hybrid_ft.finetune import models

    try:
        found = models.load_tokenizer(recipe)
    except InputError as error:
        return Finding("tokenizer", str(error), red=True)
    return Finding("tokenizer", f"{len(found):,} tokens")


def data(recipe: Recipe) -> Finding:
    """Files were found when the recipe was read; hub data sets are asked for by name."""
    from pathlib import Path

    from huggingface_hub import HfApi

    names = [hub_dataset(source.path) for source in [*recipe.data.sources, *recipe.data.eval.sources]]
    remote = [name for name in dict.fromkeys(names) if not Path(name).expanduser().exists()]
    for name in remote:
        try:
            HfApi().dataset_info(name, timeout=5)
        except (HfHubHTTPError, HFValidationError) as error:
            return Finding("data", f"{name}: {one_line(error, 150)}", red=True)
        except _NETWORK as error:
            return Finding("data", f"{name}: the hub cannot be asked ({type(error).__name__})", red=True)
    if not names:
        return absent("data")
    return Finding(
        "data", f"{counted(len(names) - len(remote), 'file')} here, {counted(len(remote), 'data set')} on the hub"
    )
