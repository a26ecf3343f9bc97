"""What kernels of others need of the DSL, and ours must be without."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def converting_arguments_as(module: str) -> Iterator[None]:
    """Within it the DSL converts arguments as this module of a peer has it, behind it as ours need it."""
    theirs = sys.modules[module]
    theirs._converter_module._convert_single_arg = theirs._patched_convert_single_arg
    try:
        yield
    finally:
        theirs._converter_module._convert_single_arg = theirs._original_convert_single_arg
