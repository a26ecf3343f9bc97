"""The cases of the self-test are data: each names its kernel, and the kernels of all are what a bundle must hold."""

import functools
import json
from dataclasses import replace

import pytest
import torch

from cute_attn.jit.record import note
from cute_attn.launch.captured import CapturedGradients, text_of
from cute_attn.mods.trace import trace
from cute_attn.selftest.cases import GROUPS, case_for, case_of, cases, profiled, specs
from cute_attn.selftest.check import make_problem
from cute_attn.selftest.masks import MASKS
from cute_attn.selftest.mods import MASK_MODS, SCORE_MODS
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.decode import DECODE_HEAD_DIMS, GATHER, DecodeSpec, DecodeTile
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm
from cute_attn.spec.score import ScoreForm
from cute_attn.spec.tiles import TileConfig


@pytest.fixture
def launched(monkeypatch):
    """Lists what launches ask for; nothing is compiled, and a launch does nothing."""
    import cute_attn.sim
    from cute_attn.launch import run as launch

    seen = []

    def noted(spec, backend):
        seen.append(spec)
        return launch.Kernel(spec, None, "")

    monkeypatch.setattr(launch, "kernel", noted)
    monkeypatch.setattr(cute_attn.sim, "run", lambda *arguments, **options: None)
    return seen


def test_every_case_launches_the_kernel_that_it_names_and_no_other(launched):
    from cute_attn.selftest.check import launch

    everything = specs()
    found = cases(["smoke", "matrix", "tools"], simulated=True) + profiled(simulated=True)
    for case in {(case.spec, getattr(case, "mask", ""), case.public): case for case in found}.values():
        launch(case, make_problem(case, torch.device("cpu")), "sim")
        assert launched[-1] == case.spec, case.name
        assert set(launched) <= set(everything), case.name
        assert len(launched) == (2 if case.public else 1), case.name
        launched.clear()


def test_a_case_has_one_kernel_at_every_size():
    shrunk = {case.simulated() for case in cases(GROUPS) if case.op in ("fwd", "bwd")}
    for case in shrunk:
        schedule = MASKS[case.mask](case.tokens).schedule((case.spec.tile.m, case.spec.tile.n))
        assert case.spec.mask.is_bounded == (schedule.layers > 0) or case.spec.mask.has_certain, case.name


def test_cases_have_names_of_their_own_and_come_smallest_first():
    for simulated in (False, True):
        found = cases(GROUPS, simulated)
        assert len({case.name for case in found}) == len(found)
        assert [case.work for case in found] == sorted(case.work for case in found)
    assert [case.op for case in cases(["smoke"])] == ["decode", "fwd", "bwd"]
    assert cases([]) == []


def test_a_case_travels_to_its_process_as_json():
    for case in cases(GROUPS):
        assert case_of(json.loads(json.dumps(case.to_json()))) == case


def test_the_matrix_covers_what_kernels_differ_in():
    found = cases(["matrix"])
    for op in ("fwd", "bwd"):
        mine = [case.spec for case in found if case.op == op]
        dims = {(s.head_dim, s.head_dim_v) for s in mine}
        assert dims == set(HEAD_DIMS)
        assert {s.dtype for s in mine} == {"bf16", "fp16"}
        assert {s.mask.is_bounded for s in mine} == {False, True}
        assert any(case.softcap for case in found if case.op == op)
        assert any(case.heads[0] > case.heads[1] for case in found if case.op == op)
        assert any(case.tokens % 128 for case in found if case.op == op)
    assert {s.spec.score.kind for s in found if s.op == "fwd"} == {"plain", "scaled", "softcap", "graph"}
    for op in ("fwd", "bwd"):
        assert {s.score_mod for s in found if s.op == op} == {"", *SCORE_MODS}
        mine = [s for s in found if s.op == op and s.mask_mod]
        for dim in (64, 128):
            assert {s.mask_mod for s in mine if s.dims == (dim, dim)} == set(MASK_MODS)
        assert {s.spec.mask.is_bounded for s in mine} == {False, True}
        assert {s.spec.mask.has_certain for s in mine} == {False, True}
    assert {s.spec.planes_by_head for s in found if s.op == "bwd"} == {False, True}
    assert any(s.spec.max_scores for s in found if s.op == "fwd")
    mine = [case.spec for case in found if case.op == "decode"]
    assert {(s.head_dim, s.head_dim_v) for s in mine} == set(DECODE_HEAD_DIMS)
    assert {s.cache for s in mine} == {"same", "int8", "e4m3", "e5m2"}
    assert {s.tile.rows for s in mine} == {8, 16, 32, 64}
    assert {s.piece for s in mine} == {GATHER, 16, 32, 64}
    assert {s.score.kind for s in mine} == {"plain", "scaled", "softcap"}
    assert all(any(getattr(s, name) for s in mine) for name in ("tree", "sink", "split", "token_scales"))
    assert any(s.spec.deterministic for s in found if s.op == "bwd")
    assert any(s.sink for s in found if s.op == "fwd")
    mine = [case.spec for case in found if case.op == "prefill"]
    assert {(s.head_dim, s.head_dim_v) for s in mine} == set(HEAD_DIMS)
    assert {16, 64, 128} <= {s.piece for s in mine}
    assert {s.window for s in mine} == {False, True}


