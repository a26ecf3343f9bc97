"""Bundles of candidates: kernels with their profiles, so that a machine without a compiler can measure them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

from cute_attn.jit import cache
from cute_attn.jit.entry import BrokenEntry
from cute_attn.jit.parallel import Outcome, in_processes
from cute_attn.spec.operation import Spec

from .choice import preferred
from .problem import Problem
from .profile import compile_profile, write_profile
from .space import candidates

__all__ = ["build_candidates", "specs_tried"]


def specs_tried(problem: Problem, effort: str) -> list[Spec]:
    """Of the tiles that `tune` with an effort looks at, the default first."""
    return [problem.spec(tile) for tile in preferred(problem, candidates(problem)[0], effort)]


def build_candidates(
    specs: Sequence[Spec], root: Path, workers: int, executor: Executor | None = None
) -> Iterator[Outcome]:
    """As `cute_attn.jit.build.build`, and puts the profile of each kernel beside it."""
    return in_processes(functools.partial(_build, root), list(dict.fromkeys(specs)), workers, executor)


def _build(root: Path, spec: Spec) -> Path:
    profile = compile_profile(spec)
    path = cache.entry_path(spec, root)
    try:
        built = cache.read(spec, root)
    except BrokenEntry as error:
        raise OSError(f"{error}; remove it, then build again") from error
    if built is None:
        found = cache.read(spec)
        if found is None:
            raise OSError(f"the kernel of {spec} vanished from the cache while it was copied")
        cache.commit(found, root)
    write_profile(root, path.name, profile)
    return path
