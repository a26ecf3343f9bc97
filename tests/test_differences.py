"""Every row of the tables of differences, in the pages for those who come from elsewhere, by the smallest call that
shows it."""

import copy
import inspect
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from oracle import assert_close, dense_attention

from cute_attn import (
    AttentionOp,
    AttnRange,
    AttnRanges,
    AuxRequest,
    ChunkedCausalMask,
    IntervalMask,
    KVQuant,
    LoadBalancedCausalMask,
    create_block_mask,
    dist,
    fa2_func_with_sink,
    fa3_func_with_sink,
    fa3_varlen_func_with_sink,
    flash_attn_with_kvcache,
    flex_attention,
    flex_flash_attn_func,
    mask,
)
from cute_attn.integrations.torch import scaled_dot_product_attention
from cute_attn.ops import flex_flash
from cute_attn.spec.tiles import TileConfig

sys.path.append(str(Path(__file__).parent / "dist"))
from ranks import run_ranks

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(path.stem for path in DOCS.glob("from_*.md"))
TABLES = dict.fromkeys(PAGES, "\n## What differs\n") | {"torch": "\n## scaled_dot_product_attention\n"}
SHOWN = {}  # (page, first cell of a row) -> what shows it


def shows(page, *cells):
    def keep(function):
        for cell in cells:
            assert (page, cell) not in SHOWN
            SHOWN[page, cell] = function
        return function

    return keep


def rows_of(page, heading=None):
    """The first cells of the tables below a heading of a page, by default that of differences."""
    tables = (DOCS / f"{page}.md").read_text().split(heading or TABLES[page])[1].split("\n## ")[0]
    lines = tables.splitlines()
    heads = {i - 1 for i, line in enumerate(lines) if re.fullmatch(r"[|-]+", line)}
    rows = [line for i, line in enumerate(lines) if line.startswith("| ") and i not in heads]
    return [re.split(r" (?<!\\)\| ", row[2:])[0] for row in rows]


@pytest.mark.parametrize("page", TABLES)
def test_every_row_of_a_page_has_its_test_and_no_test_is_left_over(page):
    rows = rows_of(page)
    assert len(rows) >= 4
    assert len(set(rows)) == len(rows)
    assert set(rows) == {cell for there, cell in SHOWN if there == page}


def randn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def packed(tokens=6, heads=2):
    return [randn(tokens, heads, 8) for _ in range(3)]


def batched(heads=2, tokens=6, dtype=torch.float64):
    """Tokens before heads, as FlashAttention and MaxText have them."""
    return [randn(1, tokens, heads, 8, dtype=dtype) for _ in range(3)]


def heads_first(heads=2, tokens=6, dtype=torch.float64):
    return [randn(1, heads, tokens, 8, dtype=dtype) for _ in range(3)]


def refused(error, words, function, *arguments, **options):
    with pytest.raises(error, match=words):
        function(*arguments, **options)


# ---------------------------------------------------------------- FlashAttention


@shows("from_flash_attention", "`flash_attn_func(q, k, v, 0.0, None, True)`")
def _():
    refused(TypeError, "pass what follows the sequences by keyword", fa3_func_with_sink, *batched(), 0.0, None, True)


@shows(
    "from_flash_attention",
    "windows of ints, tensors on the host, NumPy's ints, None or anything below -1 for unlimited",
)
def _():
    x = batched()
    for windows in (
        [(2, 0), torch.tensor([2, 0]), np.array([2, 0]), (np.int32(2), torch.tensor(0))],
        [(-1, -1), None, (None, -9), (None, None)],
    ):
        first, *others = (fa3_func_with_sink(*x, window_size=window) for window in windows)
        assert all(torch.equal(first, other) for other in others)


@shows("from_flash_attention", "`num_splits=0`, `max_seqlen_q` as a 0-d tensor, `seqused_k` of the full lengths")
def _():
    ends, lengths = torch.tensor([0, 2, 6]), torch.tensor([2, 4])
    x = packed()
    plain = fa3_varlen_func_with_sink(*x, ends, ends, 4, 4)
    same = fa3_varlen_func_with_sink(*x, ends, ends, torch.tensor(4), 4, num_splits=0, seqused_k=lengths)
    assert torch.equal(plain, same)


