"""Into which batches a launch is cut, and that a batch knows nothing of the others."""

import numpy as np
import pytest
from snippet import frame, run

from cute_attn.sim.code.program import program_of
from cute_attn.sim.errors import Deadlock
from cute_attn.sim.launch import Launch
from cute_attn.sim.schedules.batches import cut


def first_ctas(body, mode, grid=(7, 1, 1), cluster=(1, 1, 1)):
    """Of the clusters of each batch, along x."""
    launch = Launch("kernel", frame(body, ["pointer"]), grid, (32, 1, 1), cluster, 0, (bytes(8),))
    return [[x for x, _, _ in batch] for batch in cut(launch, program_of(launch.ptx, "kernel"), mode)]


def test_a_batch_is_as_many_clusters_as_a_mode_interleaves_and_late_begins_with_the_last():
    store = "st.global.u32 [%a0], 1;"
    assert first_ctas(store, "eager") == [[0], [1], [2], [3], [4], [5], [6]]
    assert first_ctas(store, "late") == [[6], [4, 5], [2, 3], [0, 1]]
    assert first_ctas(store, "random") == [[0, 1, 2], [3, 4, 5], [6]]
    assert first_ctas(store, "random", (8, 1, 1), (2, 1, 1)) == [[0, 2, 4], [6]]


@pytest.mark.parametrize("mode", ["eager", "late", "random"])
@pytest.mark.parametrize("meeting", ["red.global.add.u32 [%a0], 1;", "ld.acquire.gpu.global.u32 %r2, [%a0];"])
def test_ctas_that_add_up_or_wait_for_each_other_are_one_batch(mode, meeting):
    assert first_ctas(meeting, mode) == [[0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(("mode", "waiting"), [("eager", 1), ("late", 1), ("random", 3)])
def test_a_deadlock_starts_no_other_batch(mode, waiting):
    """CTAs that cannot wake each other need not all be there: each would take shared memory of its own."""
    body = "setp.ne.u32 %p1, %t, 0; @%p1 bra END; bar.sync 1, 64; END:"
    with pytest.raises(Deadlock) as caught:
        run(body, np.zeros(1, np.uint32), grid=7, mode=mode)
    assert len(caught.value.notes) == waiting
