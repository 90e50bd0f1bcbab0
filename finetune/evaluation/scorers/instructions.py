"""Instructions that a program can check, as IFEval words them (Zhou et al., 2311.07911).

A check of the answer's language is not among them: it would need a model of languages. Sentences are counted by their
closing marks, where IFEval's own code asks a tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Arguments = Mapping[str, Any]
Check = Callable[[str, Arguments], bool]


def follows(answer: str, ids: Sequence[str], arguments: Sequence[Arguments]) -> dict[str, float]:
    """``prompt``: all instructions are followed (strict); ``instruction``: the share that is."""
    kept = [bool(answer.strip()) and CHECKS[name](answer, given) for name, given in zip(ids, arguments, strict=True)]
    return {"prompt": float(all(kept)), "instruction": sum(kept) / max(1, len(kept))}


def _related(count: int, relation: str, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _words(text: str) -> int:
    return len(re.findall(r"\w+", text))


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"[.!?]+[\"')\]]*(?:\s+|$)", text.strip()) if part.strip()])


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _count_of(text: str, keyword: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _parted(text: str, mark: str) -> list[str] | None:
    """What stands between marks, blank ends left out; None where a part in the middle is blank."""
    parts = re.split(mark, text)
    if any(not part.strip() for part in parts[1:-1]):
        return None
    return [part.strip() for part in parts if part.strip()]


def _paragraphs(text: str, given: Arguments) -> bool:
    parts = _parted(text, r"\s?\*\*\*\s?")
    return parts is not None and len(parts) == given["num_paragraphs"]


def _first_word(text: str, given: Arguments) -> bool:
    parts = [part for part in text.split("\n\n") if part.strip()]
    if len(parts) != given["num_paragraphs"] or given["nth_paragraph"] > len(parts):
        return False
    word = parts[given["nth_paragraph"] - 1].split()[0].strip("\"'.,?!").lower()
    return word == given["first_word"].lower()


def _highlights(text: str, given: Arguments) -> bool:
    bold = re.findall(r"\*\*([^\n*]*)\*\*", text)
    single = re.findall(r"\*([^\n*]*)\*", re.sub(r"\*\*[^\n*]*\*\*", "", text))
    return sum(bool(part.strip()) for part in (*bold, *single)) >= given["num_highlights"]


def _bullets(text: str, given: Arguments) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*]|-).*$", text, re.MULTILINE)) == given["num_bullets"]


def _postscript(text: str, given: Arguments) -> bool:
    marker = given["postscript_marker"]
    letters = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}.get(marker, re.escape(marker.lower()))
    return re.search(rf"(?:^|\s){letters}", text.lower()) is not None


def _two_responses(text: str, given: Arguments) -> bool:
    parts = _parted(text, r"\*{6}")
    return parts is not None and len(parts) == 2 and parts[0] != parts[1]


def _json(text: str, given: Arguments) -> bool:
    inside = re.sub(r"\A\s*```(?:json)?\s*|\s*```\s*\Z", "", text, flags=re.IGNORECASE)
    try:
        json.loads(inside)
    except (ValueError, RecursionError):
        return False
    return True


def _sections(text: str, given: Arguments) -> bool:
    return len(re.findall(rf"{re.escape(given['section_spliter'])}\s?\d+", text)) >= given["num_sections"]


def _capital_words(text: str, given: Arguments) -> bool:
    count = sum(word.isupper() for word in re.findall(r"[\w'-]+", text))
    return _related(count, given["capital_relation"], given["capital_frequency"])


def _ends(text: str, given: Arguments) -> bool:
    return text.strip().strip('"').lower().endswith(given["end_phrase"].strip().lower())


def _letters(text: str, given: Arguments) -> bool:
    return _related(text.lower().count(given["letter"].lower()), given["let_relation"], given["let_frequency"])


CHECKS: dict[str, Check] = {
    "punctuation:no_comma": lambda text, given: "," not in text,
    "length_constraints:number_words": lambda text, given: _related(
        _words(text), given["relation"], given["num_words"]
    ),
    "length_constraints:number_sentences": lambda text, given: _related(
        _sentences(text), given["relation"], given["num_sentences"]
    ),
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _first_word,
    "keywords:existence": lambda text, given: all(_count_of(text, word) for word in given["keywords"]),
    "keywords:forbidden_words": lambda text, given: not any(_has_word(text, word) for word in given["forbidden_words"]),
    "keywords:frequency": lambda text, given: _related(
        _count_of(text, given["keyword"]), given["relation"], given["frequency"]
    ),
    "keywords:letter_frequency": _letters,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:title": lambda text, given: any(
        part.strip("<>").strip() for part in re.findall(r"<<[^\n]+>>", text)
    ),
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:json_format": _json,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": lambda text, given: any(
        f"My answer is {word}." in text for word in ("yes", "no", "maybe")
    ),
    "detectable_content:number_placeholders": lambda text, given: (
        len(re.findall(r"\[.*?\]", text)) >= given["num_placeholders"]
    ),
    "detectable_content:postscript": _postscript,
    "combination:repeat_prompt": lambda text, given: (
        text.strip().lower().startswith(given["prompt_to_repeat"].strip().lower())
    ),
    "combination:two_responses": _two_responses,
    "startend:quotation": lambda text, given: (
        len(text.strip()) > 1 and text.strip()[0] == '"' and text.strip()[-1] == '"'
    ),
    "startend:end_checker": _ends,
    "change_case:english_lowercase": lambda text, given: text.islower(),
    "change_case:english_capital": lambda text, given: text.isupper(),
    "change_case:capital_word_frequency": _capital_words,
}
"""By IFEval's names; each takes the answer and the instruction's arguments."""
