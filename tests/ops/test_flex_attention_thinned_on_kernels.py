"""flex_attention on the kernels: masks that a predicate thins, max_scores, tiles that a call names."""

import math

import pytest
import torch
from mods_case import dense_flex, pairs_of_lists

from cute_attn import AuxRequest, BlockMask, backend, create_block_mask, create_mask, flex_attention
from cute_attn.mods.block_mask import as_block_mask
from cute_attn.spec.tiles import TileConfig

TILE = {"n": 32}  # narrow tiles compile sooner
SIGNS = torch.randn(300, generator=torch.Generator().manual_seed(1))
KEEP = torch.rand(2, 8, 300, generator=torch.Generator().manual_seed(0)) > 0.5


def signs(b, h, q, k):
    return (SIGNS[q] * SIGNS[k] > 0) & (q >= k)


def planes(b, h, q, k):
    return KEEP[b, h, k] & ((q + k + b) % 2 == 0) & (q % 7 != 3) & ((SIGNS[q] + SIGNS[k]) % 0.7 > 0.1)


def tensors(lengths, heads=(2, 1), batch=1, dim=64):
    numbers = torch.Generator().manual_seed(sum(lengths))
    shapes = (heads[0], lengths[0]), (heads[1], lengths[1]), (heads[1], lengths[1])
    return [torch.randn(batch, *shape, dim, generator=numbers).bfloat16() for shape in shapes]


def check(qkv, block_mask, attended, score_mod=None, options=None, **backend_options):
    """Out, lse and max_scores, at most twice as far from the formula in fp64 as the formula in bf16."""
    with backend("sim", **backend_options):
        out, aux = flex_attention(
            *qkv,
            score_mod,
            block_mask,
            enable_gqa=True,
            kernel_options={"tile": TILE, "softmax": "exact"} if options is None else options,
            return_aux=AuxRequest(lse=True, max_scores=True),
        )
    wanted = dense_flex(*qkv, score_mod, attended)
    rough = dense_flex(*qkv, score_mod, attended, dtype=torch.bfloat16)
    for name, got, right, low in zip(("out", "lse", "max_scores"), (out, *aux), wanted, rough, strict=True):
        known = right > -math.inf
        assert torch.equal(got > -math.inf, known), name
        if known.any():
            error, plain_error = ((x[known].double() - right[known]).abs().max() for x in (got, low))
            assert error <= 2 * plain_error + 1e-6, name
    return out, aux


def made(mask_mod, lengths, batch=1, heads=1, **options):
    mask = create_block_mask(mask_mod, batch, heads, *lengths, device="cpu", **options)
    assert mask.intervals is None
    return mask, create_mask(mask_mod, batch, heads, *lengths, device="cpu")


@pytest.mark.parametrize(
    ("lengths", "heads"),
    [
        ((257, 129), (2, 1)),
        pytest.param((127, 257), (3, 1), marks=pytest.mark.slow),
        pytest.param((1, 1), (8, 1), marks=pytest.mark.slow),
        pytest.param((129, 127), (1, 1), marks=pytest.mark.slow),
    ],
)
def test_pairs_are_attended_where_intervals_and_predicate_say_so(lengths, heads):
    check(tensors(lengths, heads), *made(signs, lengths, BLOCK_SIZE=16))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["late", "random", "starve"])
def test_in_every_order_of_warps_and_copies(mode):
    check(tensors((257, 129)), *made(signs, (257, 129), BLOCK_SIZE=16), mode=mode, seed=1)


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0)])
def test_without_queries_or_keys_nothing_runs(lengths):
    check(tensors(lengths), create_block_mask(signs, 1, 1, *lengths, device="cpu"), torch.zeros(lengths).bool())


@pytest.mark.slow
def test_planes_of_batch_elements_and_heads_and_rows_without_keys_under_a_score_mod():
    qkv = tensors((130, 150), (8, 1), batch=2)

    def score_mod(score, b, h, q, k):
        return score * 1.5 + (k - q) * 0.01 * (h + 1)

    _, aux = check(qkv, *made(planes, (130, 150), 2, 8), score_mod)
    assert (aux.max_scores == -math.inf).any(2).all()


def lists(rows, keys):
    """Unsorted lists with rubbish past the counts, of blocks of 48 x 40; the predicate is false in parts of full ones,
    and not asked there. And the dense mask."""
    counts, indices = torch.tensor([2, 0, 3]), torch.tensor([[2, 0, 9, -5], [7, 7, 7, 7], [1, 2, 1, 99]])
    full_counts, full_indices = torch.tensor([1, 2, 0]), torch.tensor([[1, 55, -1, 3], [3, 1, 1, 1], [4, 4, 4, 4]])
    both, size = (counts, indices, full_counts, full_indices), (48, 40)
    given = [x[None, None].int() for x in both]
    mask = BlockMask.from_kv_blocks(*given, BLOCK_SIZE=size, mask_mod=far, seq_lengths=(rows, keys))
    says = create_mask(far, 1, 1, rows, keys, device="cpu")[0, 0]
    return mask, pairs_of_lists(*both, size, says)


