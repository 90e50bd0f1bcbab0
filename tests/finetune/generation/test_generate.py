"""Answers in batches are the answers one by one; files and conversations go in and come out as they should."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import hybrid_ft
from hybrid_ft import cli
from hybrid_ft.errors import InputError
from hybrid_ft.finetune.data.tokens.prompts import PromptEncoder
from hybrid_ft.finetune.generation import chat, generate
from hybrid_ft.finetune.generation.generate import Sampling, answer, load_for_answers
from hybrid_ft.finetune.generation.prompt_file import read_prompts
from hybrid_ft.hybrid_model import adapters


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    return hybrid_ft.load(tiny_base)


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
    monkeypatch.setattr(generate, "WINDOW", 2)
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
    monkeypatch.setattr(generate, "WINDOW", 1)
    given: list[Any] = []

    def fails(*args: Any, **_: Any) -> list[str]:
        if len(given) == after:
            raise failure
        given.append(args)
        return ["x"]

    monkeypatch.setattr(generate, "answer", fails)
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    out = tmp_path / "out.jsonl"
    command = ["generate", str(tiny_base), "--prompts", str(tmp_path / "p.txt"), "--out", str(out)]
    if isinstance(failure, RuntimeError):
        with pytest.raises(RuntimeError):
            cli.main(command)
    else:
        assert cli.main(command) == (130 if isinstance(failure, KeyboardInterrupt) else 5)
    said = capsys.readouterr().err
    kept = f"the {'one answer so far is' if after == 1 else '2 answers so far are'} in {out}.part"
    assert (kept in said) == (after > 0) == (tmp_path / "out.jsonl.part").exists()
    assert not out.exists() and said.count("\n") <= 1


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


def saved_adapter(tiny_base: Path, tiny_tokenizer: Any, folder: Path, **kind: Any) -> torch.nn.Module:
    """An adapter that changes the model, saved the way a run saves it."""
    adapted = adapters.add_lora(hybrid_ft.load(tiny_base), "all-linear", rank=2, alpha=8, **kind)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.peft_config["default"].base_model_name_or_path = str(tiny_base)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    tiny_tokenizer.save_pretrained(str(folder))
    return adapted.eval()


@pytest.mark.parametrize("kind", [{}, {"dora": True, "rslora": True, "layers": [0]}], ids=["plain", "dora"])
def test_an_adapter_folder_answers_like_the_adapted_model(
    tiny_base: Path, tiny_tokenizer: Any, model: Any, tmp_path: Path, kind: Any
) -> None:
    adapted = saved_adapter(tiny_base, tiny_tokenizer, tmp_path, **kind)
    opened, tokenizer = load_for_answers(str(tmp_path))
    row = torch.tensor([[5, 9, 30, 42]])
    with torch.no_grad():
        wanted, got, plain = (each(input_ids=row, use_cache=False).logits for each in (adapted, opened, model))
    assert torch.allclose(got, wanted, atol=1e-4)
    assert not torch.allclose(got, plain, atol=1e-2)
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


def test_dora_without_its_lengths_is_one_line(tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    saved_adapter(tiny_base, tiny_tokenizer, tmp_path, dora=True)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"use_dora": true', '"use_dora": false'))
    with pytest.raises(InputError, match="lora_magnitude_vector tensors and use_dora in adapter_config.json do not"):
        load_for_answers(str(tmp_path))


def test_an_adapter_without_a_tokenizer_has_its_base_s(tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
    saved_adapter(tiny_base, tiny_tokenizer, tmp_path)
    for file in tmp_path.iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    _, tokenizer = load_for_answers(str(tmp_path))
    assert tokenizer.chat_template == tiny_tokenizer.chat_template


@pytest.mark.parametrize("damage", ["no weights", "no base", "another base", "not JSON"])
def test_a_broken_adapter_is_one_line(tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path, damage: str) -> None:
    saved_adapter(tiny_base, tiny_tokenizer, tmp_path)
    config = tmp_path / "adapter_config.json"
    if damage == "no weights":
        (tmp_path / "adapter_model.safetensors").unlink()
    elif damage == "not JSON":
        config.write_text("{")
    else:
        content = json.loads(config.read_text())
        content["base_model_name_or_path"] = None if damage == "no base" else str(tmp_path / "gone")
        config.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        load_for_answers(str(tmp_path))
    assert "\n" not in str(refused.value)
    if damage == "another base":
        assert str(refused.value).startswith(f"{config}: base_model_name_or_path: {tmp_path / 'gone'}: no such folder")


def test_an_answer_ends_with_the_template_s_token_too(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's generation config knows its own end token alone."""
    asked: list[list[int]] = []

    def watched(model: Any, tokenizer: Any, prompts: Any, end_ids: list[int], *rest: Any) -> list[str]:
        asked.append(end_ids)
        return ["" for _ in prompts]

    monkeypatch.setattr(generate, "answer", watched)
    prompts = tmp_path / "p.txt"
    prompts.write_text("hi\n")
    assert cli.main(["generate", str(tiny_base), "--prompts", str(prompts)]) == 0
    assert asked == [[3, 0]]


