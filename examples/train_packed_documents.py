"""Trains a small language model on packed documents, the sequence shared by several ranks.

    torchrun --nproc-per-node 4 examples/train_packed_documents.py [--steps N] [--tokens N]

Every step packs new documents and makes a key for them: which rank holds which tokens, and what it needs from others.
Each rank computes the loss of its own tokens, and gradients of parameters are summed over ranks. The same model is
trained alone beside it: the table has both losses, which agree to rounding.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cute_attn import flex_flash_attn_func, mask
from cute_attn.dist import calc_attn, compute_pad_size, dispatch, get_position_ids, magi_attn_varlen_key, roll

VOCABULARY, WIDTH, HEADS_Q, HEADS_K, HEAD_DIM = 97, 64, 4, 2, 64
CHUNK = 16  # tokens that stay together on a rank; a few hundred for real sequences
DTYPE, AGREE = (torch.bfloat16, 0.02) if torch.cuda.is_available() else (torch.float32, 1e-4)  # of attention, of losses


class Model(nn.Module):
    """Knows nothing about ranks: it sees some tokens, their positions, and a function that attends."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rates = nn.Embedding(VOCABULARY, WIDTH), nn.Parameter(torch.rand(WIDTH))
        self.qkv = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, (HEADS_Q + 2 * HEADS_K) * HEAD_DIM, bias=False))
        self.out = nn.Linear(HEADS_Q * HEAD_DIM, WIDTH, bias=False)
        self.head = nn.Sequential(nn.RMSNorm(WIDTH), nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, VOCABULARY))

    def forward(self, tokens: Tensor, positions: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        x = self.embedding(tokens) + torch.sin(positions[:, None] * self.rates)
        q, k, v = self.qkv(x).to(DTYPE).unflatten(1, (-1, HEAD_DIM)).split([HEADS_Q, HEADS_K, HEADS_K], dim=1)
        return self.head(x + self.out(attend(q, k, v).flatten(1).to(x.dtype)))


def pack_documents(length: int, step: int) -> tuple[Tensor, Tensor, list[int]]:
    """Tokens, weights of their predictions, cu_seqlens. A document counts up by 1, 2 or 3; its last token weighs 0."""
    torch.manual_seed(step)  # the same on every rank
    cuts = (torch.randperm(length - 1)[: length // 75] + 1).sort().values
    document = torch.bucketize(torch.arange(length), cuts, right=True)
    tokens = torch.randint(1, 4, (length,))[document].cumsum(0) % VOCABULARY
    weights = torch.cat([document[1:] == document[:-1], torch.tensor([False])]).float()
    return tokens, weights / weights.sum(), [0, *cuts.tolist(), length]


def losses(together: Model, alone: Model, tokens: Tensor, weights: Tensor, ends: list[int]) -> tuple[Tensor, Tensor]:
    """This rank's share of the loss (the shares add up to it), and the whole loss of the model that is alone."""
    pad_size = compute_pad_size(len(tokens), dist.get_world_size(), CHUNK)
    key = magi_attn_varlen_key(ends, ends, pad_size, CHUNK, dist.group.WORLD, causal=True)
    local = dispatch(tokens, key)
    logits = together(local, get_position_ids(key), lambda q, k, v: calc_attn(q, k, v, key)[0])
    share = cross_entropy(logits, roll(local, -1, 0, key), reduction="none") @ dispatch(weights, key)  # 0 for padding

    documents = mask.causal_documents(len(tokens), cu_seqlens=ends, device=tokens.device)
    positions = torch.arange(len(tokens), device=tokens.device)
    logits = alone(tokens, positions, lambda q, k, v: flex_flash_attn_func(q, k, v, documents)[0])
    return share, cross_entropy(logits, tokens.roll(-1), reduction="none") @ weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Training on packed documents over several ranks, and alone.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=600, help="of one packed sequence (default 600)")
    options = parser.parse_args()
    device = torch.device("cuda", dist.get_node_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    say = print if dist.get_rank() == 0 else lambda line: None
    torch.manual_seed(0)
    together, alone = (Model().to(device) for _ in range(2))
    alone.load_state_dict(together.state_dict())
    optimizer = torch.optim.AdamW([*together.parameters(), *alone.parameters()], lr=3e-3)
    say(f"{'step':>4} {'documents':>10} {f'loss on {dist.get_world_size()} ranks':>16} {'loss alone':>11}")
    for step in range(options.steps):
        tokens, weights, ends = pack_documents(options.tokens, step)
        share, whole = losses(together, alone, tokens.to(device), weights.to(device), ends)
        (share + whole).backward()
        for parameter in together.parameters():
            dist.all_reduce(parameter.grad)  # each rank's come from its own tokens
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(total := share.detach())
        say(f"{step:4} {len(ends) - 1:10} {total:16.6f} {whole:11.6f}")
        if not abs(total - whole) < AGREE:
            raise SystemExit("the losses differ")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
