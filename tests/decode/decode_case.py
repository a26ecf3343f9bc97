"""A call on the kernels, wherever they run, against plain PyTorch in fp64 and in the call's dtype."""

import contextlib
import dataclasses
import math
from unittest import mock

import torch
from caching import plainly
from oracle import allowed_error, assert_close

from cute_attn import backend as chosen_backend
from cute_attn import flash_attn_with_kvcache
from cute_attn.sim.state.tensor_map import Box

TANH_ERROR = 2.0**-10.9  # relative, of the hardware's tanh


def run(call, backend="sim", mode="eager", seed=0, **arguments):
    """out and lse, outputs and workspaces being full of NaN beforehand."""
    device = "cuda" if backend == "sm90" else "cpu"
    tensors = {name: _moved(x, device) for name, x in (call.cache | arguments | {"q": call.q}).items()}
    options = {"mode": mode, "seed": seed} if backend == "sim" else {}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with chosen_backend(backend, **options):
            results = flash_attn_with_kvcache(return_softmax_lse=True, **tensors)
    finally:
        torch.use_deterministic_algorithms(False)
    return [x.cpu() for x in results]


def check(call, backend="sim", mode="eager", seed=0, num_splits=1, **arguments):
    """The output's error against fp64 is at most twice that of plain PyTorch in the same dtype."""
    wanted = {
        "window" if name == "window_size" else "tree" if name == "mask" else name: x for name, x in arguments.items()
    }
    out, lse = run(call, backend, mode, seed, num_splits=num_splits, **arguments)
    exact, log = plainly(call, **wanted)
    plain, _ = plainly(call, call.q.dtype, **wanted)
    finite = log[log.isfinite()].abs()
    wide = 1e-5 * max(1.0, finite.max().item() if finite.numel() else 1.0) + TANH_ERROR * arguments.get("softcap", 0.0)
    assert_close("out", out, exact, allowed_error(exact, plain))
    assert_close("lse", lse, log, wide)
    return out, lse


@contextlib.contextmanager
def bytes_read():
    """A list that gets, for every tile that TMA brings, how many of its bytes lie inside of its tensor."""
    found, original = [], Box.read

    def noted(self, memory):
        inside = self._inside()
        found.append(0 if inside is None else math.prod(inside[1]) * self.map.element)
        return original(self, memory)

    with mock.patch.object(Box, "read", noted):
        yield found


def only(call, sequence):
    """The call of one sequence alone."""
    cache = {
        name: x[sequence : sequence + 1] if name in ("cache_seqlens", "page_table", "cache_batch_idx") else x
        for name, x in call.cache.items()
    }
    at = slice(sequence, sequence + 1)
    return dataclasses.replace(call, q=call.q[at], cache=cache, keys=call.keys[at], values=call.values[at])


def _moved(x, device):
    if not isinstance(x, torch.Tensor) or device == "cpu":
        return x
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device).copy_(x)
