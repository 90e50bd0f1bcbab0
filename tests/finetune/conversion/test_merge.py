"""``hybrid-ft merge``: one folder that opens everywhere, or one line and nothing written; killed, it goes on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import hybrid_ft
from hybrid_ft import cli
from hybrid_ft.finetune.conversion.place import Place
from hybrid_ft.hybrid_model.adapters import add_lora
from hybrid_ft.hybrid_model.checkpoint import tensor_files


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    """The base in shards, with sampling defaults."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    (folder / "model.safetensors").unlink()
    hybrid_ft.load(tiny_base).save_pretrained(folder, max_shard_size="20KB")
    settings = {"eos_token_id": 1, "do_sample": True, "temperature": 0.6}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    adapted = add_lora(hybrid_ft.load(base), rank=2, alpha=4)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(3, 60)[None], use_cache=False).logits


def test_a_merged_folder_opens_everywhere(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert cli.main(["merge", str(adapter), str(out)]) == 0
    shown = capsys.readouterr().out
    assert "read back" in shown and "of PEFT's own merge in plain transformers" in " ".join(shown.split())
    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter))
    for opened in (AutoModelForCausalLM.from_pretrained(out), hybrid_ft.load(out)):
        assert torch.allclose(logits(opened), expected, atol=1e-4)
    written = json.loads((out / "generation_config.json").read_text())
    assert (written["eos_token_id"], written["temperature"]) == ([3, 1, 0], 0.6)
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    assert json.loads((out / "config.json").read_text())["rope_parameters"] == {"rope_theta": None}


