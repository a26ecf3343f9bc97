"""Content decides which mask a call has; what an IntervalMask owns is never looked up."""

import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist
from oracle import assert_close

from cute_attn import IntervalMask, backend, fa2_varlen_func_with_sink, fa3_varlen_func_with_sink, flex_flash_attn_func
from cute_attn.backends.plan import FORM, Call, backward_plan, forward_plan, make_plan
from cute_attn.mask import TileSchedule, causal
from cute_attn.mask.readback import on_host
from cute_attn.mask.source import MaskSource
from cute_attn.ops import mask_cache, plans
from cute_attn.ops.attention_op import attention

EXACT = 1e-12
ROWS = 8


@pytest.fixture(autouse=True)
def _no_plans_from_other_tests():
    mask_cache.clear_masks()
    yield
    mask_cache.clear_masks()  # whose calls keep kernels that do nothing


@pytest.fixture(scope="module")
def gloo(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("gloo") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def write_by_numpy(tensor, values):
    tensor.numpy()[...] = values.numpy()


def write_by_data(tensor, values):
    tensor.data.copy_(values)


def write_by_dlpack(tensor, values):
    torch.from_dlpack(np.from_dlpack(tensor)).copy_(values)


def write_by_new_data(tensor, values):
    tensor.data = values.clone()


def write_by_scatter(tensor, values):
    dist.scatter(tensor, [values.clone()], src=0)


def write_by_copy(tensor, values):
    tensor.copy_(values)


WRITES = [write_by_numpy, write_by_data, write_by_dlpack, write_by_new_data, write_by_scatter, write_by_copy]
RANGES = torch.tensor([[0, 5], [5, 8]]), torch.tensor([[0, 2], [2, 8]])
ENDS = torch.tensor([0, 5, 8]), torch.tensor([0, 2, 8])
FUNCTIONS = {
    "flex": (RANGES, lambda q, x: flex_flash_attn_func(q, q, q, x, x)[0]),
    "fa3": (ENDS, lambda q, x: fa3_varlen_func_with_sink(q, q, q, x, x, 8, 8, causal=True)),
    "fa2": (ENDS, lambda q, x: fa2_varlen_func_with_sink(q, q, q, x, x, 8, 8, causal=True)),
}


@pytest.fixture(params=FUNCTIONS)
def function(request):
    return FUNCTIONS[request.param]


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("write", WRITES)
def test_a_write_of_any_kind_is_seen(write, function, gloo):
    (before, after), attend = function
    q, described = randn(ROWS, 1, 8), before.clone()
    assert_close("before", attend(q, described), attend(q, before), EXACT)
    write(described, after)
    assert_close("after", attend(q, described), attend(q, after.clone()), EXACT)
    assert not torch.equal(attend(q, described), attend(q, before))


def test_a_broadcast_into_the_ranges_is_seen_on_every_rank():
    """Two threads stand for two ranks: what the second receives counts no version."""
    store, results = dist.HashStore(), {}

    def rank(number):
        group = dist.ProcessGroupGloo(store, number, 2)
        described = (RANGES[number] if number == 0 else RANGES[1]).clone()
        q = torch.ones(ROWS, 1, 8).cumsum(0)
        first = flex_flash_attn_func(q, q, q, described, described)[0]
        options = dist.BroadcastOptions()
        options.rootRank = 0
        version = described._version
        group.broadcast([described], options).wait()
        results[number] = first, flex_flash_attn_func(q, q, q, described, described)[0], described._version - version

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert torch.equal(results[1][1], results[0][0])
    assert not torch.equal(results[1][1], results[1][0])


@pytest.mark.parametrize("write", [write_by_numpy, write_by_data, write_by_copy])
def test_the_backward_has_the_mask_of_its_forward(write, function):
    (before, after), attend = function
    q, described = randn(ROWS, 1, 8).requires_grad_(), before.clone()
    out = attend(q, described)
    write(described, after)
    (got,) = torch.autograd.grad(out.square().sum(), q)
    (wanted,) = torch.autograd.grad(attend(q, before).square().sum(), q)
    assert_close("gradient", got, wanted, EXACT)


def test_inference_mode_sees_writes(function):
    (before, after), attend = function
    with torch.inference_mode():
        q, described = randn(ROWS, 1, 8), before.clone()
        first = attend(q, described)
        described.copy_(after)
        second = attend(q, described)
    assert not torch.equal(first, second)
    assert torch.equal(second, attend(q, after))


def test_a_mask_first_seen_in_inference_mode_serves_training(function):
    (described, _), attend = function
    q = randn(ROWS, 1, 8).requires_grad_()
    with torch.inference_mode():
        expected = attend(q, described).clone()
    out = attend(q, described)
    assert torch.equal(out, expected)
    out.sum().backward()


def test_several_masks_alternate(function):
    _, attend = function
    q = randn(ROWS, 1, 8)
    described = FUNCTIONS["flex"][0][0].clone() if function is FUNCTIONS["flex"] else ENDS[0].clone()
    seen = {}
    for cut in [1, 2, 3, 1, 3, 2, 2, 1]:
        new = torch.tensor([[0, cut], [cut, ROWS]]) if described.ndim == 2 else torch.tensor([0, cut, ROWS])
        described.data.copy_(new)
        out = attend(q, described)
        assert torch.equal(seen.setdefault(cut, out), out)
    assert len({float(out.sum()) for out in seen.values()}) == 3


def test_threads_find_their_own_masks():
    q, failed = randn(64, 1, 8), []
    wanted = {}
    for cut in range(1, 40):
        wanted[cut] = flex_flash_attn_func(q, q, q, [[0, cut]], [[0, cut]])[0]
    mask_cache.clear_masks()

    def work(seed):
        memory = np.zeros((1, 2), dtype=np.int64)
        ranges = torch.from_numpy(memory)
        for i in range(60):
            cut = memory[0, 1] = 1 + (i * seed) % 39
            if not torch.equal(flex_flash_attn_func(q, q, q, ranges, ranges)[0], wanted[cut]):
                failed.append(cut)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 7, 11, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_mask_is_what_was_read_though_it_is_overwritten_while_it_is_planned(monkeypatch):
    described = RANGES[0].clone()
    of_slices = IntervalMask._of_slices

    def overwritten(*arguments):
        described.copy_(RANGES[1])
        return of_slices(*arguments)

    monkeypatch.setattr(IntervalMask, "_of_slices", overwritten)
    q = randn(ROWS, 1, 8)
    got = flex_flash_attn_func(q, q, q, described, described)[0]
    monkeypatch.undo()
    assert torch.equal(got, flex_flash_attn_func(q, q, q, *[RANGES[0].clone()] * 2)[0])
    assert not torch.equal(got, flex_flash_attn_func(q, q, q, described, described)[0])


def test_a_gpus_tensors_are_read_in_one_copy(monkeypatch):
    tensors = [RANGES[0], RANGES[1].int(), torch.tensor([0, 1])]
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: copies.append(self) or cpu(self))
    read = on_host(tensors)
    assert len(copies) == 1
    assert all(torch.equal(a, b) for a, b in zip(read, tensors, strict=True))


