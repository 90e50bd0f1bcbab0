"""Our logits and every parameter's gradient against plain transformers, on the same random weights."""

import copy

import pytest
import torch

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}
DELTA, FULL = "linear_attention", "full_attention"
GROUPED = {"linear_num_key_heads": 2, "linear_num_value_heads": 6}
OLMO_HEADS = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 96,
    "linear_value_head_dim": 192,
    "hidden_size": 64,
}

# rows, tokens, config
CASES = [
    (1, 1, {}),
    (1, 2, {"rope_parameters": dict(ROPE)}),
    (2, 3, {"tie_word_embeddings": True}),
    (3, 1, GROUPED),
    (1, 63, {}),
    (1, 64, {"num_key_value_heads": 2}),
    (2, 65, {"num_key_value_heads": 1, "rope_parameters": dict(ROPE)}),
    (1, 100, GROUPED),
    (2, 40, {"linear_num_key_heads": 1, "linear_num_value_heads": 4, "rope_parameters": dict(ROPE)}),
    (1, 130, OLMO_HEADS),
    (2, 33, OLMO_HEADS | {"rope_parameters": dict(ROPE)}),
    (1, 70, OLMO_HEADS | {"linear_num_value_heads": 4, "tie_word_embeddings": True}),
    (1, 300, {}),
    (1, 300, {"rope_parameters": dict(YARN), "tie_word_embeddings": True}),
    (2, 50, {"rope_parameters": dict(LINEAR)}),
    (1, 80, {"linear_allow_neg_eigval": False}),
    (2, 30, {"linear_conv_kernel_dim": 2}),
    (1, 5, {"linear_conv_kernel_dim": 7}),
    (2, 45, {"attention_bias": True, "num_key_value_heads": 2}),
    (1, 90, {"rms_norm_eps": 1e-3}),
    (2, 20, {"layer_types": [FULL, FULL, DELTA, DELTA], "num_hidden_layers": 4}),
    (1, 55, {"layer_types": [DELTA, DELTA, DELTA, FULL], "num_hidden_layers": 4, "tie_word_embeddings": True}),
    (1, 48, {"linear_key_head_dim": 5, "linear_value_head_dim": 7}),
    (2, 64, {"hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "rope_parameters": dict(ROPE)}),
]


def name(case: tuple) -> str:
    rows, tokens, fields = case
    return f"{rows}x{tokens}-" + "-".join(key.removeprefix("linear_") for key in fields)


def run(model, rows, tokens):
    generator = torch.Generator().manual_seed(1)
    input_ids, targets = torch.randint(0, 61, (2, rows, tokens), generator=generator)
    logits = model(input_ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    return logits, {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", CASES, ids=map(name, CASES))
def test_logits_and_gradients_equal_transformers(case, make_pair, relative, assert_gradients, in_float64):
    """In float64 to rounding. In float32 to 1e-5, or where transformers itself is further than a quarter of that from
    the float64 gradient, to four times its own error: a gradient may be a small sum of large terms. Of one that is
    zero, as a query's to a single key, rounding alone is left, and transformers' is the largest of four weights."""
    rows, tokens, fields = case
    seed = CASES.index(case)
    with in_float64():
        plain, ours = make_pair(seed, dtype=torch.float64, **fields)
        (truth, true_gradients), (got, gradients) = run(plain, rows, tokens), run(ours, rows, tokens)
    assert relative(got, truth) < 1e-12
    assert_gradients(gradients, true_gradients, 1e-11)

    plain, ours = make_pair(seed, **fields)
    (expected, expected_gradients), (got, gradients) = run(plain, rows, tokens), run(ours, rows, tokens)
    assert relative(got, expected) < 1e-5
    for key, true in true_gradients.items():
        allowed = 1e-5 * max(float(true.norm()), 1e-2 * float(true_gradients["model.embed_tokens.weight"].norm()))
        own = float((expected_gradients[key] - true).norm())
        if float(true.norm()) < 1e-12:
            others = (run(make_pair(seed + more, **fields)[0], rows, tokens)[1][key] for more in (1, 2, 3))
            own = max(own, *(float(other.norm()) for other in others))
        assert float((gradients[key] - true).norm()) <= max(allowed, 4 * own), key


@pytest.mark.parametrize("fields", [{"rope_parameters": dict(ROPE)}, OLMO_HEADS])
def test_bfloat16_errs_no_more_than_transformers(make_pair, in_float64, relative, fields):
    with in_float64():
        truth, true_gradients = run(make_pair(4, dtype=torch.float64, **fields)[0], 2, 90)
    plain, ours = make_pair(4, **fields)
    errors = []
    for model in (plain, ours):
        model.bfloat16()
        for name, parameter in model.named_parameters():
            if name.endswith(("A_log", "dt_bias")):
                parameter.data = parameter.data.float()
        logits, gradients = run(model, 2, 90)
        flat = torch.cat([gradients[key].double().flatten() for key in true_gradients])
        whole = torch.cat([gradient.flatten() for gradient in true_gradients.values()])
        errors.append((relative(logits, truth), relative(flat, whole)))
    (logits_bound, gradients_bound), (logits_error, gradients_error) = errors
    assert logits_error < 1.5 * logits_bound
    assert gradients_error < 1.5 * gradients_bound


@pytest.mark.parametrize("items", [None, 7])
def test_loss_of_padded_rows_equals_transformers(make_pair, relative, items):
    plain, ours = make_pair(2)
    input_ids = torch.randint(1, 61, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.tensor([[12], [5], [9]])).long()
    labels = input_ids.masked_fill(mask == 0, -100)
    labels[0, :6] = -100
    batch = {"input_ids": input_ids, "attention_mask": mask, "labels": labels, "use_cache": False}
    if items is not None:
        batch["num_items_in_batch"] = items
    assert relative(ours(**batch).loss, plain(**batch).loss) < 1e-6
    assert torch.equal(ours(**batch, return_dict=False)[0], ours(**batch).loss)
    last = ours(input_ids, use_cache=False, logits_to_keep=2).logits
    assert torch.equal(last, ours(input_ids, use_cache=False).logits[:, -2:])


def test_a_copy_is_a_model_of_its_own(make_pair):
    ours = make_pair(2)[1]
    tokens = torch.arange(1, 9)[None]
    ours.generate(tokens, max_new_tokens=3, do_sample=False)
    copied = copy.deepcopy(ours)
    with torch.no_grad():
        copied.model.layers[0].mlp.up_proj.weight.zero_()
    changed = copied(tokens, use_cache=False).logits
    assert not torch.allclose(changed, ours(tokens, use_cache=False).logits)
    ours.load_state_dict(copied.state_dict())
    assert torch.equal(ours(tokens, use_cache=False).logits, changed)
