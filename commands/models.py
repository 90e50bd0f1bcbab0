"""Commands that use a model: chat, generate, merge, export, push."""

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
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.95,
    seed: Seed = 0,
    chat_template_kwargs: TemplateArguments = None,
) -> int:
    """Chat with a model, one line a turn. /reset starts over, /system TEXT sets the system message, /exit ends."""
    arguments = template_arguments(chat_template_kwargs)
    from hybrid_ft.finetune.generation.chat import run
    from hybrid_ft.finetune.generation.generate import Sampling

    return run(path, system, max_new_tokens, Sampling(temperature, top_p, seed), arguments)


def generate(
    path: ModelPath,
    prompts: Annotated[
        Path, typer.Option(help=".txt: a prompt a line. .jsonl: an object a line with prompt or messages.")
    ],
    out: Annotated[Path | None, typer.Option(help="Where the JSON lines go; to the terminal if not given.")] = None,
    max_new_tokens: MaxNewTokens = 512,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    chat_template_kwargs: TemplateArguments = None,
) -> int:
    """Answer every prompt of a file, as JSON lines in the file's order."""
    arguments = template_arguments(chat_template_kwargs)
    from hybrid_ft.finetune.generation.prompt_file import read_prompts

    rows = read_prompts(prompts)
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"{out}: its folder does not exist; make it first")
    if out is not None and out.is_dir():
        raise InputError(f"{out}: is a folder; name a file for the answers")
    from hybrid_ft.finetune.generation.generate import Sampling, run

    return run(path, prompts, rows, out, max_new_tokens, Sampling(temperature, top_p, seed), arguments)


def merge(
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="An adapter folder that PEFT wrote, or a hub name.")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new folder for the model.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the base's own if not given.", show_default=False)
    ] = None,
) -> int:
    """Merge an adapter into the base it names, as one model. The same command resumes where it was cut short."""
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
        typer.Option(help="float32, bfloat16 or float16; of int8 and int4 what is left over.", show_default=False),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of transformers' files: 5GB, 500MB.", show_default=False)
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", metavar="TYPE", help="Of gguf: f32, f16, bf16, q8_0, q4_k_m; f16 if not given."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Conversations, for the loss before and after.", show_default=False),
    ] = None,
) -> int:
    """Write a model in another dtype, other shards, 8 or 4 bits a weight, or as GGUF, read back and compared."""
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
    private: Annotated[bool, typer.Option("--private", help="Only you can see it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write the card and show what would be sent.")] = False,
    base: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="What the hub calls an adapter's base.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="OUTPUT", help="The run that made it, for the card.", show_default=False)
    ] = None,
    license_id: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="For the card: apache-2.0.", show_default=False)
    ] = None,
) -> int:
    """Send a result to the Hugging Face hub with a card that says base, data, recipe and results."""
    from hybrid_ft.finetune.hub.push import run as send
    from hybrid_ft.finetune.runs.console import screen

    return send(
        path, name, screen(), private=private, dry_run=dry_run, base=base, run_folder=run, license_id=license_id
    )
