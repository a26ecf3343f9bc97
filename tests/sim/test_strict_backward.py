"""Strict on our own backward: what is rounded from sums in no fixed order may differ by a rounding, and by no more."""

import pytest
import torch

from cute_attn import sim
from cute_attn.launch.backward import backward
from cute_attn.launch.forward import forward
from cute_attn.mask import causal
from cute_attn.sim.errors import Race

MASK = causal(192, 320)


def inputs():
    """dout, q, k, v, out and lse of a call."""
    shapes = (192, 2), (320, 1), (320, 1)
    q, k, v = (torch.randn(1, *shape, 128).bfloat16() for shape in shapes)
    with sim.simulated():
        out, lse, _ = forward(q, k, v, MASK, softmax_scale=0.1, backend="sim")
    return torch.randn_like(q), q, k, v, out, lse


def gradients(sm_margin, deterministic=False):
    def function(dout, q, k, v, out, lse):
        options = {"softmax_scale": 0.1, "sm_margin": sm_margin, "deterministic": deterministic, "backend": "sim"}
        dq, dk, dv, _ = backward(dout, q, k, v, out, lse, MASK, **options)
        return dq, dk, dv

    return function


def compiled(gradients, monkeypatch):
    """The one call of a compiled function that they make."""
    calls, run = [], sim.run

    def noted(function, *args, **options):
        calls.append((function, args, options))
        return run(function, *args, **options)

    arguments = inputs()
    with monkeypatch.context() as patch:
        patch.setattr(sim, "run", noted)
        gradients(*arguments)
    (call,) = calls
    return call


@pytest.mark.slow
@pytest.mark.parametrize("sm_margin", [0, 131])  # 131 leaves one CTA, whose bulk additions are in no order either
def test_python_code_that_calls_the_backward_gives_no_alarm(sm_margin):
    sim.strict(gradients(sm_margin), *inputs())


@pytest.mark.slow
@pytest.mark.parametrize("sm_margin", [0, 131])
def test_the_compiled_backward_alone_gives_no_alarm(sm_margin, monkeypatch):
    function, args, options = compiled(gradients(sm_margin), monkeypatch)
    report = sim.strict(function, *args, ptx=options["ptx"], fresh=options["fresh"])
    assert report.derived


@pytest.mark.slow
def test_a_deterministic_backward_gives_the_same_bits_in_every_schedule():
    sim.strict(gradients(0, deterministic=True), *inputs(), deterministic=True)


@pytest.mark.slow
def test_turns_that_order_nothing_are_found_though_no_schedule_shows_it(monkeypatch):
    function, args, options = compiled(gradients(0, deterministic=True), monkeypatch)
    release, acquire = "red.release.gpu.global.add", "ld.acquire.gpu.global"
    ptx = options["ptx"]
    assert release in ptx
    assert acquire in ptx

    sim.run(function, *args, ptx=ptx, races=True, deterministic=True)
    for text in (
        ptx.replace(release, release.replace("release", "relaxed")),
        ptx.replace(release, release.replace("gpu", "cta")),
        ptx.replace(acquire, acquire.replace("acquire", "relaxed")),
        ptx.replace("cp.async.bulk.wait_group \t0", "cp.async.bulk.wait_group.read \t0"),
    ):
        assert text != ptx
        with pytest.raises(Race, match=r"nothing orders it behind the (bulk reduction|atomic operation) of it by"):
            sim.run(function, *args, ptx=text, races=True, deterministic=True)