def test_a_dtype_is_stamped(adapter: Path, tmp_path: Path) -> None:
    assert cli.main(["merge", str(adapter), str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    assert hybrid_ft.load(tmp_path / "half").dtype == torch.bfloat16


def cut_short(arguments: list[str], after: int, number: signal.Signals) -> int:
    """The wait status of a fork that does what the command does, and is sent a signal at the next file of tensors after
    ``after`` of them."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    replace, left = os.replace, after

    def counted(*names: Any) -> None:
        nonlocal left
        left -= str(names[1]).endswith(".safetensors")
        if left < 0:
            os.kill(os.getpid(), number)
        replace(*names)

    status = 99
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        tensor_files.os.replace = counted  # type: ignore[assignment]
        status = cli.main(arguments)
    finally:
        os._exit(status)


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -signal.SIGKILL), ("SIGTERM", 75)])
def test_a_merge_that_was_cut_short_goes_on(adapter: Path, tmp_path: Path, name: str, status: int) -> None:
    out, part = tmp_path / "merged", tmp_path / "merged.part"
    ended = cut_short(["merge", str(adapter), str(out)], 4, signal.Signals[name])
    assert os.waitstatus_to_exitcode(ended) == status
    assert not out.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in part.glob("*.safetensors") if path.name[0] != "."}
    assert len(kept) == 4
    assert cli.main(["merge", str(adapter), str(out)]) == 0
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in out.iterdir()}.items()
    assert cli.main(["merge", str(adapter), str(tmp_path / "at once")]) == 0
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / "at once" / path.name).read_bytes()


def test_what_was_begun_for_another_adapter_is_begun_anew(adapter: Path, tmp_path: Path) -> None:
    with Place(tmp_path / "merged").held("another") as part:
        (part / "model-00001-of-00009.safetensors").write_text("not of this adapter")
    assert cli.main(["merge", str(adapter), str(tmp_path / "merged")]) == 0
    assert not (tmp_path / "merged.part").exists()


@pytest.mark.slow
def test_two_at_once_are_refused(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import sys, pathlib\nfrom hybrid_ft.finetune.conversion.place import Place\n"
        "with Place(pathlib.Path(sys.argv[1])).held('x') as part:\n"
        "    (part / 'file').touch()\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "merged")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        assert cli.main(["merge", str(adapter), str(tmp_path / "merged")]) == 2
        other.communicate("")
    assert "another process is at work in it" in capsys.readouterr().err


def configured(**settings: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def of_base(**settings: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder.parent / "base" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def in_a_run(folder: Path) -> None:
    (folder.parent / "run").mkdir()
    folder.rename(folder.parent / "run" / "adapter")
    folder.mkdir()


BAD = {
    "no folder": (lambda folder: shutil.rmtree(folder), "no such folder"),
    "not an adapter": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json: missing; name a"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "a base that is gone": (
        configured(base_model_name_or_path="./gone"),
        "adapter_config.json: base_model_name_or_path: ./gone: no such folder",
    ),
    "a quantised base": (of_base(quantization_config={"bits": 4}), "config.json: quantization_config: the base's weights"),
    "another family": (of_base(model_type="llama"), "model_type is 'llama'"),
    "OUT is there": (lambda folder: (folder.parent / "out").mkdir(), "out: is there already; name a new folder"),
    "OUT's folder is not": (lambda folder: None, "its folder does not exist"),
    "in the way": (lambda folder: (folder.parent / "out.part").write_text(""), "out.part: is in the way"),
    "a dtype": (lambda folder: None, "dtype: got 'int4'; must be one of float32"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    damage, message = BAD[case]
    damage(adapter)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "nowhere" / "out" if case == "OUT's folder is not" else tmp_path / "out"
    assert cli.main(["merge", str(adapter), str(out), *(["--dtype", "int4"] if case == "a dtype" else [])]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_s_folder_is_told_its_adapter(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    adapter.rename(tmp_path / "run" / "adapter")
    assert cli.main(["merge", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    assert f"did you mean {tmp_path / 'run' / 'adapter'}?" in capsys.readouterr().err


WATCHED = (
    "import sys, torch, peft, trl\nfrom hybrid_ft.finetune.conversion import merge as command\n"
    "from hybrid_ft.hybrid_model.checkpoint import tensor_files\nfrom hybrid_ft.cli import main\n"
    "def peak():\n"
    "    return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    "tensor_files.BLOCK, command.OPENED_WHOLE = 2 ** 20, 0\n"
    "before = peak()\nstatus = main(sys.argv[1:])\nprint('grew', peak() - before)\nsys.exit(status)\n"
)


SIZES = {
    "vocab_size": 50_000, "hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 10,
    "num_attention_heads": 4, "num_key_value_heads": 4, "linear_num_key_heads": 4, "linear_num_value_heads": 4,
    "linear_key_head_dim": 96, "linear_value_head_dim": 192, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("olmo_hybrid", {"rope_parameters": {"rope_theta": None}}),
        ("qwen3_5_text", {"head_dim": 128, "tie_word_embeddings": False}),
    ],
)
def test_the_memory_is_not_that_of_the_model(
    tmp_path: Path, tiny_tokenizer: Any, kind: str, more: dict[str, Any]
) -> None:
    """512 MB of weights in eight files, all of them adapted, the embedding too; 4 MB blocks."""
    AutoConfig.for_model(kind, **SIZES, **more).save_pretrained(tmp_path / "shape")
    model = hybrid_ft.load(tmp_path / "shape", from_scratch=True)
    model.save_pretrained(tmp_path / "base", max_shard_size="64MB")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    size = sum(file.stat().st_size for file in (tmp_path / "base").glob("*.safetensors"))
    assert size > 400e6 and len(list((tmp_path / "base").glob("*.safetensors"))) >= 6
    from peft import LoraConfig, get_peft_model

    every = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens", "lm_head"]
    adapted = get_peft_model(hybrid_ft.load(tmp_path / "base"), LoraConfig(r=2, target_modules=every))
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    arguments = [sys.executable, "-c", WATCHED, "merge", str(tmp_path / "adapter"), str(tmp_path / "out")]
    run = subprocess.run(
        arguments, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert run.returncode == 0, run.stderr
    grew = 1024 * int(run.stdout.rsplit("grew ", 1)[1])
    assert grew < size / 4
    before, after = (load_file(min((tmp_path / name).glob("*.safetensors"))) for name in ("base", "out"))
    assert before.keys() == after.keys()
