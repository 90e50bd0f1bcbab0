"""Where the base's files hold what an adapter changes: in shards, and cut as transformers cuts it."""

import pytest
from adapter_kinds import EVERY, make_adapter
from merging import logits, merged
from transformers import AutoModelForCausalLM

from hybrid_ft.hybrid_model.checkpoint.whole_merge import compare_with_peft


@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_a_base_in_shards_with_convolutions_in_thirds(make_pair, tmp_path, relative, shard):
    make_pair(seed=3)[0].save_pretrained(tmp_path / "base", max_shard_size=shard)
    adapted = make_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=EVERY, modules_to_save=["conv1d"])
    merge = merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert files == {path.name for path in (tmp_path / "base").glob("*.safetensors")}
    assert (len(files) > 5) == (shard == "20KB")
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert relative(logits(opened), logits(adapted)) < 2e-6
    assert compare_with_peft(merge, tmp_path / "out") < 2e-6
