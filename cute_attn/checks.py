"""Argument checks of the public functions: each raises TypeError or ValueError naming argument, value and what is
allowed. What passed here is not checked again below."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from .elsewhere import KEYWORDS, Keywords
from .kinds import is_int, is_number
from .mask import IntervalMask
from .mask.checks import END, INTEGERS, check_flag, check_integers, check_is_dense, shown
from .mask.checks import check_integer_tensor as check_readable
from .reference import compute_dtype

__all__ = [
    "check_alike",
    "check_count",
    "check_cu_seqlens",
    "check_ends",
    "check_flag",
    "check_heads_first",
    "check_integer_tensor",
    "check_mask",
    "check_max_seqlen",
    "check_packed",
    "check_qkv",
    "check_scale",
    "check_seqused",
    "check_sink",
    "check_softcap",
    "check_unsupported",
    "check_window",
    "is_readable",
    "takes_keywords_of",
]

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
SINK_LAYOUTS = ("sh", "ssh")
LARGEST = torch.finfo(torch.float32).max  # scores are fp32


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> None:
    """q, k and v fit together; `layout` names their dimensions: "(batch, seqlen, heads, head_dim)" or without batch.

    It depends on what tensors are, never on what they hold, so that calls which come again are checked once.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # whose shapes are no numbers
        _check_qkv(q, k, v, layout)
        return
    facts = None
    if (
        type(q) in _PLAIN
        and type(k) in _PLAIN
        and type(v) in _PLAIN
        and not (q.is_nested or k.is_nested or v.is_nested)
    ):
        shapes, dtypes, devices = (
            (q.shape, k.shape, v.shape),
            (q.dtype, k.dtype, v.dtype),
            (q.device, k.device, v.device),
        )
        facts = layout, shapes, dtypes, devices, (q.layout, k.layout, v.layout)
        if facts in _checked:
            return
    _check_qkv(q, k, v, layout)
    if facts is not None:
        if len(_checked) >= REMEMBERED:
            _checked.clear()
        _checked.add(facts)


_PLAIN = (torch.Tensor, torch.nn.Parameter)
REMEMBERED = 1024  # shapes: those of a program with ever new lengths are forgotten all at once
_checked: set[tuple[object, ...]] = set()


def _check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: str) -> None:
    check_alike(layout, q=q, k=k, v=v)
    if q.ndim == 4 and not q.shape[0] == k.shape[0] == v.shape[0]:
        raise ValueError(f"q, k and v must have one batch size, got {q.shape[0]}, {k.shape[0]} and {v.shape[0]}")
    if k.shape[-3] != v.shape[-3]:
        raise ValueError(f"k and v must have one length, got {k.shape[-3]} and {v.shape[-3]}")
    if k.shape[-2] != v.shape[-2]:
        raise ValueError(f"k and v must have the same number of heads, got {k.shape[-2]} and {v.shape[-2]}")
    if k.shape[-2] < 1 or q.shape[-2] < 1 or q.shape[-2] % k.shape[-2] != 0:
        raise ValueError(
            f"the heads of q must be a multiple of the heads of k and v (at least one), "
            f"got heads_q = {q.shape[-2]} and heads_k = {k.shape[-2]}"
        )
    if q.shape[-1] != k.shape[-1] or q.shape[-1] < 1:
        raise ValueError(f"q and k must have one head_dim >= 1, got {q.shape[-1]} and {k.shape[-1]}")
    if v.shape[-1] < 1:
        raise ValueError(f"v must have head_dim >= 1, got {v.shape[-1]}")


def check_alike(layout: str, **tensors: torch.Tensor) -> None:
    """Tensors with the dimensions of `layout`, of one of our dtypes and on one device."""
    (first_name, first), *_ = tensors.items()
    ndim = layout.count(",") + 1
    for name, x in tensors.items():
        _check_tensor(name, x)
        if x.ndim != ndim:
            raise ValueError(f"{name} must have shape {layout}, got {tuple(x.shape)}")
        if x.dtype != first.dtype or x.device != first.device:
            *others, last = tensors
            names = f"{', '.join(others)} and {last}"
            if x.dtype != first.dtype:
                raise TypeError(f"{names} must have one dtype, got {first_name} {first.dtype} and {name} {x.dtype}")
            raise ValueError(
                f"{names} must be on one device, got {first_name} on {first.device} and {name} on {x.device}"
            )


