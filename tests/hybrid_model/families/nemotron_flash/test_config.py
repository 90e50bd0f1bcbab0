"""Configs of Nemotron-Flash: released folders open, and what is none is refused."""

import json

import pytest

import hybrid_ft
from hybrid_ft.errors import InputError


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer_types": ["deltanet", "x", "m2", "a", "a", "f"]}, "layer_types holds 'x'; must be of deltanet, m, m2"),
        ({"rope_type": "dynamic_ntk"}, "rope_type is 'dynamic_ntk'; must be one of None, default, ntk"),
        ({"orig_max_position_embeddings": None}, "orig_max_position_embeddings must be set where rope_type is ntk"),
        ({"mlp_hidden_act": "gelu"}, "mlp_hidden_act is 'gelu'; must be one of silu, relu2"),
    ],
)
def test_configs_that_are_none_are_refused(models, tmp_path, change, said):
    (tmp_path / "config.json").write_text(json.dumps(models[0].config.to_dict() | change))
    with pytest.raises(InputError, match=said):
        hybrid_ft.load(tmp_path, from_scratch=True)
