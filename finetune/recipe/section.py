"""What the recipe's sections are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
AtLeastOne = Annotated[int, Field(ge=1, le=1_000_000_000)]

# `train:` with every key below it commented out reads as null; it means the defaults.
NULL_IS_EMPTY = BeforeValidator(lambda value: {} if value is None else value)


class Section(BaseModel):
    """A mapping of keys. Values are frozen: a change makes a copy (``changed``)."""

    # strict: "8" is not a number and 8 is not a string; the reader has already decided which is which
    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True, use_attribute_docstrings=True
    )
