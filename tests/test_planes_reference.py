"""The reference under masks with planes."""

import pytest
import torch
from cases import stacked
from planes import SHARES, check, mask_of

from cute_attn.mask import full


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("heads", [(1, 1), (6, 2), (6, 6)], ids=str)
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_every_plane_is_attended_by_its_own_rows(share, heads, softcap):
    mask = mask_of(share, 2, heads[0], 150, 300)
    check(mask, 2, heads, dim=16, dtype=torch.float32, softcap=softcap, sink=heads == (6, 2))


def test_equal_planes_of_heads_give_what_one_for_all_heads_gives():
    mask = mask_of("batch", 2, 4, 150, 300, first=1)
    by_head = mask | stacked(*[~full(150, 300)] * 8, heads=4)
    assert (by_head.batch, by_head.heads) == (2, 4)
    results = []
    for m in (mask, by_head):
        torch.manual_seed(0)
        results.append(check(m, 2, (4, 2), dim=16, dtype=torch.float64))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


def test_rows_without_keys_in_one_head_alone_give_zero_output_there():
    mask = mask_of("heads", 1, 4, 40, 300)  # the fourth head has no keys
    out, lse, dq, *_ = check(mask, 1, (4, 2), dim=16, dtype=torch.float64)
    assert (out[:, :, 3] == 0).all()
    assert (lse[:, 3] == -torch.inf).all()
    assert (dq[:, :, 3] == 0).all()
    assert (out[:, :, :3] != 0).any(-1).any(1).all()
