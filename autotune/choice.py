"""Which candidates are looked at: those that are likeliest fast, of what can be had here."""

from __future__ import annotations

from dataclasses import dataclass

from cute_attn.jit import bundle, cache
from cute_attn.jit.entry import BrokenEntry
from cute_attn.jit.obtain import KernelNotBuilt
from cute_attn.spec.operation import Spec
from cute_attn.spec.tiles import Tile

from .measure import EFFORTS
from .model import MODELLED_SMS, guess
from .problem import Problem
from .profile import Profile, read_profile
from .space import Refused, candidates

__all__ = ["Choice", "choose_candidates", "preferred", "why_nothing_compiles"]


@dataclass(frozen=True)
class Choice:
    """tiles: the default first. held: what bundles have, or where nothing compiles the cache, with their profiles.
    left: tiles that fit and are not looked at. refused: those that do not fit."""

    tiles: list[Tile]
    held: dict[Tile, Profile]
    left: list[Tile]
    refused: list[Refused]


def choose_candidates(problem: Problem, effort: str, sms: int, why_not: str) -> Choice:
    """why_not: why nothing can be compiled here, so that only what is built counts; "" if it can.

    Raises ValueError for an unknown effort; KernelNotBuilt if not even the default is there.
    """
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    fitting, refused = candidates(problem)
    profiles = {tile: _held(problem.spec(tile), with_cache=bool(why_not)) for tile in fitting}
    held = {tile: profile for tile, profile in profiles.items() if profile is not None}
    if why_not and problem.default not in held:
        raise KernelNotBuilt(problem.spec(), why_not)
    tiles = preferred(problem, [tile for tile in fitting if tile in held] if why_not else fitting, effort, sms)
    chosen = {tile: held[tile] for tile in tiles if tile in held}
    return Choice(tiles, chosen, [tile for tile in fitting if tile not in tiles], refused)


def preferred(problem: Problem, fitting: list[Tile], effort: str, sms: int = MODELLED_SMS) -> list[Tile]:
    """The default and, as many as the effort looks at, those that the guess of `model.py` likes best, in its order."""
    ranked = sorted((t for t in fitting if t != problem.default), key=lambda tile: guess(problem, tile, sms))
    return [problem.default, *ranked[: EFFORTS[effort].candidates]]


def why_nothing_compiles() -> str:
    """Why no kernel can be compiled here; "" if one can."""
    if cache.cache_mode() == "cached-only":
        return "CUTE_ATTN_CACHE_MODE is cached-only"
    try:
        import cutlass  # noqa: F401
    except Exception as error:  # its runtime half alone raises RuntimeError
        return f"the compiler, nvidia-cutlass-dsl, cannot be imported ({error})"
    return ""


def _held(spec: Spec, with_cache: bool) -> Profile | None:
    """The profile of the built kernel that a launch would take; None if there is no kernel."""
    entry = bundle.find(spec, cache.cache_mode())
    if entry is None and with_cache:
        try:
            entry = cache.read(spec)
        except (BrokenEntry, OSError):
            return None
    if entry is None or entry.directory is None:
        return None
    root = entry.directory.parents[2]  # beside "kernels"
    registers, spills = entry.manifest["registers"], entry.manifest["spill_bytes"]
    unknown = f"{root} holds its kernel without a profile; build --candidates adds one"
    return read_profile(root, entry.directory.name) or Profile(registers, spills, unknown=unknown)
