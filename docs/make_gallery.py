"""Writes docs/gallery.md, docs/functions.md, docs/scores.md and their pictures: `python docs/make_gallery.py`. A test
regenerates the texts and compares."""

from __future__ import annotations

import importlib.util
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cute_attn import create_block_mask, create_mask
from cute_attn.fwd.config import default_tile, graph_tile
from cute_attn.launch.captured import CapturedGradients, text_of
from cute_attn.launch.shapes import spec_for
from cute_attn.mask import BUILDERS, IntervalMask, from_spec
from cute_attn.mask.draw import draw_png
from cute_attn.mods.distance import bias_of, by_table
from cute_attn.mods.graph import COLUMN, ELEMENT, INPUTS, ITEM, ROW
from cute_attn.mods.reading import Reading
from cute_attn.mods.softcap import softcap_of
from cute_attn.mods.trace import trace
from cute_attn.spec.operation import Spec
from cute_attn.spec.score import ScoreForm

DOCS = Path(__file__).parent
LENGTH = 1024

# (title, mask, what it is for)
ENTRIES = [
    ("Full", "full", "Every query attends every key: encoders, cross-attention."),
    ("Causal", "causal", "Every token attends itself and the past: decoders."),
    (
        "Sliding window, FlashAttention's convention",
        "sliding_window:left=256,right=0",
        "`left` and `right` are inclusive: 257 keys are kept here, the token itself among them.",
    ),
    (
        "Sliding window, MaxText's convention",
        "sliding_window:window_size=256",
        "`window_size` is the number of keys kept: 256 here, one fewer than `left=256`.",
    ),
    (
        "Documents",
        "documents:cu_seqlens=0/200/520/900/1024",
        "Packed sequences that do not see one another; `segment_ids` say the same token by token.",
    ),
    ("Causal documents", "causal_documents:cu_seqlens=0/200/520/900/1024", "Packed sequences of a decoder."),
    (
        "Documents that come back",
        "documents:segment_ids=" + "/".join(["0"] * 300 + ["1"] * 250 + ["0"] * 200 + ["1"] * 274),
        "Equal ids attend wherever they are: two runs of each id, two intervals a row.",
    ),
    ("Prefix LM", "prefix_lm:prefix_length=300", "The prefix is seen by all, the rest is causal."),
    (
        "Shared prefix",
        "shared_prefix:prefix_length=256,lengths=180/260/140/188",
        "One prompt and its answers, the prompt's keys computed once.",
    ),
    ("Chunked causal", "chunked_causal:chunk_size=300", "Causal inside fixed chunks of the sequence (Llama 4)."),
    (
        "Block causal",
        "block_causal:block_size=200",
        "All of the own block and of those before it: video frames, scales.",
    ),
    (
        "Block diffusion",
        "block_diffusion:block_size=64",
        "The training mask of BD3-LM: noisy tokens in the first half, the clean ones in the second.",
    ),
    (
        "Bidirectional runs",
        "bidirectional_runs:runs=150-400/600-850",
        "Text is causal, the tokens of an image attend all of the image.",
    ),
    (
        "Global tokens",
        "global_tokens:positions=" + "/".join(map(str, [*range(24), *range(560, 592)])) + ",left=140,right=140",
        "A window for most, everything for a few (Longformer, BigBird).",
    ),
]


def file_name(title: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in title.lower().replace("'s", "").replace(",", "")) + ".png"


def short(spec: str) -> str:
    return spec if len(spec) <= 80 else f"{spec[:40]}...{spec[-22:]}"


def facts(mask: IntervalMask, intervals: str = "") -> str:
    none, partial, full = (int((mask.schedule().to_grid() == kind).sum()) for kind in (0, 1, 2))
    share = mask.area() / (mask.seqlen_q * mask.seqlen_k)
    return f"{share:.1%} attended{intervals}; tiles: {full} full, {partial} partial, {none} skipped."


def layers(mask: IntervalMask) -> str:
    return f", {mask.layers} interval{'s' * (mask.layers > 1)} a row at most"


# ---------------------------------------------------------------- what kernels cost

HEAD_DIM = 128


def of_mask(mask: IntervalMask) -> tuple[Spec, ...]:
    """The kernels of a mask: forward and backward."""
    return tuple(spec_for(op, "bf16", HEAD_DIM, HEAD_DIM, mask) for op in ("fwd", "bwd"))


def of_reading(found: Reading) -> tuple[Spec, ...]:
    """The kernels of a mask_mod: of its intervals, or of these and a predicate."""
    if found.predicate is None:
        return of_mask(found.intervals)
    mask, predicate = found.thinned(BATCH, HEADS), text_of(found.predicate.traced, (BATCH, HEADS, LENGTH, LENGTH))
    forward = spec_for("fwd", "bf16", HEAD_DIM, HEAD_DIM, mask, predicate=predicate)
    by_head = {"planes_by_head": mask.heads > 1}
    return forward, spec_for("bwd", "bf16", HEAD_DIM, HEAD_DIM, mask, predicate=predicate, **by_head)


