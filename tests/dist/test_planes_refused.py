"""Context parallelism places one sequence under one mask: a mask with more planes is refused by name."""

import pytest
from planes import mask_of

from cute_attn.dist.placing.place import place
from cute_attn.dist.plans.group_cast import plan_group_cast
from cute_attn.mask import causal


def test_a_mask_with_planes_is_refused_with_what_takes_it():
    heads, batch = mask_of("heads", 2, 4, 128, 128), mask_of("batch", 2, 4, 128, 128)
    query, key = place(causal(128), 2, 32)
    for mask, got in ((heads, "got batch 1 and heads 4; flex_flash_attn_func"), (batch, "got batch 2; ")):
        for refused in (lambda mask=mask: place(mask, 2, 32), lambda mask=mask: plan_group_cast(mask, query, key, 0)):
            with pytest.raises(ValueError, match=f"must have batch 1 and heads 1 under context parallelism, {got}"):
                refused()