def check_heads_first(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool) -> None:
    """What PyTorch's attention takes: heads before tokens, and fewer heads of keys only where that is asked for."""
    check_alike("(batch, heads, tokens, head_dim)", query=query, key=key, value=value)
    heads_q, heads_k = query.shape[1], key.shape[1]
    if value.shape[1] != heads_k:
        raise ValueError(f"key and value must have the same number of heads, got {heads_k} and {value.shape[1]}")
    if key.shape[2] != value.shape[2]:
        raise ValueError(f"key and value must have one length, got {key.shape[2]} and {value.shape[2]}")
    if key.shape[0] != value.shape[0]:
        raise ValueError(f"key and value must have one batch size, got {key.shape[0]} and {value.shape[0]}")
    if key.shape[0] not in (1, query.shape[0]):
        raise ValueError(f"key and value must have the batch size of query, {query.shape[0]}, or 1, got {key.shape[0]}")
    if heads_q != heads_k and not enable_gqa:
        raise ValueError(
            f"query and key must have the same number of heads unless enable_gqa is True, got {heads_q} and {heads_k}"
        )
    if heads_k < 1 or heads_q < 1 or heads_q % heads_k:
        raise ValueError(
            f"the heads of query must be a multiple of the heads of key (at least one), got {heads_q} and {heads_k}"
        )
    if query.shape[3] != key.shape[3] or query.shape[3] < 1:
        raise ValueError(f"query and key must have one head_dim >= 1, got {query.shape[3]} and {key.shape[3]}")
    if value.shape[3] < 1:
        raise ValueError(f"value must have head_dim >= 1, got {value.shape[3]}")


def check_packed(name: str, x: torch.Tensor, layout: str, size: int | None = None) -> None:
    """A packed tensor has the dimensions of `layout`, and `size` of the third-last if that packs q, k and v."""
    _check_tensor(name, x)
    if x.ndim != layout.count(",") + 1 or (size is not None and x.shape[-3] != size):
        raise ValueError(f"{name} must have shape {layout}, got {tuple(x.shape)}")


def check_scale(softmax_scale: float | None, head_dim: int, name: str = "softmax_scale") -> float:
    """The scale to use: `1 / sqrt(head_dim)` for None."""
    if softmax_scale is None:
        return 1.0 / math.sqrt(head_dim)
    return _check_finite(name, softmax_scale)


def check_softcap(softcap: float) -> float:
    cap = _check_finite("softcap", softcap)
    if cap < 0:
        raise ValueError(f"softcap must be >= 0 (0 for off), got {softcap}")
    return cap


def check_count(name: str, value: int) -> int:
    """An int >= 0 that fits int32; NumPy's too."""
    if isinstance(value, np.integer):
        value = int(value)
    if not is_int(value, torch.SymInt):
        raise TypeError(f"{name} must be an int >= 0, got {shown(value)}")
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    if value >= END:
        raise ValueError(f"{name} must be below 2^31, got {value}")
    return value


def check_max_seqlen(name: str, value: Any, bounds: torch.Tensor | None) -> None:
    """A hint that is None, an int or a 0-d tensor, and at least the longest of the lengths between the `bounds`,
    cumulative lengths or ranges `(n, 2)`, where both are on the host. Nothing is read off a GPU or while compiling."""
    if value is None:
        return
    if isinstance(value, torch.Tensor):
        if value.ndim or value.dtype not in INTEGERS:
            raise TypeError(f"{name} must be None, an int >= 0 or a 0-d tensor of one, got {shown(value)}")
        if not is_readable(value):
            return
        value = int(value.long())
    elif isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    most = check_count(name, value)
    if bounds is not None and is_readable(bounds) and bounds.numel() > 1:
        lengths = bounds.long().diff()
        longest = int(lengths.max())
        # bounds that fall or are no positions are refused where they are read
        if most < longest < END and int(lengths.min()) >= 0:
            raise ValueError(f"{name} must not be below the longest length, {longest}, got {most}")