# ------------------------------------------------------------------- masks that own their plans


def test_an_interval_mask_is_never_looked_up(monkeypatch):
    monkeypatch.setattr(plans, "find_mask", lambda *_: pytest.fail("looked up"))
    q = randn(ROWS, 1, 8).requires_grad_()
    flex_flash_attn_func(q, q, q, causal(ROWS))[0].sum().backward()


@pytest.mark.parametrize("write", [write_by_numpy, write_by_data, write_by_copy])
def test_a_mask_owns_its_intervals(write):
    lo, hi = torch.zeros(1, 1, ROWS, dtype=torch.int32), torch.full((1, 1, ROWS), 3, dtype=torch.int32)
    mask = IntervalMask(lo, hi, ROWS)
    write(hi, torch.full_like(hi, 5))
    assert mask.area() == 3 * ROWS


def test_masks_of_our_own_are_not_checked_again_and_those_of_users_are(monkeypatch):
    from cute_attn.mask import intervals

    checked, owned = [], intervals.owned_intervals
    monkeypatch.setattr(intervals, "owned_intervals", lambda *x: checked.append(x) or owned(*x))
    mask = IntervalMask.from_slices([[0, 4], [2, 8]], [[0, 4], [6, 8]]) | ~causal(ROWS)
    mask[1:5].permute_rows(torch.tensor([1, 0])).remap(torch.tensor([0, 3])).to("cpu")
    assert not checked
    IntervalMask(mask.lo, mask.hi, ROWS)
    assert len(checked) == 1
    with pytest.raises(ValueError, match="sorted, disjoint"):
        IntervalMask(mask.lo, mask.hi + 1, ROWS)


