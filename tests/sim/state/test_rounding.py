"""Additions in another order stay within the bound that a run reports, and `strict` allows no more than that."""

import kernels
import numpy as np
import pytest
import torch

from cute_attn import sim
from cute_attn.sim.formats import bf16_bits, bf16_values
from cute_attn.sim.host import capture
from cute_attn.sim.launch import Report
from cute_attn.sim.state.rounding import Additions

RNG = np.random.default_rng(5)


def added(terms: np.ndarray) -> tuple[np.ndarray, float]:
    """fp32 sums over the first axis in the order given, and the noted bound as an absolute error."""
    total, noted = np.zeros_like(terms[0]), Additions(terms[0].nbytes, "f4")
    where = np.arange(0, terms[0].nbytes, 4)
    for term in terms:
        noted.note(where, total.view(np.uint32), term.view(np.uint32))
        total = total + term
    return total, noted.bound(total.view(np.uint8)) * np.abs(total).max()


@pytest.mark.parametrize("cancel", [False, True])
def test_two_orders_differ_by_no_more_than_both_bounds(cancel):
    terms = RNG.standard_normal((200, 64)).astype(np.float32) * 1000
    if cancel:
        terms = np.concatenate([terms, -terms + np.float32(1e-3)])
    first, bound = added(terms)
    for _ in range(10):
        second, other = added(RNG.permutation(terms))
        assert 0 < np.abs(first - second).max() <= bound + other


def test_bf16_and_packed_pairs():
    values = RNG.standard_normal(64).astype(np.float32)
    bits = bf16_bits(values).astype(np.uint16)
    single, packed = Additions(128, "bf16"), Additions(128, "bf16")
    single.note(np.arange(0, 128, 2), bits, bits)
    packed.note(np.arange(0, 128, 4), bits.view(np.uint32), bits.view(np.uint32))
    sums = bf16_bits(2 * bf16_values(bits)).astype(np.uint16).view(np.uint8)
    assert single.bound(sums) == packed.bound(sums) == 2.0**-8


def test_equal_addresses_add_up():
    noted = Additions(4, "f4")
    ones = np.ones(32, np.float32).view(np.uint32)
    noted.note(np.zeros(32, int), np.zeros(32, np.uint32), ones)
    assert noted.bound(np.float32([32]).view(np.uint8)) == 2.0**-24


def test_strict_allows_what_rounding_explains_and_no_more(monkeypatch):
    """Each run is made to leave a sum that is off by a share of the bound which all runs report."""
    run_once, share, runs = capture.execute, 0.0, []

    def execute(launch, buffers, schedule, **options):
        report = run_once(launch, buffers, schedule)
        runs.append(report)
        (out,) = (b.data.view(np.float32) for b in buffers if b.name == "out")
        out += np.float32(share * len(runs) * np.abs(out).max())
        return Report(report.reduced, report.warnings, report.statistics, dict.fromkeys(report.reduced, 1e-3))

    monkeypatch.setattr(capture, "execute", execute)
    arguments = torch.randn(24, 128), torch.zeros(128), torch.zeros(1)
    share = 3e-4  # six runs: at most 1.5e-3 from the first, 2e-3 is allowed
    sim.strict(kernels.column_sums(), *arguments)
    share, runs = 6e-4, []
    with pytest.raises(sim.ScheduleDependence, match=r"^out: "):
        sim.strict(kernels.column_sums(), *arguments)
