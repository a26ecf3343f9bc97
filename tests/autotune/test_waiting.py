"""Waiting for a GPU ends, also where its kernel does not."""

import pytest
import torch

from autotune import cuda
from autotune.measure import Lost


class Event:
    def __init__(self, queries):
        self.queries = queries

    def query(self):
        self.queries -= 1
        return self.queries <= 0


def test_waiting_ends_with_the_event_or_after_a_limit(monkeypatch):
    cuda.wait_for(Event(3))
    monkeypatch.setattr(cuda, "HUNG_AFTER", 0.05)
    with pytest.raises(Lost, match=r"it hangs, 0.05 s without an end"):
        cuda.wait_for(Event(10**9))


@pytest.mark.parametrize(("left", "raised"), [(True, Lost), (False, RuntimeError)])
def test_an_error_that_stays_with_the_process_is_told_from_one_that_does_not(left, raised, monkeypatch):
    def synchronize(device):
        if left:
            raise RuntimeError("CUDA error")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    with pytest.raises(raised, match="launch failed"), cuda._unless_lost(torch.device("cuda")):
        raise RuntimeError("launch failed")
