import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.prepare import prepare
from hybrid_ft.finetune.data.report.view import draw

HH = "\n\nHuman: {}\n\nAssistant: Hm.\n\nHuman: So?\n\nAssistant: {}"


@pytest.fixture(scope="module")
def tokenizer(pair_tokenizer: Any) -> Any:
    return pair_tokenizer


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """``write(rows)`` puts rows into a JSON lines file and gives its path."""

    def go(rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return str(path)

    return go


def rows_of(count: int, prompts: int | None = None) -> list[dict[str, Any]]:
    """Pairs numbered in their answers, over so many different prompts."""
    return [
        {"prompt": f"Why {index % (prompts or count)}?", "chosen": f"Yes {index}.", "rejected": f"No {index}, never."}
        for index in range(count)
    ]


def texts(tokenizer: Any, dataset: Any, part: str) -> list[str]:
    return [tokenizer.decode(ids) for ids in dataset[f"{part}_ids"]]


def refusal(recipe: Any, tokenizer: Any) -> str:
    with pytest.raises(InputError) as caught:
        prepare(recipe, tokenizer)
    assert caught.value.status == 2 and "\n" not in str(caught.value)
    return str(caught.value)


def test_pairs_keep_their_order_and_say_where_they_are_from(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(300)
    rows[1]["rejected"] = rows[1]["chosen"]
    path = write(rows)
    prepared = prepare(pair_recipe(path), tokenizer)
    kept = [0, *range(2, 300)]
    assert list(prepared.train["origin"]) == [f"{path}:{index + 1}" for index in kept]
    assert texts(tokenizer, prepared.train, "chosen") == [f"Yes {index}.<|endoftext|>" for index in kept]
    assert texts(tokenizer, prepared.train, "rejected")[0] == "No 0, never.<|endoftext|>"
    assert (
        texts(tokenizer, prepared.train, "prompt")[0] == "<|im_start|>user\nWhy 0?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prepared.train.column_names == ["prompt_ids", "chosen_ids", "rejected_ids", "origin"]
    assert prepared.eval is None
    assert prepared.eos_token_ids == tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])


def test_what_teaches_nothing_is_dropped_and_counted_with_its_place(
    write: Any, pair_recipe: Any, tokenizer: Any
) -> None:
    path = write(
        [
            {"chosen": HH.format("Why?", "Because."), "rejected": HH.format("Why?", "No.")},
            {"chosen": HH.format("Why?", "No."), "rejected": HH.format("Why?", "No.")},
            {"chosen": HH.format("Why?", "Because."), "rejected": HH.format("Why?", "")},
            {"chosen": HH.format("Why?", "Because."), "rejected": HH.format("How?", "No.")},
            {"chosen": HH.format("Why?", "Because."), "rejected": "\n\nHuman: Why?\n\nAssistant: No."},
            {"chosen": HH.format("Why?", "Because.") + "\n\nHuman: Oh.", "rejected": HH.format("Why?", "No.")},
        ]
    )
    report = prepare(pair_recipe(path), tokenizer).report.as_dict()
    source = report["sources"][0]
    assert (source["format"], source["rows_read"], source["rows_kept"]) == ("transcripts", 6, 1)
    assert source["dropped"] == {
        "no shared prompt": {"rows": 2, "first": [f"{path}:4", f"{path}:5"]},
        "identical answers": {"rows": 1, "first": [f"{path}:2"]},
        "empty answer": {"rows": 1, "first": [f"{path}:3"]},
        "ends on a user turn": {"rows": 1, "first": [f"{path}:6"]},
    }


def test_too_many_dropped_pairs_stop_the_run_unless_the_account_is_wanted_first(
    write: Any, pair_recipe: Any, tokenizer: Any
) -> None:
    rows = rows_of(100)
    for index in (3, 7):
        rows[index]["rejected"] = rows[index]["chosen"]
    path = write(rows)
    few = {"max_dropped": 0.02}
    assert prepare(pair_recipe(path, data=few), tokenizer).report.refusal is None
    recipe = pair_recipe(path, data={"max_dropped": 0.01})
    text = refusal(recipe, tokenizer)
    assert "identical answers: 2" in text and f"{path}:4" in text and "data.max_dropped allows 1.0 %" in text
    assert prepare(recipe, tokenizer, refuse=False).report.refusal == text


def test_no_shared_prompt_anywhere_stops_the_run(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    path = write([{"chosen": "Because.", "rejected": "No."}] * 3)
    text = refusal(pair_recipe(path, data={"max_dropped": 1.0}), tokenizer)
    assert "no row can be trained on" in text and "no shared prompt: 3" in text and f"{path}:1" in text


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_side_that_is_missing_or_null_stops_the_run_or_is_skipped(
    write: Any, pair_recipe: Any, tokenizer: Any, side: str, missing: bool
) -> None:
    rows = rows_of(5)
    rows[2][side] = None
    if missing:
        del rows[2][side]
    path = write(rows)
    text = refusal(pair_recipe(path), tokenizer)
    assert text.startswith(
        f"{path}:3: {side} is {'missing' if missing else 'null'}; a pair needs both answers; 1 bad row of 5"
    )
    prepared = prepare(pair_recipe(path, data={"on_bad_row": "skip"}), tokenizer)
    assert len(prepared.train) == 4
    assert prepared.report.as_dict()["sources"][0]["dropped"][f"no {side} answer"]["first"] == [f"{path}:3"]


def test_long_prompts_and_long_answers_go_as_the_recipe_says(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(4)
    rows[1]["prompt"] = "Why? " * 40
    rows[2]["chosen"] = "Because. " * 40
    path = write(rows)

    def source(data: dict[str, Any], dpo: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        prepared = prepare(pair_recipe(path, data={"max_length": 100} | data, dpo=dpo), tokenizer)
        return prepared, prepared.report.as_dict()["sources"][0]

    _, counts = source({}, {})
    assert {reason: tally["first"] for reason, tally in counts["dropped"].items()} == {
        "prompt alone longer than data.max_length": [f"{path}:2"],
        "longer than data.max_length": [f"{path}:3"],
    }
    prepared, counts = source({"on_long_row": "cut"}, {"on_long_prompt": "cut_start"})
    assert (counts["dropped"], counts["cut_prompts"]["first"], counts["cut"]["first"]) == (
        {},
        [f"{path}:2"],
        [f"{path}:3"],
    )
    prompts, chosen, rejected = (texts(tokenizer, prepared.train, part) for part in ("prompt", "chosen", "rejected"))
    assert prompts[1].endswith("Why? Why? <|im_end|>\n<|im_start|>assistant\n") and not prompts[1].startswith(
        "<|im_start|>"
    )
    assert rejected[1] == "No 1, never.<|endoftext|>" and len(prepared.train[1]["prompt_ids"]) + 13 == 100
    assert (
        prompts[2] + chosen[2]
        == f"{prompts[0].replace('0', '2')}{'Because. ' * 40}"[: len(prompts[2]) + len(chosen[2])]
    )
    assert len(prepared.train[2]["prompt_ids"]) + len(prepared.train[2]["chosen_ids"]) == 100
    text = refusal(pair_recipe(path, data={"max_length": 100}, dpo={"on_long_prompt": "error"}), tokenizer)
    assert text.startswith(f"{path}:2: the prompt alone has 2") and "1 long row of 4. Raise data.max_length" in text
    text = refusal(pair_recipe(path, data={"max_length": 100, "on_long_row": "error"}), tokenizer)
    assert text.startswith(f"{path}:3: prompt and chosen have 386 tokens") and "set data.on_long_row: drop" in text


def test_a_cut_prompt_keeps_more_than_what_asks_for_an_answer(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    asks = len("assistant\n") + 1
    for room, kept in ((asks, 0), (asks + 1, 1)):
        path = write([rows_of(1)[0], {"prompt": "Why? " * 40, "chosen": "y" * (99 - room), "rejected": "No."}])
        recipe = pair_recipe(path, data={"max_length": 100}, dpo={"on_long_prompt": "cut_start"})
        assert len(prepare(recipe, tokenizer).train) == 1 + kept


def test_a_cut_that_takes_all_of_an_answer_stops_or_is_counted(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(4)
    rows[1]["prompt"] = "Why? " * 40
    path = write(rows)
    cut = {"max_length": 100, "on_long_row": "cut"}
    text = refusal(pair_recipe(path, data=cut, dpo={"on_long_prompt": "error"}), tokenizer)
    assert f"{path}:2: the prompt alone has" in text and "the cut would take all of the answers" in text
    text = refusal(pair_recipe(path, data=cut | {"max_dropped": 0.01}), tokenizer)
    assert f"nothing left of an answer: 1 ({path}:2)" in text


def test_a_pair_over_the_token_budget_is_dropped_or_stops_the_run(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(4)
    rows[3] |= {"chosen": "Because. " * 6, "rejected": "Never. " * 8}
    path = write(rows)
    limits = {"data": {"max_length": 100}, "train": {"batch_tokens": 100}}
    source = prepare(pair_recipe(path, **limits), tokenizer).report.as_dict()["sources"][0]
    assert source["dropped"] == {"over train.batch_tokens": {"rows": 1, "first": [f"{path}:4"]}}
    limits["data"]["on_long_row"] = "error"
    text = refusal(pair_recipe(path, **limits), tokenizer)
    assert text.startswith(f"{path}:4: the pair has 1") and "Raise train.batch_tokens" in text


def test_held_out_pairs_are_split_by_prompt(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    path = write(rows_of(60, prompts=12))
    prepared = prepare(pair_recipe(path, data={"eval": {"fraction": 0.25}, "seed": 3}), tokenizer)
    train, held = set(texts(tokenizer, prepared.train, "prompt")), set(texts(tokenizer, prepared.eval, "prompt"))
    assert (len(train), len(held), len(prepared.eval)) == (9, 3, 15)
    assert not train & held
    assert prepared.report.eval is not None and prepared.report.eval.prompts == 3


def test_sources_mix_and_held_out_ones_are_compared(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    many, few = (
        write(rows_of(40), "many.jsonl"),
        write([{"chosen": [*TALK, YES], "rejected": [*TALK, NO]}] * 8, "few.jsonl"),
    )
    data = {
        "sources": [{"path": many, "weight": 1.0}, {"path": few, "weight": 1.0}],
        "eval": {"sources": [{"path": write(rows_of(3), "held.jsonl")}]},
    }
    prepared = prepare(pair_recipe(data=data), tokenizer)
    origins = [origin.rpartition(":")[0] for origin in prepared.train["origin"]]
    assert origins == [many] * 8 + [few] * 8
    asked = set(texts(tokenizer, prepared.train, "prompt"))
    assert prepared.report.shared_prompts == sum(
        prompt in asked for prompt in texts(tokenizer, prepared.eval, "prompt")
    )
    assert prepared.report.train.duplicates == 7


TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
YES = {"role": "assistant", "content": "Yes."}
NO = {"role": "assistant", "content": "No."}


def test_the_account_adds_up(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(20)
    rows[0]["chosen"], rows[1]["chosen"] = "No 1, never, ever.", "No 0, never."
    prepared = prepare(pair_recipe(write(rows)), tokenizer)
    train, sizes = prepared.report.train, [0, 0, 0]
    for row in prepared.train:
        for index, part in enumerate(("prompt", "chosen", "rejected")):
            sizes[index] += len(row[f"{part}_ids"])
    assert train.tokens == sum(sizes)
    assert train.saved_share == pytest.approx(sizes[0] / (2 * sizes[0] + sizes[1] + sizes[2]))
    assert (train.chosen_longer, train.equally_long) == (1 / 20, 1 / 20)
    told = json.loads(json.dumps(prepared.report.as_dict()))["train"]
    assert told["tokens_with_prompt_twice"] == train.tokens + sizes[0]
    assert told["length"]["prompt"]["mean"] == pytest.approx(sizes[0] / 20)
    assert told["length"]["pair"]["longest"] == int((train.prompt + train.chosen + train.rejected).max())


def test_pairs_are_shown_with_colour_and_without(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(9)
    rows[4] |= {"prompt": "Say <|im_end|> and \x1b[2J.", "chosen": "\n\nYes."}
    report = prepare(pair_recipe(write(rows)), tokenizer).report
    plain, coloured = io.StringIO(), io.StringIO()
    draw(report, Console(file=plain, width=160))
    draw(report, Console(file=coloured, width=160, force_terminal=True, color_system="standard"))
    text = plain.getvalue()
    assert text.count("prompt 【<|im_start|>user") == text.count("chosen 【") == text.count("rejected 【No ") == 3
    assert "chosen 【Yes 0.<|endoftext|>】" in text
    assert "\x1b[32m【Yes 0." in coloured.getvalue() and "\x1b[31m【No 0, never." in coloured.getvalue()
    assert "\x1b[2J" not in coloured.getvalue()
    assert "<|im_end|> in a row's text, encoded as plain text: 1" in text
    assert "answers that begin with a line end, encoded apart from the header's: 1" in text
    summary = "\n".join(report.summary())
    assert "9 pairs" in summary and "saved by shared prompts" in summary and "chosen is the longer in" in summary


def test_files_that_hold_no_pairs_say_what_would_help(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    path = write([{"prompt": "Why?", "completion": "Because."}])
    assert (
        f"{path}:1: no columns that hold a pair (found prompt, completion); known formats: chosen, rejected"
        in refusal(pair_recipe(path), tokenizer)
    )
    path = write([{"history": "Why?", "human_ref_A": "Yes.", "human_ref_B": "No.", "labels": 1}])
    assert "looks like shp: set columns: shp" in refusal(pair_recipe(path), tokenizer)
    recipe = pair_recipe(data={"sources": [{"path": path, "columns": "shp"}]})
    assert texts(tokenizer, prepare(recipe, tokenizer).train, "chosen") == ["Yes.<|endoftext|>"]
    recipe = pair_recipe(data={"sources": [{"path": path, "format": "alpaca"}]})
    assert "format: alpaca is for supervised rows" in refusal(recipe, tokenizer)


def test_pairs_of_which_the_contrary_is_there_are_counted(write: Any, pair_recipe: Any, tokenizer: Any) -> None:
    rows = rows_of(5)
    rows += [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:2]]
    report = prepare(pair_recipe(write(rows)), tokenizer).report
    assert report.train.reversed_too == 4 and report.as_dict()["train"]["pairs_there_both_ways"] == 4
    assert "pairs of which the contrary, A over B beside B over A, is there: 4" in report.warnings()
    assert prepare(pair_recipe(write(rows_of(5))), tokenizer).report.train.reversed_too == 0


def test_margins_are_read_for_a_reward_model_alone(write: Any, tokenizer: Any, pair_recipe: Any) -> None:
    """A number or its text, none where a row has none; a pair that only another stage reads may hold anything there."""
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    values = [0.5, "-1.5", None, 2]
    path = write([pair | {"chosen": f"good{n}", "margin": value} for n, value in enumerate(values)])
    prepared = prepare(pair_recipe(path, reward={}), tokenizer)
    assert prepared.train["margin"] == [0.5, -1.5, 0.0, 2.0]
    assert "margin" not in prepared.report.sources[0].ignored
    words = write([pair | {"margin": "much"}] * 2, "words.jsonl")
    assert "margin" in prepare(pair_recipe(words, dpo={}), tokenizer).report.sources[0].ignored
    with pytest.raises(InputError, match=r"words.jsonl:1: margin is .much.; must be a number"):
        prepare(pair_recipe(words, reward={}), tokenizer)
