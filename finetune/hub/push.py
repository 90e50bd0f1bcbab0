"""``hybrid-ft push``: a result and its card go to the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid_ft.errors import ENVIRONMENT, InputError, one_line, shown
from hybrid_ft.finetune.data.scratch import Scratch
from hybrid_ft.finetune.hub.bundle import CARD, Bundle, read_bundle
from hybrid_ft.finetune.hub.card import RunRecord, make_card
from hybrid_ft.finetune.runs import storage
from hybrid_ft.finetune.runs.atomic import write_text
from hybrid_ft.finetune.runs.console import say

if TYPE_CHECKING:
    from rich.console import Console


_LICENSE = re.compile(r"[a-z0-9]+([.+-][a-z0-9]+)*")


def run(
    folder: Path,
    name: str,
    console: Console,
    *,
    private: bool = False,
    dry_run: bool = False,
    base: str | None = None,
    run_folder: Path | None = None,
    license_id: str | None = None,
) -> int:
    """Send the model, adapter or GGUF files in ``folder`` to the hub's repository ``name``. Returns the exit status.

    A card that lies there already goes as it is; otherwise one is made of the run and written. ``dry_run``: nothing is
    sent. The same command sends again what did not arrive. Raises InputError for what a user can mend: before anything
    is written, or with status 3 where the hub refuses.
    """
    _check_name(name)
    if base is not None:
        _check_name(base, "--base: ")
    if license_id is not None and not _LICENSE.fullmatch(license_id):
        raise InputError(f"--license: got {shown(license_id)}; must be an id of the hub's, such as apache-2.0 or other")
    bundle = read_bundle(folder, base)
    if not any(path.name == CARD for path in bundle.files):
        made_by = _run_of(folder, run_folder)
        record = RunRecord.read(made_by) if made_by else None
        write_text(folder / CARD, make_card(name, bundle.kind, bundle.base, record, license_id, bundle.scores))
        say(console, f"card      {folder / CARD}: made; change it as you like, it is kept from now on")
        bundle = read_bundle(folder, base)
    else:
        say(console, f"card      {folder / CARD}: as it is; delete it for a new one")
    _tell(bundle, console)
    if dry_run:
        say(console, f"nothing was sent; without --dry-run it goes to {name}")
        return 0
    from huggingface_hub import HfApi

    api = HfApi()
    with _the_hub(name):
        url = api.create_repo(name, private=private or None, exist_ok=True)
        repo = url.repo_id
        if private and not api.repo_info(repo).private:
            raise InputError(f"--private: {repo} is there and public; make it private on the hub, or take another name")
        with Scratch() as place, console.status(f"sending to {repo}"):
            bundle.fill(Path(place))
            api.upload_folder(repo_id=repo, folder_path=place, commit_message=f"{bundle.kind}, by hybrid-ft")
    say(console, f"sent      {url}")
    return 0


def _run_of(folder: Path, given: Path | None) -> Path | None:
    """The run that made the folder: the one that was named, or the one that it lies in."""
    parent = folder.absolute().parent
    return given or (parent if (parent / "run.json").is_file() else None)


def _tell(bundle: Bundle, console: Console) -> None:
    names = sorted([path.name for path in bundle.files] + list(bundle.rewritten))
    say(console, f"{bundle.kind:<9} {len(names)} files, {storage.size(bundle.bytes)}: {', '.join(names)}")
    if bundle.rewritten:
        say(console, f"          sent without names of folders here: {', '.join(sorted(bundle.rewritten))}")
    if bundle.left:
        say(console, f"left out  {', '.join(bundle.left)}")


def _check_name(name: str, option: str = "") -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"{option}{name}: must be OWNER/NAME of the hub ({one_line(error, 120)})") from None


@contextmanager
def _the_hub(name: str) -> Iterator[None]:
    """Raises InputError for what the hub or the network says."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # its first base is that of all errors of the HTTP library, which is another one by version
    problems: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError)
    try:
        yield
    except problems as error:
        response = getattr(error, "response", None)
        refused = isinstance(error, LocalTokenNotFoundError) or getattr(response, "status_code", None) in (401, 403)
        fix = "log in by hf auth login with a token that may write" if refused else "the same command sends the rest"
        raise InputError(f"{name}: the hub says: {one_line(error, 200)}; {fix}", ENVIRONMENT) from None
