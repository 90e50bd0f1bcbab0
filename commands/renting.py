"""The command that writes what starts a recipe on rented machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid_ft.commands.options import Overrides, RecipeName


def rent(
    recipe: RecipeName,
    overrides: Overrides = None,
    on: Annotated[str, typer.Option("--on", metavar="PLACE", help="sky, hf (Hugging Face Jobs) or slurm.")] = "",
    gpu: Annotated[
        str | None, typer.Option(help="A kind of GPU, as plan knows them: h100.", show_default=False)
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, max=64, help="GPUs per machine.")] = 1,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Number of machines; slurm.", show_default=False)
    ] = None,
    spot: Annotated[bool, typer.Option("--spot", help="Cheaper machines that may be taken away; sky.")] = False,
    time: Annotated[str | None, typer.Option(help="Time limit, such as 12h; hf, slurm.", show_default=False)] = None,
    bucket: Annotated[
        str | None,
        typer.Option(help="Bucket for the run's mirror: s3://my-runs, or me/runs for hf.", show_default=False),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="The mirror itself, instead of --bucket: s3://my-runs/mine.",
            show_default=False,
        ),
    ] = None,
    package: Annotated[
        str | None,
        typer.Option(
            metavar="WHEEL",
            help="What to install there: a wheel or a requirement; by default the release that runs here.",
            show_default=False,
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="A container image with this program; sky, hf.", show_default=False)
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="An environment variable to pass to the job, such as HF_TOKEN.", show_default=False
        ),
    ] = None,
    restarts: Annotated[
        int | None, typer.Option(min=0, max=1000, help="How often to restart by itself; hf, slurm.", show_default=False)
    ] = None,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="The file to write.", show_default=False)] = None,
    start: Annotated[
        bool, typer.Option("--start", help="Start it, which costs money. Without it, only the file is written.")
    ] = False,
) -> int:
    """Write a SkyPilot task, Hugging Face Job or sbatch script that trains a recipe on rented machines or a cluster."""
    from hybrid_ft.finetune.renting.order import Order

    order = Order(
        on, gpu, gpus, nodes, spot, time, bucket, package, image, tuple(secret or ()), restarts, write, mirror
    )
    from hybrid_ft.finetune.renting.run import run

    return run(recipe, overrides or [], order, start, typer.echo)
