"""Trains a small two-layer language model on packed documents, the sequence shared by several ranks.

    torchrun --nproc-per-node 4 examples/train_packed_documents.py

Every step packs new documents into one sequence and makes a key for it: which rank holds which tokens, and what it
needs from the others. Parameters are replicated; each rank computes the loss of its own tokens, and gradients of
parameters are summed over ranks. Rank 0 trains the same model alone beside it and prints both losses: they agree to
rounding. Exit code 1 if they do not.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from cute_attn import flex_flash_attn_func, mask
from cute_attn.dist import calc_attn, compute_pad_size, dispatch, get_position_ids, magi_attn_varlen_key, roll

VOCABULARY, WIDTH, HEADS_Q, HEADS_K, HEAD_DIM, LAYERS = 97, 64, 4, 2, 16, 2
CHUNK = 16  # tokens that stay together on a rank; a few hundred for real sequences
AGREE = 1e-4  # of fp32 losses after a few steps

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, (HEADS_Q + 2 * HEADS_K) * HEAD_DIM, bias=False)
        self.out = nn.Linear(HEADS_Q * HEAD_DIM, WIDTH, bias=False)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        heads = self.qkv(self.norm1(x)).unflatten(1, (-1, HEAD_DIM))
        q, k, v = heads.split([HEADS_Q, HEADS_K, HEADS_K], dim=1)
        x = x + self.out(attend(rotary(q, positions), rotary(k, positions), v).flatten(1))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """Knows nothing about ranks: it sees some tokens, their positions, and a function that attends."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, attend: Attention) -> torch.Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, positions, attend)
        return self.head(x)


def rotary(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary embedding. Only differences of positions matter, so packed documents may count on."""
    rate = 10000.0 ** (-torch.arange(0, HEAD_DIM, 2, device=x.device) / HEAD_DIM)
    angle = (positions[:, None] * rate)[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).flatten(-2)


def pack_documents(length: int, step: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens `(length,)`, weights `(length,)` of their predictions, and cu_seqlens; the same on every rank.

    Each document counts up by 1, 2 or 3: which, the tokens before tell.
    The last token of a document predicts nothing: its weight is 0.
    """
    draw = torch.Generator().manual_seed(step)
    ends = [0]
    while ends[-1] < length:
        size = int(torch.empty(1).log_normal_(math.log(length / 8), 1.0, generator=draw)) + 2
        ends.append(min(ends[-1] + size, length))
    tokens, weights = torch.empty(length, dtype=torch.int64), torch.ones(length)
    for first, last in pairwise(ends):
        start, stride = (int(torch.randint(1, end, (1,), generator=draw)) for end in (VOCABULARY, 4))
        tokens[first:last] = (start + stride * torch.arange(last - first)) % VOCABULARY
        weights[last - 1] = 0
    return tokens.to(device), weights.to(device), torch.tensor(ends, dtype=torch.int32)


def loss_on_ranks(model: Model, tokens: torch.Tensor, weights: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """This rank's share of the mean loss: the shares add up to it."""
    pad_size = compute_pad_size(len(tokens), dist.get_world_size(), CHUNK)
    key = magi_attn_varlen_key(cu_seqlens, cu_seqlens, pad_size, CHUNK, dist.group.WORLD, causal=True)
    local = dispatch(tokens, key)
    logits = model(local, get_position_ids(key), lambda q, k, v: calc_attn(q, k, v, key)[0])
    loss = functional.cross_entropy(logits, roll(local, -1, 0, key), reduction="none")
    return (loss * dispatch(weights, key)).sum() / weights.sum()  # dispatch pads weights with zeros


def loss_alone(model: Model, tokens: torch.Tensor, weights: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    documents = mask.causal_documents(len(tokens), cu_seqlens=cu_seqlens, device=tokens.device)
    positions = torch.arange(len(tokens), device=tokens.device)
    logits = model(tokens, positions, lambda q, k, v: flex_flash_attn_func(q, k, v, documents)[0])
    loss = functional.cross_entropy(logits, tokens.roll(-1), reduction="none")
    return (loss * weights).sum() / weights.sum()


def sum_gradients(model: Model) -> None:
    """Each rank's gradients come from its own tokens."""
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)


def new_model(device: torch.device) -> tuple[Model, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Model().to(device)
    return model, torch.optim.AdamW(model.parameters(), lr=3e-3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=600, help="of one packed sequence")
    options = parser.parse_args()
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    model, optimizer = new_model(device)
    alone, alone_optimizer = new_model(device)
    differences = []
    for step in range(options.steps):
        batch = pack_documents(options.tokens, step, device)
        optimizer.zero_grad()
        loss = loss_on_ranks(model, *batch)
        loss.backward()
        sum_gradients(model)
        optimizer.step()
        total = loss.detach().clone()
        dist.all_reduce(total)
        if dist.get_rank() == 0:
            alone_optimizer.zero_grad()
            wanted = loss_alone(alone, *batch)
            wanted.backward()
            alone_optimizer.step()
            differences.append(abs(total.item() - wanted.item()))
            print(
                f"step {step}: {len(batch[2]) - 1} documents, loss {total.item():.6f} on {dist.get_world_size()} "
                f"ranks, {wanted.item():.6f} alone",
                flush=True,
            )
    dist.barrier()
    dist.destroy_process_group()
    return 0 if all(difference <= AGREE for difference in differences) else 1


if __name__ == "__main__":
    raise SystemExit(main())
