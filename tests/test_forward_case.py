"""What the checks of the forward forgive under a softcap: the hardware's tanh, and not a softcap that is left out."""

from dataclasses import replace

import forward_case
import pytest
import torch
from cases import Case, plainly, with_gaps

from cute_attn.mask import causal, full

SOFTCAPS = [1e-3, 1.0, 5.0, 8.0, 10.0, 20.0]  # all that the forward's cases have, but for those too large to be seen
MASKS = [causal(300, 200), full(130, 200), with_gaps(200, 300, 5)]


def check_with_lse(of, case, monkeypatch):
    """Checks right outputs with another lse, that of(case, problem)."""
    right = forward_case.run

    def run(case, backend, problem):
        out, _, max_logits = right(case, backend, problem)
        return out, of(case, problem), max_logits

    monkeypatch.setattr(forward_case, "run", run)
    forward_case.check(case, "reference")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("softcap", SOFTCAPS)
def test_an_lse_without_the_softcap_is_noticed(mask, softcap, monkeypatch):
    def uncapped(case, problem):
        return plainly(replace(case, softcap=0.0), problem, torch.float64)["lse"]

    with pytest.raises(AssertionError, match="lse is off by"):
        check_with_lse(uncapped, Case(mask, heads=(4, 2), sink="sh", softcap=softcap), monkeypatch)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("softcap", [*SOFTCAPS, 1e6])
def test_an_lse_by_the_tanh_of_the_hardware_is_right(softcap, sign, monkeypatch):
    tanh = torch.tanh

    def by_the_hardware(case, problem):
        """Every score is off by 2^-11, to the same side."""
        with monkeypatch.context() as patch:
            patch.setattr(torch, "tanh", lambda x: tanh(x) + sign * 2.0**-11 * tanh(x).abs())
            return plainly(case, problem, torch.float64)["lse"].float()

    check_with_lse(by_the_hardware, Case(causal(300), scale=1.0, softcap=softcap), monkeypatch)
