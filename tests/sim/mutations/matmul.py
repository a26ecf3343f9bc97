"""Mutations of the matrix products: a from shared memory ("matmul"), from registers ("registers"), in clusters.

Three stages, twelve uses of the ring; barriers `full` and `empty`, shared memory `a`, `b`, `c`.
"""

from mutations import Mutation, drop, flip_phase, move, repeat, rewrite, skip_wait, substitute

RING = ("full", "empty", "a", "b")
LABEL = r"^\$L__BB"
DESCRIPTOR = 1 << 62 | 64 << 32 | 1 << 16  # swizzle of 128 bytes, groups of eight rows 1024 bytes apart

MATMUL = [
    # ---- waits
    Mutation(
        "consumer does not wait for TMA", "matmul", "removed wait", "harmful",
        "WGMMA reads a stage that TMA may not have written yet", (skip_wait("wait full"),), RING,
    ),
    Mutation(
        "producer does not wait for an empty stage", "matmul", "removed wait", "harmful",
        "TMA overwrites a stage that WGMMA still reads, and expects bytes in a phase that already has them",
        (skip_wait("wait empty"),), RING,
    ),
    Mutation(
        "stage released before its products are done", "matmul", "early release", "harmful",
        "the producer may refill the stage while WGMMA reads it",
        (move("wait wgmma", r"wgmma\.wait_group", LABEL),), RING,
    ),
    Mutation(
        "consumer waits for the other parity", "matmul", "wrong phase", "harmful",
        "the parity of the phase before is complete at once, so the first use of a stage waits for nothing",
        (flip_phase("wait full"),), RING,
    ),
    Mutation(
        "producer waits for the other parity", "matmul", "wrong phase", "harmful",
        "a fresh barrier has not completed phase 0: the producer never starts",
        (flip_phase("wait empty"),), ("empty",),
    ),
    Mutation(
        "wait for the products weakened", "matmul", "weakened wgmma wait", "harmful",
        "the last group may be in flight when the stage is released and when the accumulators are converted",
        (substitute("wait wgmma", r"(wgmma\.wait_group\S*\s+)0", r"\g<1>1"),), (*RING, "registers"),
    ),
    Mutation(
        "no wait for the products", "matmul", "weakened wgmma wait", "harmful",
        "nothing says that the accumulators are written before they are converted",
        (drop("wait wgmma", r"wgmma\.wait_group"),), (*RING, "registers"),
    ),
    Mutation(
        "products not committed", "matmul", "weakened wgmma wait", "harmful",
        "wait_group waits for committed groups only, so these are never waited for",
        (drop("wgmma fence", r"wgmma\.commit_group"),), (*RING, "registers"),
    ),
    Mutation(
        "no wgmma.fence", "matmul", "missing fence", "harmful",
        "the accumulators were just cleared by ordinary moves, which only wgmma.fence orders before WGMMA",
        (drop("wgmma fence", r"wgmma\.fence"),), ("registers",),
    ),
    # ---- transactions and arrivals
    Mutation(
        "too few bytes expected", "matmul", "wrong expect_tx", "harmful",
        "the phase completes when only a part of the stage has landed", (substitute("expect", "24576", "16384"),), RING,
    ),
    Mutation(
        "too many bytes expected", "matmul", "wrong expect_tx", "harmful",
        "the phase never completes", (substitute("expect", "24576", "32768"),), ("full",),
    ),
    Mutation(
        "no bytes expected", "matmul", "wrong expect_tx", "harmful",
        "the arrival alone completes the phase, before any byte has landed",
        (substitute("expect", r"arrive\.expect_tx(\S*) (%rd\d+), (\[%r\d+\]), %r\d+", r"arrive\1 \2, \3"),), RING,
    ),
    Mutation(
        "empty barrier counts one warp too few", "matmul", "wrong barrier count", "harmful",
        "a stage is refilled while the eighth warp may still read it, and its arrival falls into the next phase",
        (*(substitute(f"init empty {s}", r"(mbarrier\.init\S*\s+\[\S+\]), %r\d+", r"\1, 7") for s in range(3)),), RING,
    ),
    Mutation(
        "empty barrier counts one warp too many", "matmul", "wrong barrier count", "harmful",
        "eight warps arrive, nine are expected: the stage is never free again",
        (substitute("init empty 1", r"(mbarrier\.init\S*\s+\[\S+\]), %r\d+", r"\1, 9"),), ("empty",),
    ),
    Mutation(
        "full barrier expects two arrivals", "matmul", "wrong barrier count", "harmful",
        "the producer arrives once a phase: nobody completes it",
        (substitute("init full 2", r"(mbarrier\.init\S*\s+\[\S+\]), %r\d+", r"\1, 2"),), ("full",),
    ),
    Mutation(
        "stages are not released", "matmul", "dropped arrive", "harmful",
        "the producer waits for stages that nobody gives back", (drop("release", r"mbarrier\.arrive"),), ("empty",),
    ),
    Mutation(
        "stages are released twice", "matmul", "over-arrival", "harmful",
        "the second arrival falls into the next phase, which then completes too early",
        (repeat("release", r"mbarrier\.arrive"),), RING,
    ),
    Mutation(
        "every lane releases the stage", "matmul", "over-arrival", "harmful",
        "32 arrivals a warp where one is counted", (drop("release", r"^\s*@%p\d+ bra"),), RING,
    ),
    # ---- epilogue
    Mutation(
        "no proxy fence before the store", "matmul", "missing proxy fence", "harmful",
        "TMA reads, through the async proxy, what stmatrix wrote through the generic one",
        (drop("epilogue fence", r"fence\.proxy\.async"),), ("c",),
    ),
    Mutation(
        "proxy fence of global memory before the store", "matmul", "wrong fence space", "harmful",
        "the target is global, but what was stored before lies in shared memory",
        (substitute("epilogue fence", r"async\.shared::cta", "async.global"),), ("c",),
    ),
    Mutation(
        "no barrier before the store", "matmul", "named barrier", "harmful",
        "warp 0 stores the tile before the other three have written theirs",
        (drop("epilogue barrier 2", r"bar\.sync"),), ("c",),
    ),
    Mutation(
        "no barrier before the tile is overwritten", "matmul", "named barrier", "harmful",
        "only warp 0 waits until the previous store has read the tile; the others overwrite it",
        (drop("epilogue barrier 1", r"bar\.sync"),), ("c",),
    ),
    Mutation(
        "previous store not awaited", "matmul", "wrong store-read wait", "harmful",
        "the tile of the previous item may not have been read when it is overwritten",
        (drop("wait store read", r"cp\.async\.bulk\.wait_group"),), ("c",),
    ),
    Mutation(
        "wait for the previous store weakened", "matmul", "wrong store-read wait", "harmful",
        "one store may be in flight, and there is one buffer",
        (substitute("wait store read", r"(wait_group\.read\s+)0", r"\g<1>1"),), ("c",),
    ),
    Mutation(
        "store not committed", "matmul", "wrong store-read wait", "harmful",
        "the wait covers committed stores only", (drop("store c", r"cp\.async\.bulk\.commit_group"),), ("c",),
    ),
    Mutation(
        "both warpgroups use one barrier", "matmul", "wrong barrier id", "harmful",
        "arrivals of the one complete the barrier of the other",
        (substitute("epilogue barrier 2", r"(bar\.sync\s+)%r\d+", r"\g<1>1"),), ("c", "barrier 1", "barrier 2"),
    ),
    Mutation(
        "epilogue barrier counts three warps", "matmul", "wrong barrier count", "harmful",
        "the fourth warp is left behind, or completes the next use of the barrier",
        (substitute("epilogue barrier 2", r"(bar\.sync\s+%r\d+), 128", r"\1, 96"),), ("c", "barrier 1", "barrier 2"),
    ),
    # ---- addresses
    Mutation(
        "a loaded from the wrong columns", "matmul", "wrong coordinate", "harmful",
        "both coordinates are the row: a different piece of the tensor",
        (substitute("load a", r"\{%r\d+, (%r\d+)\}", r"{\1, \1}"),), ("global c",),
    ),
    Mutation(
        "a loaded with swapped coordinates", "matmul", "wrong coordinate", "harmful",
        "rows and columns are exchanged: another tile, partly outside the tensor",
        (substitute("load a", r"\{(%r\d+), (%r\d+)\}", r"{\2, \1}"),), ("global c",),
    ),
    Mutation(
        "b loaded into the next stage", "matmul", "wrong offset", "harmful",
        "the stage that is announced stays as it was, the next one changes under its readers, the last lands in c",
        (substitute("load b", r"\+50176\]", "+58368]"),), ("b", "c", "full", "global c"),
    ),
    Mutation(
        "a loaded to an address that is no multiple of 128", "matmul", "misaligned", "harmful",
        "TMA needs 128-byte alignment in shared memory", (substitute("load a", r"\+1024\]", "+1032]"),), ("a",),
    ),
    Mutation(
        "a loaded half a swizzle pattern off", "matmul", "wrong offset", "harmful",
        "the swizzle works on absolute addresses, so the tile comes out shuffled",
        (substitute("load a", r"\+1024\]", "+1536]"),), ("a", "b", "global c"),
    ),
    Mutation(
        "last product step reads other rows", "matmul", "wrong descriptor", "harmful",
        "the fourth step starts 1 KiB on, which is eight rows further down, and ends in other memory",
        (substitute("wgmma fence", r"(add\.s32 \s*%r\d+, %r\d+), 6;", r"\1, 64;"),), ("a", "b", "c", "global c"),
    ),
    Mutation(
        "b read without swizzle", "matmul", "wrong descriptor", "harmful",
        "the descriptor says that the tile is not swizzled, but TMA swizzled it by 128 bytes",
        (rewrite(str(DESCRIPTOR), str(DESCRIPTOR & ~(3 << 62))),), ("global c", "a", "b", "descriptor"),
    ),
    Mutation(
        "b read with half the stride between groups of eight rows", "matmul", "wrong descriptor", "harmful",
        "the descriptor's stride offset is 512 bytes, groups of eight rows lie 1024 bytes apart",
        (rewrite(str(DESCRIPTOR), str(DESCRIPTOR - (32 << 32))),), ("global c",),
    ),
    Mutation(
        "tile written beyond shared memory", "matmul", "smem beyond request", "harmful",
        "the tile lands behind the memory that the launch asked for",
        (substitute("stmatrix", r"\[(%r\d+)\]", r"[\1+65536]"),), ("beyond",),
    ),
    Mutation(
        "barriers used before they are initialised", "matmul", "removed wait", "harmful",
        "nothing orders the other warps behind the initialisation",
        (drop("init barrier", r"bar\.sync"),), ("full", "empty"),
    ),
    # ---- harmless
    Mutation(
        "expected bytes announced after the copies", "matmul", "order", "benign",
        "the phase needs the producer's arrival, which comes with the announcement; the count may be negative before",
        (move("expect", r"mbarrier\.arrive\.expect_tx", r"\+50176\]"),),
    ),
    Mutation(
        "a second wgmma.fence", "matmul", "more fences", "benign",
        "a fence only orders", (repeat("wgmma fence", r"wgmma\.fence"),),
    ),
    Mutation(
        "a second proxy fence", "matmul", "more fences", "benign",
        "a fence only orders", (repeat("epilogue fence", r"fence\.proxy"),),
    ),
    Mutation(
        "a second epilogue barrier", "matmul", "more barriers", "benign",
        "all four warps wait once more", (repeat("epilogue barrier 2", r"bar\.sync"),),
    ),
    Mutation(
        "waits for stores to be written, not only read", "matmul", "stronger wait", "benign",
        "written implies read", (substitute("wait store read", r"wait_group\.read", "wait_group"),),
    ),
    Mutation(
        "another lane releases the stage", "matmul", "equivalent", "benign",
        "one arrival a warp, whichever lane makes it", (rewrite(r"(setp\.ne\.b32 \s*%p7, %r\d+), 0", r"\1, 5"),),
    ),
    Mutation(
        "copies without a cache hint", "matmul", "equivalent", "benign",
        "the hint says how long lines stay in L2",
        (
            substitute("load a", r"\.L2::cache_hint (.*), %rd\d+;", r" \1;"),
            substitute("load b", r"\.L2::cache_hint (.*), %rd\d+;", r" \1;"),
        ),
    ),
    Mutation(
        "waits try for another time", "matmul", "equivalent", "benign",
        "the time is a hint; the loop waits as long as it takes", (substitute("wait full", "10000000", "20"),),
    ),
    Mutation(
        "other numbers for the epilogue barriers", "matmul", "equivalent", "benign",
        "any two of the sixteen that nobody else uses",
        (rewrite(r"(add\.s32 \s*%r19, %r\d+), 1;", r"\1, 7;"),),
    ),
]  # fmt: skip

