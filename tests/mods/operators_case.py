"""One function for every operator that mods may use: what it computes on tensors is what its graph must."""

import torch
import torch.nn.functional as F

OPERATORS = {
    "add": lambda s, b, h, q, k: s + q + 2 + (1 + k) + torch.add(s, q, alpha=3),
    "sub": lambda s, b, h, q, k: s - q - (2 - k) - torch.sub(q, k, alpha=2) + torch.rsub(q, k),
    "mul": lambda s, b, h, q, k: s * q * 2.5 * (3 * k),
    "div": lambda s, b, h, q, k: s / (q + 1) + 2 / (k + 1) + q / 7 + torch.div(q, 3, rounding_mode="floor"),
    "truncating div": lambda s, b, h, q, k: s + torch.div(q - k, 3, rounding_mode="trunc"),
    "floor_divide": lambda s, b, h, q, k: s + (q - k) // 3 + 7 // (q + 1) + (q * 0.3) // 0.5,
    "remainder": lambda s, b, h, q, k: s + (q - k) % 3 + 7 % (k + 1) + s % 0.3,
    "fmod": lambda s, b, h, q, k: torch.fmod(s, 0.3) + torch.fmod(q - k, 4),
    "pow": lambda s, b, h, q, k: s**2 + s**3 + (s.abs() + 1) ** 0.5 + (s.abs() + 1) ** -0.5 + 2**s + s.abs() ** 1.7,
    "pow of ints": lambda s, b, h, q, k: s + q**2 + torch.pow(k, 3) + s**1,
    "neg abs sign": lambda s, b, h, q, k: -s + abs(q - k) + s.abs() + s.sign() + torch.sign(q - k) + (+s),
    "comparisons": lambda s, b, h, q, k: s + (q >= k) + (q > k) * 2 + (q < k) * 3 + (q <= k) * 4 + s.gt(q) + torch.ge(k, 3),
    "equality": lambda s, b, h, q, k: torch.where((q == k) | (q != k + 1) & (s == s), s, 0),
    "logic": lambda s, b, h, q, k: s + (((q > 2) & (k > 3)) ^ (q == k) | (h > 1)) + torch.logical_or(q > 1, k) * 1,
    "not": lambda s, b, h, q, k: s + ~(q > 2) + ~k,
    "logic of numbers": lambda s, b, h, q, k: s + torch.logical_and(q, k) + q.logical_not() + torch.logical_xor(q, k),
    "bits": lambda s, b, h, q, k: s + (q & 6) + (k | 1) + (q ^ k) + (q << 2) + (k >> 1) + (1 << h),
    "where": lambda s, b, h, q, k: torch.where(q > k, s, 2) + torch.where(q > k, 1, k) + s.where(k > q, q),
    "masked_fill": lambda s, b, h, q, k: s.masked_fill(q < k, -1e9),
    "minimum maximum": lambda s, b, h, q, k: torch.minimum(s, q * 0.1) + torch.maximum(q, k) + torch.max(s, s * 2),
    "clamp": lambda s, b, h, q, k: s.clamp(-0.5, 0.7) + (q - k).clamp(max=3) + torch.clamp(k, min=2) + s.clamp_min(0),
    "exponentials": lambda s, b, h, q, k: s.exp() + torch.exp2(s) + torch.expm1(s) + q.exp2(),
    "logarithms": lambda s, b, h, q, k: (s.abs() + 1).log() + torch.log2(q + 1) + torch.log1p(s.abs()),
    "roots": lambda s, b, h, q, k: (s.abs() + 1).sqrt() + torch.rsqrt(q + 1.0) + (k + 1).reciprocal() + s.square(),
    "sigmoids": lambda s, b, h, q, k: s.tanh() + torch.sigmoid(s) + torch.erf(s) + s.sin() + torch.cos(q),
    "gelu": lambda s, b, h, q, k: F.gelu(s) + F.gelu(s, approximate="tanh"),
    "activations": lambda s, b, h, q, k: F.silu(s) + F.relu(s) + s.relu() + F.softplus(s) + F.softplus(s, 2.0, 1.0),
    "rounding": lambda s, b, h, q, k: (s * 3).floor() + torch.ceil(s) + (s * 5).round() + s.trunc() + q.floor(),
    "isnan": lambda s, b, h, q, k: s + torch.isnan(s / 0 * 0) + torch.isinf(s / 0) * 2,
    "casts": lambda s, b, h, q, k: (s * 9).to(torch.int32) + (s * 9).long() + (q > k).float() + q.bool() + k.type_as(s),
    "new numbers": lambda s, b, h, q, k: s * q.new_ones(()) + k.new_zeros(()) + s.new_full((), 2.5) + q.new_ones(()),
    "like": lambda s, b, h, q, k: torch.full_like(s, 3.0) + torch.zeros_like(s) * s + s.new_tensor(1.5) + s.clone(),
}  # fmt: skip
