"""Commands that show what a recipe would train on, and which recipes there are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hybrid_ft.commands.options import Overrides, RecipeName
from hybrid_ft.errors import InputError


def data(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the rows, in tokens, as parquet.", show_default=False)
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Of a stream, write the first N rows to --out.", show_default=False),
    ] = None,
    row: Annotated[
        str | None,
        typer.Option(metavar="FILE:LINE", help="Show one row alone, token by token.", show_default=False),
    ] = None,
) -> int:
    """Show what a recipe would train on: rows, lengths, padding, and examples with the trained tokens marked."""
    if out is not None and row is not None:
        raise InputError("--row: shows a row and writes nothing; leave out --out, or --row")
    from hybrid_ft.finetune.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    from rich.console import Console

    from hybrid_ft.finetune.models import load_tokenizer

    if row is not None:
        from hybrid_ft.finetune.data.one_row import find_row
        from hybrid_ft.finetune.data.report.whole_row import draw_row

        for one in find_row(resolved, load_tokenizer(resolved), row):
            draw_row(one, Console())
        return 0
    from hybrid_ft.finetune.data.report.view import draw
    from hybrid_ft.finetune.data.streaming.prepared import StreamPrepared, prepare
    from hybrid_ft.finetune.data.streaming.written import check_rows, write_stream
    from hybrid_ft.finetune.data.trained_rows import check_out, write_rows
    from hybrid_ft.finetune.runs.atomic import whole_file

    if rows is not None and (out is None or not resolved.data.streaming):
        raise InputError("--rows: is for --out and data.streaming: true; leave it out, all rows are taken")
    if out is not None:
        check_out(out, resolved)
    prepared = prepare(resolved, load_tokenizer(resolved), refuse=False)
    if out is not None and isinstance(prepared, StreamPrepared):
        check_rows(rows, prepared)
    draw(prepared.report, Console())
    if prepared.report.refusal:
        raise InputError(prepared.report.refusal)
    if out is None:
        return 0
    with whole_file(out) as staged:
        if isinstance(prepared, StreamPrepared):
            written, account = write_stream(prepared, staged, rows)
        else:
            written, account = write_rows(prepared, staged), None
    for line in account.summary() if account else ():
        typer.echo(line)
    typer.echo(f"{out}: {written:,} rows written")
    return 0


def recipes() -> int:
    """List the recipes that ship."""
    from hybrid_ft.finetune.recipe.shipped import recipe_names

    for name in recipe_names():
        typer.echo(name)
    return 0
