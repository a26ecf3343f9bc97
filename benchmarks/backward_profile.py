"""The static profile of the backward at every default tile, and what `deterministic=True` costs: no GPU is needed.

The issue slots and registers are read off machine code. The time lost to waiting is predicted by a model
(`turns_model.py`), not measured.
"""

from __future__ import annotations

import functools

from common import save
from turns_model import ctas_of, makespan

from cute_attn.bwd.config import default_tile
from cute_attn.jit.compile import compile
from cute_attn.mask import from_spec
from cute_attn.profile.inspect import KernelReport, inspect
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.mask import MaskForm

LAYERS = {"causal": 1, "full": 0}  # of the mask, as specs name them
TOKENS, HEADS_Q, MULTIPROCESSORS = 8192, 32, 132
DETERMINISTIC_DIMS = (128, 64)
THREADS, RESERVED = 384, 1024  # of a CTA; bytes of shared memory that the driver takes for each
REGISTERS, SHARED_MEMORY = 65536, 228 << 10  # of a multiprocessor, the latter in bytes
MASKS = {
    "causal": "causal",
    "full": "full",
    "packed documents": "causal_documents:cu_seqlens=0/512/1536/3072/5120/8192",
    "sliding window of 1,024": "sliding_window:left=1023,right=0",
}


@functools.cache
def profile(dims: tuple[int, int], mask: str, deterministic: bool = False) -> KernelReport:
    fields = {"head_dim": dims[0], "head_dim_v": dims[1], "tile": default_tile(*dims)}
    return inspect(compile(BackwardSpec(mask=MaskForm(LAYERS[mask]), deterministic=deterministic, **fields)))


def costs(report: KernelReport) -> dict[str, object]:
    partial, full = report.loops
    return {
        "spilled": report.spill_bytes,
        "warnings": len(report.warnings),
        "registers": report.registers,
        "shared memory": report.smem_bytes,
        "CTAs a multiprocessor": ctas_a_multiprocessor(report),
        "full: slots": full.common,
        "partial: slots": partial.common,
        "tensor cycles": full.tensor_cycles,
        "full: slots a cycle": round(full.slots_per_cycle, 3),
        "partial: slots a cycle": round(partial.slots_per_cycle, 3),
    }


def ctas_a_multiprocessor(report: KernelReport) -> int:
    return min(REGISTERS // (THREADS * report.registers), SHARED_MEMORY // (report.smem_bytes + RESERVED))


def default_tiles() -> list[dict[str, object]]:
    return [
        {"head_dim": f"{dims[0]}/{dims[1]}", "tile": str(default_tile(*dims)), "mask": mask}
        | costs(profile(dims, mask))
        for dims in HEAD_DIMS
        for mask in LAYERS
    ]


def deterministic_or_not() -> list[dict[str, object]]:
    """Bytes are those of the counters: two of 4 bytes for each query tile of each head."""
    rows = []
    for dim in DETERMINISTIC_DIMS:
        for mask in LAYERS:
            for deterministic in (False, True):
                counters = 8 * HEADS_Q * TOKENS // default_tile(dim, dim).m if deterministic else 0
                about = {"head_dim": dim, "mask": mask, "deterministic": deterministic, "extra bytes": counters}
                rows.append(about | costs(profile((dim, dim), mask, deterministic)))
    return rows


def predicted_waiting() -> list[dict[str, object]]:
    """Times are in steps: of a query tile of a head against a key tile."""
    rows: list[dict[str, object]] = []
    tile = default_tile(128, 128)
    for name, mask in MASKS.items():
        schedule = from_spec(mask, TOKENS, TOKENS).schedule((tile.m, tile.n))
        for heads_k in (8, 32):
            longest_first, last_first = (ctas_of(schedule, heads_k, HEADS_Q // heads_k, d) for d in (False, True))
            for addition in (0, 1):
                without = makespan(longest_first, MULTIPROCESSORS, False, addition)
                with_turns = makespan(last_first, MULTIPROCESSORS, True, addition)
                rows.append(
                    {
                        "mask": name,
                        "key heads": heads_k,
                        "CTAs": len(last_first),
                        "steps / multiprocessors": round(sum(map(len, last_first)) / MULTIPROCESSORS),
                        "an addition takes": addition,
                        "not deterministic": round(without),
                        "deterministic": round(with_turns),
                        "ratio": round(with_turns / without, 2),
                    }
                )
    return rows


def main() -> None:
    notes = [
        "bf16, all gradients. A pass of a loop is one query tile. Issue slots are instructions a warp issues on the",
        "path of every pass; registers are those at entry, before setmaxnreg moves them between warpgroups.",
    ]
    shape = f"{TOKENS} tokens and {HEADS_Q} query heads"
    static = f"deterministic=True or not, static; bytes for {shape}"
    model = f"Predicted by a model, not measured: steps of the main kernel, {shape} of up to 128 dims, an H100"
    save(
        "backward_profile",
        "Static profile of the backward",
        default_tiles(),
        notes,
        {static: deterministic_or_not(), model: predicted_waiting()},
    )


if __name__ == "__main__":
    main()