def test_a_kernel_that_writes_nothing_or_is_another_one_is_wrong(launched):
    from cute_attn.selftest.check import check

    (case,) = (c for c in cases(["matrix"], simulated=True) if c.name == "fwd d64 causal 300 h2/1")
    verdict = check(case, "sim", torch.device("cpu"))
    assert "out has 38,400 NaN of 38,400" in verdict.wrong
    assert "lse has 600 NaN of 600" in verdict.wrong
    assert "another kernel was launched: none" in verdict.wrong  # the fixture's launches note nothing


@pytest.mark.parametrize(("name", "off"), [("out", 1.0), ("lse", 1e-3), ("dq", 1.0), ("dk", 1.0), ("dv", 1.0)])
@pytest.mark.parametrize("how", ["one element", "a NaN", "an infinity"])
def test_a_single_wrong_element_is_found(name, off, how, monkeypatch):
    """A reference in place of the kernel, right but for one element."""
    from cute_attn.selftest import check

    op = "bwd" if name.startswith("d") else "fwd"
    (case,) = (c for c in cases(["matrix"], simulated=True) if c.name == f"{op} d64 causal 300 h2/1")

    def launch(case, problem, backend, broken=True):
        exact = check._exact(case, problem)
        names = ("dq", "dk", "dv") if op == "bwd" else ("out", "lse")
        results = {x: exact[x].float() for x in names}
        spoilt = {"one element": results[name][0, -1, 0] + off, "a NaN": torch.nan, "an infinity": torch.inf}[how]
        results[name][0, -1, 0] = spoilt if broken else results[name][0, -1, 0]
        note(case.spec)
        return results

    monkeypatch.setattr(check, "launch", launch)
    assert check.check(case, "sim", torch.device("cpu")).wrong.startswith(name)
    monkeypatch.setattr(check, "launch", functools.partial(launch, broken=False))
    assert check.check(case, "sim", torch.device("cpu")).wrong == ""


@pytest.mark.parametrize("name", SCORE_MODS)
def test_a_score_mod_that_is_left_out_is_found(name, monkeypatch):
    from cute_attn.selftest import check

    (case,) = (c for c in cases(["matrix"], simulated=True) if c.name == f"fwd d128 causal 300 h2/1 score_mod {name}")

    def launch(case, problem, backend, score_mod=None):
        q, k, v = (x.double() for x in (problem.q, problem.k, problem.v))
        out, lse, _ = check.plain_attention(q, k, v, problem.pairs, None, case.softmax_scale, 0.0, score_mod)
        note(case.spec)
        return {"out": out.float(), "lse": lse.float()}

    monkeypatch.setattr(check, "launch", launch)
    assert check.check(case, "sim", torch.device("cpu")).wrong.startswith("out is off")
    score_mod = make_problem(case, torch.device("cpu")).score_mod
    monkeypatch.setattr(check, "launch", functools.partial(launch, score_mod=score_mod))
    assert check.check(case, "sim", torch.device("cpu")).wrong == ""


def thinned_cases():
    return [c for c in cases(["matrix"], simulated=True) if c.op in ("fwd", "bwd") and c.mask_mod]


