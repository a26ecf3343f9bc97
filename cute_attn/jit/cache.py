"""The cache of compiled kernels on disk: one directory of entries, shared by all processes of a user.

`<directory>/kernels/<first two digits>/<key>` is an entry (see `entry`); bundles have the same layout.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..directories import cache_directory
from ..errors import in_words
from ..spec.operation import Spec
from . import entry as entries
from .entry import BrokenEntry, Entry, OtherFormat
from .fingerprint import key

__all__ = [
    "MODES",
    "cache_mode",
    "commit",
    "entry_directories",
    "entry_path",
    "lock",
    "prune",
    "read",
    "set_aside",
]

MODES = ("jit", "prefer-cached", "cached-only")
_ABANDONED_AFTER = 3600.0  # seconds: a directory that is being written for so long has lost its writer

log = logging.getLogger("cute_attn.cache")


def cache_mode() -> str:
    """`CUTE_ATTN_CACHE_MODE`: "jit" (the default), "prefer-cached" or "cached-only". ValueError for anything else."""
    mode = os.environ.get("CUTE_ATTN_CACHE_MODE") or "jit"
    if mode not in MODES:
        raise ValueError(f"CUTE_ATTN_CACHE_MODE must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def entry_path(spec: Spec, root: Path | None = None) -> Path:
    """Where a spec's entry is, or would be, in a cache or bundle; None is the user's cache (OSError: there is none)."""
    name = key(spec)
    return (root or cache_directory()) / "kernels" / name[:2] / name


def entry_directories(root: Path) -> list[Path]:
    """Of all entries of a cache or bundle, sound or not, sorted. Raises OSError where it may not be read."""
    return sorted(p for p in _everything(root) if not p.name.startswith("."))


def _everything(root: Path) -> list[Path]:
    """Entries, and what dead writers and broken ones left; glob would pass over what may not be read."""
    parts = [p for p in _listed(root / "kernels") if re.fullmatch("[0-9a-f]{2}", p.name)]
    return [path for part in parts for path in _listed(part)]


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def read(spec: Spec, root: Path | None = None) -> Entry | None:
    """The entry of a spec, or None.

    Raises BrokenEntry if a file is missing, altered or not of this spec, OSError where it may not be read.
    """
    path = entry_path(spec, root)
    try:
        if not stat.S_ISDIR(path.stat().st_mode):
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    found = entries.read(path)
    if found.spec != spec:
        raise BrokenEntry(f"{path} holds another spec: {found.spec.canonical()}")
    return found


def commit(entry: Entry, root: Path | None = None) -> Entry:
    """Writes an entry, all of it or nothing, and returns it verified. Whoever comes second keeps the first one's.

    Raises OSError where the directory cannot be written.
    """
    path = entry_path(entry.spec, root)
    entries.write(entry, path)
    try:
        found = read(entry.spec, root)
    except BrokenEntry as error:
        raise OSError(f"what was written cannot be read back: {error}") from error
    if found is None:
        raise OSError(f"{path} vanished while it was written")
    log.info("wrote %s", path)
    return found


def set_aside(spec: Spec) -> None:
    """Moves a broken entry out of the way, so that it can be looked at and is not found again; hold its lock.

    Raises OSError where the directory cannot be written.
    """
    path = entry_path(spec)
    target = Path(tempfile.mkdtemp(dir=path.parent, prefix=".broken-"))
    os.rename(path, target / path.name)


@contextlib.contextmanager
def lock(spec: Spec) -> Iterator[None]:
    """Holds the lock of a spec's entry among all processes; a process that dies lets go of it.

    Where files cannot be locked (a read-only directory, some network file systems) the log says so, and processes may
    compile the same spec side by side: whoever commits second keeps the first one's entry.
    """
    import filelock

    name = key(spec)
    try:
        path = cache_directory() / "locks" / f"{name}.lock"
        held = filelock.FileLock(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            log.info("waiting for another process that compiles %s", spec)
            held.acquire()
    except (OSError, NotImplementedError) as error:
        log.info("no lock across processes for %s: %s", name, error)
        yield
        return
    try:
        yield
    finally:
        held.release()


def prune(root: Path, older_than: float | None = None, outdated: bool = False) -> list[Path]:
    """Removes what broken entries and dead writers left, and entries that were not written for `older_than` seconds.

    outdated: also entries that this installation does not use: other sources, tools or format, or broken ones.

    Returns the removed directories. Raises OSError where the cache may not be read, and, once all others are removed,
    where some cannot be.
    """
    now = time.time()
    removed: list[Path] = []
    left: list[OSError] = []
    for path in sorted(_everything(root)):
        try:
            if _is_refuse(path, now - path.stat().st_mtime, older_than, outdated):
                shutil.rmtree(path)
                removed.append(path)
        except FileNotFoundError:  # somebody else removed it
            continue
        except OSError as error:
            left.append(error)
    if left:
        raise OSError(f"{len(removed)} removed, {len(left)} could not be, the first for {in_words(left[0])}")
    return removed


def _is_refuse(path: Path, age: float, older_than: float | None, outdated: bool) -> bool:
    if path.name.startswith("."):
        return path.name.startswith(".broken-") or (path.name.startswith(".new-") and age > _ABANDONED_AFTER)
    return (older_than is not None and age > older_than) or (outdated and not _is_current(path))


def _is_current(path: Path) -> bool:
    try:
        return key(entries.read(path).spec) == path.name
    except (BrokenEntry, OtherFormat):
        return False
