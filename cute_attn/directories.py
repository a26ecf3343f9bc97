"""Where the library keeps files, and what is said where that place is of no use."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
import warnings
from pathlib import Path

from .errors import in_words

__all__ = ["CacheUnusable", "cache_directory", "expanded", "obstacle", "warn_unusable"]

VARIABLE = "CUTE_ATTN_CACHE_DIR"
_warned: set[str] = set()


class CacheUnusable(UserWarning):
    """The cache cannot be used as it should; nothing is lost by it but time."""


def cache_directory() -> Path:
    """Where compiled things are kept: `CUTE_ATTN_CACHE_DIR`, or the user's cache directory on this platform.

    Raises OSError, saying what to do, where the user has no home directory.
    """
    chosen = os.environ.get(VARIABLE)
    return expanded(chosen) if chosen else _of_platform() / "cute_attn"


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` replaced by the home directory. Raises OSError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise OSError(
            f"{os.fspath(path)} leads nowhere: neither HOME nor the user database names a home directory; "
            f"{VARIABLE} names another place for the cache"
        ) from None


def obstacle(directory: Path) -> str:
    """Why files cannot be written in a directory, which may be yet to be made; "" if they can. Leaves none behind."""
    for place in (directory, *directory.parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():
                return f"{place} is a link that leads nowhere"
        except NotADirectoryError:
            continue  # a file stands further up, and is named there
        except OSError as error:
            return in_words(error)
        else:
            if not stat.S_ISDIR(mode):
                return f"{place} is a file, not a directory"
            if not os.access(place, os.W_OK | os.X_OK):
                return f"{place} cannot be written"
            try:  # root may write everywhere by its rights, and yet not into /proc or what is mounted read-only
                tempfile.TemporaryDirectory(dir=place).cleanup()
            except OSError as error:
                return f"{place} cannot be written: {error.strerror}"
            return ""
    return f"{directory} has no parent"


def warn_unusable(error: OSError) -> None:
    """Says that the cache cannot be used as it should: once in a process for each directory."""
    try:
        where = str(cache_directory())
    except OSError:
        where = ""
    if where not in _warned:
        _warned.add(where)
        warnings.warn(
            f"the cache cannot be used, so that kernels made now live in memory only: {in_words(error)}; "
            f"{VARIABLE} names another place",
            CacheUnusable,
            stacklevel=2,
        )


def _of_platform() -> Path:
    """Where programs of a user keep what can be made again."""
    if sys.platform == "darwin":
        return expanded("~/Library/Caches")
    if sys.platform == "win32":
        return expanded(os.environ.get("LOCALAPPDATA") or "~/AppData/Local")
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return Path(chosen) if os.path.isabs(chosen) else expanded("~/.cache")
