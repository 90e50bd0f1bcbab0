"""A merged checkpoint is the adapted model, whatever PEFT put into the adapter; the rest of it is the
base's, byte for byte."""

import pytest
import torch
from adapter_kinds import ATTENTION, EVERY, KINDS, TIED, make_adapter
from merging import logits, merged
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hybrid_ft.hybrid_model.checkpoint.config import read_config
from hybrid_ft.hybrid_model.checkpoint.merge import Merge
from hybrid_ft.hybrid_model.checkpoint.whole_merge import compare_with_peft

CASES = [("untied", kind, KINDS[kind]) for kind in KINDS] + [("tied", kind, TIED[kind]) for kind in TIED]


@pytest.mark.filterwarnings("ignore")  # PEFT's on tied layers and on DoRA's merge
@pytest.mark.parametrize(
    ("base", "kind", "settings"),
    [
        # on a tied base the kinds that have no part in the tie merge as on any other
        pytest.param(
            *case, id=", ".join(case[:2]), marks=pytest.mark.slow if case[0] == "tied" and case[1] in KINDS else []
        )
        for case in CASES
    ],
)
def test_a_merged_model_is_the_adapted_one(bases, tmp_path, relative, small_blocks, base, kind, settings):
    adapted = make_adapter(bases[base], tmp_path / "adapter", **settings)
    merge = merged(bases[base], tmp_path / "adapter", tmp_path / "out")
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    size = settings.get("resize", 61)
    assert relative(logits(opened, size), logits(adapted, size)) < 2e-6
    assert compare_with_peft(merge, tmp_path / "out") < 2e-6
    assert relative(logits(opened)[..., :61], logits(AutoModelForCausalLM.from_pretrained(bases[base]))) > 1e-3
    before, after = (load_file(folder / "model.safetensors") for folder in (bases[base], tmp_path / "out"))
    assert {name for name in after if name not in before or not torch.equal(before[name], after[name])} == {
        *merge.changed
    }
    assert opened.config.tie_word_embeddings == (base == "tied" and kind not in ("both apart", "both by lora"))


def test_weights_that_were_not_trained_are_the_bases_bytes(bases, tmp_path, small_blocks):
    make_adapter(bases["untied"], tmp_path / "adapter", target_modules=ATTENTION)
    merge = merged(bases["untied"], tmp_path / "adapter", tmp_path / "out")
    assert {".".join(name.split(".")[3:]) for name in merge.changed} == {f"{name}.weight" for name in ATTENTION}


@pytest.mark.parametrize(("dtype", "most"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3), (torch.float32, 1e-6)])
def test_every_dtype_asked_for(bases, tmp_path, relative, dtype, most):
    adapted = make_adapter(bases["untied"], tmp_path / "adapter", target_modules=EVERY)
    merge = merged(bases["untied"], tmp_path / "adapter", tmp_path / "out", dtype)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert relative(logits(opened), logits(adapted)) < most
    compare_with_peft(merge, tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    exact = adapted.merge_and_unload().state_dict()[name]
    assert float((tensors[name] != exact.to(dtype)).float().mean()) < 0.01  # rounded once: not the base, then the sum


def test_files_that_are_there_are_not_written_again(make_pair, tmp_path):
    make_pair(seed=3)[0].save_pretrained(tmp_path / "base", max_shard_size="20KB")
    make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=EVERY)
    merge = Merge(tmp_path / "adapter", tmp_path / "base", read_config(tmp_path / "base"))
    (tmp_path / "out").mkdir()

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done == 3:
            raise Killed

    with pytest.raises(Killed):
        merge.write(tmp_path / "out", kill)
    first = {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}
    assert len(first) == 3
    merge.write(tmp_path / "out")
    assert first.items() <= {path.name: path.stat().st_ino for path in (tmp_path / "out").iterdir()}.items()
    merge.verify(tmp_path / "out")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_verify_sees_one_wrong_weight(bases, tmp_path, name):
    make_adapter(bases["untied"], tmp_path / "adapter", target_modules=["up_proj"], modules_to_save=["lm_head"])
    merge = merged(bases["untied"], tmp_path / "adapter", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[name].view(-1)[7] += 0.5
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=name):
        merge.verify(tmp_path / "out")
    with pytest.raises(RuntimeError, match="logits differ by"):
        compare_with_peft(merge, tmp_path / "out")
