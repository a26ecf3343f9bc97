"""What the decode kernel is called with: two structs and a stream."""

from dataclasses import dataclass
from typing import Any

import cutlass
import cutlass.cute as cute
from cutlass import Float32, Int32

from cute_attn.sm90.dtypes import DTYPES
from cute_attn.spec.decode import DecodeSpec

__all__ = ["CACHED", "Arguments", "Scalars", "Tensors", "Tma", "fake_arguments"]

CACHED = cutlass.Uint8  # what 8-bit caches are until they are in registers


@dataclass(frozen=True)
class Tensors:
    """Inputs and outputs. Every stride but the last is a run-time value; lse and logs have any."""

    q: cute.Tensor  # (batch, tokens, heads_q, head_dim), bf16 or fp16
    k: cute.Tensor  # (pages, page_size, heads_k, head_dim), like q or 8 bits
    v: cute.Tensor  # (pages, page_size, heads_k, head_dim_v)
    table: cute.Tensor  # (batch, max_pages), int32
    lengths: cute.Tensor  # (batch,), int32
    out: cute.Tensor  # (batch, tokens, heads_q, head_dim_v), like q
    lse: cute.Tensor  # (batch, heads_q, tokens), fp32, natural logarithm
    sink: Any  # (heads_q,), fp32: logsumexp of the sinks; None without
    tree: Any  # (1 or batch, tokens, 2), int32: bit j of a token's 64 says whether it attends new token j
    k_scales: Any  # of 8-bit caches, fp32: (batch, heads_k), or of tokens (pages, page_size, heads_k)
    v_scales: Any
    parts: Any  # (splits, batch, tokens, heads_q, head_dim_v), fp32: outputs over parts of the keys; None if not split
    logs: Any  # (splits, batch, heads_q, tokens), fp32: their logsumexps


@dataclass(frozen=True)
class Scalars:
    """score_factor: what scores are multiplied with before masking (specs other than "plain").
    exp2_factor: what the exponential multiplies scores with, positive; it contains log2(e).
    left, right: keys on either side of a token's own position, as `launch/decode.py` limits them."""

    score_factor: Float32
    exp2_factor: Float32
    left: Int32
    right: Int32


@dataclass(frozen=True)
class Tma:
    """TMA atoms and the pools (token, dim, head, page) in the coordinates that they take; None where K is gathered."""

    k_atom: Any
    k: Any
    v_atom: Any
    v: Any


@dataclass(frozen=True)
class Arguments:
    """What the device code is called with."""

    tma: Tma
    tensors: Tensors
    scalars: Scalars


def fake_arguments(spec: DecodeSpec) -> tuple[Any, ...]:
    """Stand-ins to compile with: dtypes, ranks and alignments, with every length and outer stride symbolic."""
    batch, tokens, heads_q, heads_k, pages, page_size, splits = (cute.sym_int() for _ in range(7))
    dims = [cute.sym_int(divisibility=8) for _ in range(2)]
    dtype = DTYPES[spec.dtype]
    cached = CACHED if spec.eight else dtype

    def aligned(of, *shape):
        """Rows of 16 bytes each."""
        strides = [cute.sym_int64(divisibility=128 // of.width) for _ in shape[1:]]
        return cute.runtime.make_fake_tensor(of, shape, (*strides, 1), assumed_align=16)

    def array(of, *shape):
        return cute.runtime.make_fake_tensor(of, shape, tuple(cute.sym_int64() for _ in shape))

    scales: list[Any] = [None, None]
    if spec.eight:
        shape = (pages, page_size, heads_k) if spec.token_scales else (batch, heads_k)
        scales = [array(Float32, *shape) for _ in range(2)]
    tensors = Tensors(
        q=aligned(dtype, batch, tokens, heads_q, dims[0]),
        k=aligned(cached, pages, page_size, heads_k, dims[0]),
        v=aligned(cached, pages, page_size, heads_k, dims[1]),
        table=array(Int32, batch, cute.sym_int()),
        lengths=array(Int32, batch),
        out=aligned(dtype, batch, tokens, heads_q, dims[1]),
        lse=array(Float32, batch, heads_q, tokens),
        sink=array(Float32, heads_q) if spec.sink else None,
        tree=array(Int32, cute.sym_int(), tokens, 2) if spec.tree else None,
        k_scales=scales[0],
        v_scales=scales[1],
        parts=aligned(Float32, splits, batch, tokens, heads_q, dims[1]) if spec.split else None,
        logs=array(Float32, splits, batch, heads_q, tokens) if spec.split else None,
    )
    scalars = Scalars(Float32(1.0), Float32(1.0), Int32(1), Int32(1))
    return tensors, scalars, cute.runtime.make_fake_stream(use_tvm_ffi_env_stream=True)
