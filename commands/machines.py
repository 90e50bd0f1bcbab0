"""Commands about machines: what a recipe needs, whether this one is sound."""

from __future__ import annotations

from typing import Annotated

import typer

from hybrid_ft.commands.options import Overrides, RecipeName


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="A kind of GPU, such as h100; the cheapest that fits if not given.")
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Number of GPUs; the fewest of 1, 2, 4, 8 that fit if not given."),
    ] = None,
    price: Annotated[float | None, typer.Option(min=0.0, help="USD for one GPU for an hour; needs --gpu.")] = None,
    prices: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Your own table of GPUs and prices, instead of the one that ships."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens in an epoch, if the rows are not on this machine.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time one layer of each kind and the head on this machine; half a minute.")
    ] = False,
) -> int:
    """Show what a recipe needs: memory on each GPU, time, money and disk, and which kinds of GPUs it fits."""
    from hybrid_ft.finetune.planning.plan import Asked, run_file

    return run_file(recipe, overrides or [], Asked(gpu, gpus, price, prices, tokens, measure), typer.echo)


def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="What this machine is to run; if not given, only the machine is checked."
        ),
    ] = None,
    overrides: Overrides = None,
) -> int:
    """Check this machine: GPUs, kernels, collectives, disk, limits, the hub. Exit status 3 if a check fails."""
    resolved = None
    if recipe is not None:
        from hybrid_ft.finetune.recipe.load import load_recipe

        resolved = load_recipe(recipe, overrides or [])
    from hybrid_ft.finetune.doctor.run import run

    return run(resolved, typer.echo)
