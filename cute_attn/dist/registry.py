"""Keys of masks on placements, and which of them this process keeps."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from weakref import WeakValueDictionary

import torch

from ..elsewhere import ATTRIBUTES_OF_KEYS
from ..mask import IntervalMask
from .config import DispatchConfig, DistAttnConfig, OverlapConfig
from .groups import Groups
from .manager import Manager
from .placing.placement import Placement

__all__ = ["CAPACITY", "DistAttnRuntimeKey", "Registry", "registry"]

CAPACITY = 64  # keys kept for each process group besides those that are still held


@dataclass(frozen=True)
class DistAttnRuntimeKey:
    """One mask on one placement over one group of ranks; equal content makes equal keys.

    Made by `magi_attn_flex_key` and its sisters, on every rank of the group alike. A key keeps its plan alive. Its
    copies are itself. It is saved with its mask and where its rows are: loaded over process groups of the same names
    and ranks, on any rank and without a word to the others, it is the key that this process keeps, or is planned again.
    """

    groups: Groups
    mask_digest: str
    total_seqlen_q: int
    total_seqlen_k: int
    pad_size: int
    chunk_size: int
    dist_attn_config: DistAttnConfig
    is_same_source: bool
    is_q_permutable: bool
    is_k_permutable: bool
    placed_by: DistAttnRuntimeKey | None = None
    manager: Manager | None = field(default=None, compare=False, repr=False)

    def __repr__(self) -> str:
        lengths = f"{self.total_seqlen_q:,} x {self.total_seqlen_k:,} tokens in chunks of {self.chunk_size:,}"
        return f"DistAttnRuntimeKey({lengths}, {self.groups!r}, mask {self.mask_digest[:8]})"

    def __copy__(self) -> DistAttnRuntimeKey:
        return self

    def __deepcopy__(self, memo: object) -> DistAttnRuntimeKey:
        return self

    def __reduce__(self) -> tuple[object, ...]:
        content = tuple(getattr(self, part.name) for part in fields(self) if part.name != "manager")
        if self.manager is None:
            return DistAttnRuntimeKey, content
        placed = self.manager.placed
        return _loaded, (DistAttnRuntimeKey(*content), placed.mask, placed.query, placed.key)

    def __getattr__(self, name: str) -> object:
        if name in ATTRIBUTES_OF_KEYS:
            raise AttributeError(f"a key has no {name}: {ATTRIBUTES_OF_KEYS[name]}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def number(self) -> torch.Tensor:
        """What graphs know this key by: an int64 without dimensions, on the host; 0 of a key without a plan."""
        return torch.zeros((), dtype=torch.int64, device="cpu") if self.manager is None else self.manager.number

    @property
    def compared(self) -> dict[str, object]:
        """What must be equal on every rank, by the name of the argument."""
        named: dict[str, object] = {
            "cp_group_or_mesh": self.groups,
            "the digest of the mask": self.mask_digest[:16],
            "key_for_dispatch": None if self.placed_by is None else self.placed_by.digest,
        }
        lengths = ("total_seqlen_q", "total_seqlen_k", "pad_size", "chunk_size")
        flags = ("is_same_source", "is_q_permutable", "is_k_permutable")
        named.update((name, getattr(self, name)) for name in lengths + flags)
        named.update(_settings("dist_attn_config", self.dist_attn_config))
        return named

    @property
    def digest(self) -> str:
        """A short name of the content, the same on every rank."""
        return hashlib.sha256(repr(self.compared).encode()).hexdigest()[:16]


class Registry:
    """Keys by content, the most recently asked for of each process group.

    Only making a key counts as asking: every rank of a group makes the same keys in the same order, so every rank
    keeps the same ones. And a key holds its own plan, so one that is no longer kept still works, on any rank.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._keys: dict[Groups, OrderedDict[DistAttnRuntimeKey, DistAttnRuntimeKey]] = {}
        self._managers: WeakValueDictionary[int, Manager] = WeakValueDictionary()
        self._forgotten: WeakValueDictionary[int, Manager] = WeakValueDictionary()
        self._most_recent: DistAttnRuntimeKey | None = None

    def key(self, content: DistAttnRuntimeKey, make: Callable[[], Manager]) -> DistAttnRuntimeKey:
        """The key with this content; `make` plans it if it is not kept."""
        kept = self._keys.setdefault(content.groups, OrderedDict())
        key = kept.get(content)
        if key is None:
            manager = make()
            key = replace(content, manager=manager)
            self._managers[int(manager.number)] = manager
            kept[key] = key
            if len(kept) > self._capacity:
                kept.popitem(last=False)
        else:
            kept.move_to_end(key)
        self._most_recent = key
        return key

    def loaded(self, content: DistAttnRuntimeKey, make: Callable[[], Manager]) -> DistAttnRuntimeKey:
        """As `key`, but what is not kept is not kept from now on either: ranks load each for itself."""
        key = self._keys.setdefault(content.groups, OrderedDict()).get(content)
        if key is None:
            manager = make()
            self._managers[int(manager.number)] = manager
            key = replace(content, manager=manager)
        return key

    def manager(self, key: DistAttnRuntimeKey, name: str = "key") -> Manager:
        """Raises TypeError for what is no key, ValueError for a key that was not made here since the last `clear`.

        name: of the argument.
        """
        if not isinstance(key, DistAttnRuntimeKey):
            raise TypeError(f"{name} must be a DistAttnRuntimeKey, got {type(key).__name__}")
        if key.manager is None or self._managers.get(int(key.manager.number)) is not key.manager:
            raise _unknown(name, f", got {key}")
        return key.manager

    def numbered(self, number: int, name: str = "key", forgotten: bool = False) -> Manager:
        """The manager of a number that a graph holds; forgotten: also if it was cleared since, of a key still held.

        Raises ValueError as `manager` does.
        """
        found = self._managers.get(number) or (self._forgotten.get(number) if forgotten else None)
        if found is None:
            raise _unknown(name, ", and be held until its backwards have run")
        return found

    def most_recent(self, groups: Groups | None = None) -> DistAttnRuntimeKey:
        """groups: whose keys count; None for all."""
        key = self._most_recent if groups is None else next(reversed(self._keys.get(groups, {})), None)
        if key is None:
            raise ValueError("there is no most recent key: none has been made since the start or the last clear_cache")
        return key

    def clear(self, groups: Groups | None = None) -> None:
        """groups: whose keys go; None for all."""
        for gone in [groups] if groups is not None else list(self._keys):
            self._keys.pop(gone, None)
        for number, manager in list(self._managers.items()):
            if groups in (None, manager.groups):
                self._forgotten[number] = self._managers.pop(number)
        if self._most_recent is not None and groups in (None, self._most_recent.groups):
            self._most_recent = None


def _loaded(content: DistAttnRuntimeKey, mask: IntervalMask, query: Placement, key: Placement) -> DistAttnRuntimeKey:
    def make() -> Manager:
        return Manager(content.groups, mask, query, key, content.dist_attn_config, content.digest)

    return registry.loaded(content, make)


def _unknown(name: str, more: str) -> ValueError:
    return ValueError(
        f"{name} is unknown: it must come from magi_attn_flex_key, magi_attn_varlen_key or their sisters in this "
        f"process, after the last clear_cache{more}"
    )


def _settings(name: str, config: DistAttnConfig | DispatchConfig | OverlapConfig) -> Iterator[tuple[str, object]]:
    """Every setting, by its name with dots."""
    for part in fields(config):
        value = getattr(config, part.name)
        if isinstance(value, (DispatchConfig, OverlapConfig)):
            yield from _settings(f"{name}.{part.name}", value)
        else:
            yield f"{name}.{part.name}", value


registry = Registry()
