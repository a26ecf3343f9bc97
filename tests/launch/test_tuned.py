"""Which tile a launch takes: exact, nearest bucket, shipped table, static default, in this order."""

import dataclasses
import json
import math

import pytest
import torch

from cute_attn import backend, create_block_mask, flex_attention, sim
from cute_attn.launch import tiles, tuned
from cute_attn.launch.backward import backward
from cute_attn.launch.captured import CapturedGradients
from cute_attn.launch.forward import forward
from cute_attn.launch.operations import BACKWARD, FORWARD
from cute_attn.launch.tuned import MaskClass, TunedKey, lookup, mask_class, tuned_tile
from cute_attn.mask import causal, full, sliding_window
from cute_attn.mods.trace import trace
from cute_attn.spec import operation as operation_module
from cute_attn.spec.tiles import BackwardTile, TileConfig

DEFAULT, MEASURED, SHIPPED = TileConfig(), TileConfig(128, 96), TileConfig(128, 80)
KEY = TunedKey.of("NVIDIA H200", 132, "fwd", "bf16", (128, 128), (32, 8), causal(8192))


@pytest.fixture(autouse=True)
def no_tables(monkeypatch, tmp_path, empty_cache):
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    tuned.forget()
    yield
    tuned.forget()


def write(path, *entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    decoded = [{"key": dataclasses.asdict(k), "tile": dataclasses.asdict(t), "seconds": 1e-4} for k, t in entries]
    path.write_text(json.dumps({"format": 1, "entries": decoded}))
    tuned._read_all.cache_clear()


def user_table(*entries):
    write(tuned.table_path("NVIDIA H200"), *entries)


def shipped_table(*entries):
    write(tuned.SHIPPED / "h200.json", *entries)


def moved(**buckets):
    return dataclasses.replace(KEY, **{name: getattr(KEY, name) + by for name, by in buckets.items()})


def test_without_a_table_the_default_is_taken():
    assert lookup(KEY, DEFAULT) == (DEFAULT, "static default", None)


def test_the_exact_entry_comes_before_nearer_ones_the_users_table_before_the_shipped_one():
    shipped_table((KEY, SHIPPED))
    assert lookup(KEY, DEFAULT) == (SHIPPED, "shipped table", KEY)
    user_table((moved(seqlen_q=1), MEASURED))
    assert lookup(KEY, DEFAULT) == (MEASURED, "nearest bucket", moved(seqlen_q=1))
    user_table((moved(seqlen_q=1), SHIPPED), (KEY, MEASURED))
    assert lookup(KEY, DEFAULT) == (MEASURED, "exact", KEY)


def test_the_nearest_bucket_is_taken_up_to_a_distance():
    user_table((moved(seqlen_q=1, seqlen_k=2), MEASURED), (moved(seqlen_k=2, density=2), SHIPPED))
    assert lookup(KEY, DEFAULT).tile == MEASURED
    user_table((moved(seqlen_q=3, seqlen_k=2), MEASURED))
    assert lookup(KEY, DEFAULT).source == "static default"


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA H100"}, {"sms": 78}, {"op": "bwd"}, {"dtype": "fp16"}, {"head_dim": 64}, {"head_dim_v": 64},
        {"layers": 2}, {"has_lower": True}, {"has_upper": False},
    ],
    ids=lambda other: f"another-{next(iter(other))}",
)  # fmt: skip
def test_another_gpu_operation_type_size_or_kind_of_mask_is_never_near(other):
    assert KEY.distance(dataclasses.replace(KEY, **other)) == math.inf


def test_the_ratio_of_heads_counts_in_doublings():
    assert KEY.distance(dataclasses.replace(KEY, gqa=16)) == 2.0


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"format": 2, "entries": []}', '{"format": 1, "entries": [{"key": {}, "tile": {}}]}']
)
def test_a_table_that_cannot_be_read_is_left_out_with_one_warning(content):
    path = tuned.table_path("NVIDIA H200")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.warns(UserWarning, match="the tuned table .* is not used"):
        assert lookup(KEY, DEFAULT).tile == DEFAULT
    lookup(KEY, DEFAULT)


