"""A file of prompts. Imports nothing heavy: a wrong file is refused before a model could have been loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybrid_ft.hybrid_model.errors import InputError

MOST_LINES = 20


def read_prompts(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The prompts of a file with their line numbers: objects with ``prompt`` (a text) or ``messages`` (turns).

    .txt: a prompt a line, empty lines left out. .jsonl: an object a line, other keys are kept. Raises InputError with
    a line for each mistake.
    """
    if file.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{file}: must end in .txt (a prompt a line) or .jsonl (an object a line)")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    rows: list[tuple[int, dict[str, Any]]] = []
    mistakes: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, {"prompt": line.strip()} if file.suffix == ".txt" else _prompt_row(line)))
        except ValueError as error:
            mistakes.append(f"{file}:{number}: {error}")
    if mistakes:
        more = [f"{file}: and {len(mistakes) - MOST_LINES} more"] if len(mistakes) > MOST_LINES else []
        raise InputError("\n".join(mistakes[:MOST_LINES] + more))
    if not rows:
        raise InputError(f"{file}: holds no prompt")
    return rows


def _prompt_row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deep)") from None
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair (\\ud800 to \\udfff), which is no text") from None
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise ValueError('must be an object with either "prompt" or "messages"')
    if "prompt" in row and not (isinstance(row["prompt"], str) and row["prompt"].strip()):
        raise ValueError('"prompt" must be a text that is not empty; turns go under "messages"')
    return row
