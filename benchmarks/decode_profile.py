"""The static profile of the decode kernel: whether its issue slots leave it bound by memory. No GPU is needed.

The issue slots and registers are read off machine code. Of a multiprocessor's four schedulers each has one consumer
warp of a CTA, so that slots a warp are cycles that 128 keys take if nothing else waits; CTAs that share the
multiprocessor hide each other's waits. Beside them stand the cycles that memory needs for those keys.
"""

from __future__ import annotations

from dataclasses import replace

from common import save

from cute_attn.decode.config import ctas_per_multiprocessor
from cute_attn.jit.obtain import cached_or_compiled
from cute_attn.profile.inspect import inspect
from cute_attn.spec.decode import DecodeSpec, DecodeTile
from cute_attn.spec.score import ScoreForm

KEYS = 128  # that figures are for: two tiles
BANDWIDTH, MULTIPROCESSORS, CLOCK = 4.8e12, 132, 1.755e9  # of an H200: bytes a second, and cycles
SIXTEEN = DecodeSpec()
EIGHT = DecodeSpec(cache="e4m3", score=ScoreForm("scaled"))
SPECS = [
    *(replace(SIXTEEN, tile=DecodeTile(rows)) for rows in (8, 16, 32, 64)),
    replace(SIXTEEN, tile=DecodeTile(8, 4), head_dim=64, head_dim_v=64),
    replace(SIXTEEN, tile=DecodeTile(32), head_dim=256, head_dim_v=256),
    *(replace(EIGHT, tile=DecodeTile(rows)) for rows in (8, 16, 32, 64)),
    *(replace(EIGHT, cache="int8", tile=DecodeTile(rows)) for rows in (8, 16, 32, 64)),
    replace(EIGHT, cache="int8", token_scales=True),
]


def row(spec: DecodeSpec) -> dict[str, object]:
    report = inspect(cached_or_compiled(spec))
    (loop,) = report.loops
    tiles = KEYS // spec.tile.n
    memory = KEYS * (spec.head_dim + spec.head_dim_v) * (1 if spec.eight else 2) * MULTIPROCESSORS * CLOCK / BANDWIDTH
    return {
        "kernel": str(spec),
        "registers": report.registers,
        "spilled": report.spill_bytes,
        "warnings": len(report.warnings),
        "shared memory": report.smem_bytes,
        "CTAs a multiprocessor": ctas_per_multiprocessor(spec),
        "slots": tiles * loop.common,
        "behind branches": tiles * loop.conditional,
        "tensor cycles": tiles * loop.tensor_cycles,
        "cycles of memory": round(memory),
    }


def main() -> None:
    notes = [
        f"For {KEYS} keys of one key head. Slots are what a consumer warp issues on the path of every tile;",
        "behind branches stand masks and cleaning, in the first and last tiles of a sequence. Memory is an H200's: 4.8",
        "TB/s, shared by 132 multiprocessors at 1,755 MHz. Nothing here was measured on hardware.",
    ]
    save("decode_profile", "Static profile of the decode kernel", [row(spec) for spec in SPECS], notes)


if __name__ == "__main__":
    main()