class Launches:
    """Kernels that are looked up and run, without either."""

    function, ptx = None, ""

    def __init__(self, monkeypatch):
        from cute_attn import sim

        self.tables = []
        monkeypatch.setattr("cute_attn.launch.run.kernel", lambda spec, backend: self)
        monkeypatch.setattr(sim, "run", lambda function, tensors, tables, *rest, **more: self.tables.append(tables))


@pytest.fixture
def launches(monkeypatch):
    return Launches(monkeypatch)


def bf16(*shape, grad=True):
    return torch.randn(*shape, dtype=torch.bfloat16).requires_grad_(grad)


def test_a_prepared_mask_plans_nothing_afterwards(monkeypatch, launches):
    q, k, v = bf16(300, 4, 64), bf16(300, 2, 64), bf16(300, 2, 64)
    mask = causal(300)
    with backend("sim"):
        assert mask.prepare(q, k, v) is mask
        monkeypatch.setattr(TileSchedule, "from_mask", lambda *_: pytest.fail("planned"))
        monkeypatch.setattr(plans, "make_plan", lambda *_: pytest.fail("planned"))
        for deterministic in (False, True):
            out, lse, _ = flex_flash_attn_func(q, k, v, mask, deterministic=deterministic, return_max_logits=True)
            (out.sum() + lse.sum()).backward()
            flex_flash_attn_func(q, k, v, mask, deterministic=deterministic)[0].sum().backward()
        with torch.no_grad():
            flex_flash_attn_func(q, k, v, mask)
    assert len(launches.tables) == 9
    assert all(not isinstance(x, torch.Tensor) or x.dtype == torch.int32 for tables in launches.tables for x in tables)


def test_prepare_without_backward_makes_no_tables_of_it():
    q = bf16(300, 2, 64)
    with backend("sim"):
        mask = causal(300).prepare(q, q, q, backward=False)
    assert all(plan.items is not None and plan.key_items is None for plan in mask._plans.values())
    assert causal(300).prepare(q, q, q)._plans == {}  # the reference reads the intervals alone


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((bf16(9, 1, 64), bf16(8, 1, 64), bf16(8, 1, 64)), ValueError, "the mask must be an IntervalMask of batch 1"),
        ((bf16(8, 1, 64), bf16(8, 1, 64), [0]), TypeError, "v must be a torch.Tensor"),
        ((bf16(2, 8, 1, 64), bf16(2, 8, 1, 64), bf16(2, 9, 1, 64)), ValueError, "k and v must have one length"),
    ],
)
def test_prepare_checks_its_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        causal(8).prepare(*arguments)
    with pytest.raises(TypeError, match="backward must be True or False"):
        causal(8).prepare(*[bf16(8, 1, 64)] * 3, backward=1)