REGISTERS = [
    Mutation(
        "fragment loaded before TMA has landed", "registers", "removed wait", "harmful",
        "ldmatrix reads a stage that may not be written", (skip_wait("wait full"),), RING,
    ),
    Mutation(
        "fragment overwritten while products read it", "registers", "accumulator touched early", "harmful",
        "with one group in flight, ldmatrix writes the registers that WGMMA still reads",
        (substitute("wait wgmma", r"(wgmma\.wait_group\S*\s+)0", r"\g<1>1"),), (*RING, "registers"),
    ),
    Mutation(
        "no wgmma.fence behind the fragment's loads", "registers", "missing fence", "harmful",
        "WGMMA may read the registers before ldmatrix has written them",
        (drop("wgmma fence", r"wgmma\.fence"),), ("registers",),
    ),
    Mutation(
        "stage released before its products are done (registers)", "registers", "early release", "harmful",
        "b is still read from shared memory", (move("wait wgmma", r"wgmma\.wait_group", LABEL),), RING,
    ),
    Mutation(
        "fragment loaded from the wrong warp's rows", "registers", "wrong offset", "harmful",
        "each warp owns 16 rows of 128 bytes; this shifts them by eight rows",
        (substitute("ldmatrix", r"(ldmatrix.*\[%r\d+)\]", r"\1+1024]"),), ("global c", "a", "b"),
    ),
]  # fmt: skip

