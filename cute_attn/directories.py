"""Where the library keeps files."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_directory"]


def cache_directory() -> Path:
    """Where compiled things are kept: `CUTE_ATTN_CACHE_DIR`, or the user's cache directory on this platform."""
    chosen = os.environ.get("CUTE_ATTN_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs  # late: machines that only load bundles need not have it

    return Path(platformdirs.user_cache_dir("cute_attn"))