def of_score(mod: Callable[..., Any]) -> tuple[Spec, ...]:
    """The kernels of a score_mod under a causal mask: forward, and backward with gradients of all floats captured."""
    traced, causal = trace(mod, "score_mod"), from_spec("causal", LENGTH)

    def spec(op: str, score: ScoreForm) -> Spec:
        return spec_for(op, "bf16", HEAD_DIM, HEAD_DIM, causal, score=score)

    if softcap_of(traced):
        return spec("fwd", ScoreForm("softcap")), spec("bwd", ScoreForm("softcap"))
    device, sizes = torch.device("cpu"), (BATCH, HEADS, LENGTH, LENGTH)
    served = by_table(traced, HEADS, LENGTH, LENGTH, device)
    gradients = CapturedGradients(served, [x.is_floating_point() for x in served.tensors], device)
    forward = spec("fwd", ScoreForm("graph", text_of(served, sizes)))
    return forward, replace(spec("bwd", forward.score), score=ScoreForm("graph", gradients.text(sizes)))


def priced() -> list[Spec]:
    """The kernels whose costs the pages tell."""
    masks = map(of_mask, (from_spec(spec, LENGTH) for _, spec, _ in ENTRIES))
    mods = map(of_reading, map(read, functions().values()))
    scores = map(of_score, functions("score_mods").values())
    return list(dict.fromkeys(spec for specs in (*masks, *mods, *scores) for spec in specs))


def costs(rows: dict[str, tuple[Spec, ...]], head: str) -> str:
    """A table of what kernels cost, by what costs.json has."""
    known = json.loads((Path(__file__).parent / "costs.json").read_text())

    def cell(spec: Spec) -> str:
        if str(spec) not in known:
            raise KeyError(f"costs.json has no {spec}: run python docs/make_costs.py")
        return " / ".join(map(str, known[str(spec)]))

    lines = [f"| {head} | forward | backward |", "|---|---|---|"]
    for name, specs in rows.items():
        lines.append(f"| {name} | {' | '.join([*map(cell, specs), '', ''][:2])} |")
    return "\n".join(lines)


COST = (
    f"What a tile costs at head_dim {HEAD_DIM}, in issue slots of a warp, partial tile / full tile, read off the "
    "machine code (`python docs/make_costs.py`, `cute-attn inspect`):"
)
WIDTHS = (
    f"A tile of a forward that evaluates a function has {graph_tile(HEAD_DIM, HEAD_DIM).n} keys, of another one "
    f"{default_tile(HEAD_DIM, HEAD_DIM).n}."
)


def text() -> str:
    """The page, without drawing anything."""
    missing = set(BUILDERS) - {spec.partition(":")[0] for _, spec, _ in ENTRIES}
    if missing:
        raise ValueError(f"no picture of {', '.join(sorted(missing))}")
    parts = [
        "# Gallery of masks",
        f"Every builder of `cute_attn.mask`, over {LENGTH} queries (rows) and keys (columns), with tiles of 128 x 128: "
        "blue tiles are full and need no mask, orange ones are partial, grey ones are never visited. "
        "[masks.md](masks.md) has the formulas. [functions.md](functions.md) has masks as functions. "
        "`python docs/make_gallery.py` writes both pages; "
        "`cute-attn show --mask NAME[:key=value,...] --png FILE` draws any mask.",
    ]
    parts += [COST, costs({title: of_mask(from_spec(spec, LENGTH)) for title, spec, _ in ENTRIES}, "mask")]
    for title, spec, what in ENTRIES:
        mask = from_spec(spec, LENGTH)
        said = facts(mask, layers(mask))
        parts += [f"## {title}", f"{what}", f"`{short(spec)}`", said, f"![{title}](images/{file_name(title)})"]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- masks as functions

BATCH, HEADS = 2, 4  # of which the functions may speak
DRAWN = {"window_by_head": (0, 2)}  # batch element and head, else the first


def module(name: str) -> Any:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def functions(name: str = "mask_mods") -> dict[str, Callable[..., Any]]:
    """The functions of a module of mods."""
    return {name: x for name, x in vars(module(name)).items() if inspect.isfunction(x)}


def code(mod: Callable[..., Any]) -> str:
    """What a function is, as a block of a page."""
    return "```python\n" + inspect.getsource(mod).replace(f'    """{mod.__doc__}"""\n', "").rstrip() + "\n```"


def plane(name: str, mod: Callable[..., Any]) -> IntervalMask:
    """One batch element and head of a mask, for looking."""
    batch, head = DRAWN.get(name, (0, 0))
    return IntervalMask.from_dense(create_mask(mod, BATCH, HEADS, LENGTH, LENGTH, "cpu")[batch, head])


