"""The ranks that share a sequence: a process group, or a 1-D or 2-D device mesh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["GroupOrMesh", "Groups", "find_groups", "host_group"]

GroupOrMesh = dist.ProcessGroup | DeviceMesh


@dataclass(frozen=True)
class Groups:
    """Process groups that compare by identity.

    whole: all ranks; rank `r = ring_rank * ulysses_size + ulysses_rank`.
    ring, ulysses: of a 2-D mesh, the ranks along its first and its second dimension; else None.
    """

    whole: dist.ProcessGroup
    ring: dist.ProcessGroup | None = None
    ulysses: dist.ProcessGroup | None = None

    @property
    def world(self) -> int:
        return self.whole.size()

    @property
    def rank(self) -> int:
        return self.whole.rank()

    @property
    def every(self) -> list[dist.ProcessGroup]:
        return [group for group in (self.whole, self.ring, self.ulysses) if group is not None]

    @property
    def device(self) -> torch.device:
        """Where tensors of this group live: on the CPU under gloo or without a GPU, else on the current GPU."""
        if dist.get_backend(self.whole) == "gloo" or not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", torch.cuda.current_device())

    def __reduce__(self) -> tuple[object, ...]:
        """Groups are saved by name, and found again by it."""
        return _found_again, tuple(_name(group) for group in (self.whole, self.ring, self.ulysses))

    def __repr__(self) -> str:
        shape = "" if self.ring is None or self.ulysses is None else f", {self.ring.size()}x{self.ulysses.size()}"
        return f"Groups({self.world} ranks{shape})"


def find_groups(cp_group_or_mesh: GroupOrMesh | None) -> Groups:
    """The groups of a process group or mesh; the same object gives equal groups.

    The first call with a 2-D mesh that is not the whole world makes a process group of its ranks.

    Raises TypeError for anything else, ValueError for a mesh of other dimensions or whose ranks do not ascend.
    """
    if isinstance(cp_group_or_mesh, dist.ProcessGroup):
        return Groups(cp_group_or_mesh)
    if not isinstance(cp_group_or_mesh, DeviceMesh):
        shifted = (
            ": pass num_heads_q, num_heads_kv and head_dim by keyword" if isinstance(cp_group_or_mesh, int) else ""
        )
        raise TypeError(
            "cp_group_or_mesh must be a ProcessGroup of which this process is a member or a 1-D or 2-D DeviceMesh, "
            f"got {type(cp_group_or_mesh).__name__}{shifted}"
        )
    mesh = cp_group_or_mesh
    if mesh.ndim == 1:
        return Groups(mesh.get_group())
    if mesh.ndim != 2:
        raise ValueError(f"cp_group_or_mesh must be a mesh of 1 or 2 dimensions, got {mesh.ndim}")
    ranks = mesh.mesh.flatten().tolist()
    if ranks != sorted(ranks):
        raise ValueError(f"the ranks of a 2-D cp_group_or_mesh must ascend along its rows, got {mesh.mesh.tolist()}")
    ring, ulysses = mesh.get_group(0), mesh.get_group(1)
    return Groups(_group_of(tuple(ranks), ring, ulysses), ring, ulysses)


def _name(group: dist.ProcessGroup | None) -> tuple[str, list[int]] | None:
    if group is None:
        return None
    try:
        return group.group_name, dist.get_process_group_ranks(group)
    except KeyError:
        raise RuntimeError("the process group of a key that is saved has been destroyed: make the key anew") from None


def _found_again(*names: tuple[str, list[int]] | None) -> Groups:
    """The groups of these names here, if they have these ranks; RuntimeError if not."""
    groups = []
    for name, ranks in (x or (None, []) for x in names):
        group = None if name is None else _resolved(name)
        if name is not None and (group is None or dist.get_process_group_ranks(group) != ranks):
            here = "is not here" if group is None else f"has ranks {dist.get_process_group_ranks(group)} here"
            raise RuntimeError(
                f"the process group {name!r} of ranks {ranks}, over which a key was made that is loaded, {here}: make "
                "process groups as the program that saved it did, and load then; or save no key, and make it anew"
            )
        groups.append(group)
    whole, ring, ulysses = groups
    assert whole is not None
    return Groups(whole, ring, ulysses)


def _resolved(name: Any) -> dist.ProcessGroup | None:
    try:
        return distributed_c10d._resolve_process_group(name)
    except (RuntimeError, ValueError):  # the latter without any group
        return None


def _world() -> dist.ProcessGroup:
    world = dist.group.WORLD
    assert world is not None  # a mesh exists, so its world does
    return world


_groups_of_meshes: dict[tuple[object, ...], dist.ProcessGroup] = {}


def _group_of(ranks: tuple[int, ...], ring: dist.ProcessGroup, ulysses: dist.ProcessGroup) -> dist.ProcessGroup:
    """The group of all ranks of a mesh, made once."""
    key = (ranks, ring, ulysses)
    if key not in _groups_of_meshes:
        if len(ranks) == dist.get_world_size():
            _groups_of_meshes[key] = _world()
        else:
            _groups_of_meshes[key] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups_of_meshes[key]


_host_groups: WeakKeyDictionary[dist.ProcessGroup, dist.ProcessGroup] = WeakKeyDictionary()


def host_group(group: dist.ProcessGroup) -> dist.ProcessGroup:
    """A group of the same ranks that carries tensors on the CPU, so that reading them never waits for a GPU.

    The group itself where it does (gloo, also beside NCCL, as `init_process_group()` makes it); else a gloo group that
    is made at the first call, by all ranks together.
    """
    if "cpu:" in dist.get_backend_config(group):
        return group
    if group not in _host_groups:
        ranks = dist.get_process_group_ranks(group)
        _host_groups[group] = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
    return _host_groups[group]
