"""Block masks of every block size and state of their lists on the kernels, in simulation, forward and backward, against
the dense formula in fp64. A kernel knows nothing of blocks: all sizes share one."""

import itertools
from dataclasses import replace

import pytest
import torch
from test_score_mods_backward import check

from cute_attn import BlockMask, backend, create_block_mask, create_mask, flex_attention

# For each size of blocks: queries and keys, heads of queries and keys.
SIZES = {
    64: ((129, 300), (8, 1)),
    128: ((257, 290), (1, 1)),
    256: ((257, 300), (2, 2)),
    (256, 64): ((270, 300), (1, 1)),
    (200, 96): ((210, 300), (3, 1)),
}
DIMS = (64, 40)
STATES = ["unsorted", "compact", "sliced", "full only"]
SEED = 5  # with which full blocks alone are an interval a row at every size


def scattered(first):
    """Of rows that count from one: a number that comes at run time, so that all are one graph."""
    return lambda b, h, q, k: (q + first) * k % 3 == 1


def drawn_blocks(rows, columns, seed):
    """bool `(rows, columns)` of partial and of full blocks, some both; the last row has none."""
    generator = torch.Generator().manual_seed(seed)
    partial, full = (torch.rand(rows, columns, generator=generator) < share for share in (0.5, 0.4))
    partial[0, 0], full[0, 0], full[0, -1] = True, False, True
    partial[-1], full[-1] = False, False
    return partial, full


def listed(blocks, state):
    """Counts and indices: "unsorted", one of them twice, and rubbish behind; "compact", no wider than the longest."""
    columns = [row.nonzero()[:, 0].tolist() for row in blocks]
    if state == "unsorted":
        columns = [[*reversed(found), *found[:1]] for found in columns]
    width = max(map(len, columns)) + (state == "unsorted")
    counts = torch.tensor([len(found) for found in columns], dtype=torch.int32)
    indices = torch.tensor([[*found, *[99] * (width - len(found))] for found in columns], dtype=torch.int32)
    return counts[None, None], indices[None, None]


def pairs(blocks, size, lengths):
    """The pairs of blocks, bool `lengths`."""
    return blocks.repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)[: lengths[0], : lengths[1]]


def of_lists(size, lengths, state):
    """A mask, and what it attends by the definition. "sliced": of a longer one, without its first row of blocks."""
    size = size if isinstance(size, tuple) else (size, size)
    first = size[0] if state == "sliced" else 0
    rows, keys = lengths[0] + first, lengths[1]
    partial, full = drawn_blocks(-(-rows // size[0]), -(-keys // size[1]), sum(size) + SEED)
    if state == "sliced":
        partial, full = (torch.cat([x[-1:], x[:-1]]) for x in (partial, full))  # the row without blocks goes
    if state == "full only":
        partial = torch.zeros_like(partial)
    kind = "compact" if state == "compact" else "unsorted"
    mask = BlockMask.from_kv_blocks(
        *listed(partial, kind), *listed(full, kind), BLOCK_SIZE=size, mask_mod=scattered(3), seq_lengths=(rows, keys)
    )
    says = create_mask(scattered(3), 1, 1, rows, keys, device="cpu")[0, 0]
    attended = (pairs(full, size, (rows, keys)) | (pairs(partial, size, (rows, keys)) & says))[first:]
    if state == "sliced":
        mask = mask[:, :, 1:]
        mask.mask_mod = scattered(3 + first)
    return mask, attended[None, None]


@pytest.mark.slow
@pytest.mark.parametrize("size", [(200, 96), *(pytest.param(x, marks=pytest.mark.slow) for x in list(SIZES)[:-1])])
def test_blocks_of_any_size_have_out_lse_and_gradients_of_their_mask_mod(size):
    def dilated(b, h, q, k):
        return (q - k) % 3 == 0

    lengths, heads = SIZES[size]
    block_mask = create_block_mask(dilated, None, None, *lengths, device="cpu", BLOCK_SIZE=size)
    attended = create_mask(dilated, 1, 1, *lengths, device="cpu")
    with backend("sim"):
        check(block_mask, lambda c: None, attended=attended, heads=heads, dims=DIMS)


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("size", SIZES)
def test_lists_in_every_state_and_rows_without_blocks(size, state):
    lengths, heads = SIZES[size]
    block_mask, attended = of_lists(size, lengths, state)
    assert (block_mask.intervals is None) == (state != "full only")
    assert state == "sliced" or not attended.any(3).all()
    with backend("sim", mode="random", seed=1):
        check(block_mask, lambda c: None, attended=attended, heads=heads, dims=DIMS)


def test_all_sizes_and_states_are_one_kernel_and_intervals_another(monkeypatch):
    found = []
    for name in ("forward", "backward"):
        monkeypatch.setattr(f"cute_attn.launch.{name}.run", lambda spec, *rest: found.append(spec))
    for states in (STATES[:-1], STATES[-1:]):
        for (size, (lengths, heads)), state in itertools.product(SIZES.items(), states):
            q, k = (
                torch.zeros(1, n, tokens, 64, dtype=torch.bfloat16, requires_grad=True)
                for n, tokens in zip(heads, lengths, strict=True)
            )
            with backend("sim"):
                flex_attention(q, k, k, None, of_lists(size, lengths, state)[0], enable_gqa=True).sum().backward()
        assert len(found) == 2 * len(states) * len(SIZES)
        alike = [replace(spec, packed_heads=1) if spec.op == "fwd" else spec for spec in found]  # few rows share tiles
        assert [spec.op for spec in dict.fromkeys(alike)] == ["fwd", "bwd"]
        found.clear()
