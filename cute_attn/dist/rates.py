"""FLOP/s that our kernels sustain on a Hopper GPU by the model of `cute_attn.predict`: predicted, not measured."""

from __future__ import annotations

__all__ = ["sustained"]

# (head_dim, head_dim_v): forward and backward of a long call of full tiles; benchmarks/dist_rates.py prints them anew.
PREDICTED = {
    (64, 64): (734e12, 649e12),
    (96, 96): (757e12, 677e12),
    (128, 128): (765e12, 685e12),
    (192, 128): (769e12, 568e12),
    (192, 192): (768e12, 359e12),
    (256, 256): (775e12, 359e12),
}


def sustained(head_dim: int, head_dim_v: int, element_size: int) -> tuple[float, float] | None:
    """FLOP/s of the forward and of the backward at these head dims; None where no kernel serves them.

    A smaller head dim takes the time of the one that its kernel is built for.
    """
    if element_size != 2:
        return None
    for (dim, dim_v), rates in PREDICTED.items():
        if head_dim <= dim and head_dim_v <= dim_v:
            useful = (head_dim + head_dim_v) / (dim + dim_v), (3 * head_dim + 2 * head_dim_v) / (3 * dim + 2 * dim_v)
            return rates[0] * useful[0], rates[1] * useful[1]
    return None
