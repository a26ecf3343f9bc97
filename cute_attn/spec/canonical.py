"""Specs as text: equal for equal specs, in every process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, is_dataclass
from dataclasses import fields as dataclass_fields
from typing import Any, TypeVar, get_type_hints

__all__ = ["canonical", "digest", "parse"]

Spec = TypeVar("Spec")


def canonical(spec: Any) -> str:
    """JSON with sorted keys, the operation among them."""
    return json.dumps({"op": spec.op, **asdict(spec)}, sort_keys=True, separators=(",", ":"))


def parse(kind: type[Spec], op: str, text: str) -> Spec:
    """The spec of a kind whose `canonical` this is. Raises ValueError or TypeError for anything else."""
    fields: dict[str, Any] = json.loads(text)
    parts: dict[str, Any] = {name: hint for name, hint in get_type_hints(kind).items() if is_dataclass(hint)}
    whole = isinstance(fields, dict) and fields.pop("op", None) == op
    if not whole or not all(isinstance(fields.get(name), dict) for name in parts):
        raise ValueError(f"not a spec of {op!r}: {text!r}")
    _check_names(kind, fields)
    for name, part in parts.items():
        _check_names(part, fields[name])
    return kind(**{**fields, **{name: part(**fields[name]) for name, part in parts.items()}})


def _check_names(kind: Any, given: dict[str, Any]) -> None:
    """Of specs that another version of cute_attn recorded there may be other fields."""
    own = [field.name for field in dataclass_fields(kind)]
    if unknown := sorted(set(given) - set(own)):
        raise ValueError(
            f"{kind.__name__} has no field {', '.join(map(repr, unknown))}, but {', '.join(own)}: a spec of another "
            "version of cute_attn is to be recorded anew"
        )


def digest(text: str) -> str:
    """By which people tell the texts of graphs apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
