"""Whether the compiler is here. Its wheels come in halves: one that loads kernels, one that makes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..errors import Unavailable
from ..packages import folders_of

__all__ = ["missing_compiler", "needs_compiler"]

_NOT_INSTALLED = "nvidia-cutlass-dsl, the compiler, is not installed"
_LIBRARY = "_mlir/_mlir_libs/_cutlass_ir*"  # beside it, files of Python that the other half has too


def missing_compiler() -> str:
    """What is missing to compile kernels; "" if nothing is. Loads nothing."""
    roots = folders_of("cutlass")
    if not roots:
        return _NOT_INSTALLED
    found = [file for root in roots for file in root.glob(_LIBRARY)]
    if any(file.suffix in (".so", ".pyd") for file in found):
        return ""
    return "of nvidia-cutlass-dsl only the half that runs kernels is installed, not the compiler"


@contextlib.contextmanager
def needs_compiler() -> Iterator[None]:
    """Within it, what the import of an absent compiler raises becomes Unavailable, which says so."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "cutlass":
            raise
        raise Unavailable(_NOT_INSTALLED) from error
    except (ImportError, RuntimeError) as error:
        if why := missing_compiler():
            raise Unavailable(why) from error
        raise
