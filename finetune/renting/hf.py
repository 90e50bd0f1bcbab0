"""A Hugging Face Job: what ``huggingface_hub.run_job`` is called with."""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Callable
from typing import Any

from hybrid_ft.errors import ENVIRONMENT, RESUMABLE, InputError, one_line
from hybrid_ft.finetune.renting.install import install
from hybrid_ft.finetune.renting.job import Job, readable, words
from hybrid_ft.finetune.renting.kinds import flavor

IMAGE = "python:3.12"
"""With a C compiler, which Triton needs; torch brings CUDA's libraries."""
RECIPE = "HYBRID_FT_RECIPE"
"""The variable that carries the recipe's text."""
HOME = "/tmp/hybrid-ft"
TOKEN = "HF_TOKEN"


def specification(job: Job) -> str:
    """The arguments of ``run_job`` as YAML; of secrets the names. Raises InputError for what the job would not have."""
    order = job.order
    if job.beside:
        here = next(iter(job.beside.values()))
        raise InputError(f"{here}: lies on this machine, and --on hf brings one file; write this stage into that")
    for item in job.brought:
        if item.files:
            kind = "model" if re.match(r"(\w+\.)?model\.", item.key) else "dataset"
            if item.key.endswith("model.chat_template") or item.key.endswith(".columns"):
                how = "only what is on the hub or ships reaches the job: put its text into a recipe or an image"
            else:
                how = f"hf upload OWNER/NAME {shlex.quote(next(iter(item.files.values())))} --repo-type {kind}"
                how = f"bring it to the hub ({how}) and name that in the recipe"
            raise InputError(f"{item.key}: lies on this machine, and --on hf cannot bring it; {how}")
    wanted: dict[str, Any] = {
        "image": order.image or IMAGE,
        "command": ["bash", "-c", _script(job)],
        "env": {} if job.file is None else {RECIPE: job.file.read_text(encoding="utf-8-sig")},
        # a bucket of the hub is reached with the token alone
        "secrets": list(dict.fromkeys([*order.secret, *([TOKEN] if job.kept else [])])),
        "flavor": flavor(order.gpu or "", order.gpus),
        "timeout": order.time,
        **({"attempts": 1 + order.restarts} if order.restarts else {}),
        "name": job.name,
    }
    return readable(wanted)


def _script(job: Job) -> str:
    order = job.order
    lines = ["set -e", f"mkdir -p {HOME} && cd {HOME}"]
    if job.file is not None:
        lines.append(f"printf '%s' \"${RECIPE}\" > {job.name}.yaml")
    program = "hybrid-ft"
    if order.image is None or order.package is not None:
        found = install(order.package, job.recipes)
        if found.wheel is not None:
            raise InputError(
                "--package: a wheel on this machine cannot be brought by --on hf; give a requirement that pip fetches"
                " there, or --image with the program in it"
            )
        lines.append("test -x .venv/bin/python || python3 -m venv .venv")
        lines.append(words([".venv/bin/python", "-m", "pip", "install", "-q", found.package, *found.libraries]))
        program = ".venv/bin/hybrid-ft"
    limit = order.seconds - order.notice
    lines += [
        f"# told to save {order.notice} seconds before the job's time is over; {RESUMABLE}: the same job goes on from there",
        f"exec timeout --preserve-status --signal=TERM {limit} {words([program, *job.elsewhere()])}",
        "",
    ]
    return "\n".join(lines)


def start(text: str, say: Callable[[str], None]) -> int:
    """Start what ``text`` says. Raises InputError where a secret is not set here or the hub refuses."""
    import huggingface_hub
    import yaml
    from huggingface_hub.errors import HfHubHTTPError

    wanted = yaml.safe_load(text)
    if "attempts" in wanted and "attempts" not in inspect.signature(huggingface_hub.run_job).parameters:
        found = f"huggingface_hub {huggingface_hub.__version__} starts a job once"
        raise InputError(f"--restarts: {found}; pip install -U huggingface_hub, or leave the option out", ENVIRONMENT)
    wanted["secrets"] = {name: _secret(name) for name in wanted["secrets"]}
    problems: tuple[Any, ...] = (*HfHubHTTPError.__bases__, OSError)  # the network's among them
    try:
        started = huggingface_hub.run_job(**wanted)
    except problems as error:
        raise InputError(f"--start: Hugging Face did not start the job: {one_line(error)}", ENVIRONMENT) from None
    say(f"started {started.url}")
    return 0


def _secret(name: str) -> str:
    from huggingface_hub import get_token

    value = os.environ.get(name) or (get_token() if name == TOKEN else None)
    if not value:
        raise InputError(f"--secret: {name} is not set in this environment", ENVIRONMENT)
    return value
