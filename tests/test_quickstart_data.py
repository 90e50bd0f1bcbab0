"""The quickstart's rows: held-out names are unseen, answers are exact records, and the files can be made again."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FILES = ("train", "heldout", "incomplete")
FIELDS = {
    "order": ["customer", "item", "quantity", "date"],
    "appointment": ["customer", "service", "date", "time"],
    "invoice": ["company", "number", "amount", "currency", "date"],
    "delivery": ["customer", "parcel", "address", "date"],
    "complaint": ["customer", "order", "item", "problem"],
    "refund": ["customer", "order", "amount", "currency"],
}
# what ends a company or a street is no name
COMMON = {"Ltd", "Group", "Brothers", "Trading", "Supplies", "Works", "Street", "Road", "Lane", "Avenue"}


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Message and answer of every row, by file."""
    read: dict[str, list[tuple[str, str]]] = {}
    for name in FILES:
        lines = (root / "datasets" / "quickstart" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        turns = [json.loads(line)["messages"] for line in lines]
        assert all([turn["role"] for turn in pair] == ["user", "assistant"] for pair in turns)
        read[name] = [(user["content"], assistant["content"]) for user, assistant in turns]
    return read


def copied_words(record: dict[str, Any]) -> set[str]:
    """The composed words of a record: names of people, companies and streets, and references."""
    values = [record.get(key) or "" for key in ("customer", "company", "address", "number", "parcel", "order")]
    return set(re.findall(r"[A-Z][a-z]+|[A-Z]{2}-\d+", " ".join(values))) - COMMON


def test_held_out_names_and_records_are_not_in_training(rows: dict[str, list[tuple[str, str]]]) -> None:
    known = {word for _, answer in rows["train"] for word in copied_words(json.loads(answer))}
    train_text = set(re.findall(r"[A-Z][a-z]+|[A-Z]{2}-\d+", " ".join(message for message, _ in rows["train"])))
    train_answers = {answer for _, answer in rows["train"]}
    assert len(known) > 5000
    for name in ("heldout", "incomplete"):
        held_out = [copied_words(json.loads(answer)) for _, answer in rows[name]]
        assert not set().union(*held_out) & (known | train_text)
        assert not train_answers & {answer for _, answer in rows[name]}
    held_out = [copied_words(json.loads(answer)) for _, answer in rows["heldout"]]
    assert len(held_out) >= 300
    # nearly every answer has something to copy that was never seen
    assert sum(bool(words) for words in held_out) > 0.97 * len(held_out)


def test_every_answer_is_the_record_of_its_message(rows: dict[str, list[tuple[str, str]]]) -> None:
    incomplete = {}
    for name, pairs in rows.items():
        assert len({message for message, _ in pairs}) == len(pairs)
        for message, answer in pairs:
            record = json.loads(answer)
            assert json.dumps(record) == answer
            assert list(record) == ["kind", *FIELDS[record["kind"]]]
            for key, value in record.items():
                if key in ("kind", "date", "time", "amount", "currency") or value is None:
                    continue
                assert str(value) in message, (message, answer)
            if record.get("date"):
                year, _, day = record["date"].split("-")
                assert year in message and (str(int(day)) in message)
            if record.get("amount"):
                assert record["amount"] in message.replace(",", "")
        incomplete[name] = sum(": null" in answer for _, answer in pairs) / len(pairs)
    assert incomplete["incomplete"] == 1
    assert 0.02 < incomplete["train"] < 0.06


def test_pairs_differ_in_one_thing(root: Path, rows: dict[str, list[tuple[str, str]]]) -> None:
    lines = (root / "datasets" / "quickstart" / "preferences.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [json.loads(line) for line in lines]
    others = {message for part in rows.values() for message, _ in part}
    held_out = {
        word
        for name in ("heldout", "incomplete")
        for _, answer in rows[name]
        for word in copied_words(json.loads(answer))
    }
    assert len({pair["prompt"] for pair in pairs}) == len(pairs) >= 2000
    incomplete = 0
    for pair in pairs:
        right, wrong = json.loads(pair["chosen"]), json.loads(pair["rejected"])
        assert (json.dumps(right), json.dumps(wrong)) == (pair["chosen"], pair["rejected"])
        assert pair["prompt"] not in others
        assert not held_out & copied_words(right)
        assert list(right) == list(wrong) == ["kind", *FIELDS[right["kind"]]]
        changed = [field for field in right if right[field] != wrong[field]]
        assert changed and changed in (changed[:1], ["amount", "currency"])
        missing = None in right.values()
        incomplete += missing
        # a value invented where there is none, or left out where there is one
        assert all((right if missing else wrong)[field] is None for field in changed)
    assert 0.6 < incomplete / len(pairs) < 0.7


def test_made_again_byte_for_byte(root: Path, tmp_path: Path) -> None:
    script = root / "scripts" / "make_quickstart_data.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, capture_output=True)
    for name in (*FILES, "preferences"):
        kept = root / "datasets" / "quickstart" / f"{name}.jsonl"
        assert (tmp_path / kept.name).read_bytes() == kept.read_bytes()
