"""Write datasets/quickstart: short business messages and the exact JSON record that each stands for.

    python scripts/make_quickstart_data.py [--out datasets/quickstart] [--seed 11]

The same seed gives the same bytes. Names and references in the held-out files come from a pool that no training
row, no pair and no text of the tiny base draws from (see quickstart_words), so an answer is right only if it was copied
from the message. A field that the message does not give is null in the record. In preferences the better record is
the exact one; the worse one has a value that its message does not give, or leaves out one that it does.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import quickstart_words as words

TRAIN_ROWS, HELD_OUT_ROWS, INCOMPLETE_ROWS, PAIRS = 6000, 360, 180, 3000
MISSING_SHARE = 0.04  # of the rows in train and heldout; every row of incomplete lacks one


class Kind(NamedTuple):
    """One kind of message.

    fields: slots in the record's order; ``money`` fills the fields amount and currency.
    leads: sentences that open the subject; one is eligible if the message has all its slots.
    clauses: what adds a slot that the lead left out.
    optional: slots that a message may lack.
    """

    fields: list[str]
    leads: list[str]
    clauses: dict[str, list[str]]
    optional: list[str]


SENDER = [
    "This is {customer}.",
    "{customer} here.",
    "My name is {customer}.",
    "Regards, {customer}",
    "Thanks, {customer}",
]
KINDS = {
    "order": Kind(
        ["customer", "item", "quantity", "date"],
        [
            "We would like to order {quantity} {item}.",
            "Please send us {quantity} {item} by {date}.",
            "I need {quantity} {item}.",
            "Can you put {quantity} {item} on order for me?",
            "Could we get {quantity} {item} before {date}?",
            "We would like to order more {item}.",
            "Please send us some {item} by {date}.",
            "I need a few {item}.",
            "{customer} wants {quantity} {item}.",
            "New order from {customer}: {quantity} {item}.",
            "New order from {customer}: {item}, needed on {date}.",
        ],
        {
            "customer": SENDER,
            "quantity": ["The number is {quantity}.", "We need {quantity} of them."],
            "date": ["We need them by {date}.", "They must be here on {date}.", "Delivery by {date} please."],
        },
        ["customer", "quantity", "date"],
    ),
    "appointment": Kind(
        ["customer", "service", "date", "time"],
        [
            "I would like to book a {service} on {date} at {time}.",
            "Can I come in for a {service}?",
            "Is there a free slot for a {service} on {date}?",
            "Please book me in for a {service} at {time}.",
            "I need a {service}.",
            "{customer} asks for a {service} on {date} at {time}.",
            "Please note a {service} for {customer}.",
        ],
        {
            "customer": SENDER,
            "date": ["The day should be {date}.", "{date} would suit me.", "I can come on {date}."],
            "time": ["I could be there at {time}.", "The best time is {time}.", "{time} is fine."],
        },
        ["customer", "date", "time"],
    ),
    "invoice": Kind(
        ["company", "number", "money", "date"],
        [
            "Invoice {number} from {company} is for {money}.",
            "{company} has billed us {money}.",
            "We got invoice {number} from {company}.",
            "Please pay {company} the sum of {money} by {date}.",
            "The bill from {company} has come.",
            "A bill over {money} came in, number {number}.",
            "Invoice {number} is due on {date}.",
        ],
        {
            "company": ["It comes from {company}.", "The sender is {company}."],
            "number": ["The invoice number is {number}.", "It has the number {number}."],
            "money": ["It is for {money}.", "The total is {money}.", "They ask for {money}."],
            "date": ["It is due on {date}.", "It must be paid by {date}.", "Payment is due {date}."],
        },
        ["company", "number", "money", "date"],
    ),
    "delivery": Kind(
        ["customer", "parcel", "address", "date"],
        [
            "Parcel {parcel} for {customer} goes to {address}.",
            "Parcel {parcel} will be delivered on {date}.",
            "There is a parcel for {customer}.",
            "Please bring parcel {parcel} to {address} on {date}.",
            "The driver brings {customer} a parcel on {date}.",
            "A parcel is on its way to {address}.",
        ],
        {
            "customer": ["It is for {customer}.", "{customer} will take it.", "Hand it to {customer}."],
            "parcel": ["Its number is {parcel}.", "The parcel number is {parcel}."],
            "address": ["The address is {address}.", "It goes to {address}.", "Drop it at {address}."],
            "date": ["It comes on {date}.", "The day is {date}.", "Expect it on {date}."],
        },
        ["customer", "parcel", "address", "date"],
    ),
    "complaint": Kind(
        ["customer", "order", "item", "problem"],
        [
            "The box of {item} from order {order} {problem}.",
            "I am not happy: the set of {item} {problem}.",
            "Order {order} {problem}.",
            "{customer} complains that the box of {item} {problem}.",
            "There is something wrong with order {order}.",
            "I have to complain about the {item} you sent.",
        ],
        {
            "customer": SENDER,
            "order": ["The order number is {order}.", "It was order {order}."],
            "item": ["It was a box of {item}.", "We had asked for {item}."],
            "problem": ["It {problem}.", "The box {problem}."],
        },
        ["customer", "order", "item", "problem"],
    ),
    "refund": Kind(
        ["customer", "order", "money"],
        [
            "Please refund {money} for order {order}.",
            "I want my money back for order {order}.",
            "{customer} is owed a refund of {money}.",
            "You still owe me a refund.",
            "I sent back order {order} and wait for {money}.",
        ],
        {
            "customer": SENDER,
            "order": ["The order number is {order}.", "It was order {order}."],
            "money": ["The sum is {money}.", "I paid {money}."],
        },
        ["customer", "order", "money"],
    ),
}
FIELDS = {"money": ["amount", "currency"]}  # of a slot that fills more than one, or another than its own
OPENERS = ["", "", "Hello! ", "Hi! ", "Good morning. ", "To the team: "]
CLOSERS = ["", "", "", " Thank you.", " Please confirm.", " Let me know."]


def _values(rng: random.Random, kind: str, held_out: bool) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """For each slot of a kind: how the message writes it, and the record's fields that it fills."""
    day, iso = words.date(rng)
    time, clock = words.clock(rng)
    money, figure, currency = words.amount(rng)
    names = {"customer": words.person(rng, held_out), "company": words.company(rng, held_out)}
    names |= {slot: words.reference(rng, held_out) for slot in ("number", "parcel", "order")}
    plain = {
        "item": rng.choice(words.ITEMS),
        "service": rng.choice(words.SERVICES),
        "problem": rng.choice(words.PROBLEMS),
        "address": words.street(rng, held_out),
        **names,
    }
    quantity = rng.randint(2, 9) if rng.random() < 0.4 else rng.randint(10, 400)
    shown = {**plain, "quantity": str(quantity), "date": day, "time": time, "money": money}
    fills: dict[str, dict[str, Any]] = {slot: {slot: value} for slot, value in plain.items()}
    fills |= {"quantity": {"quantity": quantity}, "date": {"date": iso}, "time": {"time": clock}}
    fills["money"] = {"amount": figure, "currency": currency}
    return shown, {slot: fills[slot] for slot in KINDS[kind].fields}


