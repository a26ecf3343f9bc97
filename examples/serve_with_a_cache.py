"""Inference with a paged cache: prefill, then decoding with speculation, sequences of different lengths in one batch.

    python examples/serve_with_a_cache.py [--steps N] [--page-size N]

One layer of attention stands for a model. Each chunk of a prompt is appended to the pages of its sequence and attends
all that is there. Each step a draft guesses four tokens a sequence; all are appended and attended at once, and some are
accepted: the length says how many, and what lies beyond is never read again. Every result is compared with attention
computed anew over the whole sequence; the table says what each sequence has, and how far off the worst result is.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import scaled_dot_product_attention

from cute_attn import flash_attn_with_kvcache

HEADS_Q, HEADS_K, HEAD_DIM = 8, 2, 64
PROMPTS = (5, 33, 150)
CHUNK = 96  # tokens of a prompt that are attended at once
GUESSES = 4
DTYPE = torch.bfloat16


class Pages:
    """A pool of pages that sequences take as they grow: of table, int32 (batch, max_pages), -1 is none yet."""

    def __init__(self, batch: int, most_tokens: int, page_size: int, device: torch.device) -> None:
        columns = -(-most_tokens // page_size)
        shape = batch * columns, page_size, HEADS_K, HEAD_DIM
        self.k, self.v = (torch.empty(shape, dtype=DTYPE, device=device) for _ in range(2))  # nobody initialises them
        self.table = torch.full((batch, columns), -1, dtype=torch.int32, device=device)
        self.free = torch.randperm(batch * columns).tolist()

    def reserve(self, sequence: int, tokens: int) -> None:
        """Gives a sequence the pages that so many tokens need."""
        for column in range(-(-tokens // self.k.shape[1])):
            if self.table[sequence, column] < 0:
                self.table[sequence, column] = self.free.pop()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Decoding with a paged cache and speculation, checked.")
    parser.add_argument("--steps", type=int, default=4, help="of decoding (default 4)")
    parser.add_argument("--page-size", type=int, default=16, help="tokens of a page (default 16)")
    options = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    batch, most = len(PROMPTS), max(PROMPTS) + GUESSES * (options.steps + 1)
    q, k, v = (torch.randn(batch, most, h, HEAD_DIM, dtype=DTYPE, device=device) for h in (HEADS_Q, HEADS_K, HEADS_K))
    pages = Pages(batch, most, options.page_size, device)
    lengths = torch.zeros(batch, dtype=torch.int32, device=device)

    print(f"{'':10} {'lengths':>14} {'accepted':>10} {'pages left':>11} {'off by':>8}")
    worst = 0.0
    for i, prompt in enumerate(PROMPTS):
        pages.reserve(i, prompt)
        row = slice(i, i + 1)
        places = {"cache_seqlens": lengths[row], "page_table": pages.table[row]}
        for begin in range(0, prompt, CHUNK):
            end = min(begin + CHUNK, prompt)
            new = [x[row, begin:end] for x in (q, k, v)]
            out = flash_attn_with_kvcache(new[0], pages.k, pages.v, *new[1:], **places, causal=True)
            worst = max(worst, off(out[0], q[i, begin:end], k[i, :end], v[i, :end]))
            lengths[i] = end
    print(f"{'prompts':10} {lengths.tolist()!s:>14} {'all':>10} {len(pages.free):11} {worst:8.1e}")

    for step in range(options.steps):
        begins = lengths.tolist()
        for i, begin in enumerate(begins):
            pages.reserve(i, begin + GUESSES)
        guessed = [torch.stack([x[i, n : n + GUESSES] for i, n in enumerate(begins)]) for x in (q, k, v)]
        out = flash_attn_with_kvcache(
            guessed[0], pages.k, pages.v, *guessed[1:], cache_seqlens=lengths, page_table=pages.table, causal=True
        )
        worst = max(off(out[i], guessed[0][i], k[i, : n + GUESSES], v[i, : n + GUESSES]) for i, n in enumerate(begins))
        accepted = torch.randint(1, GUESSES + 1, (batch,), dtype=torch.int32, device=device)
        lengths += accepted
        columns = f"{lengths.tolist()!s:>14} {accepted.tolist()!s:>10} {len(pages.free):11} {worst:8.1e}"
        print(f"step {step:<5} {columns}")


def off(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """The largest error of the last tokens' attention, (tokens, heads, head_dim), against float64."""
    seen = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    exact = scaled_dot_product_attention(q[None], k[None], v[None], seen, enable_gqa=True)[0].transpose(0, 1)
    error = (out.double() - exact).abs().max().item()
    if not error < 0.03:
        raise SystemExit(f"attention is off by {error:.3g}")
    return error


if __name__ == "__main__":
    main()
