"""What `build`, `inspect`, `autotune` and the self-test ask for is what launches ask for."""

import pytest

from cute_attn.launch.decode import decode_spec
from cute_attn.launch.dims import kernel_dims
from cute_attn.launch.shapes import spec_for
from cute_attn.mask import causal
from cute_attn.spec.operation import operation
from cute_attn.spec.score import ScoreForm

MASK = causal(256)


@pytest.mark.parametrize(("op", "served"), [("fwd", (96, 96)), ("bwd", (96, 96)), ("decode", (128, 128))])
def test_head_dims_are_served_by_the_next_larger_kernel_of_an_operation(op, served):
    assert kernel_dims(op, 80, 72) == served
    spec = spec_for(op, "bf16", 80, 72, MASK)
    assert (spec.head_dim, spec.head_dim_v) == served
    assert all(kernel_dims(op, *dims) == dims for dims in operation(op).head_dims)


def test_a_decode_of_any_head_dims_is_built_as_it_is_launched():
    for dims in ((64, 64), (96, 96), (192, 128), (200, 8)):
        assert spec_for("decode", "bf16", *dims, MASK) == decode_spec("bf16", dims, 8, 64)


def test_a_decode_of_8_bits_is_built_with_the_scores_that_it_has():
    scaled, capped = ScoreForm("scaled"), ScoreForm("softcap")
    assert spec_for("decode", "bf16", 64, 64, MASK, cache="int8").score == scaled
    assert spec_for("decode", "bf16", 64, 64, MASK, score=capped, cache="int8").score == capped


@pytest.mark.parametrize("dims", [(0, 64), (12, 64), (64, 264)])
def test_head_dims_that_no_kernel_holds_are_refused(dims):
    with pytest.raises(ValueError, match=f"multiples of 8 up to 256 for the kernels, got {dims[0]} and {dims[1]}"):
        spec_for("fwd", "bf16", *dims, MASK)
