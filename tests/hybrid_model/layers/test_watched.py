"""Hooks, wrappers, adapters and offloading act on our model as they do on transformers' own, in decoding too."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import IA3Config, LNTuningConfig, LoraConfig, get_peft_model

GREEDY = {"do_sample": False, "max_new_tokens": 6}
MODULES = [
    "model",
    "model.embed_tokens",
    "model.layers.0",
    "model.layers.0.input_layernorm",
    "model.layers.0.post_attention_layernorm",
    "model.layers.0.linear_attn",
    "model.layers.0.linear_attn.q_proj",
    "model.layers.0.linear_attn.b_proj",
    "model.layers.0.linear_attn.conv1d",
    "model.layers.0.linear_attn.o_norm",
    "model.layers.0.linear_attn.o_proj",
    "model.layers.0.mlp",
    "model.layers.0.mlp.gate_proj",
    "model.layers.0.mlp.act_fn",
    "model.layers.1",
    "model.layers.1.self_attn",
    "model.layers.1.self_attn.q_norm",
    "model.layers.1.self_attn.k_proj",
    "model.layers.1.post_attention_layernorm",
    "model.layers.1.post_feedforward_layernorm",
    "model.norm",
    "lm_head",
]


ROWS = {"one row": [7], "equal rows": [6, 6], "padded rows": [3, 8, 5]}


@pytest.fixture(scope="module")
def pair(make_pair):
    return make_pair(seed=5, dtype=torch.float64)


def batch(lengths):
    """Left-padded rows."""
    width = max(lengths)
    tokens = torch.randint(1, 61, (len(lengths), width), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(width) >= width - torch.tensor(lengths)[:, None]).long()
    return {"input_ids": tokens * mask, "attention_mask": mask}


def first(out):
    return out[0] if isinstance(out, tuple) else getattr(out, "last_hidden_state", out)


def put(out, changed):
    if isinstance(out, tuple):
        return (changed, *out[1:])
    if hasattr(out, "last_hidden_state"):
        out.last_hidden_state = changed
        return out
    return changed


def scale_last_place(module, args, out):
    """Doubles what a module gives at the last place of each row, as steering does."""
    x = first(out).clone()
    if x.ndim == 3:
        x[:, -1] *= 2
    else:
        x *= 2
    return put(out, x)


def remove(module, args, out):
    return put(out, torch.zeros_like(first(out)))


@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        # every module on padded rows; on one row and on equal ones every fourth, in turn
        pytest.param(name, lengths, id=f"{name}, {kind}", marks=[] if number in (at % 4, 2) else pytest.mark.slow)
        for at, name in enumerate(MODULES)
        for number, (kind, lengths) in enumerate(ROWS.items())
    ],
)
def test_a_hook_is_called_as_often_and_changes_as_much(pair, in_float64, name, lengths):
    counts, answers = [], []
    with in_float64():
        for model in pair:
            module, calls = model.get_submodule(name), []
            for change in (scale_last_place, remove):
                handles = [module.register_forward_hook(change)]
                handles.append(module.register_forward_hook(lambda *_, calls=calls: calls.append(1)))
                found = model.generate(**batch(lengths), **GREEDY, output_logits=True, return_dict_in_generate=True)
                for handle in handles:
                    handle.remove()
                answers.append(torch.stack(found.logits))
            counts.append(len(calls))
    assert counts[0] == counts[1]
    for theirs, ours in zip(answers[:2], answers[2:]):
        assert float((ours - theirs).abs().max()) < 1e-9


@pytest.mark.parametrize("name", [name for name in MODULES if "conv1d" not in name])
def test_a_module_is_given_what_transformers_gives_it(pair, in_float64, name):
    """Shapes and values of the first argument and of the result, in prefill and in a step."""
    seen = []
    with in_float64():
        for model in pair:
            calls = []

            def look(module, args, kwargs, out, calls=calls):
                given = args[0] if args else kwargs.get("hidden_states", kwargs.get("input_ids"))
                calls.append((given.clone(), first(out).clone()))

            handle = model.get_submodule(name).register_forward_hook(look, with_kwargs=True)
            model.generate(**batch([7]), do_sample=False, max_new_tokens=3)
            handle.remove()
            seen.append(calls)
    assert len(seen[0]) == len(seen[1]) == 3
    for theirs, ours in zip(*seen):
        for their, our in zip(theirs, ours):
            assert our.shape == their.shape
            assert torch.allclose(our, their, rtol=1e-9, atol=1e-9)


def test_a_hook_of_all_modules_is_called(pair, in_float64):
    """One of torch.nn.modules.module sees every norm and activation, as profilers do."""
    with in_float64():
        counts = []
        for model in pair:
            names = {module: name for name, module in model.named_modules()}
            calls = []
            handle = torch.nn.modules.module.register_module_forward_hook(
                lambda module, *_, names=names, calls=calls: calls.append(names.get(module, ""))
            )
            try:
                model.generate(**batch([5]), do_sample=False, max_new_tokens=3)
            finally:
                handle.remove()
            # transformers makes activations of its own on the way, which belong to no model
            counts.append(sorted(filter(None, calls)))
    assert counts[0] == counts[1]


NORMS = ["input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm", "norm"]
ADAPTERS = {
    "norms": lambda: LNTuningConfig(task_type="CAUSAL_LM", target_modules=NORMS),
    "o_norm": lambda: LNTuningConfig(task_type="CAUSAL_LM", target_modules=["o_norm"]),
    "q_norm and k_norm": lambda: LNTuningConfig(task_type="CAUSAL_LM", target_modules=["q_norm", "k_norm"]),
    "IA3": lambda: IA3Config(
        task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "LoRA and whole norms": lambda: LoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=[*NORMS, "o_norm", "q_norm", "conv1d"]
    ),
    "LoRA and whole mixers": lambda: LoraConfig(
        r=2, task_type="CAUSAL_LM", target_modules=["down_proj"], modules_to_save=["linear_attn", "self_attn"]
    ),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_adapters_train_and_generate_as_on_transformers_model(make_pair, in_float64, assert_gradients, kind):
    found = []
    with in_float64():
        for base in make_pair(seed=5, dtype=torch.float64):
            torch.manual_seed(0)
            model = get_peft_model(base, ADAPTERS[kind]())
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    generator = torch.Generator().manual_seed(len(name))
                    noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                    parameter.data += 0.05 * noise
            tokens = batch([9, 4])
            model.train()
            model(**tokens).logits[tokens["attention_mask"].bool()].square().sum().backward()
            gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
            assert all(gradient is not None for gradient in gradients.values())
            model.eval()
            found.append((gradients, model.generate(**tokens, **GREEDY)))
    (expected, their_tokens), (got, our_tokens) = found
    assert_gradients(got, expected, 1e-10)
    assert torch.equal(our_tokens, their_tokens)


@pytest.mark.parametrize("how", ["cpu", "disk", "device map"])
def test_offloaded_weights_are_brought_in_for_every_module(make_pair, tmp_path, how):
    model = make_pair(seed=5)[1]
    tokens = batch([7, 4])
    expected = model.generate(**tokens, **GREEDY)
    logits = model(**tokens, use_cache=False).logits
    offloaded = copy.deepcopy(model)
    if how == "cpu":
        cpu_offload(offloaded, execution_device=torch.device("cpu"))
    elif how == "disk":
        disk_offload(offloaded, str(tmp_path), execution_device=torch.device("cpu"))
    else:
        places = {f"model.layers.{i}": where for i, where in enumerate(["disk", "cpu", "disk"])}
        places |= {"model.embed_tokens": "cpu", "model.norm": "disk", "lm_head": "cpu"}
        dispatch_model(offloaded, places, main_device="cpu", offload_dir=str(tmp_path))
    if how != "device map":
        assert {parameter.device.type for parameter in offloaded.parameters()} == {"meta"}
    assert torch.equal(offloaded(**tokens, use_cache=False).logits, logits)
    assert torch.equal(offloaded.generate(**tokens, **GREEDY), expected)
