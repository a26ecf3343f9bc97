"""The special registers of a CTA that are the same in all of its lanes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from ..launch import Launch


def special_registers(launch: Launch, index: tuple[int, int, int], rank: int, total_smem: int) -> SimpleNamespace:
    """By name with `_` for `.`, each an array of one. `rank` is that of the CTA in its cluster."""
    s = SimpleNamespace()
    linear = index[0] + launch.grid[0] * (index[1] + launch.grid[1] * index[2])
    clusters = tuple(g // c for g, c in zip(launch.grid, launch.cluster, strict=True))
    values: dict[str, tuple[int, ...]] = {"ntid": launch.block, "ctaid": index, "nctaid": launch.grid}
    values["clusterid"] = tuple(i // c for i, c in zip(index, launch.cluster, strict=True))
    values["nclusterid"] = clusters
    values["cluster_ctaid"] = tuple(i % c for i, c in zip(index, launch.cluster, strict=True))
    values["cluster_nctaid"] = launch.cluster
    for name, triple in values.items():
        for axis, value in zip("xyz", triple, strict=True):
            setattr(s, f"{name}_{axis}", np.array([value], np.uint32))
    size = launch.cluster[0] * launch.cluster[1] * launch.cluster[2]
    plain = {"cluster_ctarank": rank, "cluster_nctarank": size, "nsmid": 132, "smid": linear % 132}
    plain |= {"gridid": 1, "nwarpid": 64, "dynamic_smem_size": launch.smem_bytes, "clock_hi": 0}
    plain |= {"total_smem_size": total_smem, "clock": 0, "globaltimer_lo": 0}
    for name, value in plain.items():
        setattr(s, name, np.array([value], np.uint32))
    s.is_explicit_cluster = np.array([size > 1])
    s.clock64 = s.globaltimer = np.array([0], np.uint64)
    return s
