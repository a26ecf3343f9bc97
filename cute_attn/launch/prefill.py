"""From checked tensors and a cache to one launch of the forward kernel: for many new tokens a sequence.

Nothing of the device is read by the host: the kernel makes its schedule of lengths that lie there, so that a CUDA graph
replays with others.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import torch

from cute_attn.caches import EIGHT_BITS, KVCache
from cute_attn.spec.forward import ForwardSpec, Softmax
from cute_attn.spec.score import ScoreForm

from .decode import MOST_TOKENS, in_pool_form, limited, pages_of, results
from .run import KernelBackend, Order, run
from .shapes import PLAIN, PlanForm, score_of_call, spec_of_call
from .tensors import DTYPE_NAMES, free_multiprocessors, in_kernel_form
from .tiles import default_tile

__all__ = ["is_prefill", "prefill", "prefill_spec"]

LEAST_PIECE = 8  # keys: rows of the swizzle of a tile in shared memory

Tensor = torch.Tensor


def is_prefill(q: Tensor, cache: KVCache) -> bool:
    """Whether the forward kernel serves a call: it has many rows, and reads 16 bits, several keys at once.

    What it does not serve is for decode kernels, which take such rows in blocks.
    """
    eight = cache.keys.dtype in EIGHT_BITS
    return q.shape[1] > MOST_TOKENS and not eight and (cache.table is None or cache.keys.shape[1] % LEAST_PIECE == 0)


def prefill(
    q: Tensor,
    cache: KVCache,
    sink: Tensor | None,
    *,
    softmax_scale: float,
    softcap: float,
    window: tuple[int, int],
    sm_margin: int,
    softmax: Softmax = "stale",
    backend: KernelBackend = "sm90",
    order: Order | None = None,
) -> tuple[Tensor, Tensor]:
    """See `cute_attn.backends.interface.Backend.decode`; these tensors are those of a prefill, and `why_not_served` has
    nothing against them. softmax: see `cute_attn.launch.forward.forward`."""
    batch, tokens, heads_q, head_dim = q.shape
    sink_lse = None if sink is None else sink.float().logsumexp(0)
    out, lse, is_empty = results(q, cache, sink_lse)
    if is_empty:
        return out, lse
    spec = prefill_spec(
        DTYPE_NAMES[q.dtype],
        (head_dim, out.shape[3]),
        None if cache.table is None else cache.keys.shape[1],
        window=window[0] >= 0,
        score=score_of_call(softmax_scale, softcap),
        sink=sink is not None,
        softmax=softmax,
    )
    if sink_lse is not None:
        sink_lse = sink_lse[:, None].expand_as(lse)
    tensors = (
        *(in_kernel_form("q", q), in_pool_form(cache.keys), in_pool_form(cache.values), out, lse, None, None, sink_lse),
        *(None,) * 6,  # no largest scores, nothing that functions captured
        (pages_of(cache), cache.lengths, *limited(window, tokens)),
    )
    sharing = batch, heads_q, 1
    scalars = (*spec.score.factors(softmax_scale, softcap), *sharing, free_multiprocessors(q.device, sm_margin))
    run(spec, (tensors, (None, None, None), scalars), backend, (out, lse), order)
    return out, lse


def prefill_spec(
    dtype: str,
    head_dims: tuple[int, int],
    page_size: int | None,
    *,
    window: bool = False,
    score: ScoreForm = PLAIN,
    **variant: Any,
) -> ForwardSpec:
    """The spec of a call. page_size: None for a contiguous cache. window: whether rows do not reach back to key 0.

    Its tile is the default: nothing is measured over caches.
    """
    tile = default_tile("fwd", head_dims)
    piece = tile.n if page_size is None else piece_of(page_size, tile.n)
    spec: ForwardSpec = spec_of_call(
        "fwd", PlanForm(tile, True), dtype, head_dims, score, piece=piece, window=window, **variant
    )
    return spec


def piece_of(page_size: int, n: int) -> int:
    """The largest power of two that divides a page and a tile of n keys."""
    common = gcd(page_size, n)
    return common & -common
