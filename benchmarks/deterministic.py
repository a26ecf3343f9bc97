"""What `deterministic=True` costs the backward, predicted by the model of `cute-attn predict`: nothing is measured.

The longest items of a backward start first. With turns at the sums of dQ they start in the order of the turns, and a
tile waits until those before it have been added to its sum. Both are laid on the chip by their own machine code.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from cute_attn.launch.shapes import spec_for
from cute_attn.mask import from_spec
from cute_attn.predict import ours
from cute_attn.predict.call import predict
from cute_attn.predict.machine import H200

code_of = functools.cache(ours.code_of)
VALIDATION = Path(__file__).parent / "results" / "predict.json"  # of predict.py
TOKENS, HEAD_DIM, HEADS_Q, HEADS_K = 8192, 128, 32, (8, 32)
MASKS = {
    "causal": "causal",
    "full": "full",
    "packed documents": "causal_documents:cu_seqlens=0/512/1536/3072/5120/8192",
    "ragged documents": "causal_documents:cu_seqlens=0/700/1900/2222/4100/6900/8192",
    "ragged documents, not causal": "documents:cu_seqlens=0/700/1900/2222/4100/6900/8192",
    "sliding window of 1,024": "sliding_window:left=1023,right=0",
    "shared prefix": "shared_prefix:prefix_length=2048,lengths=1536/1536/1536/1536",
}


def row(name: str, heads_k: int) -> dict[str, object]:
    mask = from_spec(MASKS[name], TOKENS)
    specs = [spec_for("bwd", "bf16", HEAD_DIM, HEAD_DIM, mask, deterministic=turns) for turns in (False, True)]
    calls = [ours.call_of(spec, code_of(spec), mask, (HEADS_Q, heads_k)) for spec in specs]
    without, with_turns = (predict(call, H200).seconds * 1e3 for call in calls)
    waiting = predict(calls[1], replace(H200, ordered=0.0)).seconds * 1e3
    return {
        "mask": name,
        "key heads": heads_k,
        "items": len(calls[0].partial),
        "tiles": int(calls[0].partial.sum() + calls[0].full.sum()),
        "with mask code": int(calls[0].partial.sum()),
        "with mask code, deterministic": int(calls[1].partial.sum()),
        "predicted ms": round(without, 3),
        "deterministic, predicted ms": round(with_turns, 3),
        "ratio": round(with_turns / without, 2),
        "order and waiting alone": round(waiting / without, 2),
    }


def ratio_errors(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """How far predicted ratios of deterministic to not were from measured ones, of the rows held out from fitting."""
    pairs: dict[tuple[str, int], dict[bool, float]] = {}
    for row in rows:
        if row["held out"] and row["kernel"].endswith("backward"):
            pair = pairs.setdefault((row["kernel"], row["seqlen"]), {})
            pair[row["deterministic"]] = row["predicted ms"] / row["measured ms"]
    return [abs(pair[True] / pair[False] - 1) for pair in pairs.values()]


def main() -> None:
    errors = np.array(ratio_errors(json.loads(VALIDATION.read_text())["rows"]))
    notes = [
        f"Predicted for an H200, not measured: the backward with all its kernels, bf16, {TOKENS} tokens, {HEADS_Q}",
        f"query heads of {HEAD_DIM} dims. A tile is a query tile of a head against a key tile.",
        f"The model charges {H200.ordered:.0f} cycles for every tile that has its turn, fitted on other kernels; the",
        "last column is without them. Turns are the weakest part of the model: its ratios for other kernels, that were",
        f"measured on an H200 and that it was not fitted on, were off by {errors.mean():.0%} on average and "
        f"{errors.max():.0%} at worst ({len(errors)} ratios).",
    ]
    rows = [row(name, heads_k) for name in MASKS for heads_k in HEADS_K]
    save("deterministic", "What deterministic=True costs the backward", rows, notes)


if __name__ == "__main__":
    main()