def check_seqused(name: str, value: object, ends: torch.Tensor) -> None:
    """None, or the full length of each document; that it is full is seen only on the host."""
    if value is None:
        return
    used = check_integers(name, value)
    if not (is_readable(used) and is_readable(ends)):
        raise ValueError(f"{name} is not supported: it must be None or, on the host, the full lengths")
    if not torch.equal(used, ends.long().diff()):
        raise ValueError(f"{name} is not supported: it must be None or the full lengths, got {used.tolist()}")


def check_sink(sink: torch.Tensor | None, sink_layout: str, q: torch.Tensor) -> torch.Tensor | None:
    """The sinks as `(b or 1, sq or 1, s_sink, heads_q)` in the dtype of the scores, for q `([b,] sq, heads_q, d)`.

    Their gradient goes back into the shape and dtype in which they came.
    """
    if not isinstance(sink_layout, str) or sink_layout not in SINK_LAYOUTS:
        raise ValueError(f"sink_layout must be 'sh' or 'ssh', got {sink_layout!r}")
    if sink is None:
        return None
    _check_is_dense("sink", sink)
    if sink.dtype not in DTYPES:
        raise TypeError(f"sink must be bfloat16, float16, float32 or float64, got {sink.dtype}")
    if sink.device != q.device:
        raise ValueError(f"sink must be on the device of q, {q.device}, got {sink.device}")
    rows, heads = q.shape[-3], q.shape[-2]
    sinks = sink.to(compute_dtype(q.dtype))
    if sink_layout == "sh":
        if sink.ndim not in (1, 2) or sink.shape[-1] != heads:
            raise ValueError(
                f"sink of layout 'sh' must have shape (s_sink, {heads}) or ({heads},), got {tuple(sink.shape)}"
            )
        return sinks.view(1, 1, -1, heads) if sink.ndim == 1 else sinks[None, None]
    if sink.ndim == 3 and sink.shape[0] == rows and sink.shape[2] == heads:
        return sinks[None]
    if q.ndim == 4 and sink.ndim == 4 and sink.shape[:2] == q.shape[:2] and sink.shape[3] == heads:
        return sinks
    wanted_shape = f"({rows}, s_sink, {heads})" + (
        f" or ({q.shape[0]}, {rows}, s_sink, {heads})" if q.ndim == 4 else ""
    )
    raise ValueError(f"sink of layout 'ssh' must have shape {wanted_shape}, got {tuple(sink.shape)}")


def check_window(window_size: object, causal: bool) -> tuple[int, int]:
    """The window (left, right) that `window_size` and `causal` mean together; -1 is unlimited.

    As in FlashAttention, None and all that is below 0 is unlimited too. Bounds are ints, NumPy's, or a tensor's on the
    host.
    """
    check_flag("causal", causal)
    pair = (None, None) if window_size is None else window_size
    if isinstance(pair, (torch.Tensor, np.ndarray)) and pair.ndim == 1:
        pair = list(pair)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"window_size must be (left, right), got {window_size!r}")
    left, right = (_window_bound(bound, window_size) for bound in pair)
    return (left, 0) if causal else (left, right)


def _window_bound(bound: int | torch.Tensor | None, window_size: object) -> int:
    if bound is None:
        return -1
    if isinstance(bound, torch.Tensor) and bound.ndim == 0 and bound.dtype in INTEGERS:
        if bound.device.type != "cpu":
            raise ValueError(f"window_size must be ints or on the host, got a tensor on {bound.device}")
        bound = int(bound.long())
    elif isinstance(bound, np.integer):
        bound = int(bound)
    if not is_int(bound, torch.SymInt):
        raise TypeError(f"window_size must hold two ints, -1 or None for unlimited, got {window_size!r}")
    return max(-1, min(bound, END))  # no two positions are further apart


def check_integer_tensor(name: str, x: torch.Tensor, layout: str) -> None:
    """An integer tensor with the dimensions of `layout`: "(n, 2)" or "(n,)"."""
    _check_is_tensor(name, x)
    check_readable(name, x)
    if (x.ndim, x.shape[-1] if x.ndim == 2 else 2) != ((2, 2) if layout == "(n, 2)" else (1, 2)):
        raise ValueError(f"{name} must have shape {layout}, got {tuple(x.shape)}")


