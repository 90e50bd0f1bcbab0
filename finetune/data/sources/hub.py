"""Datasets of the Hugging Face hub and single files of them.

Without a network only what is in the cache is opened, and nothing waits for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import BAD_INPUT, ENVIRONMENT, InputError, one_line
from hybrid_ft.finetune.recipe.hub_files import HUB_FILES, repository

if TYPE_CHECKING:
    from hybrid_ft.finetune.recipe.data_section import Source

PATIENCE = 5.0
"""Seconds within which the hub must answer one request."""


def load_from_hub(source: Source, name: str, near: str = "", streaming: bool = False) -> Any:
    """A hub dataset, or its copy in the cache where the hub cannot be reached.

    Raises InputError: status 2 for a split or configuration that does not exist, 3 for what cannot be
    had. ``name`` is what the message calls the source, ``near`` names a local file that may have been
    meant; ``streaming``: as datasets'.
    """
    import datasets

    answers = reachable()
    try:
        with _as_the_network_is(answers):
            return datasets.load_dataset(
                source.path,
                source.name,
                split=source.split or "train",
                revision=source.revision,
                **({"streaming": True} if streaming else {}),
            )
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error):
            raise
        text = "is read by a program of its own, which the datasets library does not run"
        fix = f"name one of its data files, {HUB_FILES}{source.path}/FILE, or a local copy"
        raise InputError(f"{name}: {text}; {fix}") from None
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        fix = f"there is no such local file either{near}; check the name, the network and, for a gated set, your login"
        if not answers and not isinstance(error, ValueError):
            text = "cannot be loaded: the hub cannot be reached, and the cache does not hold it"
            raise InputError(f"{name}: {text}; {fix}", ENVIRONMENT) from None
        text = one_line(error, 200)
        status = (
            BAD_INPUT if isinstance(error, ValueError) else ENVIRONMENT
        )  # ValueError: no such split or configuration
        raise InputError(f"{name}: cannot be loaded from the hub ({text}); {fix}", status) from None


def hub_file(path: str, revision: str | None) -> str:
    """The local copy of one file of a hub dataset. Raises InputError: status 2 for a name that is none, 3 for
    what cannot be had."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        name, file = repository(path)
    except ValueError as error:
        raise InputError(f"path: {error}") from None
    try:
        with _as_the_network_is(reachable()):
            return huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision)
    except LocalEntryNotFoundError:
        text = "cannot be loaded: the hub cannot be reached, and the cache does not hold it"
        raise InputError(
            f"{path}: {text}; check the name, the network and, for a gated set, your login", ENVIRONMENT
        ) from None
    except EntryNotFoundError:
        raise InputError(f"{path}: {name} has no file {file}; see its page on the hub for those it has") from None
    except HFValidationError as error:
        raise InputError(f"{path}: {one_line(error, 200)}") from None
    except (HfHubHTTPError, OSError) as error:
        fix = "check the name, the revision and, for a gated set, your login"
        raise InputError(
            f"{path}: cannot be loaded from the hub ({one_line(error, 200)}); {fix}", ENVIRONMENT
        ) from None


def reachable() -> bool:
    """Whether the hub answers at all. One request; load_dataset makes six of each of its own, 23 seconds in all."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # noqa: BLE001 - what is raised depends on the HTTP library under huggingface_hub
        return False
    return True


@contextmanager
def _as_the_network_is(reachable: bool) -> Iterator[None]:
    """With the libraries in their offline mode where the hub cannot be reached."""
    import datasets.config
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not reachable:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
