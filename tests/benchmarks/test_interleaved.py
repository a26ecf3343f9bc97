"""How candidates are timed, on a clock that takes the times it is told to."""

import pytest
import torch
from interleaved import CudaClock, ceilings, interleaved, sets_needed, summary


class FakeClock:
    """A call takes as long as what it returns; `calls` lists these in order."""

    def __init__(self):
        self.calls = []

    def seconds(self, run):
        self.calls.append(run())
        return float(len(self.calls))


def candidates(names, sets):
    """Calls that say whose they are and which set of inputs they take."""
    return {name: [lambda name=name, i=i: (name, i) for i in range(sets)] for name in names}


def test_every_round_times_every_candidate_once_and_another_begins():
    clock = FakeClock()
    times = interleaved(clock, candidates("abc", 4), warm_up=0, rounds=3)
    assert [name for name, _ in clock.calls] == [*"abc", *"bca", *"cab"]
    assert times == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_warm_up_rounds_run_and_are_not_counted():
    clock, rounds = FakeClock(), []
    times = interleaved(clock, candidates("ab", 2), warm_up=2, rounds=3, done=lambda: rounds.append(1))
    assert len(clock.calls) == 10
    assert len(rounds) == 5
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}
    assert min(map(min, times.values())) == 5


@pytest.mark.parametrize("sets", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_a_set_of_inputs_is_used_again_when_all_others_have_been(sets, count):
    clock = FakeClock()
    interleaved(clock, candidates("abcde"[:count], sets), warm_up=1, rounds=7)
    used = [number for _, number in clock.calls]
    assert all(set(used[i : i + sets]) == set(range(sets)) for i in range(len(used) - sets + 1))


def test_sets_of_inputs_exceed_twice_the_l2_together():
    mib = 1 << 20
    assert sets_needed(96 * mib, 50 * mib) == 2
    assert sets_needed(200 * mib, 50 * mib) == 2
    for size in (1, 10, 25, 49, 50, 51, 99, 100, 101):
        assert sets_needed(size * mib, 50 * mib) * size > 100


def test_a_summary_is_the_median_and_the_middle_half():
    assert summary([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, 2.0, 4.0)
    assert summary([1.0, 1.0, 1.0, 100.0]).median == 1.0


def test_ceilings_count_reads_and_writes_and_two_operations_a_product():
    class OneSecond:
        def seconds(self, run):
            run()
            return 1.0

    limits = ceilings(OneSecond(), torch.device("cpu"), copied_bytes=1024, size=16, repeats=3)
    assert list(limits.values()) == [2048, 2 * 16**3]


class FakeGpu:
    """The parts of torch.cuda that the clock uses. The host takes `host` cycles to queue a call of 3 ms; the GPU begins
    with it when its sleep has ended."""

    def __init__(self, host):
        self.host, self.sleeps = host, []

    def _sleep(self, cycles):
        self.sleeps.append(cycles)

    def Event(self, enable_timing):
        return self

    def record(self):
        pass

    def query(self):
        return self.host > self.sleeps[-1]

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 3.0


@pytest.mark.parametrize("host", [0, 1 << 20, (1 << 20) + 1, 1 << 23, 1 << 40])
def test_the_gpu_is_kept_busy_until_the_host_has_queued_the_call_up_to_a_limit(host, monkeypatch):
    gpu, runs = FakeGpu(host), []
    for name in ("_sleep", "Event"):
        monkeypatch.setattr(torch.cuda, name, getattr(gpu, name))
    clock = CudaClock()
    assert clock.seconds(lambda: runs.append(1)) == 3e-3
    assert gpu.sleeps[-1] >= min(host, 1 << 25)
    assert len(runs) == len(gpu.sleeps) == 1 or gpu.sleeps[-2] < host
    clock.seconds(lambda: None)
    assert gpu.sleeps[-1] == gpu.sleeps[-2]  # what was learnt stays
