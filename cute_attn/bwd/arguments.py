"""What a backward is called with: three structs and a stream."""

from dataclasses import dataclass, fields
from typing import Any

import cutlass.cute as cute
from cutlass import Float32, Int32

from cute_attn.columns import ItemRow, RunRow, TurnRow
from cute_attn.sm90.dtypes import DTYPES
from cute_attn.spec.backward import BackwardSpec

__all__ = ["Scalars", "Schedule", "Tensors", "TmaTensors", "fake_arguments"]


@dataclass(frozen=True)
class Tensors:
    """Inputs, workspaces and outputs; None where the spec has no use for one.

    Of a tile of m query rows, `order` is the order of its rows in memory: see `cute_attn.bwd.rows`.
    """

    q: cute.Tensor  # (batch, seqlen_q, heads_q, head_dim), bf16 or fp16
    k: cute.Tensor  # (batch, seqlen_k, heads_k, head_dim)
    v: cute.Tensor  # (batch, seqlen_k, heads_k, head_dim_v)
    out: cute.Tensor  # (batch, seqlen_q, heads_q, head_dim_v)
    dout: cute.Tensor  # (batch, seqlen_q, heads_q, head_dim_v)
    lse: cute.Tensor  # (batch, heads_q, seqlen_q), fp32, natural logarithm, sinks included
    dlse: cute.Tensor | None  # (batch, heads_q, seqlen_q), fp32
    bounds: cute.Tensor | None  # (planes of the mask, q_tiles, layers, 2, m), int32 in `order`: lo, then hi
    statistics: cute.Tensor  # workspace (batch, heads_q, q_tiles, 2, m), fp32 in `order`: -lse * log2(e), then delta
    dq_sum: cute.Tensor | None  # workspace (batch, heads_q, q_tiles, m * head_dim), fp32 in fragment order
    turns: cute.Tensor | None  # workspace (batch, heads_q, q_tiles, 2), int32: key tiles added to dq_sum so far
    dq: cute.Tensor | None  # like q, or fp32
    dk: cute.Tensor | None  # like k, or fp32
    dv: cute.Tensor | None  # like v, or fp32
    captured: Any  # tensors that the score_mod captured, as its graph has them; 0-d ones as (1,); None for none
    numbers: Any  # its run-time numbers
    scattered: Any  # fp32, what flows to captured tensors: see `cute_attn.mods.device.keys.Flow`
    asked: Any  # tensors and numbers that the predicate of the mask captured
    asked_numbers: Any


@dataclass(frozen=True)
class Schedule:
    """The transposed RunTable of cute_attn.mask.tiles, and what is idle; for ordered sums of dQ also the forward one's
    runs. With planes by head, items and idle_keys are those of cute_attn.launch.by_head."""

    items: cute.Tensor  # (n, columns of ItemRow, or of KeyHeadRow and 3 * heads_per_key), int32
    runs: cute.Tensor  # (n, columns of RunRow), int32
    query_turns: cute.Tensor | None  # (planes of the mask, q_tiles, 4), int32: a TurnRow for each query tile
    key_runs: cute.Tensor | None  # like runs
    idle_rows: cute.Tensor  # (planes of the mask, q_tiles or fewer, 32), int32
    idle_keys: cute.Tensor  # (planes of the mask or of its key heads, k_tiles or fewer, 32), int32


@dataclass(frozen=True)
class Scalars:
    """score_factor: what scores are multiplied with before tanh (softcap only).
    exp2_factor: what the exponential multiplies scores with; it contains log2(e).
    scale: what dQ and dK are multiplied with.
    batches: how many batches share an item of the schedule.
    heads_per_key: how many query heads share a key head.
    ctas: how many CTAs to launch at most."""

    score_factor: Float32
    exp2_factor: Float32
    scale: Float32
    batches: Int32
    heads_per_key: Int32
    ctas: Int32


@dataclass(frozen=True)
class TmaTensors:
    """TMA atoms and the tensors (seq, dim, head, batch) in the coordinates that they take."""

    q_atom: cute.CopyAtom
    q: cute.Tensor
    k_atom: cute.CopyAtom
    k: cute.Tensor
    v_atom: cute.CopyAtom
    v: cute.Tensor
    dout_atom: cute.CopyAtom
    dout: cute.Tensor
    dk_atom: cute.CopyAtom | None
    dk: cute.Tensor | None
    dv_atom: cute.CopyAtom | None
    dv: cute.Tensor | None

    def prefetch(self) -> None:
        for f in fields(self):
            if f.name.endswith("_atom") and getattr(self, f.name) is not None:
                cute.nvgpu.cpasync.prefetch_descriptor(getattr(self, f.name))