def _slots(sentence: str) -> set[str]:
    return {part.split("}")[0] for part in sentence.split("{")[1:]}


def write_message(rng: random.Random, held_out: bool, incomplete: bool) -> tuple[str, dict[str, Any]]:
    """A message and its record; an incomplete message leaves out one slot, null in the record."""
    name = rng.choice(list(KINDS))
    kind = KINDS[name]
    shown, fills = _values(rng, name, held_out)
    missing = {rng.choice(kind.optional)} if incomplete else set()
    present = set(kind.fields) - missing
    lead = rng.choice([sentence for sentence in kind.leads if _slots(sentence) <= present])
    left = [slot for slot in kind.fields if slot in present - _slots(lead)]
    rng.shuffle(left)
    sentences = [lead, *(rng.choice(kind.clauses[slot]) for slot in left)]
    # A sign-off ends a message, an introduction opens it.
    sentences.sort(key=lambda sentence: -1 if sentence.startswith(("This is", "My name", "{customer} here")) else 0)
    sentences.sort(key=lambda sentence: sentence.startswith(("Regards", "Thanks")))
    signed = sentences[-1].startswith(("Regards", "Thanks"))
    text = rng.choice(OPENERS) + " ".join(sentences) + ("" if signed else rng.choice(CLOSERS))
    record: dict[str, Any] = {"kind": name}
    for slot in kind.fields:
        record |= dict.fromkeys(fills[slot]) if slot in missing else fills[slot]
    return text.format(**shown), record


def make_rows(seed: int, count: int, held_out: bool, missing_share: float) -> list[dict[str, Any]]:
    """Rows in ``messages`` form; no two share a message."""
    rng = random.Random(seed)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        text, record = write_message(rng, held_out, rng.random() < missing_share)
        if text in seen:
            continue
        seen.add(text)
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": json.dumps(record)}]
        rows.append({"messages": turns})
    return rows


def worse(rng: random.Random, record: dict[str, Any]) -> dict[str, Any]:
    """The record with a mistake: a missing value invented, or, where none is missing, one left out."""
    missing = [field for field, value in record.items() if value is None]
    if not missing:
        slot = rng.choice(KINDS[record["kind"]].optional)
        return record | dict.fromkeys(FIELDS.get(slot, [slot]))
    _, fills = _values(rng, record["kind"], False)
    made_up = {field: value for fill in fills.values() for field, value in fill.items()}
    given = [value for field, value in record.items() if field != "kind" and value is not None]
    # mostly something likely; now and then what stands elsewhere in the message, or nothing at all
    pick = rng.random()
    return record | {
        field: made_up[field] if pick < 0.7 else rng.choice(given) if pick < 0.9 else "" for field in missing
    }


def make_pairs(seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of ``prompt``, ``chosen`` and ``rejected``; in two of three messages something is missing."""
    rng = random.Random(seed)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        text, record = write_message(rng, False, len(rows) % 3 > 0)
        if text in seen:
            continue
        seen.add(text)
        sides = {"chosen": json.dumps(record), "rejected": json.dumps(worse(rng, record))}
        rows.append({"prompt": text} | sides)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the quickstart's messages and records.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "datasets" / "quickstart")
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    files = {
        "train": make_rows(arguments.seed, TRAIN_ROWS, False, MISSING_SHARE),
        "heldout": make_rows(arguments.seed + 1, HELD_OUT_ROWS, True, MISSING_SHARE),
        "incomplete": make_rows(arguments.seed + 2, INCOMPLETE_ROWS, True, 1.0),
        "preferences": make_pairs(arguments.seed + 3, PAIRS),
    }
    for name, rows in files.items():
        path = arguments.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
