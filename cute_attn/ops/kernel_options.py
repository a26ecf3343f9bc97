"""The kernel_options of flex_attention."""

from __future__ import annotations

from typing import Any

from ..backend import BackendRequest
from ..backends.tiles import TILES, tile_text
from ..mask.checks import shown

__all__ = ["backend_with"]

SOFTMAX = ("stale", "exact")
# What torch documents for its own kernels.
TRITON = (
    *("BLOCK_M", "BLOCK_N", "BLOCK_M1", "BLOCK_N1", "BLOCK_M2", "BLOCK_N2", "USE_TMA", "num_warps", "num_stages"),
    *("PRESCALE_QK", "ROWS_GUARANTEED_SAFE", "BLOCKS_ARE_CONTIGUOUS", "WRITE_DQ", "FORCE_USE_FLEX_ATTENTION"),
    *("waves_per_eu", "matrix_instr_nonkdim", "kpack", "BACKEND", "OUTPUT_LOGSUMEXP", "OUTPUT_MAX"),
)
PREFIXES = ("fwd_", "bwd_")
KEYS = "'softmax', 'tile' and 'backward_tile'"


def backend_with(backend: str, options: dict[str, Any] | None) -> str:
    """The text of a backend, with the options of a call in it.

    Raises TypeError for what is no dict, ValueError naming an option that is unknown or torch's, and either for a value
    that is none of the option's.
    """
    if options is None:
        return backend
    if not isinstance(options, dict):
        raise TypeError(f"kernel_options must be None or a dict, got {shown(options)}")
    if not options:
        return backend
    for name in options:
        plain = name
        for prefix in PREFIXES:
            plain = plain.removeprefix(prefix) if isinstance(plain, str) else plain
        if plain in TRITON:
            raise ValueError(
                f"kernel_options must not have {name!r}, which tunes torch's Triton kernels: leave it out; ours take "
                f"{KEYS}"
            )
        if name not in ("softmax", *TILES):
            raise ValueError(f"kernel_options must have no keys but {KEYS}, got {name!r}")
    texts = {name: tile_text(f"kernel_options[{name!r}]", name, options[name]) for name in TILES if name in options}
    if "softmax" in options:
        texts["softmax"] = options["softmax"]
        if options["softmax"] not in SOFTMAX:
            raise ValueError(f"kernel_options['softmax'] must be 'stale' or 'exact', got {options['softmax']!r}")
    request = BackendRequest.parse(backend)
    return backend if request.name == "reference" else BackendRequest(request.name, {**request.options, **texts}).text
