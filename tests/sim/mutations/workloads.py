"""What the mutations run on: kernels, inputs that use every ring often enough, expected results, where things lie."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import kernels
import torch
from kernels.attention import attention
from kernels.exchange import exchange
from kernels.gram import gram
from kernels.grouped import grouped_copy
from kernels.grouped_matmul import MAP_WORDS, grouped_matmul
from kernels.matmul import matmul
from kernels.patches import FILTER, patches
from kernels.warps import warp_gram

Arguments = tuple[Any, ...]
Expected = dict[
    str, tuple[torch.Tensor, torch.Tensor, float]
]  # name -> (written tensor, reference, absolute tolerance)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kernel with arguments: `regions` are (offset, bytes) in dynamic shared memory."""

    function: Callable[[], Any]
    arguments: Callable[[], tuple[Arguments, Expected]]
    regions: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    smem_bytes: int = 0


def _poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def _elementwise() -> tuple[Arguments, Expected]:
    x, y, out = torch.randn(300), torch.randn(300), _poisoned(300)
    return (x, y, out, 2.5), {"out": (out, 2.5 * x + y, 1e-6)}


def _sums() -> tuple[Arguments, Expected]:
    x, out, total = torch.randn(40, 128), torch.randn(128), torch.zeros(1)
    return (x, out, total), {"out": (out, out + x.sum(0), 1e-4), "total": (total, x.sum()[None], 1e-2)}


def _matmul(ctas: int) -> tuple[Arguments, Expected]:
    """Two CTAs at most, 2 row tiles, 4 column tiles, 3 steps of k each: twelve uses of three stages, or more."""
    m, n, k = 256, 128 * ctas, 192
    a, b = (torch.randn(rows, k).bfloat16() for rows in (m, n))
    c = _poisoned(m, n, dtype=torch.bfloat16)
    return (a, b, c, ctas), {"c": (c, a.float() @ b.float().T, 0.3)}


def _attention() -> tuple[Arguments, Expected]:
    """Three query tiles in one CTA, four key tiles."""
    q, k, v = (torch.randn(rows, 64).bfloat16() for rows in (384, 256, 256))
    out, lse = _poisoned(384, 64, dtype=torch.bfloat16), _poisoned(384)
    scores = q.float() @ k.float().T / 8
    expected = {"out": (out, scores.softmax(-1) @ v.float(), 0.02), "lse": (lse, scores.logsumexp(-1), 1e-3)}
    return (q, k, v, out, lse, 0.125, 1), expected


def _gram() -> tuple[Arguments, Expected]:
    """Three tiles in one CTA."""
    x, out = torch.randn(192, 64).bfloat16(), _poisoned(192, 64)
    tiles = x.float().unflatten(0, (3, 64))
    return (x, out, 1), {"out": (out, 2 * (tiles @ tiles.mT).flatten(0, 1), 1e-3)}


def _warps() -> tuple[Arguments, Expected]:
    """Five tiles in one CTA: every stage is used again."""
    x, out = torch.randn(320, 64).bfloat16(), _poisoned(320, 64)
    tiles = x.float().unflatten(0, (5, 64))
    return (x, out, 1), {"out": (out, (tiles @ tiles.mT).flatten(0, 1), 1e-3)}


def _grouped() -> tuple[Arguments, Expected]:
    """Four groups, the last as long as a box."""
    starts, x = torch.tensor([0, 5, 13, 37, 61], dtype=torch.int32), torch.randn(64, 64).bfloat16()
    maps, out = aligned(4 * 16).view(4, 16), _poisoned(4 * 24, 64, dtype=torch.bfloat16)
    groups = [x[a:b].float() for a, b in itertools.pairwise(starts.tolist())]
    expected = torch.cat([torch.nn.functional.pad(rows, (0, 0, 0, 24 - len(rows))) for rows in groups])
    return (x, starts, maps, out), {"out": (out, expected, 0.0)}