def check_mask(name: str, mask: IntervalMask, q: torch.Tensor, k: torch.Tensor) -> None:
    """An IntervalMask for q and k `(batch, seqlen, heads, head_dim)`."""
    batch, rows, keys = q.shape[0], q.shape[1], k.shape[1]
    if mask.batch not in (1, batch) or (mask.seqlen_q, mask.seqlen_k) != (rows, keys):
        raise ValueError(
            f"{name} must be an IntervalMask of batch 1{f' or {batch}' if batch != 1 else ''} for {rows} queries and "
            f"{keys} keys, got {mask}"
        )
    if mask.heads not in (1, q.shape[2]):
        allowed = f"1 or {q.shape[2]}, one for each of q" if q.shape[2] != 1 else "1, as q"
        raise ValueError(f"{name} must be an IntervalMask of heads {allowed}, got {mask}")
    if mask.device != q.device:
        raise ValueError(f"{name} must be an IntervalMask on the device of q, {q.device}, got {mask.device}")


def check_cu_seqlens(cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor) -> None:
    """Cumulative lengths of the same number of documents; their values are checked where they are read."""
    for name, x in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_ends(name, x)
    documents_q, documents_k = cu_seqlens_q.shape[0], cu_seqlens_k.shape[0]  # len() would be a constant in torch.export
    if documents_q != documents_k:
        raise ValueError(f"cu_seqlens_q and cu_seqlens_k must have one length, got {documents_q} and {documents_k}")


def check_ends(name: str, ends: torch.Tensor) -> None:
    """Where documents begin and end: an integer tensor `(documents + 1,)`."""
    check_integer_tensor(name, ends, "(n,)")
    if ends.shape[0] < 1:
        raise ValueError(f"{name} must have shape (documents + 1,), got {tuple(ends.shape)}")


def check_unsupported(**arguments: tuple[object, ...]) -> None:
    """Arguments that exist for the sake of the signature, each given as (value, the values allowed ...)."""
    for name, (value, *allowed) in arguments.items():
        _, served = KEYWORDS.get(name, ((), ""))
        _check_neutral(name, value, allowed, served)


def _check_neutral(name: str, value: object, allowed: Sequence[object], served: str) -> None:
    """served: what does what other values ask for."""
    if isinstance(value, list):
        value = tuple(value)
    is_plain = is_number(value, np.integer, np.floating) or isinstance(value, tuple)
    if not any(value is x or (is_plain and value == x) for x in allowed):
        got = shown(value) if isinstance(value, (torch.Tensor, np.ndarray)) else repr(value)
        instead = f"; {served}" if served else ""
        raise ValueError(f"{name} is not supported: it must be {' or '.join(map(repr, allowed))}, got {got}{instead}")


def takes_keywords_of(
    keywords: Keywords, hints: Collection[str] = ()
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Decorates a function that takes, besides its own, what the like of it takes elsewhere: hints fall, keywords that
    ask for nothing too, and the others are refused with what serves them."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        own = inspect.signature(function).parameters
        foreign = {name: keywords.get(name, ((), "")) for name in (*keywords, *hints) if name not in own}

        @functools.wraps(function)
        def call(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
            for name in [name for name in options if name in foreign]:
                value = options.pop(name)
                if name not in hints:
                    _check_neutral(name, value, *foreign[name])
            return function(*args, **options)

        return call

    return decorate


def is_readable(x: torch.Tensor) -> bool:
    """Whether its values may be looked at: on the host, and no stand-in of a compiler."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and type(x) is torch.Tensor


def _check_is_tensor(name: str, x: object) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def _check_is_dense(name: str, x: torch.Tensor) -> None:
    _check_is_tensor(name, x)
    check_is_dense(name, x, "; pack sequences and describe them by the mask")


def _check_tensor(name: str, x: torch.Tensor) -> None:
    _check_is_dense(name, x)
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} must be bfloat16, float16, float32 or float64, got {x.dtype}")


def _check_finite(name: str, value: float) -> float:
    if isinstance(value, (np.integer, np.floating)):
        value = float(value)
    if not is_number(value, torch.SymFloat, torch.SymInt):
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    if not -LARGEST <= value <= LARGEST:  # also where torch.compile made it symbolic; false for NaN
        raise ValueError(f"{name} must be finite in fp32, got {value}")
    return float(value) if isinstance(value, int) else value
