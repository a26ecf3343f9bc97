"""The CPU in the place of the GPU, to try the scripts without one: kernels in simulation, peers in plain PyTorch."""

from __future__ import annotations

import functools
import time
from dataclasses import replace

import attention
import attention_kernels
import torch
from attention_cases import shrunk
from measurements import PROBLEMS
from torch.nn.attention import SDPBackend

from cute_attn.backend import backend

TOKENS = 192  # of a problem, about


class _Clock:
    """Wall time, as no GPU's is to be had."""

    def seconds(self, run) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def install() -> tuple[attention.Bench, dict[str, float]]:
    """From here on problems are tiny, kernels simulated, SDPA its formula, and flex_attention not compiled."""
    backend("sim").__enter__()
    for name, problem in PROBLEMS.items():
        small = shrunk(problem, max(1, problem.seqlen_q // TOKENS))
        heads_k = 2 if problem.heads_q == problem.heads_k else 1
        PROBLEMS[name] = replace(small, batch=1, heads_q=2, heads_k=heads_k)
    peers = attention_kernels.PEERS
    for name in ("sdpa-cudnn", "sdpa-flash"):
        peers[name] = replace(peers[name], build=functools.partial(attention_kernels.sdpa, backend=SDPBackend.MATH))
    peers["flex_attention"] = replace(
        peers["flex_attention"],
        why_not=lambda problem: None,
        build=functools.partial(attention_kernels.flex, compiler=None),
    )
    bench = attention.Bench(torch.device("cpu"), _Clock(), 1 << 14, 1e12, warm_up=0, rounds=2)
    return bench, {"product, FLOP a second": 1e12}