@shows("from_flash_attention", "`return_attn_probs=True` returns three tensors in version 2")
def _():
    x = batched()
    out, lse = fa2_func_with_sink(*x, return_attn_probs=True)
    assert_close("lse", lse, dense_attention(*x, torch.ones(1, 6, 6, dtype=torch.bool))[1], 1e-12)
    assert out.shape == x[0].shape


@shows("from_flash_attention", "dropout")
def _():
    refused(ValueError, "dropout_p is not supported: it must be 0.0", fa2_func_with_sink, *batched(), dropout_p=0.1)


@shows("from_flash_attention", "ALiBi slopes")
def _():
    q, k, v = batched()
    slopes = torch.tensor([0.5, 0.25], dtype=torch.float64)
    refused(
        ValueError, "ALiBi is a score_mod of cute_attn.flex_attention", fa2_func_with_sink, q, k, v, alibi_slopes=slopes
    )
    x = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    out = flex_attention(*x, lambda score, b, h, q_idx, kv_idx: score - slopes[h] * (q_idx - kv_idx).abs())
    distance = (torch.arange(6)[:, None] - torch.arange(6)).abs()
    scores = x[0] @ x[1].mT * 8**-0.5 - slopes[:, None, None] * distance
    assert_close("out", out, scores.softmax(3) @ x[2], 1e-12)


@shows("from_flash_attention", "`block_table` of caches")
def _():
    pool, pages = randn(2, 3, 2, 8), torch.tensor([[1, 0]], dtype=torch.int32)
    q, lengths = randn(1, 1, 2, 8), torch.tensor([6], dtype=torch.int32)
    out = flash_attn_with_kvcache(q, pool, pool, cache_seqlens=lengths, page_table=pages)
    assert_close("out", out, flash_attn_with_kvcache(q, *[pool[[1, 0]].view(1, 6, 2, 8)] * 2), 1e-12)
    refused(ValueError, "takes pages, as page_table", flash_attn_with_kvcache, q, pool, pool, block_table=pages)


@shows("from_flash_attention", "keywords of one version alone")
def _():
    x = batched()
    asks_for_nothing = {"dropout_p": 0.0, "alibi_slopes": None, "block_table": None, "page_table": None}
    assert torch.equal(fa3_func_with_sink(*x, **asks_for_nothing), fa3_func_with_sink(*x))
    assert torch.equal(fa2_func_with_sink(*x, num_splits=1, pack_gqa=True, qv=None), fa2_func_with_sink(*x))
    refused(ValueError, "flash_attn_with_kvcache takes it", fa3_func_with_sink, *x, page_table=torch.zeros(1, 1))


@shows("from_flash_attention", "a mask of another shape")
def _():
    x = packed()
    slices = flex_flash_attn_func(*x, [[0, 6], [4, 6]], [[0, 1], [3, 6]], attn_type_map=["full", "causal"])[0]
    seen = torch.zeros(6, 6, dtype=torch.bool)
    seen[:, 0], seen[4, 3:5], seen[5, 3:6] = True, True, True
    assert_close("out", slices[None], dense_attention(*(t[None] for t in x), seen[None])[0], 1e-12)
    assert torch.equal(flex_flash_attn_func(*x, IntervalMask.from_dense(seen))[0], slices)


# ---------------------------------------------------------------- MagiAttention


@shows("from_magi_attention", "lse is `(tokens, heads)`")
def _():
    assert flex_flash_attn_func(*packed(), [[0, 6]], [[0, 6]])[1].shape == (2, 6)


