"""Cases of attention over a cache: one kernel, of decoding or of a prefill, on one problem, against float64."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from cute_attn.caches import EIGHT_BITS, KVCache, quantise
from cute_attn.decode_reference import decode_reference, gathered, intervals_of_tokens
from cute_attn.launch.decode import CACHE_NAMES, decode, decode_spec
from cute_attn.launch.prefill import prefill, prefill_spec
from cute_attn.launch.run import KernelBackend
from cute_attn.launch.tensors import NAMED_DTYPES
from cute_attn.spec.decode import DecodeSpec
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.operation import parse_spec
from cute_attn.spec.score import ScoreForm

__all__ = [
    "DecodeCase",
    "DecodeProblem",
    "decode_case",
    "decode_case_for",
    "decode_cases",
    "make_decode_problem",
    "prefill_case_for",
]

SIMULATED_LENGTHS = (0, 1, 65, 200)
LENGTHS = (0, 1, 63, 64, 65, 1000, 4096)
WINDOW = 100  # keys to the left, of a forward that tests where they begin
PROMPT = 150  # new tokens of a prefill, more than some sequences have keys
CACHES = {name: dtype for dtype, name in CACHE_NAMES.items()}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class DecodeCase:
    """One kernel on sequences of several lengths, in shuffled pages with rubbish behind each.

    spec: of a decode kernel, or of a forward whose keys lie in pages.
    tokens: new ones, causal unless the spec has a tree. page_size: 0 for a contiguous cache. parts: of the keys.
    """

    spec: DecodeSpec | ForwardSpec
    tokens: int = 1
    heads: tuple[int, int] = (8, 1)
    page_size: int = 64
    parts: int = 1
    lengths: tuple[int, ...] = LENGTHS
    softcap: float = 0.0
    public = False

    @property
    def op(self) -> str:
        return "prefill" if isinstance(self.spec, ForwardSpec) else self.spec.op

    @property
    def cache(self) -> str:
        """What K and V are, "same" as q."""
        return self.spec.cache if isinstance(self.spec, DecodeSpec) else "same"

    @property
    def eight(self) -> bool:
        return self.cache != "same"

    @property
    def token_scales(self) -> bool:
        return isinstance(self.spec, DecodeSpec) and self.spec.token_scales

    @property
    def tree(self) -> bool:
        return isinstance(self.spec, DecodeSpec) and self.spec.tree

    @property
    def window(self) -> tuple[int, int]:
        reaches_back = isinstance(self.spec, DecodeSpec) or not self.spec.window
        return (-1 if reaches_back else WINDOW, -1 if self.tree else 0)

    @property
    def name(self) -> str:
        s = self.spec
        extras = [self.cache] * self.eight + ["fp16"] * (s.dtype == "fp16") + ["scales of tokens"] * self.token_scales
        extras += ["scaled"] * (s.score.kind == "scaled" and not self.eight) + ["tree"] * self.tree
        extras += ["window"] * (self.window[0] >= 0) + ["sink"] * s.sink
        extras += [f"softcap {self.softcap:g}"] * (self.softcap > 0)
        if isinstance(s, ForwardSpec):
            extras += ["exact"] * (s.softmax == "exact")
        extras += [f"parts {self.parts}"] * (self.parts > 1)
        dims = f"d{s.head_dim}" if s.head_dim == s.head_dim_v else f"d{s.head_dim}/{s.head_dim_v}"
        place = f"pages {self.page_size}" if self.page_size else "contiguous"
        shape = f"t{self.tokens} h{self.heads[0]}/{self.heads[1]}"
        return " ".join([self.op, dims, place, str(max(self.lengths)), shape, *extras])

    @property
    def work(self) -> int:
        return sum(self.lengths) * self.heads[0] * self.tokens * (self.spec.head_dim + self.spec.head_dim_v)

    def simulated(self) -> DecodeCase:
        """The same kernel on a problem for the simulator."""
        heads = (2, 1) if isinstance(self.spec, ForwardSpec) else self.heads
        return replace(self, lengths=SIMULATED_LENGTHS, heads=heads)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": json.loads(self.spec.canonical())}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> DecodeCase:
        pairs = {name: tuple(fields[name]) for name in ("heads", "lengths")}
        return cls(**{**fields, **pairs, "spec": parse_spec(json.dumps(fields["spec"]))})


class DecodeProblem(NamedTuple):
    """A case's tensors, on its device."""

    q: torch.Tensor
    cache: KVCache
    sink: torch.Tensor | None
    tree: torch.Tensor | None

    @property
    def v(self) -> torch.Tensor:
        """The values that outputs are means of."""
        return torch.cat([values for _, values in self._sequences()]).to(self.q.dtype)

    def _sequences(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for i, length in enumerate(self.cache.lengths.tolist()):
            yield gathered(self.cache, i, length, torch.float32)

    def launch(self, case: DecodeCase, backend: KernelBackend) -> Tensors:
        spec = case.spec
        if isinstance(spec, ForwardSpec):
            options: dict[str, Any] = {"sm_margin": 0, "softmax": spec.softmax, "backend": backend}
            out, lse = prefill(self.q, self.cache, self.sink, **options, **_scalars(case))
            return {"out": out, "lse": lse}
        out, lse = decode(
            self.q,
            self.cache,
            self.sink,
            self.tree,
            num_splits=case.parts,
            sm_margin=0,
            backend=backend,
            **_scalars(case),
        )
        return {"out": out, "lse": lse}

    def exact(self, case: DecodeCase) -> Tensors:
        """In float64."""
        out, lse = decode_reference(self.q.double(), self.cache, self.sink, self.tree, **_scalars(case))
        return {"out": out, "lse": lse}

    def plain(self, case: DecodeCase) -> Tensors:
        """In the inputs' dtype, as plainly as can be."""
        factors, tokens, heads = _scalars(case), self.q.shape[1], self.q.shape[2]
        outs, logs = [], []
        for i, pair in enumerate(self._sequences()):
            keys, values = (x.to(self.q.dtype).repeat_interleave(heads // x.shape[1], 1) for x in pair)
            tree = None if self.tree is None else self.tree[i]
            lo, hi = intervals_of_tokens(tokens, len(keys), factors["window"], tree, self.q.device)
            columns = torch.arange(len(keys), device=self.q.device)
            seen = ((columns >= lo[..., None]) & (columns < hi[..., None])).any(0)
            scores = torch.einsum("thd,khd->htk", self.q[i], keys) * factors["softmax_scale"]
            if case.softcap:
                scores = case.softcap * torch.tanh(scores / case.softcap)
            scores = scores.masked_fill(~seen, -math.inf)
            if self.sink is not None:
                sinks = self.sink.T[:, None].to(scores.dtype).expand(-1, tokens, -1)
                scores = torch.cat([scores, sinks], 2)
            logs.append(scores.float().logsumexp(2))
            weights = scores.softmax(2).nan_to_num(0.0)[..., : len(keys)]
            outs.append(torch.einsum("htk,khd->thd", weights, values))
        return {"out": torch.stack(outs), "lse": torch.stack(logs)}


def make_decode_problem(case: DecodeCase, device: torch.device) -> DecodeProblem:
    """The same numbers for a case every time, on every device: they are drawn on the CPU."""
    numbers = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    spec, (heads_q, heads_k), batch = case.spec, case.heads, len(case.lengths)
    dtype = NAMED_DTYPES[spec.dtype]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers, device="cpu")

    size = case.page_size or max(case.lengths)
    columns = -(-max(case.lengths) // size)
    order = torch.randperm(batch * columns, generator=numbers, device="cpu").view(batch, columns).int()
    used = torch.arange(columns, device="cpu") * size < torch.tensor(case.lengths, device="cpu")[:, None]
    pools, scales = [], []
    for dim in (spec.head_dim, spec.head_dim_v):
        pool, scale = random(batch * columns, size, heads_k, dim), None
        if case.eight:
            unit = 4.0 / EIGHT_BITS[CACHES[case.cache]][2]
            given = None if case.token_scales else torch.full(pool.shape[:3], unit, device="cpu")
            pool, scale = quantise(pool, CACHES[case.cache], given)
            scale = scale if case.token_scales else scale[0, 0].expand(batch, -1).contiguous()
        pools.append(pool if case.eight else pool.to(dtype))
        scales.append(scale)
    for i, length in enumerate(case.lengths):
        for column in range(columns):
            behind = min(max(length - column * size, 0), size)
            for pool in pools:  # 8-bit integers have no NaN: their largest number stands for it
                bits = pool.view(torch.uint8) if case.eight else pool
                bits[order[i, column], behind:] = 127 if case.eight else math.nan
            for scale in [x for x in scales if x is not None and case.token_scales]:
                scale[order[i, column], behind:] = math.nan
    tables = (None, order.where(used, -1)) if case.page_size else (order[:, 0], None)
    rows, table, k_scales, v_scales = (x if x is None else x.to(device) for x in (*tables, *scales))
    lengths = torch.tensor(case.lengths, dtype=torch.int32, device=device)
    cache = KVCache(pools[0].to(device), pools[1].to(device), lengths, rows, table, k_scales, v_scales)
    q = random(batch, case.tokens, heads_q, spec.head_dim).to(dtype).to(device)
    tree = torch.rand(batch, case.tokens, case.tokens, generator=numbers, device="cpu") < 0.6
    return DecodeProblem(
        q, cache, random(2, heads_q).to(device) if spec.sink else None, tree.to(device) if case.tree else None
    )


def _scalars(case: DecodeCase) -> dict[str, Any]:
    scale = -0.1 if case.spec.score.kind == "scaled" and not case.eight else case.spec.head_dim**-0.5
    return {"softmax_scale": scale, "softcap": case.softcap, "window": case.window}


# ---------------------------------------------------------------- the cases


def decode_case(
    tokens: int = 1,
    heads: tuple[int, int] = (8, 1),
    page_size: int = 64,
    parts: int = 1,
    dims: tuple[int, int] = (128, 128),
    dtype: str = "bf16",
    softcap: float = 0.0,
    **variant: Any,
) -> DecodeCase:
    """A case with the spec that its problem leads to."""
    eight = variant.get("cache", "same") != "same"
    variant.setdefault("score", ScoreForm("softcap" if softcap else "scaled" if eight else "plain"))
    spec = decode_spec(dtype, dims, tokens * heads[0] // heads[1], page_size or None, split=parts > 1, **variant)
    return DecodeCase(spec, tokens, heads, page_size, parts, softcap=softcap)


def decode_case_for(spec: DecodeSpec) -> DecodeCase:
    """A case for any kernel, such as those of a user's bundle."""
    tokens = max(1, spec.tile.rows // 8)
    softcap = 15.0 if spec.score.kind == "softcap" else 0.0
    return DecodeCase(spec, tokens, (8, 1), spec.piece or 7, 2 if spec.split else 1, softcap=softcap)


def prefill_case_for(spec: ForwardSpec) -> DecodeCase:
    """A case for any forward whose keys lie in pages: a piece of a page, or all of a contiguous cache."""
    softcap = 15.0 if spec.score.kind == "softcap" else 0.0
    page_size = spec.piece if spec.piece & (spec.piece - 1) == 0 else 0
    return DecodeCase(spec, PROMPT, (4, 2), page_size, softcap=softcap)


def _prefill_case(dims: tuple[int, int], page_size: int | None, **variant: Any) -> DecodeCase:
    """A case with the spec that its problem leads to."""
    variant.setdefault("score", ScoreForm())
    return replace(prefill_case_for(prefill_spec("bf16", dims, page_size, **variant)), page_size=page_size or 0)


def decode_cases(group: str) -> list[DecodeCase]:
    """Those of a group of the self-test."""
    if group == "smoke":
        return [decode_case(heads=(1, 1))]
    if group == "tools":
        return [decode_case(), decode_case(page_size=7, parts=2)]
    if group == "long":
        long = (8192,) * 32
        return [
            replace(decode_case(tokens, (16, 2), parts=parts), lengths=long) for tokens in (1, 4) for parts in (1, 4)
        ]
    found = [decode_case(page_size=size) for size in (0, 1, 16, 32)]
    found += [decode_case(dims=dims) for dims in ((64, 64), (192, 128), (192, 192), (256, 256))]
    found += [decode_case(tokens) for tokens in (2, 4, 8)]
    found += [decode_case(parts=2), decode_case(parts=7, sink=True), decode_case(sink=True), decode_case(dtype="fp16")]
    found += [decode_case(4, tree=True), decode_case(softcap=15.0), decode_case(score=ScoreForm("scaled"))]
    for cache in CACHES:
        found += [decode_case(cache=cache), decode_case(cache=cache, token_scales=True)]
    found += [decode_case(cache="e4m3", dims=(64, 64)), decode_case(4, cache="int8", dims=(192, 128), page_size=16)]
    found += [_prefill_case((128, 128), size) for size in (None, 16, 64, 256)]
    found += [_prefill_case(dims, 64) for dims in ((64, 64), (96, 96), (192, 128), (192, 192), (256, 256))]
    found += [_prefill_case((128, 128), 64, window=True, sink=True, score=ScoreForm("softcap"))]
    return [*found, decode_case(4, cache="int8", dims=(256, 256), page_size=1, token_scales=True)]
