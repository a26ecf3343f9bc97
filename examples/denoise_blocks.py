"""A training step of block diffusion: every block is denoised behind the clean text before it, all in one forward.

    python examples/denoise_blocks.py [--tokens N] [--block N] [--png FILE]

The sequence is n noisy tokens and the same n tokens clean. `mask.block_diffusion` lets a noisy block attend itself and
the clean blocks before it, so that one call stands for n / block forwards, one for each block. These are computed too,
and compared. It ends with the mask as a picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cute_attn import flex_flash_attn_func, mask
from cute_attn.mask.draw import draw_png

HEADS_Q, HEADS_K, HEAD_DIM = 4, 2, 64


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    n, block = options.tokens, options.block
    heads = HEADS_Q, HEADS_K, HEADS_K
    q, k, v = (torch.randn(2 * n, h, HEAD_DIM, device=device, dtype=dtype, requires_grad=True) for h in heads)

    seen = mask.block_diffusion(2 * n, block_size=block, device=device)
    noisy = flex_flash_attn_func(q, k, v, seen)[0][:n]
    at_once = torch.autograd.grad(noisy.square().sum(), (q, k, v))

    parts = []
    for begin in range(0, n, block):
        end = min(begin + block, n)
        keys, values = (torch.cat([x[n : n + begin], x[begin:end]]) for x in (k, v))  # clean before it, then itself
        parts.append(flex_flash_attn_func(q[begin:end], keys, values, mask.full(end - begin, end, device=device))[0])
    one_by_one = torch.cat(parts)
    apart = torch.autograd.grad(one_by_one.square().sum(), (q, k, v))

    print(f"{len(parts)} forwards of {block} tokens are one of {2 * n}, with {seen.area():,} pairs of {4 * n * n:,}")
    off = max(relative_error(*pair) for pair in zip((noisy, *at_once), (one_by_one, *apart), strict=True))
    print(f"outputs and gradients differ by {off:.1e}")
    if not off < (0.02 if dtype == torch.bfloat16 else 1e-4):
        raise SystemExit(1)
    if options.png:
        print(f"the mask is drawn in {draw_png(seen, options.png, title='block diffusion')}")
    else:
        seen.draw(width=64)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A training step of block diffusion in one forward.")
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="of the text (default 256)")
    parser.add_argument("--block", type=int, default=32, metavar="N", help="tokens denoised together (default 32)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the mask here (default: as text)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
