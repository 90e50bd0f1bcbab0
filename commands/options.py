"""Arguments and options that several commands share."""

import json
from typing import Annotated, Any

import typer

from hybrid_ft.errors import InputError, shown

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a recipe that ships.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values that replace the recipe's: train.learning_rate=1e-4", show_default=False
    ),
]
StageOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Values that replace the file's, after the stage: sft.train.learning_rate=1e-4",
        show_default=False,
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
Mirror = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Copy checkpoints and result to s3://, gs://, hf://buckets/, ssh:// or a folder, and go on from there.",
        show_default=False,
    ),
]
ModelPath = Annotated[
    str, typer.Argument(metavar="PATH", help="A saved model or adapter folder, a hub name, or the preset tiny.")
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Most tokens in an answer.")]
Temperature = Annotated[float, typer.Option(min=0.0, max=10.0, help="0 always takes the likeliest token.")]
TopP = Annotated[
    float, typer.Option(min=0.01, max=1.0, help="Sample from the likeliest tokens that hold this much probability.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed for sampling.")]
TemplateArguments = Annotated[
    str | None,
    typer.Option(
        "--chat-template-kwargs",
        metavar="JSON",
        help='Arguments for the chat template, over those of its training: {"enable_thinking": false}',
        show_default=False,
    ),
]


def with_mirror(overrides: list[str] | None, mirror: str | None) -> list[str]:
    """The overrides with what ``--mirror`` says, as the text that it is."""
    return [*(overrides or []), *([f"mirror={json.dumps(mirror, ensure_ascii=False)}"] if mirror is not None else [])]


def template_arguments(text: str | None) -> dict[str, Any]:
    """The arguments that an option holds. Raises InputError."""
    from hybrid_ft.finetune.recipe.template_arguments import refused_argument

    name = "--chat-template-kwargs"
    try:
        arguments = json.loads(text) if text is not None else {}
    except ValueError:
        arguments = None
    if not isinstance(arguments, dict):
        raise InputError(
            f"""{name}: got {shown(text)}; must be a JSON object, such as '{{"enable_thinking": false}}'"""
        )
    for argument, value in arguments.items():
        if wrong := refused_argument(argument, value):
            raise InputError(f"{name}: {argument}: {wrong}")
    return arguments
