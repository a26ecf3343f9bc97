"""Mutations of the attention kernel: one slot for q, rings of two stages for k and v, twelve uses of each ring.

Barriers `q_full`, `q_empty`, `k_full`, ...; shared memory `q`, `o`, `k`, `v`; named barriers 1 and 2 pass the turn
between the warpgroups, 3 and 4 order a warpgroup's epilogue.
"""

from mutations import Mutation, drop, flip_phase, insert, move, repeat, repeat_wait, rewrite, skip_wait, substitute
from mutations.matmul import LABEL

Q, K, V = (("q_full", "q_empty", "q"), ("k_full", "k_empty", "k"), ("v_full", "v_empty", "v"))
TURNS = ("barrier 1", "barrier 2")
EPILOGUES = ("barrier 3", "barrier 4")
GROUPS = r"(wgmma\.wait_group\S*\s+)"

ATTENTION = [
    # ---- waits
    Mutation(
        "q not awaited", "attention", "removed wait", "harmful",
        "the first product may read q before it has landed", (skip_wait("wait q full"),), Q,
    ),
    Mutation(
        "q overwritten while read", "attention", "removed wait", "harmful",
        "the producer loads the next query tile while the consumers still multiply with this one",
        (skip_wait("wait q empty"),), Q,
    ),
    Mutation(
        "k not awaited", "attention", "removed wait", "harmful",
        "the product may read k before it has landed", (skip_wait("wait k full"),), K,
    ),
    Mutation(
        "first k not awaited", "attention", "removed wait", "harmful",
        "as above, once a query tile", (skip_wait("wait first k full"),), K,
    ),
    Mutation(
        "k overwritten while read", "attention", "removed wait", "harmful",
        "two stages, and the producer runs ahead of both", (skip_wait("wait k empty"),), K,
    ),
    Mutation(
        "v not awaited", "attention", "removed wait", "harmful",
        "the product may read v before it has landed", (skip_wait("wait v full"),), V,
    ),
    Mutation(
        "last v not awaited", "attention", "removed wait", "harmful",
        "as above, once a query tile", (skip_wait("wait last v full"),), V,
    ),
    Mutation(
        "v overwritten while read", "attention", "removed wait", "harmful",
        "two stages, and the producer runs ahead of both", (skip_wait("wait v empty"),), V,
    ),
    # ---- releases
    Mutation(
        "k released before the scores are done", "attention", "early release", "harmful",
        "k may be replaced while it is multiplied", (move("wait qk", r"wgmma\.wait_group", LABEL),), (*K, "registers"),
    ),
    Mutation(
        "first k released before the scores are done", "attention", "early release", "harmful",
        "as above, once a query tile", (move("wait first qk", r"wgmma\.wait_group", LABEL),), (*K, "registers"),
    ),
    Mutation(
        "v released before its product is done", "attention", "early release", "harmful",
        "v may be replaced while it is multiplied", (move("wait pv", r"wgmma\.wait_group", LABEL),), V,
    ),
    Mutation(
        "last v released before its product is done", "attention", "early release", "harmful",
        "as above, once a query tile", (move("wait last pv", r"wgmma\.wait_group", LABEL),), V,
    ),
    Mutation(
        "q released with the first k", "attention", "early release", "harmful",
        "the other key tiles are still to be multiplied with q",
        (insert("release first k", r"mbarrier\.arrive", "mbarrier.arrive.shared.b64 _, [%r72];"),
         drop("release q", r"mbarrier\.arrive")), Q,
    ),
    Mutation(
        "k never released", "attention", "dropped arrive", "harmful",
        "the producer waits for a stage that nobody gives back",
        (drop("release k", r"mbarrier\.arrive"),), ("k_empty",),
    ),
    Mutation(
        "q never released", "attention", "dropped arrive", "harmful",
        "the second query tile is never loaded", (drop("release q", r"mbarrier\.arrive"),), ("q_empty",),
    ),
    Mutation(
        "v released twice", "attention", "over-arrival", "harmful",
        "the second arrival falls into the next phase", (repeat("release v", r"mbarrier\.arrive"),), V,
    ),
    Mutation(
        "k's stage released to v's barrier", "attention", "wrong barrier", "harmful",
        "v's stages count arrivals that are k's, k's stages wait",
        (substitute("release k", r"(add\.s32 .*), 32;", r"\1, 64;"),), (*K, *V),
    ),
    # ---- products
    Mutation(
        "scores read while their product runs", "attention", "weakened wgmma wait", "harmful",
        "two groups may be in flight, and the older one writes the scores",
        (substitute("wait qk", GROUPS + "1", r"\g<1>2"),), ("registers", *K),
    ),
    Mutation(
        "output rescaled while its product runs", "attention", "accumulator touched early", "harmful",
        "the group that accumulates the output may be in flight, and reads the probabilities that are overwritten",
        (substitute("wait pv", GROUPS + "0", r"\g<1>1"),), ("registers", *V),
    ),
    Mutation(
        "output converted while its product runs", "attention", "accumulator touched early", "harmful",
        "nothing waits for the last product", (drop("wait last pv", r"wgmma\.wait_group"),), ("registers", *V),
    ),
    Mutation(
        "first scores read while their product runs", "attention", "accumulator touched early", "harmful",
        "nothing waits for the product", (drop("wait first qk", r"wgmma\.wait_group"),), ("registers", *K),
    ),
    Mutation(
        "no wgmma.fence before the products", "attention", "missing fence", "harmful",
        "probabilities and output were just written by ordinary instructions",
        (drop("fence qk", r"wgmma\.fence"),), ("registers",),
    ),
    Mutation(
        "both products in one group", "attention", "weakened wgmma wait", "harmful",
        "without its own commit the first product is done only when the second is, and the wait for one group waits "
        "for none",
        (drop("fence qk", r"wgmma\.commit_group"),), ("registers", *K),
    ),
    # ---- phases, bytes, counts
    Mutation(
        "v awaited in the other phase", "attention", "wrong phase", "harmful",
        "the phase before is complete at once", (flip_phase("wait v full"),), V,
    ),
    Mutation(
        "producer of v waits for the other phase", "attention", "wrong phase", "harmful",
        "a fresh barrier has not completed phase 0", (flip_phase("wait v empty"),), ("v_empty",),
    ),
    Mutation(
        "q awaited in the other phase", "attention", "wrong phase", "harmful",
        "the phase before is complete at once", (flip_phase("wait q full"),), Q,
    ),
    Mutation(
        "half of k expected", "attention", "wrong expect_tx", "harmful",
        "the phase completes before all has landed", (substitute("expect k", "8192", "4096"),), K,
    ),
    Mutation(
        "half of q expected", "attention", "wrong expect_tx", "harmful",
        "the rows of one warpgroup may be missing", (substitute("expect q", "16384", "8192"),), Q,
    ),
    Mutation(
        "v expects the bytes of two tiles", "attention", "wrong expect_tx", "harmful",
        "the phase never completes", (substitute("expect v", "8192", "16384"),), ("v_full",),
    ),
    Mutation(
        "q's slot counts one warpgroup", "attention", "wrong barrier count", "harmful",
        "q is replaced when the faster warpgroup is done",
        (substitute("init q empty", r"(mbarrier\.init\S*\s+\[\S+\]), %r\d+", r"\1, 4"),), Q,
    ),
    # ---- named barriers
    Mutation(
        "turn not passed", "attention", "named barrier", "harmful",
        "each warpgroup waits for the other", (drop("pass turn", r"bar\.arrive"),), TURNS,
    ),
    Mutation(
        "first turn not given", "attention", "named barrier", "harmful",
        "warpgroup 0 waits for a turn that nobody passed", (drop("first turn", r"bar\.arrive"),), TURNS,
    ),
    Mutation(
        "turn passed to oneself", "attention", "wrong barrier id", "harmful",
        "the other warpgroup never gets it", (substitute("pass turn", r"bar\.arrive %r\d+", "bar.arrive %r18"),), TURNS,
    ),
    Mutation(
        "turn counts one warpgroup", "attention", "wrong barrier count", "harmful",
        "waiting and arriving threads disagree about the number of threads",
        (substitute("wait turn", r"(bar\.sync\s+%r\d+), 256", r"\1, 128"),), TURNS,
    ),
    Mutation(
        "epilogues share a barrier", "attention", "wrong barrier id", "harmful",
        "a warp of the other warpgroup stands in for one that has not written its rows",
        (substitute("epilogue barrier 2", r"(bar\.sync\s+)%r\d+", r"\g<1>3"),), ("o", *EPILOGUES),
    ),
    # ---- epilogue
    Mutation(
        "no proxy fence before the output is stored", "attention", "missing proxy fence", "harmful",
        "TMA reads what stmatrix wrote", (drop("epilogue fence", r"fence\.proxy\.async"),), ("o",),
    ),
    Mutation(
        "proxy fence of global memory before the output is stored", "attention", "wrong fence space", "harmful",
        "the output is staged in shared memory",
        (substitute("epilogue fence", r"async\.shared::cta", "async.global"),), ("o",),
    ),
    Mutation(
        "previous output still read when overwritten", "attention", "wrong store-read wait", "harmful",
        "one buffer, several query tiles", (drop("wait store read", r"cp\.async\.bulk\.wait_group"),), ("o",),
    ),
    # ---- addresses
    Mutation(
        "v loaded from the column of its row", "attention", "wrong coordinate", "harmful",
        "coordinates exchanged", (substitute("load v", r"\{(%r\d+), (%r\d+)\}", r"{\2, \1}"),), ("global out",),
    ),
    Mutation(
        "k loaded one row late", "attention", "wrong coordinate", "harmful",
        "every tile is shifted by a key, which the softmax hides nowhere",
        (substitute("load k", r"^(\s*)(cp\.async.*\{%r\d+, )(%r\d+)\}", r"\1add.s32 \3, \3, 1;\n\1\2\3}"),),
        ("global out",),
    ),
    Mutation(
        "second half of q lands on the first", "attention", "wrong offset", "harmful",
        "the rows of warpgroup 1 are never written, those of warpgroup 0 are replaced",
        (rewrite(r"(add\.s32 \s*%r4, %r1), 9216;", r"\1, 1024;"),), ("q", "global out"),
    ),
    Mutation(
        "logsumexp stored far behind its tensor", "attention", "out of bounds", "harmful",
        "no tensor lies there", (substitute("store lse 0", r"(st\.global\S* \s*\[%rd\d+)\]", r"\1+1073741824]"),),
        ("global address",),
    ),
    Mutation(
        "scores take the wrong column pairs of q", "attention", "wrong descriptor", "harmful",
        "the step from 16 columns to the next is 32 bytes, 2 in the descriptor's unit of 16; this one is 64",
        (rewrite(r"(add\.s64 \s*%rd23, %rd21), 2;", r"\1, 4;"),), ("global out",),
    ),
    # ---- harmless
    Mutation(
        "last turn not taken", "attention", "fewer barriers", "benign",
        "the arrivals that stay behind at a named barrier end with the CTA", (drop("last turn", r"bar\.sync"),),
    ),
    Mutation(
        "scores wait for the output too", "attention", "stronger wait", "benign",
        "waiting for all groups includes waiting for the older one",
        (substitute("wait qk", GROUPS + "1", r"\g<1>0"),),
    ),
    Mutation(
        "k released late", "attention", "later release", "benign",
        "with two stages the producer waits longer, nothing else",
        (drop("release k", r"mbarrier\.arrive"),
         insert("release v", r"mbarrier\.arrive", "mbarrier.arrive.shared.b64 _, [%r37];")),
    ),
    Mutation(
        "turns ignored", "attention", "fewer barriers", "benign",
        "taking turns is for speed: the warpgroups share no data but the rings, which have barriers of their own",
        (drop("first turn", r"bar\.arrive"), drop("wait turn", r"bar\.sync"), drop("pass turn", r"bar\.arrive"),
         drop("last turn", r"bar\.sync")),
    ),
    Mutation(
        "k awaited twice", "attention", "more waits", "benign",
        "a phase that is complete stays so until the stage is released",
        (repeat_wait("wait k full"),),
    ),
]  # fmt: skip