def fake_arguments(spec: BackwardSpec) -> tuple[Any, ...]:
    """Stand-ins to compile with: dtypes, ranks and alignments, with every length and outer stride symbolic."""
    batch, seqlen_q, seqlen_k, heads_q, heads_k, q_tiles = (cute.sym_int() for _ in range(6))
    dims = [cute.sym_int(divisibility=8) for _ in range(2)]
    dtype, m = DTYPES[spec.dtype], spec.tile.m

    def activation(seqlen, heads, dim, dtype=dtype):
        strides = [cute.sym_int64(divisibility=8) for _ in range(3)]
        return cute.runtime.make_fake_tensor(dtype, (batch, seqlen, heads, dim), (*strides, 1), assumed_align=16)

    def array(of, *shape):
        strides = [cute.sym_int64() for _ in shape[1:]]
        return cute.runtime.make_fake_tensor(of, shape, (*strides, 1))

    def rows_of(of, *shape):
        """Compact; the stride of the last dimension but one is known."""
        strides = [cute.sym_int64() for _ in shape[2:]]
        return cute.runtime.make_fake_tensor(of, shape, (*strides, shape[-1], 1))

    def workspace(of, *shape):
        """Compact, with strides that cannot overflow."""
        strides = [cute.sym_int64(divisibility=4) for _ in shape[1:]]
        return cute.runtime.make_fake_tensor(of, shape, (*strides, 1), assumed_align=16)

    gradient = Float32 if spec.fp32_gradients else dtype
    dlse = None
    if spec.dlse:
        strides = tuple(cute.sym_int64() for _ in range(3))
        dlse = cute.runtime.make_fake_tensor(Float32, (batch, heads_q, seqlen_q), strides)
    tensors = Tensors(
        q=activation(seqlen_q, heads_q, dims[0]),
        k=activation(seqlen_k, heads_k, dims[0]),
        v=activation(seqlen_k, heads_k, dims[1]),
        out=activation(seqlen_q, heads_q, dims[1]),
        dout=activation(seqlen_q, heads_q, dims[1]),
        lse=array(Float32, batch, heads_q, seqlen_q),
        dlse=dlse,
        bounds=workspace(Int32, cute.sym_int(), q_tiles, cute.sym_int(), 2, m) if spec.mask.is_bounded else None,
        statistics=workspace(Float32, batch, heads_q, q_tiles, 2, m),
        dq_sum=workspace(Float32, batch, heads_q, q_tiles, m * spec.head_dim) if spec.dq else None,
        turns=rows_of(Int32, batch, heads_q, q_tiles, 2) if spec.deterministic else None,
        dq=activation(seqlen_q, heads_q, dims[0], gradient) if spec.dq else None,
        dk=activation(seqlen_k, heads_k, dims[0], gradient) if spec.dk else None,
        dv=activation(seqlen_k, heads_k, dims[1], gradient) if spec.dv else None,
        **_captured(spec),
    )
    schedule = Schedule(
        items=array(Int32, cute.sym_int(), cute.sym_int())
        if spec.planes_by_head
        else rows_of(Int32, cute.sym_int(), len(ItemRow._fields)),
        runs=rows_of(Int32, cute.sym_int(), len(RunRow._fields)),
        query_turns=rows_of(Int32, cute.sym_int(), q_tiles, len(TurnRow._fields)) if spec.deterministic else None,
        key_runs=rows_of(Int32, cute.sym_int(), len(RunRow._fields)) if spec.deterministic else None,
        idle_rows=rows_of(Int32, cute.sym_int(), cute.sym_int(), 32),
        idle_keys=rows_of(Int32, cute.sym_int(), cute.sym_int(), 32),
    )
    scalars = Scalars(Float32(1.0), Float32(1.0), Float32(1.0), Int32(1), Int32(1), Int32(1))
    return tensors, schedule, scalars, cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)


def _captured(spec: BackwardSpec) -> dict[str, Any]:
    names = "captured", "numbers", "scattered", "asked", "asked_numbers"
    if not (spec.score.graph or spec.mask.predicate):
        return dict.fromkeys(names)
    from cute_attn.mods.device.arguments import fake_captured, fake_scattered

    score, predicate = spec.score.graph, spec.mask.predicate
    return dict(zip(names, (*fake_captured(score), fake_scattered(score), *fake_captured(predicate)), strict=True))
