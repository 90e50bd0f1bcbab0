"""Parts of what a plan prints."""


def part(lines: list[str], heading: str) -> str:
    """A heading's line and those under it."""
    start = next(n for n, text in enumerate(lines) if text.startswith(heading))
    more = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith(" ")), len(lines))
    return "\n".join(lines[start:more])
