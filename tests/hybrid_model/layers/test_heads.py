"""Processes that share a row's tokens compute what one computes: loss and gradients. Run as a script, one of them."""

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from hybrid_ft.hybrid_model.door.spread import Spread, cut
from hybrid_ft.hybrid_model.families.known import family_of_type
from hybrid_ft.hybrid_model.layers.heads import Heads

# 5 heads; 3 key heads of 2 value heads each, and 6 query heads that share one key head or three
OLMO_HYBRID = {
    "hidden_size": 40, "num_hidden_layers": 4, "num_attention_heads": 5, "num_key_value_heads": 5,
    "intermediate_size": 48, "linear_key_head_dim": 6, "linear_value_head_dim": 12, "linear_num_key_heads": 5,
    "linear_num_value_heads": 5, "rope_parameters": {"rope_theta": None},
}  # fmt: skip
QWEN = {
    "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 3, "linear_num_value_heads": 6,
    "intermediate_size": 48,
}  # fmt: skip
OLMO = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 1,
    "intermediate_size": 48, "sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {
    "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2
}  # fmt: skip
MODELS = {
    "olmo_hybrid": (OLMO_HYBRID, "float64"),
    "olmo_hybrid with rope": (
        OLMO_HYBRID | {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        "float64",
    ),
    "olmo_hybrid in float32": (OLMO_HYBRID, "float32"),
    "qwen3_5_text": (QWEN, "float64"),
    "olmo3": (OLMO, "float64"),
    "qwen3_5_moe_text": (QWEN | EXPERTS, "float32"),
    "qwen3_next": (QWEN | EXPERTS, "float32"),
}
# Mamba-2 with one group of 4 heads or two, and convolutions, beside 2 key heads of 2 query heads each
OF_FAMILIES = ("granitemoehybrid", "falcon_h1", "nemotron_h", "bamba", "zamba2", "lfm2", "lfm3", "lfm2_moe")
MODELS |= {name: (family_of_type(name).tiny[name], "float32") for name in OF_FAMILIES}
BARS = {"float64": 1e-12, "float32": 5e-6}


def forms_of(name: str) -> dict[str, list[int] | None]:
    """Parents of the row's segments; the last form is the one before it, computed again in backward."""
    forked = [-1, -1, 0, 0]
    return (
        {"checkpointed": forked} if name in OF_FAMILIES else {"packed": None, "forked": forked, "checkpointed": forked}
    )


def together(processes: int, models: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """What the processes found: name of a model and a form of the row to the relative errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"WORLD_SIZE": str(processes), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, *models],
            env=shared | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]
    try:
        said = [rank.communicate(timeout=1200) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0] * processes, said[0][1].decode()[-3000:]
    return json.loads(said[0][0].decode().splitlines()[-1])


def check(found: dict[str, dict[str, float]], name: str) -> None:
    _, dtype = MODELS[name]
    for form in forms_of(name):
        errors = found[f"{name} {form}"]
        # Qwen's norms add 1 to their weights in float32, and their gradients are summed there
        norms = BARS["float32"] if "qwen" in name else BARS[dtype]
        assert errors["loss"] < BARS[dtype] and errors["weights"] < BARS[dtype] and errors["norms"] < norms, errors
        assert errors["sum"] < BARS[dtype], errors


@pytest.mark.slow
def test_two_three_and_four_processes_do():
    """5 heads as 2, 1, 1, 1; 3 key heads as 1, 1, 1; 4 heads of one group or two as 2, 1, 1."""
    of_qwen = tuple(name for name in MODELS if "qwen" in name)
    others = tuple(name for name in MODELS if "qwen" not in name and name not in OF_FAMILIES)
    for processes, names in ((2, (*of_qwen, *others)), (3, (*of_qwen, *OF_FAMILIES)), (4, others)):
        found = together(processes, names)
        for name in names:
            check(found, name)


def test_heads_are_cut_as_evenly_as_it_goes():
    assert cut(30, 4) == (8, 8, 7, 7) and cut(30, 8) == (4,) * 6 + (3,) * 2 and cut(3, 5) == (1, 1, 1, 0, 0)
    spread = Spread.of(10, 3, 1, None)
    assert spread.tokens == (4, 3, 3) and spread.own == slice(4, 7)
    layout = SimpleNamespace(spread=spread)
    heads = [Heads(SimpleNamespace(spread=Spread(spread.tokens, rank, None)), 5) for rank in range(3)]
    weight = torch.arange(20).view(10, 2)
    assert torch.equal(torch.cat([one.own(weight) for one in heads]), weight)
    with pytest.raises(ValueError, match="2 heads cannot be shared by 3 processes"):
        Heads(layout, 2)


def test_groups_are_handed_to_as_many_units_as_there_must_be():
    """Of 12 heads in 2 groups: to 3 processes each group twice, to 5 three times."""
    for size, repeats, counts in ((1, 1, (2,)), (2, 1, (1, 1)), (3, 2, (2, 1, 1)), (5, 3, (2, 1, 1, 1, 1))):
        spreads = [Spread((1,) * size, rank, None) for rank in range(size)] if size > 1 else [None]
        made = [Heads.of_groups(SimpleNamespace(spread=one), 12, 2) for one in spreads]
        assert tuple(one.count for one in made) == counts and {one.repeats for one in made} == {repeats}
        # heads, then groups of two numbers each: what a process has of both belongs together
        weight = torch.cat([torch.arange(12) // 6, torch.tensor([0, 0, 1, 1])])
        parts = [
            one.own_joined(weight, [12, 4], {1}).split([12 // one.units * one.count, 2 * one.count]) for one in made
        ]
        assert torch.equal(torch.cat([heads for heads, _ in parts]), weight[:12])
        for heads, groups in parts:
            assert torch.equal(groups[::2].repeat_interleave(len(heads) // (len(groups) // 2)), heads)


def test_one_process_exchanges_nothing():
    heads, x = Heads(SimpleNamespace(spread=None), 5), torch.zeros(4, 10)
    assert heads.gather(x) is x and heads.give_back(x) is x and heads.own(x) is x
    assert heads.gather_joined(x, [5, 5]) is x and heads.own_joined(x, [2, 2]) is x


def compare(models: list[str]) -> dict[str, dict[str, float]]:
    """As each of the processes does it."""
    from dataclasses import replace

    import torch.distributed as dist
    import transformers

    from hybrid_ft.hybrid_model.door.layout import build_layout
    from hybrid_ft.hybrid_model.door.spread import summed
    from hybrid_ft.hybrid_model.families.known import family_of
    from hybrid_ft.hybrid_model.lay_flat import lay_flat

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, size, found = dist.get_rank(), dist.get_world_size(), {}
    for name in models:
        sizes, dtype = MODELS[name]
        torch.manual_seed(0)
        kind = name.split()[0]
        config = transformers.CONFIG_MAPPING[kind](vocab_size=96, pad_token_id=0, eos_token_id=1, **sizes)
        cls = getattr(transformers, family_of(config).model_types[kind])
        model = lay_flat(cls(config)).to(getattr(torch, dtype)).train()
        for form, parents in forms_of(name).items():
            if form == "checkpointed":
                model.gradient_checkpointing_enable({"use_reentrant": False})
            layout = build_layout([31, 9, 1, 16], parents)
            ids, wanted = torch.randint(2, 96, (1, 57)), torch.randn(57, config.hidden_size, dtype=model.dtype)

            def of(layout, ids, wanted, model=model):
                model.zero_grad()
                hidden = model.base_model(input_ids=ids, layout=layout, use_cache=False).last_hidden_state[0]
                scores = (hidden * wanted).sum(-1)
                # a loss of each token's own, and one of all of them together, of which each process has its share
                whole = summed(scores.square().sum(), layout.spread).sqrt() / (1 if layout.spread is None else size)
                loss = scores.sum() + whole
                loss.backward()
                pairs = ((n, p) for n, p in model.named_parameters() if p.requires_grad)
                return loss.detach(), scores.detach(), {n: p.grad.clone() for n, p in pairs if p.grad is not None}

            loss, scores, gradients = of(layout, ids, wanted)
            spread = Spread.of(57, size, rank, dist.group.WORLD)
            mine, own, parts = of(replace(layout, spread=spread), ids[:, spread.own], wanted[spread.own])
            dist.all_reduce(mine)
            assert parts.keys() == gradients.keys()
            errors = {"weights": 0.0, "norms": 0.0, "loss": abs(float((mine - loss) / loss))}
            errors["sum"] = float((own - scores[spread.own]).norm() / scores.norm())
            for parameter, whole in gradients.items():
                dist.all_reduce(parts[parameter])
                of_kind = "norms" if "norm" in parameter else "weights"
                error = float((parts[parameter] - whole).norm() / whole.norm().clamp(min=1e-30))
                errors[of_kind] = max(errors[of_kind], error)
            found[f"{name} {form}"] = errors
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    print(json.dumps(compare(sys.argv[1:])))
