"""Reads a file of prompts before a model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.sources import strict_json
from hybrid_ft.finetune.data.sources.rows import BadRow

MOST_LINES = 20
MOST_BYTES = 2**30  # the whole file is held in memory


def read_prompts(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The prompts of a file with their line numbers: objects with ``prompt`` (a string) or ``messages`` (turns).

    .txt: a prompt a line, empty lines left out. .jsonl: an object a line, other keys are kept. Raises InputError with
    a line for each mistake.
    """
    if file.suffix not in (".txt", ".jsonl"):
        raise InputError(f"{file}: must end in .txt (a prompt a line) or .jsonl (an object a line)")
    rows: list[tuple[int, dict[str, Any]]] = []
    mistakes: list[str] = []
    for number, raw in enumerate(_bytes(file).removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            line = _text(raw)
            rows.append((number, {"prompt": line} if file.suffix == ".txt" else _prompt_row(line)))
        except ValueError as error:
            mistakes.append(f"{file}:{number}: {error}")
    if mistakes:
        more = [f"{file}: and {len(mistakes) - MOST_LINES} more"] if len(mistakes) > MOST_LINES else []
        raise InputError("\n".join(mistakes[:MOST_LINES] + more))
    if not rows:
        raise InputError(f"{file}: holds no prompt")
    return rows


def _bytes(file: Path) -> bytes:
    if file.exists() and not file.is_file() and not file.is_dir():
        raise InputError(f"{file}: is neither a file nor a folder, and reading from it may never end")
    try:
        with file.open("rb") as stream:
            raw = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    if len(raw) > MOST_BYTES:
        raise InputError(f"{file}: larger than {MOST_BYTES // 2**30} GB; split it into several files")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{file}:1: is UTF-16; save the file as UTF-8")
    return raw


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {raw[error.start]:#04x} is not UTF-8; save the file as UTF-8") from None
    if "\0" in text:
        raise ValueError("holds a NUL byte; take it out")
    return text


def _prompt_row(line: str) -> dict[str, Any]:
    try:
        row = strict_json.parse(line)
    except BadRow as bad:
        raise ValueError(str(bad)) from None
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise ValueError('must be an object with either "prompt" or "messages"')
    if "prompt" in row and not (isinstance(row["prompt"], str) and row["prompt"].strip()):
        raise ValueError('"prompt" must be a string that is not empty; turns go under "messages"')
    return row
