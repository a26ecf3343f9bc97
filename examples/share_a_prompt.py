"""Reinforcement learning with several answers to one prompt: the prompt is computed once, not once an answer.

    python examples/share_a_prompt.py [--prompt TOKENS] [--answers LENGTH ...]

A layer attends one packed sequence, the prompt and behind it all answers, under `mask.shared_prefix`; and the same
answers as they are usually packed, each behind a copy of the prompt. Outputs and the gradient of the layer's weights
are the same; the table says what they take.
"""

from __future__ import annotations

import argparse

import torch

from cute_attn import IntervalMask, flex_flash_attn_func, mask

HEADS, HEAD_DIM = 4, 64
WIDTH = HEADS * HEAD_DIM


def layer(x: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor, seen: IntervalMask) -> torch.Tensor:
    q, k, v = (x @ weight).unflatten(1, (3, HEADS, HEAD_DIM)).unbind(1)
    q, k = (with_positions(heads, positions) for heads in (q, k))
    return flex_flash_attn_func(q, k, v, seen)[0].flatten(1)


def with_positions(heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Every answer follows the prompt, so that their positions begin at its end."""
    angle = positions[:, None, None] * 100.0 ** -torch.linspace(0, 1, HEAD_DIM // 2, device=heads.device)
    a, b = heads.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).to(heads.dtype)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    prompt, lengths = options.prompt, options.answers
    tokens = torch.randn(prompt + sum(lengths), WIDTH, device=device, dtype=dtype)
    weight = (torch.randn(WIDTH, 3 * WIDTH, device=device, dtype=dtype) * WIDTH**-0.5).requires_grad_()
    answers = tokens[prompt:].split(lengths)

    shared = mask.shared_prefix(len(tokens), prefix_length=prompt, lengths=lengths, device=device)
    positions = torch.cat([torch.arange(prompt), *(prompt + torch.arange(n) for n in lengths)]).to(device)
    out = layer(tokens, weight, positions, shared)[prompt:]
    (gradient,) = torch.autograd.grad(out.square().sum(), weight)

    copies = torch.cat([torch.cat([tokens[:prompt], answer]) for answer in answers])
    ends = torch.tensor([0, *(prompt + n for n in lengths)]).cumsum(0)
    apart = mask.causal_documents(len(copies), cu_seqlens=ends, device=device)
    positions = torch.cat([torch.arange(prompt + n) for n in lengths]).to(device)
    packed = layer(copies, weight, positions, apart).split([prompt + n for n in lengths])
    repeated = torch.cat([part[prompt:] for part in packed])
    (expected,) = torch.autograd.grad(repeated.square().sum(), weight)

    print(f"{'':16} {'tokens':>9} {'pairs':>11}")
    for name, kind, count in (("prompt shared", shared, tokens), ("prompt repeated", apart, copies)):
        print(f"{name:16} {len(count):9,} {kind.area():11,}")
    saved = len(copies) / len(tokens), apart.area() / shared.area()
    print(f"{'ratio':16} {saved[0]:9.2f} {saved[1]:11.2f}")
    off = max(relative_error(out, repeated), relative_error(gradient, expected))
    print(f"outputs and gradients differ by {off:.1e}")
    if not off < (0.02 if dtype == torch.bfloat16 else 1e-4):
        raise SystemExit(1)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Several answers to one prompt, which is computed once.")
    parser.add_argument("--prompt", type=int, default=600, metavar="TOKENS", help="(default 600)")
    parser.add_argument("--answers", type=int, nargs="+", default=[100, 180, 60, 140], metavar="LENGTH")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
