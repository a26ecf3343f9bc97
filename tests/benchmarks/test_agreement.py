"""What counts as the same result in bf16."""

import torch
from agreement import disagreement


def result():
    return torch.randn(2, 512, 4, 64).bfloat16()


def test_roundings_of_bf16_agree():
    x = result()
    noisy = (x.float() * (1 + 2.0**-8 * torch.randn(x.shape))).bfloat16()
    assert disagreement(["out"], [noisy], [x]) is None


def test_one_wrong_number_disagrees():
    x = result()
    y = x.clone()
    y[1, 300, 2, 5] += 1
    assert "largest difference" in disagreement(["out"], [y], [x])


def test_a_head_whose_small_numbers_are_wrong_disagrees():
    x = result()
    x[:, 128:] *= 0.012
    y = x.clone()
    y[0, 128:, 3] = 0
    assert "norm" in disagreement(["dq"], [y], [x])


def test_numbers_that_are_not_finite_disagree_on_either_side():
    x = result()
    y = x.clone()
    y[0, 0, 0, 0] = torch.nan
    assert "(ours)" in disagreement(["out"], [y], [x])
    assert "(theirs)" in disagreement(["out"], [x], [y])


def test_the_result_that_differs_is_named():
    x, y = result(), result()
    assert disagreement(["dq", "dk"], [x, y], [x, 2 * y]).startswith("dk ")
    assert "shape" in disagreement(["dq"], [x], [x[:1]])
