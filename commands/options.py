"""Arguments and options that several commands share."""

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values that replace the recipe's: train.learning_rate=1e-4", show_default=False
    ),
]
AcceptChanges = Annotated[
    bool,
    typer.Option("--accept-changes", help="Resume although the recipe, data, base or code changed."),
]
Extend = Annotated[
    bool,
    typer.Option("--extend", help="Go on to another train.steps or train.epochs, also from a finished run's end."),
]
ModelPath = Annotated[
    str, typer.Argument(metavar="PATH", help="A saved model or adapter folder, a hub name, or the preset tiny.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens of the longest answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, max=10.0, help="0 always takes the likeliest token.")]
TopP = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens that hold this much probability.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sampling.")]
