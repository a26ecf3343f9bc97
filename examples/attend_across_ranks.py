"""Documents packed over several ranks, inside attention modules of the shapes that training code has.

    torchrun --nproc-per-node 2 examples/attend_across_ranks.py [--tokens N]

torchtitan's module hands heads to `inner_attention`, Megatron's to `core_attention` with its `packed_seq_params`. That
part is all that knows of ranks, by a key, which is made once a step and serves every layer; the rest sees some tokens
and their positions. Each module also runs alone, over the whole sequence: loss and gradients agree to rounding.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cute_attn import IntervalMask, flex_flash_attn_func, mask
from cute_attn import dist as cp

WIDTH, HEADS_Q, HEADS_K, HEAD_DIM = 256, 4, 2, 64
CHUNK = 16  # tokens that stay together on a rank; a few hundred for real sequences

Where = IntervalMask | cp.DistAttnRuntimeKey  # of the whole sequence, or of this rank's part of it


def attend(q: Tensor, k: Tensor, v: Tensor, where: Where) -> Tensor:
    """q `(tokens, HEADS_Q, HEAD_DIM)`, k and v likewise: all that differs between one rank and many."""
    if isinstance(where, IntervalMask):
        return flex_flash_attn_func(q, k, v, where)[0]
    return cp.calc_attn(q, k, v, where)[0]


class InnerAttention(nn.Module):
    """q, k, v `(1, heads, tokens, HEAD_DIM)`, as PyTorch's own attention has them."""

    where: Where  # set for every batch

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(*(x[0].transpose(0, 1) for x in (q, k, v)), self.where).transpose(0, 1)[None]


class TitanAttention(nn.Module):
    """Tokens `(1, tokens, WIDTH)`, a projection each, an attention that can be exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Linear(WIDTH, h * HEAD_DIM, bias=False) for h in (HEADS_Q, HEADS_K, HEADS_K))
        self.wo = nn.Linear(HEADS_Q * HEAD_DIM, WIDTH, bias=False)
        self.inner_attention = InnerAttention()

    def forward(self, x: Tensor, positions: Tensor, where: Where) -> Tensor:
        self.inner_attention.where = where
        q, k, v = (w(x[None]).unflatten(-1, (-1, HEAD_DIM)) for w in (self.wq, self.wk, self.wv))
        q, k = rotated(q, positions), rotated(k, positions)
        out = self.inner_attention(*(heads.transpose(1, 2) for heads in (q, k, v)))
        return self.wo(out.transpose(1, 2).flatten(2))[0]


class PackedSeqParams(NamedTuple):
    where: Where  # and whatever else travels to the core attention beside the heads


class CoreAttention(nn.Module):
    """query, key, value `(tokens, 1, heads, HEAD_DIM)`; returns `(tokens, 1, HEADS_Q * HEAD_DIM)`."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, packed_seq_params: PackedSeqParams) -> Tensor:
        return attend(query[:, 0], key[:, 0], value[:, 0], packed_seq_params.where).flatten(1)[:, None]


class MegatronAttention(nn.Module):
    """Tokens `(tokens, 1, WIDTH)`, one projection: each key head's queries, its key, its value."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_qkv = nn.Linear(WIDTH, (HEADS_Q + 2 * HEADS_K) * HEAD_DIM, bias=False)
        self.linear_proj = nn.Linear(HEADS_Q * HEAD_DIM, WIDTH, bias=False)
        self.core_attention = CoreAttention()

    def forward(self, x: Tensor, positions: Tensor, where: Where) -> Tensor:
        heads = self.linear_qkv(x[:, None]).unflatten(-1, (HEADS_K, -1, HEAD_DIM))
        query, key, value = heads.split([HEADS_Q // HEADS_K, 1, 1], dim=3)
        query, key = (rotated(part.flatten(2, 3), positions[:, None]) for part in (query, key))
        return self.linear_proj(self.core_attention(query, key, value.flatten(2, 3), PackedSeqParams(where)))[:, 0]


def rotated(heads: Tensor, positions: Tensor) -> Tensor:
    """Only differences of positions matter, so that documents that are packed may count on."""
    angle = positions[..., None, None] * 100.0 ** -torch.linspace(0, 1, HEAD_DIM // 2, device=heads.device)
    a, b = heads.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1).to(heads.dtype)


def step(module: nn.Module, x: Tensor, target: Tensor, positions: Tensor, where: Where, total: int) -> list[Tensor]:
    """The loss of these tokens, a share of the whole one's, and the gradients of the parameters."""
    loss = (module(x, positions, where) - target).float().square().sum() / total
    return [loss.detach(), *torch.autograd.grad(loss, list(module.parameters()))]


def compare(tokens: int, device: torch.device) -> list[str]:
    """Both modules on all ranks and alone, as the lines of a table."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)  # every rank draws the same documents, tokens and parameters
    cuts = torch.randperm(tokens - 1)[: max(1, tokens // 100)].sort().values + 1
    ends = [0, *cuts.tolist(), tokens]
    x, target = torch.randn(2, tokens, WIDTH).to(device, dtype)
    modules = [made().to(device, dtype) for made in (TitanAttention, MegatronAttention)]

    documents = mask.causal_documents(tokens, cu_seqlens=ends, device=device)
    pad_size = cp.compute_pad_size(tokens, dist.get_world_size(), CHUNK)
    key = cp.magi_attn_varlen_key(ends, ends, pad_size, CHUNK, dist.group.WORLD, causal=True)
    pairs = (documents.hi - documents.lo).sum((0, 1))
    mine = torch.stack([cp.dispatch(count, key).sum() for count in (torch.ones_like(pairs), pairs)])
    held = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(held, mine)
    lines = [f"{len(ends) - 1} documents in {tokens:,} tokens", f"{'rank':18} {'tokens':>12} {'pairs':>12}"]
    lines += [f"{rank:<18} {n:12,} {area:12,}" for rank, (n, area) in enumerate(torch.stack(held).tolist())]
    lines.append(f"{'module':18} {'loss':>12} {'alone':>12} {'off by':>9}")
    for module in modules:
        local = cp.dispatch(x, key), cp.dispatch(target, key), cp.get_position_ids(key), key
        found = step(module, *local, target.numel())
        for part in found:
            dist.all_reduce(part)  # padding is zeros, and adds none
        alone = step(module, x, target, torch.arange(tokens, device=device), documents, target.numel())
        off = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(found, alone, strict=True))
        lines.append(f"{type(module).__name__:18} {found[0]:12.6f} {alone[0]:12.6f} {off:9.1e}")
        if not off < (0.02 if dtype == torch.bfloat16 else 1e-4):
            raise SystemExit(f"{lines[-1]}: not the same")
    return lines


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Packed documents over ranks, in other libraries' attention modules.")
    parser.add_argument("--tokens", type=int, default=1000, help="of the packed sequence (default 1000)")
    options = parser.parse_args(arguments)
    if not dist.is_torchelastic_launched():
        parser.error("it runs on several ranks: torchrun --nproc-per-node 2 examples/attend_across_ranks.py")
    device = torch.device("cuda", dist.get_node_local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    lines = compare(options.tokens, device)
    if dist.get_rank() == 0:
        print("\n".join(lines))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