@pytest.mark.parametrize(("op", "name"), [*(("fwd", name) for name in MASK_MODS), ("bwd", "unless certain")])
def test_a_mask_mod_that_is_left_out_is_found(name, op, monkeypatch):
    from cute_attn.selftest import check

    (case,) = (c for c in thinned_cases() if (c.op, c.mask_mod, c.dims) == (op, name, (64, 64)))
    names = ("dq", "dk", "dv") if op == "bwd" else ("out", "lse")

    def launch(case, problem, backend, asks=False):
        """A reference in place of the kernel."""
        note(case.spec)
        seen = problem.attended if asks else replace(problem, attended=None).pairs
        found = check._exact(case, replace(problem, attended=seen))
        return {x: found[x].float() for x in names}

    monkeypatch.setattr(check, "launch", launch)
    assert check.check(case, "sim", torch.device("cpu")).wrong.startswith(f"{names[0]} is off")
    monkeypatch.setattr(check, "launch", functools.partial(launch, asks=True))
    assert check.check(case, "sim", torch.device("cpu")).wrong == ""


def test_kernels_meet_tiles_that_a_mask_mod_leaves_whole_and_others():
    for case in thinned_cases():
        grid = make_problem(case, torch.device("cpu")).mask.schedule((case.spec.tile.m, case.spec.tile.n)).to_grid()
        assert (grid == 1).any()
        assert (grid == 2).any() or case.mask_mod in ("two comparisons", "documents")


TABLES = torch.zeros(3, 3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bool), torch.zeros(())


def of_a_user(score, b, h, q, k):
    return torch.where(TABLES[1][k], score * TABLES[2], score) + TABLES[0][h, q] * 2.5 + (q - k) // 7


def of_a_users_mask(b, h, q, k):
    return (TABLES[1][k] | ((q - k) % 7 < 3)) & (TABLES[0][h, q] != 2.5)


BY_HEAD, FOR_ALL = (
    text_of(trace(mask_mod, "mask_mod"), (1, 4, 300, 300))
    for mask_mod in (of_a_users_mask, lambda b, h, q, k: TABLES[1][k] | (q * k % 7 == 2))
)


def of_a_users_backward():
    """With a gradient of the 0-d tensor alone."""
    traced = trace(of_a_user, "score_mod")
    return CapturedGradients(traced, [x.ndim == 0 for x in traced.tensors], torch.device("cpu")).text((1, 4, 300, 300))


@pytest.mark.parametrize(
    "spec",
    [
        ForwardSpec(score=ScoreForm("graph", text_of(trace(of_a_user, "score_mod"), (1, 4, 300, 300)))),
        BackwardSpec(score=ScoreForm("graph", of_a_users_backward())),
        ForwardSpec(mask=MaskForm(True, predicate=BY_HEAD)),
        ForwardSpec(mask=MaskForm(True, predicate=BY_HEAD, has_certain=True), tile=TileConfig(128, 32)),
        BackwardSpec(mask=MaskForm(predicate=BY_HEAD), planes_by_head=True),
        BackwardSpec(mask=MaskForm(True, predicate=FOR_ALL, has_certain=True), planes_by_head=True),
        BackwardSpec(mask=MaskForm(True, predicate=FOR_ALL)),
        BackwardSpec(mask=MaskForm(True), planes_by_head=True),
        ForwardSpec(softmax="exact", max_scores=True),
        ForwardSpec(mask=MaskForm(True)),
        ForwardSpec(mask=MaskForm(True), score=ScoreForm("softcap"), sink=True),
        ForwardSpec(mask=MaskForm(True), score=ScoreForm("scaled"), fp32_out=True, dtype="fp16"),
        ForwardSpec(softmax="exact", max_logits=True),
        ForwardSpec(mask=MaskForm(True), score=ScoreForm("softcap"), sink=True, piece=16, window=True),
        ForwardSpec(
            mask=MaskForm(True), head_dim=192, head_dim_v=192, softmax="exact", piece=112, tile=TileConfig(128, 112)
        ),
        BackwardSpec(mask=MaskForm(True), dlse=True, dq=False),
        BackwardSpec(mask=MaskForm(True), score=ScoreForm("softcap"), deterministic=True, fp32_gradients=True),
        BackwardSpec(head_dim=192, head_dim_v=128, mask=MaskForm(True), dk=False, dv=False),
        DecodeSpec(split=True, sink=True, piece=GATHER, tile=DecodeTile(16)),
        DecodeSpec(cache="int8", score=ScoreForm("softcap"), token_scales=True, tree=True, tile=DecodeTile(64)),
    ],
    ids=str,
)
def test_any_kernel_of_a_bundle_has_a_case_that_launches_it(spec, launched):
    from cute_attn.selftest.check import launch

    case = case_for(spec).simulated()
    launch(case, make_problem(case, torch.device("cpu")), "sim")
    assert launched == [spec]
