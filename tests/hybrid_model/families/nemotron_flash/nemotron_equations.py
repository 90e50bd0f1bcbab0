"""Nemotron-Flash's layers by their equations, one token at a time."""

import math

import torch
from torch.nn import functional as F


def normed(x, weight, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def convolved(x, weight, bias=0.0):
    """x [T, D], weight [D, 1, W]."""
    width = weight.shape[-1]
    return F.silu(F.pad(x, (0, 0, width - 1, 0)).unfold(0, width, 1).mul(weight[:, 0]).sum(-1) + bias)


def delta_net(w, x, heads):
    q, k, v = (
        convolved(x @ w[f"{n}_proj.weight"].T, w[f"{n}_conv1d.weight"]).unflatten(-1, (heads, -1)) for n in "qkv"
    )
    q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
    beta = (x @ w["b_proj.weight"].T).sigmoid()
    state, out = x.new_zeros(heads, k.shape[-1], v.shape[-1]), []
    for t in range(len(x)):
        read = torch.einsum("hkv,hk->hv", state, k[t])
        state = state + torch.einsum("hk,hv->hkv", k[t], beta[t, :, None] * (v[t] - read))
        out.append(torch.einsum("hkv,hk->hv", state, q[t]) * k.shape[-1] ** -0.5)
    return normed(torch.stack(out), w["o_norm.weight"], 1e-5).flatten(1) @ w["o_proj.weight"].T


def mamba_2(w, x, head, state_size):
    inner, heads = w["norm.weight"].numel(), w["D"].numel()
    z, xbc, dt = (x @ w["in_proj.weight"].T).split([inner, inner + 2 * state_size, heads], -1)
    values, b, c = convolved(xbc, w["conv1d.weight"], w["conv1d.bias"]).split([inner, state_size, state_size], -1)
    dt, values = F.softplus(dt + w["dt_bias"]), values.unflatten(-1, (heads, head))
    state, out = x.new_zeros(heads, head, state_size), []
    for t in range(len(x)):
        decay = (-dt[t] * w["A_log"].exp()).exp()
        state = decay[:, None, None] * state + torch.einsum("h,hp,n->hpn", dt[t], values[t], b[t])
        out.append(state @ c[t] + w["D"][:, None] * values[t])
    return normed(torch.stack(out).flatten(1) * F.silu(z), w["norm.weight"], 1e-5) @ w["out_proj.weight"].T


def attention(w, x, config, layer):
    size, groups = 16, config.num_attention_heads // config.num_key_value_heads
    q, k, v = ((x @ w[f"{n}_proj.weight"].T).unflatten(-1, (-1, size)) for n in "qkv")
    q, k = normed(q, w["q_norm.weight"], 1e-6), normed(k, w["k_norm.weight"], 1e-6)
    base = 10000.0 * (2 * 512 / 128 - 1) ** (size / (size - 2))
    angles = torch.arange(len(x)).double()[:, None] / base ** (torch.arange(0, size, 2).double() / size)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]

    def turned(part):
        y = torch.complex(part[..., : size // 2], part[..., size // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    q, k, v = turned(q), turned(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out = torch.empty_like(q)
    for t in range(len(x)):
        # in all layers but the global ones a query sees 16 tokens before its own
        first = 0 if layer == 5 else max(0, t - 16)
        scores = torch.einsum("hd,shd->hs", q[t], k[first : t + 1]) / math.sqrt(size)
        out[t] = torch.einsum("hs,shd->hd", scores.softmax(-1), v[first : t + 1])
    return out.flatten(1) @ w["o_proj.weight"].T
