"""The library under a name that a loader chose: it keeps several versions of a package apart in one process.

A package that is loaded so may import itself by relative imports alone, and its custom ops are of a namespace of their
own. The kernels' sources import by the library's name; a copy for such a loader (`relative`) has these lines rewritten,
and what machine code depends on is the text as it was (`original`): a copy finds the kernels that the library built.
"""

from __future__ import annotations

import re

import torch

__all__ = ["NAMESPACE", "OPS", "original", "relative"]

NAMESPACE = __name__.partition(".")[0]  # of the custom ops: "cute_attn", or the name that the loader chose
OPS = getattr(torch.ops, NAMESPACE)

_OWN = re.compile(r"^( *)from cute_attn(?:\.([\w.]+))? import (.*)$", re.MULTILINE)
_REWRITTEN = re.compile(r"^( *)from \.+[\w.]* import (.*)  # from cute_attn((?:\.[\w.]+)?)$", re.MULTILINE)


def relative(text: str, depth: int) -> str:
    """The source of a module with relative imports of the library alone; depth: folders that it lies below the package.

    Each line that changes ends with what `original` makes it again of.
    """
    dots = "." * (depth + 1)

    def line(found: re.Match[str]) -> str:
        indent, module, names = found.groups()
        return f"{indent}from {dots}{module or ''} import {names}  # from cute_attn{'.' * bool(module)}{module or ''}"

    return _OWN.sub(line, text)


def original(text: str) -> str:
    """What `relative` was given."""
    return _REWRITTEN.sub(r"\1from cute_attn\3 import \2", text)