def groups(shapes: list[tuple[int, int, int]], ctas: int) -> tuple[Arguments, Expected]:
    """Matrices of groups of (M, N, K) one behind the other, with 64 elements or more between that belong to none."""

    def begins(sizes: list[int]) -> list[int]:
        return [0, *itertools.accumulate(-(-size // 64) * 64 + 64 for size in sizes)]

    ends = [begins([x[i] * x[j] for x in shapes]) for i, j in ((0, 2), (1, 2), (0, 1))]
    a, b = (torch.randn(end[-1]).bfloat16() for end in ends[:2])
    c = torch.full((ends[2][-1],), 1000, dtype=torch.bfloat16)
    expected, starts = c.double(), torch.tensor(ends, dtype=torch.int32).T[:-1].contiguous()
    for (m, n, k), (of_a, of_b, of_c) in zip(shapes, starts.tolist(), strict=True):
        product = a[of_a:][: m * k].double().view(m, k) @ b[of_b:][: n * k].double().view(n, k).T
        expected[of_c:][: m * n] = product.flatten()
    maps = aligned(ctas * 3 * MAP_WORDS).view(ctas, 3, MAP_WORDS)
    return (a, b, c, torch.tensor(shapes, dtype=torch.int32), starts, maps), {"c": (c, expected, 0.3)}


def _exchange() -> tuple[Arguments, Expected]:
    """Five rows for each CTA: every place is used twice or more."""
    x, out = torch.randn(10, 512), _poisoned(10, 512)
    sums = x.view(5, 2, 512).sum(1, keepdim=True).expand(-1, 2, -1)
    return (x, out), {"out": (out, sums.reshape(10, 512), 1e-6)}


def _patches() -> tuple[Arguments, Expected]:
    """Two images in three boxes of pixels, of which one goes over from the first to the second."""
    n, h, w = IMAGES
    x, out = torch.randn(n, h, w, 64).bfloat16(), _poisoned(FILTER**2, n * h * w, 64, dtype=torch.bfloat16)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 1, 1, 1, 1))
    met = [padded[:, i : i + h, j : j + w].reshape(-1, 64) for i in range(FILTER) for j in range(FILTER)]
    return (x, aligned(3 * MAP_WORDS).view(3, MAP_WORDS), out), {"out": (out, torch.stack(met), 0.0)}


def aligned(words: int) -> torch.Tensor:
    """int64 zeros at a multiple of 128 bytes."""
    space = torch.zeros(words + 16, dtype=torch.int64)
    return space[-space.data_ptr() % 128 // 8 :][:words]


MATMUL_REGIONS = {"full": (0, 24), "empty": (24, 24), "a": (1024, 49152), "b": (50176, 24576), "c": (74752, 16384)}
IMAGES = (2, 6, 8)
GROUPS_REGIONS = {
    "full": (0, 24), "empty": (24, 24), "a": (1024, 24576), "b": (25600, 24576), "c": (50176, 8192),
}  # fmt: skip
ATTENTION_REGIONS = {
    "q_full": (0, 8), "q_empty": (8, 8), "k_full": (16, 16), "k_empty": (32, 16),
    "v_full": (48, 16), "v_empty": (64, 16),
    "q": (1024, 16384), "o": (17408, 16384), "k": (33792, 16384), "v": (50176, 16384),
}  # fmt: skip

WORKLOADS = {
    "elementwise": Workload(kernels.scaled_sum, _elementwise),
    "sums": Workload(kernels.column_sums, _sums, {"partial": (0, 512)}, 512),
    "matmul": Workload(matmul, functools.partial(_matmul, 1), MATMUL_REGIONS, 91136),
    "registers": Workload(
        functools.partial(matmul, a_in_registers=True), functools.partial(_matmul, 1), MATMUL_REGIONS, 91136
    ),
    "cluster": Workload(functools.partial(matmul, cluster=2), functools.partial(_matmul, 2), MATMUL_REGIONS, 91136),
    "attention": Workload(attention, _attention, ATTENTION_REGIONS, 66560),
    "gram": Workload(gram, _gram, {"x": (0, 8192)}, 8192),
    "grouped": Workload(grouped_copy, _grouped),
    "groups": Workload(
        grouped_matmul,
        functools.partial(groups, [(72, 64, 136), (8, 72, 64), (64, 40, 200)], 1),
        GROUPS_REGIONS,
        58368,
    ),
    "exchange": Workload(exchange, _exchange, {"full": (0, 16), "empty": (16, 16), "inbox": (128, 4096)}, 4224),
    "patches": Workload(
        functools.partial(patches, *IMAGES), _patches, {"full": (0, 16), "empty": (16, 16), "tile": (256, 8192)}, 8448
    ),
    "warps": Workload(warp_gram, _warps, {"x": (0, 16384)}, 16384),
}
