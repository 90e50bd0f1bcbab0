"""Commands that show what a recipe would train on, and which recipes there are."""

from __future__ import annotations

import typer

from hybrid_ft.commands.options import Overrides, RecipeName
from hybrid_ft.errors import InputError


def data(recipe: RecipeName, overrides: Overrides = None) -> int:
    """Show what a recipe would train on: rows, lengths, padding, and examples with the trained tokens marked."""
    from hybrid_ft.finetune.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from hybrid_ft.finetune.data.prepare import prepare
    from hybrid_ft.finetune.data.report.view import draw
    from hybrid_ft.finetune.models import load_tokenizer

    account = prepare(resolved, load_tokenizer(resolved), refuse=False).report
    draw(account, Console())
    if account.refusal:
        raise InputError(account.refusal)
    return 0


def recipes() -> int:
    """List the recipes that ship."""
    from hybrid_ft.finetune.recipe.shipped import recipe_names

    for name in recipe_names():
        typer.echo(name)
    return 0
