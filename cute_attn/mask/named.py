"""Masks by name: `NAME[:key=value,...]`, the form in which every command takes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from . import builders, packed
from .checks import shown
from .intervals import IntervalMask

__all__ = ["BUILDERS", "from_spec"]

BUILDERS: dict[str, Callable[..., IntervalMask]] = {
    name: getattr(module, name) for module in (builders, packed) for name in module.__all__
}


def from_spec(spec: str, seqlen_q: int, seqlen_k: int | None = None, device: builders.Device = None) -> IntervalMask:
    """The mask that `NAME[:key=value,...]` names, NAME being a builder and the keys its arguments.

    Values are numbers, `true` or `false`, words, lists as `0/137/512`, ranges as `16-48/64-80`:

        sliding_window:left=256,right=0
        causal_documents:cu_seqlens=0/137/512
        bidirectional_runs:runs=16-48/64-80

    Raises TypeError for a spec that is no string, ValueError for an unknown name or key (with what exists), a value of
    the wrong form, and whatever the builder refuses.
    """
    if not isinstance(spec, str):
        raise TypeError(f"spec must be a string, NAME[:key=value,...], got {shown(spec)}")
    name, rest = (part.strip() for part in spec.partition(":")[::2])
    if name not in BUILDERS:
        raise ValueError(f"unknown mask {name!r}; there are: {', '.join(sorted(BUILDERS))}")
    builder = BUILDERS[name]
    keys = [
        p.name
        for p in inspect.signature(builder).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "device"
    ]
    arguments: dict[str, object] = {}
    for item in filter(str.strip, rest.split(",")):
        key, equals, text = (x.strip() for x in item.partition("="))
        if not equals:
            raise ValueError(f"mask {name}: expected key=value, got {item!r}")
        if key not in keys:
            raise ValueError(f"mask {name} has no argument {key!r}; there are: {', '.join(keys) or 'none'}")
        if key in arguments:
            raise ValueError(f"mask {name}: {key} is given twice")
        arguments[key] = _value(name, key, text)
    missing = [k for k in keys if inspect.signature(builder).parameters[k].default is inspect.Parameter.empty]
    if not set(missing) <= set(arguments):
        raise ValueError(f"mask {name} needs {', '.join(missing)}; for example --mask {name}:{missing[0]}=...")
    try:
        return builder(seqlen_q, seqlen_k, device=device, **arguments)
    except TypeError as error:  # to a builder it is the wrong type, here it is the wrong text
        raise ValueError(f"mask {name}: {error}") from None


_LISTS = {"bidirectional_mask", "cu_seqlens", "cu_seqlens_k", "lengths", "positions", "segment_ids", "segment_ids_k"}


def _value(name: str, key: str, text: str) -> object:
    """A value in the form its key asks for: a list keeps being one though it has a single number."""
    try:
        if key == "runs":
            return [[int(start), int(end)] for start, end in (part.split("-") for part in text.split("/"))]
        if key in _LISTS or "/" in text:
            return [int(part) for part in text.split("/")]
        if text in ("true", "false"):
            return text == "true"
        return text if text.isidentifier() else int(text)
    except ValueError:
        form = "start-end ranges such as 16-48/64-80" if key == "runs" else "a number, or a list such as 0/137/512"
        raise ValueError(f"mask {name}: {key} must be {form}, got {text!r}") from None
