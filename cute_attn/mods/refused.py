"""What a mod may not do, and what would do instead."""

from __future__ import annotations

__all__ = ["INSTEAD", "refuse", "unknown"]

_SCALARS = "there is one score at a time, a scalar"
# operators that people reach for -> what would do
_REFUSED = {
    "dot matmul mm bmm mv einsum inner outer linear": f"{_SCALARS}, which * multiplies",
    "sum mean prod amax amin any all cumsum logsumexp softmax norm": (
        f"{_SCALARS}; compute the sum outside of the function, and index the result"
    ),
    "sort topk argsort argmax argmin searchsorted bucketize": "compute it outside of the function, index the result",
    "rand randn randint rand_like randn_like bernoulli dropout": (
        "the backward computes scores again; draw outside of the function, and index the result"
    ),
    "gather index_select take take_along_dim embedding": "index the captured tensor, as in table[h, q_idx]",
    "detach": "a score whose derivative is wrong on purpose is not offered",
}
INSTEAD = {name: text for names, text in _REFUSED.items() for name in names.split()}
IN_PLACE = "values do not change in place; write x = x + y for x += y"


def refuse(kind: str, what: str, instead: str) -> ValueError:
    """The error for what a mod may not do. kind: "score_mod" or "mask_mod"."""
    return ValueError(f"{kind} {what}: {instead}")


def unknown(kind: str, name: str) -> ValueError:
    """The error for an operator that is no part of graphs."""
    if name.startswith("__i"):
        return refuse(kind, f"uses {name}", IN_PLACE)
    if name.endswith("_") and not name.startswith("_"):
        return refuse(kind, f"uses {name}", f"values do not change in place; {name[:-1]} gives a new one")
    if name in INSTEAD:
        return refuse(kind, f"uses {name}", INSTEAD[name])
    return refuse(kind, f"uses {name}", "it cannot be part of a graph; docs/flex_attention.md lists what can")
