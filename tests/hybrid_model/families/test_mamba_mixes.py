"""Bamba, Zamba2 and Jamba: each layer is counted as what the model builds there, and keeps what must be exact."""

from typing import Any

import pytest

from hybrid_ft.hybrid_model.families.family import ssd
from hybrid_ft.hybrid_model.families.known import family_of
from hybrid_ft.hybrid_model.families.mamba_mixes import BAMBA, ZAMBA2

KINDS = ["bamba", "zamba2", "jamba"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_is_counted_as_what_the_model_builds_there(plain_model: Any, kind: str) -> None:
    """Zamba2's hybrid layers hold both mixers."""
    model = plain_model(kind)
    built = []
    for layer in model.model.layers:
        names = [name for name, _ in layer.named_modules()]
        built.append(tuple(any(name.split(".")[-1] == one for name in names) for one in ("mamba", "self_attn")))
    mixings = family_of(model.config).mixings(model.config)
    counted = [
        (any(one.per_token for one in layer), any(one.per_pair for one in layer)) for layer in mixings
    ]  # a state costs by tokens, attention by pairs
    assert counted == built and len(set(counted)) == 2


def test_zamba2s_attention_is_as_wide_as_its_heads_are(plain_model: Any) -> None:
    """It reads two streams side by side, twice the hidden size, in heads of their own width."""
    model = plain_model("zamba2")
    attention = next(layer for layer in model.model.layers if hasattr(layer, "shared_transformer"))
    q_proj = attention.shared_transformer.self_attn.q_proj
    assert q_proj.in_features == 2 * model.config.hidden_size
    (wide,) = {one.per_pair for layer in ZAMBA2.mixings(model.config) for one in layer if one.per_pair}
    assert wide == 4 * q_proj.out_features


@pytest.mark.parametrize(("kind", "scan"), [("bamba", ssd(4, 32, 16)), ("zamba2", ssd(4, 32, 16))])
def test_mamba_2_is_counted_by_its_heads_and_groups(tiny_config: Any, kind: str, scan: Any) -> None:
    config = tiny_config(kind)
    assert family_of(config).mixings(config)[0] == (scan,)


def test_with_another_activation_a_row_is_not_shared(tiny_config: Any) -> None:
    """transformers' scan would see a part of the row's tokens alone."""
    assert BAMBA.most_processes(tiny_config("bamba")) == 4
    assert BAMBA.most_processes(tiny_config("bamba", hidden_act="gelu")) == 1
    assert ZAMBA2.most_processes(tiny_config("zamba2")) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_sets_a_states_decay_is_never_rounded(plain_model: Any, kind: str) -> None:
    """Parameters of the scan that are used in float32 are kept in it."""
    model = plain_model(kind)
    family = family_of(model.config)
    scan = {name for name, p in model.named_parameters() if ".mamba." in name and "norm" not in name and p.ndim == 1}
    scan |= {name for name, _ in model.named_parameters() if name.endswith("A_log")}
    rounded = {name.rpartition(".")[2] for name in scan if not name.endswith(family.float32)}
    assert scan and rounded <= {"bias"}
