"""Commands that use a model: chat, generate, score, merge, export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid_ft.commands.options import (
    MaxNewTokens,
    ModelPath,
    Seed,
    Temperature,
    TemplateArguments,
    TopP,
    template_arguments,
)
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.runs.signals import resumable


def chat(
    path: ModelPath,
    system: Annotated[str | None, typer.Option(help="A system message to start with.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    chat_template_kwargs: TemplateArguments = None,
) -> int:
    """Chat with a model, one line per turn. /reset starts over, /system TEXT sets the system message, /exit ends."""
    arguments = template_arguments(chat_template_kwargs)
    from hybrid_ft.finetune.generation.chat import run
    from hybrid_ft.finetune.generation.generate import Sampling

    return run(path, system, max_new_tokens, Sampling(temperature, top_p, seed), arguments)


def generate(
    path: ModelPath,
    prompts: Annotated[
        Path,
        typer.Option(
            help=".txt: one prompt per line. .jsonl: one object per line, with prompt or messages. With --as-rejected: a file of "
            "rows or a recipe."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="File for the JSON lines; the terminal if not given.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    chat_template_kwargs: TemplateArguments = None,
    as_rejected: Annotated[
        bool,
        typer.Option(
            "--as-rejected", help="Write pairs for DPO: the rows' answers are chosen, the model's rejected. Resumes."
        ),
    ] = False,
    count: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --as-rejected: answer only this many rows, a seeded sample.", show_default=False
        ),
    ] = None,
) -> int:
    """Answer every prompt of a file; writes JSON lines in the file's order. The same command resumes."""
    if as_rejected:
        return _as_rejected(path, prompts, out, max_new_tokens, (temperature, top_p, seed), chat_template_kwargs, count)
    if count is not None:
        raise InputError("--count: is for --as-rejected; leave it out")
    arguments = template_arguments(chat_template_kwargs)
    from hybrid_ft.finetune.generation.prompt_file import read_prompts

    rows = read_prompts(prompts)
    _check_out(out)
    from hybrid_ft.finetune.generation.generate import Sampling, run

    return run(path, prompts, rows, out, max_new_tokens, Sampling(temperature, top_p, seed), arguments)


def _check_out(out: Path | None) -> None:
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"{out}: its folder does not exist; make it first")
    if out is not None and out.is_dir():
        raise InputError(f"{out}: is a folder; name a file for the answers")


def _as_rejected(
    path: str,
    rows: Path,
    out: Path | None,
    max_new_tokens: int,
    sampling: tuple[float, float, int],
    arguments: str | None,
    count: int | None,
) -> int:
    if out is None or out.suffix != ".jsonl":
        raise InputError(f"--out: got {out}; --as-rejected needs a file in .jsonl")
    if arguments:
        raise InputError("--chat-template-kwargs: --as-rejected asks as the rows say; leave it out")
    _check_out(out)
    with resumable():
        from hybrid_ft.finetune.generation.as_rejected import run
        from hybrid_ft.finetune.generation.generate import Sampling
        from hybrid_ft.finetune.runs.console import screen

        return run(path, str(rows), out, max_new_tokens, Sampling(*sampling), screen(), count)


def score(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A reward model or its adapter: a folder or hub name.")],
    rows: Annotated[str, typer.Option(metavar="FILE", help="Pairs, in any form that a reward recipe reads.")],
    out: Annotated[Path | None, typer.Option(help="File for one JSON line per row.", show_default=False)] = None,
    answers: Annotated[
        bool, typer.Option("--answers", help="The rows are conversations that end on an answer, as for sft.")
    ] = False,
) -> int:
    """Score answers with a reward model, and show how often it prefers the chosen ones."""
    _check_out(out)
    from hybrid_ft.finetune.runs.console import screen
    from hybrid_ft.finetune.training.reward.score import run

    return run(model, rows, out, screen(), answers)


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter folder that PEFT wrote, or a hub name.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base's own if not given.", show_default=False)
    ] = None,
) -> int:
    """Merge an adapter into its base and save one model. The same command resumes."""
    with resumable():
        from hybrid_ft.finetune.conversion.merge import run
        from hybrid_ft.finetune.runs.console import screen

        return run(adapter, out, dtype, screen())


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or a hub name.")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="transformers, int8, int4 or gguf.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; for int8 and int4, of the weights that stay unquantised.",
            show_default=False,
        ),
    ] = None,
    shard_size: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Largest file, for --to transformers: 5GB, 500MB.", show_default=False),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="For --to gguf: f32, f16, bf16, q8_0, q4_k_m; f16 if not given."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Conversations on which the loss is measured before and after.", show_default=False
        ),
    ] = None,
) -> int:
    """Write a model in another dtype, with other shards, in 8 or 4 bits, or as GGUF; then read it back and compare."""
    with resumable():
        from hybrid_ft.finetune.conversion.export import run
        from hybrid_ft.finetune.runs.console import screen

        return run(model, out, to, screen(), dtype, shard_size, rows, kind)


def push(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A folder with a model, an adapter or GGUF files.", show_default=False),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="OWNER/NAME on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the card and show what would be sent.")] = False,
    base: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The hub name of an adapter's base.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(metavar="OUTPUT", help="The run's output folder, which the card describes.", show_default=False),
    ] = None,
    license_id: Annotated[
        str | None,
        typer.Option("--license", metavar="ID", help="Licence for the card, such as apache-2.0.", show_default=False),
    ] = None,
) -> int:
    """Upload a result to the Hugging Face hub, with a card of its base, data, recipe and results."""
    from hybrid_ft.finetune.hub.push import run as send
    from hybrid_ft.finetune.runs.console import screen

    return send(
        path, name, screen(), private=private, dry_run=dry_run, base=base, run_folder=run, license_id=license_id
    )