@pytest.mark.parametrize("kind", ["resized", "modules_to_save", "token rows"])
def test_an_adapter_with_more_than_factors_is_opened(
    tiny_base: Path, tiny_tokenizer: Any, tmp_path: Path, kind: str
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(tiny_base)
    if kind == "resized":
        plain.resize_token_embeddings(192, mean_resizing=False)
    more: dict[str, Any] = {"modules_to_save": ["norm"]} if kind == "modules_to_save" else {}
    more |= {"trainable_token_indices": [7, 8]} if kind == "token rows" else {}
    adapted = get_peft_model(plain, LoraConfig(target_modules=["q_proj"], **more))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(str(tmp_path), save_embedding_layers=kind == "resized")
    tiny_tokenizer.save_pretrained(str(tmp_path))
    row = torch.tensor([[5, 7, 33, 60, 8, 44]])
    with torch.no_grad():
        got = load_for_answers(str(tmp_path))[0](row, use_cache=False).logits
        assert torch.allclose(got, adapted.eval()(row, use_cache=False).logits, atol=1e-5)


def test_a_conversation_over_a_pipe(
    tiny_base: Path,
    model: Any,
    tiny_tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What the model is given at each turn: the whole conversation, from the start again after /reset and /system."""
    given: list[list[dict[str, Any]]] = []

    class Watched(PromptEncoder):
        def __call__(self, messages: list[dict[str, Any]], *rest: Any) -> list[int]:
            given.append([dict(message) for message in messages])
            return super().__call__(messages, *rest)

    monkeypatch.setattr(chat, "PromptEncoder", Watched)
    lines = ["hi", "", "more", "/wrong", "/reset", "again", "/system be brief", "last", "/exit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert chat.run(str(tiny_base), None, 4, Sampling()) == 0
    ids = PromptEncoder(tiny_tokenizer)([{"role": "user", "content": "hi"}])
    (first,) = answer(model, tiny_tokenizer, [ids], [0], 4)
    user = [{"role": "user", "content": text} for text in ("hi", "more", "again", "last")]
    assert given == [
        [user[0]],
        [user[0], {"role": "assistant", "content": first.strip()}, user[1]],
        [user[2]],
        [{"role": "system", "content": "be brief"}, user[3]],
    ]
    assert capsys.readouterr().out.startswith(first)


def test_an_interrupted_answer_does_not_end_the_conversation(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    class Interrupted(chat._Printer):
        def put(self, value: torch.Tensor) -> None:
            super().put(value)
            calls.append(value)
            if len(calls) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(chat, "_Printer", Interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    assert chat.run(str(tiny_base), None, 6, Sampling()) == 0
    assert len(calls) >= 3 + 7  # the second answer: its prompt and 6 tokens
    assert "error" not in capsys.readouterr().err
