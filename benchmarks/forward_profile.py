"""The static profile of the forward kernel at every default tile: no GPU is needed."""

from __future__ import annotations

from common import save

from cute_attn.fwd.config import default_tile
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.profile.inspect import inspect
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.mask import MaskForm


def main() -> None:
    rows = []
    for dims in HEAD_DIMS:
        for softmax in ("stale", "exact"):
            tile = default_tile(*dims)
            spec = ForwardSpec(head_dim=dims[0], head_dim_v=dims[1], mask=MaskForm(True), softmax=softmax, tile=tile)
            report = inspect(cached_or_compiled(spec))
            partial, full = report.loops
            rows.append(
                {
                    "head_dim": f"{dims[0]}/{dims[1]}",
                    "tile": f"{tile.m}x{tile.n}",
                    "softmax": softmax,
                    "spilled": report.spill_bytes,
                    "warnings": len(report.warnings),
                    "shared memory": report.smem_bytes,
                    "full: slots a cycle": round(full.slots_per_cycle, 3),
                    "partial: slots a cycle": round(partial.slots_per_cycle, 3),
                    "full: slots": full.common,
                    "full: tensor cycles": full.tensor_cycles,
                    "MUFU before the wait": f"{full.mufu_before_pv_wait}/{full.by_pipe['mufu']}",
                }
            )
    notes = [
        "Masks of intervals, of any number, bf16. A pass of the stale loop is two tiles, of the exact loop one.",
        "Issue slots are instructions a warp issues on the path of every pass; rare branches are left out.",
    ]
    save("forward_profile", "Static profile of the forward", rows, notes)


if __name__ == "__main__":
    main()
