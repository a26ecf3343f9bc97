"""FLOP/s that the model of the GPU says attention sustains, which the cost model of context parallelism has in a table.

Run: `python benchmarks/dist_rates.py`, and copy what it prints into `cute_attn/dist/rates.py`. Predicted, not measured.
"""

from __future__ import annotations

from common import save

from cute_attn import mask
from cute_attn.launch.shapes import spec_for
from cute_attn.predict.call import predict
from cute_attn.predict.machine import GPUS
from cute_attn.predict.ours import OPERATIONS, call_of, code_of
from cute_attn.spec.operation import operation

TOKENS = 16384  # long enough for launches not to count, all of them attended
HEADS = (32, 8)
DIMS = operation("fwd").head_dims
GPU = "h100"


def rate(op: str, head_dim: int, head_dim_v: int) -> float:
    """TFLOP/s of attended pairs in one call."""
    full = mask.full(TOKENS)
    spec = spec_for(op, "bf16", head_dim, head_dim_v, full)
    return predict(call_of(spec, code_of(spec), full, HEADS), GPUS[GPU]).tflops


def main() -> None:
    rows = []
    for dims in DIMS:
        found = {op: rate(op, *dims) for op in OPERATIONS}
        rows.append({"head_dim": "{}/{}".format(*dims), **found})
        print(f"    {dims}: ({found['fwd']:.0f}e12, {found['bwd']:.0f}e12),", flush=True)
    save(
        "dist_rates",
        "TFLOP/s that attention is predicted to sustain",
        rows,
        [
            f"Predicted by `cute_attn.predict` for one {GPU.upper()}, not measured: {TOKENS:,} queries on as many "
            f"keys, all attended, bf16, {HEADS[0]} query heads on {HEADS[1]} key heads, the default tiles."
        ],
    )


if __name__ == "__main__":
    main()