CLUSTER = [
    Mutation(
        "cluster does not wait for the barriers", "cluster", "removed wait", "harmful",
        "the other CTA may copy into this one and complete bytes on barriers that do not exist yet",
        (drop("cluster wait", r"barrier\.cluster\.wait"),), (*RING, "cluster barrier"),
    ),
    Mutation(
        "empty barrier counts one CTA", "cluster", "wrong barrier count", "harmful",
        "the stage is refilled while the other CTA's copy of b is still read",
        (*(substitute(f"init empty {s}", r"(mbarrier\.init\S*\s+\[\S+\]), %r\d+", r"\1, 8") for s in range(3)),), RING,
    ),
    Mutation(
        "stages released to CTA 0 only", "cluster", "wrong coordinate", "harmful",
        "CTA 0 gets arrivals twice, CTA 1 none",
        (substitute("release", r"(mapa\S* \s*%r\d+, %r\d+), %r\d+", r"\1, 0"),), RING,
    ),
    Mutation(
        "halves of b not shared", "cluster", "wrong coordinate", "harmful",
        "the mask names CTA 0 alone: CTA 1 waits for bytes that never come",
        (substitute("load b", r"(mov\.b16 \s*%rs\d+), 3", r"\1, 1"),), RING,
    ),
    Mutation(
        "only the CTA's own half expected", "cluster", "wrong expect_tx", "harmful",
        "the phase completes without the half that the other CTA sends",
        (substitute("expect", "24576", "20480"),), RING,
    ),
    Mutation(
        "both CTAs load the same half", "cluster", "wrong coordinate", "harmful",
        "rows 0 to 31 of b arrive twice, rows 32 to 63 never",
        (rewrite(r"shl\.b32 (\s*%r7, %r\d+), 5", r"mul.lo.s32 \1, 0"),), ("global c",),
    ),
    Mutation(
        "a CTA may leave early", "cluster", "removed wait", "harmful",
        "the other CTA still arrives at the barriers of the one that has left",
        (drop("cluster end", r"barrier\.cluster\.arrive"), drop("cluster end", r"barrier\.cluster\.wait")),
        ("ended CTA",),
    ),
    Mutation(
        "arrival at the cluster barrier releases", "cluster", "stronger wait", "benign",
        "release is stronger than relaxed",
        (rewrite(r"barrier\.cluster\.arrive\.relaxed", "barrier.cluster.arrive.release"),),
    ),
]  # fmt: skip
