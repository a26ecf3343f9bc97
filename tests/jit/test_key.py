"""Keys: every field of a spec is in them, and everything else that machine code depends on; nothing else is."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from cute_attn.jit import fingerprint
from cute_attn.jit.fingerprint import key
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.operation import operation, parse_spec
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import BackwardTile, TileConfig

FORWARD = ForwardSpec(mask=MaskForm(True))
BACKWARD = BackwardSpec(mask=MaskForm(True))
# What to put in the place of each field of a spec, with what else must change for the spec to be valid.
CHANGES = {
    FORWARD: {
        "dtype": {"dtype": "fp16"},
        "head_dim": {"head_dim": 192},
        "head_dim_v": {"head_dim": 192, "head_dim_v": 192},
        "mask": {"mask": MaskForm()},
        "score": {"score": ScoreForm("softcap")},
        "sink": {"sink": True},
        "max_logits": {"max_logits": True, "softmax": "exact"},
        "max_scores": {"max_scores": True, "softmax": "exact"},
        "softmax": {"softmax": "exact"},
        "fp32_out": {"fp32_out": True},
        "piece": {"piece": 64},
        "window": {"piece": 64, "window": True},
        "packed_heads": {"packed_heads": 8},
        "tile": {"tile": TileConfig(n=112)},
    },
    BACKWARD: {
        "dtype": {"dtype": "fp16"},
        "head_dim": {"head_dim": 192},
        "head_dim_v": {"head_dim": 192, "head_dim_v": 192},
        "mask": {"mask": MaskForm()},
        "score": {"score": ScoreForm("softcap")},
        "dq": {"dq": False},
        "dk": {"dk": False},
        "dv": {"dv": False},
        "dlse": {"dlse": True},
        "deterministic": {"deterministic": True},
        "fp32_gradients": {"fp32_gradients": True},
        "planes_by_head": {"planes_by_head": True},
        "tile": {"tile": BackwardTile(n=64)},
    },
}
GRAPH = '[[["score",[],"f32"],["neg",[0],"f32"]],[1],[],[]]'


PREDICATE = '[[["q",[],"i32"],["kv",[],"i32"],["lt",[0,1],"bool"]],[2],[],[]]'


def _each(**changes):
    return {name: {name: value} for name, value in changes.items()}


# What a spec is made of, each with the specs that can have all of the changes.
PARTS = {
    TileConfig(): (ForwardSpec(softmax="exact"), _each(m=192, n=112, stages=4, ping_pong=False)),
    BackwardTile(): (BackwardSpec(), _each(n=64, q_stages=4, do_stages=1, dq_chunks=2)),
    MaskForm(True): (
        ForwardSpec(),
        _each(is_bounded=False, predicate=PREDICATE) | {"has_certain": {"predicate": PREDICATE, "has_certain": True}},
    ),
    ScoreForm(): (ForwardSpec(), {"kind": {"kind": "scaled"}, "graph": {"kind": "graph", "graph": GRAPH}}),
}


@pytest.mark.parametrize("spec", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_every_field_of_a_spec_changes_the_key(spec):
    assert set(CHANGES[spec]) == {field.name for field in dataclasses.fields(spec)}, "a field has no change listed"
    changed = [dataclasses.replace(spec, **change) for change in CHANGES[spec].values() if change]
    keys = [key(s) for s in (spec, *changed)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("part", "field"), list(zip(PARTS, ["tile", "tile", "mask", "score"], strict=True)))
def test_every_field_of_a_tile_and_of_a_form_changes_the_key(part, field):
    base, changes = PARTS[part]
    assert set(changes) == {field.name for field in dataclasses.fields(part)}, "a field has no change listed"
    parts = [part, *(dataclasses.replace(part, **change) for change in changes.values())]
    keys = [key(dataclasses.replace(base, **{field: p})) for p in parts]
    assert len(set(keys)) == len(keys)


def test_specs_that_compare_equal_in_python_but_differ_in_type_are_refused_not_confused():
    with pytest.raises(TypeError, match="is_bounded"):
        ForwardSpec(mask=MaskForm(1))
    with pytest.raises(TypeError, match="sink"):
        ForwardSpec(sink=1)


@pytest.mark.parametrize("spec", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_a_spec_survives_the_way_through_json(spec):
    for s in [spec, *(dataclasses.replace(spec, **c) for c in CHANGES[spec].values() if c)]:
        again = parse_spec(json.dumps(json.loads(s.canonical()), indent=3))
        assert again == s
        assert key(again) == key(s)


@pytest.mark.slow
def test_keys_are_equal_across_processes_and_hash_seeds():
    program = (
        "import sys; from cute_attn.jit.fingerprint import key; from cute_attn.spec.operation import parse_spec; "
        "print(*[key(parse_spec(text)) for text in sys.argv[1:]])"
    )
    texts = [FORWARD.canonical(), BACKWARD.canonical()]
    for seed in ("0", "4711"):
        result = subprocess.run(
            [sys.executable, "-c", program, *texts],
            capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert result.stdout.split() == [key(FORWARD), key(BACKWARD)], result.stderr


def test_the_sources_the_packages_and_the_architecture_change_the_key(monkeypatch):
    before = key(FORWARD)
    for name, value in (
        ("_sources", lambda parts: "other"),
        ("_packages", lambda: {"nvidia-cutlass-dsl": "0"}),
        ("ARCHITECTURE", "sm_100a"),
        ("FORMAT", 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, name, value)
            assert key(FORWARD) != before, name
    assert key(FORWARD) == before


def test_the_fingerprint_covers_the_sources_of_the_operation_and_no_launcher(monkeypatch, tmp_path):
    shared = ["columns.py", "spec/forward.py", "spec/backward.py", "sm90/ptx.py", "jit/compile.py"]
    plain = {op: [f"{op}/kernel.py", f"{op}/arguments.py", *shared] for op in ("fwd", "bwd")}
    specs = {FORWARD: plain["fwd"], BACKWARD: plain["bwd"]}
    of_graphs = dataclasses.replace(FORWARD, score=ScoreForm("graph", GRAPH))
    specs[of_graphs] = [*plain["fwd"], "mods/graph.py", "mods/device/evaluator.py"]
    specs[dataclasses.replace(FORWARD, mask=MaskForm(predicate=PREDICATE))] = specs[of_graphs]
    backwards = dataclasses.replace(BACKWARD, score=ScoreForm("graph", GRAPH))
    specs[backwards] = [*plain["bwd"], "mods/graph.py", "mods/device/evaluator.py", "mods/scatters.py"]
    names = sorted({"launch/forward.py", "launch/operations.py", "mods/recognise.py"}.union(*specs.values()))
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(fingerprint, "__file__", str(tmp_path / "jit" / "fingerprint.py"))
    sources = fingerprint._sources.__wrapped__
    for spec, own in specs.items():
        parts = operation(spec.op).sources(spec)
        for name in names:
            before = sources(parts)
            (tmp_path / name).write_text("after")
            assert (sources(parts) != before) == (name in own), (spec, name)
            (tmp_path / name).write_text("before")


def test_run_time_values_compile_nothing_new(compiles, monkeypatch):
    """Lengths that are whole tiles, batch, heads, strides, scale, the softcap's value and the sink's are run-time."""
    import torch

    from cute_attn import sim
    from cute_attn.launch.forward import forward
    from cute_attn.mask import causal

    monkeypatch.setattr(sim, "run", lambda *arguments, **options: None)
    for batch, rows, heads_q, heads_k, scale in ((1, 256, 2, 1, 0.1), (2, 512, 6, 3, 0.7), (1, 1024, 4, 4, 1.0)):
        q = torch.randn(batch, rows, heads_q, 128, dtype=torch.bfloat16)
        k, v = torch.randn(2, batch, rows, heads_k, 128, dtype=torch.bfloat16)
        for softcap in (0.0, 10 * scale):
            forward(q, k, v, causal(rows), softmax_scale=scale, softcap=softcap, backend="sim")
    assert len(compiles) == 2, compiles
    assert {spec.score.kind for spec in compiles} == {"plain", "softcap"}