def test_other_tables_of_tiles_make_other_plans(launches):
    from cute_attn.launch import tuned

    q, mask = bf16(300, 2, 64, grad=False), causal(300)
    with backend("sim"):
        flex_flash_attn_func(q, q, q, mask)
        flex_flash_attn_func(q, q, q, mask)
        assert len(mask._plans) == 1
        tuned.forget()
        flex_flash_attn_func(q, q, q, mask)
    assert len(mask._plans) == 2


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", ["mask", "slices", "inside"])
def test_a_compiled_call_on_the_kernels_reads_the_tables_of_an_eager_one(kind, deterministic, launches):
    torch._dynamo.reset()
    q, k, v = bf16(1, 300, 4, 64), bf16(1, 300, 2, 64), bf16(1, 300, 2, 64)
    ranges = torch.tensor([[0, 120], [90, 300]])
    outside = IntervalMask.from_slices(ranges, ranges, 1, 300, 300)

    def call(q, k, v):
        mask = {
            "mask": lambda: outside,
            "slices": lambda: MaskSource("slices", ranges, ranges, torch.tensor([1, 1], device="cpu")),
            "inside": lambda: outside & causal(300),
        }[kind]()
        return attention(q, k, v, None, mask, 0.1, 0.0, deterministic, 0, False)[0]

    compiled = torch.compile(call, fullgraph=kind != "inside", backend="aot_eager")
    with backend("sim"):
        for function in (call, compiled, compiled):
            function(q, k, v).sum().backward()
    assert len(launches.tables) == 6
    for got in (launches.tables[2:4], launches.tables[4:6]):
        for mine, wanted in zip(got, launches.tables[:2], strict=True):
            for a, b in zip(mine, wanted, strict=True):
                assert a is None if b is None else torch.equal(a, b)
    if kind == "mask":
        assert len(outside._plans) == 1  # of eager and of compiled calls


@pytest.mark.slow
def test_a_compiled_function_leaves_its_plan_with_a_mask_from_outside(launches):
    torch._dynamo.reset()
    q, mask = bf16(300, 2, 64), causal(300)
    made = []
    compiled = torch.compile(
        lambda q: flex_flash_attn_func(q, q, q, mask)[0], fullgraph=True, backend=lambda g, _: made.append(g) or g
    )
    with backend("sim"):
        for _ in range(3):
            compiled(q)
    planning = [any(node.target == torch.ops.cute_attn.plan for node in graph.graph.nodes) for graph in made]
    assert planning == [True, False]


def test_a_plan_that_an_exported_program_of_another_version_holds_is_refused():
    plan = make_plan(causal(300), Call(torch.bfloat16, 64, 64, 2, 2, False, True, False, False, 0))
    older = plan._replace(form=torch.zeros(FORM + 4, dtype=torch.int64))
    for read in (forward_plan, backward_plan):
        read(plan)
        with pytest.raises(ValueError, match=f"form must have {FORM} numbers, got {FORM + 4}: .* exported anew"):
            read(older)


# ------------------------------------------------------------------- CUDA graphs


@pytest.fixture
def capturing(monkeypatch):
    """From here on CPU masks count as a GPU's, in a capture."""

    def begin():
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        monkeypatch.setattr(IntervalMask, "device", property(lambda self: torch.device("cuda")))

    return begin


def test_a_look_up_in_a_capture_is_refused_even_of_a_mask_seen_before(capturing):
    source = MaskSource("slices", *RANGES)
    mask_cache.find_mask(source, ROWS, ROWS, torch.device("cpu"))
    capturing()
    with pytest.raises(RuntimeError, match=r"CUDA graph is captured.*mask.prepare\(q, k, v\)"):
        mask_cache.find_mask(source, ROWS, ROWS, torch.device("cuda"))
    with pytest.raises(RuntimeError, match="a mask is first seen while a CUDA graph is captured"):
        mask_cache.find_mask(MaskSource("window"), ROWS, ROWS, torch.device("cuda"))


def test_a_capture_finds_what_was_prepared_and_is_refused_else(capturing):
    q, mask, other = bf16(1, 300, 2, 64), causal(300), causal(300)
    with backend("sim"):
        mask.prepare(q, q, q)
        capturing()
        plan = plans.plan_of(mask, q, q, q, "sim", True, False)
        assert plan.turn_runs is not None
        with pytest.raises(RuntimeError, match="a mask is planned while a CUDA graph is captured"):
            plans.plan_of(other, q, q, q, "sim", True, False)