def read(mod: Callable[..., Any]) -> Reading:
    return create_block_mask(mod, BATCH, HEADS, LENGTH, LENGTH, "cpu").reading()


def said(found: Reading) -> str:
    """Whether a mask is intervals, how many, and whom they depend on."""
    mask = found.intervals
    if found.predicate is None:
        planes = {(1, 1): "", (BATCH, 1): ", a mask a batch element", (1, HEADS): ", a mask a head"}
        return f"Read as intervals{layers(mask)}{planes[mask.batch, mask.heads]}."
    share = mask.area() / (mask.planes * mask.seqlen_q * mask.seqlen_k)
    return f"Not intervals ({found.reason}): a predicate that thins {share:.1%} of the pairs."


def functions_text() -> str:
    """The page of functions, without drawing anything."""
    parts = [
        "# Masks as functions",
        "Masks of the field as `mask_mod(b, h, q_idx, kv_idx)`, which flex_attention, `create_block_mask` and "
        f"`IntervalMask.from_function` take ([masks.md](masks.md#masks-as-functions)), over {LENGTH} queries and keys, "
        "with tiles of 128 x 128 coloured as in the [gallery](gallery.md). Each says whether it can be read as "
        "intervals, which is then exact and costs what the intervals cost; if not, partial tiles cost what it takes to "
        "ask a predicate for each of their pairs. The functions and their tensors are in "
        "[mask_mods.py](mask_mods.py); `cute-attn show --mod docs/mask_mods.py:causal` draws one, and any of yours.",
    ]
    readings = {name: read(mod) for name, mod in functions().items()}
    parts += [COST, costs({name: of_reading(found) for name, found in readings.items()}, "mask_mod"), WIDTHS]
    for name, mod in functions().items():
        parts += [f"## {name}", str(mod.__doc__), code(mod), said(readings[name]), facts(plane(name, mod))]
        parts += [f"![{name}](images/function_{name}.png)"]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------- scores as functions


def serving(mod: Callable[..., Any]) -> str:
    """How kernels compute a score_mod."""
    traced = trace(mod, "score_mod")
    if softcap_of(traced):
        return f"Recognised: the softcap that kernels have built in, {softcap_of(traced):g}."
    if bias_of(traced.graph) is not None:
        return "A bias of the distance: a table, in the one kernel that all such share."
    graph = traced.graph
    said = []
    for stage, where in ((ELEMENT, "element"), (COLUMN, "column"), (ROW, "row"), (ITEM, "batch element and head")):
        ops = [
            node.op
            for node, at in zip(graph.nodes, graph.stages(), strict=True)
            if at == stage and node.op not in (*INPUTS, "const", "scalar")
        ]
        said += [f"of an {where} {', '.join(ops)}" if where[0] == "e" else f"of a {where} {', '.join(ops)}"] * bool(ops)
    return f"Evaluated in the kernel: {'; '.join(said)}."


def scores_text() -> str:
    """The page of score_mods, without drawing anything."""
    parts = [
        "# Scores as functions",
        "What the field adds to scores, as `score_mod(score, b, h, q_idx, kv_idx)`, which flex_attention takes, over "
        f"{LENGTH} queries and keys: pictures show what each adds to a score, or multiplies it with, at every pair, or "
        "what it makes of a score where the pair does not matter. Each says how kernels compute it "
        "([flex_attention.md](flex_attention.md)). The functions and their tensors are in "
        "[score_mods.py](score_mods.py); `python docs/make_gallery.py` writes this page. "
        "[functions.md](functions.md) has masks as functions.",
    ]
    parts += [COST.replace(", in issue", " under a causal mask, in issue")]
    parts += [costs({name: of_score(mod) for name, mod in functions("score_mods").items()}, "score_mod"), WIDTHS]
    for name, mod in functions("score_mods").items():
        parts += [f"## {name}", str(mod.__doc__), code(mod), serving(mod), f"![{name}](images/score_{name}.png)"]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    (DOCS / "images").mkdir(exist_ok=True)
    for title, spec, _ in ENTRIES:
        draw_png(from_spec(spec, LENGTH), DOCS / "images" / file_name(title), title=short(spec))
    for name, mod in functions().items():
        draw_png(plane(name, mod), DOCS / "images" / f"function_{name}.png", title=name)
    scores = module("score_mods")
    for name, mod in functions("score_mods").items():
        picture = DOCS / "images" / f"score_{name}.png"
        module("draw_scores").draw_scores(mod, picture, name, scores.HEADS, scores.LENGTH)
    (DOCS / "gallery.md").write_text(text())
    (DOCS / "functions.md").write_text(functions_text())
    (DOCS / "scores.md").write_text(scores_text())


if __name__ == "__main__":
    main()
