"""Inference with a paged cache: prefill, then decoding with speculation, sequences of different lengths in one batch.

One layer of attention stands for a model. The prompts come in chunks: each chunk is appended to the pages of its
sequence and attends all that is there. Each step a draft guesses four tokens a sequence; all of them are appended and
attended at once, and some are accepted: the length says how many, and what lies beyond it is never read again.

    python examples/serve_with_a_cache.py [--steps N] [--page-size N]

Every result is compared with attention that is computed anew over the whole sequence.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch

from cute_attn import flash_attn_with_kvcache

HEADS_Q, HEADS_K, HEAD_DIM = 8, 2, 64
PROMPTS = (5, 33, 150)
CHUNK = 96  # tokens of a prompt that are attended at once
GUESSES = 4
DTYPE = torch.bfloat16


@dataclass
class Pages:
    """A pool of pages that sequences take as they grow."""

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor  # int32 (batch, max_pages), -1 where a sequence has none yet
    free: list[int]

    @classmethod
    def empty(cls, batch: int, most_tokens: int, page_size: int, device: torch.device) -> Pages:
        """Pages for `most_tokens` a sequence; nobody initialises them."""
        columns = -(-most_tokens // page_size)
        shape = batch * columns, page_size, HEADS_K, HEAD_DIM
        k, v = (torch.empty(shape, dtype=DTYPE, device=device) for _ in range(2))
        table = torch.full((batch, columns), -1, dtype=torch.int32, device=device)
        return cls(k, v, table, torch.randperm(batch * columns).tolist())

    def reserve(self, sequence: int, tokens: int) -> None:
        """Gives a sequence the pages that so many tokens need."""
        for column in range(-(-tokens // self.k.shape[1])):
            if self.table[sequence, column] < 0:
                self.table[sequence, column] = self.free.pop()


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    batch, most = len(PROMPTS), max(PROMPTS) + GUESSES * (options.steps + 1)
    q, k, v = (torch.randn(batch, most, h, HEAD_DIM, dtype=DTYPE, device=device) for h in (HEADS_Q, HEADS_K, HEADS_K))
    pages = Pages.empty(batch, most, options.page_size, device)
    lengths = torch.zeros(batch, dtype=torch.int32, device=device)

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
    print(f"prefill of {batch} prompts, {', '.join(map(str, PROMPTS))} tokens: off by {worst:.1e}")

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
        print(f"step {step}: {accepted.tolist()} of {GUESSES} guesses accepted, off by {worst:.1e}")
    print(f"lengths are now {lengths.tolist()}, {len(pages.free)} pages are left")


def off(out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """The largest error of the last tokens' attention, (tokens, heads, head_dim), against float64."""
    rows, keys = q.shape[0], k.shape[0]
    q, k, v = (
        x.double() for x in (q, k.repeat_interleave(HEADS_Q // HEADS_K, 1), v.repeat_interleave(HEADS_Q // HEADS_K, 1))
    )
    seen = torch.ones(rows, keys, dtype=torch.bool, device=q.device).tril(keys - rows)
    scores = torch.einsum("qhd,khd->hqk", q, k) * HEAD_DIM**-0.5
    exact = torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)
    error = (out.double() - exact).abs().max().item()
    if not error < 0.03:
        raise SystemExit(f"attention is off by {error:.3g}")
    return error


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Decoding with a paged cache and speculation, checked.")
    parser.add_argument("--steps", type=int, default=4, help="of decoding (default 4)")
    parser.add_argument("--page-size", type=int, default=16, help="tokens of a page (default 16)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
