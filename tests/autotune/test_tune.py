"""The search: what is pruned when, what is measured how, and who wins. On a GPU and a clock that are fake."""

from itertools import count
from statistics import median

import pytest
from fake_gpu import FakeCompiler, FakeGpu, loop, profile

from autotune import PRESETS, Problem, tune
from autotune.measure import EFFORTS, Lost, choose
from autotune.model import guess
from autotune.predicted import predictions_of
from autotune.profile import Profile
from autotune.space import candidates
from cute_attn.predict.call import predict
from cute_attn.predict.kernel import Code
from cute_attn.predict.machine import H200
from cute_attn.predict.ours import call_of
from cute_attn.spec.operation import operation
from cute_attn.spec.tiles import BackwardTile, TileConfig

FORWARD, BACKWARD = Problem(op="fwd", seqlen_q=1024, seqlen_k=1024), Problem(op="bwd", seqlen_q=1024, seqlen_k=1024)
DEFAULT, FAST = FORWARD.default, TileConfig(128, 96)


def fake(device=None, problem=FORWARD, compiler=None, **options):
    return tune(problem, device, compiler=compiler or FakeCompiler(), **options)


# ---------------------------------------------------------------- pruning


@pytest.mark.parametrize("problem", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_what_does_not_fit_is_refused_with_the_reason_before_anything_is_compiled(problem):
    kept, refused = candidates(problem)
    assert kept[0] == problem.default
    assert set(kept) | {tile for tile, _ in refused} == {*operation(problem.op).tiles(), problem.default}
    assert not set(kept) & {tile for tile, _ in refused}
    reasons = " ".join(reason for _, reason in refused)
    for resource in ("registers", "shared memory") if problem.op == "fwd" else ("shared memory",):
        assert resource in reasons
    compiler = FakeCompiler()
    fake(problem=problem, compiler=compiler, effort="full")
    assert {spec.tile for spec in compiler.specs} == set(kept)


def test_spills_and_serialised_products_never_run():
    def bad(spec):
        if spec.tile.n == 96:
            return Profile(168, 64)
        if spec.tile.n == 112:
            return Profile(168, 0, ("(C7512) Potential Performance Loss: wgmma serialized",))
        return profile(spec)

    gpu = FakeGpu({TileConfig(128, 96): 1e-6, TileConfig(128, 112): 1e-6})
    tuning = fake(gpu, compiler=FakeCompiler(bad), effort="full")
    assert {96, 112} & {tile.n for tile in tuning.compiled}
    assert not {96, 112} & {tile.n for tile in gpu.calls}
    reasons = {tile.n: reason for tile, reason in tuning.rejected}
    assert reasons[96] == "spills 64 bytes"
    assert reasons[112].startswith("products serialised: (C7512)")


def test_an_ignored_setmaxnreg_alone_does_not_reject():
    assert Profile(168, 0, ("(C7508) setmaxnreg ignored",)).refusal == ""


def test_what_does_not_compile_is_reported_and_the_rest_goes_on():
    def refuse(spec):
        if spec.tile == FAST:
            raise ValueError("no such layout")
        return profile(spec)

    tuning = fake(FakeGpu(), compiler=FakeCompiler(refuse), effort="full")
    assert (FAST, "does not compile: ValueError: no such layout") in tuning.rejected
    assert FAST not in tuning.timings.screening


def test_a_default_that_does_not_compile_ends_the_search():
    def refuse(spec):
        raise ValueError("broken")

    with pytest.raises(RuntimeError, match=r"the default tile .* does not compile: ValueError: broken"):
        fake(compiler=FakeCompiler(refuse))


def test_quick_compiles_the_few_that_are_likeliest_fast_and_says_what_it_left():
    compiler = FakeCompiler()
    tuning = fake(compiler=compiler, effort="quick")
    kept, _ = candidates(FORWARD)
    assert compiler.specs[0].tile == DEFAULT
    assert len(compiler.specs) == 1 + EFFORTS["quick"].candidates
    assert {spec.tile for spec in compiler.specs} | set(tuning.left) == set(kept)
    worst_taken = max(guess(FORWARD, spec.tile) for spec in compiler.specs[1:])
    assert all(guess(FORWARD, tile) >= worst_taken for tile in tuning.left)


def test_an_unknown_effort_is_refused():
    with pytest.raises(ValueError, match="effort must be one of quick, full, got 'some'"):
        fake(effort="some")


# ---------------------------------------------------------------- measuring


def test_the_fastest_wins_if_the_default_takes_more_than_two_percent_longer():
    assert fake(FakeGpu({FAST: 90e-6}), effort="full").tile == FAST
    assert fake(FakeGpu({FAST: 98.5e-6}), effort="full").tile == DEFAULT
    assert choose(DEFAULT, {DEFAULT: [102.0], FAST: [100.0]}) == DEFAULT
    assert choose(DEFAULT, {DEFAULT: [102.1], FAST: [100.0]}) == FAST


def test_the_speedup_is_that_of_the_final_medians():
    tuning = fake(FakeGpu({FAST: 80e-6}), effort="full")
    assert tuning.measured
    assert tuning.speedup == pytest.approx(1.25)


def test_warm_up_calls_are_made_and_not_counted():
    cold = {FAST: count()}  # each call of FAST is slower than the one before, from 0 s on
    gpu = FakeGpu({FAST: lambda: float(next(cold[FAST]))})
    timings = fake(gpu, effort="full").timings
    effort = EFFORTS["full"]
    assert timings.screening[FAST] == [float(i) for i in range(effort.warm_up, effort.warm_up + effort.repeats)]


def test_the_best_three_and_the_default_are_interleaved_at_the_end():
    times = {TileConfig(128, 96): 70e-6, TileConfig(128, 112): 80e-6, TileConfig(128, 80): 90e-6}
    gpu = FakeGpu(times)
    timings = fake(gpu, effort="full").timings
    assert set(timings.final) == {DEFAULT, *times}
    rounds = EFFORTS["full"].rounds
    tail = gpu.calls[-4 * rounds :]
    assert all(set(tail[i : i + 4]) == set(timings.final) for i in range(0, len(tail), 4))
    assert all(len(values) == rounds for values in timings.final.values())


def test_a_lucky_screening_does_not_win_the_finals():
    calls = count()
    effort = EFFORTS["full"]
    lucky = effort.warm_up + effort.repeats
    gpu = FakeGpu({FAST: lambda: 50e-6 if next(calls) < lucky else 150e-6})
    tuning = fake(gpu, effort="full")
    assert median(tuning.timings.screening[FAST]) == 50e-6
    assert tuning.tile == DEFAULT


def test_a_candidate_that_fails_to_run_is_reported_and_the_default_must_run():
    tuning = fake(FakeGpu({FAST: 1e-6}, broken=[FAST]), effort="full")
    assert tuning.timings.failed == {FAST: "launch failed"}
    assert tuning.tile != FAST
    with pytest.raises(RuntimeError, match=r"the default tile .* cannot run"):
        fake(FakeGpu(broken=[DEFAULT]))


@pytest.mark.parametrize("calls", [0, 20, 40], ids=["warming up", "screening", "in the finals"])
def test_a_tile_that_hangs_ends_the_search_by_name_and_is_no_mere_failure(calls):
    number = count()

    def hangs():
        if next(number) == calls:
            raise Lost("it hangs")
        return 50e-6

    with pytest.raises(Lost, match=r"the tile 128x96, 2 stages, ping-pong of fwd bf16.*: it hangs"):
        fake(FakeGpu({FAST: hangs}), effort="full")


def test_the_backward_is_tuned_alike():
    fast = BackwardTile(128, 2, 1)
    assert fake(FakeGpu({fast: 50e-6}), BACKWARD, effort="full").tile == fast


# ---------------------------------------------------------------- budget


def test_half_of_the_budget_may_go_into_compiling_and_the_default_is_always_compiled():
    gpu = FakeGpu()
    compiler = FakeCompiler(clock=gpu)
    tuning = fake(gpu, compiler=compiler, effort="full", budget=100.0, now=gpu.now)
    assert compiler.specs[0].tile == DEFAULT
    assert len(compiler.specs) == 5
    assert len(tuning.left) == len(candidates(FORWARD)[0]) - 5
    compiler = FakeCompiler(clock=gpu)
    fake(gpu, compiler=compiler, budget=0.0, now=gpu.now)
    assert [spec.tile for spec in compiler.specs] == [DEFAULT]


def test_after_the_budget_no_candidate_is_begun_and_the_report_says_which():
    gpu = FakeGpu()
    effort = EFFORTS["full"]
    each = effort.warm_up + effort.repeats
    tuning = fake(gpu, effort="full", budget=3 * each, now=gpu.now)
    assert len(tuning.timings.screening) == 3
    assert len(tuning.timings.skipped) == len(tuning.compiled) - 3
    assert DEFAULT in tuning.timings.final


# ---------------------------------------------------------------- without a GPU


def test_without_a_gpu_candidates_are_ranked_by_their_predicted_times_and_the_default_stays():
    tuning = fake(effort="full")
    assert not tuning.measured
    assert tuning.tile == DEFAULT
    assert tuning.speedup == 1.0
    assert not tuning.timings.screening
    seconds = list(tuning.predictions.seconds.values())
    assert seconds == sorted(seconds)
    assert set(tuning.predictions.seconds) == set(tuning.compiled)
    assert not tuning.predictions.unknown


@pytest.mark.parametrize("problem", [FORWARD, BACKWARD], ids=["forward", "backward"])
def test_a_prediction_is_that_of_cute_attn_predict_on_the_candidates_own_code(problem):
    found = fake(problem=problem).predictions.seconds
    for tile in list(found)[:2]:
        spec = problem.spec(tile)
        call = call_of(spec, profile(spec).code, problem.intervals(), (problem.heads_q, problem.heads_k))
        assert found[tile] == predict(call, H200).seconds


def test_a_candidate_whose_code_takes_longer_is_ranked_behind():
    slow = FORWARD.spec(FAST)

    def some_slow(spec):
        return Profile(168, 0, (), Code((loop(4096, 9000),))) if spec == slow else profile(spec)

    assert list(fake(compiler=FakeCompiler(some_slow), effort="full").predictions.seconds)[-1] == FAST


def test_what_the_model_does_not_tell_apart_stays_as_it_was_tried_the_default_first():
    tiles = [DEFAULT, TileConfig(stages=4), TileConfig(stages=8), TileConfig(ping_pong=False)]
    profiles = {tile: profile(FORWARD.spec(tile)) for tile in tiles}
    for order in (tiles, tiles[::-1]):
        found = predictions_of(FORWARD, order, profiles, 132)
        assert len(set(found.seconds.values())) == 1
        assert found.ranked == order
    assert fake(effort="full").predictions.ranked[0] == DEFAULT


def test_candidates_without_a_prediction_come_last_with_the_reason_and_are_measured_all_the_same():
    def blind(spec):
        return Profile(168, 0, unknown="no nvdisasm") if spec.tile in (DEFAULT, FAST) else profile(spec)

    tuning = fake(FakeGpu({FAST: 50e-6}), compiler=FakeCompiler(blind), effort="full")
    assert tuning.predictions.unknown == {DEFAULT: "no nvdisasm", FAST: "no nvdisasm"}
    assert tuning.predictions.ranked[-2:] == [DEFAULT, FAST]
    assert tuning.tile == FAST


def test_a_call_that_the_model_does_not_lay_out_is_tuned_without_predictions():
    many = Problem(op="fwd", batch=1 << 20, heads_q=1, heads_k=1, seqlen_q=512, seqlen_k=512)
    found = predictions_of(many, [DEFAULT], {DEFAULT: profile(many.spec(DEFAULT))}, 132)
    assert found.seconds == {}
    assert "at most 2097152 are laid out" in found.unknown[DEFAULT]


def test_fewer_multiprocessors_take_longer():
    profiles = {DEFAULT: profile(FORWARD.spec(DEFAULT))}
    whole, half = (predictions_of(FORWARD, [DEFAULT], profiles, count).seconds[DEFAULT] for count in (132, 66))
    assert 1.5 * whole < half < 2.5 * whole


def test_the_guess_before_compiling_knows_the_peak_and_the_busiest_multiprocessor():
    """Full attention takes no less than its products at the peak rate, 2048 multiply-adds a cycle of each SM."""
    problem = Problem(mask="full", seqlen_q=4096, seqlen_k=4096)
    peak = 2 * 4096 * 4096 * problem.heads_q * problem.head_dim / (132 * 2048)
    assert peak <= guess(problem, DEFAULT) <= 2 * peak
    one = Problem(heads_q=1, heads_k=1, seqlen_q=128, seqlen_k=4096, mask="full")
    assert guess(one, DEFAULT, sms=132) == guess(one, DEFAULT, sms=1), "one item keeps one busy"


def test_presets_are_valid_and_cover_both_operations():
    for problems in PRESETS.values():
        assert {p.op for p in problems} == {"fwd", "bwd"}
        for problem in problems:
            assert candidates(problem)[0]