def test_tiles_that_no_longer_fit_are_left_out_with_one_warning():
    """In a table of other kernels: words of bits lie beside what filled the shared memory."""
    small, too_large = dataclasses.replace(KEY, head_dim=64, head_dim_v=64), TileConfig(128, 96, 4)
    user_table((KEY, too_large), (moved(seqlen_q=1), too_large), (moved(seqlen_q=2), MEASURED), (small, DEFAULT))
    with pytest.warns(
        UserWarning, match=r"2 tiles of the tuned table .* are not used, no kernel .* bytes of shared"
    ) as told:
        found = lookup(KEY, DEFAULT)
    assert found == (MEASURED, "nearest bucket", moved(seqlen_q=2))
    assert len(told) == 1


def test_the_same_tile_is_taken_where_it_fits():
    dense, tile = dataclasses.replace(KEY, layers=0, density=0), TileConfig(128, 96, 4)
    user_table((dense, tile))
    assert lookup(dense, DEFAULT).tile == tile


def test_an_installed_table_comes_first():
    user_table((KEY, SHIPPED))
    tuned.install({"format": 1, "entries": [{"key": dataclasses.asdict(KEY), "tile": dataclasses.asdict(MEASURED)}]})
    assert lookup(KEY, DEFAULT).tile == MEASURED


def test_an_installed_table_for_a_near_problem_does_not_hide_the_exact_entry_of_the_users():
    user_table((KEY, SHIPPED))
    near = dataclasses.asdict(moved(seqlen_q=1))
    tuned.install({"format": 1, "entries": [{"key": near, "tile": dataclasses.asdict(MEASURED)}]})
    assert lookup(KEY, DEFAULT).tile == SHIPPED


def test_backward_entries_hold_backward_tiles():
    key, tile = dataclasses.replace(KEY, op="bwd"), BackwardTile(64, 4)
    user_table((key, tile))
    assert lookup(key, BackwardTile()).tile == tile


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (full(512), MaskClass(0, False, True, 0)),
        (causal(512), MaskClass(1, False, True, 1)),
        (sliding_window(1024, left=127, right=0), MaskClass(1, True, True, 3)),
    ],
    ids=["full", "causal", "window"],
)
def test_the_class_of_a_mask_is_its_layers_bounds_and_density(mask, expected):
    assert mask_class(mask) == expected


def test_a_launch_asks_for_its_gpu_and_simulation_for_none(monkeypatch):
    user_table((KEY, MEASURED))
    arguments = ("fwd", "bf16", (128, 128), (32, 8), causal(8192))
    monkeypatch.setattr(tuned, "gpu_of", lambda device: ("NVIDIA H200", 132))
    assert tuned_tile(*arguments, torch.device("cuda"), DEFAULT) == MEASURED
    assert tuned_tile(*arguments, torch.device("cpu"), DEFAULT) == DEFAULT
    monkeypatch.setattr(tuned, "gpu_of", lambda device: ("NVIDIA H100", 132))
    monkeypatch.setattr(tuned, "mask_class", None)  # would fail if it were asked
    assert tuned_tile(*arguments[:4], causal(8192), torch.device("cuda"), DEFAULT) == DEFAULT


def test_a_mask_is_looked_up_once_until_the_tables_change(monkeypatch):
    user_table((KEY, MEASURED))
    monkeypatch.setattr(tuned, "gpu_of", lambda device: ("NVIDIA H200", 132))
    arguments = ("fwd", "bf16", (128, 128), (32, 8), causal(8192), torch.device("cuda"), DEFAULT)
    assert tuned_tile(*arguments) == MEASURED
    with monkeypatch.context() as patch:
        patch.setattr(tuned, "tables", None)  # would fail if they were asked
        assert tuned_tile(*arguments) == MEASURED
    tuned.install({"format": 1, "entries": [{"key": dataclasses.asdict(KEY), "tile": dataclasses.asdict(SHIPPED)}]})
    assert tuned_tile(*arguments) == SHIPPED


