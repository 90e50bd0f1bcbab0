"""One row on a console, token by token, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from hybrid_ft.finetune.data.report.account import NOTES, counted
from hybrid_ft.finetune.data.report.view import plain

_LINES = 500  # drawn at a time: one text of a hundred thousand lines is slow to lay out


@dataclass(frozen=True)
class Token:
    """``text``: the token's own, on one line; ``weight``: in the loss, 0 where it is not trained."""

    id: int
    text: str
    weight: float


@dataclass
class TokenPart:
    """A run of tokens. ``heading``: prompt, chosen, rejected, a judged answer's label; nothing for a supervised row."""

    tokens: list[Token]
    heading: str = ""


@dataclass
class WholeRow:
    """A row of the data, or one of the pairs, answers or pieces that it became.

    ``key``: where its source stands in the recipe; ``dropped``: why it is not trained on, if it is not: the
    tokens, where there are any, are then those that it would have had. ``happened``: by the account's
    NOTES; ``notes``: further lines.
    """

    origin: str
    key: str
    unit: str = "row"
    parts: list[TokenPart] = field(default_factory=list)
    dropped: str | None = None
    happened: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def counts(self) -> str:
        """How many tokens there are, and how many are trained."""
        tokens = [token for part in self.parts for token in part.tokens]
        trained = 0 if self.dropped else sum(token.weight != 0 for token in tokens)
        return f"{counted(len(tokens), 'token')}, {trained:,} trained"


def draw_row(row: WholeRow, console: Console) -> None:
    """Place, fate and notes, then a line for each token."""
    console.print(Text.assemble((plain(row.origin), "bold"), f" ({row.key})"), soft_wrap=True)
    if row.dropped is not None:
        console.print(Text(f"dropped: {plain(row.dropped)}", style="red"), soft_wrap=True)
    notes = [f"{NOTES[kind].format(unit=row.unit)}: {count:,}" for kind, count in row.happened.items() if count]
    for note in notes + row.notes:
        console.print(Text(f"note: {plain(note)}", style="yellow"), soft_wrap=True)
    if not row.parts:
        return
    as_it_would = "; as it would have been:" if row.dropped else ""
    console.print(Text(f"{row.counts()}{as_it_would}"))
    console.print(Text(f"{'token':>7}  {'id':>7}  {'trained':<7}  {'weight':>6}  text", style="bold"))
    number = 0
    for part in row.parts:
        if part.heading:
            console.print(Text(part.heading, style="bold"))
        for start in range(0, len(part.tokens), _LINES):
            text = Text()
            for token in part.tokens[start : start + _LINES]:
                trained = token.weight != 0
                weight = f"{token.weight:.4g}" if trained else ""
                line = f"{number:>7}  {token.id:>7}  {'yes' if trained else 'no':<7}  {weight:>6}  {token.text}"
                text.append("\n" if text else "").append(line, style="green" if trained else "dim")
                number += 1
            console.print(text, soft_wrap=True)
