"""Scores of the field as functions of single pairs: what docs/scores.md shows."""

import math

import torch

LENGTH, HEADS, BATCH = 1024, 4, 2  # of what the tensors here describe

numbers = torch.Generator().manual_seed(0)
DISTANCE = torch.arange(1 - LENGTH, LENGTH)
SLOPES = torch.exp2(-8 * torch.arange(1, HEADS + 1) / HEADS)
# Stand for what training would have found:
RELATIVE = torch.stack(
    [torch.cos(DISTANCE / (20.0 * (h + 1))) * torch.exp(-DISTANCE.abs() / 300) for h in range(HEADS)]
)
BUCKET_BIAS = torch.randn(32, HEADS, generator=numbers).cumsum(0).flip(0) * 0.5
TEMPERATURE = torch.tensor([-0.7, -0.2, 0.2, 0.7])
GATE = torch.tensor([1.5, 0.5, -0.5, -1.5])
OF_KEY = torch.randn(BATCH, LENGTH, generator=numbers)
# What is known before:
WAVES = torch.arange(LENGTH)[:, None] / 10000 ** (torch.arange(64) / 64)
SANDWICH = torch.cos(WAVES).sum(1) - 64  # of a distance
DOCUMENT = torch.bucketize(torch.arange(LENGTH), torch.tensor([200, 520, 900]), right=True)


def alibi(score, b, h, q_idx, kv_idx):
    """Attention with linear biases: the farther a key, the less it counts, in each head at its own rate."""
    return score + SLOPES[h] * (kv_idx - q_idx)


def relative_bias(score, b, h, q_idx, kv_idx):
    """A learned bias for each head and distance (Swin, and many after it)."""
    return score + RELATIVE[h, q_idx - kv_idx + LENGTH - 1]


def t5_buckets(score, b, h, q_idx, kv_idx):
    """A learned bias for each head and bucket of distances: near ones alone, far ones by their logarithm (T5)."""
    back = q_idx - kv_idx
    far = 8 + (torch.log(back.abs() / 8) / math.log(128 / 8) * 8).to(torch.int32)
    bucket = torch.where(back.abs() < 8, back.abs(), torch.clamp(far, max=15))
    return score + BUCKET_BIAS[bucket + 16 * (back < 0), h]


def softcap(score, b, h, q_idx, kv_idx):
    """Scores that never pass 20 (Gemma 2, Grok 1)."""
    return 20 * torch.tanh(score / 20)


def sandwich(score, b, h, q_idx, kv_idx):
    """The product of two sinusoidal position embeddings, without their tokens (Sandwich)."""
    return score + SANDWICH[(q_idx - kv_idx).abs()] * ((h + 1) / (8 * HEADS))


def retention(score, b, h, q_idx, kv_idx):
    """Scores themselves fade with the distance, as in a retention layer, before the softmax."""
    return score * torch.exp2((q_idx - kv_idx).abs() * (-1 / (16 << h)))


def temperature(score, b, h, q_idx, kv_idx):
    """A learned temperature for each head."""
    return score * torch.exp(TEMPERATURE)[h]


def other_documents(score, b, h, q_idx, kv_idx):
    """Other documents of a packed sequence are seen, but count less."""
    return torch.where(DOCUMENT[q_idx] == DOCUMENT[kv_idx], score, score - 3)


def key_bias(score, b, h, q_idx, kv_idx):
    """How much each token matters to all that look at it, learned or given (forgetting, salience)."""
    return score + OF_KEY[b, kv_idx]


def gated_relative(score, b, h, q_idx, kv_idx):
    """A relative bias that each head learns how much to heed; it begins with a gate of 0."""
    return score + torch.tanh(GATE)[h] * RELATIVE[0, q_idx - kv_idx + LENGTH - 1]
