"""Answers in batches are the answers one by one; files of prompts go in and come out as they should."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation import generate, partial_answers
from hybrid_ft.finetune.generation.generate import Sampling, answer
from hybrid_ft.finetune.generation.prompt_file import read_prompts


def one_by_one(folder: Path, prompts: list[list[int]], end_ids: list[int], most: int) -> list[list[int]]:
    """Greedy decoding in plain transformers, a row at a time, no cache and no padding."""
    from transformers import OlmoHybridForCausalLM

    plain = OlmoHybridForCausalLM.from_pretrained(folder).eval()
    rows = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + most:
            with torch.no_grad():
                token = int(plain(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in end_ids:
                break
            ids.append(token)
        rows.append(ids[len(prompt) :])
    return rows


def test_batched_answers_are_those_one_by_one(
    model: Any, tiny_base: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixed lengths in a mixed order, several batches; one end token cuts rows at different places."""
    monkeypatch.setattr(generate, "BATCH_ROWS", 3)
    chance = torch.Generator().manual_seed(0)
    lengths = [5, 1, 30, 12, 12, 2, 63, 7]
    prompts = [torch.randint(4, 80, (length,), generator=chance).tolist() for length in lengths]
    free = one_by_one(tiny_base, prompts, [], 10)
    end = max(range(4, 80), key=lambda token: len({row.index(token) for row in free if token in row}))
    wanted = one_by_one(tiny_base, prompts, [end, 0], 10)
    assert len({len(row) for row in wanted}) > 1
    got = answer(model, tiny_tokenizer, prompts, [end, 0], 10)
    assert got == [tiny_tokenizer.decode(row, skip_special_tokens=True) for row in wanted]


def test_batches_hold_every_row_once_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "BATCH_TOKENS", 100)
    lengths = [50, 3, 90, 7, 7, 8, 200, 1]
    batches = list(generate._batches(lengths, 10))
    assert sorted(row for rows in batches for row in rows) == list(range(8))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * (max(lengths[row] for row in rows) + 10) <= 100
    assert len(batches) < 8


def test_sampling_is_seeded_and_leaves_the_global_generator(model: Any, tiny_tokenizer: Any) -> None:
    prompts = [[5, 6, 7]] * 4
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = answer(model, tiny_tokenizer, prompts, [0], 12, Sampling(temperature=1.0, seed=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == answer(model, tiny_tokenizer, prompts, [0], 12, Sampling(temperature=1.0, seed=3))
    assert first != answer(model, tiny_tokenizer, prompts, [0], 12, Sampling(temperature=1.0, seed=4))


def test_no_prompts_no_answers(model: Any, tiny_tokenizer: Any) -> None:
    assert answer(model, tiny_tokenizer, [], [0], 4) == []


def test_prompt_tokens_are_the_templates(tiny_tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "so"},
    ]
    wanted = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert PromptEncoder(tiny_tokenizer)(messages) == wanted


def test_a_users_text_cannot_become_a_control_token(tiny_tokenizer: Any) -> None:
    ids = PromptEncoder(tiny_tokenizer)([{"role": "user", "content": "a<|im_end|>b"}])
    end = tiny_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(end) == 1
    assert tiny_tokenizer.apply_chat_template(
        [{"role": "user", "content": "a<|im_end|>b"}], add_generation_prompt=True, return_dict=False
    ).count(end) == 2  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages must end on a turn that waits for an answer"),
        ([{"role": "assistant", "content": "x"}], "messages must end on a turn that waits"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content is null"),
        ("hello", "messages"),
    ],
)
def test_turns_that_cannot_be_answered(tiny_tokenizer: Any, messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match="^" + said.replace("[", r"\[").replace("]", r"\]")):
        PromptEncoder(tiny_tokenizer)(messages)


THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{{ 'no' if not thinks else 'yes' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("saved", "option", "row", "asked"),
    [
        (None, None, None, "no"),
        (True, None, None, "yes"),
        (True, False, None, "no"),
        (None, True, None, "yes"),
        (None, False, True, "yes"),
    ],
)
def test_the_template_is_given_what_was_saved_then_the_option_then_the_rows(
    tiny_base: Path,
    tiny_tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: bool | None,
    option: bool | None,
    row: bool | None,
    asked: str,
) -> None:
    model, prompts = tmp_path / "model", tmp_path / "p.jsonl"
    shutil.copytree(tiny_base, model)
    tiny_tokenizer.save_pretrained(model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    if saved is not None:
        config["chat_template_kwargs"] = {"thinks": saved}
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    (model / "chat_template.jinja").write_text(THINKING)
    own = {} if row is None else {"chat_template_kwargs": {"thinks": row}}
    prompts.write_text(json.dumps({"prompt": "a"} | own) + "\n")
    given: list[str] = []

    def answered(model: Any, tokenizer: Any, prompts: list[list[int]], *rest: Any) -> list[str]:
        given.extend(tokenizer.decode(ids) for ids in prompts)
        return ["x"] * len(prompts)

    monkeypatch.setattr(generate, "answer", answered)
    more = [] if option is None else ["--chat-template-kwargs", json.dumps({"thinks": option})]
    assert cli.main(["generate", str(model), "--prompts", str(prompts), *more]) == 0
    assert [text.replace(" ", "").rpartition("assistant\n")[2] for text in given] == [asked]


@pytest.mark.parametrize("text", ["{", "[]", "1", '{"messages": 1}', '{"eos_token": "x"}'])
def test_an_option_that_is_no_arguments_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["chat", "tiny"], ["generate", "tiny", "--prompts", str(tmp_path / "none.jsonl")]):
        assert cli.main([*command, "--chat-template-kwargs", text]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: --chat-template-kwargs: ") and said.count("\n") == 1


def test_a_file_of_prompts_is_answered_in_its_order(
    tiny_base: Path, model: Any, tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial_answers, "WINDOW", 2)
    prompts, out = tmp_path / "p.jsonl", tmp_path / "out.jsonl"
    texts = ["a", "a much longer prompt", "abc"]
    rows: list[dict[str, Any]] = [{"prompt": text, "id": index} for index, text in enumerate(texts)]
    rows[2] = {"messages": [{"role": "user", "content": "abc"}], "id": 2}
    prompts.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    assert (
        cli.main(["generate", str(tiny_base), "--prompts", str(prompts), "--out", str(out), "--max-new-tokens", "5"])
        == 0
    )
    encode = PromptEncoder(tiny_tokenizer)
    ids = [encode([{"role": "user", "content": text}]) for text in texts]
    wanted = answer(model, tiny_tokenizer, ids, [0], 5)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {**row, "answer": text} for row, text in zip(rows, wanted, strict=True)
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "p.jsonl"]


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), RuntimeError("out of memory"), OSError(28, "No space left")])
def test_a_late_failure_says_where_the_answers_are(
    failure: BaseException,
    after: int,
    tiny_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the same command asks for the others alone."""
    monkeypatch.setattr(partial_answers, "WINDOW", 1)
    given: list[Any] = []

    def fails(*args: Any, **_: Any) -> list[str]:
        if len(given) == after and not isinstance(failure, OSError):
            raise failure
        given.append(args[2])
        return [str(len(given))]

    def full(handle: int) -> None:
        if given and len(given) == after + 1:
            raise failure

    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    out = tmp_path / "out.jsonl"
    command = ["generate", str(tiny_base), "--prompts", str(tmp_path / "p.txt"), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "answer", fails)
        if isinstance(failure, OSError):
            patch.setattr(os, "fsync", full)
        if isinstance(failure, RuntimeError):
            with pytest.raises(RuntimeError):
                cli.main(command)
        else:
            assert cli.main(command) == (130 if isinstance(failure, KeyboardInterrupt) else 5)
    said = capsys.readouterr().err
    kept = f"{'1 answer is' if after == 1 else '2 answers are'} in {out}.part; the same command goes on from there"
    assert (kept in said) == (after > 0) == (tmp_path / "out.jsonl.part").exists()
    assert not out.exists() and said.count("\n") <= 1
    monkeypatch.setattr(generate, "answer", lambda *args: given.append(args[2]) or ["again"])
    before = len(given)
    assert cli.main(command) == 0 and not (tmp_path / "out.jsonl.part").exists()
    # what was written is taken, whether or not the disk said that it was there
    kept_then = after + isinstance(failure, OSError) if after else 0
    assert len(given) - before == 3 - kept_then
    answers = [json.loads(line)["answer"] for line in out.read_text().splitlines()]
    assert answers == [str(number + 1) for number in range(kept_then)] + ["again"] * (3 - kept_then)


def test_answers_to_other_prompts_are_not_taken(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor those of another model or with another setting."""
    monkeypatch.setattr(partial_answers, "WINDOW", 1)
    prompts, out = tmp_path / "p.txt", tmp_path / "out.jsonl"
    prompts.write_text("a\nb\n")
    command = ["generate", str(tiny_base), "--prompts", str(prompts), "--out", str(out)]
    answers = iter([["x"]])
    monkeypatch.setattr(generate, "answer", lambda *_: next(answers))
    with pytest.raises(StopIteration):
        cli.main(command)
    part = (tmp_path / "out.jsonl.part").read_bytes()
    for changed, text in (
        (["--seed", "1", "--temperature", "1"], "a\nb\n"),
        (["--max-new-tokens", "3"], "a\nb\n"),
        ([], "a\nc\n"),
    ):
        prompts.write_text(text)
        capsys.readouterr()
        assert cli.main([*command, *changed]) == 2
        said = capsys.readouterr().err
        assert "holds answers to other rows" in said and said.count("\n") == 1
        assert (tmp_path / "out.jsonl.part").read_bytes() == part and not out.exists()


def test_lines_of_text_are_prompts(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("one\n\n two \n")
    assert cli.main(["generate", str(tiny_base), "--prompts", str(tmp_path / "p.txt"), "--max-new-tokens", "2"]) == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]


def test_mistakes_in_a_file_of_prompts(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"prompt": "a"}\n{"prompt": 1}\nfoo\n[]\n{"prompt": "a", "messages": []}\n{"prompt": "\\ud800"}\n'
        + "[" * 99_999
    )
    with pytest.raises(InputError) as refused:
        read_prompts(file)
    assert [line.removeprefix(str(file)).split(" ")[0] for line in str(refused.value).splitlines()] == [
        f":{number}:" for number in range(2, 8)
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", b"a", "must end in .txt"),
        ("p.txt", b"\n\n", "holds no prompt"),
        ("p.txt", b"a\n\xff", "p.txt:2: byte 0xff is not UTF-8"),
        ("gone.txt", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert cli.main(["generate", "tiny", "--prompts", str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
