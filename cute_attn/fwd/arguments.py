"""What the forward kernel is called with: three structs and a stream."""

from dataclasses import dataclass, fields
from typing import Any

import cutlass.cute as cute
from cutlass import Float32, Int32

from cute_attn.columns import ItemRow, RunRow
from cute_attn.sm90.dtypes import DTYPES
from cute_attn.spec.forward import ForwardSpec

__all__ = ["Scalars", "Schedule", "Tensors", "TmaTensors", "fake_arguments"]


@dataclass(frozen=True)
class Tensors:
    """Inputs and outputs. Every stride but the last of q, k, v, out, lo and hi is a run-time value."""

    q: cute.Tensor  # (batch, seqlen_q, heads_q, head_dim), bf16 or fp16
    k: cute.Tensor  # (batch, seqlen_k, heads_k, head_dim)
    v: cute.Tensor  # (batch, seqlen_k, heads_k, head_dim_v)
    out: cute.Tensor  # (batch, seqlen_q, heads_q, head_dim_v), like q or fp32
    lse: cute.Tensor  # (batch, heads_q, seqlen_q), fp32, natural logarithm
    lo: Any  # (planes of the mask, layers, seqlen_q), int32; None for a dense mask
    hi: Any
    sink: Any  # (batch, heads_q, seqlen_q), fp32: logsumexp of the row's sinks; any strides, 0 included
    max_logits: Any  # (batch, heads_q), fp32, -inf beforehand
    captured: Any  # tensors that the score_mod captured, as its graph has them; 0-d ones as (1,); None for none
    numbers: Any  # its run-time numbers
    table: Any  # (batch, max_pages), int32: where k and v are pools (pages, page_size, heads_k, head_dim); None else


@dataclass(frozen=True)
class Schedule:
    """A RunTable and the keys without rows: see cute_attn.mask.tiles."""

    items: cute.Tensor  # (n, columns of ItemRow), int32
    runs: cute.Tensor  # (n, columns of RunRow), int32
    idle_keys: cute.Tensor  # (planes of the mask, k_tiles or fewer, 32), int32


@dataclass(frozen=True)
class Scalars:
    """score_factor: what scores are multiplied with before masking (ScoreForms other than plain).
    exp2_factor: what the exponential multiplies scores with, positive; it contains log2(e).
    batches, heads: how many batches and how many heads share an item of the schedule.
    mask_heads: how many heads have planes of their own in the mask, 1 if all share them.
    ctas: how many persistent CTAs to launch at most."""

    score_factor: Float32
    exp2_factor: Float32
    batches: Int32
    heads: Int32
    mask_heads: Int32
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
    out_atom: cute.CopyAtom | None  # None if the output leaves from registers
    out: cute.Tensor | None

    def prefetch(self) -> None:
        for f in fields(self):
            if f.name.endswith("_atom") and getattr(self, f.name) is not None:
                cute.nvgpu.cpasync.prefetch_descriptor(getattr(self, f.name))


def fake_arguments(spec: ForwardSpec) -> tuple[Any, ...]:
    """Stand-ins to compile with: dtypes, ranks and alignments, with every length and outer stride symbolic."""
    batch, seqlen_q, seqlen_k, heads_q, heads_k, max_pages = (cute.sym_int() for _ in range(6))
    dims = [cute.sym_int(divisibility=8) for _ in range(2)]
    dtype = DTYPES[spec.dtype]

    def activation(seqlen, heads, dim, dtype=dtype, batch=batch):
        strides = [cute.sym_int64(divisibility=8) for _ in range(3)]
        return cute.runtime.make_fake_tensor(dtype, (batch, seqlen, heads, dim), (*strides, 1), assumed_align=16)

    def array(of, *shape):
        strides = [cute.sym_int64() for _ in shape[1:]]
        return cute.runtime.make_fake_tensor(of, shape, (*strides, 1))

    intervals = [None, None]
    if spec.mask.is_bounded:
        intervals = [array(Int32, cute.sym_int(), cute.sym_int(), seqlen_q) for _ in range(2)]
    sink = None
    if spec.sink:
        strides = tuple(cute.sym_int64() for _ in range(3))
        sink = cute.runtime.make_fake_tensor(Float32, (batch, heads_q, seqlen_q), strides)
    rows = cute.sym_int() if spec.piece else batch  # of k and v
    tensors = Tensors(
        q=activation(seqlen_q, heads_q, dims[0]),
        k=activation(seqlen_k, heads_k, dims[0], batch=rows),
        v=activation(seqlen_k, heads_k, dims[1], batch=rows),
        out=activation(seqlen_q, heads_q, dims[1], Float32 if spec.fp32_out else dtype),
        lse=array(Float32, batch, heads_q, seqlen_q),
        lo=intervals[0],
        hi=intervals[1],
        sink=sink,
        max_logits=array(Float32, batch, heads_q) if spec.max_logits else None,
        **_captured(spec),
        table=array(Int32, batch, max_pages) if spec.piece else None,
    )
    idle_keys = array(Int32, cute.sym_int(), cute.sym_int(), 32)
    items, runs = (array(Int32, cute.sym_int(), len(row._fields)) for row in (ItemRow, RunRow))
    schedule = Schedule(items, runs, idle_keys)
    scalars = Scalars(Float32(1.0), Float32(1.0), Int32(1), Int32(1), Int32(1), Int32(1))
    return tensors, schedule, scalars, cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)


def _captured(spec: ForwardSpec) -> dict[str, Any]:
    if not spec.score.graph:
        return {"captured": None, "numbers": None}
    from cute_attn.mods.device.arguments import fake_captured

    return dict(zip(("captured", "numbers"), fake_captured(spec.score.graph), strict=True))
