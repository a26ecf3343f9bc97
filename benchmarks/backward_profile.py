"""The static profile of the backward at every default tile, deterministic or not, off machine code: no GPU is needed.

What the turns of `deterministic=True` cost in time is predicted by `deterministic.py`.
"""

from __future__ import annotations

import functools

from common import save

from cute_attn.bwd.config import default_tile
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.profile.inspect import KernelReport, inspect
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.mask import MaskForm

MASKS = {"bounded": MaskForm(True), "full": MaskForm()}
TOKENS, HEADS_Q = 8192, 32
DETERMINISTIC_DIMS = (128, 64)
THREADS, RESERVED = 384, 1024  # of a CTA; bytes of shared memory that the driver takes for each
REGISTERS, SHARED_MEMORY = 65536, 228 << 10  # of a multiprocessor, the latter in bytes


@functools.cache
def profile(dims: tuple[int, int], mask: str, deterministic: bool = False) -> KernelReport:
    fields = {"head_dim": dims[0], "head_dim_v": dims[1], "tile": default_tile(*dims)}
    return inspect(cached_or_compiled(BackwardSpec(mask=MASKS[mask], deterministic=deterministic, **fields)))


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
        for mask in MASKS
    ]


def deterministic_or_not() -> list[dict[str, object]]:
    """Bytes are those of the counters: two of 4 bytes for each query tile of each head."""
    rows = []
    for dim in DETERMINISTIC_DIMS:
        for mask in MASKS:
            for deterministic in (False, True):
                counters = 8 * HEADS_Q * TOKENS // default_tile(dim, dim).m if deterministic else 0
                about = {"head_dim": dim, "mask": mask, "deterministic": deterministic, "extra bytes": counters}
                rows.append(about | costs(profile((dim, dim), mask, deterministic)))
    return rows


def main() -> None:
    notes = [
        "bf16, all gradients. A pass of a loop is one query tile. Issue slots are instructions a warp issues on the",
        "path of every pass; registers are those at entry, before setmaxnreg moves them between warpgroups.",
    ]
    shape = f"{TOKENS} tokens and {HEADS_Q} query heads"
    static = f"deterministic=True or not, static; bytes for {shape}"
    save(
        "backward_profile",
        "Static profile of the backward",
        default_tiles(),
        notes,
        {static: deterministic_or_not()},
    )


if __name__ == "__main__":
    main()