def far(b, h, q, k):
    return (q * k) % 3 == 1


@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 48, 64])
def test_full_blocks_are_attended_though_the_predicate_says_no(n):
    """With words of 8 and 16 bits, and with those of two rows, of tiles that no whole words make."""
    mask, attended = lists(130, 150)
    assert mask.reading().thinned(1, 1)._thinning.is_marked
    check(tensors((130, 150)), mask, attended, options={"tile": {"n": n}, "softmax": "exact"})


def test_a_tile_is_full_where_full_blocks_cover_it():
    full = torch.zeros(1, 1, 3, dtype=torch.int32), torch.zeros(1, 1, 3, 1, dtype=torch.int32)
    ones = torch.ones(1, 1, 3, dtype=torch.int32)
    mask = BlockMask.from_kv_blocks(
        ones, full[1] + 1, ones, full[1], BLOCK_SIZE=128, mask_mod=far, seq_lengths=(384, 256)
    )
    grid = mask.reading().thinned(1, 1).schedule((128, 64)).to_grid()
    assert grid.tolist() == [[[2, 2, 1, 1]] * 3]


@pytest.mark.slow
def test_what_nobody_attends_may_hold_anything_and_captured_tensors_end_where_nobody_asks():
    qkv = tensors((200, 150))
    table = torch.randn(40, generator=torch.Generator().manual_seed(3))

    def mask_mod(b, h, q, k):
        return (k % 5 == 2) & (q % 4 != 1) & ((q - k > 30) | (table[k % 40] + q > 0))

    block_mask, attended = made(mask_mod, (200, 150))
    with backend("sim"):
        wanted = flex_attention(*qkv, None, block_mask, enable_gqa=True, kernel_options={"tile": TILE})
        idle = ~attended[0, 0].any(0)
        assert idle.sum() > 100
        for x in qkv[1:]:
            x[:, :, idle] = torch.nan
        out = flex_attention(*qkv, None, block_mask, enable_gqa=True, kernel_options={"tile": TILE})
    assert torch.equal(out, wanted)


@pytest.fixture
def specs(monkeypatch):
    """Those of all launches, which do not run."""
    found = []
    for name in ("forward", "backward"):
        monkeypatch.setattr(f"cute_attn.launch.{name}.run", lambda spec, *rest: found.append(spec))
    return found


def test_values_and_lengths_compile_nothing_new(specs):
    with backend("sim"):
        for tokens, number in ((150, 2), (300, 3)):
            captured = torch.randn(tokens)
            mask = create_block_mask(
                lambda b, h, q, k, x=captured, n=number: (x[q] * x[k] > 0.1 * n) & (q >= k),
                *(1, 1, tokens, tokens, "cpu"),
            )
            flex_attention(*tensors((tokens, tokens)), None, mask, enable_gqa=True)
    assert len(specs) == 2
    assert len(set(specs)) == 1


@pytest.mark.parametrize(
    "mask", [lambda: made(signs, (130, 150))[0], lambda: lists(130, 150)[0]], ids=["made", "lists"]
)
def test_a_compiled_call_plans_what_an_eager_one_does(specs, mask):
    torch._dynamo.reset()
    qkv, block_mask = tensors((130, 150)), mask()
    compiled = torch.compile(
        lambda *qkv: flex_attention(*qkv, None, block_mask, enable_gqa=True), fullgraph=True, backend="aot_eager"
    )
    with backend("sim"):
        flex_attention(*qkv, None, block_mask, enable_gqa=True)
        compiled(*qkv)
    assert len(specs) == 2
    assert specs[0] == specs[1]


def test_a_tile_that_a_call_names_is_the_kernels(specs):
    q, k, v = (x.requires_grad_() for x in tensors((40, 40), (1, 1)))
    options = {"tile": TileConfig(128, 32), "backward_tile": {"n": 64}}
    with backend("sim"):
        flex_attention(q, k, v, kernel_options=options).sum().backward()
        flex_attention(q, k, v, kernel_options={"tile": {"m": 128, "n": 48}})
        flex_attention(q, k, v)
    assert [(spec.op, spec.tile.n) for spec in specs] == [("fwd", 32), ("bwd", 64), ("fwd", 48), ("fwd", 128)]


def test_a_tile_that_no_multiprocessor_holds_is_refused():
    q = torch.randn(1, 1, 40, 256, dtype=torch.bfloat16)
    with backend("sim"), pytest.raises(ValueError, match=r"TileConfig.n = 256 with head_dim_v 256 .* have 208"):
        flex_attention(q, q, q, kernel_options={"tile": {"n": 256}})


def test_a_mask_is_read_once_for_kernels_and_torchs_are_taken():
    from torch.nn.attention import flex_attention as torch_flex

    block_mask = torch_flex.create_block_mask(far, None, None, 200, 200, device="cpu")
    ours = as_block_mask(block_mask)
    assert ours.reading().thinned(1, 1) is as_block_mask(block_mask).reading().thinned(1, 1)
    assert not ours.reading().thinned(1, 1)._thinning.is_marked
