"""The benchmark on hardware: the clock tells time, a small case runs from inputs to table."""

import pytest

pytestmark = pytest.mark.gpu


def test_the_clock_sees_the_gpu_and_not_the_host():
    import time

    import torch
    from interleaved import CudaClock

    a = torch.randn(4096, 4096, device="cuda").bfloat16()
    clock = CudaClock()

    def seconds(run):
        return min(clock.seconds(run) for _ in range(10))

    def slow_host():
        time.sleep(2e-3)
        return a @ a

    once = seconds(lambda: a @ a)
    assert seconds(lambda: a @ a @ a @ a) == pytest.approx(3 * once, rel=0.3)
    assert seconds(slow_host) == pytest.approx(once, rel=0.3)


@pytest.mark.parametrize("operation", ["forward", "backward", "deterministic"])
def test_a_quick_run_of_the_smallest_case_agrees_with_its_peers(operation, results):
    import attention
    from click.testing import CliRunner

    ended = CliRunner().invoke(attention.main, ["--quick", "--case", "small", "--op", operation])
    assert ended.exit_code == 0, ended.output
    assert "cute_attn" in (results / "attention.md").read_text()
