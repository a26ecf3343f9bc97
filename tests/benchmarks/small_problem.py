"""The cases of the benchmark at sizes that a CPU does at once, and their exact results."""

from dataclasses import replace

from attention_cases import CASES, shrunk

from cute_attn import reference

NAMES = {"forward": ("out",), "backward": ("dq", "dk", "dv"), "deterministic": ("dq", "dk", "dv")}


def small(name, factor=64, **fields):
    case = CASES[name]
    heads = {"heads_q": 4, "heads_k": 4 if case.heads_q == case.heads_k else 2}
    return replace(shrunk(case, factor), **{**heads, **fields})


def exact(problem, operation, inputs):
    """The output, or the gradients of q, k and v, in fp32 arithmetic."""
    q, k, v, dout = (x.float() for x in inputs)
    mask, scale = problem.intervals(), problem.head_dim**-0.5
    out, lse, _ = reference.attention_forward(q, k, v, mask.lo, mask.hi, None, scale, 0.0)
    if operation == "forward":
        return (out,)
    gradients = reference.attention_backward(dout, None, q, k, v, out, lse, mask.lo, mask.hi, None, scale, 0.0)
    return gradients[:3]
