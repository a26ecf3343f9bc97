"""Writes docs/gallery.md and its pictures: `python docs/make_gallery.py`. A test regenerates the text and compares."""

from __future__ import annotations

from pathlib import Path

from cute_attn.mask import BUILDERS, IntervalMask, from_spec
from cute_attn.mask.draw import draw_png

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


def facts(mask: IntervalMask) -> str:
    none, partial, full = (int((mask.schedule().to_grid() == kind).sum()) for kind in (0, 1, 2))
    share = mask.area() / (mask.seqlen_q * mask.seqlen_k)
    intervals = f"{mask.layers} interval{'s' * (mask.layers > 1)} a row at most"
    return f"{share:.1%} attended, {intervals}; tiles: {full} full, {partial} partial, {none} skipped."


def text() -> str:
    """The page, without drawing anything."""
    missing = set(BUILDERS) - {spec.partition(":")[0] for _, spec, _ in ENTRIES}
    if missing:
        raise ValueError(f"no picture of {', '.join(sorted(missing))}")
    parts = [
        "# Gallery of masks",
        f"Every builder of `cute_attn.mask`, over {LENGTH} queries (rows) and keys (columns), with tiles of 128 x 128: "
        "blue tiles are full and need no mask, orange ones are partial, grey ones are never visited. "
        "[masks.md](masks.md) has the formulas. `python docs/make_gallery.py` writes this page; "
        "`cute-attn show --mask NAME[:key=value,...] --png FILE` draws any mask.",
    ]
    for title, spec, what in ENTRIES:
        mask = from_spec(spec, LENGTH)
        parts += [f"## {title}", f"{what}", f"`{short(spec)}`", facts(mask), f"![{title}](images/{file_name(title)})"]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    (DOCS / "images").mkdir(exist_ok=True)
    for title, spec, _ in ENTRIES:
        draw_png(from_spec(spec, LENGTH), DOCS / "images" / file_name(title), title=short(spec))
    (DOCS / "gallery.md").write_text(text())


if __name__ == "__main__":
    main()
