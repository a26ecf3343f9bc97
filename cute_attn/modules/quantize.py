"""Keys and values of caches in eight bits, with a scale for each token, or for each token and head."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..caches import EIGHT_BITS
from ..mask.checks import shown
from ..reference import compute_dtype

__all__ = ["KVQuant", "KVTensor"]

QUANTISED = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
AXES = {"dkv": (3,), "heads_and_dkv": (2, 3)}  # what shares a scale


@dataclass(frozen=True, eq=False)
class KVTensor:
    """Quantised keys or values: `qvalue * scale`.

    Args:
        qvalue: int8, float8_e4m3fn or float8_e5m2 `(b, s, heads, d)`.
        scale: floating `(b, s, heads or 1, 1)` on the same device.

    Raises TypeError or ValueError naming the argument.
    """

    qvalue: torch.Tensor
    scale: torch.Tensor

    def __post_init__(self) -> None:
        for name, x in (("qvalue", self.qvalue), ("scale", self.scale)):
            if not isinstance(x, torch.Tensor):
                raise TypeError(f"{name} must be a torch.Tensor, got {shown(x)}")
        if self.qvalue.dtype not in EIGHT_BITS:
            raise TypeError(f"qvalue must be int8, float8_e4m3fn or float8_e5m2, got {self.qvalue.dtype}")
        if not self.scale.is_floating_point() or self.scale.dtype in EIGHT_BITS:
            raise TypeError(f"scale must be bfloat16, float16, float32 or float64, got {self.scale.dtype}")
        if self.qvalue.ndim != 4:
            raise ValueError(f"qvalue must have shape (b, s, heads, d), got {tuple(self.qvalue.shape)}")
        b, s, heads, _ = self.qvalue.shape
        if tuple(self.scale.shape) not in ((b, s, heads, 1), (b, s, 1, 1)):
            raise ValueError(
                f"scale must have shape ({b}, {s}, {heads} or 1, 1) for this qvalue, got {tuple(self.scale.shape)}"
            )
        if self.scale.device != self.qvalue.device:
            raise ValueError(f"scale must be on the device of qvalue, {self.qvalue.device}, got {self.scale.device}")

    @property
    def shape(self) -> torch.Size:
        """Of qvalue."""
        return self.qvalue.shape

    @property
    def device(self) -> torch.device:
        return self.qvalue.device

    def dequant(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """`qvalue * scale` `(b, s, heads, d)`, multiplied in fp32 (fp64 for fp64) and rounded to `dtype` once."""
        wide = torch.promote_types(compute_dtype(dtype), self.scale.dtype)
        return (self.qvalue.to(wide) * self.scale.to(wide)).to(dtype)


@dataclass(frozen=True)
class KVQuant:
    """How keys and values are quantised.

    Args:
        dtype: "int8", or "fp8", which is float8_e4m3fn.
        axis: what shares a scale: "dkv", the numbers of a token and head, or "heads_and_dkv", those of a token.

    Raises ValueError for anything else.
    """

    dtype: str
    axis: str = "dkv"

    def __post_init__(self) -> None:
        if self.dtype not in QUANTISED:
            raise ValueError(f"dtype of a KVQuant must be 'int8' or 'fp8', got {self.dtype!r}")
        if self.axis not in AXES:
            raise ValueError(f"axis must be 'dkv' or 'heads_and_dkv', got {self.axis!r}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the quantised numbers."""
        return QUANTISED[self.dtype]

    def quantize(self, kv: torch.Tensor) -> KVTensor:
        """Keys or values `(b, s, heads, d)`, bf16, fp16, fp32 or fp64, in eight bits.

        The largest finite number of what shares a scale becomes 127 (int8) or 448 (fp8); infinite ones saturate there;
        a row of zeros has scale 1; where one is NaN, the scale is NaN, and so is all that shares it.
        """
        if not isinstance(kv, torch.Tensor):
            raise TypeError(f"kv must be a torch.Tensor, got {shown(kv)}")
        if kv.dtype not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
            raise TypeError(f"kv must be bfloat16, float16, float32 or float64, got {kv.dtype}")
        if kv.ndim != 4 or 0 in kv.shape[2:]:
            raise ValueError(f"kv must have shape (b, s, heads, d), with heads and d >= 1, got {tuple(kv.shape)}")
        *_, most = EIGHT_BITS[self.torch_dtype]
        wide = kv.detach().to(compute_dtype(kv.dtype))
        scale = wide.abs().masked_fill(wide.isinf(), 0.0).amax(AXES[self.axis], keepdim=True) / most
        scale = scale.masked_fill(scale == 0, 1.0)
        small = (wide / scale).clamp(-most, most)
        if self.torch_dtype == torch.int8:
            small = small.round().nan_to_num(0.0)
        return KVTensor(small.to(self.torch_dtype), scale)
