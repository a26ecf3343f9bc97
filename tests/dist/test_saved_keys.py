"""Keys, and modules that hold one, copied, saved and loaded."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from problems import Problem, check, config, documents, results
from ranks import run_ranks
from torch.distributed.device_mesh import init_device_mesh

from cute_attn import mask as masks
from cute_attn.dist import (
    calc_attn,
    clear_cache,
    dispatch,
    get_most_recent_key,
    magi_attn_flex_key,
    make_flex_key_for_new_mask_after_dispatch,
    undispatch,
)

LENGTH = 41
PROBLEM = Problem(documents(13, 28))


def make_key(group=None, mover="group_cast", mask=PROBLEM.mask, **flags):
    group = dist.group.WORLD if group is None else group
    keys = mask.seqlen_k
    return magi_attn_flex_key(
        mask, None, None, LENGTH, keys, chunk_size=4, cp_group_or_mesh=group, dist_attn_config=config(mover), **flags
    )


class Layer(torch.nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key, self.linear = key, torch.nn.Linear(8, 8, dtype=torch.float64)

    def forward(self, x):
        return calc_attn(self.linear(x), x, x, self.key)[0]


def solve(key):
    def attention(q, k, v, sink):
        out, lse, most = calc_attn(*(dispatch(x, key) for x in (q, k, v)), key, sink, return_max_logits=True)
        return undispatch(out, key), undispatch(lse.T, key).T, most

    check("loaded", results(PROBLEM.inputs, PROBLEM.gradients, attention), PROBLEM.wanted)


def test_a_copy_of_a_key_is_the_key_and_a_saved_one_is_found_again():
    run_ranks(2, _copied)


def _copied(rank):
    key = make_key()
    for same in (copy.copy(key), copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert same is key
    layer = Layer(key)
    twin = copy.deepcopy(layer)
    local = dispatch(torch.randn(LENGTH, 2, 8, dtype=torch.float64), key)
    assert twin.key is key
    assert twin.linear is not layer.linear
    assert torch.equal(twin(local), layer(local))


def test_a_key_that_is_not_kept_is_planned_again_where_it_lay():
    run_ranks(2, _loaded)


def _loaded(rank):
    first = make_key()
    window = make_flex_key_for_new_mask_after_dispatch(masks.sliding_window(LENGTH, left=5, right=0), None, None, first)
    of_cross = make_key(mask=masks.full(LENGTH, 30), is_same_source=False)
    file = io.BytesIO()
    torch.save({"layer": Layer(first), "keys": [first, window, of_cross]}, file)
    local = dispatch(torch.randn(LENGTH, 2, 8, dtype=torch.float64), first)
    out = calc_attn(local, local, local, window)[0]
    placements = [[key.manager.placement(side).chunks for side in "qk"] for key in (first, window, of_cross)]
    clear_cache()
    with pytest.raises(ValueError, match="no most recent key"):
        get_most_recent_key()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded["layer"].key is loaded["keys"][0]
    for key, chunks in zip(loaded["keys"], placements, strict=True):
        assert all(torch.equal(key.manager.placement(side).chunks, x) for side, x in zip("qk", chunks, strict=True))
    solve(loaded["keys"][0])
    assert torch.equal(calc_attn(local, local, local, loaded["keys"][1])[0], out)
    with pytest.raises(ValueError, match="no most recent key"):
        get_most_recent_key()  # loading is no asking: other ranks may not load
    again = make_key()
    assert again == loaded["keys"][0]
    assert pickle.loads(pickle.dumps(loaded["keys"][0])) is again


def test_the_groups_of_a_mesh_are_found_again():
    run_ranks(4, _on_a_mesh)


def _on_a_mesh(rank):
    key = make_key(init_device_mesh("cpu", (2, 2), mesh_dim_names=("ring", "ulysses")), "ulysses_ring")
    saved = pickle.dumps(key)
    clear_cache()
    loaded = pickle.loads(saved)
    assert loaded == key
    assert loaded.groups == key.groups
    solve(loaded)


def test_a_group_that_is_not_here_is_named_with_what_to_do():
    run_ranks(2, _elsewhere)


def _elsewhere(rank):
    group = dist.new_group()
    key = make_key(group)
    saved = pickle.dumps(key)
    dist.destroy_process_group(group)
    with pytest.raises(RuntimeError, match=r"of ranks \[0, 1\], .* is not here: make process groups as the program"):
        pickle.loads(saved)
    with pytest.raises(RuntimeError, match="the process group of a key that is saved has been destroyed"):
        pickle.dumps(key)
    assert copy.deepcopy(key) is key
    alone = [dist.new_group([i]) for i in range(2)][rank]
    find_again, _ = make_key().groups.__reduce__()
    with pytest.raises(RuntimeError, match=rf"of ranks \[0, 1\], .* has ranks \[{rank}\] here"):
        find_again((alone.group_name, [0, 1]), None, None)