@shows("from_magi_attention", "the sixth argument of `flex_flash_attn_func` is `attn_type_map`")
def _():
    whole = [[0, 6]], [[0, 6]]
    refused(
        TypeError, "max_seqlen_q must be an int.*attn_type_map by keyword", flex_flash_attn_func, *packed(), *whole, [1]
    )
    flex_flash._has_warned = False
    with pytest.warns(UserWarning, match="attn_type_map"):
        flex_flash_attn_func(*packed(), *whole, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flex_flash_attn_func(*packed(), *whole, 6)


@shows("from_magi_attention", "the eighth argument of `calc_attn` is `return_max_logits`")
def _():
    assert list(inspect.signature(dist.calc_attn).parameters).index("deterministic") == 7


@shows("from_magi_attention", "a pair that two slices cover counts twice")
def _():
    x = packed()
    once, twice = (flex_flash_attn_func(*x, [[0, 6]] * n, [[0, 6]] * n)[0] for n in (1, 2))
    assert torch.equal(once, twice)


@shows("from_magi_attention", "the gradient of sinks is each rank's own")
def _():
    x, sink = packed(8), randn(2).requires_grad_()
    flex_flash_attn_func(*x, [[0, 8]], [[0, 8]], sink=sink)[0].sum().backward()
    for gradient in run_ranks(2, _gradient_of_sinks, x, sink.detach()):
        assert_close("dsink", gradient, sink.grad, 1e-12)


def _gradient_of_sinks(rank, x, sink):
    key = dist.magi_attn_flex_key([[0, 8]], [[0, 8]], "full", 8, 8, 0, 2, torch.distributed.group.WORLD)
    sink.requires_grad_()
    dist.calc_attn(*(dist.dispatch(tensor, key) for tensor in x), key, sink)[0].sum().backward()
    return sink.grad


@shows("from_magi_attention", "`infer_attn_mask_from_sliding_window` with more queries than keys drops the first rows")
def _():
    slices = dist.infer_attn_mask_from_sliding_window(AttnRange(0, 6), AttnRange(0, 3), (1, 2))
    seen = IntervalMask.from_slices(*slices, 6, 3).to_dense()
    at, key = torch.arange(6)[:, None] - 3, torch.arange(3)
    assert torch.equal(seen.view(6, 3), (at - 1 <= key) & (key <= at + 2))
    assert seen.view(6, 3).any(1).tolist() == [False, True, True, True, True, True]


@shows("from_magi_attention", "`AttnRange` may be changed")
def _():
    with pytest.raises(AttributeError):
        AttnRange(0, 4).start = 1
    ranges = AttnRanges([[0, 4]])
    ranges[0] = AttnRange(1, 4)
    assert ranges == AttnRanges([[1, 4]])


@shows("from_magi_attention", "`AttnRanges.start` and `end` raise without ranges")
def _():
    assert (AttnRanges().start, AttnRanges().end) == (0, 0)


@shows("from_magi_attention", "`max_seqlen_q`, `max_seqlen_k`, `disable_fwd_atomic_reduction`, `auto_range_merge`")
def _():
    given = *packed(), [[0, 6]], [[0, 6]]
    hints = {"max_seqlen_q": 6, "max_seqlen_k": 9, "disable_fwd_atomic_reduction": True, "auto_range_merge": True}
    assert torch.equal(flex_flash_attn_func(*given)[0], flex_flash_attn_func(*given, **hints)[0])
    refused(ValueError, "max_seqlen_q must not be below the longest", flex_flash_attn_func, *given, max_seqlen_q=5)


@shows(
    "from_magi_attention",
    "`q_block_size`, `k_block_size`, `sparse_load`, `swap_ab`, `ref_block_size`, `pack_gqa`, `cat_gqa`, "
    "`swap_bwd_qk_loop`, `disable_bwd_dkv_atomic_reduction` of newer versions",
)
def _():
    given = *packed(), [[0, 6]], [[0, 6]]
    (cell,) = (cell for cell in rows_of("from_magi_attention") if cell.startswith("`q_block_size`"))
    hints = re.findall(r"`(\w+)`", cell)
    assert set(hints) == flex_flash.HINTS
    assert torch.equal(flex_flash_attn_func(*given)[0], flex_flash_attn_func(*given, **dict.fromkeys(hints, 1))[0])


@shows("from_magi_attention", "`index_attn`, `index_attn_indices` of newer versions")
def _():
    for name in ("index_attn", "index_attn_indices"):
        given = *packed(), [[0, 6]], [[0, 6]]
        refused(TypeError, f"{name} is not supported: give the blocks", flex_flash_attn_func, *given, **{name: None})


@shows(
    "from_magi_attention",
    "`num_heads_q`, `num_heads_kv`, `head_dim`, `head_dim_v` of keys; `dynamic_max_degree`, `calc_cost_factor`, "
    "`comm_cost_factor` of `OverlapConfig`",
    "`window_size` of varlen keys",
    "a `chunk_size` is cut to an eighth of a rank's rows, and `pad_size` is ignored",
    "`dispatch(x, key, pad_value)`, `undispatch(x, key, is_partial_grad)`",
    "`q_ranges`, `k_ranges`, `attn_mask_type`, `cp_group`, `cp_mesh`, `num_heads_q`, `num_heads_kv`, `head_dim`, "
    "`uneven_shard` of a key",
    "`total_seqlen_q` and `total_seqlen_k` of a key count its padding",
    "`get_most_recent_key(cp_group=group)`, `clear_cache(cp_group=group)`",
)
def _():
    hints = {"dynamic_max_degree": 8, "calc_cost_factor": 0.5, "comm_cost_factor": 0.1}
    assert dist.OverlapConfig(**hints) == dist.OverlapConfig()
    refused(TypeError, "unexpected keyword argument 'head_dim'", dist.OverlapConfig, head_dim=8)
    run_ranks(1, _keys_of_newer_versions)


def _keys_of_newer_versions(rank):
    ends, group = [0, 8], torch.distributed.group.WORLD
    key = dist.magi_attn_varlen_key(ends, ends, 0, 2, group)
    hints = {"num_heads_q": 2, "num_heads_kv": 2, "head_dim": 8, "head_dim_v": 8}
    for function, given in (
        (dist.magi_attn_varlen_key, (ends, ends, 0, 2, group)),
        (dist.magi_attn_flex_key, ([[0, 8]], [[0, 8]], "full", 8, 8, 0, 2, group)),
        (dist.make_varlen_key_for_new_mask_after_dispatch, (ends, ends, key)),
    ):
        assert function(*given, **hints, window_size=[-1, -1]) == function(*given)
    given = {"cp_group_or_mesh": group, "pad_size": 0, **hints}
    windowed = dist.magi_attn_varlen_key(ends, ends, **given, window_size=(3, 0))
    assert windowed.manager.placed.mask.equals(mask.sliding_window(8, left=3, right=0))
    refused(TypeError, "by keyword", dist.magi_attn_varlen_key, ends, ends, 2, 2, 8, 0)
    assert dist.magi_attn_varlen_key(ends, ends, **given).chunk_size == 1
    capped = dist.DistAttnConfig(dist.DispatchConfig(chunk_size=512))
    assert dist.magi_attn_varlen_key(ends, ends, **given, dist_attn_config=capped).chunk_size == 1
    padded = dist.magi_attn_varlen_key(ends, ends, 0, 3, group)
    assert (padded.chunk_size, padded.pad_size) == (3, 1)
    assert (padded.total_seqlen_q, padded.total_seqlen_k) == (8, 8)
    refused(ValueError, "got 5; compute_pad_size gives 1", dist.magi_attn_varlen_key, ends, ends, 5, 3, group)
    x = torch.randn(8, 2)
    assert dist.dispatch(x, padded, pad_value=-100.0)[8].tolist() == [-100.0, -100.0]
    for function, third, name in ((dist.dispatch, 0.0, "pad_value"), (dist.undispatch, True, "is_partial_grad")):
        refused(TypeError, f"side must be 'q' or 'k', got .*: pass {name} by keyword", function, x, key, third)
    (cell,) = (cell for cell in rows_of("from_magi_attention") if cell.startswith("`q_ranges`"))
    for name in re.findall(r"`(\w+)`", cell):
        refused(AttributeError, f"a key has no {name}: ", getattr, key, name)
    assert copy.copy(key) == key
    assert dist.get_most_recent_key(cp_group=None) == padded
    refused(ValueError, "the argument is named cp_group_or_mesh", dist.get_most_recent_key, cp_group=group)
    refused(ValueError, "the argument is named cp_group_or_mesh", dist.clear_cache, cp_group=group)


@shows(
    "from_magi_attention",
    "`uneven_shard` of `DispatchConfig`; `grpcoll_config`, `high_bandwith_domain_size`, `deterministic` "
    "of `DistAttnConfig`",
)
def _():
    assert dist.DispatchConfig(uneven_shard=False) == dist.DispatchConfig()
    assert dist.DistAttnConfig(deterministic=False, high_bandwith_domain_size=1) == dist.DistAttnConfig()
    refused(ValueError, "argument of magi_attn_flex_key", dist.DistAttnConfig, chunk_size=512)
    refused(ValueError, "compute_pad_size says", dist.DispatchConfig, uneven_shard=True)
    refused(ValueError, "the mover of DistAttnConfig", dist.DistAttnConfig, grpcoll_config=1)
    refused(ValueError, "2-D mesh", dist.DistAttnConfig, high_bandwith_domain_size=8)
    refused(ValueError, "argument of calc_attn", dist.DistAttnConfig, deterministic=True)


@shows("from_magi_attention", "`degree=0` of `OverlapConfig`")
def _():
    refused(ValueError, "got 0: enable=False attends all keys at once", dist.OverlapConfig, degree=0)


# ---------------------------------------------------------------- flex_attention


@shows("from_flex_attention", "scores in the dtype of query, in eager mode")
def _():
    q, k, v = heads_first(dtype=torch.bfloat16)

    def shifted(score, b, h, q_idx, kv_idx):
        return (score + 1000.0) - 1000.0  # in bf16 nothing of a score would be left

    assert_close("out", flex_attention(q, k, v, shifted).float(), flex_attention(q, k, v).float(), 2**-7)
    assert_close(
        "out", flex_attention(*(x.float() for x in (q, k, v)), shifted), flex_attention(q, k, v).float(), 2**-7
    )
    exact = [x.double() for x in (q, k, v)]
    assert_close("out", flex_attention(*exact, shifted), flex_attention(*exact), 1e-11)


@shows("from_flex_attention", "a score_mod may read outside of a captured tensor in compiled code")
def _():
    x, table = heads_first(), randn(3)

    def shifted(score, b, h, q_idx, kv_idx):
        return score + table[kv_idx]

    refused(IndexError, "tensor of shape .3,. at index 3", flex_attention, *x, shifted)
    assert flex_attention(*x, shifted, first_keys(3)).isfinite().all()


def first_keys(count):
    return IntervalMask.from_slices([[0, 6]], [[0, count]], "full", 6, 6)


@shows("from_flex_attention", "`kernel_options` tune Triton")
def _():
    x = heads_first()
    refused(ValueError, "'BLOCK_M', which tunes torch's Triton", flex_attention, *x, kernel_options={"BLOCK_M": 64})
    ours = {"softmax": "exact", "tile": TileConfig(n=64), "backward_tile": {"n": 64}}
    assert torch.equal(flex_attention(*x, kernel_options=ours), flex_attention(*x))


@shows("from_flex_attention", "on a CPU nothing that requires a gradient goes in")
def _():
    x = [tensor.requires_grad_() for tensor in heads_first()]
    bias = randn(2).requires_grad_()
    flex_attention(*x, lambda score, b, h, q_idx, kv_idx: score * bias[h]).sum().backward()
    assert all(tensor.grad.any() for tensor in (*x, bias))


@shows("from_flex_attention", "a mask_mod must return a bool, in eager mode too")
def _():
    for mod in (lambda b, h, q_idx, kv_idx: q_idx, lambda b, h, q_idx, kv_idx: q_idx * 0.5):
        refused(ValueError, "mask_mod.*bool", create_block_mask, mod, None, None, 6, 6, "cpu")


@shows("from_flex_attention", "lse and max_scores of rows without keys: -inf")
def _():
    aux = flex_attention(*heads_first(), block_mask=first_keys(0), return_aux=AuxRequest(lse=True, max_scores=True))[1]
    assert (aux.lse == -torch.inf).all()
    assert (aux.max_scores == -torch.inf).all()


@shows("from_flex_attention", "a slice of query blocks counts rows in whole blocks; `_adjust` takes any length")
def _():
    whole = create_block_mask(lambda b, h, q, kv: q >= kv, None, None, 20, 20, "cpu", BLOCK_SIZE=16)
    assert whole[:, :, 1:].seq_lengths == (4, 20)
    assert torch.equal(
        whole._adjust(6, 6).to_dense(), create_block_mask(whole.mask_mod, None, None, 6, 6, "cpu").to_dense()
    )
    refused(ValueError, "_adjust must not make a mask longer", whole._adjust, 21, 20)


@shows(
    "from_flex_attention",
    "a block mask made with H=None whose mask_mod reads h: by head, or by head 0, as the block falls",
)
def _():
    x = [randn(2, 2, 6, 8) for _ in range(3)]
    for name, mod in (("H", lambda b, h, q, kv: kv > h), ("B", lambda b, h, q, kv: kv > b)):
        shared = create_block_mask(mod, None, None, 6, 6, "cpu")
        refused(ValueError, f"create_block_mask takes {name}=2", flex_attention, *x, block_mask=shared)
    seen = create_block_mask(lambda b, h, q, kv: kv > h, None, 2, 6, 6, "cpu").intervals.to_dense()
    assert torch.equal(seen[0, :, 0], torch.arange(6) > torch.arange(2)[:, None])


# ---------------------------------------------------------------- MaxText


def rows_of_ones(*ones):
    return torch.tensor([[int(i in ones) for i in range(6)]])


@shows("from_maxtext", "flash kernels ignore the attention type, the cap, sinks or the indexer, by backend")
def _():
    x, sinks = batched(), randn(2)
    kept = torch.rand(1, 6, 6) < 0.7
    op = AttentionOp(2, 2, attention_type="local_sliding", sliding_window_size=3, attn_logits_soft_cap=1.5)
    row, key = torch.arange(6)[:, None], torch.arange(6)
    seen = kept & (key <= row) & (key > row - 3)
    out = op(*x, sinks=sinks, indexer_mask=kept)
    assert_close("out", out, dense_attention(*x, seen, sinks[None], softmax_scale=1.0, softcap=1.5)[0], 1e-12)


@shows("from_maxtext", "a row without keys gives the mean of the values")
def _():
    assert not AttentionOp(2, 2, attention_type="full")(*batched(), indexer_mask=torch.zeros(1, 6, 6).bool()).any()


@shows("from_maxtext", 'window and chunk are dropped in mode "autoregressive" without segment ids')
def _():
    q, k, v = batched()
    for options, first in (
        ({"attention_type": "local_sliding", "sliding_window_size": 2}, 4),
        ({"attention_type": "chunk", "chunk_attn_window_size": 4}, 4),
    ):
        out = AttentionOp(2, 2, **options)(q[:, -1:], k, v, model_mode="autoregressive")
        assert_close("out", out, AttentionOp(2, 2, attention_type="full")(q[:, -1:], k[:, first:], v[:, first:]), 1e-12)


@shows("from_maxtext", "runs of ones that touch across packed segments are one")
def _():
    x, ids = batched(), torch.tensor([[1, 1, 1, 2, 2, 2]])
    out = AttentionOp(2, 2)(*x, ids, bidirectional_mask=rows_of_ones(1, 2, 3, 4))
    row, key = torch.arange(6)[:, None], torch.arange(6)
    same = ids[0][:, None] == ids[0]
    seen = same & (key <= row)
    for image in ([1, 2], [3, 4]):
        seen |= torch.isin(row, torch.tensor(image)) & torch.isin(key, torch.tensor(image))
    assert_close("out", out, dense_attention(*x, seen[None], softmax_scale=1.0)[0], 1e-12)


@shows("from_maxtext", "`max_logits` is set as an attribute")
def _():
    op, x = AttentionOp(2, 2), batched()
    _, max_logits = op(*x, record_max_logits=True)
    seen = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    assert_close("max_logits", max_logits[0], dense_attention(*x, seen, softmax_scale=1.0)[2], 1e-12)
    assert not hasattr(op, "max_logits")


@shows("from_maxtext", "`float32_qk_product`, `float32_logits`")
def _():
    x = batched(dtype=torch.bfloat16)
    _, max_logits = AttentionOp(2, 2)(*x, record_max_logits=True)
    seen = torch.ones(1, 6, 6, dtype=torch.bool).tril()
    assert max_logits.dtype == torch.float32
    assert_close("max_logits", max_logits[0].double(), dense_attention(*x, seen, softmax_scale=1.0)[2], 1e-5)


@shows("from_maxtext", "`use_ragged_attention`, `ragged_block_size`, `inputs_positions`, `shard_count`")
def _():
    x = batched()
    plain = AttentionOp(2, 2)(*x)
    hinted = AttentionOp(2, 2, use_ragged_attention=True, ragged_block_size=2)
    assert torch.equal(hinted(*x, inputs_positions=torch.arange(6).flip(0)[None]), plain)
    assert ChunkedCausalMask((8, 8), 2, shard_count=4) == ChunkedCausalMask((8, 8), 2)
    assert LoadBalancedCausalMask((8, 8), shard_count=2) == LoadBalancedCausalMask((8, 8))


@shows("from_maxtext", "`dropout_rate`, `slot`")
def _():
    refused(ValueError, "dropout_rate is not supported: it must be 0", AttentionOp, 2, 2, dropout_rate=0.1)
    refused(ValueError, "slot is not supported: it must be None", AttentionOp(2, 2), *batched(), slot=0)


@shows("from_maxtext", '`previous_chunk` and `bidirectional_mask` in mode "autoregressive"')
def _():
    for option in ({"previous_chunk": 1}, {"bidirectional_mask": rows_of_ones(1)}):
        words = f"{next(iter(option))} must be None in model_mode 'autoregressive'"
        refused(ValueError, words, AttentionOp(2, 2), *batched(), model_mode="autoregressive", **option)


@shows("from_maxtext", "MoBA over two caches")
def _():
    q, k, v = batched()
    call = {"model_mode": "autoregressive", "cached_values": [(k, v, None), (k, v, None, None)]}
    op = AttentionOp(2, 2, moba_chunk_size=2, moba_topk=1)
    refused(ValueError, "its blocks are those of one list of keys", op, q[:, -1:], None, None, **call)


@shows("from_maxtext", "int4 caches")
def _():
    refused(ValueError, "'int4'", KVQuant, "int4")


# ---------------------------------------------------------------- scaled_dot_product_attention


def theirs(*x, **options):
    return torch.nn.functional.scaled_dot_product_attention(*x, **options)


@shows("torch", "`attn_mask`")
def _():
    x, seen = heads_first(), torch.rand(1, 1, 6) < 0.5
    seen[..., 0] = True
    assert_close("out", scaled_dot_product_attention(*x, seen), theirs(*x, attn_mask=seen), 1e-12)
    intervals = mask.causal(6)
    assert_close("out", scaled_dot_product_attention(*x, intervals), theirs(*x, is_causal=True), 1e-12)


@shows("torch", "`is_causal`")
def _():
    q, k, v = heads_first()
    out = scaled_dot_product_attention(q[:, :, :2], k, v, is_causal=True)
    assert_close("out", out, theirs(q[:, :, :2], k, v, is_causal=True), 1e-12)
    last = fa3_func_with_sink(*(x.transpose(1, 2) for x in (q[:, :, :2], k, v)), causal=True)
    assert not torch.allclose(out, last.transpose(1, 2))


@shows("torch", "`dropout_p`")
def _():
    refused(ValueError, "dropout_p is not supported", scaled_dot_product_attention, *heads_first(), dropout_p=0.5)


@shows("torch", "`scale`, `enable_gqa`")
def _():
    q, k, v = heads_first()
    options = {"scale": 0.3, "enable_gqa": True}
    k, v = k[:, :1], v[:, :1]
    assert_close("out", scaled_dot_product_attention(q, k, v, **options), theirs(q, k, v, **options), 1e-12)


@pytest.mark.parametrize(("page", "cell"), SHOWN, ids=[f"{page}-{i}" for i, (page, _) in enumerate(SHOWN)])
def test_a_row_says_what_is(page, cell):
    torch.manual_seed(0)
    SHOWN[page, cell]()
