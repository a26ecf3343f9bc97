"""A case of attention, for every backend: its mask, its inputs, where it runs, and what it must lead to."""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from oracle import plain_attention

from cute_attn import mask as masks
from cute_attn.backend import backend
from cute_attn.mask import IntervalMask, causal, full
from cute_attn.spec.tiles import TileConfig

NARROW = TileConfig(128, 32)  # has all code that other tiles have, and compiles in half the time

LENGTHS = [1, 127, 129, 257, 384]
DIMS = [(64, 64), (96, 96), (128, 128), (192, 128), (192, 192), (256, 256)]
ODD_DIMS = [(8, 8), (80, 80), (104, 128), (136, 136), (200, 200), (248, 256)]
SCHEDULES = [("eager", 0), ("late", 0), *(("random", seed) for seed in range(3))]
HEADS = [(2, 2), (4, 1), (8, 1), (6, 3)]
SLICES = [(1, 200, 300), (4, 257, 300), (12, 384, 384), (30, 300, 640)]  # how many, rows, keys
NEEDS_ONE = [(True, False, False), (False, True, False), (False, False, True)]

BUILDERS = {
    "full": full(200, 333),
    "causal": causal(257, 300),
    "sliding_window": masks.sliding_window(384, left=60, right=5),
    "documents": masks.documents(384, cu_seqlens=[0, 100, 157, 285, 384]),
    "causal_documents": masks.causal_documents(384, cu_seqlens=[0, 100, 157, 285, 384]),
    "prefix_lm": masks.prefix_lm(300, prefix_length=140),
    "shared_prefix": masks.shared_prefix(384, prefix_length=100, lengths=[100, 90, 80]),
    "chunked_causal": masks.chunked_causal(384, chunk_size=100),
    "block_causal": masks.block_causal(384, block_size=48),
    "block_diffusion": masks.block_diffusion(384, block_size=32),
    "bidirectional_runs": masks.bidirectional_runs(300, runs=[[30, 80], [100, 230]]),
    "global_tokens": masks.global_tokens(300, positions=[0, 150, 299], left=20, right=20),
}


@dataclass(frozen=True)
class Case:
    """What varies. `inputs` makes q, k, v from the others; `options` go to the launch."""

    mask: IntervalMask
    batch: int = 1
    heads: tuple[int, int] = (2, 1)  # of queries and of keys
    dims: tuple[int, int] = (128, 128)
    dtype: torch.dtype = torch.bfloat16
    scale: float | None = None
    softcap: float = 0.0
    sink: str | None = None  # "sh", the same for every row, or "ssh"
    dlse: bool = False  # whether the backward gets a gradient of lse
    inputs: Any = None
    mode: str = "eager"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def softmax_scale(self) -> float:
        return self.dims[0] ** -0.5 if self.scale is None else self.scale

    @property
    def bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.mask.lo, self.mask.hi


@dataclass(frozen=True)
class Problem:
    """Inputs in the case's dtype; for the backward also what the forward made of them, rounded as its kernel rounds."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    sink: torch.Tensor | None = None  # fp32 or fp64, (1 or batch, 1 or rows, n, heads_q), as the reference takes it
    out: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    dout: torch.Tensor | None = None
    dlse: torch.Tensor | None = None


def draw(case: Case) -> Problem:
    """q, k, v and sinks, some of them -inf."""
    q, k, v = (x.to(case.dtype) for x in (case.inputs or random_inputs)(case))
    if case.sink is None:
        return Problem(q, k, v)
    shape = (1, 1, 3) if case.sink == "sh" else (case.batch, case.mask.seqlen_q, 2)
    sink = torch.randn(*shape, case.heads[0], dtype=torch.promote_types(case.dtype, torch.float32))
    return Problem(q, k, v, sink.masked_fill(torch.rand_like(sink) < 0.2, -math.inf))


# ---------------------------------------------------------------- where it runs


@contextlib.contextmanager
def running(case: Case):
    """What is launched inside finds fresh memory full of NaN, and in simulation the case's schedule."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with backend("sim", mode=case.mode, seed=case.seed):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def on(backend: str, mask: IntervalMask, *tensors: torch.Tensor | None) -> tuple[Any, ...]:
    """The mask and the tensors, with the strides that they have, where a backend wants them."""
    device = torch.device("cuda" if backend == "sm90" else "cpu")
    return IntervalMask(mask.lo.to(device), mask.hi.to(device), mask.seqlen_k), *(_moved(x, device) for x in tensors)


def _moved(x: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    if x is None or x.device == device:
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)


# ---------------------------------------------------------------- what it must lead to