@pytest.fixture
def asked(compiles, monkeypatch):
    """What tables were asked for, which have a tile for every kernel; nothing runs."""
    found = []

    def measured(op, dtype, dims, heads, mask, device, default):
        found.append((op, dtype, dims, heads))
        return TileConfig(128, 80) if op == "fwd" else BackwardTile(64)

    monkeypatch.setattr(tiles, "tuned_tile", measured)
    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    return found


def inputs(heads, tokens=256):
    q = torch.randn(1, heads, tokens, 128, dtype=torch.bfloat16, requires_grad=True)
    return q, *(torch.randn(1, 2, tokens, 128, dtype=torch.bfloat16) for _ in range(2))


def test_launches_take_the_tuned_tile_unless_told_another_or_keeping_the_exact_maximum(asked, compiles):
    q, k, v = (x.transpose(1, 2).detach() for x in inputs(4))
    options = {"softmax_scale": 0.1, "backend": "sim"}
    out, lse, _ = forward(q, k, v, causal(256), **options)
    backward(out, q, k, v, out, lse, causal(256), **options)
    assert asked == [("fwd", "bf16", (128, 128), (4, 2)), ("bwd", "bf16", (128, 128), (4, 2))]
    forward(q, k, v, causal(256), tile=TileConfig(128, 112), **options)
    forward(q, k, v, causal(256), return_max_logits=True, **options)
    backward(out, q, k, v, out, lse, causal(256), tile=BackwardTile(128, 4), **options)
    assert [spec.tile.n for spec in compiles] == [80, 64, 112, 128, 128]
    assert len(asked) == 2


def odd(b, h, q, kv):
    return (q + kv) % 3 > 0


@pytest.mark.parametrize(
    ("score_mod", "mask_mod"),
    [(lambda score, b, h, q, kv: score * (q > kv), None), (None, odd)],
    ids=["score_mod", "predicate"],
)
def test_with_a_graph_both_directions_have_the_tile_of_graphs(score_mod, mask_mod, asked, compiles, monkeypatch):
    """Nothing was measured with one."""
    row = dataclasses.replace(BACKWARD, graph_tile=lambda *dims: BackwardTile(128, 4))
    monkeypatch.setitem(operation_module._table, "bwd", row)
    mask = causal(256) if mask_mod is None else create_block_mask(mask_mod, None, None, 256, 256, device="cpu")
    q, k, v = inputs(2)
    with backend("sim"):
        flex_attention(q, k, v, score_mod, mask).sum().backward()
    assert [spec.tile for spec in compiles] == [FORWARD.graph_tile(128, 128), BackwardTile(128, 4)]
    assert all(spec.score.graph or spec.mask.predicate for spec in compiles)
    assert asked == []
    with backend("sim"):
        flex_attention(q, k, v, None, causal(256)).sum().backward()
    assert [spec.tile.n for spec in compiles[2:]] == [80, 64]
    assert [op for op, *_ in asked] == ["fwd", "bwd"]


def test_a_backward_that_is_given_its_mask_has_the_tile_of_graphs_too(asked, compiles):
    score_mod = trace(lambda score, b, h, q, kv: score * (q > kv), "score_mod")
    q, k, v = (x.transpose(1, 2).detach() for x in inputs(4))
    options = {"softmax_scale": 0.1, "backend": "sim"}
    out, lse, _ = forward(q, k, v, causal(256), score_mod=score_mod, **options)
    captured = CapturedGradients(score_mod, (), q.device)
    backward(out, q, k, v, out, lse, causal(256), captured=captured, **options)
    assert [spec.tile for spec in compiles] == [row.graph_tile(128, 128) for row in (FORWARD, BACKWARD)]
    assert asked == []
