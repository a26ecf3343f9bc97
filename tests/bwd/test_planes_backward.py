"""The backward kernels under masks with planes: of each query head, each batch element, each of both."""

import pytest
from planes import SHARES, check, mask_of

from cute_attn.backend import backend


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("deterministic", [False, True], ids=["any-order", "deterministic"])
def test_every_plane_has_its_own_gradients(share, deterministic):
    with backend("sim"):
        check(mask_of(share, 2, 6, 150, 300), 2, (6, 2), deterministic=deterministic)
