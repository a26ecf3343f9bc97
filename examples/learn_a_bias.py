"""A relative position bias that is learned: a table that a score_mod reads at the distance of query and key.

    python examples/learn_a_bias.py [--tokens N] [--steps N]

A teacher attends with ALiBi's slopes; a student has a table for each head, of zeros, and learns it from the teacher's
outputs alone. The gradient of the table is that of the attention kernel, summed over all pairs of a distance. It ends
with both biases as a picture.
"""

from __future__ import annotations

import argparse

import torch

from cute_attn import create_block_mask, flex_attention

HEADS, HEAD_DIM, FARTHEST = 4, 64, 32
RAMP = " .:-=+*#%@"


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    n = options.tokens
    seen = create_block_mask(causal, None, None, n, n, device=device)
    slopes = 2.0 ** -torch.arange(1, HEADS + 1, device=device)
    bias = torch.zeros(HEADS, FARTHEST + 1, device=device, requires_grad=True)

    def alibi(score, b, h, q_idx, kv_idx):
        return score - slopes[h] * (q_idx - kv_idx).clamp(0, FARTHEST)

    def learned(score, b, h, q_idx, kv_idx):
        return score + bias[h, (q_idx - kv_idx).clamp(0, FARTHEST)]

    optimizer = torch.optim.Adam([bias], lr=0.3)
    losses = []
    for _ in range(options.steps):
        q, k, v = (torch.randn(2, HEADS, n, HEAD_DIM, device=device, dtype=dtype) for _ in range(3))
        wanted = flex_attention(q, k, v, alibi, seen)
        loss = (flex_attention(q, k, v, learned, seen) - wanted).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.1e} -> {losses[-1]:.1e} in {options.steps} steps; weight exp(bias) by distance:")

    distance = torch.arange(FARTHEST + 1, device=device)
    for h in range(HEADS):
        found = (bias[h] - bias[h, 0]).exp().detach()  # a softmax does not know what is added to all scores
        for name, weights in (("ALiBi", (-slopes[h] * distance).exp()), ("learned", found)):
            shades = (weights.clamp(0, 1) * (len(RAMP) - 1)).round().int().tolist()
            print(f"head {h} {name:>8} |{''.join(RAMP[shade] for shade in shades)}|")
    if not losses[-1] < losses[0] / 10:
        raise SystemExit("the bias was not learned")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A relative position bias, learned through flex_attention.")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="(default 128)")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="(default 60)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
