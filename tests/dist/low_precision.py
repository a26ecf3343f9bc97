"""Problems in bf16 for the kernels: ranks must be as precise as plain PyTorch in bf16 on one device."""

import torch.distributed as dist
from oracle import allowed_error, assert_close, plain_attention
from problems import NAMES, Problem, results

import cute_attn
from cute_attn.dist import calc_attn, compute_pad_size, dispatch, magi_attn_flex_key, undispatch

CHUNK = 32


class LowPrecision(Problem):
    """A problem in bf16, what it must lead to, and `plain`: what PyTorch makes of it with every tensor in bf16."""

    def __post_init__(self):
        super().__post_init__()
        *qkv, sink = self.inputs
        dout, dlse = self.gradients
        self.inputs = *(x.bfloat16() for x in qkv), None if sink is None else sink.float()
        self.gradients = dout.bfloat16(), dlse.bfloat16().float()
        wide = [x if x is None else x.double() for x in self.inputs]
        self.wanted = results(wide, [x.double() for x in self.gradients], self.on_one_device)
        self.plain = results(self.inputs, self.gradients, self._plain)

    def _plain(self, q, k, v, sink):
        q, k, v = (x[None] for x in (q, k, v))
        sink = None if sink is None else sink[None, None]
        scale = self.head_dim**-0.5
        out, lse, largest = plain_attention(q, k, v, self.mask.to_dense(), sink, scale, self.softcap)
        return out[0], lse[0], largest[0]


def on_kernels(rank, problem, settings, options=None, backend="sim"):
    """For `run_ranks`: the results of a problem; the backward runs outside of `with`, on the forward's backend."""
    rows, world = problem.mask.seqlen_q, dist.get_world_size()
    pad_size = compute_pad_size(rows, world, CHUNK)
    key = magi_attn_flex_key(problem.mask, None, None, rows, rows, pad_size, CHUNK, dist.group.WORLD, settings)

    def attention(q, k, v, sink):
        local = (dispatch(x, key) for x in (q, k, v))
        with cute_attn.backend(backend):
            out, lse, *largest = calc_attn(*local, key, sink, softcap=problem.softcap, **(options or {}))
        return undispatch(out, key), undispatch(lse.T, key).T, *(largest or [None])

    return results(problem.inputs, problem.gradients, attention)


def check_low_precision(problem, got):
    for name in NAMES:
        if got[name] is not None:
            wanted = problem.wanted[name]
            assert_close(name, got[name], wanted, allowed_error(wanted, problem.plain[name]))
