"""What the self-test runs: each case is one kernel on one problem, and names the spec that it needs."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from cute_attn.launch.captured import CapturedGradients, text_of
from cute_attn.launch.packing import shared_by
from cute_attn.launch.shapes import spec_for
from cute_attn.launch.tiles import default_tile
from cute_attn.mask import IntervalMask
from cute_attn.spec.attention import HEAD_DIMS
from cute_attn.spec.backward import BackwardSpec
from cute_attn.spec.decode import DecodeSpec
from cute_attn.spec.forward import ForwardSpec
from cute_attn.spec.operation import parse_spec
from cute_attn.spec.score import ScoreForm

from .decode import DecodeCase, decode_case_for, decode_cases, prefill_case_for
from .masks import MASKS, thinned
from .mods import ANY, SCORE_MODS, Drawn, certain_of, mask_mod_of, score_mod_of, wanted_of

__all__ = ["GROUPS", "AnyCase", "Case", "TestedSpec", "case_for", "case_of", "cases", "profiled", "specs"]

SIMULATED_TOKENS = 300  # at most: a simulated case takes seconds
# By name, what each is for. A group's cases come in the order of their work, smallest first.
GROUPS = {
    "smoke": "the smallest forward, backward and decode",
    "matrix": "every head_dim, kind of mask, of what thins it and of score, small; caches",
    "long": "long loops, more work than multiprocessors; not simulated",
    "tools": "few and tiny, for tools that make kernels slow; only when named",
}


CaseSpec = ForwardSpec | BackwardSpec


@dataclass(frozen=True)
class Case:
    """One kernel on one problem.

    spec: of the kernel; its tile is used whatever tables say. mask: a name of MASKS. tokens: queries; keys as the mask
    has it. mask_mod: what thins it: a name of MASK_MODS; ANY for what the predicate of the spec's mask says; "" for
    none. dims: of q and k, and of v; smaller than the spec's where padding is to be seen. scale: None for the usual.
    score_mod: a name of SCORE_MODS; ANY for what the spec's graph says; "" for none.
    inputs: "normal", "huge" (logits of a hundred), or "growing" (a larger maximum in every tile of keys).
    public: forward and backward by autograd through flex_flash_attn_func, so also the forward's kernel.
    """

    spec: CaseSpec
    mask: str
    tokens: int
    dims: tuple[int, int]
    heads: tuple[int, int] = (4, 2)
    scale: float | None = None
    softcap: float = 0.0
    sink: bool = False
    score_mod: str = ""
    mask_mod: str = ""
    inputs: str = "normal"
    public: bool = False

    @property
    def op(self) -> str:
        return self.spec.op

    @property
    def softmax_scale(self) -> float:
        return self.dims[0] ** -0.5 if self.scale is None else self.scale

    @property
    def heads_in_tile(self) -> int:
        """Query heads that share tiles of the forward."""
        packed_heads = getattr(self.spec, "packed_heads", 1)
        return shared_by(packed_heads, self.heads) if packed_heads > 1 else 1

    @property
    def name(self) -> str:
        s = self.spec
        plain = ("softcap", "deterministic", "max_logits", "max_scores", "fp32_out", "dlse", "fp32_gradients")
        extras = [name for name in plain if getattr(s, name, False) is True]
        extras += ["packed heads"] * (self.heads_in_tile > 1)
        extras += ["exact"] * (getattr(s, "softmax", "") == "exact") + ["fp16"] * (s.dtype == "fp16")
        extras += [f"softcap {self.softcap:g}"] * (self.softcap > 0) + ["sink"] * self.sink
        extras += [f"score_mod {self.score_mod}"] * bool(self.score_mod)
        extras += [f"thinned by {self.mask_mod}"] * bool(self.mask_mod)
        extras += [f"scale {self.scale}"] * (self.scale is not None) + [self.inputs] * (self.inputs != "normal")
        if isinstance(s, BackwardSpec) and not (s.dq and s.dk and s.dv):
            extras.append("+".join(name for name in ("dq", "dk", "dv") if getattr(s, name)))
        if s.tile != default_tile(s.op, (s.head_dim, s.head_dim_v), has_graph=bool(s.score.graph or s.mask.predicate)):
            extras.append(f"tile {s.tile}".replace(",", ""))
        dims = f"d{self.dims[0]}" if self.dims[0] == self.dims[1] else f"d{self.dims[0]}/{self.dims[1]}"
        op = "public" if self.public else s.op
        return " ".join([op, dims, self.mask, str(self.tokens), f"h{self.heads[0]}/{self.heads[1]}", *extras])

    @property
    def work(self) -> int:
        """Proportional to the products of a dense mask."""
        return self.tokens**2 * self.heads[0] * sum(self.dims) * (3 if self.op == "bwd" else 1)

    def simulated(self) -> Case:
        """The same kernel on a problem for the simulator."""
        heads = self.heads if self.heads == (1, 1) or self.heads_in_tile > 1 else (2, 1)
        return replace(self, tokens=min(self.tokens, SIMULATED_TOKENS), heads=heads)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "spec": json.loads(self.spec.canonical())}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Case:
        pairs = {name: tuple(fields[name]) for name in ("dims", "heads")}
        return cls(**{**fields, **pairs, "spec": parse_spec(json.dumps(fields["spec"]))})


AnyCase = Case | DecodeCase
TestedSpec = ForwardSpec | BackwardSpec | DecodeSpec


def case_of(fields: dict[str, Any]) -> AnyCase:
    """The case whose `to_json` this is."""
    return DecodeCase.from_json(fields) if "lengths" in fields else Case.from_json(fields)


def cases(groups: Iterable[str], simulated: bool = False) -> list[AnyCase]:
    """Those of the groups, each once, smallest first."""
    found: list[AnyCase] = []
    for group in groups:
        found += [*_group(group), *decode_cases(group)]
    if simulated:
        found = [case.simulated() for case in found]
    return sorted(dict.fromkeys(found), key=lambda case: case.work)


def profiled(simulated: bool = False) -> list[Case]:
    """A large forward and backward, for a profiler."""
    found = [_case(op, "causal", 8192, heads=(32, 8)) for op in ("fwd", "bwd")]
    return [case.simulated() for case in found] if simulated else found


def specs() -> list[TestedSpec]:
    """What the bundle of `cute-attn build --selftest` holds: the kernels of every case."""
    found: list[TestedSpec] = [case.spec for case in cases(GROUPS)]
    found += [_forward_of(case) for case in cases(GROUPS) if isinstance(case, Case) and case.public]
    return list(dict.fromkeys(found))


def case_for(spec: TestedSpec) -> AnyCase:
    """A small case of the matrix's size for any kernel, such as those of a user's bundle."""
    if isinstance(spec, DecodeSpec):
        return decode_case_for(spec)
    if isinstance(spec, ForwardSpec) and spec.piece:
        return prefill_case_for(spec)
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "scaled": {"scale": -0.1},
        "softcap": {"softcap": 15.0},
        "graph": {"score_mod": ANY},
    }
    fields = kinds[spec.score.kind]
    fields |= {"sink": True} if getattr(spec, "sink", False) else {}
    fields |= {"mask_mod": ANY} if spec.mask.predicate else {}
    packed_heads = getattr(spec, "packed_heads", 1)
    fields |= {"heads": (packed_heads, 1)} if packed_heads > 1 else {}
    return Case(spec, "slices" if spec.mask.is_bounded else "full", 1000, (spec.head_dim, spec.head_dim_v), **fields)


def _forward_of(case: Case) -> CaseSpec:
    """The kernel that a public case runs before its own."""
    score = ScoreForm("softcap" if case.softcap else "plain")
    return _spec_for("fwd", case.spec.dtype, *case.dims, _mask(case.mask), score=score, sink=case.sink)


def _spec_for(*arguments: Any, **variant: Any) -> CaseSpec:
    return cast(CaseSpec, spec_for(*arguments, **variant))


@functools.cache
def _mask(name: str) -> IntervalMask:
    """What specs are made for: their masks have one kind at every length."""
    return MASKS[name](1000)


@functools.cache
def _text_of(score_mod: str, op: str) -> str:
    """The graph of a score_mod of the table, or of its backward, which problems of all sizes share."""
    made, sizes = score_mod_of(score_mod, "", Drawn(1, 1, 1, torch.Generator(), torch.device("cpu"))), (1, 1, 1, 1)
    if op == "fwd":
        return text_of(made, sizes)
    return CapturedGradients(made, wanted_of(score_mod, "", made), torch.device("cpu")).text(sizes)


@functools.cache
def _thinned(mask: str, mask_mod: str) -> tuple[IntervalMask, str]:
    """The same of what a mask_mod of the table leaves of a mask, and the text of its graph."""
    whole = _mask(mask)
    drawn = Drawn(whole.seqlen_q, whole.seqlen_k, 4, torch.Generator(), torch.device("cpu"))
    made = mask_mod_of(mask_mod, "", drawn)
    found, _ = thinned(whole, made, certain_of(mask_mod, False, whole), drawn.heads)
    return found, text_of(made, (1, drawn.heads, drawn.rows, drawn.keys))


# ---------------------------------------------------------------- the cases

VARIANTS = (
    *("deterministic", "max_logits", "max_scores", "softmax", "fp32_out", "packed_heads"),
    *("dlse", "fp32_gradients", "dq", "dk", "dv"),
)


def _case(
    op: str,
    mask: str = "causal",
    tokens: int = 1000,
    dims: tuple[int, int] = (128, 128),
    dtype: str = "bf16",
    **fields: Any,
) -> Case:
    """A case with the spec that its problem leads to; `fields` are those of the case, and VARIANTS of the spec."""
    variant = {name: fields.pop(name) for name in VARIANTS if name in fields}
    variant["score"] = ScoreForm.of(1.0 if fields.get("scale") is None else fields["scale"], fields.get("softcap", 0.0))
    if fields.get("score_mod"):
        variant["score"] = ScoreForm("graph", _text_of(fields["score_mod"], op))
    if fields.get("sink") and op == "fwd":
        variant["sink"] = True
    seen = _mask(mask)
    if fields.get("mask_mod"):
        seen, variant["predicate"] = _thinned(mask, fields["mask_mod"])
    spec = _spec_for(op, dtype, *dims, seen, **variant)
    return Case(spec, mask, tokens, dims, **fields)


@functools.cache
def _group(name: str) -> tuple[Case, ...]:
    return tuple({"smoke": _smoke, "matrix": _matrix, "long": _long, "tools": _tools}[name]())


def _smoke() -> list[Case]:
    return [_case(op, "full", 256, heads=(1, 1)) for op in ("fwd", "bwd")]


# What mask_mods thin: one bound a row, both, none, many that are marked.
THINNED = {"one comparison": "causal", "two comparisons": "window", "documents": "full", "unless certain": "causal"}


def _matrix() -> list[Case]:
    found = []
    for op in ("fwd", "bwd"):
        found += [_case(op, "causal", 256, heads=(1, 1)), _case(op, "causal", 129)]
        found += [_case(op, mask, dims=dims) for dims in HEAD_DIMS for mask in ("full", "causal", "packed", "window")]
        found += [_case(op, mask, dims=dims) for dims in ((128, 128), (64, 64)) for mask in ("prefix", "slices")]
        found += [_case(op, dims=(80, 72)), _case(op, heads=(8, 1)), _case(op, dtype="fp16")]
        found += [_case(op, softcap=15.0), _case(op, "empty_rows"), _case(op, inputs="huge")]
        found += [_case(op, "anticausal")]
    found += [_case("fwd", sink=True), _case("fwd", scale=-0.1), _case("fwd", max_logits=True, softmax="exact")]
    found += [_case("fwd", mask, softmax="exact") for mask in ("causal", "full")]
    found += [_case("fwd", tokens=40, heads=(6, 1), packed_heads=8)]
    found += [
        _case("fwd", mask, inputs="growing", softmax=softmax)
        for mask in ("causal", "full")
        for softmax in ("stale", "exact")
    ]
    found += [_case(op, "causal", score_mod=name) for op in ("fwd", "bwd") for name in SCORE_MODS]
    found += [
        _case(op, mask, dims=dims, mask_mod=name)
        for op in ("fwd", "bwd")
        for dims in ((128, 128), (64, 64))
        for name, mask in THINNED.items()
    ]
    found += [_case("fwd", max_scores=True, softmax="exact")]
    found += [_case("bwd", "slices", dims=(64, 64), score_mod="distance")]
    found += [_case("fwd", mask, dims=(64, 64), score_mod="distance") for mask in ("full", "packed", "slices")]
    found += [_case("bwd", mask, deterministic=True) for mask in ("full", "causal", "window", "prefix")]
    found += [_case("bwd", dims=dims, deterministic=True) for dims in ((64, 64), (192, 128), (256, 256))]
    found += [_case("bwd", mask, public=True) for mask in ("causal", "slices")]
    found += [_case("bwd", public=True, sink=True), _case("bwd", public=True, softcap=15.0)]
    return found


def _long() -> list[Case]:
    found = []
    for op, heads in (("fwd", (16, 4)), ("bwd", (8, 2))):
        found += [_case(op, mask, 8192, heads=heads) for mask in ("full", "causal", "packed", "window", "slices")]
        found += [_case(op, "causal", 8192, dims, heads=heads) for dims in ((64, 64), (192, 128), (256, 256))]
    found += [_case("bwd", mask, 8192, heads=(16, 4), deterministic=True) for mask in ("causal", "window")]
    return [*found, _case("fwd", "causal", 32768, heads=(2, 1)), _case("bwd", "window", 32768, heads=(2, 1))]


def _tools() -> list[Case]:
    return [_case(op, mask, 300, heads=(2, 1)) for op in ("fwd", "bwd") for mask in ("causal", "window", "slices")]
