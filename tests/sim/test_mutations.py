"""The simulator finds bugs put into working kernels, names their place, and leaves harmless changes alone."""

import collections

import pytest
from mutations import table
from mutations.suite import MISSED, MUTATIONS, SCHEDULES, Finding, run, run_all
from mutations.workloads import WORKLOADS

EAGER, LATE, RANDOM = SCHEDULES[:3]


def found(name: str, schedule) -> Finding:
    finding = run(MUTATIONS[name], schedule)
    assert finding, f"{name} went unnoticed"
    assert finding.named, finding.message
    return finding


def test_there_are_enough_of_them_over_all_families():
    verdicts = collections.Counter(mutation.verdict for mutation in MUTATIONS.values())
    assert verdicts["harmful"] >= 40
    assert verdicts["benign"] >= 10
    harmful = {mutation.family for mutation in MUTATIONS.values() if mutation.verdict == "harmful"}
    assert len(harmful) >= 14
    assert all(mutation.why for mutation in MUTATIONS.values())


def test_what_is_missed_is_little_and_explained():
    harmful = [mutation for mutation in MUTATIONS.values() if mutation.verdict == "harmful"]
    assert set(MISSED) <= {mutation.name for mutation in harmful}
    assert len(MISSED) <= 0.05 * len(harmful)


def test_the_document_lists_every_mutation_with_its_verdict():
    document = table.written()
    for mutation in MUTATIONS.values():
        assert f"| {mutation.workload}: {mutation.name} | {mutation.verdict} |" in document


@pytest.mark.parametrize(
    ("name", "schedule", "error"),
    [
        ("consumer does not wait for TMA", LATE, "CopyInFlight"),
        ("stage released before its products are done", LATE, "CopyInFlight"),
        ("producer waits for the other parity", EAGER, "Deadlock"),
        ("too many bytes expected", EAGER, "TransactionCount"),
        ("every lane releases the stage", EAGER, "OverArrival"),
        ("no proxy fence before the store", EAGER, "MissingProxyFence"),
        ("no barrier before the store", RANDOM, "UninitializedRead"),
        ("no wgmma.fence", EAGER, "AccumulatorInFlight"),
        ("tile written beyond shared memory", EAGER, "SharedMemoryExceeded"),
        ("a loaded from the wrong columns", EAGER, "WrongResult"),
        ("two warps issue the bulk reduction", EAGER, "RedundantReduction"),
        ("one element too many", EAGER, "OutOfBounds"),
        ("stage released before its products are done", EAGER, "Race"),
        ("k not awaited", EAGER, "Race"),
        ("a load that straddles elements", EAGER, "Misaligned"),
    ],
)
def test_a_bug_of_each_kind_is_found_and_its_place_named(name, schedule, error):
    assert found(name, schedule).error == error


@pytest.mark.parametrize("name", ["expected bytes announced after the copies", "another lane releases the stage"])
def test_harmless_changes_pass(name):
    assert not run(MUTATIONS[name], LATE), run(MUTATIONS[name], LATE).message


@pytest.mark.slow
@pytest.mark.parametrize("workload", WORKLOADS)
def test_every_mutation_is_judged_rightly_and_the_document_says_so(workload):
    document = table.written()
    for mutation in MUTATIONS.values():
        if mutation.workload != workload:
            continue
        findings = run_all(mutation)
        complaints = [finding.message for finding in findings.values() if finding]
        if mutation.verdict == "benign":
            assert not complaints, f"{mutation.name}: {complaints[0]}"
        elif mutation.name in MISSED:
            assert not complaints, f"{mutation.name} is found now: take it from MISSED"
        else:
            assert complaints, f"{mutation.name} went unnoticed"
            assert any(finding.named for finding in findings.values()), f"{mutation.name}: {complaints}"
        assert table.row(mutation, findings) in document, "`cd tests/sim && python -m mutations` writes the table anew"