def plainly(case: Case, p: Problem, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """By name, of plain PyTorch with every tensor in dtype: out, lse, max_logits; if there is dout, the gradients."""
    given = {"q": p.q, "k": p.k, "v": p.v} | ({} if p.sink is None else {"sink": p.sink})
    leaves = {name: x.detach().to(dtype).requires_grad_(p.dout is not None) for name, x in given.items()}
    inputs = *(leaves[name] for name in "qkv"), case.mask.to_dense(), leaves.get("sink")
    out, lse, max_logits = plain_attention(*inputs, case.softmax_scale, case.softcap)
    found = {"out": out.detach(), "lse": lse.detach(), "max_logits": max_logits.amax(0)}
    if p.dout is not None:
        loss = (out * p.dout.to(dtype)).sum()
        if p.dlse is not None:
            loss = loss + torch.where(lse.isfinite(), lse * p.dlse.to(lse.dtype), 0.0).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        found |= {f"d{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return found


# ---------------------------------------------------------------- masks


def stacked(*each: IntervalMask, heads: int = 1) -> IntervalMask:
    """A mask for each batch element, or for each of its heads, heads fastest."""
    layers = max(mask.layers for mask in each)
    ends = []
    for side in ("lo", "hi"):
        planes = [torch.nn.functional.pad(getattr(m, side), (0, 0, 0, layers - m.layers)) for m in each]
        ends.append(torch.cat(planes).unflatten(0, (-1, heads)))
    return IntervalMask.from_intervals(*ends, each[0].seqlen_k)


def block_sparse(blocks: torch.Tensor) -> IntervalMask:
    """Rows and keys in blocks of 128, those attended where `blocks` says."""
    pairs = blocks.nonzero() * 128
    ranges = [torch.stack([pairs[:, side], pairs[:, side] + 128], 1) for side in (0, 1)]
    return IntervalMask.from_slices(*ranges, None, blocks.shape[0] * 128, blocks.shape[1] * 128)


def random_blocks(density: float) -> IntervalMask:
    """3 x 5 blocks, one of them at least, all of whose tiles are full."""
    blocks = torch.rand(3, 5) < density
    blocks[0, 2] = True
    mask = block_sparse(blocks)
    assert not (mask.schedule((128, 128)).to_grid() == 1).any()
    return mask


def with_gaps(rows: int, keys: int, layers: int, generator: torch.Generator | None = None) -> IntervalMask:
    """`layers` intervals a row of random length, apart from each other; every 16th row has none."""
    order = [torch.randperm(keys - 1, generator=generator)[: 2 * layers] for _ in range(rows)]
    ends = torch.stack([x.sort().values + 1 for x in order], 1)
    ends[:, ::16] = 0
    return IntervalMask.from_intervals(ends[0::2], ends[1::2], keys)


# ---------------------------------------------------------------- inputs


def random_inputs(case: Case) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, keys = case.mask.seqlen_q, case.mask.seqlen_k
    (heads_q, heads_k), (dim, dim_v) = case.heads, case.dims
    return (
        torch.randn(case.batch, rows, heads_q, dim),
        torch.randn(case.batch, keys, heads_k, dim),
        torch.randn(case.batch, keys, heads_k, dim_v),
    )


def huge(case):
    """Logits of hundreds."""
    return [30 * x for x in random_inputs(case)]


def growing(case):
    """Scores that grow from key to key, by more than any slack: a new maximum in every tile of keys in order."""
    return _rising(case, torch.linspace(0, 8, case.mask.seqlen_k))


def falling(case):
    """Scores that fall from key to key: under causal masks, whose partial tiles come first, the maximum comes later."""
    return _rising(case, torch.linspace(8, 0, case.mask.seqlen_k))


def _rising(case, heights):
    q, k, v = random_inputs(case)
    direction = torch.randn(case.dims[0]).sign()
    return q.abs() * direction, k * 0.1 + heights[None, :, None, None] * direction, v


def one_hot(case):
    """Every row has one key that outweighs all others, first seen in some later tile for most."""
    q, k, v = random_inputs(case)
    choice = torch.randint(0, k.shape[1], (q.shape[1],))
    k[:, choice] = 4 * q.mean(2, keepdim=True) * q.shape[2]
    return 4 * q, k, v


def packed(case):
    """q, k, v that are slices of one tensor, not contiguous: of a batch of 2, heads (2, 1), dims 128."""
    whole = torch.randn(2, 3, case.mask.seqlen_q, 5, 160, dtype=case.dtype)
    return whole[:, 0, :, 1:3, 16:144], whole[:, 1, :, :1, 16:144], whole[:, 2, :, 4:, 32:]
